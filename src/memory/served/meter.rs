//! What faults have cost: how many there were, how long threads waited, and how pages arrived.
//!
//! A wait counts from the moment at which the fault thread has read of it, because the kernel does
//! not say when it began. Each thread waits for one page at a time. When a thread that waits
//! faults on another page, a signal took it away, and its first wait was over.

use crate::fallible;
use crate::runtime::probes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Threads that are told apart. The waits of all others count as those of thread 0.
const THREADS: usize = 1024;

/// Steps in which the time doubles.
const STEPS: usize = 8;
/// Times up to 2^44 ns, almost 5 hours.
const BUCKETS: usize = STEPS * 42;

/// How long threads waited for pages.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Waits that have ended.
    pub count: u64,
    /// Half of them were no longer, to an eighth.
    pub p50: Duration,
    /// 99 of 100 were no longer, to an eighth.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// The waits of one thread.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// Its number in the kernel; 0 for all that are not told apart.
    pub thread: u32,
    /// Its faults.
    pub faults: u64,
    /// How long it waited, a wait in progress included.
    pub time: Duration,
}

/// What serving memory has come to. Pages are 4 KiB.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Faulted {
    /// Faults. One that is told of twice counts twice.
    pub faults: u64,
    /// Threads that wait at this moment.
    pub waiting: u64,
    /// Pages that arrived while a thread waited for them.
    pub urgent: u64,
    /// Pages that arrived before anybody waited for them.
    pub bulk: u64,
    /// Of both: pages of zeros.
    pub zero: u64,
    /// Faults on pages that were not absent, and were answered here.
    pub local: u64,
    /// Pages that were given up. An access of one raises a signal.
    pub lost: u64,
    /// How long threads waited.
    pub latency: Latency,
    /// The threads that waited, by number.
    pub threads: Vec<Blocked>,
}

#[derive(Debug, Default)]
struct Thread {
    /// Block, host page, since when.
    waits: Option<(usize, u64, Instant)>,
    faults: u64,
    time: Duration,
}

/// Counts. Any thread.
#[derive(Debug)]
pub(super) struct Meter {
    faults: AtomicU64,
    pub(super) urgent: AtomicU64,
    pub(super) bulk: AtomicU64,
    pub(super) zero: AtomicU64,
    pub(super) lost: AtomicU64,
    local: AtomicU64,
    waits: Mutex<Waits>,
}

