//! A guest in a file: the constants and figures that saves, restores and merges have in common.

use super::error::invalid;
use super::stats::BRANT_UNKNOWN;
use super::structs::sized;
use crate::error::Result;
use crate::migrate::report::nanos;
use crate::snapshot::Stats;

/// In `brant_image_save_params.cache` and `brant_image_restore_params.cache`, the default: long
/// reads and writes go past the page cache (O_DIRECT), where the file system lets them.
pub const BRANT_IMAGE_DIRECT: u32 = 0;
/// In `brant_image_save_params.cache` and `brant_image_restore_params.cache`: everything goes
/// through the page cache. For an image that is restored soon on the same host.
pub const BRANT_IMAGE_CACHED: u32 = 1;

/// Not started.
pub const BRANT_IMAGE_IDLE: u32 = 0;
/// Save: making the file. Restore: opening it, comparing memory layouts.
pub const BRANT_IMAGE_PREPARING: u32 = 1;
/// Save: writing memory while the guest runs. Merge: writing memory.
pub const BRANT_IMAGE_COPYING: u32 = 2;
/// Save: the guest is paused; its state is saved and the last pages are written.
pub const BRANT_IMAGE_PAUSED: u32 = 3;
/// Save and merge: the last page is written; the file is made whole and gets its name.
pub const BRANT_IMAGE_FINISHING: u32 = 4;
/// Restore: memory is being read.
pub const BRANT_IMAGE_FILLING: u32 = 5;
/// Restore: the VMM loads its state.
pub const BRANT_IMAGE_LOADING: u32 = 6;
/// Restore: the VMM starts the guest.
pub const BRANT_IMAGE_STARTING: u32 = 7;
/// It is done.
pub const BRANT_IMAGE_COMPLETED: u32 = 8;
/// It failed, or was cancelled.
pub const BRANT_IMAGE_FAILED: u32 = 9;

/// The figures of a save or a restore. Times are nanoseconds, sizes bytes, pages 4 KiB.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_image_stats {
    /// sizeof(brant_image_stats).
    pub size: usize,
    /// The state: BRANT_IMAGE_*, from _IDLE to _FAILED.
    pub state: u32,
    /// Save: the pass over memory, from 1; 0 before the first.
    pub pass: u32,
    /// BRANT_E_*, why it failed; 0 if it has not failed.
    pub error: i32,
    /// How far it is, in hundredths of a percent, 0 to 10000. Never falls; 10000 once it has
    /// completed, and not before.
    pub progress: u32,
    /// The guest's memory.
    pub total_bytes: u64,
    /// Bytes of the guest's memory that remain to be written or read. May grow while a guest that
    /// is saved runs.
    pub remaining_bytes: u64,
    /// Pages with contents; a page that is written again counts again.
    pub data_pages: u64,
    /// Pages that are zero, ballooned ones included; they take no room in the file. A page that is
    /// named again counts again.
    pub zero_pages: u64,
    /// Save, of the zero pages: ballooned ones.
    pub ballooned_pages: u64,
    /// Save, of the zero pages: those whose contents the VMM has declared lost.
    pub poisoned_pages: u64,
    /// Bytes of early configuration and device state.
    pub state_bytes: u64,
    /// The length of the file; zero pages take no room on the disk. 0 until the length is known.
    pub file_bytes: u64,
    /// Since the start.
    pub elapsed_ns: u64,
    /// Save: how long the guest stood still, from the call of `pause` to the return of `resume`;
    /// BRANT_UNKNOWN before, and when brant did not call both.
    pub downtime_ns: u64,
    /// Restore with `lazy`: pages that a thread waited for. All others were here before.
    pub urgent_pages: u64,
    /// Restore with `lazy`: pages that are damaged in the image, or could not be read, and that the
    /// guest runs without.
    pub lost_pages: u64,
    /// Restore with `lazy`: page faults, those on pages that were here included. Save with
    /// BRANT_IMAGE_INSTANT_START: how often a thread waited because it touched a page that the image
    /// did not have yet.
    pub faults: u64,
    /// Restore with `lazy`: half of the waits for a page were no longer, to an eighth. 0 without a
    /// wait.
    pub fault_p50_ns: u64,
    /// Restore with `lazy`: 99 of 100 waits for a page were no longer, to an eighth.
    pub fault_p99_ns: u64,
    /// Restore with `lazy`: the longest wait for a page.
    pub fault_max_ns: u64,
    /// Save with BRANT_IMAGE_INSTANT_START: how long protecting memory took, which is part of
    /// `downtime_ns`; BRANT_UNKNOWN before that, and in other saves.
    pub protecting_ns: u64,
    /// Save with BRANT_IMAGE_INSTANT_START, of the data pages: those that were copied because the
    /// guest wrote them first, or the pages before them.
    pub copied_pages: u64,
    /// Save with BRANT_IMAGE_INSTANT_START, of the faults: those that waited for a buffer or the disk,
    /// because there was no room for a copy.
    pub held_faults: u64,
}

