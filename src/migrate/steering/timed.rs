//! The link's bandwidth as a timed batch shows it: from the times in which lanes had pages of the
//! batch on their way. Pure.
//!
//! With a cap on the bandwidth some batches are timed (see [`super::bandwidth`]). The time from the
//! hand-out of the batch until every lane is at rest again is no measure: with several lanes most of
//! it goes into waking threads. Example: 100 kB belong to one of eight lanes. The link carries them
//! in 0.2 ms. The lane's thread gets its processor after 1 ms, and the other seven lanes each send a
//! marker and hear its answer, which takes 5 ms more. So the time of a lane counts from the first
//! byte that it gives to its connection until the destination has acknowledged the last.
//!
//! The link has carried what one lane sent in that lane's time, and what all lanes sent in the times
//! in which any of them had something on its way. So it is at least as fast as the highest of these
//! rates. Every time includes a round trip, so none of the rates is too high.

use std::time::{Duration, Instant};

/// A time in which a lane had pages on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// When the lane gave the first byte to its connection.
    pub begun: Instant,
    /// When the destination had acknowledged all pages.
    pub ended: Instant,
    /// How many bytes that were.
    pub bytes: u64,
}

impl Span {
    fn time(&self) -> Duration {
        self.ended.saturating_duration_since(self.begun)
    }
}

/// The bytes and the time of the highest rate that the spans of one batch prove. `None` when there
/// is no span.
pub fn proven(spans: &mut [Span]) -> Option<(u64, Duration)> {
    spans.sort_unstable_by_key(|span| span.begun);
    let mut all = (0, Duration::ZERO);
    let mut covered = spans.first()?.begun;
    for span in &*spans {
        let begun = span.begun.max(covered);
        covered = covered.max(span.ended);
        all.0 += span.bytes;
        all.1 += covered.saturating_duration_since(begun);
    }
    let one = spans.iter().map(|span| (span.bytes, span.time()));
    let rate = |(bytes, time): &(u64, Duration)| *bytes as f64 / time.as_secs_f64().max(1e-9);
    one.chain([all]).max_by(|a, b| rate(a).total_cmp(&rate(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::steering::bandwidth::Bandwidth;
    use proptest::prelude::*;

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    fn rate((bytes, time): (u64, Duration)) -> f64 {
        bytes as f64 / time.as_secs_f64()
    }

    #[test]
    fn time_in_which_nothing_is_on_its_way_does_not_count() {
        let start = Instant::now();
        let span = |begun, ended, bytes| Span {
            begun: start + micros(begun),
            ended: start + micros(ended),
            bytes,
        };
        assert_eq!(proven(&mut []), None);
        // Two that overlap, one inside, and one after a pause of 500 us.
        let mut spans = [
            span(700, 800, 100),
            span(0, 100, 100),
            span(50, 200, 100),
            span(60, 70, 1),
        ];
        assert_eq!(proven(&mut spans), Some((301, micros(300))));
        // One lane that was faster alone than all together.
        let mut spans = [span(0, 100, 500), span(90, 900, 100)];
        assert_eq!(proven(&mut spans), Some((500, micros(100))));
    }

    /// A link, and lanes whose threads wake late.
    #[derive(Debug)]
    struct World {
        /// Bytes a second.
        link: f64,
        /// The longest that a thread takes until it gives its share to the connection, and from the
        /// arrival of the last byte until the acknowledgement is heard, in microseconds.
        late: u64,
    }

    /// The spans of a batch whose shares these are, and the time until all `lanes` lanes are at
    /// rest. Lanes without a share send a marker one after another: one core.
    fn sent(world: &World, lanes: u64, shares: &[u64], chance: &[u64]) -> (Vec<Span>, Duration) {
        let start = Instant::now();
        let mut chance = chance.iter().cycle().map(|n| micros(n % (world.late + 1)));
        let mut free = start;
        let mut spans = Vec::new();
        for bytes in shares {
            let begun = start + chance.next().unwrap();
            free = free.max(begun) + Duration::from_secs_f64(*bytes as f64 / world.link);
            let ended = free + chance.next().unwrap();
            spans.push(Span {
                begun,
                ended,
                bytes: *bytes,
            });
        }
        let mut rest = spans.iter().map(|span| span.ended).max().unwrap();
        for _ in shares.len() as u64..lanes {
            rest += chance.next().unwrap();
        }
        (spans, rest - start)
    }

    proptest! {
        #[test]
        fn no_estimate_is_above_the_link_and_each_lane_beside_the_busy_one_costs_nothing(
            link in 1e6f64..10e9,
            cap in 100e3f64..50e6,
            late in 0u64..3000,
            lanes in 1u64..=64,
            shares in prop::collection::vec(1u64..100, 1..8),
            chance in prop::collection::vec(any::<u64>(), 20..40),
        ) {
            let world = World { link, late };
            // 12 ms of the cap, dealt out to some lanes.
            let parts: u64 = shares.iter().sum();
            let batch = (cap * 0.012) as u64 + 1;
            let shares: Vec<u64> = shares.iter().map(|n| batch * n / parts + 1).collect();
            let shares = &shares[..shares.len().min(lanes as usize)];
            let (mut spans, _) = sent(&world, lanes, shares, &chance);
            let found = rate(proven(&mut spans).unwrap());
            // The clock of the model has nanoseconds.
            prop_assert!(found <= link * 1.01 + 1e6, "{found} of {link}");

            // The whole batch belongs to one lane: however many others there are, the estimate is
            // the same, and the lateness of one thread is all that it lacks.
            let (mut spans, whole) = sent(&world, lanes, &[batch], &chance);
            let mut bandwidth = Bandwidth::default();
            for at in 1..20u32 {
                let (bytes, time) = proven(&mut spans).unwrap();
                bandwidth.timed(micros(1000) * at, bytes, time, whole);
            }
            let found = bandwidth.estimate().unwrap();
            let least = batch as f64 / (batch as f64 / link + late as f64 / 1e6);
            prop_assert!(found >= least * 0.99, "{found}, expected {least} of {link}");
        }
    }

    /// The figures of a machine of two cores: a link of 400 MB/s, a cap of 10 MB/s, threads that wake
    /// after up to a millisecond.
    #[test]
    fn eight_lanes_under_a_cap_show_the_link_and_not_the_cap() {
        let world = World {
            link: 400e6,
            late: 1000,
        };
        let chance: Vec<u64> = (1..=20).map(|n| n * 617).collect();
        let (mut spans, whole) = sent(&world, 8, &[120_000], &chance);
        let found = rate(proven(&mut spans).unwrap());
        // The time until all lanes are at rest, which was taken for that of the link once, shows
        // little more than the cap.
        assert!(rate((120_000, whole)) < 40e6, "{whole:?}");
        assert!(found > 80e6, "{found}");
    }
}
