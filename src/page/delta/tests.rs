use super::*;
use proptest::prelude::*;

type Page = [u8; PAGE];

fn uleb(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The encoding by the plainest code, a byte at a time: it gives the bytes of `page` that `given`
/// names.
fn plainly(page: &Page, given: impl Fn(usize) -> bool) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < PAGE {
        let start = (at..PAGE).find(|i| given(*i)).unwrap_or(PAGE);
        if start == PAGE {
            break;
        }
        let end = (start..PAGE).find(|i| !given(*i)).unwrap_or(PAGE);
        uleb(start - at, &mut out);
        uleb(end - start, &mut out);
        out.extend_from_slice(&page[start..end]);
        at = end;
    }
    out
}

/// The encoding by an encoder that ends a run at each unchanged byte.
fn narrow(base: &Page, page: &Page) -> Vec<u8> {
    plainly(page, |i| base[i] != page[i])
}

/// The encoding that our encoder has to make.
fn expected(base: &Page, page: &Page) -> Vec<u8> {
    let differs = |i: usize| base.get(i) != page.get(i);
    plainly(page, |i| {
        differs(i) || (i > 0 && differs(i - 1) && differs(i + 1))
    })
}

/// Checks all promises for one pair of pages.
fn check(base: &Page, page: &Page) {
    let expected = expected(base, page);
    for level in Level::all() {
        // What the mask had before does not matter.
        let mut mask = [u64::MAX; GROUPS];
        let some = level.differing(base, page, &mut mask);
        for (group, word) in mask.iter().enumerate() {
            assert_eq!(some >> group & 1 == 1, *word != 0, "{level:?}: {group}");
        }
        for (i, (a, b)) in base.iter().zip(page).enumerate() {
            assert_eq!(
                mask[i / 64] >> (i % 64) & 1 == 1,
                a != b,
                "{level:?}: byte {i}"
            );
        }
    }
    let mut out = [0xa5; 3 * PAGE];
    let length = encode(base, page, &mut out).expect("three pages are room for any encoding");
    assert_eq!(out[..length], expected[..]);
    assert!(length <= narrow(base, page).len());
    // The encoding fits into exactly its own length, and not into a byte less.
    let mut exact = vec![0; length];
    assert_eq!(encode(base, page, &mut exact), Some(length));
    assert_eq!(exact, expected);
    if length > 0 {
        assert_eq!(encode(base, page, &mut vec![0; length - 1]), None);
    }
    for encoding in [&exact, &narrow(base, page)] {
        let mut decoded = *base;
        decode(encoding, &mut decoded).unwrap();
        assert!(decoded == *page, "decoding gives another page");
    }
}

fn patterned() -> Page {
    std::array::from_fn(|i| (i * 7 + i / 256) as u8)
}

#[test]
fn the_example_in_the_documentation_is_so() {
    let base = [0; PAGE];
    let mut page = base;
    page[5] = 9;
    page[200..203].fill(9);
    let mut out = [0; 64];
    let length = encode(&base, &page, &mut out).unwrap();
    assert_eq!(out[..length], [5, 1, 9, 0xc2, 1, 3, 9, 9, 9]);
}

#[test]
fn an_unchanged_page_is_nothing_and_a_changed_one_is_all_of_it() {
    let base = patterned();
    check(&base, &base);
    assert_eq!(encode(&base, &base, &mut []), Some(0));
    let page = base.map(|b| !b);
    check(&base, &page);
    assert_eq!(encode(&base, &page, &mut [0; PAGE + 2]), None);
    assert_eq!(encode(&base, &page, &mut [0; PAGE + 3]), Some(PAGE + 3));
}

#[test]
fn a_run_of_any_length_at_any_place_comes_back() {
    let base = patterned();
    let edges = [
        0, 1, 2, 62, 63, 64, 65, 126, 127, 128, 129, 2047, 4000, 4031, 4094, 4095,
    ];
    for start in edges {
        for length in [
            1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 4095, 4096,
        ] {
            let mut page = base;
            let end = (start + length).min(PAGE);
            page[start..end].iter_mut().for_each(|b| *b ^= 0x81);
            check(&base, &page);
        }
    }
}

#[test]
fn every_byte_of_a_page_is_compared() {
    let base = patterned();
    let mut page = base;
    for byte in 0..PAGE {
        for bit in [1, 0x80] {
            page[byte] ^= bit;
            for level in Level::all() {
                let mut expected = [0; GROUPS];
                expected[byte / 64] = 1 << (byte % 64);
                let mut mask = [0; GROUPS];
                let some = level.differing(&base, &page, &mut mask);
                assert_eq!((mask, some), (expected, 1 << (byte / 64)), "{level:?}");
            }
            page[byte] ^= bit;
        }
    }
}

