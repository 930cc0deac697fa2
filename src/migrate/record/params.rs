//! What a recording is asked for, what it writes of one moment, and what became of it.

use crate::error::{Error, Kind, Result};
use crate::migrate::report::{LaneStats, Stats};
use crate::migrate::steering::forecast::Forecast;
use std::time::Duration;

/// The version of the lines.
pub const RECORD_VERSION: u32 = 1;
/// The longest text that says what is recorded, in bytes.
pub const RECORD_WHAT_MAX: usize = 1024;

/// What a recording is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordParams {
    /// The time between two looks at the figures: 10 ms to 1 h, by default 50 ms, as often as a migration
    /// renews them. Figures that have not changed are not written again.
    pub interval: Duration,
    /// A text that the first line has: what is recorded. At most [`RECORD_WHAT_MAX`] bytes.
    pub what: String,
}

impl Default for RecordParams {
    fn default() -> Self {
        RecordParams {
            interval: Duration::from_millis(50),
            what: String::new(),
        }
    }
}

impl RecordParams {
    pub(super) fn check(&self) -> Result<()> {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(3600));
        let invalid = |why| Err(Error::new(Kind::Invalid, why));
        if !(least..=most).contains(&self.interval) {
            return invalid(format!(
                "the interval of a recording is 10 to 3600000 ms, not {}",
                self.interval.as_millis()
            ));
        }
        if self.what.len() > RECORD_WHAT_MAX {
            return invalid(format!(
                "what is recorded is said in at most {RECORD_WHAT_MAX} bytes, not {}",
                self.what.len()
            ));
        }
        Ok(())
    }
}

/// What became of a recording.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// Lines that were written.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lines that were dropped, because the descriptor took nothing for too long.
    pub dropped: u64,
    /// Why the recording ended before its time.
    pub error: Option<Error>,
}

/// The figures of one moment.
pub(in crate::migrate) struct Frame {
    pub(in crate::migrate) stats: Stats,
    pub(in crate::migrate) forecast: Option<Forecast>,
    pub(in crate::migrate) lanes: Vec<LaneStats>,
}
