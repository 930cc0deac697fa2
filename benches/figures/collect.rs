//! The cost of collecting the marks of an 8 TiB guest. The contenders are brant's two buffers
//! swapped by epoch, a plain memcpy of the same size, the exchange of each word with zero, and a
//! lock that setters take for reading and the collector for writing.
//!
//! While a contender collects, a thread goes on setting bits in that contender's way. After each
//! run the collected bits are compared with all bits that were ever set, word for word: no
//! contender may lose a mark or invent one.

use crate::report::{alternate, Report, Runs};
use brant::bits::{words, Bitmap, ConcurrentBitmap};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::RwLock;
use std::time::{Duration, Instant};

/// 8 TiB of 4 KiB pages: 256 MiB of bitmap.
const PAGES: usize = 1 << 31;
const WORDS: usize = PAGES / 64;
const RUNS: usize = 5;
/// 640 MiB, more than the last-level cache.
const OTHER_WORDS: usize = 640 << 17;
/// Marked pages in a cluster: 16 MiB of guest memory.
const CLUSTER: usize = 4096;
const LONG: Duration = Duration::from_secs(10);
/// The setter's marks begin here and wander over the whole guest (an odd step: each page once).
const STEP: u64 = 0x9e37_79b1;

struct Case {
    name: &'static str,
    density: f64,
    clustered: bool,
    /// The density of pending before the collection, scattered or clustered.
    onto: f64,
    onto_clustered: bool,
}

const CASES: [Case; 11] = [
    Case {
        name: "0%",
        density: 0.0,
        clustered: false,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "0.1%-random",
        density: 0.001,
        clustered: false,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "0.1%-clustered",
        density: 0.001,
        clustered: true,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "1%-random",
        density: 0.01,
        clustered: false,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "1%-clustered",
        density: 0.01,
        clustered: true,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "10%-random",
        density: 0.1,
        clustered: false,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "10%-clustered",
        density: 0.1,
        clustered: true,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "100%",
        density: 1.0,
        clustered: false,
        onto: 0.0,
        onto_clustered: false,
    },
    Case {
        name: "10%-random-onto-10%-clustered",
        density: 0.1,
        clustered: false,
        onto: 0.1,
        onto_clustered: true,
    },
    Case {
        name: "1%-random-onto-1%-random",
        density: 0.01,
        clustered: false,
        onto: 0.01,
        onto_clustered: false,
    },
    Case {
        name: "100%-onto-1%-random",
        density: 1.0,
        clustered: false,
        onto: 0.01,
        onto_clustered: false,
    },
];

impl Case {
    /// Calls `f` with the marked runs of pages, in order, the same ones each time.
    fn marked(&self, f: impl FnMut(usize, usize)) {
        let len = if self.clustered { CLUSTER } else { 1 };
        scatter(self.density, len, 0x1234_5678_9abc_def1, f);
    }

    /// Calls `f` with the runs of pages that are pending before.
    fn before(&self, f: impl FnMut(usize, usize)) {
        let len = if self.onto_clustered { CLUSTER } else { 1 };
        scatter(self.onto, len, 0xfedc_ba98_7654_3211, f);
    }
}

/// Calls `f` with runs of `len` pages that make up `density` of all pages.
fn scatter(density: f64, len: usize, mut state: u64, mut f: impl FnMut(usize, usize)) {
    if density == 0.0 {
        return;
    }
    if density == 1.0 {
        return f(0, PAGES);
    }
    let mean = len as f64 * (1.0 / density - 1.0);
    let mut at = 0usize;
    loop {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Gaps from 0 to twice the mean, which is cheap and even enough.
        let gap = (state >> 32) as f64 / (1u64 << 32) as f64 * 2.0 * (mean + 0.5);
        at += gap as usize;
        if at + len > PAGES {
            return;
        }
        f(at, len);
        at += len;
    }
}

/// The way in which the setter sets a bit.
#[derive(Clone, Copy, PartialEq)]
enum Scheme {
    Brant,
    Memcpy,
    Xchg,
    RwLock,
}

const SCHEMES: [Scheme; 4] = [Scheme::Brant, Scheme::Memcpy, Scheme::Xchg, Scheme::RwLock];

