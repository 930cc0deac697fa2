//! A storm of faults: 400 MiB are at the source when the guest is handed over, and many threads want all of
//! it at once, at random, in order, and a few pages all together.

use super::whole::{allowed, CopiesOn, Sides};
use crate::support::guest::Guest;
use crate::support::memory::{ram, Ram, PAGE};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::time::LONG;
use crate::support::vmm::{Side, TestVmm};
use brant::migrate::{Params, SourceState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Barrier;

const PAGES: usize = 100_000;
/// Threads that share all pages among them, in random order. Each page has one such owner, which writes.
const OWNERS: usize = 8;
/// Threads that want the same pages at the same moment.
const TOGETHER: usize = 4;
/// Pages that they want, one after another.
const HOT: usize = 60;

/// The first word of a page; the last one is its complement.
fn mark(page: usize) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes every page of the source, so that none is a hole or zeros.
fn fill(ram: &Ram) {
    let mut contents: Vec<u64> = (0..PAGE as u64 / 8)
        .map(|n| n.wrapping_mul(0xd134_2543_de82_ef95))
        .collect();
    for page in 0..PAGES {
        contents[0] = mark(page);
        contents[PAGE / 8 - 1] = !mark(page);
        let to = ram.word(page * PAGE).as_ptr();
        // SAFETY: one page of the block, which no other thread uses yet.
        unsafe { std::ptr::copy_nonoverlapping(contents.as_ptr(), to, PAGE / 8) };
    }
}

fn assert_here(ram: &Ram, page: usize) {
    let found = [0, PAGE - 8].map(|at| ram.word(page * PAGE + at).load(Ordering::Relaxed));
    assert_eq!(found, [mark(page), !mark(page)], "page {page}");
}

#[test]
fn in_a_storm_of_faults_on_a_hundred_thousand_pages_every_thread_finds_its_pages() {
    let specs = [ram("ram", PAGES)];
    let mut pair = Pair::of(Guest::new(&specs), Guest::new(&specs));
    pair.to = TestVmm::new(&pair.destination, None, &pair.world, Side::Destination);
    fill(&pair.source.ram("ram"));
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = clock.unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let params = Params {
        // The bulk leaves most of the pages to those who ask for them.
        switchover_max_bandwidth: Some(48 << 20),
        max_bandwidth: Some(48 << 20),
        ..allowed(2)
    };
    let sides = Sides::start_with(pair, &params, Some(Box::new(CopiesOn)));
    sides.wait_until(|sides| sides.out.state() == SourceState::Copying);
    sides.out.start_postcopy().unwrap();
    assert!(sides.wait_until(|sides| sides.out.state() == SourceState::Serving));
    let missing = sides.inc.stats().missing_pages;
    let here = sides.pair.destination.ram("ram");
    let mut order: Vec<usize> = (0..PAGES).collect();
    let mut random = Random(seed);
    for n in (1..PAGES).rev() {
        order.swap(n, random.below(n + 1));
    }
    let (together, done) = (Barrier::new(TOGETHER), AtomicUsize::new(0));
    let longest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for own in order.chunks(PAGES.div_ceil(OWNERS)) {
            let (here, done, longest) = (&here, &done, &longest);
            scope.spawn(move || {
                for page in own {
                    let begun = std::time::Instant::now();
                    assert_here(here, *page);
                    longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                    // A page that came later would undo it.
                    here.word(page * PAGE + 8).fetch_add(1, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for way in 0..2 {
            let here = &here;
            scope.spawn(move || {
                for n in 0..PAGES {
                    assert_here(here, if way == 0 { n } else { PAGES - 1 - n });
                }
            });
        }
        for _ in 0..TOGETHER {
            let (here, together, mut random) = (&here, &together, Random(seed ^ 0x407));
            scope.spawn(move || {
                for _ in 0..HOT {
                    let page = random.below(PAGES);
                    together.wait();
                    assert_here(here, page);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), PAGES);
    sides.out.set_max_bandwidth(None).unwrap();
    sides.out.wait(Some(LONG)).unwrap();
    let stats = sides.inc.stats();
    println!(
        "{} faults, {} urgent, {} bulk of {missing}; p50 {:?}, p99 {:?}, longest {} us",
        stats.faults,
        stats.urgent_pages,
        stats.bulk_pages,
        stats.fault_p50,
        stats.fault_p99,
        longest.load(Ordering::Relaxed)
    );
    assert!(stats.faults > PAGES as u64 / 20, "{stats:?}");
    assert_eq!(
        stats.urgent_pages + stats.bulk_pages,
        sides.out.stats().urgent_pages + sides.out.stats().bulk_pages
    );
    assert_eq!((stats.fault_waiting, stats.lost_pages), (0, 0), "{stats:?}");
    // The owners' words are as they were, and one more.
    for page in 0..PAGES {
        here.word(page * PAGE + 8).fetch_sub(1, Ordering::Relaxed);
    }
    sides.assert_whole("storm");
}
