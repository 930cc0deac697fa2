//! The reaper: the one thread on which rounds over the rings are made, and how others ask for one.
//!
//! A `KVM_RESET_DIRTY_RINGS` that a signal interrupts loses pages without an error. So it is only
//! called on a thread of brant's, whose signals are masked, and never on one of the VMM's. A sync,
//! or a vCPU whose ring is full, asks for a round and waits for its end. The reaper takes no lock
//! but the rings' and calls no code of the VMM's, so waiting for it cannot deadlock. A vCPU thread
//! may wait here while another thread, with the tracker locked, waits for that vCPU to be paused or
//! kicked.
//!
//! Unasked, the reaper looks at each ring every 1 to 10 ms, which costs one load. It makes a round
//! when a ring is a quarter full. It leaves the ring of a vCPU over its dirty limit alone, so that
//! the vCPU comes out with a full ring and can be kept waiting (`limits.rs`). The thread starts and
//! ends with tracking.

use super::rounds::{Look, Ring, Rounds};
use super::waits::Limits;
use crate::dirty::vcpus::Vcpus;
use crate::error::{Error, Kind, Result};
use crate::runtime::thread::{catch, spawn, Join, Role};
use crate::sys::kvm_ring::{ResetRings, RingMap};
use crate::vmm::Vmm;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(10);
/// A ring is emptied when it is this full: one quarter.
const REAP_AT: u64 = 4;
/// When a ring is this full, rings are looked at more often.
const HURRY_AT: u64 = 16;

#[derive(Default)]
pub(super) struct State {
    pub rounds: Rounds,
    /// How many rounds were asked for, and how many of those requests were answered.
    asked: u64,
    answered: u64,
    /// How thorough the next round has to be.
    look: Look,
    /// The error of the last round.
    outcome: Option<Error>,
    /// There is a reaper thread, which answers requests.
    reaping: bool,
    ends: bool,
    pub limits: Limits,
}

impl State {
    fn answer(&mut self, vm: &Arc<dyn ResetRings>, now: Duration) {
        let (asked, look) = (self.asked, std::mem::take(&mut self.look));
        let rounds = &mut self.rounds;
        let done = catch(|| rounds.round(vm, look, now)).and_then(|done| done);
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
    /// Wakes the reaper: a round was asked for, or the thread is to end.
    asked: Condvar,
    /// Wakes those who wait for a round: one has ended.
    answered: Condvar,
    /// Where the time of the dirty limits begins.
    begun: Instant,
}

impl AskedRounds {
    pub fn new(vm: Arc<dyn ResetRings>, vmm: Arc<dyn Vmm>) -> Self {
        AskedRounds {
            vm,
            vmm,
            state: Mutex::default(),
            asked: Condvar::new(),
            answered: Condvar::new(),
            begun: Instant::now(),
        }
    }

    /// The time for the dirty limits.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has a round made that begins after this call, and waits for its end. `full` is the vCPU
    /// whose ring is full, when its thread calls this.
    pub fn round(self: &Arc<Self>, look: Look, full: Option<u32>) -> Result<()> {
        let mut state = self.lock();
        if let Some(vcpu) = full {
            let Some(ring) = state.rounds.rings.get_mut(&vcpu) else {
                return Err(no_ring(vcpu));
            };
            ring.full = true;
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
            // There is no reaper because nothing is tracked, but a ring may be full all the same.
            // The round cannot be made on the calling thread, which takes signals.
            let here = Arc::clone(self);
            let once = move || here.lock().answer(&here.vm, here.now());
            spawn(Role::Reaper, self.announce(), once)?.join()?;
            state = self.lock();
        }
        match &state.outcome {
            Some(e) => Err(e.clone()),
            None => Ok(()),
        }
    }

    /// What a thread of brant's does first: it tells the VMM.
    fn announce(self: &Arc<Self>) -> impl FnOnce(Role) + Send + 'static {
        let theirs = Arc::clone(self);
        move |role| {
            // A failure in here must not end the thread: others wait for its rounds.
            if let Err(e) = catch(|| theirs.vmm.thread_start(role)) {
                let note = format!("thread_start: {e}");
                let notes = &mut theirs.lock().rounds.notes;
                // Nobody reads the notes while nothing is tracked, so each is kept once.
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
                state.answer(&self.vm, self.now());
                self.answered.notify_all();
            }
            if state.ends {
                // Dropping `_gone` takes the lock again.
                drop(state);
                return;
            }
            let (woken, _) = self
                .asked
                .wait_timeout(state, pause)
                .unwrap_or_else(|e| e.into_inner());
            state = woken;
            let now = self.now();
            let mut fills = |part| {
                let mut rings = state.rounds.rings.values_mut();
                rings.any(|ring| ring.fills(part) && !ring.is_left_alone(now))
            };
            let (hurry, reap) = (fills(HURRY_AT), fills(REAP_AT));
            pause = match pause {
                _ if hurry => SHORTEST,
                pause => (pause * 2).min(LONGEST),
            };
            if state.answered == state.asked && reap {
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

/// The reaper thread, which ends when this is dropped.
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
            // A panic of the thread has failed its round, and that was reported.
            let _ = thread.join();
        }
    }
}

/// Access to the rings for vCPU threads and queries. Cheap to clone.
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
    /// Adds a vCPU's ring under the VMM's number of that vCPU. Allowed at any time, also while
    /// tracking, but before the vCPU first runs under tracking.
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

