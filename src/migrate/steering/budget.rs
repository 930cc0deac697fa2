//! The downtime, part by part: what is expected of a switchover, and what it then took. Pure.
//!
//! Example: 30 MB of device state on a link of 10 MB/s take 3 s, however few pages remain. Expected
//! from the pages alone, the downtime is 0. So everything between `pause` and "running" is a part of
//! the budget, and the guest is paused only when all parts together fit the limit.
//!
//! A part that nobody has stated or measured counts as zero. It is not estimated upwards, because a
//! promise that is too long is as wrong as one that is too short. `docs/downtime.md` has the table
//! of the parts and their sources.

use super::facts::{seconds, Facts, Moment, PassFacts};
use crate::units::{Bytes, Pages};
use std::time::Duration;

/// After the pause the source waits this often for the destination: for READY and for RUNNING.
pub const ROUND_TRIPS: u32 = 2;

/// The parts of a downtime. Their sum is the whole.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parts {
    /// The source's `pause`.
    pub pause: Duration,
    /// The two syncs of a guest that stands still: after `pause` and after `save`.
    pub sync: Duration,
    /// The source's `save`.
    pub save: Duration,
    /// Sending pages: those that remain, and those that the destination has not acknowledged.
    pub memory: Duration,
    /// Sending the device state: blobs, and what is left of devices whose state is streamed.
    pub state: Duration,
    /// Of `state`: what could still be sent while the guest runs.
    pub state_running: Duration,
    /// Computing checksums of the destination's memory, in a verified migration. Never promised.
    pub verify: Duration,
    /// The destination's `load`.
    pub load: Duration,
    /// The waits for the destination's answers, [`ROUND_TRIPS`] in number.
    pub round_trips: Duration,
    /// The source's `release`.
    pub release: Duration,
    /// The destination's `run`.
    pub run: Duration,
}

impl Parts {
    /// All parts together.
    pub fn total(&self) -> Duration {
        let parts = self.named();
        let sum = |sum: Duration, (_, part): &(&str, Duration)| sum.saturating_add(*part);
        parts.iter().fold(Duration::ZERO, sum)
    }

    /// Each part with its name in messages.
    pub fn named(&self) -> [(&'static str, Duration); 10] {
        [
            ("`pause`", self.pause),
            ("the syncs", self.sync),
            ("`save`", self.save),
            ("sending pages", self.memory),
            ("sending the device state", self.state),
            ("verifying", self.verify),
            ("`load`", self.load),
            ("the round trips", self.round_trips),
            ("`release`", self.release),
            ("`run`", self.run),
        ]
    }

    /// The parts that no further pass makes smaller: all but those of the pages and of devices' state
    /// that can be sent while the guest runs.
    pub fn fixed(&self) -> Parts {
        Parts {
            memory: Duration::ZERO,
            state: self.state.saturating_sub(self.state_running),
            state_running: Duration::ZERO,
            ..*self
        }
    }

    /// The longest part, with its name.
    pub fn longest(&self) -> (&'static str, Duration) {
        let parts = self.named();
        let longest = parts.iter().max_by_key(|(_, part)| *part);
        longest.copied().unwrap_or_default()
    }

    /// Each part that is at least a hundredth of the whole, in words: "`load` 12.0 ms, the syncs 3.0
    /// ms".
    pub(crate) fn describe(&self) -> String {
        let least = self.total() / 100;
        let worth = |(_, part): &&(&str, Duration)| !part.is_zero() && *part >= least;
        let parts = self.named();
        let words = parts.iter().filter(worth);
        let words: Vec<String> = words
            .map(|(name, part)| format!("{name} {}", millis(*part)))
            .collect();
        words.join(", ")
    }
}

/// "12.3 ms".
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

impl Facts {
    /// The parts of the downtime if the switchover came now. While the guest stands still, what has
    /// passed already is in [`Facts::stood`], and its parts are zero. `None` when nothing tells how
    /// long the pages take.
    pub fn parts(&self) -> Option<Parts> {
        let memory = match self.pages_left() {
            Bytes(0) => Duration::ZERO,
            _ => self.sending_pages()?,
        };
        Some(Parts {
            memory,
            ..self.parts_without_pages()
        })
    }

