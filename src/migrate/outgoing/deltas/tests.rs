//! An encoding is a change of what was sent last, and the work stops when it is wasted.

use super::*;
use std::collections::HashMap;

const BLOCK: BlockId = BlockId(3);

struct Source {
    deltas: Deltas,
    /// The pages that the destination has.
    there: HashMap<u64, [u8; PAGE]>,
}

impl Source {
    fn new(bytes: u64) -> Source {
        Source {
            deltas: Deltas::new(bytes).unwrap(),
            there: HashMap::new(),
        }
    }

    /// Sends a page. Returns how it went; `None` when it went without a copy.
    fn send(&mut self, page: u64, now: &[u8; PAGE]) -> Option<Resent> {
        let sent = self.deltas.wants(BLOCK, Pages(page)).map(|key| {
            let mut encoding = Vec::new();
            let sent = self.deltas.encode(key, now, &mut encoding).unwrap();
            if let Resent::Changed { base } = sent {
                let mut decoded = self.there[&page];
                assert_eq!(crc32fast::hash(&decoded), base, "page {page}");
                delta::decode(&encoding, &mut decoded).unwrap();
                assert!(decoded == *now, "page {page}");
            } else {
                assert!(encoding.is_empty());
            }
            sent
        });
        self.there.insert(page, *now);
        sent
    }
}

/// Page `page` in pass `pass`: a byte changes with each pass.
fn sparse(page: u64, pass: u32) -> [u8; PAGE] {
    let mut bytes = [page as u8 | 1; PAGE];
    bytes[pass as usize % PAGE] = !bytes[0];
    bytes
}

/// Page `page` in pass `pass`: all of it changes with each pass.
fn whole(page: u64, pass: u32) -> [u8; PAGE] {
    [(page as u32 * 7 + pass * 31 + 1) as u8; PAGE]
}

#[test]
fn a_page_that_comes_back_with_a_small_change_goes_as_that_from_the_second_time_on() {
    let mut source = Source::new(1 << 20);
    for pass in 1..6 {
        source.deltas.in_pass(pass);
        for page in 0..50 {
            let sent = source.send(page, &sparse(page, pass)).unwrap();
            let changed = matches!(sent, Resent::Changed { .. });
            assert_eq!(changed, pass > 1, "{sent:?}");
        }
    }
}

#[test]
fn a_page_that_is_the_same_goes_as_nothing_and_one_that_is_another_goes_whole() {
    let mut source = Source::new(1 << 20);
    source.deltas.in_pass(1);
    source.send(9, &sparse(9, 1));
    let key = source.deltas.wants(BLOCK, Pages(9)).unwrap();
    let mut encoding = Vec::new();
    let sent = source.deltas.encode(key, &sparse(9, 1), &mut encoding);
    assert!(matches!(sent, Ok(Resent::Changed { .. })) && encoding.is_empty());
    assert_eq!(source.send(9, &whole(9, 2)), Some(Resent::Overflowed));
    // The page that went whole is the base of the next delta.
    let mut next = whole(9, 2);
    next[77] ^= 1;
    assert!(matches!(
        source.send(9, &next),
        Some(Resent::Changed { .. })
    ));
}

#[test]
fn a_page_that_went_in_another_way_is_not_encoded_against_what_went_before() {
    let mut source = Source::new(1 << 20);
    source.deltas.in_pass(1);
    source.send(9, &sparse(9, 1));
    let key = Key::new(BLOCK, Pages(9)).unwrap();
    source.deltas.sent.forget(key);
    assert!(source.deltas.is_empty());
    assert_eq!(source.send(9, &sparse(9, 2)), Some(Resent::Missed));
}

#[test]
fn deltas_are_off_where_they_save_nothing_and_on_again_where_they_do() {
    // Enough pages that the sample is judged.
    const PAGES: u64 = 4096;
    let mut source = Source::new(64 << 20);
    let mut copied = |pass: u32, of: fn(u64, u32) -> [u8; PAGE]| {
        source.deltas.in_pass(pass);
        let sent = (0..PAGES).filter(|page| source.send(*page, &of(*page, pass)).is_some());
        sent.count() as u64
    };
    for pass in 1..4 {
        assert_eq!(copied(pass, whole), PAGES);
    }
    for pass in 4..8 {
        let count = copied(pass, whole);
        assert!(count > 0 && count < PAGES / 32, "{count} in pass {pass}");
    }
    // The first of these passes turns pages that change as a whole into sparse ones.
    for pass in 8..11 {
        assert!(copied(pass, sparse) < PAGES / 32, "pass {pass}");
    }
    assert_eq!(copied(11, sparse), PAGES);
}