    /// Adds a vCPU of a VMM that uses `kvm-ioctls`. Its ring and its `kvm_run` are mapped here.
    pub fn add_vcpu(&self, number: u32, vcpu: &kvm_ioctls::VcpuFd) -> Result<()> {
        // SAFETY: the descriptor is open as long as `vcpu` is, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        self.add_fd(number, fd, 0)
    }

    /// Adds the vCPU of a descriptor that `KVM_CREATE_VCPU` returned, and whose ring has `bytes`
    /// bytes. With 0 the kernel is asked for the size.
    pub fn add_fd(&self, number: u32, vcpu: BorrowedFd<'_>, bytes: u64) -> Result<()> {
        let ring = RingMap::new(vcpu, bytes);
        let ring = ring.map_err(|e| e.context(format_args!("vCPU {number}")))?;
        self.add(number, Box::new(ring))
    }

    /// Removes a vCPU, which has left `KVM_RUN` for good or is about to be unplugged, after a last
    /// harvest of its ring. If it runs again, what it writes is lost until it is added once more.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a vCPU that was not added. If the kernel refuses to reset the ring, the
    /// vCPU stays.
    pub fn remove(&self, vcpu: u32) -> Result<()> {
        self.limit(vcpu, None)?;
        self.0.round(Look::All, None)?;
        let mut state = self.0.lock();
        state.rounds.rings.remove(&vcpu);
        Ok(())
    }

    /// Sets or lifts the dirty limit of one vCPU, in pages a second. The others keep theirs. See
    /// [`Tracker::limit_vcpus`](crate::dirty::tracker::Tracker::limit_vcpus).
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a vCPU that was not added, [`Kind::State`] for a limit while nothing is
    /// tracked, [`Kind::Invalid`] for a limit that is no positive number.
    pub fn limit(&self, vcpu: u32, pages_per_second: Option<f64>) -> Result<()> {
        self.0.limit_one(vcpu, pages_per_second)
    }

    /// How many vCPUs have a dirty limit now.
    pub fn limited(&self) -> u64 {
        Vcpus::limited(&*self.0)
    }

    /// Makes room in the ring of a vCPU that came out with it full. Call this on the vCPU's thread,
    /// once for each such exit. Returns when there is room. The only lock taken is held for rounds
    /// alone.
    ///
    /// A vCPU over its dirty limit ([`Rings::limit`])
    /// waits here first, for 5 ms at most. The wait ends early with any signal to the thread, also
    /// one that the thread blocks; when `immediate_exit` of the vCPU's `kvm_run` is set; before each
    /// pause and kick by brant; and when the limit goes. A vCPU that is still over its limit then
    /// gets no room: it comes out of `KVM_RUN` again at once, and the VMM can look at its own
    /// requests in between.
    pub fn full(&self, vcpu: u32) -> Result<()> {
        match self.0.may_go_on(vcpu)? {
            true => self.0.round(Look::Heads, Some(vcpu)),
            false => Ok(()),
        }
    }

    /// How many pages a vCPU has dirtied since it was added. A page that is dirtied again after a
    /// harvest counts again.
    pub fn dirtied(&self, vcpu: u32) -> Result<u64> {
        let state = self.0.lock();
        let ring = state.rounds.rings.get(&vcpu);
        ring.map(|r| r.harvested).ok_or_else(|| no_ring(vcpu))
    }

    /// Running totals of all rings.
    pub fn figures(&self) -> super::Figures {
        self.0.lock().rounds.figures()
    }

    /// How many vCPUs there are, and the bytes of each ring (0 without any).
    pub fn vcpus(&self) -> (u64, u64) {
        let state = self.0.lock();
        let rings = &state.rounds.rings;
        let bytes = rings.values().next().map_or(0, Ring::bytes);
        (rings.len() as u64, bytes)
    }

    /// Bytes of memory that the lists and bitmaps of found pages hold.
    pub fn heap_bytes(&self) -> u64 {
        self.0.lock().rounds.found.heap_bytes()
    }
}