sized!(brant_image_stats);

impl From<&Stats> for brant_image_stats {
    fn from(stats: &Stats) -> Self {
        brant_image_stats {
            size: size_of::<Self>(),
            state: stats.state as u32,
            pass: stats.pass,
            error: stats.error.map_or(0, |kind| kind as i32),
            progress: stats.progress,
            total_bytes: stats.total_bytes,
            remaining_bytes: stats.remaining_bytes,
            data_pages: stats.data_pages,
            zero_pages: stats.zero_pages,
            ballooned_pages: stats.ballooned_pages,
            poisoned_pages: stats.poisoned_pages,
            state_bytes: stats.state_bytes,
            file_bytes: stats.file_bytes,
            elapsed_ns: nanos(stats.elapsed),
            downtime_ns: stats.downtime.map_or(BRANT_UNKNOWN, nanos),
            urgent_pages: stats.urgent_pages,
            lost_pages: stats.lost_pages,
            faults: stats.faults,
            fault_p50_ns: nanos(stats.fault_p50),
            fault_p99_ns: nanos(stats.fault_p99),
            fault_max_ns: nanos(stats.fault_max),
            protecting_ns: stats.protecting.map_or(BRANT_UNKNOWN, nanos),
            copied_pages: stats.copied_pages,
            held_faults: stats.held_faults,
        }
    }
}

/// Whether reads and writes go past the page cache.
pub(super) fn direct(cache: u32) -> Result<bool> {
    match cache {
        BRANT_IMAGE_DIRECT => Ok(true),
        BRANT_IMAGE_CACHED => Ok(false),
        other => Err(invalid(format!(
            "cache is BRANT_IMAGE_DIRECT (0) or BRANT_IMAGE_CACHED (1), not {other}"
        ))),
    }
}

/// The value of a field, or its default where it is 0.
pub(super) fn or<T: PartialEq + Default>(value: T, default: T) -> T {
    if value == T::default() {
        default
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::State;

    #[test]
    fn the_numbers_of_states_are_those_of_the_header() {
        let numbers = [
            (State::Idle, BRANT_IMAGE_IDLE),
            (State::Preparing, BRANT_IMAGE_PREPARING),
            (State::Copying, BRANT_IMAGE_COPYING),
            (State::Paused, BRANT_IMAGE_PAUSED),
            (State::Finishing, BRANT_IMAGE_FINISHING),
            (State::Filling, BRANT_IMAGE_FILLING),
            (State::Loading, BRANT_IMAGE_LOADING),
            (State::Starting, BRANT_IMAGE_STARTING),
            (State::Completed, BRANT_IMAGE_COMPLETED),
            (State::Failed, BRANT_IMAGE_FAILED),
        ];
        for (state, number) in numbers {
            assert_eq!(state as u32, number);
        }
    }
}
