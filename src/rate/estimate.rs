//! What counted pages tell of a dirty rate, and how certain it is. Pure: no clock, no memory, no
//! log. The probe calls this file.
//!
//! A rate is the number of *distinct* pages written in the period, for each second. A page that is
//! written many times counts once, so the rate depends on the period. Over a short period it is
//! near the speed at which the guest writes. Over a long one it comes to the number of pages that
//! the guest uses. [`Rate::rewritten`] tells which of the two a measurement by log is near.

use crate::units::Pages;
use std::time::Duration;

/// 95 % of a normal distribution lie within this many standard deviations of the mean.
const Z: f64 = 1.959_963_984_540_054;

/// A measured dirty rate.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rate {
    /// The length of the measurement.
    pub period: Duration,
    /// Distinct pages written in the period: counted by log, or estimated by sampling.
    pub written: Pages,
    /// Distinct pages written in a second.
    pub pages_per_second: f64,
    /// How far the rate may be off, up or down. By sampling: half the width of the interval that
    /// contains the true rate in 95 of 100 measurements. By log: the error if no page, or twice as
    /// many, were written while logging began and while it ended.
    pub error: f64,
    /// By log: pages written in the first half of the period and again in the second. If they are
    /// few beside `written`, the guest goes on to new pages, and a longer period would find more in
    /// proportion. If they are nearly `written`, the guest writes to the same pages, and `written`
    /// is their number rather than a speed.
    pub rewritten: Option<Pages>,
    /// By sampling: pages that were read, and how many of them had changed. A write of the contents
    /// that a page has already does not change it.
    pub sampled: Option<(Pages, Pages)>,
    /// By log, if a log can tell: the pages that each vCPU wrote. A page counts once for each
    /// harvest that found it.
    pub per_vcpu: Option<Vec<u64>>,
    /// A log failed, and every page that it covers was counted. Or a log delivers some pages later.
    pub warned: bool,
}

/// The counts of a measurement by log.
#[derive(Debug, Clone, Default)]
pub struct Logged {
    /// Pages found in the first half.
    pub first: Pages,
    /// Pages found in the second half.
    pub second: Pages,
    /// Pages found in both.
    pub both: Pages,
    /// The time from when every page was protected to when every log was harvested.
    pub period: Duration,
    /// How long protecting and harvesting took together.
    pub edges: Duration,
    /// Whether a log failed or postponed.
    pub warned: bool,
    /// The pages of each vCPU, if the logs know them.
    pub per_vcpu: Option<Vec<u64>>,
}

/// The counts of a measurement by sampling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sampled {
    /// The guest's memory.
    pub total: Pages,
    /// Pages that were read twice.
    pub read: Pages,
    /// How many of them had changed.
    pub changed: Pages,
}

fn per_second(pages: f64, period: Duration) -> f64 {
    let seconds = period.as_secs_f64();
    if seconds > 0.0 {
        pages / seconds
    } else {
        0.0
    }
}

/// The rate by log.
pub fn logged(counts: &Logged) -> Rate {
    let written = (counts.first.0 + counts.second.0).saturating_sub(counts.both.0);
    let rate = per_second(written as f64, counts.period);
    Rate {
        period: counts.period,
        written: Pages(written),
        pages_per_second: rate,
        error: per_second(rate * counts.edges.as_secs_f64(), counts.period),
        rewritten: Some(counts.both),
        sampled: None,
        per_vcpu: counts.per_vcpu.clone(),
        warned: counts.warned,
    }
}

/// The rate by sampling.
///
/// The share of changed pages is that of the sample. Its interval is Wilson's (E. B. Wilson,
/// "Probable inference, the law of succession, and statistical inference", 1927), which also holds
/// when few pages or none changed. The interval is not symmetric, so the error is its longer arm.
/// Memory is divided into equal parts, and one page is drawn from each. That is at least as good as
/// drawing from all of memory, for which the interval is made.
pub fn sampled(counts: &Sampled, period: Duration) -> Rate {
    let (total, n, changed) = (
        counts.total.0 as f64,
        counts.read.0 as f64,
        counts.changed.0 as f64,
    );
    let (share, arm) = if n > 0.0 && n < total {
        let share = changed / n;
        let (low, high) = wilson(share, n);
        (share, (share - low).max(high - share))
    } else if n > 0.0 {
        // Every page was read.
        (changed / n, 0.0)
    } else {
        // No page that was read is still there, so nothing is known.
        (0.0, 1.0)
    };
    Rate {
        period,
        written: Pages((share * total).round() as u64),
        pages_per_second: per_second(share * total, period),
        error: per_second(arm * total, period),
        rewritten: None,
        sampled: Some((counts.read, counts.changed)),
        per_vcpu: None,
        warned: false,
    }
}

/// Wilson's interval of 95 % for a share found by `n` draws.
fn wilson(share: f64, n: f64) -> (f64, f64) {
    let z2 = Z * Z / n;
    let middle = share + z2 / 2.0;
    let arm = Z * (share * (1.0 - share) / n + z2 / (4.0 * n)).sqrt();
    (
        ((middle - arm) / (1.0 + z2)).max(0.0),
        ((middle + arm) / (1.0 + z2)).min(1.0),
    )
}