    /// As [`Facts::parts`], when no page is sent in the downtime.
    pub(crate) fn parts_without_pages(&self) -> Parts {
        let zero = Duration::ZERO;
        let known = |part: Option<Duration>| part.unwrap_or(zero);
        let operations = &self.operations;
        let state = known(self.sending_state(true));
        let syncs = match self.moment {
            Moment::Walking | Moment::Synced => 2,
            Moment::Paused => 1,
            Moment::Saved => 0,
        };
        Parts {
            pause: match self.moment {
                Moment::Walking | Moment::Synced => known(operations.pause),
                Moment::Paused | Moment::Saved => zero,
            },
            sync: self.sync_time.saturating_mul(syncs),
            save: match self.moment {
                Moment::Saved => zero,
                _ => known(operations.save),
            },
            memory: zero,
            state,
            state_running: state.saturating_sub(known(self.sending_state(false))),
            verify: zero,
            load: known(operations.load),
            round_trips: known(self.round_trip).saturating_mul(ROUND_TRIPS),
            release: known(operations.release),
            run: known(operations.run),
        }
    }

    /// Bytes of pages that the destination will lack when the guest stands still: what is pending,
    /// what is on its way, and what the guest writes during `pause`.
    fn pages_left(&self) -> Bytes {
        let left = self.remaining.0.saturating_add(self.unacknowledged.0);
        Bytes(left.saturating_add(self.during_pause().0))
    }

    /// Bytes of pages that the guest writes during `pause`.
    pub(super) fn during_pause(&self) -> Bytes {
        match (self.moment, self.dirty_rate, self.operations.pause) {
            (Moment::Walking | Moment::Synced, Some(rate), Some(pause)) => {
                Pages((rate * pause.as_secs_f64()) as u64).bytes()
            }
            _ => Bytes(0),
        }
    }

    /// The downtime that no further pass makes shorter: that of a migration with nothing left to
    /// send but what the guest writes during `pause`. A guest that is slowed writes less.
    pub(super) fn unavoidable(&self) -> Option<Duration> {
        let mut least = *self;
        (least.remaining, least.unacknowledged) = (Bytes(0), Bytes(0));
        least.device_running = Bytes(0);
        Some(least.parts()?.total())
    }

    /// The time to send all pages that the destination will lack.
    ///
    /// The longer of two estimates counts. The first divides the bytes by the link's bandwidth. The
    /// second takes the time a page from the last pass. The bandwidth alone misses zero pages, which
    /// take no bandwidth but the destination's time. The last pass alone is one sample. `None` as
    /// long as neither is known.
    pub(super) fn sending_pages(&self) -> Option<Duration> {
        let left = self.pages_left().0 as f64;
        let last = self.last_pass.filter(|pass| pass.pages.0 > 0);
        // A pass of three pages measures a round trip only.
        let similar = last.filter(|pass| pass.pages.bytes().0 >= self.remaining.0 / 4);
        let by_link = self.link().map(|bandwidth| {
            // The next pages are expected to have the same share of zero pages as those of the last
            // pass. The first pass does not count: it sent pages that the guest never touched.
            let share = match similar {
                Some(pass) if pass.number > 1 && !self.stated => {
                    pass.data.0 as f64 / pass.pages.0 as f64
                }
                _ => 1.0,
            };
            left * share / bandwidth
        });
        let by_pass = match by_link {
            None => last,
            Some(_) => similar.filter(|_| !self.stated),
        };
        let by_pass = by_pass
            .map(|pass| self.net(&pass).as_secs_f64() * (left / pass.pages.bytes().0 as f64));
        let longer = match (by_link, by_pass) {
            (Some(link), Some(pass)) => Some(link.max(pass)),
            (link, pass) => link.or(pass),
        };
        Some(seconds(longer?))
    }

    /// A pass's time without the round trip of its last acknowledgement, which is a part of its own.
    fn net(&self, pass: &PassFacts) -> Duration {
        pass.time
            .saturating_sub(self.round_trip.unwrap_or_default())
    }

    /// The time to send the device state: by the link's bandwidth, or else as pages of the last pass.
    /// `running`: with what could be sent while the guest runs.
    fn sending_state(&self, running: bool) -> Option<Duration> {
        let blobs = self.operations.state_bytes.unwrap_or(0);
        let running = if running { self.device_running.0 } else { 0 };
        let devices = self.device_stopped.0 as f64 + running as f64;
        let state = blobs as f64 + devices;
        if state == 0.0 {
            return Some(Duration::ZERO);
        }
        let by_pass = || {
            let pass = self.last_pass.as_ref().filter(|pass| pass.data.0 > 0)?;
            Some(self.net(pass).as_secs_f64() * state / pass.pages.bytes().0 as f64)
        };
        let by_link = self.link().map(|bandwidth| state / bandwidth);
        // What is read next is read while the link carries what was read before.
        let by_reads = self.device_rate.filter(|rate| *rate > 0.0);
        let by_reads = by_reads.map_or(0.0, |rate| devices / rate);
        let sent = by_link.or_else(by_pass);
        sent.map(|sent| seconds(sent.max(by_reads)))
    }

