//! Whether delta pays on a lane, and when it is tried again. Pure.
//!
//! A delta costs the source a copy and a comparison of the page, and each side a checksum. It pays
//! when pages come back with small changes. The work is wasted on every page when pages change as a
//! whole. It is wasted too when so many pages are written that none is still in the cache when it
//! comes back.
//!
//! The unit of judgement is a pass, because no page comes back within one. A pass is *poor* when
//! delta saved less than a sixteenth of the bytes of its pages, and *rich* from an eighth on. In
//! the first pass that re-sends pages the cache is empty, and the second may be poor by chance. So
//! only after [`POOR_PASSES`] poor passes in a row delta is switched off.
//!
//! While delta is off, a 64th of the cache's sets stays in use, with a 64th of the pages. So these
//! sets show what the whole cache would save, at a 64th of the work. After [`RICH_PASSES`] rich
//! passes in a row delta is switched on again.

use crate::units::PAGE_SIZE;

/// The number of poor passes in a row that switch delta off. The first of them fills the cache.
const POOR_PASSES: u32 = 3;
/// The number of rich passes in a row that switch delta on.
const RICH_PASSES: u32 = 2;
/// When fewer pages were looked up in a pass, the pass is not judged.
const LEAST_PAGES: u64 = 32;
/// A pass is poor when less than one byte in this many was saved.
const POOR: u64 = 16;
/// A pass is rich when at least one byte in this many was saved.
const RICH: u64 = 8;

/// The effect of delta in a pass, over the pages that were looked up in the cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::migrate) struct DeltaPass {
    /// Re-sent pages that were looked up.
    pub(in crate::migrate) pages: u64,
    /// By how many bytes the encodings are shorter than the pages.
    pub(in crate::migrate) saved: u64,
}

/// Decides whether delta is on. Each lane has one.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::migrate) struct DeltaPays {
    off: bool,
    /// The number of passes in a row that spoke against the present setting.
    against: u32,
}

impl DeltaPays {
    /// Whether delta is on.
    pub(in crate::migrate) fn is_on(&self) -> bool {
        !self.off
    }

    /// Judges a pass that has ended.
    pub(in crate::migrate) fn passed(&mut self, pass: &DeltaPass) {
        if pass.pages < LEAST_PAGES {
            return;
        }
        let bytes = pass.pages * PAGE_SIZE;
        let (speaks_against, most) = match self.off {
            false => (pass.saved < bytes / POOR, POOR_PASSES),
            true => (pass.saved >= bytes / RICH, RICH_PASSES),
        };
        self.against = match speaks_against {
            true => self.against + 1,
            false => 0,
        };
        if self.against == most {
            *self = DeltaPays {
                off: !self.off,
                against: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass of `pages` pages in which delta saved `saved` thousandths of their bytes.
    fn pass(pages: u64, saved: u64) -> DeltaPass {
        DeltaPass {
            pages,
            saved: pages * PAGE_SIZE * saved / 1000,
        }
    }

    /// Whether delta is on after each pass of 1,000 pages.
    fn run(saved: &[u64]) -> Vec<bool> {
        let mut pays = DeltaPays::default();
        assert!(pays.is_on());
        let each = saved.iter().map(|saved| {
            pays.passed(&pass(1000, *saved));
            pays.is_on()
        });
        each.collect()
    }

    #[test]
    fn delta_goes_off_after_three_poor_passes_and_on_again_after_two_rich_ones() {
        const ON: bool = true;
        const OFF: bool = false;
        let table: &[(&[u64], &[bool])] = &[
            // Nothing is ever saved.
            (&[0, 0, 0, 0, 0], &[ON, ON, OFF, OFF, OFF]),
            // The first pass fills the cache. After that pages come back with small changes.
            (&[0, 900, 900, 900, 900], &[ON; 5]),
            // Rich passes come between the poor ones.
            (&[0, 0, 900, 0, 0, 900, 0, 0], &[ON; 8]),
            // Between the two thresholds the setting stays.
            (
                &[0, 0, 0, 100, 100, 100, 100],
                &[ON, ON, OFF, OFF, OFF, OFF, OFF],
            ),
            (&[0, 100, 100, 100, 100, 100], &[ON; 6]),
            // Two rich passes in a row switch delta on again.
            (
                &[0, 0, 0, 200, 0, 200, 200],
                &[ON, ON, OFF, OFF, OFF, OFF, ON],
            ),
            // Delta is switched off once more: the rest of the cache may be empty by then.
            (
                &[0, 0, 0, 200, 200, 0, 0, 0, 0],
                &[ON, ON, OFF, OFF, ON, ON, ON, OFF, OFF],
            ),
        ];
        for (saved, expected) in table {
            assert_eq!(run(saved), *expected, "{saved:?}");
        }
    }

    #[test]
    fn the_thresholds_are_a_sixteenth_and_an_eighth() {
        let mut pays = DeltaPays::default();
        let bytes = 64 * PAGE_SIZE;
        let pass = |saved| DeltaPass { pages: 64, saved };
        (0..9).for_each(|_| pays.passed(&pass(bytes / 16)));
        assert!(pays.is_on());
        (0..3).for_each(|_| pays.passed(&pass(bytes / 16 - 1)));
        assert!(!pays.is_on());
        (0..9).for_each(|_| pays.passed(&pass(bytes / 8 - 1)));
        assert!(!pays.is_on());
        (0..2).for_each(|_| pays.passed(&pass(bytes / 8)));
        assert!(pays.is_on());
    }

    #[test]
    fn passes_of_a_few_pages_decide_nothing() {
        let mut pays = DeltaPays::default();
        for _ in 0..100 {
            pays.passed(&pass(LEAST_PAGES - 1, 0));
        }
        assert!(pays.is_on());
        // Passes that are not judged do not interrupt a row either.
        for _ in 0..3 {
            pays.passed(&pass(LEAST_PAGES, 0));
            pays.passed(&pass(1, 1000));
        }
        assert!(!pays.is_on());
    }
}
