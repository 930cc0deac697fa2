//! Time limits with names. A wait that runs out of time tells which of its limits ended it, by the
//! name of the parameter that the user can change.
//!
//! A [`Timeout`] is a length of time, a [`Limit`] its end on the clock. Neither of them waits.

use super::Deadline;
use std::fmt;
use std::time::{Duration, Instant};

/// How long something may take, and the name of the parameter for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    name: &'static str,
    length: Duration,
}

impl Timeout {
    /// `name` is how the limit is called in a sentence: "the connect timeout".
    pub const fn new(name: &'static str, length: Duration) -> Self {
        Timeout { name, length }
    }

    /// The length of time.
    pub const fn length(self) -> Duration {
        self.length
    }

    /// The limit of a time that begins now.
    pub fn from_now(self) -> Limit {
        Limit {
            at: Deadline::after(self.length),
            of: self,
        }
    }

    /// The limit of a time that began at `begun`.
    pub fn since(self, begun: Instant) -> Limit {
        Limit {
            at: begun
                .checked_add(self.length)
                .map_or(Deadline::never(), Deadline::at),
            of: self,
        }
    }

    /// The limit of a time of which `left` remains.
    pub fn with_left(self, left: Duration) -> Limit {
        Limit {
            at: Deadline::after(left),
            of: self,
        }
    }

    /// The longer of the two.
    #[must_use]
    pub fn longer(self, other: Timeout) -> Timeout {
        if other.length > self.length {
            other
        } else {
            self
        }
    }
}

impl From<Duration> for Timeout {
    fn from(length: Duration) -> Self {
        Timeout::new("the time limit", length)
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.length.as_millis();
        match ms {
            0..1000 => write!(f, "{} of {ms} ms", self.name),
            _ => write!(f, "{} of {} s", self.name, ms as f64 / 1e3),
        }
    }
}

/// The end of a [`Timeout`] on the monotonic clock, or no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    at: Deadline,
    of: Timeout,
}

impl Limit {
    /// No limit.
    pub const fn never() -> Self {
        Limit {
            at: Deadline::never(),
            of: Timeout::new("the time limit", Duration::MAX),
        }
    }

    /// The moment at which it ends.
    pub const fn at(self) -> Deadline {
        self.at
    }

    /// Whether that moment has passed.
    pub fn expired(self) -> bool {
        self.at.expired()
    }

    /// The earlier of the two, with its name.
    #[must_use]
    pub fn earlier(self, other: impl Into<Limit>) -> Limit {
        let other = other.into();
        if self.at.earlier(other.at) == self.at {
            self
        } else {
            other
        }
    }

    /// The limit `by` later, for time that must not count.
    #[must_use]
    pub fn extended(self, by: Duration) -> Limit {
        Limit {
            at: self.at.later(by),
            of: self.of,
        }
    }
}

impl From<Deadline> for Limit {
    fn from(at: Deadline) -> Self {
        let left = at.remaining().unwrap_or(Duration::MAX);
        Limit {
            at,
            of: left.into(),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_earlier_limit_keeps_its_name() {
        let short = Timeout::new("the short one", MS * 10);
        let long = Timeout::new("the long one", MS * 2500);
        let now = Instant::now();
        for both in [
            short.since(now).earlier(long.since(now)),
            long.since(now).earlier(short.since(now)),
            Limit::never().earlier(short.since(now)),
            short.since(now).earlier(Limit::never()),
        ] {
            assert_eq!(both.to_string(), "the short one of 10 ms");
        }
        assert_eq!(long.longer(short), long);
        assert_eq!(short.longer(long).to_string(), "the long one of 2.5 s");
    }

    #[test]
    fn no_limit_never_passes_and_one_further_than_the_clock_goes_is_none() {
        assert!(!Limit::never().expired());
        let far = Timeout::new("far", Duration::MAX);
        assert!(!far.since(Instant::now()).expired());
        assert_eq!(far.from_now().at(), Deadline::never());
        assert_eq!(Limit::never().extended(MS).at(), Deadline::never());
    }

    #[test]
    fn time_that_does_not_count_moves_a_limit() {
        let limit = Timeout::new("x", Duration::ZERO).from_now();
        assert!(limit.expired());
        assert!(!limit.extended(Duration::from_secs(60)).expired());
    }
}
