//! Pacing: how long to wait before the next record so that a stated bandwidth
//! is not exceeded. A token bucket in its virtual-clock form. Pure: the time
//! comes in, a wait comes out; whoever asks does the waiting.

use std::time::Duration;

/// How far a late sender may catch up: what the rate carries in this time.
/// Covers a timer's lateness and a scheduling gap, and is too short to be felt
/// by others on the link.
pub const BURST: Duration = Duration::from_millis(50);

/// Spaces records so that in any time `t` no more than `rate * (t + BURST)`
/// bytes plus one record are let go.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// Bytes per second; `None` for no limit.
    rate: Option<u64>,
    /// When all that was let go is paid for.
    paid_at: Option<Duration>,
}

impl Pacer {
    /// Bytes per second. `None` and 0 are no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Pacer {
            rate: bytes_per_second.filter(|r| *r > 0),
            paid_at: None,
        }
    }

    /// The rate in bytes per second, if there is one.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Changes the rate from `now` on. What was let go and is not yet paid for
    /// is paid at the new rate: a raised limit is felt at once.
    pub fn set_rate(&mut self, now: Duration, bytes_per_second: Option<u64>) {
        let rate = bytes_per_second.filter(|r| *r > 0);
        self.paid_at = match (self.rate, rate, self.paid_at) {
            (Some(old), Some(new), Some(at)) if at > now => {
                Some(now.saturating_add(scale(at - now, old, new)))
            }
            (Some(_), Some(_), at) => at,
            _ => None,
        };
        self.rate = rate;
    }

    /// How long to wait, from `now` (any clock that does not go back), before
    /// a record of `bytes` is sent. It counts as sent: ask once for each.
    pub fn next(&mut self, now: Duration, bytes: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let earliest = now.saturating_sub(BURST);
        // The first record finds no credit: a link that was just made is not owed any.
        let paid_at = self.paid_at.map_or(now, |at| at.max(earliest));
        self.paid_at = Some(paid_at.saturating_add(time_for(bytes, rate)));
        paid_at.saturating_sub(now)
    }
}

/// `bytes / rate`, rounded up to a nanosecond so that the rate is never exceeded.
fn time_for(bytes: u64, rate: u64) -> Duration {
    from_nanos((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate)))
}

/// `time * from / to`, saturating.
fn scale(time: Duration, from: u64, to: u64) -> Duration {
    from_nanos(time.as_nanos().saturating_mul(u128::from(from)) / u128::from(to))
}

fn from_nanos(nanos: u128) -> Duration {
    match u64::try_from(nanos / 1_000_000_000) {
        Ok(seconds) => Duration::new(seconds, (nanos % 1_000_000_000) as u32),
        Err(_) => Duration::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn records_are_spaced_by_the_rate() {
        // At 1,000,000 B/s, 1,000 B take 1 ms. Rows: time asked, bytes, wait.
        let table = [
            (100, 1_000, 0),    // the first goes at once
            (100, 1_000, 1),    // the second waits for the first
            (101, 5_000, 1),    // asked when the first is paid
            (102, 1_000, 5),    // and that one waits for the long one
            (108, 1_000, 0),    // in time again
            (1_108, 49_000, 0), // idle: at most 50 ms are caught up
            (1_108, 1_000, 0),
            (1_108, 1_000, 0),
            (1_108, 1_000, 1),
        ];
        let mut pacer = Pacer::new(Some(1_000_000));
        for (row, (now, bytes, wait)) in table.into_iter().enumerate() {
            assert_eq!(pacer.next(ms(now), bytes), ms(wait), "row {row}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        for rate in [None, Some(0)] {
            let mut pacer = Pacer::new(rate);
            for _ in 0..10 {
                assert_eq!(pacer.next(ms(1), u64::MAX), Duration::ZERO);
            }
        }
    }

    #[test]
    fn a_raised_rate_is_felt_at_once_and_a_lifted_one_forgets_the_debt() {
        let mut pacer = Pacer::new(Some(1_000));
        pacer.next(ms(0), 10_000); // ten seconds' worth
        pacer.set_rate(ms(0), Some(10_000));
        assert_eq!(pacer.next(ms(0), 1), ms(1_000));
        pacer.set_rate(ms(0), None);
        assert_eq!(pacer.next(ms(0), 1), Duration::ZERO);
        pacer.set_rate(ms(5), Some(1_000));
        assert_eq!(pacer.next(ms(5), 1), Duration::ZERO);
    }

    #[test]
    fn extremes_saturate() {
        let mut pacer = Pacer::new(Some(1));
        for _ in 0..3 {
            pacer.next(Duration::MAX, u64::MAX);
            pacer.next(Duration::ZERO, u64::MAX);
        }
        pacer.set_rate(Duration::ZERO, Some(u64::MAX));
        pacer.set_rate(Duration::ZERO, Some(1));
        assert!(pacer.next(Duration::ZERO, 1) <= Duration::MAX);
    }

    proptest! {
        #[test]
        fn no_window_carries_more_than_rate_burst_and_one_record(
            rate in 1_000u64..10_000_000_000,
            steps in prop::collection::vec((0u64..200_000_000, 1u64..4_000_000), 1..100),
        ) {
            let mut pacer = Pacer::new(Some(rate));
            let mut now = Duration::ZERO;
            let mut sent = Vec::new();
            for (gap, bytes) in steps {
                now += Duration::from_nanos(gap);
                now += pacer.next(now, bytes);
                sent.push((now, bytes));
            }
            for first in 0..sent.len() {
                let (mut sum, mut largest) = (0u128, 0u64);
                for (at, bytes) in &sent[first..] {
                    sum += u128::from(*bytes);
                    largest = largest.max(*bytes);
                    let time = (*at - sent[first].0 + BURST).as_nanos();
                    let most = time * u128::from(rate) / 1_000_000_000 + 1 + u128::from(largest);
                    prop_assert!(sum <= most, "{sum} > {most}");
                }
            }
        }

        #[test]
        fn a_sender_with_enough_to_send_gets_the_whole_rate(
            rate in 100_000u64..10_000_000_000,
            records in prop::collection::vec(4096u64..2_000_000, 50),
            late in 0u64..20_000_000,
        ) {
            // Each wait ends `late` (under the burst), which costs nothing in the long run.
            let mut pacer = Pacer::new(Some(rate));
            let mut now = Duration::ZERO;
            for bytes in &records {
                let wait = pacer.next(now, *bytes);
                if wait > Duration::ZERO {
                    now += wait + Duration::from_nanos(late);
                }
            }
            let before_last: u64 = records[..records.len() - 1].iter().sum();
            let ideal = time_for(before_last, rate);
            let slack = Duration::from_nanos(late + records.len() as u64);
            prop_assert!(now <= ideal + slack, "{now:?} > {ideal:?} + {slack:?}");
        }
    }
}
