//! Many threads fault while others place pages, in every order that comes up.

use super::{Guest, KINDS};
use crate::memory::served::How;
use crate::memory::testing::kinds::{Area, PAGE};
use crate::units::Pages;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: usize = 1500;
const LONG: Duration = Duration::from_secs(30);

/// A generator of numbers, from a seed that is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// What page `page` holds at the source: 0 for some.
fn contents(page: usize) -> u8 {
    if page % 7 < 2 {
        0
    } else {
        (page % 250) as u8 + 1
    }
}

#[test]
fn in_a_storm_of_faults_and_arrivals_every_thread_finds_its_pages_and_its_own_writes() {
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let seed = seed.as_nanos() as u64;
    println!("seed {seed}");
    for (round, made) in KINDS.into_iter().cycle().take(8).enumerate() {
        let mut random = Random(seed + round as u64);
        // Old contents everywhere; about half of the pages are absent.
        let mut absent = Vec::new();
        let mut at = 0;
        while at < PAGES {
            let end = (at + 1 + random.below(40)).min(PAGES);
            if random.below(2) == 0 {
                absent.push(at..end);
            }
            at = end;
        }
        let is_absent = |page: usize| absent.iter().any(|run| run.contains(&page));
        let old = |area: &Area| {
            for page in 0..PAGES {
                let value = if is_absent(page) {
                    0xff
                } else {
                    contents(page)
                };
                area.write(page, value);
            }
        };
        let how = How { punch: round >= 4 };
        let guest = Guest::new(made, PAGES, &absent, how, old).unwrap();
        // Guests' threads: each reads all pages in an order of its own, and writes to those of its
        // own after it has read them.
        let threads: Vec<_> = (0..4usize)
            .map(|own| {
                let (area, mut random) = (Arc::clone(&guest.area), Random(seed ^ own as u64));
                std::thread::spawn(move || {
                    let mut order: Vec<usize> = (0..PAGES).collect();
                    for i in (1..PAGES).rev() {
                        order.swap(i, random.below(i + 1));
                    }
                    for page in order {
                        let (value, at) = (contents(page), area.page(page));
                        assert_eq!(area.read(page), value, "page {page}");
                        let mine = at.wrapping_add(1 + own);
                        // SAFETY: inside of the page, a byte that only this thread writes.
                        unsafe { mine.write_volatile(0x55) };
                    }
                    for page in 0..PAGES {
                        // SAFETY: as above.
                        let found = unsafe { area.page(page).add(1 + own).read_volatile() };
                        assert_eq!(found, 0x55, "page {page}: a write is lost");
                    }
                })
            })
            .collect();
        // Lanes: two that bring everything once each, so every page twice, and one that answers.
        let (served, block) = (guest.served(), &guest.block);
        let bring = |pages: std::ops::Range<usize>| {
            let mut at = pages.start;
            while at < pages.end {
                let zero = contents(at) == 0;
                let mut end = at + 1;
                while end < pages.end && (contents(end) == 0) == zero {
                    end += 1;
                }
                if zero {
                    let run = Pages(at as u64)..Pages(end as u64);
                    served.place_zeros(block, run).unwrap();
                } else {
                    let mut bytes = vec![0; (end - at) * PAGE];
                    for page in at..end {
                        bytes[(page - at) * PAGE] = contents(page);
                    }
                    let first = Pages(at as u64);
                    served.place(block, first, &bytes).unwrap();
                }
                at = end;
            }
        };
        std::thread::scope(|scope| {
            for lane in 0..2usize {
                let (bring, mut random) = (&bring, Random(seed + 77 + lane as u64));
                scope.spawn(move || {
                    let mut at = 0;
                    while at < PAGES {
                        let end = (at + 1 + random.below(64)).min(PAGES);
                        let run = if lane == 0 {
                            at..end
                        } else {
                            PAGES - end..PAGES - at
                        };
                        bring(run);
                        at = end;
                        std::thread::yield_now();
                    }
                });
            }
            // The receiver is not to be shared, so this thread answers.
            while served.left().0 > 0 {
                while let Ok(wanted) = guest.wanted.try_recv() {
                    bring(wanted.start as usize..wanted.end as usize);
                }
                std::thread::yield_now();
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        // The wait of a thread ends in the figures after the thread was woken.
        let begun = Instant::now();
        while guest.served().figures().waiting > 0 {
            assert!(begun.elapsed() < LONG, "a wait never ends in the figures");
            std::thread::yield_now();
        }
        let figures = guest.served().figures();
        let total: usize = absent.iter().map(|run| run.len()).sum();
        assert_eq!(
            figures.urgent + figures.bulk,
            total as u64,
            "{made:?}: each page once"
        );
        guest.served().finish().unwrap();
    }
}
