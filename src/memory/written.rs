//! The observers of pages that count as written although no log saw a write: a page by which the
//! guest deflates its balloon, a page that arrived from a source, a poisoned page that has contents
//! again.
//!
//! Each tracker is such an observer, and marks the pages for all its consumers.

use super::block::BlockId;
use crate::runtime::snapshot::Snapshot;
use crate::units::Pages;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// An observer of pages that count as written: a tracker's marks.
pub trait WrittenObserver: Send + Sync {
    /// Told that pages of a block count as written. Called on any thread, after the write; must not
    /// wait.
    fn written(&self, block: BlockId, first: Pages, count: Pages);
}

/// The observers of one guest.
#[derive(Default)]
pub(super) struct WrittenObservers(Snapshot<Vec<Weak<dyn WrittenObserver>>>);

impl WrittenObservers {
    /// Called by one thread at a time, under the map's lock.
    pub(super) fn add(&self, observer: Weak<dyn WrittenObserver>) {
        let mut all = self.0.load().to_vec();
        all.retain(|o| o.strong_count() > 0);
        all.push(observer);
        self.0.replace(Arc::new(all));
    }

    /// Whether there is no observer.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load().iter().all(|o| o.strong_count() == 0)
    }

    pub(super) fn tell(&self, block: BlockId, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        for observer in self.0.load().iter().filter_map(Weak::upgrade) {
            observer.written(block, Pages(range.start), Pages(range.end - range.start));
        }
    }
}
