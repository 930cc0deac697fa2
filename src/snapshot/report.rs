//! The parameters and the figures of a save and of a restore.

use crate::error::{Error, Kind, Result};
use crate::image::WRITERS_MAX;
use crate::units::PAGE_SIZE;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The state of a save or a restore. The numbers are part of the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum State {
    /// Not started.
    #[default]
    Idle = 0,
    /// Save: making the file. Restore: opening it, and comparing memory layouts.
    Preparing = 1,
    /// Save: writing memory while the guest runs. Merge: writing memory.
    Copying = 2,
    /// Save: the guest is paused. The VMM saves its state, and the last pages are written.
    Paused = 3,
    /// Save: the last page has been written. The file is completed and gets its name.
    Finishing = 4,
    /// Restore: memory is being read. The guest of a lazy restore runs meanwhile.
    Filling = 5,
    /// Restore: the VMM loads its state.
    Loading = 6,
    /// Restore: the VMM starts the guest.
    Starting = 7,
    /// The save or restore succeeded.
    Completed = 8,
    /// The save or restore failed or was cancelled.
    Failed = 9,
}

impl State {
    /// Whether this is an end: no other state follows.
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
    /// The current state.
    pub state: State,
    /// Why the save or restore failed.
    pub error: Option<Kind>,
    /// Save: the pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// The progress in hundredths of a percent, 0 to 10000. It never falls, and is 10000 only in
    /// [`State::Completed`].
    pub progress: u32,
    /// The guest's memory, in bytes.
    pub total_bytes: u64,
    /// Bytes of the guest's memory still to be written or read. May grow during a save while the
    /// guest runs.
    pub remaining_bytes: u64,
    /// Pages with contents that were written or read. A page that is written again counts again.
    pub data_pages: u64,
    /// Zero pages, ballooned ones included; they take no room in the file. A page that is handled
    /// again counts again.
    pub zero_pages: u64,
    /// Save, of the zero pages: ballooned ones.
    pub ballooned_pages: u64,
    /// Save, of the zero pages: those whose contents the VMM has declared lost.
    pub poisoned_pages: u64,
    /// Bytes of the VMM's blobs.
    pub state_bytes: u64,
    /// The length of the file; 0 until it is known. Zero pages take no room on the disk, so the
    /// file may occupy less.
    pub file_bytes: u64,
    /// Since the start.
    pub elapsed: Duration,
    /// Save with [`SaveInstant::Start`]: how long protecting memory took, which is part of
    /// `downtime`. `None` before that, and in other saves.
    pub protecting: Option<Duration>,
    /// Save with [`SaveInstant::Start`]: how often a thread waited because it touched a page that the
    /// image did not have yet. Lazy restore: page faults, those on pages that were here included.
    pub faults: u64,
    /// Save with [`SaveInstant::Start`], of the data pages: those that were copied because the guest
    /// wrote them first, or the pages before them.
    pub copied_pages: u64,
    /// Save with [`SaveInstant::Start`], of the faults: those that waited for a buffer or the disk,
    /// because there was no room for a copy ([`SaveParams::max_copy_bytes`]).
    pub held_faults: u64,
    /// Save: how long the guest stood still, from the call of `pause` to the return of `resume`.
    /// `None` before that, when the guest stays paused, and when it was paused already at the
    /// start.
    pub downtime: Option<Duration>,
    /// Lazy restore: pages that a thread waited for. All others were here before.
    pub urgent_pages: u64,
    /// Lazy restore: pages that the image does not have whole, or that could not be read. An access
    /// of one raises SIGBUS.
    pub lost_pages: u64,
    /// Lazy restore: half of the waits for a page were no longer, to an eighth.
    pub fault_p50: Duration,
    /// Lazy restore: 99 of 100 waits for a page were no longer, to an eighth.
    pub fault_p99: Duration,
    /// Lazy restore: the longest wait for a page.
    pub fault_max: Duration,
}

impl Stats {
    /// Computes the progress anew; it never falls.
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

/// Which moment of the guest an image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SaveInstant {
    /// The end of the save. Memory is written while the guest runs, what it writes meanwhile is
    /// written again, and the guest is paused for the last pages.
    #[default]
    End,
    /// The start of the save. The guest is paused while its state is saved and its memory is protected
    /// from writes, and then runs on. A page that it writes before the image has it is copied first.
    ///
    /// The save finds writes through the block's own mapping: by vCPUs, by threads of this process,
    /// and by the kernel for either. It is refused for a guest with devices or logs that say of
    /// writers that it would not see (vhost, VFIO, iommufd), and where another userfaultfd watches
    /// the memory. It is the VMM's duty that nothing else writes guest memory past page tables or
    /// through another mapping until the save is over: no other process, no DMA, no `O_DIRECT` or
    /// `io_uring` read into guest memory. Before the VMM discards memory (a balloon, virtio-mem), it
    /// calls [`Memory::before_discard`](crate::memory::Memory::before_discard).
    ///
    /// No block can be removed while such a save is in progress. A block that is added after the
    /// pause is not in the image.
    Start,
}

