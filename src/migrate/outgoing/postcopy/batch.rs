//! How many pages a bulk lane takes at once behind the switch to postcopy. Pure.
//!
//! A page that somebody comes to wait for while a bulk lane has it in hand arrives behind the rest of
//! that lane's batch. Example: four lanes share a link of 1 MiB/s. Batches of 128 pages take two seconds
//! each, and so would the page. So a batch is what a lane sends in some 5 ms, by the time that the batch
//! before has taken: the cap, the link and the number of lanes are all in that time.

use crate::units::Pages;
use std::time::Duration;

/// The time of a batch.
const TIME: Duration = Duration::from_millis(5);
/// The first batch: of a capped link one may take long, and nothing is known yet.
const FIRST: Pages = Pages(16);
/// Half a mebibyte: what larger batches would save is little.
const MOST: Pages = Pages(128);

/// See the file's description.
#[derive(Debug)]
pub(super) struct Batch(Pages);

impl Default for Batch {
    fn default() -> Batch {
        Batch(FIRST)
    }
}

impl Batch {
    /// The pages of the next batch.
    pub(super) fn pages(&self) -> Pages {
        self.0
    }

    /// A lane has sent a batch with `data` pages of contents in `time`.
    pub(super) fn sent(&mut self, data: Pages, time: Duration) {
        // Pages of zeros say nothing about the link.
        if data == Pages(0) {
            return;
        }
        let each = time.as_secs_f64() / data.0 as f64;
        let fit = TIME.as_secs_f64() / each.max(1e-9);
        // A batch that found room in a buffer shows little: twice as much at most.
        let most = MOST.min(self.0 + self.0);
        self.0 = Pages(fit as u64).clamp(Pages(1), most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that takes so long for a page.
    fn settled(page: Duration) -> Pages {
        let mut batch = Batch::default();
        for _ in 0..20 {
            batch.sent(batch.pages(), page * batch.pages().0 as u32);
        }
        batch.pages()
    }

    #[test]
    fn a_batch_takes_about_five_milliseconds_and_has_a_page_at_least() {
        for (page, expected) in [
            (1, 128),
            (50, 100),
            (160, 31),
            (1000, 5),
            (4000, 1),
            (90_000, 1),
        ] {
            assert_eq!(
                settled(Duration::from_micros(page)),
                Pages(expected),
                "{page} us"
            );
        }
    }

    #[test]
    fn batches_grow_step_by_step_and_shrink_at_once() {
        let mut batch = Batch::default();
        batch.sent(FIRST, Duration::ZERO);
        assert_eq!(batch.pages(), Pages(32));
        batch.sent(Pages(32), Duration::from_millis(160));
        assert_eq!(batch.pages(), Pages(1));
        batch.sent(Pages(0), Duration::ZERO);
        assert_eq!(batch.pages(), Pages(1));
        batch.sent(Pages(1), Duration::from_millis(1));
        assert_eq!(batch.pages(), Pages(2));
    }
}