    fn link(&self) -> Option<f64> {
        self.bandwidth.filter(|bandwidth| *bandwidth > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::steering::Operations;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Right after a sync: 100 MB remain, the link carries 1 GB/s, and every part is known.
    fn facts() -> Facts {
        Facts {
            moment: Moment::Synced,
            remaining: Bytes(100_000_000),
            bandwidth: Some(1e9),
            sync_time: ms(3),
            round_trip: Some(ms(10)),
            operations: Operations {
                pause: Some(ms(1)),
                save: Some(ms(2)),
                load: Some(ms(4)),
                release: Some(ms(5)),
                run: Some(ms(6)),
                state_bytes: Some(7_000_000),
            },
            ..Facts::default()
        }
    }

    #[test]
    fn everything_between_pause_and_running_is_a_part() {
        let parts = facts().parts().unwrap();
        let expected = Parts {
            state_running: Duration::ZERO,
            pause: ms(1),
            sync: ms(6),
            save: ms(2),
            memory: ms(100),
            state: ms(7),
            verify: ms(0),
            load: ms(4),
            round_trips: ms(20),
            release: ms(5),
            run: ms(6),
        };
        assert_eq!(parts, expected);
        assert_eq!(parts.total(), ms(151));
        assert_eq!(parts.fixed().total(), ms(51));
        assert_eq!(parts.longest(), ("sending pages", ms(100)));
        assert_eq!(parts.fixed().longest(), ("the round trips", ms(20)));
    }

    #[test]
    fn what_nobody_stated_or_measured_is_not_padded() {
        let unknown = Facts {
            operations: Operations::default(),
            round_trip: None,
            ..facts()
        };
        let parts = unknown.parts().unwrap();
        assert_eq!(parts.total(), ms(106), "{parts:?}");
    }

    #[test]
    fn state_that_devices_can_send_while_the_guest_runs_is_no_fixed_part() {
        let streaming = Facts {
            device_running: Bytes(30_000_000),
            device_stopped: Bytes(2_000_000),
            ..facts()
        };
        let (plain, parts) = (facts().parts().unwrap(), streaming.parts().unwrap());
        // 1 GB/s: 30 ms and 2 ms.
        assert_eq!((parts.state - plain.state).as_millis(), 32);
        assert_eq!(parts.state_running.as_millis(), 30);
        let fixed = parts.fixed();
        assert_eq!((fixed.state - plain.state).as_millis(), 2);
        assert_eq!(fixed.state_running, Duration::ZERO);
    }

    #[test]
    fn a_device_that_is_read_more_slowly_than_the_link_carries_counts_by_its_reads() {
        let slow = Facts {
            device_stopped: Bytes(30_000_000),
            device_rate: Some(10e6),
            ..facts()
        };
        assert_eq!(slow.parts().unwrap().state.as_millis(), 3000);
        let fast = Facts {
            device_rate: Some(10e9),
            ..slow
        };
        // 37 MB at 1 GB/s.
        assert_eq!(fast.parts().unwrap().state.as_millis(), 37);
    }

    #[test]
    fn bytes_on_their_way_are_still_to_be_delivered() {
        let on_their_way = Facts {
            unacknowledged: Bytes(50_000_000),
            ..facts()
        };
        assert_eq!(on_their_way.parts().unwrap().memory, ms(150));
    }

    #[test]
    fn what_the_guest_writes_during_pause_counts_before_the_pause_and_is_found_after_it() {
        let slow = Operations {
            pause: Some(ms(100)),
            ..facts().operations
        };
        let writes = Facts {
            operations: slow,
            // 40.96 MB in 100 ms.
            dirty_rate: Some(100_000.0),
            ..facts()
        };
        assert_eq!(writes.parts().unwrap().memory.as_micros(), 140_960);
        let paused = Facts {
            moment: Moment::Paused,
            ..writes
        };
        assert_eq!(paused.parts().unwrap().memory, ms(100));
    }

    #[test]
    fn while_the_guest_stands_still_only_the_parts_to_come_count_beside_what_has_passed() {
        let at = |moment, stood| Facts {
            moment,
            stood,
            ..facts()
        };
        let paused = at(Moment::Paused, ms(9));
        assert_eq!(paused.parts().unwrap().total(), ms(151 - 1 - 3));
        assert_eq!(paused.expected_downtime(), Some(ms(9 + 147)));
        let saved = at(Moment::Saved, ms(20));
        assert_eq!(saved.parts().unwrap().total(), ms(151 - 1 - 6 - 2));
        assert_eq!(saved.expected_downtime(), Some(ms(20 + 142)));
    }

    #[test]
    fn the_round_trip_of_a_pass_is_not_counted_with_its_pages() {
        // 10 MB in 20 ms and a round trip of 10 ms.
        let facts = Facts {
            bandwidth: None,
            last_pass: Some(PassFacts {
                number: 2,
                pages: Bytes(10_000_000).pages_down(),
                data: Bytes(10_000_000).pages_down(),
                time: ms(30),
            }),
            operations: Operations::default(),
            ..facts()
        };
        let memory = facts.parts().unwrap().memory;
        assert!(memory >= ms(200) && memory < ms(201), "{memory:?}");
    }

    #[test]
    fn an_empty_rest_needs_no_bandwidth() {
        let idle = Facts {
            remaining: Bytes(0),
            bandwidth: None,
            ..facts()
        };
        assert_eq!(idle.parts().unwrap().memory, Duration::ZERO);
        let some = Facts {
            remaining: Bytes(4096),
            ..idle
        };
        assert_eq!(some.parts(), None);
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let time = || prop::option::of((0..1_000_000u64).prop_map(Duration::from_micros));
        (
            (0..1u64 << 40, 0..1u64 << 30, 1e3..1e12f64, 0..1_000_000u64),
            (time(), time(), time(), time(), time(), time()),
            prop::option::of(0..1u64 << 32),
            prop::option::of(0.0..1e8f64),
            0..3usize,
        )
            .prop_map(
                |((rest, sent, link, sync), times, state_bytes, dirty_rate, moment)| {
                    let (pause, save, load, release, run, round_trip) = times;
                    Facts {
                        moment: [Moment::Synced, Moment::Paused, Moment::Saved][moment],
                        remaining: Bytes(rest),
                        unacknowledged: Bytes(sent),
                        bandwidth: Some(link),
                        sync_time: Duration::from_micros(sync),
                        round_trip,
                        dirty_rate,
                        operations: Operations {
                            pause,
                            save,
                            load,
                            release,
                            run,
                            state_bytes,
                        },
                        ..Facts::default()
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn more_to_do_and_less_bandwidth_never_lower_what_is_expected(
            facts in any_facts(),
            more in 0..1u64 << 40,
            less in 0.001..1.0f64,
        ) {
            let expected = |facts: &Facts| facts.expected_downtime().unwrap();
            let base = expected(&facts);
            let longer = facts.sync_time + Duration::from_micros(more >> 20);
            let harder = [
                Facts { remaining: Bytes(facts.remaining.0 + more), ..facts },
                Facts { unacknowledged: Bytes(facts.unacknowledged.0 + more), ..facts },
                Facts { bandwidth: facts.bandwidth.map(|link| link * less), ..facts },
                Facts { sync_time: longer, ..facts },
                Facts { round_trip: Some(facts.round_trip.unwrap_or_default() + longer), ..facts },
                Facts { stood: longer, ..facts },
                Facts {
                    operations: Operations {
                        state_bytes: Some(facts.operations.state_bytes.unwrap_or(0) + more),
                        ..facts.operations
                    },
                    ..facts
                },
            ];
            for harder in harder {
                prop_assert!(expected(&harder) >= base, "{:?}", harder);
            }
        }

        #[test]
        fn what_is_expected_is_no_more_than_its_causes_explain(facts in any_facts()) {
            let parts = facts.parts().unwrap();
            let pages = facts.pages_left().0 as f64 / facts.bandwidth.unwrap();
            prop_assert!(parts.memory <= seconds(pages) + Duration::from_nanos(1));
            let state = facts.operations.state_bytes.unwrap_or(0) as f64;
            let state = state / facts.bandwidth.unwrap();
            prop_assert!(parts.state <= seconds(state) + Duration::from_nanos(1));
            prop_assert!(parts.sync <= facts.sync_time * 2);
            prop_assert_eq!(parts.round_trips, facts.round_trip.unwrap_or_default() * 2);
            prop_assert!(facts.expected_downtime().unwrap() >= parts.longest().1);
        }
    }
}
