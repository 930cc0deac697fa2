//! What the destination has acknowledged, and how long that took. Pure.
//!
//! Bytes that a socket has taken are not delivered. Example: a link of 10 MB/s with a buffer of 8
//! MiB on the way takes the first 8 MiB at the speed of a copy. Measured by what was sent, the link
//! carries gigabytes a second, and a rest of 8 MiB stands the guest still for 0.8 s. Acknowledged
//! bytes have arrived.
//!
//! Only time counts in which something was on its way: not a sync, not a pause, not a wait for the
//! cap with empty buffers. The time from the first byte to the first acknowledgement includes a
//! round trip. Later acknowledgements follow one another at the speed of the link.

use std::time::Duration;

/// What was delivered, or sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::migrate) struct Carried {
    /// Bytes, as if nothing had been compressed.
    pub(in crate::migrate) bytes: u64,
    /// Pages that were read.
    pub(in crate::migrate) read: u64,
    /// Of these, pages whose contents went whole.
    pub(in crate::migrate) whole: u64,
}

impl Carried {
    /// What was added since it was `before`.
    fn since(self, before: Carried) -> Carried {
        Carried {
            bytes: self.bytes.saturating_sub(before.bytes),
            read: self.read.saturating_sub(before.read),
            whole: self.whole.saturating_sub(before.whole),
        }
    }

    /// Whether its time measures the link. It does not when most of the time went into finding zero
    /// pages or making deltas.
    fn measures_the_link(self) -> bool {
        2 * self.whole >= self.read
    }
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, more: Carried) {
        self.bytes += more.bytes;
        self.read += more.read;
        self.whole += more.whole;
    }
}

/// See the file's description.
#[derive(Debug, Default, Clone)]
pub(in crate::migrate) struct Delivery {
    /// All that was acknowledged when this last looked.
    seen: Carried,
    /// The beginning of the time that is being measured. `None` while nothing is on its way.
    since: Option<Since>,
    /// The first acknowledgement since something is on its way, and its time. See [`Delivery::seen`].
    first: Option<(Carried, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Since {
    at: Duration,
    /// Nothing was on its way before.
    first: bool,
}

impl Delivery {
    /// Something is being sent from `now` on. `now` is of any clock that does not go back.
    pub(in crate::migrate) fn begins(&mut self, now: Duration) {
        self.since.get_or_insert(Since {
            at: now,
            first: true,
        });
    }

    /// At `now`, `acknowledged` is all that the destination has acknowledged, and `on_the_way` says
    /// whether more was sent. Returns bytes and their time when they measure the link.
    ///
    /// An acknowledgement is seen late, when the batch that is being sent has left. The link has
    /// carried that batch too, so bytes over time are too few for the first acknowledgement, right
    /// for those in the middle, and too many for the last one. So the first one counts together with
    /// the last. Example: two batches of 2 MB on a link of 40 MB/s. The first one's acknowledgement is
    /// seen after 100 ms, which looks like 20 MB/s, and the second one's at once.
    pub(in crate::migrate) fn seen(
        &mut self,
        now: Duration,
        acknowledged: Carried,
        on_the_way: bool,
        round_trip: Option<Duration>,
    ) -> Option<(u64, Duration)> {
        let mut more = acknowledged.since(self.seen);
        if more.read == 0 && on_the_way {
            return None;
        }
        self.seen = acknowledged;
        let next = on_the_way.then_some(Since {
            at: now,
            first: false,
        });
        let since = std::mem::replace(&mut self.since, next)?;
        let mut passed = now.saturating_sub(since.at);
        if since.first && on_the_way {
            // Time in which zero pages were found is not given to what follows.
            self.first = more.measures_the_link().then_some((more, passed));
            return None;
        }
        let mut whole = since.first;
        if !on_the_way {
            if let Some((first, time)) = self.first.take() {
                more += first;
                passed += time;
                whole = true;
            }
        }
        if more.bytes == 0 || !more.measures_the_link() {
            return None;
        }
        let trip = match whole {
            // A round trip that is longer than all of it was measured at a worse moment.
            true => round_trip.unwrap_or_default().min(passed / 2),
            false => Duration::ZERO,
        };
        Some((more.bytes, passed - trip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// `kib` of whole pages.
    fn carried(kib: u64) -> Carried {
        Carried {
            bytes: kib << 10,
            read: kib / 4,
            whole: kib / 4,
        }
    }

    #[test]
    fn time_counts_from_acknowledgement_to_acknowledgement() {
        let mut delivery = Delivery::default();
        delivery.begins(ms(1000));
        let mut seen = |at, kib, more| delivery.seen(ms(at), carried(kib), more, Some(ms(100)));
        // The first one comes a round trip later, and waits for the others.
        assert_eq!(seen(1200, 1000, true), None);
        assert_eq!(seen(1250, 1000, true), None);
        assert_eq!(seen(1300, 2000, true), Some((1000 << 10, ms(100))));
        assert_eq!(seen(1400, 3000, true), Some((1000 << 10, ms(100))));
        assert_eq!(seen(1500, 4000, false), Some((2000 << 10, ms(200))));
    }

    #[test]
    fn acknowledgements_that_are_seen_a_batch_late_measure_the_same_link() {
        // Batches of 50 ms each, and a look after each of them.
        for batches in [1, 2, 3, 9] {
            let mut delivery = Delivery::default();
            delivery.begins(ms(0));
            let mut samples = Vec::new();
            for sent in 1..=batches {
                let at = ms(50 * sent);
                samples.extend(delivery.seen(at, carried(2000 * (sent - 1)), true, None));
            }
            samples.extend(delivery.seen(ms(50 * batches), carried(2000 * batches), false, None));
            let all = samples
                .iter()
                .fold((0, ms(0)), |all, one| (all.0 + one.0, all.1 + one.1));
            assert_eq!(
                all,
                ((2000 * batches) << 10, ms(50 * batches)),
                "{samples:?}"
            );
            for (bytes, time) in &samples[..samples.len() - 1] {
                assert_eq!((*bytes, *time), (2000 << 10, ms(50)), "{samples:?}");
            }
        }
    }

    #[test]
    fn time_with_nothing_on_its_way_does_not_count() {
        let mut delivery = Delivery::default();
        delivery.begins(ms(0));
        assert!(delivery.seen(ms(100), carried(1000), false, None).is_some());
        // A sync of ten seconds.
        delivery.begins(ms(10_100));
        let found = delivery.seen(ms(10_200), carried(2000), false, None);
        assert_eq!(found, Some((1000 << 10, ms(100))));
    }

    #[test]
    fn zero_pages_do_not_measure_the_link_and_their_time_is_not_given_to_what_follows() {
        let mut delivery = Delivery::default();
        delivery.begins(ms(0));
        let zeros = Carried {
            bytes: 32,
            read: 500,
            whole: 0,
        };
        assert_eq!(delivery.seen(ms(100), zeros, true, None), None);
        let mut all = zeros;
        all += carried(1000);
        let found = delivery.seen(ms(150), all, false, None);
        assert_eq!(found, Some((1000 << 10, ms(50))));
    }

    #[test]
    fn a_round_trip_that_was_measured_at_a_worse_moment_does_not_make_the_link_endless() {
        let mut delivery = Delivery::default();
        delivery.begins(ms(0));
        let found = delivery.seen(ms(10), carried(1000), false, Some(ms(300)));
        assert_eq!(found, Some((1000 << 10, ms(5))));
    }
}
