//! A VMM that does what a test tells it to in any of its operations, and remembers every call.
//!
//! It also watches who runs the guest: two running guests are an error in every test.

use super::guest::{differences, Guest};
use super::hold::Hold;
use super::memory::{Ram, Spec};
use super::time::LONG;
use brant::error::{Error, Kind, Result};
use brant::vmm::{Event, EventKind, MappedBlock, Role, StateBlob, StateSink, Vmm};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Who runs the guest.
#[derive(Default)]
pub struct World {
    /// Source, destination.
    runs: Mutex<(bool, bool)>,
    /// What went wrong. A test asserts that this is empty.
    pub wrongs: Mutex<Vec<String>>,
}

impl World {
    pub fn set(&self, source: Option<bool>, destination: Option<bool>) {
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

/// An action in an operation, besides what that does anyway.
pub type Hook = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// What is done with memory that was just mapped, and its file.
type AfterMap = Box<dyn Fn(*mut u8, BorrowedFd<'_>) + Send + Sync>;

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
    /// At the destination: the guest to compare with when `run` is called.
    source: Option<Arc<Guest>>,
    world: Arc<World>,
    side: Side,
    hooks: Mutex<HashMap<String, Hook>>,
    heard: Mutex<Heard>,
    changed: Condvar,
    pub state: Mutex<Vec<OwnedBlob>>,
    pub early: Mutex<Vec<OwnedBlob>>,
    /// What is done with memory that `map_block` has mapped.
    after_map: Mutex<Option<AfterMap>>,
    /// Whether it has the operation `map_block`.
    pub can_map_blocks: AtomicBool,
    /// Whether it has the operation `throttle`.
    pub can_throttle: AtomicBool,
    /// What `throttle` was last called with, for all vCPUs.
    pub throttle: Arc<AtomicU8>,
    /// The largest percentage so far.
    pub most: AtomicU8,
    /// The blobs for which `early_load` adds a block, by name.
    pub builds: Mutex<HashMap<String, Spec>>,
}

impl TestVmm {
    /// A VMM of `guest` on one side. With `source`, it compares its guest's memory with that
    /// guest's.
    pub fn new(
        guest: &Arc<Guest>,
        source: Option<Arc<Guest>>,
        world: &Arc<World>,
        side: Side,
    ) -> Arc<TestVmm> {
        Arc::new(TestVmm {
            guest: Arc::clone(guest),
            source,
            world: Arc::clone(world),
            side,
            hooks: Mutex::default(),
            heard: Mutex::default(),
            changed: Condvar::new(),
            state: Mutex::new(vec![blob("cpu", 0, &[1, 2, 3])]),
            early: Mutex::default(),
            after_map: Mutex::default(),
            can_map_blocks: AtomicBool::new(true),
            can_throttle: AtomicBool::new(true),
            throttle: Arc::default(),
            most: AtomicU8::new(0),
            builds: Mutex::default(),
        })
    }

    /// Calls `hook` in `operation`, or when the state of that name is entered.
    pub fn at(&self, operation: &str, hook: impl Fn() -> Result<()> + Send + Sync + 'static) {
        self.hooks
            .lock()
            .unwrap()
            .insert(operation.to_owned(), Arc::new(hook));
    }
    /// Calls `after` with the memory that `map_block` has mapped, before it returns.
    pub fn after_map(&self, after: impl Fn(*mut u8, BorrowedFd<'_>) + Send + Sync + 'static) {
        *self.after_map.lock().unwrap() = Some(Box::new(after));
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
    /// All events, in order.
    pub fn all_events(&self) -> Vec<(EventKind, String)> {
        self.heard.lock().unwrap().events.clone()
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
    /// Waits for an event of this kind.
    pub fn wait_event(&self, kind: EventKind) {
        self.wait_heard("an event", |h| h.events.iter().any(|e| e.0 == kind));
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
        let throttle = self.throttle.load(Ordering::SeqCst);
        if throttle > 0 {
            let text = format!("paused a guest that is slowed by {throttle} percent");
            self.world.wrongs.lock().unwrap().push(text);
        }
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
        // A save of state writes guest memory, and that write must arrive.
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
        // Devices read guest memory while they load, so it must be complete by now.
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
    fn map_block(
        &self,
        name: &str,
        file: BorrowedFd<'_>,
        length: u64,
        offset: u64,
    ) -> Result<MappedBlock> {
        self.call("map_block");
        self.hook("map_block")?;
        let host = self.guest.hand(name, file, length, offset);
        if let Some(after) = self.after_map.lock().unwrap().as_ref() {
            after(host, file);
        }
        // SAFETY: mapped with this length from this file, for as long as the guest lives.
        Ok(unsafe { MappedBlock::new(host) })
    }
    fn can_map_blocks(&self) -> bool {
        self.can_map_blocks.load(Ordering::SeqCst)
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
    fn throttle(&self, vcpu: Option<u32>, percent: u8) -> Result<()> {
        self.call("throttle");
        if vcpu.is_some() || percent > 99 || !self.guest.is_running() {
            let text = format!("throttle of {vcpu:?} by {percent}");
            self.world.wrongs.lock().unwrap().push(text);
        }
        self.hook("throttle")?;
        self.throttle.store(percent, Ordering::SeqCst);
        self.most.fetch_max(percent, Ordering::SeqCst);
        Ok(())
    }
    fn can_throttle(&self) -> bool {
        self.can_throttle.load(Ordering::SeqCst)
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
        // A source that has lost the connection runs on, while a load is still in progress here.
        let resumed = when != "run" && self.world.who().0;
        if !found.is_empty() && !resumed {
            let mut wrongs = self.world.wrongs.lock().unwrap();
            wrongs.push(format!("at `{when}` memory differs: {found:?}"));
        }
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
