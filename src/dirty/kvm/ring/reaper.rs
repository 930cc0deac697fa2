//! The thread on which every round is made, and how others have one made.
//!
//! `KVM_RESET_DIRTY_RINGS` that a signal interrupts loses pages without a word, so it is only ever
//! called on a thread of ours, whose signals are masked, and never on the VMM's. Who
//! needs a round (a sync, a vCPU whose ring is full) asks for one and waits for its end. The
//! reaper takes no lock but the rings', and calls nobody, so that waiting for it can
//! never be a circle: a vCPU thread may wait here while another thread waits, with the
//! tracker locked, for that vCPU to be paused or kicked.
//!
//! Between the asks it looks at each ring, one load, every 1 to 10 ms, and makes a round
//! when one is a quarter full. It comes with tracking and goes with it.

use super::rounds::{Look, Ring, Rounds};
use crate::error::{Error, Kind, Result};
use crate::runtime::thread::{catch, spawn, Join, Role};
use crate::sys::kvm_ring::{ResetRings, RingMap};
use crate::vmm::Vmm;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(10);
/// A ring that is this full is emptied: one quarter.
const REAP_AT: u64 = 4;
/// One that is this full is looked at more often.
const HURRY_AT: u64 = 16;

#[derive(Default)]
pub(super) struct State {
    pub rounds: Rounds,
    /// Rounds asked for, and how many of those asks have been answered.
    asked: u64,
    answered: u64,
    /// How thorough the next one has to be.
    look: Look,
    /// What came of the last one.
    outcome: Option<Error>,
    /// There is a thread that answers.
    reaping: bool,
    ends: bool,
}

impl State {
    fn answer(&mut self, vm: &Arc<dyn ResetRings>) {
        let (asked, look) = (self.asked, std::mem::take(&mut self.look));
        let rounds = &mut self.rounds;
        let done = catch(|| rounds.round(vm, look)).and_then(|done| done);
        self.outcome = done.err();
        self.answered = asked;
    }
}

/// What the reaper, the log and the vCPU threads share.
pub(super) struct AskedRounds {
    vm: Arc<dyn ResetRings>,
    /// For `thread_start`.
    vmm: Arc<dyn Vmm>,
    state: Mutex<State>,
    /// For the reaper: a round is asked for, or it is to end.
    asked: Condvar,
    /// For those who wait: a round ended.
    answered: Condvar,
}

impl AskedRounds {
    pub fn new(vm: Arc<dyn ResetRings>, vmm: Arc<dyn Vmm>) -> Self {
        AskedRounds {
            vm,
            vmm,
            state: Mutex::default(),
            asked: Condvar::new(),
            answered: Condvar::new(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has a round made that begins after this call, and waits for its end. `full`: the vCPU
    /// on whose thread this is, if its ring is full.
    pub fn round(self: &Arc<Self>, look: Look, full: Option<u32>) -> Result<()> {
        let mut state = self.lock();
        if let Some(vcpu) = full {
            let State { rounds, .. } = &mut *state;
            let Some(ring) = rounds.rings.get_mut(&vcpu) else {
                return Err(no_ring(vcpu));
            };
            ring.full = true;
            rounds.figures.full_exits += 1;
        }
        state.look = state.look.max(look);
        state.asked += 1;
        let mine = state.asked;
        if state.reaping {
            self.asked.notify_one();
        }
        while state.reaping && state.answered < mine {
            state = self.answered.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        if state.answered < mine {
            drop(state);
            // Nobody is reaping, for nothing is tracked; a ring may be full all the same. Not on
            // this thread, which takes signals.
            let here = Arc::clone(self);
            let once = move || here.lock().answer(&here.vm);
            spawn(Role::Reaper, self.announce(), once)?.join()?;
            state = self.lock();
        }
        match &state.outcome {
            Some(e) => Err(e.clone()),
            None => Ok(()),
        }
    }

    /// What a thread of ours does first.
    fn announce(self: &Arc<Self>) -> impl FnOnce(Role) + Send + 'static {
        let theirs = Arc::clone(self);
        move |role| {
            // Whoever waits for rounds is not to wait for a thread that failed in here.
            if let Err(e) = catch(|| theirs.vmm.thread_start(role)) {
                let note = format!("thread_start: {e}");
                let notes = &mut theirs.lock().rounds.notes;
                // Nobody reads them while nothing is tracked.
                notes.retain(|other| *other != note);
                notes.push(note);
            }
        }
    }

    fn reap(&self) {
        struct Gone<'a>(&'a AskedRounds);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.lock().reaping = false;
                self.0.answered.notify_all();
            }
        }
        let _gone = Gone(self);
        let mut pause = LONGEST;
        let mut state = self.lock();
        loop {
            if state.answered < state.asked {
                state.answer(&self.vm);
                self.answered.notify_all();
            }
            if state.ends {
                // `_gone` takes the lock again.
                drop(state);
                return;
            }
            let (woken, _) = self
                .asked
                .wait_timeout(state, pause)
                .unwrap_or_else(|e| e.into_inner());
            state = woken;
            let rings = || state.rounds.rings.values();
            pause = match pause {
                _ if rings().any(|r| r.fills(HURRY_AT)) => SHORTEST,
                pause => (pause * 2).min(LONGEST),
            };
            if state.answered == state.asked && rings().any(|r| r.fills(REAP_AT)) {
                state.asked += 1;
            }
        }
    }
}

