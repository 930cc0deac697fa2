//! What the VMM's object and the migration's thread share, the same on both sides. It holds the
//! state, the figures, and the gate that a cancel and a hand-over compete for. It lets threads wait
//! for the end.
//!
//! **One truth.** Everything follows from the migration state: who has the guest, the error, the
//! figures, the last event. A defect after the hand-over changes none of them.

use super::callbacks::{check_not_inside, inside};
use super::report::{LaneStats, Stats};
use super::state::Side;
use super::steering::stall::Cause;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::ownership::Claim;
use crate::runtime::thread::Join;
use crate::runtime::{Cancel, Notify};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Nobody has taken the gate.
const OPEN: u8 = 0;
/// A cancel has taken the gate: no hand-over can follow.
const CANCELLED: u8 = 1;
/// The hand-over has taken the gate: no cancel can follow.
const COMMITTED: u8 = 2;

/// The values that both the VMM and the migration's thread see.
struct Public<S> {
    state: S,
    stats: Stats,
    /// Of each channel that there is.
    lanes: Vec<LaneStats>,
    /// The first error; once the migration is over, why it failed.
    error: Option<Error>,
    /// The migration's thread has done all its work.
    over: bool,
    /// When the figures were renewed last.
    renewed: Option<Instant>,
    /// The longest time since the start that anybody was told.
    told: Duration,
}

impl<S: Side> Public<S> {
    /// The figures of this moment. The migration's thread may wait for a link that stalls: the time
    /// since the start goes on all the same, and nothing moves.
    fn now(&mut self, still: Option<Cause>) -> Stats {
        let mut stats = self.stats;
        let age = self.renewed.map(|at| at.elapsed());
        if let Some(age) = age.filter(|_| !self.over && !self.state.is_over()) {
            stats.age(age);
            if let Some(cause) = still {
                stats.stands_still(cause);
            }
        }
        self.told = self.told.max(stats.elapsed);
        stats.elapsed = self.told;
        stats
    }

    fn enter(&mut self, state: S) {
        self.state = state;
        self.stats.state = state.into();
    }
}

/// Wakes all waiting threads when it is dropped: the migration's thread has done all its work.
pub(super) struct Ending<'a, S: Side>(pub(super) &'a Handle<S>);

impl<S: Side> Drop for Ending<'_, S> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Shared between the VMM's object and the thread.
pub(super) struct Handle<S> {
    pub(super) cancel: Cancel,
    pub(super) notify: Notify,
    gate: AtomicU8,
    public: Mutex<Public<S>>,
    ended: Condvar,
    thread: Mutex<Option<Join<()>>>,
    /// The guest, from the start on.
    claim: Mutex<Option<Claim>>,
}

impl<S: Side> Handle<S> {
    /// The handle of a migration that has not begun.
    pub(super) fn new() -> Result<Self> {
        Ok(Handle {
            cancel: Cancel::new()?,
            notify: Notify::new()?,
            gate: AtomicU8::new(OPEN),
            public: Mutex::new(Public {
                state: S::IDLE,
                stats: Stats {
                    state: S::IDLE.into(),
                    ..Stats::default()
                },
                lanes: Vec::new(),
                error: None,
                over: false,
                renewed: None,
                told: Duration::ZERO,
            }),
            ended: Condvar::new(),
            thread: Mutex::new(None),
            claim: Mutex::new(None),
        })
    }