struct Arena {
    shared: ConcurrentBitmap,
    pending: Bitmap,
    /// The bits that the case marks.
    template: Vec<u64>,
    /// The bits that are pending before.
    before: Vec<u64>,
    /// For the other contenders: the marks, and the collected bits.
    words: Vec<AtomicU64>,
    into: Vec<u64>,
    lock: RwLock<()>,
    /// Read before each run, so that no contender finds its memory in a cache because of the
    /// preparation.
    other: Vec<u64>,
    /// The setter's next mark.
    next: u64,
}

fn zeroed(len: usize) -> Vec<u64> {
    vec![0; len]
}

/// The setter's `k`th page.
fn wander(k: u64) -> usize {
    (k.wrapping_mul(STEP) % PAGES as u64) as usize
}

const WAIT: u8 = 0;
const GO: u8 = 1;
const SETTING: u8 = 2;
const STOP: u8 = 3;

/// Sets bits between a start and a stop. Returns the number of the next bit, and the longest time
/// that one took.
fn setter(state: &AtomicU8, mut k: u64, set: impl Fn(usize)) -> (u64, Duration) {
    while state.load(Ordering::Acquire) != GO {
        std::hint::spin_loop();
    }
    let mut longest = Duration::ZERO;
    loop {
        let begun = Instant::now();
        set(wander(k));
        longest = longest.max(begun.elapsed());
        k += 1;
        // Only the first time, because a stop must not be undone.
        let _ = state.compare_exchange(GO, SETTING, Ordering::AcqRel, Ordering::Relaxed);
        if state.load(Ordering::Acquire) == STOP {
            return (k, longest);
        }
        for _ in 0..16 {
            std::hint::spin_loop();
        }
    }
}

/// Word by word, as elsewhere: words that are not zero are exchanged with zero.
fn xchg(words: &[AtomicU64], into: &mut [u64]) -> u64 {
    let mut new = 0;
    for (word, into) in words.iter().zip(into) {
        if word.load(Ordering::Relaxed) != 0 {
            let bits = word.swap(0, Ordering::SeqCst);
            new += u64::from((bits & !*into).count_ones());
            *into |= bits;
        }
    }
    new
}

impl Arena {
    fn new() -> Arena {
        let mut words = Vec::new();
        words.resize_with(WORDS, || AtomicU64::new(0));
        let mut pending = Bitmap::new(PAGES).unwrap();
        let shared = ConcurrentBitmap::new(PAGES).unwrap();
        // Touches everything: both buffers, pending, and the arrays of the other contenders.
        for _ in 0..2 {
            shared.mark(0, PAGES);
            shared.collect(LONG, &mut pending).unwrap();
        }
        pending.clear_all();
        let mut into = zeroed(WORDS);
        into.fill(u64::MAX);
        into.fill(0);
        Arena {
            shared,
            pending,
            template: zeroed(WORDS),
            before: zeroed(WORDS),
            words,
            into,
            lock: RwLock::new(()),
            other: vec![1; OTHER_WORDS],
            next: 0,
        }
    }

    fn prepare(&mut self, case: &Case) {
        self.template.fill(0);
        let template = &mut self.template;
        case.marked(|start, n| {
            words::set_range(template, start, n);
        });
        self.before.fill(0);
        let before = &mut self.before;
        case.before(|start, n| {
            words::set_range(before, start, n);
        });
    }

