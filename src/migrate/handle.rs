//! What the VMM holds of a migration while a thread of ours works on it, the same on both
//! sides: the figures, the gate that a cancel and a hand-over compete for, waiting for the end.

use super::callbacks::{check_not_inside, inside};
use super::report::Stats;
use super::switchover::Machine;
use crate::error::{Error, Kind, Result};
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
pub(super) struct Public<S> {
    pub(super) state: S,
    pub(super) stats: Stats,
    /// Why it failed.
    pub(super) error: Option<Error>,
    /// The thread has done all that it will do.
    over: bool,
}

/// Tells everybody who waits that the thread has done all, when it is dropped.
pub(super) struct Ending<'a, S: Machine>(pub(super) &'a Handle<S>);

impl<S: Machine> Drop for Ending<'_, S> {
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
}

impl<S: Machine> Handle<S> {
    /// Of a migration that has not begun.
    pub(super) fn new() -> Result<Self> {
        Ok(Handle {
            cancel: Cancel::new()?,
            notify: Notify::new()?,
            gate: AtomicU8::new(OPEN),
            public: Mutex::new(Public {
                state: S::IDLE,
                stats: Stats {
                    phase: S::IDLE.number(),
                    ..Stats::default()
                },
                error: None,
                over: false,
            }),
            ended: Condvar::new(),
            thread: Mutex::new(None),
        })
    }

    /// Tells this migration from others, for as long as it is in one place (an `Arc`).
    pub(super) fn owner(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Public<S>> {
        self.public.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn thread(&self) -> MutexGuard<'_, Option<Join<()>>> {
        self.thread.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts the thread that `spawn` makes, if none was started before.
    pub(super) fn start(&self, spawn: impl FnOnce() -> Result<Join<()>>) -> Result<()> {
        check_not_inside(self.owner(), "start")?;
        let mut thread = self.thread();
        if thread.is_some() || self.lock().state != S::IDLE {
            return Err(Error::new(
                Kind::State,
                "this migration was started before; make a new one",
            ));
        }
        self.cancel.check("starting a migration")?;
        *thread = Some(spawn()?);
        Ok(())
    }

    /// The hand-over's side of the race: whether it comes before any cancel.
    pub(super) fn commit(&self) -> bool {
        self.gate
            .compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
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
        let public = self.lock();
        match &public.error {
            _ if public.state == S::SUCCESS => Ok(()),
            Some(error) => Err(error.clone()),
            None => Err(Error::new(
                Kind::Internal,
                format!(
                    "the migration ended `{}` for no known reason",
                    public.state.name()
                ),
            )),
        }
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

    /// Renews what the VMM sees, and tells it to look.
    pub(super) fn publish(&self, stats: &Stats, error: &Option<Error>) {
        {
            let mut public = self.lock();
            public.stats = *stats;
            public.error = error.clone();
        }
        self.notify.raise();
    }

    /// A state begins; `error` is the first thing that went wrong, if anything did.
    pub(super) fn enter(&self, state: S, error: Option<Error>) {
        let mut public = self.lock();
        public.state = state;
        public.stats.phase = state.number();
        public.error = error;
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
        let (stats, state) = {
            let public = self.lock();
            (public.stats, public.state)
        };
        stats.to_json(state.name())
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
