//! The cache holds what was sent last, whatever happens to a page, and pages that come back stay in
//! it. Simulated workloads compare it with caches of other kinds.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

fn key(page: u64) -> Key {
    Key::new(BlockId(1), Pages(page)).unwrap()
}

fn filled(value: u64) -> [u8; PAGE] {
    let mut page = [value as u8; PAGE];
    page[..8].copy_from_slice(&value.to_le_bytes());
    page
}

fn pages(count: u64) -> u64 {
    count * (PAGE as u64 + BESIDE)
}

/// What can happen to a page: it is sent as a copy, with or without the help of the cache, or in
/// another way.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Copy { in_vain: bool },
    Otherwise,
}

fn sent() -> impl Strategy<Value = (u64, Sent, bool)> {
    let way = prop_oneof![
        4 => Just(Sent::Copy { in_vain: false }),
        1 => Just(Sent::Copy { in_vain: true }),
        1 => Just(Sent::Otherwise),
    ];
    (0..40u64, way, prop::bool::weighted(0.05))
}

proptest! {
    #[test]
    fn what_is_kept_is_what_was_sent_last(
        room in 1..30u64,
        events in prop::collection::vec(sent(), 1..300),
    ) {
        let mut cache = SentPages::new(pages(room)).unwrap();
        let mut last = HashMap::new();
        let mut pass = 1;
        for (version, (page, way, next_pass)) in events.into_iter().enumerate() {
            pass += u32::from(next_pass);
            let now = filled(version as u64);
            match way {
                Sent::Otherwise => {
                    cache.forget(key(page));
                    last.remove(&page);
                    continue;
                }
                Sent::Copy { in_vain } => match cache.find(key(page), pass) {
                    Some(found) => {
                        prop_assert!(Some(found.page()) == last.get(&page), "page {}", page);
                        match in_vain {
                            true => found.renew_in_vain(&now),
                            false => found.renew(&now),
                        }
                    }
                    None => cache.keep(key(page), pass, &now),
                },
            }
            last.insert(page, now);
            prop_assert!(cache.held() as u64 <= room);
        }
        for page in 0..40 {
            if let Some(found) = cache.find(key(page), pass) {
                prop_assert!(Some(found.page()) == last.get(&page), "page {}", page);
            }
        }
    }
}

#[test]
fn a_cache_takes_no_more_memory_than_it_was_given() {
    for bytes in [0, 1, 4096, 16 << 10, 1 << 20, (1 << 20) + 5000, 64 << 20] {
        let mut cache = SentPages::new(bytes).unwrap();
        let most = bytes.max(pages(1)) + 256;
        assert!(cache.bytes() <= most, "{} of {bytes}", cache.bytes());
        let room = cache.bytes() / pages(1);
        for page in 0..2 * room {
            cache.keep(key(page), 1, &filled(page));
        }
        assert!(cache.bytes() <= most, "{} of {bytes}", cache.bytes());
        // Some sets get more pages than they have places, and others fewer.
        let held = cache.held() as u64;
        assert!(held <= room && held >= room * 8 / 10, "{held} of {room}");
    }
}

#[test]
fn a_cache_that_cannot_be_had_is_an_error_and_one_that_is_not_used_takes_no_memory() {
    let error = SentPages::new(1 << 61).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::NoMemory);
    assert!(
        error.message().contains("the cache of sent pages"),
        "{error}"
    );
    // When all of it was touched, it would be most of a small machine's memory.
    let before = resident();
    let cache = SentPages::new(8 << 30).unwrap();
    assert!(resident() < before + (256 << 20));
    drop(cache);
}

/// Bytes of this process that are resident.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn every_page_of_every_block_has_a_name_of_its_own() {
    let mut names = HashSet::new();
    for block in [0, 1, 2, (1 << 24) - 2] {
        for page in [0, 1, 511, 1 << 20, (1 << 40) - 1] {
            let key = Key::new(BlockId(block), Pages(page)).unwrap();
            assert_ne!(key.0, 0);
            assert!(names.insert(key.0), "block {block}, page {page}");
        }
    }
    assert_eq!(Key::new(BlockId((1 << 24) - 1), Pages(0)), None);
    assert_eq!(Key::new(BlockId(u32::MAX), Pages(0)), None);
}

#[test]
fn a_64th_of_pages_and_room_is_the_sample() {
    let cache = SentPages::new(pages(64 * 1024)).unwrap();
    let count = (0..100_000).filter(|p| cache.is_sample(key(*p))).count();
    let expected = 100_000 / SAMPLE;
    assert!(count.abs_diff(expected) < expected / 4, "{count}");
}

// --- simulations ------------------------------------------------------------------------------

/// A cache without contents. It says of a page that comes by in a pass whether the page was there.
trait Policy {
    fn comes(&mut self, page: u64, pass: u32) -> bool;
}

