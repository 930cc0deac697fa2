//! A guest, two VMMs and a network for the tests of whole migrations, all in one process.
//!
//! The guest is plain process memory, written by threads that stop when the VMM is told to
//! pause and that mark each write after it. The VMM does what a test tells it to at any of its
//! operations. The network is a proxy that knows records and does what a test tells it to at
//! any of them. Used by `tests/migrate.rs`; knows nothing of how brant does what it does.
#![allow(dead_code)]

use brant::dirty::consumer::{Consumer, Cursor, Run};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::error::{Error, Kind, Result};
use brant::memory::block::{BackingFile, BlockDescription, BlockFlags};
use brant::memory::{BlockId, Memory};
use brant::migrate::{Blockers, Outgoing, Params};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::{Event, EventKind, Role, StateBlob, StateSink, Vmm};
use brant::wire::{Header, Record, RecordType, HEADER_LEN, MARKER_FLAG_FINAL};
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than anything takes that is not broken.
pub const LONG: Duration = Duration::from_secs(30);
const PAGE: usize = PAGE_SIZE as usize;

/// A small generator of numbers, repeatable by its seed.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// What a block of the guest's is.
#[derive(Clone)]
pub struct Spec {
    pub name: &'static str,
    pub pages: usize,
    pub memfd: bool,
    pub rom: bool,
    pub page_size: u64,
}

/// Private anonymous memory.
pub fn ram(name: &'static str, pages: usize) -> Spec {
    Spec {
        name,
        pages,
        memfd: false,
        rom: false,
        page_size: PAGE_SIZE,
    }
}

/// A shared mapping of a memfd.
pub fn shared(name: &'static str, pages: usize) -> Spec {
    Spec {
        memfd: true,
        ..ram(name, pages)
    }
}

/// Memory that the guest does not write.
pub fn rom(name: &'static str, pages: usize) -> Spec {
    Spec {
        rom: true,
        ..ram(name, pages)
    }
}

/// The memory of one block.
pub struct Ram {
    pub spec: Spec,
    host: *mut u8,
    fd: Option<OwnedFd>,
}

// SAFETY: a mapping that is this object's own; accesses go through atomics while others write.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and nobody uses it any more.
        unsafe { libc::munmap(self.host.cast(), self.spec.pages * PAGE) };
    }
}

impl Ram {
    pub fn new(spec: &Spec) -> Ram {
        let length = spec.pages * PAGE;
        let (flags, fd) = if spec.memfd {
            // SAFETY: a literal name; the descriptor is owned at once.
            let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: fresh from the kernel.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: changes only the length of our own file.
            assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), length as i64) }, 0);
            (libc::MAP_SHARED, Some(fd))
        } else {
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
        };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd.as_ref().map_or(-1, |fd| fd.as_raw_fd()),
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        // What is touched shall be what is written, so no huge pages.
        // SAFETY: advice about our own mapping.
        unsafe { libc::madvise(host, length, libc::MADV_NOHUGEPAGE) };
        Ram {
            spec: spec.clone(),
            host: host.cast(),
            fd,
        }
    }

    pub fn describe(&self) -> BlockDescription {
        BlockDescription {
            name: self.spec.name.to_owned(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { brant::memory::HostMemory::new(self.host) },
            length: Bytes((self.spec.pages * PAGE) as u64),
            page_size: Bytes(self.spec.page_size),
            file: self.fd.as_ref().map(|fd| BackingFile {
                fd: fd.try_clone().unwrap(),
                offset: 0,
            }),
            flags: BlockFlags {
                rom: self.spec.rom,
                zeroed: false,
            },
        }
    }

    /// The word at `offset` bytes.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.spec.pages * PAGE);
        // SAFETY: aligned, within the mapping, which lives as long as `self`.
        unsafe { &*self.host.add(offset).cast::<AtomicU64>() }
    }

    /// A page that nobody writes now.
    pub fn page(&self, page: usize) -> &[u8] {
        assert!(page < self.spec.pages);
        // SAFETY: within the mapping; the caller has the writers stopped.
        unsafe { std::slice::from_raw_parts(self.host.add(page * PAGE), PAGE) }
    }

    /// Writes something into every word of a page.
    pub fn fill(&self, page: usize, random: &mut Random) {
        for word in 0..PAGE / 8 {
            self.word(page * PAGE + word * 8)
                .store(random.next() | 1, Ordering::Relaxed);
        }
    }

    pub fn fill_all(&self, random: &mut Random) {
        for page in 0..self.spec.pages {
            self.fill(page, random);
        }
    }
}

