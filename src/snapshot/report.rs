//! What a save and a restore are told, and the figures that they tell.

use crate::error::{Error, Kind, Result};
use crate::image::WRITERS_MAX;
use crate::units::PAGE_SIZE;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Where a save or a restore is. The numbers are part of the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum State {
    /// Not started.
    #[default]
    Idle = 0,
    /// Save: making the file. Restore: opening it, and comparing memory layouts.
    Preparing = 1,
    /// Save: writing memory while the guest runs.
    Copying = 2,
    /// Save: the guest is paused; its state is saved and the last pages are written.
    Paused = 3,
    /// Save: the last page is written; the file is made whole and gets its name.
    Finishing = 4,
    /// Restore: memory is being read.
    Filling = 5,
    /// Restore: the VMM loads its state.
    Loading = 6,
    /// Restore: the VMM starts the guest.
    Starting = 7,
    /// It is done.
    Completed = 8,
    /// It failed, or was cancelled.
    Failed = 9,
}

impl State {
    /// Whether nothing follows it.
    pub fn is_over(self) -> bool {
        matches!(self, State::Completed | State::Failed)
    }

    /// A short name in plain words, for logs.
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Preparing => "preparing",
            State::Copying => "copying",
            State::Paused => "paused",
            State::Finishing => "finishing",
            State::Filling => "filling",
            State::Loading => "loading",
            State::Starting => "starting",
            State::Completed => "completed",
            State::Failed => "failed",
        }
    }
}

/// The figures of a save or a restore. Pages are 4 KiB.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Where it is.
    pub state: State,
    /// Why it failed.
    pub error: Option<Kind>,
    /// Save: the pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// How far it is, in hundredths of a percent, 0 to 10000. Never falls; 10000 once it has
    /// completed, and not before.
    pub progress: u32,
    /// The guest's memory, in bytes.
    pub total_bytes: u64,
    /// Of it, what is still to be written or read. May grow while a guest that is saved runs.
    pub remaining_bytes: u64,
    /// Pages with contents; one that is written again counts again.
    pub data_pages: u64,
    /// Pages that are zero, ballooned ones included, which take no room; one that is told again counts
    /// again.
    pub zero_pages: u64,
    /// Save, of the zero pages: ballooned ones.
    pub ballooned_pages: u64,
    /// Save, of the zero pages: those whose contents the VMM has declared lost.
    pub poisoned_pages: u64,
    /// What the VMM saved or loads, in bytes.
    pub state_bytes: u64,
    /// How long the file is; less of it takes room on the disk, where pages are zero. 0 until that is
    /// known.
    pub file_bytes: u64,
    /// Since the start.
    pub elapsed: Duration,
    /// Save: how long the guest stood still, from the call of `pause` to the return of `resume`.
    /// `None` before, and where it was left paused or had been paused before.
    pub downtime: Option<Duration>,
}

impl Stats {
    /// Moves the progress on, never back.
    pub(super) fn advance(&mut self) {
        let done = self.data_pages + self.zero_pages;
        let left = self.remaining_bytes / PAGE_SIZE;
        if done + left > 0 {
            let now = (u128::from(done) * 10_000 / u128::from(done + left)).min(9_999) as u32;
            self.progress = self.progress.max(now);
        }
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    name: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        format!(
            "{name} is {} to {}, not {value}",
            range.start(),
            range.end()
        ),
    ))
}

/// How a guest is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveParams {
    /// Passes go on until the rest can be written in half of this time; 1 ms to 1 hour, 300 ms unless
    /// it is said. A guest that writes faster than the disk is paused all the same: see `max_passes`.
    pub downtime_limit: Duration,
    /// After so many passes the guest is paused, however much is left; 1 to 1000, 30 unless it is said.
    /// It is paused sooner where a pass leaves hardly less than the one before. With 1 the guest
    /// is paused after one pass.
    pub max_passes: u32,
    /// Threads that write; 1 to 64, 2 unless it is said.
    pub writers: u32,
    /// Whether long writes go past the page cache (`O_DIRECT`), where the file system lets them. So
    /// it is unless it is said.
    pub direct: bool,
    /// The guest is paused when the save is started, and stays so: neither `pause` nor `resume` is
    /// called. It is written in one pass.
    pub already_paused: bool,
    /// The guest stays paused once it is saved. After a failure or a cancel it runs on.
    pub stay_paused: bool,
}

impl Default for SaveParams {
    fn default() -> Self {
        SaveParams {
            downtime_limit: Duration::from_millis(300),
            max_passes: 30,
            writers: 2,
            direct: true,
            already_paused: false,
            stay_paused: false,
        }
    }
}

impl SaveParams {
    pub(super) fn check(&self) -> Result<()> {
        let limit = self.downtime_limit.as_millis();
        within("downtime_limit (milliseconds)", limit, 1..=3_600_000)?;
        within("max_passes", self.max_passes, 1..=1000)?;
        within("writers", self.writers, 1..=WRITERS_MAX)
    }
}

/// How a guest is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreParams {
    /// Threads that read; 1 to 64, 2 unless it is said.
    pub readers: u32,
    /// Whether long reads go past the page cache (`O_DIRECT`), where the file system lets them. So
    /// it is unless it is said.
    pub direct: bool,
    /// The most bytes of what a VMM saved that are taken; 4 KiB to 1 TiB, 256 MiB unless it is said.
    pub max_state_bytes: u64,
    /// `run` is not called: the guest stands, and the VMM starts it.
    pub stay_paused: bool,
}

impl Default for RestoreParams {
    fn default() -> Self {
        RestoreParams {
            readers: 2,
            direct: true,
            max_state_bytes: 256 << 20,
            stay_paused: false,
        }
    }
}

impl RestoreParams {
    pub(super) fn check(&self) -> Result<()> {
        within("readers", self.readers, 1..=WRITERS_MAX)?;
        within("max_state_bytes", self.max_state_bytes, 4096..=1 << 40)
    }
}
