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
    pub(in crate::migrate) fn seen(
        &mut self,
        now: Duration,
        acknowledged: Carried,
        on_the_way: bool,
        round_trip: Option<Duration>,
    ) -> Option<(u64, Duration)> {
        let more = acknowledged.since(self.seen);
        let since = self.since;
        if more.read > 0 || !on_the_way {
            self.seen = acknowledged;
            self.since = on_the_way.then_some(Since {
                at: now,
                first: false,
            });
        }
        let since = since.filter(|_| more.bytes > 0 && more.measures_the_link())?;
        let passed = now.saturating_sub(since.at);
        let trip = match since.first {
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
        // The first one comes a round trip later.
        let found = delivery.seen(ms(1200), carried(1000), true, Some(ms(100)));
        assert_eq!(found, Some((1000 << 10, ms(100))));
        assert_eq!(delivery.seen(ms(1250), carried(1000), true, None), None);
        let found = delivery.seen(ms(1300), carried(2000), true, Some(ms(100)));
        assert_eq!(found, Some((1000 << 10, ms(100))));
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
