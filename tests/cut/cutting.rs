//! The link is cut at each boundary between two records and at bytes in between, and is silenced.

use super::cases::{all, early, tail, undisturbed, Case, NEVER_SENT};
use super::middle::Cut;
use crate::support::random::Random;
use brant::wire::RecordType;

#[test]
fn a_link_cut_at_any_boundary_between_records_loses_no_page_and_no_guest() {
    let log = undisturbed();
    assert!((60..400).contains(&log.records[0]), "{:?}", log.records);
    let mut cases = Vec::new();
    let mut add = |cut| cases.push(Case::new(cases.len(), cut));
    for way in 0..2 {
        for n in 0..=log.records[way] {
            add(Cut::After(early(way, n)));
            add(Cut::Before(early(way, n)));
        }
        // Near the hand-over, often enough for both resolutions.
        for n in 0..=log.tail(way).0 {
            for cut in [Cut::After(tail(way, n)), Cut::Before(tail(way, n))] {
                add(cut);
                add(cut);
            }
        }
    }
    // The number of the other records differs a little each time, so counting alone may miss a type
    // that comes once.
    for kind in RecordType::ALL {
        if !NEVER_SENT.contains(&kind.name()) {
            add(Cut::AfterFirst(*kind));
        }
    }
    let sum = all(cases, 4);
    for kind in RecordType::ALL {
        assert!(
            NEVER_SENT.contains(&kind.name()) || sum.cut_after.contains(kind.name()),
            "never cut after {}",
            kind.name()
        );
    }
    assert!(sum.proved.pending > 100_000 && sum.proved.there > 10_000);
    assert!(sum.resolved.iter().all(|n| *n > 0), "{:?}", sum.resolved);
}

#[test]
fn a_link_cut_at_any_byte_loses_no_page_and_no_guest() {
    let log = undisturbed();
    let seed = std::env::var("BRANT_SEED").ok();
    let seed = seed.map_or(0x5eed_c075, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    let mut random = Random(seed);
    let mut cases = Vec::new();
    for n in 0..200 {
        // Most of the bytes are pages. So a third of the cuts are near the hand-over, and a fifth
        // in the destination's few records.
        let mut below = |n: u64| random.next() % n;
        let place = match n % 15 {
            0..=1 => early(1, below(log.bytes[1])),
            2 => tail(1, below(log.tail(1).1)),
            3..=7 => tail(0, below(log.tail(0).1)),
            _ => early(0, below(log.bytes[0])),
        };
        cases.push(Case::new(n, Cut::Byte(place)));
    }
    // Inside HANDOVER, the last 48 bytes of the source: both resolutions at each place.
    for back in [1, 8, 16, 17, 32, 48] {
        for _ in 0..2 {
            let place = tail(0, log.tail(0).1 - back);
            cases.push(Case::new(cases.len(), Cut::Byte(place)));
        }
    }
    let sum = all(cases, 4);
    assert!(sum.proved.pending > 100_000 && sum.proved.there > 10_000);
    assert!(sum.resolved.iter().all(|n| *n >= 6), "{:?}", sum.resolved);
}

#[test]
fn a_link_that_falls_silent_anywhere_ends_within_the_limits_and_loses_no_page() {
    let log = undisturbed();
    let mut random = Random(0x51_1e_47);
    let mut cases = Vec::new();
    let mut add = |place| cases.push(Case::new(cases.len(), Cut::Silent(place)));
    for way in 0..2 {
        (0..log.records[way].min(16)).for_each(|n| add(early(way, n)));
        (0..=log.tail(way).0).for_each(|n| add(tail(way, n)));
    }
    for _ in 0..16 {
        add(early(0, random.next() % log.records[0]));
    }
    all(cases, 8);
}