impl Policy for SentPages {
    fn comes(&mut self, page: u64, pass: u32) -> bool {
        if self.find(key(page), pass).is_some() {
            return true;
        }
        self.keep(key(page), pass, &[0; PAGE]);
        false
    }
}

/// One place for each page, by the page's number. A newcomer gets the place when the page there did
/// not come by for `patience` passes.
struct DirectMapped {
    places: Vec<Option<(u64, u32)>>,
    patience: u32,
}

impl Policy for DirectMapped {
    fn comes(&mut self, page: u64, pass: u32) -> bool {
        let at = page as usize % self.places.len();
        let place = &mut self.places[at];
        match place {
            Some((there, last)) if *there == page => {
                *last = pass;
                true
            }
            Some((_, last)) if *last + self.patience > pass => false,
            _ => {
                *place = Some((page, pass));
                false
            }
        }
    }
}

/// Evicts the page that was used longest ago, in sets as large as brant's.
struct LeastRecent {
    sets: Vec<Vec<u64>>,
}

impl Policy for LeastRecent {
    fn comes(&mut self, page: u64, _: u32) -> bool {
        let sets = self.sets.len() as u128;
        let set = &mut self.sets[((u128::from(key(page).hash()) * sets) >> 64) as usize];
        let there = set.iter().position(|p| *p == page);
        match there {
            Some(at) => drop(set.remove(at)),
            None if set.len() == WAYS => drop(set.remove(0)),
            None => {}
        }
        set.push(page);
        there.is_some()
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

const ROOM: u64 = 1024;
const GUEST: u64 = 1 << 16;
const PASSES: u32 = 12;

/// The pages of each pass, in order.
struct Workload {
    name: &'static str,
    /// How many pages are written in each pass, and how many in one pass alone.
    hot: u64,
    cold: u64,
    /// After this many passes the hot pages change.
    shift: u32,
    /// The hot pages are neighbours.
    together: bool,
}

impl Workload {
    fn passes(&self) -> Vec<Vec<u64>> {
        let mut random = Random(0x1234_5678_9abc_def1);
        let mut hot = Vec::new();
        let mut passes = Vec::new();
        for pass in 0..PASSES {
            if pass % self.shift == 0 {
                let begin = random.below(GUEST - self.hot);
                hot = (0..self.hot)
                    .map(|i| match self.together {
                        true => begin + i,
                        false => random.below(GUEST),
                    })
                    .collect();
            }
            let mut pages = hot.clone();
            pages.extend((0..self.cold).map(|_| random.below(GUEST)));
            pages.sort_unstable();
            pages.dedup();
            passes.push(pages);
        }
        passes
    }
}

/// The share of pages that were in the cache when they came by.
fn hits(passes: &[Vec<u64>], policy: &mut dyn Policy) -> f64 {
    let (mut hits, mut all) = (0, 0);
    for (pass, pages) in (1..).zip(passes) {
        for page in pages {
            hits += u32::from(policy.comes(*page, pass));
            all += 1;
        }
    }
    f64::from(hits) / f64::from(all)
}

/// Guests with a hot set that fits and one that does not, scattered and in one piece, with and
/// without pages that are written once, steady and shifting.
#[test]
fn the_pages_that_come_back_stay_at_least_as_well_as_in_other_caches() {
    let steady = u32::MAX;
    #[rustfmt::skip]
    let workloads = [
        Workload { name: "fits", hot: ROOM / 2, cold: 0, shift: steady, together: false },
        Workload { name: "fits, in one piece", hot: ROOM * 9 / 10, cold: ROOM, shift: steady, together: true },
        Workload { name: "fits, in a flood", hot: ROOM / 2, cold: 4 * ROOM, shift: steady, together: false },
        Workload { name: "too large", hot: 2 * ROOM, cold: 0, shift: steady, together: false },
        Workload { name: "too large, in a flood", hot: 2 * ROOM, cold: 2 * ROOM, shift: steady, together: false },
        Workload { name: "shifts", hot: ROOM / 2, cold: ROOM / 2, shift: 6, together: false },
    ];
    for workload in workloads {
        let passes = workload.passes();
        let places = || vec![None; ROOM as usize];
        let mut cache = SentPages::new(pages(ROOM)).unwrap();
        let ours = hits(&passes, &mut cache);
        let mut direct = DirectMapped {
            places: places(),
            patience: 0,
        };
        let mut patient = DirectMapped {
            places: places(),
            patience: 2,
        };
        let mut recent = LeastRecent {
            sets: vec![Vec::new(); ROOM as usize / WAYS],
        };
        let others: [(&str, &mut dyn Policy); 3] = [
            ("direct-mapped", &mut direct),
            ("direct-mapped, patient", &mut patient),
            ("least recently used", &mut recent),
        ];
        for (name, policy) in others {
            let theirs = hits(&passes, policy);
            println!("{}: ours {ours:.3}, {name} {theirs:.3}", workload.name);
            assert!(ours >= theirs - 0.02, "{}: {name}", workload.name);
        }
    }
}