    /// A number that tells this migration from others: its address, which an `Arc` keeps constant.
    pub(super) fn owner(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn lock(&self) -> MutexGuard<'_, Public<S>> {
        self.public.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn thread(&self) -> MutexGuard<'_, Option<Join<()>>> {
        self.thread.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn claim(&self) -> MutexGuard<'_, Option<Claim>> {
        self.claim.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts the thread that `spawn` makes, if none was started before and the guest may be
    /// claimed.
    pub(super) fn start(
        &self,
        claim: impl FnOnce() -> Result<Claim>,
        spawn: impl FnOnce() -> Result<Join<()>>,
    ) -> Result<()> {
        check_not_inside(self.owner(), "start")?;
        let mut thread = self.thread();
        if thread.is_some() || self.lock().state != S::IDLE {
            return Err(Error::new(
                Kind::State,
                "this migration was started before; make a new one",
            ));
        }
        self.cancel.check("starting a migration")?;
        *self.claim() = Some(claim()?);
        // Set before the thread runs, so that a query right after the start sees it.
        self.lock().enter(S::IDLE.step(S::START).state);
        match spawn() {
            Ok(spawned) => {
                *thread = Some(spawned);
                Ok(())
            }
            Err(e) => {
                // Nothing was begun.
                self.lock().enter(S::IDLE);
                *self.claim() = None;
                Err(e)
            }
        }
    }

    /// The hand-over tries to take the gate. Returns whether it comes before any cancel.
    pub(super) fn commit(&self) -> bool {
        self.gate
            .compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The hand-over had taken the gate and did not happen. A cancel then finds the gate as if the
    /// cancel had been first.
    pub(super) fn withdraw(&self) {
        self.gate.store(CANCELLED, Ordering::Release);
    }

    /// A cancel tries to take the gate. Waits for the end, unless this thread is inside an
    /// operation of the VMM's. The first cancel calls `wake`, which ends calls that the migration's
    /// threads are in.
    pub(super) fn cancel(&self, too_late: &str, wake: impl FnOnce()) -> Result<()> {
        let taken =
            self.gate
                .compare_exchange(OPEN, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        if taken == Err(COMMITTED) {
            return Err(Error::new(
                Kind::State,
                format!("too late to cancel: {too_late}"),
            ));
        }
        if self.cancel.cancel() {
            wake();
        }
        if !inside(self.owner()) {
            self.wait_ended(None);
        }
        Ok(())
    }

    /// Waits for the end, or for `limit`; an error says why it failed.
    pub(super) fn wait(&self, limit: Option<Duration>) -> Result<()> {
        check_not_inside(self.owner(), "wait")?;
        if self.thread().is_none() {
            return Err(Error::new(Kind::State, "this migration was not started"));
        }
        if !self.wait_ended(limit) {
            return Err(Error::new(Kind::Pending, "the migration is still going on"));
        }
        self.error().map_or(Ok(()), Err)
    }

    /// The first error; once the migration is over, why it failed.
    pub(super) fn error(&self) -> Option<Error> {
        self.lock().error.clone()
    }

    /// Waits until the thread, if there is one, has done all its work. Returns whether it has.
    fn wait_ended(&self, limit: Option<Duration>) -> bool {
        if self.thread().is_none() {
            return true;
        }
        let public = self.lock();
        let going_on = |public: &mut Public<S>| !public.over;
        match limit {
            None => {
                let waited = self.ended.wait_while(public, going_on);
                drop(waited.unwrap_or_else(|e| e.into_inner()));
                true
            }
            Some(limit) => {
                let waited = self.ended.wait_timeout_while(public, limit, going_on);
                !waited.unwrap_or_else(|e| e.into_inner()).1.timed_out()
            }
        }
    }

    /// Whether the thread has done all its work.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Waits for the end, for `limit`, or until `stop` is cancelled and [`Handle::look_again`] called.
    pub(super) fn wait_over_or(&self, limit: Duration, stop: &Cancel) {
        let going_on = |public: &mut Public<S>| !public.over && !stop.is_cancelled();
        let waited = self.ended.wait_timeout_while(self.lock(), limit, going_on);
        drop(waited.unwrap_or_else(|e| e.into_inner()));
    }

    /// Has threads in [`Handle::wait_over_or`] look at what they wait for.
    pub(super) fn look_again(&self) {
        // With the lock, so that no thread is between its look and its sleep.
        let _public = self.lock();
        self.ended.notify_all();
    }

    /// Waits for the end of a migration whose state says that the end is near.
    pub(super) fn wait_over(&self) {
        if !inside(self.owner()) {
            self.wait_ended(None);
        }
    }

    /// Marks the thread's work as done, and wakes all waiting threads.
    fn end(&self) {
        self.lock().over = true;
        self.ended.notify_all();
        self.notify.raise();
    }

    /// Renews the figures and notifies the VMM.
    pub(super) fn publish(&self, stats: &Stats) {
        {
            let mut public = self.lock();
            public.stats = Stats {
                state: public.stats.state,
                error: public.stats.error,
                ..*stats
            };
            public.renewed = Some(Instant::now());
        }
        self.notify.raise();
    }

    /// Changes a figure after the thread has done all its work.
    pub(super) fn amend(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.lock().stats);
    }

    /// Enters a state; `error` is the first error, if there was one. Who has the guest changes
    /// first, because a thread that sees the new state may at once begin what the state allows. If
    /// the guest is paused in the state, this waits for kicks in progress.
    pub(super) fn enter(&self, state: S, error: Option<Error>) {
        self.settle(state);
        self.show(state, state.verdict(error));
    }

    /// Makes the state's meaning for the guest take effect.
    pub(super) fn settle(&self, state: S) {
        if let Some(claim) = &*self.claim() {
            claim.comes_to(state.stage());
        }
    }

    fn show(&self, state: S, error: Option<Error>) {
        let mut public = self.lock();
        public.enter(state);
        public.stats.error = error.as_ref().map(Error::kind);
        public.error = error;
    }

    /// Goes from the current state to the one that `step` returns, unless `step` fails. The
    /// migration's error stays.
    pub(super) fn go<R>(&self, step: impl FnOnce(S) -> Result<(S, R)>) -> Result<R> {
        let mut public = self.lock();
        let (state, result) = step(public.state)?;
        public.enter(state);
        Ok(result)
    }

    /// The current state.
    pub(super) fn state(&self) -> S {
        self.lock().state
    }

    /// The current figures. `still`: why nothing moves in the middle of a source's pass.
    pub(super) fn stats(&self, still: Option<Cause>) -> Stats {
        self.lock().now(still)
    }

    /// Has `fill` bring the figures of `channels` channels up to date.
    pub(super) fn publish_lanes(&self, channels: u32, fill: impl FnOnce(&mut [LaneStats])) {
        let mut public = self.lock();
        let channels = channels as usize;
        if public.lanes.len() == channels
            || fallible::reserve(&mut public.lanes, channels, "figures").is_ok()
        {
            public.lanes.resize(channels, LaneStats::default());
            fill(&mut public.lanes);
        }
    }

    /// The figures of one of `channels` channels; all zero before there is a connection.
    pub(super) fn lane_stats(&self, channels: u32, channel: u32) -> Result<LaneStats> {
        if channel >= channels {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "expected a channel from 0 to {}, found {channel}",
                    channels - 1
                ),
            ));
        }
        let public = self.lock();
        let lane = public.lanes.get(channel as usize).copied();
        Ok(lane.unwrap_or_default())
    }

    /// Whether this thread is inside an operation that this migration called.
    pub(super) fn in_callback(&self) -> bool {
        inside(self.owner())
    }

    /// Cancels the migration and joins its thread, when the VMM's object is dropped.
    pub(super) fn shut_down(&self, wake: impl FnOnce()) {
        let _ = self.cancel("", wake);
        let thread = self.thread().take();
        if let Some(thread) = thread {
            if !inside(self.owner()) {
                let _ = thread.join();
            }
        }
    }
}