#[derive(Debug)]
struct Waits {
    threads: HashMap<u32, Thread>,
    buckets: [u64; BUCKETS],
    max: Duration,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter {
            faults: AtomicU64::new(0),
            urgent: AtomicU64::new(0),
            bulk: AtomicU64::new(0),
            zero: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            local: AtomicU64::new(0),
            waits: Mutex::new(Waits {
                threads: HashMap::new(),
                buckets: [0; BUCKETS],
                max: Duration::ZERO,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A thread waits for the host page that begins at `page`. Call it before the page is marked.
    pub(super) fn begins(&self, thread: u32, block: usize, page: u64, now: Instant) {
        self.faults.fetch_add(1, Relaxed);
        probes::fault_begin(thread, block, page);
        let mut waits = self.lock();
        let known = waits.threads.contains_key(&thread) || waits.threads.len() < THREADS;
        let number = if known { thread } else { 0 };
        if !waits.threads.contains_key(&number)
            && fallible::insert(
                &mut waits.threads,
                number,
                Thread::default(),
                "threads that wait",
            )
            .is_err()
        {
            return;
        }
        let Some(thread) = waits.threads.get_mut(&number) else {
            return;
        };
        thread.faults += 1;
        match thread.waits {
            // Told of twice.
            Some((b, p, _)) if (b, p) == (block, page) => {}
            Some((_, _, since)) => {
                thread.time += now.saturating_duration_since(since);
                thread.waits = Some((block, page, now));
            }
            None => thread.waits = Some((block, page, now)),
        }
    }

    /// Pages that threads waited for are here.
    pub(super) fn ends(&self, block: usize, pages: &Range<u64>, now: Instant) {
        let mut waits = self.lock();
        let Waits {
            threads,
            buckets,
            max,
        } = &mut *waits;
        for (number, thread) in threads {
            match thread.waits {
                Some((b, page, since)) if b == block && pages.contains(&page) => {
                    let waited = now.saturating_duration_since(since);
                    thread.waits = None;
                    thread.time += waited;
                    probes::fault_end(*number, b, page, waited);
                    buckets[bucket(waited)] += 1;
                    *max = waited.max(*max);
                }
                _ => {}
            }
        }
    }

    /// A fault on a page that was not absent.
    pub(super) fn answered_here(&self) {
        self.local.fetch_add(1, Relaxed);
    }

    pub(super) fn figures(&self) -> Faulted {
        let waits = self.lock();
        let now = Instant::now();
        let count: u64 = waits.buckets.iter().sum();
        let within = |share: u64| {
            let mut left = (count * share).div_ceil(100);
            let mut buckets = waits.buckets.iter().enumerate();
            let found = buckets.find(|(_, n)| {
                let here = left <= **n;
                left = left.saturating_sub(**n);
                here
            });
            found.map_or(Duration::ZERO, |(i, _)| end_of(i).min(waits.max))
        };
        let mut threads: Vec<Blocked> = waits
            .threads
            .iter()
            .map(|(number, thread)| Blocked {
                thread: *number,
                faults: thread.faults,
                time: thread.time
                    + thread.waits.map_or(Duration::ZERO, |(_, _, since)| {
                        now.saturating_duration_since(since)
                    }),
            })
            .collect();
        threads.sort_unstable_by_key(|thread| thread.thread);
        Faulted {
            faults: self.faults.load(Relaxed),
            waiting: waits.threads.values().filter(|t| t.waits.is_some()).count() as u64,
            urgent: self.urgent.load(Relaxed),
            bulk: self.bulk.load(Relaxed),
            zero: self.zero.load(Relaxed),
            local: self.local.load(Relaxed),
            lost: self.lost.load(Relaxed),
            latency: Latency {
                count,
                p50: within(50),
                p99: within(99),
                max: waits.max,
            },
            threads,
        }
    }
}

/// Buckets grow by an eighth of a power of two: bucket 0 holds times below 8 ns.
fn bucket(time: Duration) -> usize {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if nanos < STEPS as u64 {
        return 0;
    }
    let power = nanos.ilog2() as usize;
    let step = (nanos >> (power - 3)) as usize - STEPS;
    ((power - 3) * STEPS + step + 1).min(BUCKETS - 1)
}

/// The first time that no longer belongs to a bucket.
fn end_of(bucket: usize) -> Duration {
    if bucket == 0 {
        return Duration::from_nanos(STEPS as u64);
    }
    let (power, step) = ((bucket - 1) / STEPS, (bucket - 1) % STEPS);
    Duration::from_nanos(((STEPS + step + 1) as u64) << power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_a_bucket_that_ends_at_most_an_eighth_beyond_it() {
        for nanos in (8..5000).chain([123_456, 7_654_321, 1 << 33, (1 << 33) + 12345]) {
            let time = Duration::from_nanos(nanos);
            let end = end_of(bucket(time));
            assert!(
                end > time && end <= time + time / 8 + Duration::from_nanos(1),
                "{nanos}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn waits_are_counted_by_thread_and_percentile() {
        let (meter, start) = (Meter::new(), Instant::now());
        for i in 1..=100u64 {
            meter.begins(7, 0, i, start);
            meter.ends(0, &(i..i + 1), start + Duration::from_micros(i));
        }
        // Told of twice, and taken away by a signal.
        meter.begins(8, 0, 5, start);
        meter.begins(8, 0, 5, start + Duration::from_micros(5));
        meter.begins(8, 1, 6, start + Duration::from_micros(30));
        meter.ends(1, &(0..10), start + Duration::from_micros(40));
        let figures = meter.figures();
        assert_eq!((figures.faults, figures.waiting), (103, 0));
        let Latency {
            count,
            p50,
            p99,
            max,
        } = figures.latency;
        assert_eq!((count, max), (101, Duration::from_micros(100)));
        let about = |time: Duration, micros: u64| {
            let exact = Duration::from_micros(micros);
            time >= exact && time <= exact + exact / 8
        };
        assert!(about(p50, 50) && about(p99, 99), "{p50:?} {p99:?}");
        assert_eq!(figures.threads[0].time, Duration::from_micros(5050));
        let eight = figures.threads[1];
        assert_eq!(
            (eight.thread, eight.faults, eight.time),
            (8, 3, Duration::from_micros(40))
        );
    }

    #[test]
    fn more_threads_than_are_told_apart_count_as_thread_0() {
        let (meter, now) = (Meter::new(), Instant::now());
        for thread in 1..2 * THREADS as u32 {
            meter.begins(thread, 0, u64::from(thread), now);
        }
        let figures = meter.figures();
        assert!(figures.threads.len() <= THREADS + 1);
        assert_eq!(figures.threads[0].thread, 0);
        assert_eq!(figures.faults, 2 * THREADS as u64 - 1);
    }
}