/// Threads go through it while the guest runs.
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
    /// Returns when it runs, or is stopped for good.
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
    /// Where the writers write.
    targets: Mutex<Vec<(BlockId, Arc<Ram>)>>,
}

/// A guest: memory, and threads that write it.
pub struct Guest {
    pub memory: Arc<Memory>,
    pub tracker: Arc<Tracker>,
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The consumer that migrations use, if the test wants to know what did not arrive.
    tracked: Mutex<Option<Consumer>>,
    /// Which may have it.
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

    /// Unplugs a block: nobody writes it any more, brant lets go of it, it is unmapped.
    pub fn remove(&self, name: &str) {
        self.inner
            .targets
            .lock()
            .unwrap()
            .retain(|(_, r)| r.spec.name != name);
        // A writer may still be in a burst with its copy of the list.
        drop(self.inner.gate.inside.write().unwrap());
        self.memory.remove_block(name).unwrap();
        let mut rams = self.inner.rams.lock().unwrap();
        let at = rams.iter().position(|(_, r)| r.spec.name == name).unwrap();
        let (_, ram) = rams.remove(at);
        // The last reference: unmapped right here.
        assert!(Arc::into_inner(ram).is_some());
    }

    pub fn rams(&self) -> Vec<(BlockId, Arc<Ram>)> {
        self.inner.rams.lock().unwrap().clone()
    }

