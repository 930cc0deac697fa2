//! Plain values at the tracker's interface: its parameters, its reports and its totals.

use super::LogKind;
use crate::bits::chunks::CHUNK_SHIFT_DEFAULT;
use crate::units::Pages;
use std::time::Duration;

/// How the tracker restores protection for a log that leaves this to it.
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
    /// Every page. A consumer that reads them all, and then the pages written since, has a copy.
    Everything,
    /// No page. The consumer hears of writes from now on.
    Nothing,
}

/// What one log did in a sync.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogReport {
    /// The log's kind.
    pub kind: LogKind,
    /// The log's name: several logs may be of one kind.
    pub name: &'static str,
    /// The time of kernel calls and merging.
    pub time: Duration,
    /// Pages that became pending through this log.
    pub found: Pages,
    /// Pages that the log found written since it last could tell: see [`SyncReport::written`].
    pub written: Pages,
}

/// What a sync found and what it cost.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SyncReport {
    /// Pages that became pending for the consumer that asked for the sync. A page that was pending
    /// already does not count.
    pub found: Pages,
    /// Pages that the logs found written, whether they were pending or not. When a guest writes
    /// pages that a walk has not reached yet, they count here and not in `found`. Each log counts a
    /// page once for each time that it finds it; two logs that find the same page count it twice.
    /// Pages that were taken as dirty because a log failed do not count.
    pub written: Pages,
    /// The number of pages for which a write since the last sync could be found. The other pages
    /// were found before, and their protection has not been restored since. In the manual-protect
    /// modes of KVM's log, and in vhost logs, these are the pages that nobody has taken yet. The
    /// pages that a guest wrote since the last sync are estimated as `written` over `observed`
    /// times its memory.
    pub observed: Pages,
    /// Pages that became pending because they became ballooned since the last sync: the holder of a
    /// copy has to learn of it. 0 unless ballooned pages are skipped.
    pub newly_ballooned: Pages,
    /// Pages pending after the sync.
    pub pending: Pages,
    /// Pending pages that are ballooned: they are neither read nor sent.
    pub ballooned: Pages,
    /// The time of the whole sync.
    pub time: Duration,
    /// Each log's share.
    pub logs: Vec<LogReport>,
    /// A log will deliver some of its pages in the next sync.
    pub postponed: bool,
    /// A log failed, and all pages that it covers count as found. How many of them were written is
    /// unknown.
    pub failed: bool,
    /// One sentence for each log that failed or postponed pages.
    pub warnings: Vec<String>,
}

/// Running totals since tracking started, over the syncs and takes of all consumers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerStats {
    /// Syncs made.
    pub syncs: u64,
    /// Clear calls made for chunks.
    pub clear_calls: u64,
    /// Dirty bits that these calls cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk.
    pub longest_clear: Duration,
    /// Ballooned pages that were handed out as such, neither read nor sent. A page that is handed
    /// out again counts again.
    pub ballooned: Pages,
    /// Ballooned pages that a log found written although they were ballooned. They are ballooned no
    /// longer.
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
    /// Syncs while this consumer was started, by any consumer.
    pub syncs: u64,
    /// Syncs in which a log failed, so that all pages that it covers were found.
    pub failed_syncs: u64,
    /// Pages that became pending by these syncs.
    pub found: Pages,
    /// Pages that these syncs found written: see [`SyncReport::written`].
    pub written: Pages,
    /// Pages put back.
    pub put_back: Pages,
    /// Clear calls made for chunks meanwhile, for takes of any consumer.
    pub clear_calls: u64,
    /// Dirty bits that these calls cleared.
    pub clear_bits: u64,
    /// The longest restoring of one chunk meanwhile.
    pub longest_clear: Duration,
    /// Ballooned pages that were handed out as such. A page that is handed out again counts again.
    pub ballooned: Pages,
    /// Ballooned pages that a log found written although they were ballooned. They are ballooned no
    /// longer.
    pub ballooned_written: Pages,
    /// Pages that free-page hints took out of pending.
    pub hinted: Pages,
}
