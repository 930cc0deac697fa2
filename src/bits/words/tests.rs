//! The kernels of every width, compared with a list of booleans.

use super::*;
use proptest::prelude::*;

type Bits = Vec<bool>;

fn bits_of(words: &[u64]) -> Bits {
    (0..words.len() * 64)
        .map(|i| words[i / 64] >> (i % 64) & 1 != 0)
        .collect()
}

fn ones(bits: &[bool]) -> u64 {
    bits.iter().filter(|&&b| b).count() as u64
}

fn levels() -> impl Iterator<Item = &'static Kernels> {
    Level::ALL.into_iter().filter_map(kernels)
}

/// Words as in practice: mostly zero in one place, full or mixed in another.
fn words(max: usize) -> impl Strategy<Value = Vec<u64>> {
    let word = prop_oneof![
        4 => Just(0u64),
        2 => Just(u64::MAX),
        2 => any::<u64>(),
        1 => (0u32..64).prop_map(|i| 1 << i),
        1 => Just(1u64 << 63 | 1),
    ];
    prop::collection::vec((word, 1usize..20), 0..max / 5).prop_map(move |parts| {
        let mut out: Vec<u64> = Vec::new();
        for (w, n) in parts {
            out.extend(std::iter::repeat_n(w, n));
        }
        out.truncate(max);
        out
    })
}

#[test]
fn every_level_this_machine_has_is_tried_and_the_best_is_the_widest() {
    let all: Vec<_> = levels().map(Kernels::level).collect();
    assert_eq!(all.last(), Some(&best().level()));
    assert!(all.contains(&Level::Portable));
}