/// Parameters of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveParams {
    /// Which moment of the guest the image holds: by default that at the end.
    pub instant: SaveInstant,
    /// Passes go on until the rest can be written in half of this time: 1 ms to 1 hour, by default
    /// 300 ms. A guest that writes faster than the disk is paused nevertheless: see `max_passes`.
    pub downtime_limit: Duration,
    /// After this many passes the guest is paused, however much is left: 1 to 1000, by default 30.
    /// It is paused sooner when a pass leaves hardly less than the pass before.
    pub max_passes: u32,
    /// Threads that write: 1 to 64, by default 2.
    pub writers: u32,
    /// Bytes of pages a second that are written while the guest runs, by all threads together: 64
    /// KiB/s to 1 TiB/s; `None`, the default, is no cap. When the save has paused the guest, the rest
    /// is not capped. With [`SaveInstant::Start`] the cap holds to the end, and a guest that was
    /// paused already is saved under the cap to the end.
    pub max_bandwidth: Option<u64>,
    /// With [`SaveInstant::Start`]: bytes of memory for copies of pages that the guest writes before
    /// the image has them: 1 MiB to 1 TiB, by default 64 MiB. At the limit, threads of the guest wait
    /// until their pages are read. The threads that write have buffers of 4 MiB each besides.
    pub max_copy_bytes: u64,
    /// Whether long writes go past the page cache (`O_DIRECT`), if the file system allows it. On by
    /// default.
    pub direct: bool,
    /// The guest is paused already when the save starts, and stays paused: neither `pause` nor
    /// `resume` is called. Its memory is written in one pass. Afterwards the guest belongs to
    /// whom it belonged before ([`Unknown`](crate::memory::Whose::Unknown) or
    /// [`Here`](crate::memory::Whose::Here)), and the VMM starts it without a word to brant. A kick
    /// of a vCPU must leave a guest standing that the VMM has paused.
    pub already_paused: bool,
    /// The guest stays paused after a successful save, as [`Stands`](crate::memory::Whose::Stands):
    /// the VMM calls [`runs_here`](crate::memory::Memory::runs_here) before the vCPUs run again.
    /// Until then no vCPU is kicked. After a failure or a cancel the guest runs on.
    pub stay_paused: bool,
}

impl Default for SaveParams {
    fn default() -> Self {
        SaveParams {
            instant: SaveInstant::End,
            downtime_limit: Duration::from_millis(300),
            max_passes: 30,
            writers: 2,
            max_bandwidth: None,
            max_copy_bytes: 64 << 20,
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
        within("writers", self.writers, 1..=WRITERS_MAX)?;
        within("max_copy_bytes", self.max_copy_bytes, 1 << 20..=1 << 40)?;
        if self.instant == SaveInstant::Start && (self.already_paused || self.stay_paused) {
            return Err(Error::new(
                Kind::Invalid,
                "a save of the guest as it is at the start pauses and resumes it; found a guest that \
                 is to stand still at the start or at the end",
            ));
        }
        match self.max_bandwidth {
            Some(cap) => within("max_bandwidth (bytes a second)", cap, 65_536..=1 << 40),
            None => Ok(()),
        }
    }
}

/// Parameters of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreParams {
    /// Threads that read: 1 to 64, by default 4.
    pub readers: u32,
    /// Whether long reads go past the page cache (`O_DIRECT`), if the file system allows it. On by
    /// default.
    pub direct: bool,
    /// The most bytes of blobs that the restore accepts: 4 KiB to 1 TiB, by default 256 MiB.
    pub max_state_bytes: u64,
    /// brant does not call `run`: the guest stays paused, and the VMM starts it, after
    /// [`runs_here`](crate::memory::Memory::runs_here).
    pub stay_paused: bool,
    /// The guest starts before its memory is here ([`Incomplete`](crate::memory::Whose::Incomplete)).
    /// Pages come from the image when a thread touches them, and in the background; the restore is
    /// over when all of them are here, and [`Restore::finish`](super::Restore::finish) hurries. Needs
    /// a userfaultfd for faults of the kernel, and memory that it can watch. A page that turns out to
    /// be damaged before the guest runs fails the restore. Afterwards its access raises SIGBUS, and the
    /// restore fails when the other pages are here.
    pub lazy: bool,
    /// The VMM trusts the image: nobody cuts it or writes to it as long as this guest exists. Its file
    /// is then mapped privately in place of the blocks' memory, and the guest starts at once. Pages
    /// are read by the kernel when they are touched, and are **not checked**: a damaged page is wrong
    /// memory, and the access of a page that was cut off raises SIGBUS. For blocks of private memory
    /// without a file and huge pages, and for an image that holds all of memory
    /// ([`merge`](super::merge())); all others are refused by name before anything is touched. Not
    /// together with `lazy`.
    pub trusted: bool,
}

impl Default for RestoreParams {
    fn default() -> Self {
        RestoreParams {
            readers: 4,
            direct: true,
            max_state_bytes: 256 << 20,
            stay_paused: false,
            lazy: false,
            trusted: false,
        }
    }
}

impl RestoreParams {
    pub(super) fn check(&self) -> Result<()> {
        within("readers", self.readers, 1..=WRITERS_MAX)?;
        if self.lazy && self.trusted {
            return Err(Error::new(
                Kind::Invalid,
                "a restore is lazy or trusted, not both: either starts the guest at once",
            ));
        }
        within("max_state_bytes", self.max_state_bytes, 4096..=1 << 40)
    }
}
