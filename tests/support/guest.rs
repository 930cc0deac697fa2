//! A guest: plain process memory, and threads that write to it.
//!
//! The threads stop when the VMM is told to pause, and mark each write after it. Also here: the
//! differences of two guests' memory, and the pages that neither arrived nor are pending.

use super::memory::{Ram, Spec, PAGE};
use super::random::Random;
use super::time::LONG;
use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::taken::Taken;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockId, Memory};
use brant::migrate::{Blockers, Outgoing, Params};
use brant::units::{Bytes, Pages};
use brant::vmm::Vmm;
use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads pass it while the guest runs.
struct Gate {
    inside: RwLock<()>,
    running: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Gate {
    /// Returns when no thread is between a write and its mark.
    fn pause(&self) {
        self.running.store(false, Ordering::SeqCst);
        drop(self.inside.write().unwrap());
    }
    fn resume(&self) {
        let _lock = self.lock.lock().unwrap();
        self.running.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
    /// Returns when the guest runs, or is stopped for good.
    fn wait_running(&self) {
        let mut lock = self.lock.lock().unwrap();
        while !self.running.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
            lock = self.changed.wait(lock).unwrap();
        }
    }
    fn stop(&self) {
        let _lock = self.lock.lock().unwrap();
        self.stop.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

struct Inner {
    tracker: Arc<Tracker>,
    gate: Gate,
    /// All blocks.
    rams: Mutex<Vec<(BlockId, Arc<Ram>)>>,
    /// Memory that came by descriptor, until brant has its blocks.
    handed: Mutex<Vec<Arc<Ram>>>,
    /// The blocks to which the writers write.
    targets: Mutex<Vec<(BlockId, Arc<Ram>)>>,
}

/// A guest: memory, and threads that write it.
pub struct Guest {
    pub memory: Arc<Memory>,
    pub tracker: Arc<Tracker>,
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The consumer for migrations, if the test asks for it to know which pages did not arrive.
    tracked: Mutex<Option<Consumer>>,
    /// The migration that may have the consumer.
    migration: Mutex<Weak<Outgoing>>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.inner.gate.stop();
        for thread in self.threads.get_mut().unwrap().drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Guest {
    pub fn new(specs: &[Spec]) -> Arc<Guest> {
        let memory = Arc::new(Memory::new().unwrap());
        let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
        let guest = Arc::new(Guest {
            inner: Arc::new(Inner {
                tracker: Arc::clone(&tracker),
                gate: Gate {
                    inside: RwLock::new(()),
                    running: AtomicBool::new(false),
                    stop: AtomicBool::new(false),
                    lock: Mutex::new(()),
                    changed: Condvar::new(),
                },
                rams: Mutex::default(),
                handed: Mutex::default(),
                targets: Mutex::default(),
            }),
            memory,
            tracker,
            threads: Mutex::default(),
            tracked: Mutex::default(),
            migration: Mutex::default(),
        });
        for spec in specs {
            guest.add(Ram::new(spec));
        }
        guest
    }

    pub fn add(&self, ram: Ram) -> Arc<Ram> {
        let id = self.memory.add_block(ram.describe()).unwrap();
        let ram = Arc::new(ram);
        self.inner.rams.lock().unwrap().push((id, Arc::clone(&ram)));
        if !ram.spec.rom {
            self.inner
                .targets
                .lock()
                .unwrap()
                .push((id, Arc::clone(&ram)));
        }
        ram
    }

    /// Unplugs a block: no writer uses it any more, brant lets go of it, and it is unmapped.
    pub fn remove(&self, name: &str) {
        self.inner
            .targets
            .lock()
            .unwrap()
            .retain(|(_, r)| r.spec.name != name);
        // A writer may still be in a burst, with its own copy of the list.
        drop(self.inner.gate.inside.write().unwrap());
        self.memory
            .remove_block(self.memory.find_block(name).unwrap())
            .unwrap();
        let mut rams = self.inner.rams.lock().unwrap();
        let at = rams.iter().position(|(_, r)| r.spec.name == name).unwrap();
        let (_, ram) = rams.remove(at);
        // This is the last reference, so the block is unmapped here.
        assert!(Arc::into_inner(ram).is_some());
    }

    /// Memory that came by descriptor, in the place of a block of that name if there is one. brant
    /// makes the block.
    pub fn hand(&self, name: &str, file: BorrowedFd<'_>, length: u64, offset: u64) -> *mut u8 {
        let there = self.rams();
        let there = there.iter().find(|(_, r)| r.spec.name == name);
        let at = there.map_or(std::ptr::null_mut(), |(_, ram)| ram.host());
        let ram = Ram::of_file(name, file, length, offset, at);
        let host = ram.host();
        self.inner.handed.lock().unwrap().push(Arc::new(ram));
        host
    }

    pub fn rams(&self) -> Vec<(BlockId, Arc<Ram>)> {
        let mut rams = self.inner.rams.lock().unwrap();
        self.inner.handed.lock().unwrap().retain(|ram| {
            let Ok(id) = self.memory.find_block(ram.spec.name) else {
                return true;
            };
            match rams.iter_mut().find(|(_, r)| r.spec.name == ram.spec.name) {
                Some((before, _)) if *before == id => return true,
                // The mapping is the same one, and its owner stays.
                Some((before, _)) => *before = id,
                None => rams.push((id, Arc::clone(ram))),
            }
            let mut targets = self.inner.targets.lock().unwrap();
            targets.retain(|(_, r)| r.spec.name != ram.spec.name);
            let (_, ram) = rams.iter().find(|(i, _)| *i == id).unwrap();
            targets.push((id, Arc::clone(ram)));
            false
        });
        rams.clone()
    }

    pub fn ram(&self, name: &str) -> Arc<Ram> {
        let rams = self.rams();
        Arc::clone(&rams.iter().find(|(_, r)| r.spec.name == name).unwrap().1)
    }

    pub fn fill(&self, seed: u64) {
        let mut random = Random(seed);
        for (_, ram) in self.rams() {
            ram.fill_all(&mut random);
        }
    }

    /// Starts threads that write while the guest runs, `pause` between two bursts of 16 writes.
    pub fn writers(&self, count: usize, pause: Duration) {
        for n in 0..count {
            let inner = Arc::clone(&self.inner);
            self.threads
                .lock()
                .unwrap()
                .push(std::thread::spawn(move || inner.write(n, pause)));
        }
    }

    /// Starts a thread that writes while the guest runs, only in these pages of one block. For
    /// tests in which the number of records should stay small.
    pub fn writer_within(&self, name: &str, pages: Range<usize>, pause: Duration) {
        let inner = Arc::clone(&self.inner);
        let ram = self.ram(name);
        let id = self
            .rams()
            .iter()
            .find(|(_, r)| r.spec.name == name)
            .unwrap()
            .0;
        let target = (id, ram, pages);
        let thread = std::thread::spawn(move || inner.write_within(&target, pause));
        self.threads.lock().unwrap().push(thread);
    }

    /// Starts a thread that writes to one page after another of these pages of one block, and begins
    /// anew, while the guest runs: `rate` pages a second, less `throttle` percent.
    pub fn sweeper(&self, name: &str, pages: Range<usize>, rate: f64, throttle: &Arc<AtomicU8>) {
        let (inner, throttle) = (Arc::clone(&self.inner), Arc::clone(throttle));
        let rams = self.rams();
        let (id, ram) = rams.into_iter().find(|(_, r)| r.spec.name == name).unwrap();
        let thread = std::thread::spawn(move || inner.sweep(&(id, ram, pages), rate, &throttle));
        self.threads.lock().unwrap().push(thread);
    }

    /// For a test's own writers. When the guest runs, lets `write` write into these blocks and mark
    /// the writes, before the guest can be paused and before a block can be unmapped. `false` if
    /// the guest is stopped for good.
    pub fn while_running(&self, write: impl FnOnce(&[(BlockId, Arc<Ram>)])) -> bool {
        let gate = &self.inner.gate;
        gate.wait_running();
        let _inside = gate.inside.read().unwrap();
        if gate.running.load(Ordering::SeqCst) {
            // Cloned inside the gate, and dropped before the removal of a block gets past the gate.
            let targets = self.inner.targets.lock().unwrap().clone();
            write(&targets);
        }
        !gate.stop.load(Ordering::SeqCst)
    }

    pub fn pause(&self) {
        self.inner.gate.pause();
    }
    pub fn resume(&self) {
        self.inner.gate.resume();
    }
    pub fn is_running(&self) -> bool {
        self.inner.gate.running.load(Ordering::SeqCst)
    }

    /// One write, and then its mark.
    pub fn poke(&self, name: &str, offset: usize, value: u64) {
        let rams = self.rams();
        let (id, ram) = rams.iter().find(|(_, r)| r.spec.name == name).unwrap();
        ram.word(offset).store(value, Ordering::Relaxed);
        self.tracker.mark_block(*id, Bytes(offset as u64), 8);
    }

    /// The first writer's counter, which is in the guest's memory.
    pub fn counter(&self) -> u64 {
        self.rams()[0].1.word(0).load(Ordering::Relaxed)
    }

    /// Waits until the first writer has counted beyond `from`.
    pub fn wait_goes_on(&self, from: u64) {
        let begun = Instant::now();
        while self.counter() <= from {
            assert!(begun.elapsed() < LONG, "the guest's writer stands still");
            std::thread::yield_now();
        }
    }

    /// Lets migrations use a consumer that is already started. [`Guest::pending`] then tells which
    /// pages did not arrive, or were written after a migration that failed.
    pub fn track(&self) {
        self.track_with(StartWith::Nothing);
    }

    pub fn track_with(&self, with: StartWith) {
        let consumer = self.tracker.consumer();
        consumer.start(with).unwrap();
        *self.tracked.lock().unwrap() = Some(consumer);
    }

    /// The consumer, taken from the last migration if that has it.
    fn tracked(&self) -> MutexGuard<'_, Option<Consumer>> {
        let mut tracked = self.tracked.lock().unwrap();
        if let Some(migration) = self.migration.lock().unwrap().upgrade() {
            if let Some(leftover) = migration.leftover() {
                *tracked = Some(leftover);
            }
        }
        tracked
    }

    /// A migration from here, with the consumer of [`Guest::track`] if there is one.
    pub fn outgoing(
        &self,
        blockers: &Blockers,
        vmm: Arc<dyn Vmm>,
        params: &Params,
    ) -> Arc<Outgoing> {
        let (blockers, params) = (blockers.clone(), params.clone());
        let out = match self.tracked().take() {
            Some(consumer) => Outgoing::with_consumer(consumer, blockers, vmm, params),
            None => Outgoing::new(Arc::clone(&self.tracker), blockers, vmm, params),
        };
        let out = Arc::new(out.unwrap());
        *self.migration.lock().unwrap() = Arc::downgrade(&out);
        out
    }

    /// All pages pending for the consumer of [`Guest::track`], after a last sync. They stay
    /// pending.
    pub fn pending(&self) -> HashSet<(String, usize)> {
        let tracked = self.tracked();
        let consumer = tracked
            .as_ref()
            .expect("the guest is tracked, and its migration over");
        consumer.sync(When::Stopped).unwrap();
        let mut pages = HashSet::new();
        // Dropped together, when there is no more page to take.
        let mut all: Vec<Taken> = Vec::new();
        let mut cursor = Cursor::default();
        loop {
            let taken = consumer.take(&mut cursor, 256, Pages(1 << 20)).unwrap();
            if taken.is_empty() {
                break;
            }
            for run in taken.runs() {
                for page in run.pages.first().0..run.pages.end().0 {
                    pages.insert((run.block.name().to_owned(), page as usize));
                }
            }
            all.push(taken);
        }
        pages
    }
}

impl Inner {
    fn write(&self, number: usize, pause: Duration) {
        let mut random = Random(number as u64 + 1);
        let gate = &self.gate;
        while !gate.stop.load(Ordering::SeqCst) {
            {
                let _inside = gate.inside.read().unwrap();
                if gate.running.load(Ordering::SeqCst) {
                    let targets = self.targets.lock().unwrap().clone();
                    for _ in 0..16 {
                        let (id, ram) = &targets[random.below(targets.len())];
                        // The counters are at the beginning of the first page.
                        let offset =
                            random.below(ram.spec.pages) * PAGE + 2048 + random.below(256) * 8;
                        // Now and then a page becomes zero again, or nearly so.
                        let value = random.next() & random.next() & 3;
                        ram.word(offset).store(value, Ordering::Relaxed);
                        self.tracker.mark_block(*id, Bytes(offset as u64), 8);
                    }
                    let (id, ram) = &targets[0];
                    let counter = ram.word(number * 8);
                    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    self.tracker.mark_block(*id, Bytes(number as u64 * 8), 8);
                }
            }
            gate.wait_running();
            if pause.is_zero() {
                std::thread::yield_now();
            } else {
                std::thread::sleep(pause);
            }
        }
    }

    fn sweep(&self, target: &(BlockId, Arc<Ram>, Range<usize>), rate: f64, throttle: &AtomicU8) {
        let (gate, (id, ram, pages)) = (&self.gate, target);
        let mut page = pages.start;
        while !gate.stop.load(Ordering::SeqCst) {
            let burst = 16;
            {
                let _inside = gate.inside.read().unwrap();
                if gate.running.load(Ordering::SeqCst) {
                    for _ in 0..burst {
                        let offset = page * PAGE + 2048;
                        ram.word(offset).fetch_add(1, Ordering::Relaxed);
                        self.tracker.mark_block(*id, Bytes(offset as u64), 8);
                        page = if page + 1 < pages.end {
                            page + 1
                        } else {
                            pages.start
                        };
                    }
                }
            }
            gate.wait_running();
            let speed = rate * (1.0 - f64::from(throttle.load(Ordering::SeqCst)) / 100.0);
            // A guest that is slowed notices within a moment that it is not any more.
            let pause = Duration::from_secs_f64(f64::from(burst) / speed);
            std::thread::sleep(pause.min(Duration::from_millis(50)));
        }
    }

    fn write_within(&self, target: &(BlockId, Arc<Ram>, Range<usize>), pause: Duration) {
        let mut random = Random(1);
        let (gate, (id, ram, pages)) = (&self.gate, target);
        while !gate.stop.load(Ordering::SeqCst) {
            {
                let _inside = gate.inside.read().unwrap();
                if gate.running.load(Ordering::SeqCst) {
                    let page = pages.start + random.below(pages.len());
                    let offset = page * PAGE + 2048 + random.below(256) * 8;
                    ram.word(offset).store(random.next(), Ordering::Relaxed);
                    self.tracker.mark_block(*id, Bytes(offset as u64), 8);
                    let (first, counters) = self.rams.lock().unwrap()[0].clone();
                    counters.word(0).fetch_add(1, Ordering::Relaxed);
                    self.tracker.mark_block(first, Bytes(0), 8);
                }
            }
            gate.wait_running();
            std::thread::sleep(pause);
        }
    }
}

/// The differences of two guests' memory, at most a few of them.
pub fn differences(a: &Guest, b: &Guest) -> Vec<String> {
    let mut found = Vec::new();
    let theirs = b.rams();
    for (_, ram) in a.rams() {
        let Some((_, other)) = theirs.iter().find(|(_, r)| r.spec.name == ram.spec.name) else {
            found.push(format!("no block {}", ram.spec.name));
            continue;
        };
        for page in 0..ram.spec.pages {
            if ram.page(page) != other.page(page) && found.len() < 10 {
                found.push(format!("{} page {page}", ram.spec.name));
            }
        }
    }
    found
}

/// The lost pages after a migration that failed, with the source paused: those that neither equal
/// the destination's nor are pending. There should be none.
pub fn lost(source: &Guest, destination: &Guest) -> Vec<String> {
    let pending = source.pending();
    let theirs = destination.rams();
    let mut found = Vec::new();
    for (_, ram) in source.rams() {
        let other = theirs.iter().find(|(_, r)| r.spec.name == ram.spec.name);
        for page in 0..ram.spec.pages {
            let same = other.is_some_and(|(_, o)| o.page(page) == ram.page(page));
            if !same && !pending.contains(&(ram.spec.name.to_owned(), page)) {
                found.push(format!("{} page {page}", ram.spec.name));
            }
        }
    }
    found
}
