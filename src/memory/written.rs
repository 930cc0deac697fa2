//! Who is told of pages that count as written although no log saw the write: a page that the guest
//! takes out of its balloon again, a page that arrived from a source, a poisoned page that has
//! contents again.
//!
//! Each tracker adds itself, and marks the pages for all its consumers.

use super::block::BlockId;
use crate::runtime::snapshot::Snapshot;
use crate::units::Pages;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// Somebody who has to know of pages that count as written: a tracker's marks.
pub trait WrittenObserver: Send + Sync {
    /// Pages of a block count as written. Any thread, after the write; must not wait.
    fn written(&self, block: BlockId, first: Pages, count: Pages);
}

/// Those of one guest.
#[derive(Default)]
pub(super) struct WrittenObservers(Snapshot<Vec<Weak<dyn WrittenObserver>>>);

impl WrittenObservers {
    /// One caller at a time: the map's lock.
    pub(super) fn add(&self, observer: Weak<dyn WrittenObserver>) {
        let mut all = self.0.load().to_vec();
        all.retain(|o| o.strong_count() > 0);
        all.push(observer);
        self.0.replace(Arc::new(all));
    }

    /// Whether nobody listens.
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
