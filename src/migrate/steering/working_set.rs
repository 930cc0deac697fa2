//! How many distinct pages a guest writes in a given time: its working-set curve. Pure.
//!
//! Example: a guest writes 100,000 pages a second, again and again to the same 150,000. It dirties
//! 50,000 pages in half a second and 100,000 in a second, but only 150,000 in ten. A dirty rate
//! alone says a million. What a pass leaves behind depends on the pass's length, so a forecast needs
//! the curve and not a rate.
//!
//! The curve rises and gets flatter. Measurements are points of it: a dirty-rate probe gives two,
//! each sync of a migration gives one. **The newest point is believed.** Older points that it makes
//! impossible are moved just as far as it takes: a guest that dirties 60,000 pages in two seconds
//! does not dirty 80,000 in one.
//!
//! **Syncs in the middle of a pass bound it.** Such a sync finds the pages that were written since the
//! sync before it, wherever they lie. 300 pages in a tenth of a second mean at most 3,000 in a whole
//! one, so a point above that is too high. The largest of all such bounds counts, because writes come
//! in bursts.
//!
//! A curve of straight pieces is the sum of [`Pool`]s: sets of pages that are written in turn, each
//! at its own rate. So the curve also tells which pages will be dirty again after a pass.

use std::time::Duration;

/// Points closer together than this factor, in time, are one point.
const SAME: f64 = 1.3;
/// Each time that the window doubles beyond the last point, the curve gets flatter by this factor at
/// least. A guest that was seen for too short a time shows a straight line. Hardly any guest goes on
/// to new pages all the time.
const FLATTER: f64 = 0.4;
/// How many times the last window doubles before nothing is assumed any more.
const BEYOND: u32 = 8;
/// The most points.
const POINTS: usize = 12;

/// Pages that a guest writes in turn: `rate` of them a second, and the first again after the last.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Pool {
    /// How many pages.
    pub pages: f64,
    /// Pages a second.
    pub rate: f64,
}

impl Pool {
    /// Distinct pages written in so many seconds.
    pub fn distinct(&self, seconds: f64) -> f64 {
        (self.rate * seconds).min(self.pages)
    }
}

/// A guest's working-set curve. See the file's description.
///
/// ```
/// use brant::migrate::steering::working_set::WorkingSet;
/// use std::time::Duration;
///
/// let mut curve = WorkingSet::default();
/// curve.observe(Duration::from_millis(500), 50_000.0);
/// curve.observe(Duration::from_secs(2), 150_000.0);
/// curve.observe(Duration::from_secs(10), 150_000.0);
/// assert_eq!(curve.distinct(0.25).round(), 25_000.0);
/// assert_eq!(curve.distinct(60.0).round(), 150_000.0);
/// ```
#[derive(Debug, Default, Clone, PartialEq)]
pub struct WorkingSet {
    /// Seconds and pages, by time.
    points: Vec<(f64, f64)>,
    /// The most pages that were written between two syncs, and the most in a second.
    bound: Option<(f64, f64)>,
}

impl WorkingSet {
    /// Records that `pages` distinct pages were written in `window`. Nonsense is ignored.
    pub fn observe(&mut self, window: Duration, pages: f64) {
        let window = window.as_secs_f64();
        if window <= 0.0 || !pages.is_finite() || pages < 0.0 {
            return;
        }
        // Bursts make single measurements differ, so a point moves halfway to the new one.
        let near = |at: &f64| (at / window).max(window / at) < SAME;
        let old = self.points.iter().copied().find(|(at, _)| near(at));
        self.points.retain(|(at, _)| !near(at));
        // It stays at its place: windows that become longer step by step leave points behind.
        let (window, pages) = old.map_or((window, pages), |(at, old)| {
            (at, (pages * (at / window).sqrt() + old) / 2.0)
        });
        for (at, old) in &mut self.points {
            let straight = pages * *at / window;
            let (least, most) = (pages.min(straight), pages.max(straight));
            *old = old.clamp(least, most);
        }
        let place = self.points.partition_point(|(at, _)| *at < window);
        self.points.insert(place, (window, pages));
        if self.points.len() > POINTS {
            // The curve is longest known at its ends.
            self.points.remove(if place > 1 { 1 } else { POINTS - 1 });
        }
    }

