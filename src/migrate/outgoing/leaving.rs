//! The guest that leaves: what the VMM's object and the migration's thread share of a source, beside
//! what both sides share ([`Migration`](crate::migrate::common::Migration)).

use super::decisions::Decisions;
use super::foresight::Foresight;
use super::orders::Orders;
use crate::channel::Pacer;
use crate::dirty::consumer::Consumer;
use crate::dirty::tracker::Tracker;
use crate::migrate::steering::standstill::Standstill;
use crate::migrate::switchover::source::AfterHandOver;
use crate::migrate::Blockers;
use crate::runtime::Cancel;
use crate::vmm::held::Held;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The guest that leaves, and what its migration needs.
pub(super) struct Leaving {
    pub(super) tracker: Arc<Tracker>,
    pub(super) blockers: Blockers,
    /// Holds all lanes together to the cap on the bandwidth.
    pub(super) pacer: Arc<Pacer>,
    /// What the VMM's threads ask of the running migration.
    pub(super) orders: Orders,
    /// When `pause` was called.
    pub(super) paused_at: Mutex<Option<Instant>>,
    /// A consumer of the caller's, which the migration uses instead of one of its own. Nobody else
    /// takes pages from it until the migration is over.
    pub(super) lent: Mutex<Option<Arc<Consumer>>>,
    /// What forecasts are made of.
    pub(super) foresight: Foresight,
    /// Whether the link stands still in the middle of a pass.
    pub(super) standstill: Mutex<Standstill>,
    /// Ends the comparison of a verified migration, whose guest runs at the destination.
    pub(super) comparison: Cancel,
    /// The guest's devices whose state is streamed.
    pub(super) devices: Held,
    /// What became of memory that the destination has in common with this side.
    pub(super) shared: Shared,
    /// What the VMM decides about an interrupted migration.
    pub(super) decisions: Decisions,
}

/// What is known of memory that was handed over by descriptor: both processes have it.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Some memory was.
    is: AtomicBool,
    /// The destination has said that it never ran the guest and never will.
    never_ran: AtomicBool,
}

impl Leaving {
    /// How long the guest has stood still, when it was paused.
    pub(super) fn stood(&self) -> Option<Duration> {
        let paused_at = *self.paused_at();
        paused_at.map(|at| at.elapsed())
    }

    /// The destination has some of the guest's memory in common with this side.
    pub(super) fn memory_is_shared(&self) {
        self.shared.is.store(true, Ordering::SeqCst);
        self.tracker.memory().ownership().memory_is_shared(true);
    }

    /// The destination has said that it never ran the guest and never will.
    pub(super) fn destination_never_ran(&self) {
        self.shared.never_ran.store(true, Ordering::SeqCst);
        self.tracker.memory().ownership().memory_is_shared(false);
    }

    /// What decides whether a guest that was handed over without an answer may run on here.
    pub(super) fn after_hand_over(&self) -> AfterHandOver {
        match (
            self.shared.is.load(Ordering::SeqCst),
            self.shared.never_ran.load(Ordering::SeqCst),
        ) {
            (false, _) => AfterHandOver::OwnMemory,
            (true, true) => AfterHandOver::NeverRan,
            (true, false) => AfterHandOver::MayHaveRan,
        }
    }

    pub(super) fn paused_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paused_at.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn standstill(&self) -> MutexGuard<'_, Standstill> {
        self.standstill.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn lent(&self) -> MutexGuard<'_, Option<Arc<Consumer>>> {
        self.lent.lock().unwrap_or_else(|e| e.into_inner())
    }
}
