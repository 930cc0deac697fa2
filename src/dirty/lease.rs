//! A consumer's place in its tracker. The consumer and each of its [`Taken`]s hold it, and the last
//! of them to go gives it up.
//!
//! Example: a migration ends, and its consumer is dropped while pages that it sent are still in an
//! account. When the account is dropped these pages return to pending. Until then the place must
//! not belong to another consumer.
//!
//! [`Taken`]: super::taken::Taken

use super::figures::Published;
use super::pending::Seat;
use super::tracker::Tracker;
use crate::memory::{Holder, PageRun};
use std::sync::Arc;

/// See the file's description.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) tracker: Arc<Tracker>,
    pub(super) seat: Seat,
    /// See [`super::consumer::Consumer::number`].
    pub(super) number: u64,
    pub(super) published: Arc<Published>,
    /// Who holds the taken pages, and how that ends.
    pub(super) holder: Arc<Holder>,
}

impl Lease {
    /// Makes pages pending again. Pages of blocks that are gone are ignored. Allocates nothing.
    pub(super) fn put_back(&self, runs: impl Iterator<Item = PageRun>) {
        let mut inner = self.tracker.lock();
        for run in runs {
            inner.put_back(self.seat, run.block(), run.first(), run.count());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut guard = self.tracker.lock();
        let inner = &mut *guard;
        if let Some(member) = inner.members.get_mut(self.seat) {
            *member = None;
        }
        while inner.members.last().is_some_and(Option::is_none) {
            inner.members.pop();
        }
        for state in inner.all_blocks() {
            state.drop_set(self.seat);
        }
        inner.stop_logs_if_unused();
        inner.count_slowly();
    }
}