    /// Records that at most `pages` distinct pages were written in the `window` that has just passed.
    /// Nonsense is ignored.
    pub fn bound(&mut self, window: Duration, pages: f64) {
        let window = window.as_secs_f64();
        if window <= 0.0 || !pages.is_finite() || pages < 0.0 {
            return;
        }
        let (most, rate) = self.bound.unwrap_or_default();
        self.bound = Some((most.max(pages), rate.max(pages / window)));
    }

    /// The most pages that can be written in so many seconds, by the bounds.
    fn most(&self, seconds: f64) -> f64 {
        self.bound
            .map_or(f64::INFINITY, |(most, rate)| most.max(rate * seconds))
    }

    /// The guest's speed has changed to `factor` times what it was, by a throttle. A guest at half
    /// its speed takes twice the time for the same pages. A factor that is no positive number is
    /// ignored.
    pub fn change_speed(&mut self, factor: f64) {
        if factor.is_finite() && factor > 0.0 {
            self.points.iter_mut().for_each(|(at, _)| *at /= factor);
            self.bound.iter_mut().for_each(|(_, rate)| *rate *= factor);
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Distinct pages written in so many seconds. 0 when nothing is known. Beyond the last point the
    /// curve gets flatter as it did before.
    pub fn distinct(&self, seconds: f64) -> f64 {
        let pools = self.pools(f64::INFINITY);
        pools.iter().map(|pool| pool.distinct(seconds)).sum()
    }

    /// The pools whose sum is the curve, for a guest of `total` pages. The last one may be as large
    /// as what the others leave.
    pub fn pools(&self, total: f64) -> Vec<Pool> {
        let mut corners: Vec<(f64, f64)> = vec![(0.0, 0.0)];
        for &(at, pages) in &self.points {
            let pages = pages.min(self.most(at));
            let pages = pages.min(total).max(corners[corners.len() - 1].1);
            // The curve gets flatter: a corner below the line to the next one is none.
            while let [.., (a, below), (b, corner)] = corners[..] {
                if (corner - below) * (at - a) > (pages - below) * (b - a) {
                    break;
                }
                corners.pop();
            }
            corners.push((at, pages));
        }
        let slope = |a: (f64, f64), b: (f64, f64)| (b.1 - a.1) / (b.0 - a.0);
        // Beyond the last point the curve gets flatter as it did before it, and by half at least.
        if let [.., b, c] = corners[..] {
            let mut next = slope(b, c);
            let flatter = match corners[..] {
                [.., a, b, _] => (next / slope(a, b)).min(FLATTER),
                _ => FLATTER,
            };
            let mut last = c;
            for _ in 0..BEYOND {
                next *= flatter;
                last = (last.0 * 2.0, (last.1 + next * last.0).min(total));
                corners.push(last);
            }
        }
        let slopes: Vec<f64> = corners
            .windows(2)
            .map(|pair| slope(pair[0], pair[1]))
            .collect();
        let mut pools = Vec::new();
        let mut left = total;
        for (i, slope) in slopes.iter().enumerate() {
            let last = i + 1 == slopes.len();
            let rate = slope - slopes.get(i + 1).unwrap_or(&0.0);
            let pages = match last {
                true => left,
                false => (rate * corners[i + 1].0).min(left),
            };
            if rate > 0.0 && pages > 0.0 {
                pools.push(Pool { pages, rate });
                left -= pages;
            }
        }
        pools
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn curve(points: &[(f64, f64)]) -> WorkingSet {
        let mut curve = WorkingSet::default();
        for (window, pages) in points {
            curve.observe(Duration::from_secs_f64(*window), *pages);
        }
        curve
    }

    #[test]
    fn a_guest_that_writes_the_same_pages_again_does_not_dirty_more_in_more_time() {
        let curve = curve(&[(0.5, 50e3), (1.5, 150e3), (10.0, 150e3)]);
        for (seconds, pages) in [
            (0.0, 0.0),
            (0.1, 10e3),
            (1.0, 100e3),
            (3.0, 150e3),
            (99.0, 150e3),
        ] {
            assert!((curve.distinct(seconds) - pages).abs() < 1.0, "{seconds}");
        }
        assert_eq!(curve.pools(1e9).len(), 1);
        assert_eq!(WorkingSet::default().distinct(1.0), 0.0);
    }

    #[test]
    fn the_newest_point_is_believed_and_makes_others_possible() {
        let mut curve = curve(&[(1.0, 80e3), (8.0, 400e3)]);
        // The guest became quiet.
        curve.observe(Duration::from_secs(2), 60e3);
        assert!(curve.distinct(1.0) <= 60e3 + 1.0);
        assert!((60e3..90e3).contains(&curve.distinct(2.0)));
        assert!(curve.distinct(8.0) <= 240e3 + 1.0);
        // And busy again: at least as much in more time.
        curve.observe(Duration::from_secs(4), 1e6);
        assert!(curve.distinct(8.0) >= 1e6);
        assert!(curve.distinct(1.0) >= 250e3 - 1.0);
    }

    #[test]
    fn a_guest_at_half_its_speed_takes_twice_the_time() {
        let mut curve = curve(&[(1.0, 10e3), (4.0, 20e3)]);
        let before = curve.distinct(3.0);
        curve.change_speed(0.5);
        assert!((curve.distinct(6.0) - before).abs() < 1.0);
        let slowed = curve.clone();
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            curve.change_speed(nonsense);
        }
        assert_eq!(curve, slowed);
    }

    #[test]
    fn what_syncs_found_written_bounds_the_curve_and_the_largest_bound_counts() {
        let mut curve = curve(&[(0.5, 9e3), (2.0, 12e3)]);
        curve.bound(Duration::from_millis(100), 300.0);
        for (seconds, pages) in [(0.5, 1500.0), (2.0, 6000.0)] {
            let found = curve.distinct(seconds);
            assert!((found - pages).abs() < 1.0, "{seconds} s: {found}");
        }
        // In less time than the window, as many pages may be written as in the window.
        let mut early = super::tests::curve(&[(0.05, 9e3)]);
        early.bound(Duration::from_millis(100), 300.0);
        assert!((early.distinct(0.05) - 300.0).abs() < 1.0);
        // A burst, and a quiet time after it.
        curve.bound(Duration::from_millis(100), 500.0);
        curve.bound(Duration::from_millis(100), 0.0);
        assert!((curve.distinct(2.0) - 10e3).abs() < 1.0);
        // Slowed to a half, the guest writes half as much in the same time.
        curve.change_speed(0.5);
        assert!((curve.distinct(2.0) - 5e3).abs() < 1.0);
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut curve = curve(&[(1.0, 1e3)]);
        let before = curve.clone();
        curve.observe(Duration::ZERO, 5.0);
        curve.observe(Duration::from_secs(1), f64::NAN);
        curve.observe(Duration::from_secs(1), -1.0);
        assert_eq!(curve, before);
    }

    proptest! {
        #[test]
        fn the_curve_rises_gets_flatter_and_is_the_sum_of_its_pools(
            points in proptest::collection::vec((0.001f64..1e3, 0.0f64..1e9), 1..40),
            bounds in proptest::collection::vec((0.001f64..1e3, 0.0f64..1e9), 0..40),
            total in 1e3f64..1e10,
        ) {
            let mut curve = curve(&points);
            for (window, pages) in bounds {
                curve.bound(Duration::from_secs_f64(window), pages);
            }
            let pools = curve.pools(total);
            prop_assert!(pools.len() <= POINTS + BEYOND as usize);
            let all: f64 = pools.iter().map(|pool| pool.pages).sum();
            prop_assert!(all <= total * 1.000_001);
            prop_assert!(pools.iter().all(|pool| pool.rate > 0.0 && pool.pages > 0.0));
            let (mut last, mut slope) = (0.0, f64::INFINITY);
            for i in 1..200 {
                let pages = curve.distinct(f64::from(i) * 5.0);
                prop_assert!(pages >= last - 1e-3);
                prop_assert!(pages - last <= slope * 1.000_001 + 1e-3);
                (last, slope) = (pages, pages - last);
            }
        }
    }
}
