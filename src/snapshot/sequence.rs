//! Faults that come one behind the other: how many pages behind the last one are worth having before
//! somebody asks for them. Pure.

use std::ops::RangeInclusive;

/// Pages behind a fault that are had with it: few at first, twice as many each time.
const AHEAD: RangeInclusive<u64> = 8..=256;

/// The last fault of a block, and what was had behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence {
    /// A fault that lies so many pages farther on goes on with the sequence.
    near: u64,
    end: u64,
    ahead: u64,
}

impl Sequence {
    /// Ordinary reads, which leave out a few pages.
    pub(super) const NEAR: u64 = *AHEAD.start();

    pub(super) fn new(near: u64) -> Sequence {
        Sequence {
            near,
            end: 0,
            ahead: 0,
        }
    }

    /// Whether a page lies behind the last ones.
    pub(super) fn goes_on(&self, page: u64) -> bool {
        (self.end..=self.end + self.near).contains(&page)
    }

    /// How many pages behind a fault that begins at `page` are worth having.
    pub(super) fn ahead_of(&self, page: u64) -> u64 {
        match self.goes_on(page) {
            true => (self.ahead * 2).clamp(*AHEAD.start(), *AHEAD.end()),
            false => 0,
        }
    }

    /// All pages before `end` were had, the last `ahead` of them unasked.
    pub(super) fn had(&mut self, end: u64, ahead: u64) {
        (self.end, self.ahead) = (end, ahead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_behind_the_last_one_gets_twice_as_many_pages_and_any_other_gets_none() {
        let mut sequence = Sequence::new(Sequence::NEAR);
        assert_eq!(sequence.ahead_of(1000), 0);
        sequence.had(1001, 0);
        let mut at = 1001;
        for expected in [8, 16, 32, 64, 128, 256, 256] {
            at += Sequence::NEAR;
            let ahead = sequence.ahead_of(at);
            assert_eq!(ahead, expected);
            at += 1 + ahead;
            sequence.had(at, ahead);
        }
        assert_eq!(sequence.ahead_of(at + Sequence::NEAR + 1), 0);
        assert_eq!(sequence.ahead_of(at - 1), 0);
    }
}
