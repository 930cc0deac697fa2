//! What the VMM holds of a migration while a thread of ours works on it, the same on both
//! sides: the state, the figures, the gate that a cancel and a hand-over compete for, waiting for
//! the end.
//!
//! **One truth.** The state says how the migration stands, and everything else follows it: what
//! it means for the guest, the error, the figures, the last event. A defect after the hand-over
//! changes none of them.

use super::callbacks::{check_not_inside, inside};
use super::report::Stats;
use super::state::Side;
use crate::error::{Error, Kind, Result};
use crate::memory::ownership::Claim;
use crate::runtime::thread::Join;
use crate::runtime::{Cancel, Notify};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Nobody has taken the gate.
const OPEN: u8 = 0;
/// A cancel has it: no hand-over any more.
const CANCELLED: u8 = 1;
/// The hand-over has it: no cancel any more.
const COMMITTED: u8 = 2;

/// What both the VMM and the migration's thread see.
struct Public<S> {
    state: S,
    stats: Stats,
    /// What went wrong first; once it is over, why it failed.
    error: Option<Error>,
    /// The thread has done all that it will do.
    over: bool,
}

impl<S: Side> Public<S> {
    fn enter(&mut self, state: S) {
        self.state = state;
        self.stats.state = state.into();
    }
}

/// Tells everybody who waits that the thread has done all, when it is dropped.
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
    /// Of a migration that has not begun.
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
                error: None,
                over: false,
            }),
            ended: Condvar::new(),
            thread: Mutex::new(None),
            claim: Mutex::new(None),
        })
    }

    /// Tells this migration from others, for as long as it is in one place (an `Arc`).
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

    /// Starts the thread that `spawn` makes, if none was started before and the guest can be had.
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
        // Whoever asks right after the start sees that it was started.
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

    /// The hand-over's side of the race: whether it comes before any cancel.
    pub(super) fn commit(&self) -> bool {
        self.gate
            .compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The hand-over had the gate and did not happen: a cancel finds it as if it had been first.
    pub(super) fn withdraw(&self) {
        self.gate.store(CANCELLED, Ordering::Release);
    }

    /// The cancel's side. Waits for the end, unless this thread is inside a callback.
    pub(super) fn cancel(&self, too_late: &str) -> Result<()> {
        let taken =
            self.gate
                .compare_exchange(OPEN, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        if taken == Err(COMMITTED) {
            return Err(Error::new(
                Kind::State,
                format!("too late to cancel: {too_late}"),
            ));
        }
        self.cancel.cancel();
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

    /// What went wrong first; once it is over, why it failed.
    pub(super) fn error(&self) -> Option<Error> {
        self.lock().error.clone()
    }

    /// Waits until the thread has done all, if there is one; whether it has.
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

    /// Whether the thread has done all that it will do.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Waits for the end of one whose state says that it comes now.
    pub(super) fn wait_over(&self) {
        if !inside(self.owner()) {
            self.wait_ended(None);
        }
    }

    /// The thread's last word.
    fn end(&self) {
        self.lock().over = true;
        self.ended.notify_all();
        self.notify.raise();
    }

    /// Renews the figures, and tells the VMM to look.
    pub(super) fn publish(&self, stats: &Stats) {
        {
            let mut public = self.lock();
            public.stats = Stats {
                state: public.stats.state,
                error: public.stats.error,
                ..*stats
            };
        }
        self.notify.raise();
    }

    /// Changes a figure when the thread has done all.
    pub(super) fn amend(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.lock().stats);
    }

    /// A state begins; `error` is the first thing that went wrong, if anything did. The guest
    /// follows first: whoever hears of the state may begin what the state allows. Waits for kicks
    /// where the guest is paused in the state.
    pub(super) fn enter(&self, state: S, error: Option<Error>) {
        self.settle(state);
        self.show(state, state.verdict(error));
    }

    /// What a state means for the guest is so from now on.
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

    /// Goes from the state to what `step` makes of it, if it makes anything. The error stays.
    pub(super) fn go<R>(&self, step: impl FnOnce(S) -> Result<(S, R)>) -> Result<R> {
        let mut public = self.lock();
        let (state, result) = step(public.state)?;
        public.enter(state);
        Ok(result)
    }

    /// Where it is.
    pub(super) fn state(&self) -> S {
        self.lock().state
    }

    /// The figures as they are now.
    pub(super) fn stats(&self) -> Stats {
        self.lock().stats
    }

    /// The same as JSON.
    pub(super) fn stats_json(&self) -> Result<String> {
        self.stats().to_json()
    }

    /// Whether this thread is inside one of the migration's callbacks.
    pub(super) fn in_callback(&self) -> bool {
        inside(self.owner())
    }

    /// Cancels what is going on and joins the thread: for whoever drops the VMM's object.
    pub(super) fn shut_down(&self) {
        let _ = self.cancel("");
        let thread = self.thread().take();
        if let Some(thread) = thread {
            if !inside(self.owner()) {
                let _ = thread.join();
            }
        }
    }
}
