//! How far a source's migration has come: its progress, and the last look ahead for it. The driver
//! keeps it.

use crate::migrate::steering::progress::Progress;
use std::time::Instant;

/// The progress, and the last look ahead for it.
#[derive(Debug, Default)]
pub(super) struct Advance {
    pub(super) progress: Progress,
    /// When the last look was, and the bytes of pages that it expected after the pass it was in.
    pub(super) last: Option<(Instant, f64)>,
    /// The throttle that the working-set curve was seen under, in percent.
    pub(super) throttle: u8,
}

impl Advance {
    /// The migration has ended well. Returns the progress.
    pub(super) fn done(&mut self) -> u32 {
        in_hundredths(self.progress.done())
    }
}

/// A percentage in hundredths of a percent.
pub(super) fn in_hundredths(percent: f64) -> u32 {
    (percent * 100.0) as u32
}