/// Every pattern of changed and unchanged bytes in a window: across two groups, at the page's
/// beginning, and at its end.
#[test]
fn every_pattern_of_changes_in_a_window_comes_back() {
    const WINDOW: usize = 10;
    let base = patterned();
    for at in [0, 64 - WINDOW / 2, PAGE - WINDOW] {
        for pattern in 0..1usize << WINDOW {
            let mut page = base;
            for i in (0..WINDOW).filter(|i| pattern >> i & 1 == 1) {
                page[at + i] ^= 0x10;
            }
            let mut out = [0; 4 * WINDOW];
            let length = encode(&base, &page, &mut out).unwrap();
            assert_eq!(
                out[..length],
                expected(&base, &page),
                "{pattern:#b} at {at}"
            );
            let mut decoded = base;
            decode(&out[..length], &mut decoded).unwrap();
            assert!(decoded == page, "{pattern:#b} at {at}");
        }
    }
}

#[test]
fn what_is_no_encoding_is_refused_where_it_goes_wrong() {
    let full = |head: &[u8], bytes: usize| [head, &vec![7; bytes]].concat();
    let table: &[(Vec<u8>, usize, &str)] = &[
        (vec![3], 1, "a length, found the encoding's end"),
        (vec![0x83], 1, "a length, found the encoding's end"),
        (vec![3, 0x81], 2, "a length, found the encoding's end"),
        (vec![0x80, 0x80, 1, 1, 7], 0, "a length of 2 bytes or less"),
        (
            vec![0xff, 0xff, 0xff, 0xff, 1],
            0,
            "a length of 2 bytes or less",
        ),
        (vec![0, 0x81, 0x80, 0, 7], 1, "a length of 2 bytes or less"),
        (vec![0, 0], 1, "a pair that gives 1 byte or more"),
        (vec![0, 0x80, 0], 1, "a pair that gives 1 byte or more"),
        (
            vec![0, 1, 7, 0, 1, 7],
            3,
            "a pair that skips 1 byte or more",
        ),
        (
            vec![0, 1, 7, 0x80, 0, 1, 7],
            3,
            "a pair that skips 1 byte or more",
        ),
        (
            vec![0, 2, 7],
            1,
            "a pair that gives no more bytes than follow",
        ),
        (
            full(&[0xff, 0x1f, 2], 2),
            2,
            "a pair that gives no byte past the page's end",
        ),
        (
            full(&[0, 0x81, 0x20], 4097),
            1,
            "a pair that gives no byte past the page's end",
        ),
        (
            vec![0x80, 0x20, 1, 7],
            2,
            "a pair that gives no byte past the page's end",
        ),
        (
            vec![0x81, 0x20, 1, 7],
            0,
            "a pair that skips no byte past the page's end",
        ),
        (
            vec![0xff, 0x7f, 1, 7],
            0,
            "a pair that skips no byte past the page's end",
        ),
        (vec![0, 1, 7, 5], 4, "a length, found the encoding's end"),
    ];
    for (encoding, at, expected) in table {
        let corrupt = decode(encoding, &mut [0; PAGE]).unwrap_err();
        assert_eq!(
            (corrupt.at, corrupt.expected),
            (*at, *expected),
            "{encoding:02x?}"
        );
    }
}

/// Any bytes cause no panic. When they are accepted, the result is that of the plainest code.
#[test]
fn any_two_bytes_and_what_follows_are_refused_or_taken_as_the_format_says() {
    for first in 0..=0xff {
        for second in 0..=0xff {
            for rest in [&[][..], &[7], &[7, 1, 1, 7], &[0x80], &[7; 200]] {
                let encoding = [&[first, second], rest].concat();
                let mut page = [0; PAGE];
                if decode(&encoding, &mut page).is_ok() {
                    assert!(first < 0x80 || second < 0x80);
                    let given = page.iter().filter(|b| **b != 0).count();
                    assert!(given <= encoding.len());
                }
            }
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    // Few changes and many, short ones and long ones.
    let one = (0..PAGE, prop_oneof![1..3usize, 1..200usize], any::<u8>());
    prop::collection::vec(one, 0..150)
}

proptest! {
    #[test]
    fn any_changes_come_back(fill in any::<u8>(), changes in changes()) {
        let base = patterned().map(|b| b ^ fill);
        let mut page = base;
        for (at, length, value) in changes {
            let end = (at + length).min(PAGE);
            page[at..end].fill(value);
        }
        check(&base, &page);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut page = patterned();
        let _ = decode(&bytes, &mut page);
    }

    /// An encoding that was damaged on its way changes nothing but the page.
    #[test]
    fn a_damaged_encoding_is_decoded_or_refused(
        changes in changes(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
        cut in any::<bool>(),
    ) {
        let base = patterned();
        let mut page = base;
        for (at, length, value) in changes {
            let end = (at + length).min(PAGE);
            page[at..end].fill(value);
        }
        let mut encoding = expected(&base, &page);
        prop_assume!(!encoding.is_empty());
        let at = at.index(encoding.len());
        match cut {
            true => encoding.truncate(at),
            false => encoding[at] ^= 1 << bit,
        }
        let mut decoded = base;
        let _ = decode(&encoding, &mut decoded);
    }
}