    /// Makes one collection. Returns its time in milliseconds, and the longest time of a setter.
    fn run(&mut self, scheme: Scheme, case: &Case) -> (f64, Duration) {
        match scheme {
            Scheme::Brant => {
                case.marked(|start, n| self.shared.mark(start, n));
                self.pending.merge_words(0, &self.before, PAGES);
            }
            _ => {
                self.into.copy_from_slice(&self.before);
                for (word, bits) in self.words.iter_mut().zip(&self.template) {
                    *word.get_mut() = *bits;
                }
            }
        }
        std::hint::black_box(words::count(&self.other));
        let first = self.next;
        let state = AtomicU8::new(WAIT);
        let Arena {
            shared,
            pending,
            words,
            into,
            lock,
            template,
            ..
        } = self;
        let (words, shared, lock) = (&words[..], &*shared, &*lock);
        let mut time = Duration::ZERO;
        let (next, longest) = std::thread::scope(|scope| {
            let state = &state;
            let thread = scope.spawn(move || match scheme {
                Scheme::Brant => setter(state, first, |page| shared.mark(page, 1)),
                Scheme::Memcpy | Scheme::Xchg => setter(state, first, |page| {
                    words[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst);
                }),
                Scheme::RwLock => setter(state, first, |page| {
                    let _read = lock.read().unwrap();
                    words[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
                }),
            });
            state.store(GO, Ordering::Release);
            while state.load(Ordering::Acquire) != SETTING {
                std::hint::spin_loop();
            }
            let begun = Instant::now();
            match scheme {
                Scheme::Brant => {
                    shared.collect(LONG, pending).unwrap();
                }
                // The same size, from memory that no thread changes meanwhile.
                Scheme::Memcpy => into.copy_from_slice(template),
                Scheme::Xchg => {
                    std::hint::black_box(xchg(words, into));
                }
                Scheme::RwLock => {
                    let _write = lock.write().unwrap();
                    // SAFETY: setters take the lock, which is held for writing here, so no other
                    // thread accesses these words.
                    let plain = unsafe {
                        std::slice::from_raw_parts_mut(
                            words.as_ptr().cast_mut().cast::<u64>(),
                            WORDS,
                        )
                    };
                    for (into, from) in into.chunks_mut(2048).zip(plain.chunks_mut(2048)) {
                        std::hint::black_box(words::or_count(into, from));
                        from.fill(0);
                    }
                }
            }
            time = begun.elapsed();
            state.store(STOP, Ordering::Release);
            thread.join().unwrap()
        });
        self.next = next;
        self.check(scheme, first..next);
        (time.as_secs_f64() * 1e3, longest)
    }

    /// Collects late marks, and compares with the set bits. Leaves everything empty.
    fn check(&mut self, scheme: Scheme, setters: std::ops::Range<u64>) {
        match scheme {
            Scheme::Memcpy => {}
            Scheme::Brant => {
                self.shared.collect(LONG, &mut self.pending).unwrap();
            }
            Scheme::Xchg | Scheme::RwLock => {
                xchg(&self.words, &mut self.into);
            }
        }
        if scheme != Scheme::Memcpy {
            let before: Vec<(usize, u64)> = setters
                .map(|k| {
                    let page = wander(k);
                    let old = self.template[page / 64];
                    self.template[page / 64] |= 1 << (page % 64);
                    (page / 64, old)
                })
                .collect();
            let got = match scheme {
                Scheme::Brant => self.pending.words(),
                _ => &self.into[..],
            };
            let expected = self.template.iter().zip(&self.before);
            let wrong = got
                .iter()
                .zip(expected)
                .filter(|(g, (t, b))| **g != (*t | *b));
            assert_eq!(wrong.count(), 0, "marks were lost or invented");
            if scheme == Scheme::Brant {
                assert_eq!(
                    self.pending.count(),
                    words::count(got),
                    "the count is right"
                );
            }
            for (word, old) in before.into_iter().rev() {
                self.template[word] = old;
            }
        }
        match scheme {
            Scheme::Brant => {
                self.pending.clear_all();
            }
            _ => self.into.fill(0),
        }
    }
}

/// All figures of collecting.
pub fn measure(report: &mut Report) {
    if !report.wants_any("collect.") {
        return;
    }
    let mut arena = Arena::new();
    for case in &CASES {
        let name = |figure: &str| format!("collect.{figure}/{}", case.name);
        // If both bitmaps are dense, collecting reads and writes two of them, while a memcpy reads
        // one and writes one. So that is a figure of its own.
        let over_memcpy = if case.onto == 0.0 {
            "memcpy_ratio"
        } else {
            "onto_ratio"
        };
        let figures = [over_memcpy, "xchg_ratio", "rwlock_ratio", "setter_stall"];
        if !figures.iter().any(|f| report.wants(&name(f))) {
            continue;
        }
        arena.prepare(case);
        let mut stalls: [Runs; 4] = Default::default();
        let mut turn = 0;
        let [brant, memcpy, xchg, rwlock] = alternate(RUNS, |i| {
            let (time, longest) = arena.run(SCHEMES[i], case);
            if turn >= SCHEMES.len() {
                stalls[i].push(longest.as_secs_f64() * 1e3);
            }
            turn += 1;
            time
        });
        report.compared(&name(over_memcpy), "ms", &brant, "memcpy", &memcpy);
        report.compared(
            &name("xchg_ratio"),
            "ms",
            &brant,
            "xchg of each word",
            &xchg,
        );
        report.compared(
            &name("rwlock_ratio"),
            "ms",
            &brant,
            "read/write lock",
            &rwlock,
        );
        let [ours, _, _, theirs] = &stalls;
        report.compared(&name("setter_stall"), "ms", ours, "read/write lock", theirs);
    }
}
