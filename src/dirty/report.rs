//! What a tracker is told and what it tells: how protection is restored, what is pending at a start,
//! and the reports and totals. Plain values.

use super::LogKind;
use crate::bits::chunks::CHUNK_SHIFT_DEFAULT;
use crate::units::Pages;
use std::time::Duration;

/// How protection is restored where a log leaves that to its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clearing {
    /// Chunks of 2^shift pages, each before the first of its pages is handed out.
    Chunked {
        /// 6 to 31; 18 is 1 GiB.
        shift: u32,
    },
    /// The whole slot at each sync.
    AtSync,
}

impl Clearing {
    /// Of chunks, if there are any.
    pub(super) fn shift(self) -> Option<u32> {
        match self {
            Clearing::Chunked { shift } => Some(shift),
            Clearing::AtSync => None,
        }
    }
}

impl Default for Clearing {
    fn default() -> Self {
        Clearing::Chunked {
            shift: CHUNK_SHIFT_DEFAULT,
        }
    }
}

/// What is pending when a consumer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartWith {
    /// Every page: whoever reads them all, and then what was written since, has a copy.
    Everything,
    /// No page: only what is written from now on is found.
    Nothing,
}

/// What one log did in a sync.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogReport {
    /// What the log is.
    pub kind: LogKind,
    /// Its name: several logs may be of one kind.
    pub name: &'static str,
    /// How long it took, kernel calls and merging.
    pub time: Duration,
    /// Pages that became pending through it.
    pub found: Pages,
    /// Pages that it found written since it last could tell: see [`SyncReport::written`].
    pub written: Pages,
}

/// What a sync found and what it cost.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SyncReport {
    /// Pages that became pending for the consumer that asked; a page that was pending there
    /// already does not count again.
    pub found: Pages,
    /// Pages that the logs found written, whether they were pending or not: a guest that writes ahead
    /// of a walk, where everything is pending, is seen here and not in `found`. Each log
    /// counts a page once for each time that it finds it; two logs that find the same page count
    /// it twice. Pages that were taken as dirty because a log failed do not count.
    pub written: Pages,
    /// Of how many pages a write since the last sync could be found. The others were found before, and
    /// their protection has not been restored since: in the manual-protect modes of KVM's log,
    /// pages that nobody has taken yet. The dirty rate of a guest is `written` over `observed`
    /// times its memory.
    pub observed: Pages,
    /// Pages that became pending because they became ballooned since the last sync:
    /// whoever has a copy is to be told. Only where ballooned pages are not read.
    pub newly_ballooned: Pages,
    /// Pages pending afterwards.
    pub pending: Pages,
    /// Of those, ballooned pages: they are neither read nor sent.
    pub ballooned: Pages,
    /// All of it.
    pub time: Duration,
    /// Each log's share.
    pub logs: Vec<LogReport>,
    /// A log will deliver some of what it holds in the next sync.
    pub postponed: bool,
    /// A log failed, and what it covers counts as found: nobody knows how much was written.
    pub failed: bool,
    /// Logs that failed (their pages were all taken as dirty) or come later, in words.
    pub warnings: Vec<String>,
}

/// Running totals since tracking started, whoever asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerStats {
    /// Syncs made.
    pub syncs: u64,
    /// Clear calls made for chunks.
    pub clear_calls: u64,
    /// Bits they cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk.
    pub longest_clear: Duration,
    /// Ballooned pages that were handed out as such, neither read nor sent. One that is told
    /// again counts again.
    pub ballooned: Pages,
    /// Ballooned pages that were found written all the same, and are ballooned no longer.
    pub ballooned_written: Pages,
    /// Pages that free-page hints took out of pending.
    pub hinted: Pages,
    /// Hints that came too late: their round was over.
    pub stale_hints: u64,
}

/// Running totals of one consumer since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Syncs that it heard of, whoever asked for them.
    pub syncs: u64,
    /// Those of them in which a log failed, so that all that it covers was found.
    pub failed_syncs: u64,
    /// Pages that became pending by them.
    pub found: Pages,
    /// Pages that they found written: see [`SyncReport::written`].
    pub written: Pages,
    /// Pages put back.
    pub put_back: Pages,
    /// Clear calls made for chunks meanwhile, whoever took from them.
    pub clear_calls: u64,
    /// Bits they cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk meanwhile.
    pub longest_clear: Duration,
    /// Ballooned pages that were handed out as such. One that is told again counts again.
    pub ballooned: Pages,
    /// Ballooned pages that were found written all the same, and are ballooned no longer.
    pub ballooned_written: Pages,
    /// Pages that free-page hints took out of pending.
    pub hinted: Pages,
}
