//! How much of a migration is done, in percent. Pure.
//!
//! Example: 900 of 1,000 MB are sent, and the guest has meanwhile written 500 MB again. A bar that
//! showed "sent over total" would stand at 90 % for a long time, and one that showed "left" would run
//! back from 90 to 64 %. The figure here is what has been sent, over that and all that will still be
//! sent by the forecast. When the forecast grows, the figure stands still until it fits again.

/// The figure. It never runs backwards, and it is 100 only when the migration has ended well.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Progress {
    percent: f64,
}

/// The largest figure before the end.
const BEFORE_THE_END: f64 = 99.0;

impl Progress {
    /// The percentage after `sent` bytes, when `to_come` more bytes will be sent by the forecast.
    /// `None`: no forecast.
    pub fn update(&mut self, sent: f64, to_come: Option<f64>) -> f64 {
        if let Some(to_come) = to_come {
            let share = sent / (sent + to_come.max(0.0));
            if share.is_finite() && share >= 0.0 {
                let percent = (share * 100.0).min(BEFORE_THE_END);
                self.percent = self.percent.max(percent);
            }
        }
        self.percent
    }

    /// The migration has ended well.
    pub fn done(&mut self) -> f64 {
        self.percent = 100.0;
        self.percent
    }

    /// The percentage, 0 to 100.
    pub fn percent(&self) -> f64 {
        self.percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_what_was_sent_over_all_that_will_be() {
        let mut progress = Progress::default();
        assert_eq!(progress.update(0.0, Some(1000.0)), 0.0);
        assert_eq!(progress.update(500.0, None), 0.0);
        assert_eq!(progress.update(500.0, Some(500.0)), 50.0);
        // The guest got faster: the figure stands still.
        assert_eq!(progress.update(600.0, Some(1800.0)), 50.0);
        assert_eq!(progress.update(1800.0, Some(600.0)), 75.0);
        assert_eq!(progress.update(2400.0, Some(0.0)), 99.0);
        assert_eq!(progress.done(), 100.0);
    }

    proptest! {
        #[test]
        fn it_never_runs_backwards_and_stays_between_0_and_100(
            steps in proptest::collection::vec((any::<f64>(), any::<Option<f64>>()), 1..100),
        ) {
            let mut progress = Progress::default();
            let mut last = 0.0;
            for (sent, to_come) in steps {
                let percent = progress.update(sent, to_come);
                prop_assert!(percent >= last && (0.0..=99.0).contains(&percent));
                last = percent;
            }
            prop_assert_eq!(progress.done(), 100.0);
        }
    }
}
