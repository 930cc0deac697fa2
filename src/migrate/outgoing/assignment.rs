//! Which lane a stretch belongs to. Pure.
//!
//! The records of one lane are applied in order; the records of two lanes are applied in any order.
//! So a page keeps its lane for the whole session. The unit of assignment is a stretch. Where the
//! block's page size is larger, the unit is one page of the block, so that the destination can make
//! such a page once.
//!
//! Example of a bad assignment: unit `u` goes to lane `u % lanes`. A guest of four lanes that
//! writes to every fourth stretch then keeps one lane busy and three idle. So units are dealt in
//! rounds: the next `lanes` units go to different lanes. The number of the round determines the
//! first lane of the round.

use crate::memory::{Block, BlockId, PageRun};
use crate::units::STRETCH_PAGES;

/// The assignment of stretches to a number of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assignment {
    lanes: u64,
}

impl Assignment {
    /// The assignment to `lanes` lanes; `lanes` is at least one.
    pub(super) fn to(lanes: usize) -> Assignment {
        Assignment {
            lanes: lanes.max(1) as u64,
        }
    }

    /// The lane of a run of `block`.
    pub(super) fn lane(self, block: &Block, run: &PageRun) -> usize {
        let unit = block.page_size().pages_down().0.max(STRETCH_PAGES);
        self.of(run.block(), run.first().0 / unit)
    }

    fn of(self, block: BlockId, unit: u64) -> usize {
        if self.lanes == 1 {
            return 0;
        }
        let (round, place) = (unit / self.lanes, unit % self.lanes);
        // The block's number takes part, so that small blocks go to different lanes too.
        let begins = mixed(round).wrapping_add(block.0.into()) % self.lanes;
        ((place + begins) % self.lanes) as usize
    }
}

/// A number whose bits all depend on all bits of `n`: the last step of splitmix64.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn neighbours_go_to_different_lanes_and_each_lane_has_its_share(
            lanes in 1usize..=64,
            block in 0u32..5000,
            round in 0u64..1 << 40,
        ) {
            let assignment = Assignment::to(lanes);
            let first = round * lanes as u64;
            let mut dealt = vec![0; lanes];
            for unit in first..first + lanes as u64 {
                let lane = assignment.of(BlockId(block), unit);
                prop_assert_eq!(lane, assignment.of(BlockId(block), unit));
                dealt[lane] += 1;
            }
            prop_assert_eq!(dealt, vec![1; lanes]);
        }

        #[test]
        fn units_that_lie_apart_evenly_are_spread_too(
            lanes in 2usize..=16,
            block in 0u32..100,
            apart in 1u64..64,
        ) {
            let assignment = Assignment::to(lanes);
            let mut dealt = vec![0u64; lanes];
            let units = 400 * lanes as u64;
            for unit in 0..units {
                dealt[assignment.of(BlockId(block), unit * apart)] += 1;
            }
            let even = units / lanes as u64;
            for count in &dealt {
                prop_assert!((even / 2..even * 2).contains(count), "{dealt:?}");
            }
        }
    }
}
