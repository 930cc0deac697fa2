//! What the VMM's threads ask of a migration while it runs: another policy, another downtime limit,
//! the switchover now. The migration's thread reads the orders before each question to the decider.

use crate::migrate::steering::policies::Policy;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The orders as of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) policy: Policy,
    pub(super) limit: Duration,
    /// The guest is to be paused as soon as possible, however long it stands still.
    pub(super) now: bool,
    /// The guest is to be paused as soon as possible, and its pages are to follow it.
    pub(super) postcopy: bool,
}

/// The orders, which any thread may change.
#[derive(Debug)]
pub(super) struct Orders(Mutex<Order>);

impl Orders {
    pub(super) fn new(policy: Policy, limit: Duration) -> Self {
        Orders(Mutex::new(Order {
            policy,
            limit,
            now: false,
            postcopy: false,
        }))
    }

    /// Held for a moment only.
    pub(super) fn lock(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