#[test]
fn nothing_is_a_fine_argument() {
    for k in levels() {
        assert_eq!(k.count(&[]), 0);
        assert_eq!(k.or_count(&mut [], &[]), 0);
        assert!(k.is_zero(&[]));
        assert_eq!(k.find_nonzero(&[], 0), None);
        assert_eq!(k.find_nonzero(&[1], 2), None);
        assert_eq!(k.or_count_at(&mut [], 0, &[], 0), 0);
        assert_eq!(k.or_count_at(&mut [0], usize::MAX, &[1], usize::MAX), 0);
        assert_eq!(k.or_count_at(&mut [0], 63, &[3], usize::MAX), 1);
    }
    assert_eq!(next_set(&[], 0, 10), None);
    assert_eq!(next_clear(&[u64::MAX], 0, usize::MAX), None);
    assert_eq!(set_range(&mut [0], 60, usize::MAX), 4);
    assert_eq!(clear_range(&mut [u64::MAX], usize::MAX, usize::MAX), 0);
    assert_eq!(count_range(&[u64::MAX], 60, usize::MAX), 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn count_and_find_agree_with_the_model_at_every_level(
        words in words(300), from in 0usize..310, skip in 0usize..9,
    ) {
        let words = &words[skip.min(words.len())..];
        for k in levels() {
            prop_assert_eq!(k.count(words), ones(&bits_of(words)), "{:?}", k.level());
            prop_assert_eq!(k.is_zero(words), words.iter().all(|&w| w == 0));
            prop_assert_eq!(
                k.find_nonzero(words, from),
                (from..words.len()).find(|&i| words[i] != 0)
            );
            prop_assert_eq!(
                (k.find_not)(words, u64::MAX),
                words.iter().position(|&w| w != u64::MAX)
            );
        }
    }

    #[test]
    fn or_count_agrees_with_the_model_at_every_level(
        dst in words(300), src in words(300), skip in 0usize..9,
    ) {
        let n = dst.len().min(src.len());
        let skip = skip.min(n);
        let (dst, src) = (&dst[skip..n], &src[skip..n]);
        let model: Vec<u64> = dst.iter().zip(src).map(|(a, b)| a | b).collect();
        let new = ones(&bits_of(&model)) - ones(&bits_of(dst));
        for k in levels() {
            let mut out = dst.to_vec();
            prop_assert_eq!(k.or_count(&mut out, src), new, "{:?}", k.level());
            prop_assert_eq!(&out, &model);
        }
    }

    #[test]
    fn or_count_at_agrees_with_the_model_at_every_level_and_alignment(
        dst in words(1200), src in words(1200), at in 0usize..40_000,
        near in 0usize..1200, nbits in 0usize..80_000,
    ) {
        // Half of the positions are near the start, where many bits fit.
        let at = if nbits % 2 == 0 { at } else { near };
        let mut model = bits_of(&dst);
        let from = bits_of(&src);
        let mut expected = BitCounts::default();
        let mut groups = vec![false; dst.len().div_ceil(8)];
        for (i, _) in from.iter().enumerate().take(nbits).filter(|&(_, &b)| b) {
            if let Some(bit) = model.get_mut(at + i) {
                expected.new += u64::from(!*bit);
                expected.again += u64::from(*bit);
                *bit = true;
                groups[(at + i) / 512] = true;
            }
        }
        for k in levels() {
            let mut out = dst.clone();
            let mut seen = vec![false; groups.len()];
            let got = k.or_at(&mut out, at, &src, nbits, |span, mask| {
                for g in (0..64).filter(|g| mask >> g & 1 != 0) {
                    seen[span * 64 + g] = true;
                }
            });
            prop_assert_eq!(got, expected, "{:?}", k.level());
            prop_assert_eq!(&bits_of(&out), &model);
            prop_assert_eq!(&seen, &groups);
            let mut again = dst.clone();
            prop_assert_eq!(k.or_count_at(&mut again, at, &src, nbits), expected.new);
            prop_assert_eq!(&again, &out);
        }
    }

    #[test]
    fn the_group_kernels_touch_only_the_groups_of_the_mask(
        dst in words(512), src in words(512), mask in any::<u64>(),
    ) {
        let n = dst.len().min(src.len());
        let chosen = |i: usize| mask >> (i / 8) & 1 != 0;
        let (mut or, mut left, mut new, mut all) = (dst.clone(), src.clone(), 0, 0);
        for i in (0..n).filter(|&i| chosen(i)) {
            new += u64::from((src[i] & !dst[i]).count_ones());
            all += u64::from(src[i].count_ones());
            or[i] |= src[i];
            left[i] = 0;
        }
        for k in levels() {
            let mut out = dst.clone();
            prop_assert_eq!(k.or_groups(&mut out, &src, mask), new, "{:?}", k.level());
            prop_assert_eq!(&out, &or);
            let (mut out, mut from) = (dst.clone(), src.clone());
            prop_assert_eq!(k.drain_groups(&mut out, &mut from, mask), (new, all));
            prop_assert_eq!(&out, &or);
            prop_assert_eq!(&from, &left);
            prop_assert_eq!(k.count_groups(&src[..n], mask), all);
        }
    }

    #[test]
    fn take_moves_everything(src in words(5000)) {
        let mut from = src.clone();
        let mut to = vec![0xabcd; src.len()];
        take(&mut to, &mut from);
        prop_assert_eq!(&to, &src);
        prop_assert!(is_zero(&from));
    }

    #[test]
    fn ranges_and_searches_agree_with_the_model(
        words in words(200), a in 0usize..13_000, len in 0usize..13_000, short in 0usize..130,
    ) {
        for len in [len, short] {
            let bits = bits_of(&words);
            let range = a.min(bits.len())..(a + len).min(bits.len());
            let inside = &bits[range.clone()];
            prop_assert_eq!(count_range(&words, a, len), ones(inside));
            let find = |want: bool| range.clone().find(|&i| bits[i] == want);
            prop_assert_eq!(next_set(&words, a, a + len), find(true));
            prop_assert_eq!(next_clear(&words, a, a + len), find(false));

            let mut set = words.clone();
            prop_assert_eq!(set_range(&mut set, a, len), inside.len() as u64 - ones(inside));
            let mut clear = words.clone();
            prop_assert_eq!(clear_range(&mut clear, a, len), ones(inside));
            let (set, clear) = (bits_of(&set), bits_of(&clear));
            for i in 0..bits.len() {
                prop_assert_eq!(set[i], bits[i] || range.contains(&i));
                prop_assert_eq!(clear[i], bits[i] && !range.contains(&i));
            }
        }
    }
}

#[test]
fn spans_of_which_half_the_lines_have_a_bit_are_merged_alike_at_every_width() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // A little more than six spans. After the first one the others are known to be mixed.
    let mut some = |share: u64| -> Vec<u64> {
        let mut words = vec![0; 6 * SPAN_WORDS + 13];
        for line in words.chunks_mut(GROUP_WORDS) {
            if random() % 100 < share {
                let at = random() as usize % line.len();
                line[at] |= 1 << (random() % 64) | 1 << 63;
            }
        }
        words
    };
    for share in [3, 40, 60, 97] {
        for shift in [0, 1, 17, 63, 64, 511] {
            let (src, dst) = (some(share), some(30));
            let merged = |kernels: &Kernels| {
                let mut dst = [&dst[..], &[0; 16]].concat();
                let mut touched = Vec::new();
                let nbits = src.len() * 64 - 5;
                let counts = kernels.or_at(&mut dst, shift, &src, nbits, |span, mask| {
                    touched.push((span, mask));
                });
                (counts, dst, touched)
            };
            let expected = merged(kernels(Level::Portable).unwrap());
            for level in Level::ALL {
                if let Some(kernels) = kernels(level) {
                    assert!(
                        merged(kernels) == expected,
                        "{level:?}, {share} %, shifted by {shift}"
                    );
                }
            }
        }
    }
}