/// One page of each of `count` equal parts of `total` pages, in order. There are fewer than `count`
/// if there are fewer pages.
pub fn choose(total: Pages, count: u64, seed: u64) -> impl Iterator<Item = Pages> {
    let count = count.min(total.0);
    let mut state = seed;
    (0..count).map(move |i| {
        let at = |i: u64| (u128::from(total.0) * u128::from(i) / u128::from(count)) as u64;
        let (first, end) = (at(i), at(i + 1));
        // SplitMix64 (G. L. Steele and others, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        Pages(first + ((u128::from(x) * u128::from(end - first)) >> 64) as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_page_written_in_both_halves_counts_once() {
        let rate = logged(&Logged {
            first: Pages(700),
            second: Pages(500),
            both: Pages(200),
            period: SECOND * 2,
            edges: SECOND / 50,
            ..Logged::default()
        });
        assert_eq!(
            (rate.written, rate.rewritten),
            (Pages(1000), Some(Pages(200)))
        );
        assert_eq!(rate.pages_per_second, 500.0);
        // A hundredth of the period is uncertain.
        assert!((rate.error - 5.0).abs() < 1e-9);
    }

    #[test]
    fn the_interval_is_wilsons() {
        // From published tables: 0 of 10, 1 of 10, 81 of 263.
        for (changed, n, low, high) in [
            (0.0, 10.0, 0.0, 0.2775),
            (1.0, 10.0, 0.0179, 0.4042),
            (81.0, 263.0, 0.2553, 0.3662),
        ] {
            let (l, h) = wilson(changed / n, n);
            assert!((l - low).abs() < 2e-4 && (h - high).abs() < 2e-4, "{l} {h}");
        }
    }

    #[test]
    fn nothing_read_is_nothing_known_and_everything_read_is_certain() {
        let none = sampled(
            &Sampled {
                total: Pages(1000),
                ..Sampled::default()
            },
            SECOND,
        );
        assert_eq!((none.pages_per_second, none.error), (0.0, 1000.0));
        let all = Sampled {
            total: Pages(1000),
            read: Pages(1000),
            changed: Pages(123),
        };
        let all = sampled(&all, SECOND / 2);
        assert_eq!((all.written, all.error), (Pages(123), 0.0));
        assert_eq!(all.pages_per_second, 246.0);
    }

    #[test]
    fn each_part_of_memory_gives_one_page() {
        for (total, count) in [(1, 1), (10, 3), (10, 10), (10, 99), (1 << 40, 512), (0, 5)] {
            let chosen: Vec<u64> = choose(Pages(total), count, total).map(|p| p.0).collect();
            let count = count.min(total);
            assert_eq!(chosen.len() as u64, count);
            for (i, page) in (0u128..).zip(&chosen) {
                let part = |i: u128| (u128::from(total) * i / u128::from(count)) as u64;
                assert!((part(i)..part(i + 1)).contains(page), "{total} {count}");
            }
        }
    }

    #[test]
    fn the_true_rate_lies_within_the_stated_error_as_often_as_stated() {
        const TOTAL: u64 = 4000;
        const SAMPLE: u64 = 200;
        const MEASUREMENTS: u64 = 1000;
        // The share of dirty pages, and the length of their runs. A run of 400 pages covers many
        // parts.
        for (share, run) in [
            (0.0, 1),
            (0.001, 1),
            (0.02, 1),
            (0.02, 50),
            (0.3, 1),
            (0.3, 100),
            (0.9, 7),
        ] {
            let mut within = 0;
            let mut sum = 0.0;
            let mut truth = 0.0;
            for seed in 0..MEASUREMENTS {
                let runs = (share * TOTAL as f64 / run as f64).round() as u64;
                let mut dirty = vec![false; TOTAL as usize];
                // The runs lie elsewhere in each measurement, as in another guest.
                for place in choose(Pages(TOTAL / run), runs, seed ^ 0xabcd) {
                    let first = (place.0 * run) as usize;
                    dirty[first..first + run as usize].fill(true);
                }
                truth = dirty.iter().filter(|d| **d).count() as f64;
                let chosen = choose(Pages(TOTAL), SAMPLE, seed * 7919 + 1);
                let (mut read, mut changed) = (0, 0);
                for page in chosen {
                    read += 1;
                    changed += u64::from(dirty[page.index()]);
                }
                let rate = sampled(
                    &Sampled {
                        total: Pages(TOTAL),
                        read: Pages(read),
                        changed: Pages(changed),
                    },
                    SECOND,
                );
                within += u64::from((rate.pages_per_second - truth).abs() <= rate.error);
                sum += rate.pages_per_second;
            }
            let named = format!("{share} dirty in runs of {run}");
            // The draws are always the same, so no chance decides here.
            assert!(within * 100 >= MEASUREMENTS * 94, "{named}: {within}");
            // On average the rate is the true one. The mean of so many measurements is 30 times as
            // exact.
            let mean = sum / MEASUREMENTS as f64;
            let one = (share * (1.0 - share) / SAMPLE as f64).sqrt() * TOTAL as f64;
            assert!(
                (mean - truth).abs() <= 4.0 * one / 30.0 + 1e-9,
                "{named}: {mean}, not {truth}"
            );
        }
    }
}