pub(super) fn no_ring(vcpu: u32) -> Error {
    Error::new(
        Kind::NotFound,
        format!("vCPU {vcpu} was not added to the tracker"),
    )
}

/// The thread, ended when dropped.
pub(super) struct Reaper {
    shared: Arc<AskedRounds>,
    thread: Option<Join<()>>,
}

impl Reaper {
    pub fn start(shared: &Arc<AskedRounds>) -> Result<Self> {
        let theirs = Arc::clone(shared);
        {
            let mut state = shared.lock();
            state.reaping = true;
            state.ends = false;
        }
        match spawn(Role::Reaper, shared.announce(), move || theirs.reap()) {
            Ok(thread) => Ok(Reaper {
                shared: Arc::clone(shared),
                thread: Some(thread),
            }),
            Err(e) => {
                shared.lock().reaping = false;
                Err(e)
            }
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.asked.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in it has failed the round that it was making; that was told.
            let _ = thread.join();
        }
    }
}

/// What vCPU threads and queries use. Cheap to share.
#[derive(Clone)]
pub struct Rings(pub(super) Arc<AskedRounds>);

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rings")
            .field("figures", &self.figures())
            .finish_non_exhaustive()
    }
}

impl Rings {
    /// Adds a vCPU's ring under the VMM's number of it. At any time, also while tracking; before
    /// the vCPU runs for the first time under tracking.
    pub fn add(&self, vcpu: u32, ring: Box<dyn crate::sys::kvm_ring::RingMemory>) -> Result<()> {
        let ring = Ring::new(ring)?;
        let mut state = self.0.lock();
        if let Some(other) = state.rounds.rings.values().next() {
            if other.bytes() != ring.bytes() {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "vCPU {vcpu}: a dirty ring of {} bytes expected, as the other vCPUs have; \
                         found {}",
                        other.bytes(),
                        ring.bytes()
                    ),
                ));
            }
        }
        if state.rounds.rings.contains_key(&vcpu) {
            return Err(Error::new(
                Kind::Exists,
                format!("vCPU {vcpu} was added to the tracker already"),
            ));
        }
        state.rounds.rings.insert(vcpu, ring);
        Ok(())
    }

    /// Adds a vCPU of a VMM that uses `kvm-ioctls`; what is needed of it is mapped here.
    pub fn add_vcpu(&self, number: u32, vcpu: &kvm_ioctls::VcpuFd) -> Result<()> {
        // SAFETY: the descriptor is open as long as `vcpu` is, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        self.add_fd(number, fd, 0)
    }

    /// Adds the vCPU behind what `KVM_CREATE_VCPU` returned, whose ring has `bytes` bytes; 0: what
    /// the kernel says.
    pub fn add_fd(&self, number: u32, vcpu: BorrowedFd<'_>, bytes: u64) -> Result<()> {
        let ring = RingMap::new(vcpu, bytes);
        let ring = ring.map_err(|e| e.context(format_args!("vCPU {number}")))?;
        self.add(number, Box::new(ring))
    }

    /// A vCPU came out with its ring full, and this is its thread: returns when there is room. Once
    /// for each such exit. Takes no lock that is held across anything but rounds.
    pub fn full(&self, vcpu: u32) -> Result<()> {
        self.0.round(Look::Heads, Some(vcpu))
    }

    /// How many pages a vCPU has dirtied since it was added; one that is dirtied again
    /// after a harvest counts again.
    pub fn dirtied(&self, vcpu: u32) -> Result<u64> {
        let state = self.0.lock();
        let ring = state.rounds.rings.get(&vcpu);
        ring.map(|r| r.harvested).ok_or_else(|| no_ring(vcpu))
    }

    /// Running totals.
    pub fn figures(&self) -> super::Figures {
        self.0.lock().rounds.figures()
    }

    /// How many vCPUs there are, and the bytes of each one's ring (0 without any).
    pub fn vcpus(&self) -> (u64, u64) {
        let state = self.0.lock();
        let rings = &state.rounds.rings;
        let bytes = rings.values().next().map_or(0, Ring::bytes);
        (rings.len() as u64, bytes)
    }

    /// Bytes of bitmaps held.
    pub fn heap_bytes(&self) -> u64 {
        self.0.lock().rounds.found.heap_bytes()
    }
}