    pub fn ram(&self, name: &str) -> Arc<Ram> {
        let rams = self.inner.rams.lock().unwrap();
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

    /// Starts a thread that writes while the guest runs, in these pages of one block only: for
    /// tests in which the number of records shall stay small.
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

    /// For a test's own writers: once the guest runs, lets `write` write into these blocks (and
    /// mark it) before the guest can be paused and before any of them can be unmapped. False
    /// if the guest is stopped for good.
    pub fn while_running(&self, write: impl FnOnce(&[(BlockId, Arc<Ram>)])) -> bool {
        let gate = &self.inner.gate;
        gate.wait_running();
        let _inside = gate.inside.read().unwrap();
        if gate.running.load(Ordering::SeqCst) {
            // Cloned inside, and gone before whoever removes a block gets past the gate.
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

    /// The first writer's own counter, which lies in the guest's memory.
    pub fn counter(&self) -> u64 {
        self.rams()[0].1.word(0).load(Ordering::Relaxed)
    }

    /// Waits until the first writer has gone on from `from`.
    pub fn wait_goes_on(&self, from: u64) {
        let begun = Instant::now();
        while self.counter() <= from {
            assert!(begun.elapsed() < LONG, "the guest's writer stands still");
            std::thread::yield_now();
        }
    }

    /// Has migrations use a consumer that is started already, so that what did not arrive, and
    /// what is written after a migration that failed, can be told by [`Guest::pending`].
    pub fn track(&self) {
        self.track_with(StartWith::Nothing);
    }

    pub fn track_with(&self, with: StartWith) {
        let consumer = self.tracker.consumer();
        consumer.start(with).unwrap();
        *self.tracked.lock().unwrap() = Some(consumer);
    }

    /// The consumer, from the last migration if that has it.
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

    /// All pages pending for the consumer of [`Guest::track`], after a last sync. They stay pending.
    pub fn pending(&self) -> HashSet<(String, usize)> {
        let tracked = self.tracked();
        let consumer = tracked
            .as_ref()
            .expect("the guest is tracked, and its migration over");
        consumer.sync(When::Stopped).unwrap();
        let mut pages = HashSet::new();
        let mut all: Vec<Run> = Vec::new();
        let (mut cursor, mut runs) = (Cursor::default(), Vec::new());
        loop {
            consumer
                .take(&mut cursor, 256, Pages(1 << 20), &mut runs)
                .unwrap();
            if runs.is_empty() {
                break;
            }
            all.append(&mut runs);
        }
        for run in all {
            for page in run.first.0..run.first.0 + run.count.0 {
                pages.insert((run.block.name().to_owned(), page as usize));
            }
            consumer.put_back(run.block.id(), run.first, run.count);
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
                        // The first page's beginning is the counters'.
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

/// Where two guests' memory differs, at most a few of the places.
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

/// After a migration that did not happen, with the source paused: pages that are neither
/// the same at the destination nor pending. There shall be none.
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

/// A place to stop somebody at until the test says so.
#[derive(Default)]
pub struct Hold {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Hold {
    pub fn new() -> Arc<Hold> {
        Arc::default()
    }
    /// For whoever is to be held.
    pub fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }
    /// Waits until somebody is there.
    pub fn reached(&self) {
        let state = self.state.lock().unwrap();
        let (_state, out) = self
            .changed
            .wait_timeout_while(state, LONG, |s| !s.0)
            .unwrap();
        assert!(!out.timed_out(), "nobody came to the hold");
    }
    /// Lets everybody go on.
    pub fn go(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// Who runs the guest.
#[derive(Default)]
pub struct World {
    /// Source, destination.
    runs: Mutex<(bool, bool)>,
    /// What went wrong, for the test to assert that nothing did.
    pub wrongs: Mutex<Vec<String>>,
}

impl World {
    fn set(&self, source: Option<bool>, destination: Option<bool>) {
        let mut runs = self.runs.lock().unwrap();
        runs.0 = source.unwrap_or(runs.0);
        runs.1 = destination.unwrap_or(runs.1);
        if *runs == (true, true) {
            self.wrongs.lock().unwrap().push("two guests run".into());
        }
    }
    /// Source, destination.
    pub fn who(&self) -> (bool, bool) {
        *self.runs.lock().unwrap()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Source,
    Destination,
}

/// What is done at an operation, besides what it does anyway.
pub type Hook = Arc<dyn Fn() -> Result<()> + Send + Sync>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnedBlob {
    pub name: String,
    pub instance: u32,
    pub version: u32,
    pub data: Vec<u8>,
}

#[derive(Default)]
struct Heard {
    calls: Vec<String>,
    states: Vec<String>,
    events: Vec<(EventKind, String)>,
    blobs: Vec<OwnedBlob>,
    early: Vec<OwnedBlob>,
}

/// A VMM.
pub struct TestVmm {
    pub guest: Arc<Guest>,
    /// At the destination, the guest to compare with when `run` is called.
    source: Option<Arc<Guest>>,
    world: Arc<World>,
    side: Side,
    hooks: Mutex<HashMap<String, Hook>>,
    heard: Mutex<Heard>,
    changed: Condvar,
    pub state: Mutex<Vec<OwnedBlob>>,
    pub early: Mutex<Vec<OwnedBlob>>,
    /// What `early_load` adds a block for: its name.
    pub builds: Mutex<HashMap<String, Spec>>,
}

impl TestVmm {
    /// Does `hook` at `operation`, or on entering a state (by its name).
    pub fn at(&self, operation: &str, hook: impl Fn() -> Result<()> + Send + Sync + 'static) {
        self.hooks
            .lock()
            .unwrap()
            .insert(operation.to_owned(), Arc::new(hook));
    }
    pub fn hold_at(&self, operation: &str) -> Arc<Hold> {
        let hold = Hold::new();
        let held = Arc::clone(&hold);
        self.at(operation, move || {
            held.pass();
            Ok(())
        });
        hold
    }
    fn hook(&self, operation: &str) -> Result<()> {
        let hook = self.hooks.lock().unwrap().get(operation).cloned();
        hook.map_or(Ok(()), |hook| hook())
    }
    fn call(&self, operation: &str) {
        self.heard.lock().unwrap().calls.push(operation.to_owned());
        self.changed.notify_all();
    }
    /// How often an operation was called.
    pub fn calls(&self, operation: &str) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.calls.iter().filter(|c| *c == operation).count()
    }
    pub fn all_calls(&self) -> Vec<String> {
        self.heard.lock().unwrap().calls.clone()
    }
    pub fn states(&self) -> Vec<String> {
        self.heard.lock().unwrap().states.clone()
    }
    pub fn events(&self, kind: EventKind) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let of = heard.events.iter().filter(|e| e.0 == kind);
        of.map(|e| e.1.clone()).collect()
    }
    pub fn loaded_blobs(&self) -> Vec<OwnedBlob> {
        self.heard.lock().unwrap().blobs.clone()
    }
    pub fn early_loaded(&self) -> Vec<OwnedBlob> {
        self.heard.lock().unwrap().early.clone()
    }
    fn wait_heard(&self, what: &str, there: impl Fn(&Heard) -> bool) {
        let heard = self.heard.lock().unwrap();
        let (heard, out) = self
            .changed
            .wait_timeout_while(heard, LONG, |h| !there(h))
            .unwrap();
        assert!(
            !out.timed_out(),
            "never came: {what}; states {:?}",
            heard.states
        );
    }
    /// Waits until a state has been entered.
    pub fn wait_state(&self, name: &str) {
        self.wait_heard(name, |h| h.states.iter().any(|s| s == name));
    }
    /// Waits until `count` passes are done.
    pub fn wait_passes(&self, count: usize) {
        self.wait_heard("a pass", |h| {
            h.events.iter().filter(|e| e.0 == EventKind::Pass).count() >= count
        });
    }
}

fn own(blob: &StateBlob<'_>) -> OwnedBlob {
    OwnedBlob {
        name: blob.name.to_owned(),
        instance: blob.instance,
        version: blob.version,
        data: blob.data.to_vec(),
    }
}

fn put_all(blobs: &Mutex<Vec<OwnedBlob>>, sink: &mut dyn StateSink) -> Result<()> {
    for blob in blobs.lock().unwrap().iter() {
        sink.put(&StateBlob {
            name: &blob.name,
            instance: blob.instance,
            version: blob.version,
            data: &blob.data,
        })?;
    }
    Ok(())
}

impl Vmm for TestVmm {
    fn pause(&self) -> Result<()> {
        self.call("pause");
        self.guest.pause();
        self.world.set(Some(false), None);
        self.hook("pause")
    }
    fn resume(&self) -> Result<()> {
        self.call("resume");
        self.hook("resume")?;
        self.world.set(Some(true), None);
        self.guest.resume();
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        self.call("save");
        if self.guest.is_running() {
            let mut wrongs = self.world.wrongs.lock().unwrap();
            wrongs.push("saved a running guest".into());
        }
        // Saving writes guest memory: what it writes must arrive.
        if let Some((_, ram)) = self.guest.rams().first() {
            let counter = ram.word(1024).load(Ordering::Relaxed);
            self.guest.poke(ram.spec.name, 1024, counter + 1);
        }
        self.hook("save")?;
        put_all(&self.state, sink)
    }
    fn load(&self, blob: &StateBlob<'_>) -> Result<()> {
        self.call("load");
        self.heard.lock().unwrap().blobs.push(own(blob));
        // Devices look into guest memory while they load: it must be complete by now.
        self.compare("load");
        self.hook("load")
    }
    fn loaded(&self) -> Result<()> {
        self.call("loaded");
        self.hook("loaded")
    }
    fn early_save(&self, sink: &mut dyn StateSink) -> Result<()> {
        self.call("early_save");
        self.hook("early_save")?;
        put_all(&self.early, sink)
    }
    fn early_load(&self, blob: &StateBlob<'_>) -> Result<()> {
        self.call("early_load");
        self.heard.lock().unwrap().early.push(own(blob));
        self.hook("early_load")?;
        if let Some(spec) = self.builds.lock().unwrap().get(blob.name) {
            self.guest.add(Ram::new(spec));
        }
        Ok(())
    }
    fn release(&self) -> Result<()> {
        self.call("release");
        self.hook("release")
    }
    fn run(&self) -> Result<()> {
        self.call("run");
        self.hook("run")?;
        self.compare("run");
        self.world.set(None, Some(true));
        self.guest.resume();
        Ok(())
    }
    fn event(&self, event: &Event) {
        {
            let mut heard = self.heard.lock().unwrap();
            if event.kind == EventKind::State {
                heard.states.push(event.message.clone());
            }
            heard.events.push((event.kind, event.message.clone()));
        }
        self.changed.notify_all();
        if event.kind == EventKind::State {
            let _ = self.hook(&event.message);
        }
        let _ = self.hook("event");
    }
    fn thread_start(&self, _: Role) {
        self.call("thread_start");
        let _ = self.hook("thread_start");
    }
}

impl TestVmm {
    fn compare(&self, when: &str) {
        let Some(source) = &self.source else { return };
        let found = differences(source, &self.guest);
        // A source that has lost the connection runs on while a load is still going on here.
        let resumed = when != "run" && self.world.who().0;
        if !found.is_empty() && !resumed {
            let mut wrongs = self.world.wrongs.lock().unwrap();
            wrongs.push(format!("at `{when}` memory differs: {found:?}"));
        }
    }
}

/// Two sides with the same blocks.
pub struct Pair {
    pub world: Arc<World>,
    pub source: Arc<Guest>,
    pub destination: Arc<Guest>,
    pub from: Arc<TestVmm>,
    pub to: Arc<TestVmm>,
}

impl Pair {
    pub fn new(specs: &[Spec]) -> Pair {
        Pair::of(Guest::new(specs), Guest::new(specs))
    }

    pub fn of(source: Arc<Guest>, destination: Arc<Guest>) -> Pair {
        let world = Arc::new(World::default());
        world.set(Some(true), Some(false));
        source.resume();
        let vmm = |guest: &Arc<Guest>, side, compare| {
            Arc::new(TestVmm {
                guest: Arc::clone(guest),
                source: compare,
                world: Arc::clone(&world),
                side,
                hooks: Mutex::default(),
                heard: Mutex::default(),
                changed: Condvar::new(),
                state: Mutex::new(vec![blob("cpu", 0, &[1, 2, 3])]),
                early: Mutex::default(),
                builds: Mutex::default(),
            })
        };
        Pair {
            from: vmm(&source, Side::Source, None),
            to: vmm(&destination, Side::Destination, Some(Arc::clone(&source))),
            world,
            source,
            destination,
        }
    }

    /// Nothing went wrong so far, whatever came of it.
    pub fn assert_sound(&self, what: &str) {
        let wrongs = self.world.wrongs.lock().unwrap();
        assert!(wrongs.is_empty(), "{what}: {wrongs:?}");
    }

    /// The guest runs at the source as if nothing had been.
    pub fn assert_runs_on(&self, what: &str) {
        self.assert_sound(what);
        assert_eq!(self.world.who(), (true, false), "{what}: who runs");
        assert!(self.source.is_running(), "{what}: the source's guest runs");
        assert_eq!(
            self.to.calls("run"),
            0,
            "{what}: the destination never runs"
        );
        assert_eq!(
            self.from.calls("resume"),
            self.from.calls("pause"),
            "{what}: resumed once if it was paused"
        );
        assert!(self.from.calls("pause") <= 1, "{what}");
    }
}

pub fn blob(name: &str, instance: u32, data: &[u8]) -> OwnedBlob {
    OwnedBlob {
        name: name.to_owned(),
        instance,
        version: 7,
        data: data.to_vec(),
    }
}

pub fn failure() -> Error {
    Error::new(Kind::Unsupported, "the test's own failure")
}

/// What the proxy does with a record.
#[derive(Clone, Debug)]
pub enum Verdict {
    Forward,
    /// This one only.
    Drop,
    /// The connection ends before it.
    Cut,
    /// The connection ends in the middle of it.
    CutMid,
    /// The connection ends right after it.
    CutAfter,
    /// From here on nothing gets through either way, and nobody is told.
    Swallow,
    /// Other bytes instead.
    Replace(Vec<u8>),
}

/// Where in a session something shall happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The n-th record of a type, from 1.
    Nth(RecordType, usize),
    FinalMarker,
    FinalAck,
}

type Rule = dyn FnMut(&Header, &[u8]) -> Verdict + Send;

/// A rule that does something at one point and forwards all else.
pub fn at(point: Point, verdict: Verdict) -> Box<Rule> {
    let mut seen = 0;
    let mut last_marker = 0;
    Box::new(move |header, payload| {
        let kind = header.record_type().ok().flatten();
        let number = || u64::from_le_bytes(payload[..8].try_into().unwrap());
        let is_final =
            kind == Some(RecordType::Marker) && payload[12] & MARKER_FLAG_FINAL as u8 != 0;
        if is_final {
            last_marker = number();
        }
        let here = match point {
            Point::Nth(wanted, n) => {
                seen += usize::from(kind == Some(wanted));
                kind == Some(wanted) && seen == n
            }
            Point::FinalMarker => is_final,
            Point::FinalAck => kind == Some(RecordType::Ack) && number() == last_marker,
        };
        if here {
            verdict.clone()
        } else {
            Verdict::Forward
        }
    })
}

/// A man in the middle who reads records.
pub struct Proxy {
    ends: [UnixStream; 2],
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<RecordType>>>,
}

impl Proxy {
    /// A proxy, and the ends for source and destination.
    pub fn new(rule: Box<Rule>) -> (Proxy, OwnedFd, OwnedFd) {
        let (source, a) = UnixStream::pair().unwrap();
        let (b, destination) = UnixStream::pair().unwrap();
        let rule = Arc::new(Mutex::new(rule));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let swallow = Arc::new(AtomicBool::new(false));
        let way = |mut from: UnixStream, mut to: UnixStream| {
            let (rule, seen, swallow) =
                (Arc::clone(&rule), Arc::clone(&seen), Arc::clone(&swallow));
            std::thread::spawn(move || {
                let cut = |from: &UnixStream, to: &UnixStream| {
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.shutdown(Shutdown::Both);
                };
                loop {
                    let mut bytes = vec![0u8; HEADER_LEN];
                    if from.read_exact(&mut bytes).is_err() {
                        break;
                    }
                    let header = Header::decode(bytes[..].try_into().unwrap()).unwrap();
                    bytes.resize(HEADER_LEN + header.payload as usize, 0);
                    if from.read_exact(&mut bytes[HEADER_LEN..]).is_err() {
                        break;
                    }
                    let verdict = (rule.lock().unwrap())(&header, &bytes[HEADER_LEN..]);
                    if let Ok(Some(kind)) = header.record_type() {
                        seen.lock().unwrap().push(kind);
                    }
                    if matches!(verdict, Verdict::Swallow) {
                        swallow.store(true, Ordering::SeqCst);
                    }
                    if swallow.load(Ordering::SeqCst) {
                        continue;
                    }
                    let sent = match verdict {
                        Verdict::Drop | Verdict::Swallow => Ok(()),
                        Verdict::Forward => to.write_all(&bytes),
                        Verdict::Replace(other) => to.write_all(&other),
                        Verdict::Cut => return cut(&from, &to),
                        Verdict::CutMid => {
                            let _ = to.write_all(&bytes[..bytes.len() - 3]);
                            return cut(&from, &to);
                        }
                        Verdict::CutAfter => {
                            let _ = to.write_all(&bytes);
                            // Both directions end; what is on its way still arrives.
                            let _ = to.shutdown(Shutdown::Write);
                            let _ = from.shutdown(Shutdown::Both);
                            return;
                        }
                    };
                    if sent.is_err() {
                        break;
                    }
                }
                if !swallow.load(Ordering::SeqCst) {
                    let _ = to.shutdown(Shutdown::Write);
                    let _ = from.shutdown(Shutdown::Read);
                }
            })
        };
        let threads = vec![
            way(a.try_clone().unwrap(), b.try_clone().unwrap()),
            way(b.try_clone().unwrap(), a.try_clone().unwrap()),
        ];
        let proxy = Proxy {
            ends: [a, b],
            threads,
            seen,
        };
        (proxy, source.into(), destination.into())
    }

    /// How many records of a type came by.
    pub fn seen(&self, kind: RecordType) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|k| **k == kind)
            .count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A peer that says what the test tells it to say.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn pair() -> (Raw, OwnedFd) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_read_timeout(Some(LONG)).unwrap();
        a.set_write_timeout(Some(LONG)).unwrap();
        (Raw(a), b.into())
    }
    pub fn say(&mut self, record: &Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        self.0.write_all(&bytes).unwrap();
    }
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }
    /// The next record that is no run of pages; `None` at the stream's end.
    pub fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            let mut head = [0u8; HEADER_LEN];
            self.0.read_exact(&mut head).ok()?;
            let header = Header::decode(&head).unwrap();
            let mut payload = vec![0u8; header.payload as usize];
            self.0.read_exact(&mut payload).ok()?;
            if !matches!(header.record_type(), Ok(Some(k)) if k.is_page_run()) {
                return Some((header, payload));
            }
        }
    }
    pub fn hear_record(&mut self) -> Option<Record> {
        let (header, payload) = self.hear()?;
        Some(Record::decode(&header, &payload).unwrap())
    }
    /// Hears until the end; the reason if there was an ABORT.
    pub fn hear_abort(&mut self) -> Option<String> {
        let mut reason = None;
        while let Some((header, payload)) = self.hear() {
            if header.record_type() == Ok(Some(RecordType::Abort)) {
                let Record::Abort(abort) = Record::decode(&header, &payload).unwrap() else {
                    unreachable!()
                };
                reason = Some(abort.reason);
                break;
            }
        }
        reason
    }
}
