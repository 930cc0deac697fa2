//! How long the VMMs' operations take while the guest stands still. Plain values.

use std::time::Duration;

/// The operations of both VMMs that run while the guest stands still: how long each takes, and the
/// size of the device state. `None`: neither stated nor measured.
///
/// A source states them in [`Params::expected`](crate::migrate::Params::expected). Aborted pauses
/// measure `pause`, `save` and the size of the state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// The source's `pause`.
    pub pause: Option<Duration>,
    /// The source's `save`.
    pub save: Option<Duration>,
    /// The destination's `load`, for all blobs together.
    pub load: Option<Duration>,
    /// The source's `release`.
    pub release: Option<Duration>,
    /// The destination's `run`.
    pub run: Option<Duration>,
    /// Bytes of device state.
    pub state_bytes: Option<u64>,
}

/// How long one operation took in aborted pauses.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::migrate) struct Measured {
    times: u32,
    shortest: Duration,
}

impl Measured {
    /// Records that the operation took `time`. Returns how long it will take: the shorter of what
    /// was `stated` and the shortest measured time.
    ///
    /// The first time alone tells nothing, because it may be that of a busy moment. Example: one
    /// `save` of 400 ms under a limit of 300 ms, counted from then on, would end a migration whose
    /// other saves take 5 ms.
    pub(in crate::migrate) fn took(
        &mut self,
        stated: Option<Duration>,
        time: Duration,
    ) -> Option<Duration> {
        self.shortest = match self.times {
            0 => time,
            _ => self.shortest.min(time),
        };
        self.times += 1;
        match (stated, self.times) {
            (Some(stated), _) => Some(stated.min(self.shortest)),
            (None, 1) => None,
            (None, _) => Some(self.shortest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_operation_is_not_expected_again_and_a_slow_one_is_from_the_second_time_on() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let expected = |stated: Option<Duration>, times: &[u64]| {
            let mut measured = Measured::default();
            let took = |time: &u64| measured.took(stated, Duration::from_millis(*time));
            times.iter().map(took).collect::<Vec<_>>()
        };
        assert_eq!(expected(None, &[400, 5, 400]), [None, ms(5), ms(5)]);
        assert_eq!(expected(None, &[400, 420]), [None, ms(400)]);
        assert_eq!(expected(ms(10), &[400, 5, 420]), [ms(10), ms(5), ms(5)]);
    }
}
