//! The newest measurements of one thing, and their median: one that stalled or burst changes nothing.
//! Pure.

use std::cmp::Ordering;
use std::collections::VecDeque;

/// The newest `N` measurements.
#[derive(Debug, Clone)]
pub(in crate::migrate) struct Recent<T, const N: usize>(VecDeque<T>);

impl<T, const N: usize> Default for Recent<T, N> {
    fn default() -> Self {
        Recent(VecDeque::new())
    }
}

impl<T: Copy, const N: usize> Recent<T, N> {
    /// Records a measurement. The oldest one is forgotten when there are more than `N`.
    pub(in crate::migrate) fn push(&mut self, measured: T) {
        if self.0.len() == N {
            self.0.pop_front();
        }
        self.0.push_back(measured);
    }

    /// How many measurements there are.
    pub(in crate::migrate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The median of the newest `count`, in the order of `compare`: the lower one of the two in the
    /// middle. `None` before the first measurement.
    pub(in crate::migrate) fn median_of(
        &self,
        count: usize,
        compare: impl FnMut(&T, &T) -> Ordering,
    ) -> Option<T> {
        let mut newest: Vec<T> = self.0.iter().rev().take(count).copied().collect();
        newest.sort_unstable_by(compare);
        newest.get(newest.len().checked_sub(1)? / 2).copied()
    }
}

impl<T: Copy + Ord, const N: usize> Recent<T, N> {
    /// The median of all measurements, as [`Recent::median_of`].
    pub(in crate::migrate) fn median(&self) -> Option<T> {
        self.median_of(N, T::cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_newest_and_the_lower_of_two() {
        let mut recent = Recent::<u32, 3>::default();
        let medians = [9, 1, 5, 7, 2].map(|measured| {
            recent.push(measured);
            (recent.len(), recent.median(), recent.median_of(1, u32::cmp))
        });
        let expected = [(1, 9, 9), (2, 1, 1), (3, 5, 5), (3, 5, 7), (3, 5, 2)];
        assert_eq!(
            medians,
            expected.map(|(len, all, one)| (len, Some(all), Some(one)))
        );
        assert_eq!(Recent::<u32, 3>::default().median(), None);
    }
}
