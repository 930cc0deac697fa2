//! How C starts, syncs, takes, puts back and stops: the same for a tracker, which is the VMM's own
//! consumer, and for every other consumer. What they share below their exports is here.

use super::error::invalid;
use super::structs::{put, sized, write};
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::tracker::{LogReport, StartWith, Tracker};
use crate::dirty::{LogKind, When};
use crate::error::Result;
use crate::memory::{BlockId, BlockPin};
use crate::units::Pages;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

/// Every page is pending at the start: for a consumer that copies all pages first and then the
/// pages that change.
pub const BRANT_START_ALL: u32 = 0;
/// No page is pending at the start: only what is written from now on is found.
pub const BRANT_START_CLEAN: u32 = 1;

/// The guest may be running.
pub const BRANT_SYNC_RUNNING: u32 = 0;
/// The guest is paused and its vCPU state is saved: the harvest is exact, and a log that fails is
/// an error. (With BRANT_SYNC_RUNNING all pages of such a log count as dirty.)
pub const BRANT_SYNC_STOPPED: u32 = 1;

/// What a sync found and what it cost.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_sync {
    /// sizeof(brant_sync).
    pub size: usize,
    /// Pages that became pending for the consumer that asked. A page that was pending for that
    /// consumer already does not count again. The pages of each log below are counted in the same
    /// way.
    pub found_pages: u64,
    /// Pages that the logs found written, whether they were pending or not. Each log counts a page
    /// once for each sync that finds it; two logs that find the same page count it twice. Pages
    /// that count as dirty because a log failed are not among them.
    pub written_pages: u64,
    /// Pages whose protection was in place since the last sync, so that a write to them could be
    /// found. A page that an earlier sync found is not among them before its protection is
    /// restored: in the manual-protect modes of KVM's log, before somebody takes it. The guest's
    /// dirty rate is written_pages divided by observed_pages, times the guest's memory.
    pub observed_pages: u64,
    /// Pages that are pending now for the consumer that asked.
    pub pending_pages: u64,
    /// Nanoseconds that the whole sync took.
    pub time_ns: u64,
    /// Nanoseconds for KVM's logs, bitmaps and rings, kernel and merging.
    pub kvm_ns: u64,
    /// Pages found by KVM's logs.
    pub kvm_pages: u64,
    /// Nanoseconds for the VMM's own marks.
    pub reported_ns: u64,
    /// Pages found by the VMM's own marks and by nothing else before.
    pub reported_pages: u64,
    /// Logs that failed, so that all their pages count as dirty, and logs that will deliver some
    /// pages only later.
    pub warnings: u64,
    /// Nanoseconds for the logs of vhost and vhost-user back ends.
    pub vhost_ns: u64,
    /// Pages found by them.
    pub vhost_pages: u64,
    /// Nanoseconds for VFIO's and iommufd's logs.
    pub vfio_ns: u64,
    /// Pages found by them.
    pub vfio_pages: u64,
    /// Nanoseconds for userfaultfd's write protection.
    pub userfault_ns: u64,
    /// Pages found by it.
    pub userfault_pages: u64,
}

/// A run of pages that was taken: read them now, or put them back.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_run {
    /// Address of the first page in this process.
    pub host: *mut c_void,
    /// First page, in the block.
    pub first_page: u64,
    /// How many pages of 4 KiB; they do not cross a 2 MiB boundary of the block.
    pub pages: u64,
    /// The block's number.
    pub block: u32,
    /// 0.
    pub reserved: u32,
}

sized!(brant_sync);

/// The one body of `brant_tracker_start`, `_sync`, `_take`, `_put_back`, `_stop` and of their
/// `brant_consumer` namesakes: a consumer, and how far it has walked.
pub(super) struct Reader {
    walk: Mutex<Walk>,
    consumer: Consumer,
}

#[derive(Default)]
struct Walk {
    cursor: Cursor,
    /// The blocks of the runs that the last take handed out: the caller reads them.
    in_use: Vec<BlockPin>,
}

impl Reader {
    /// A consumer of C's; `own`: the VMM's, which it uses by the tracker's functions.
    pub(super) fn of(tracker: &Arc<Tracker>, own: bool) -> Self {
        let who = |number| match own {
            true => "the VMM itself, as the tracker's own consumer,".to_owned(),
            false => format!("consumer {number} of the tracker"),
        };
        Reader {
            consumer: tracker.consumer_that(who, "it takes again, is stopped or is freed"),
            walk: Mutex::default(),
        }
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    fn walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn start(&self, with: u32) -> Result<()> {
        let with = match with {
            BRANT_START_ALL => StartWith::Everything,
            BRANT_START_CLEAN => StartWith::Nothing,
            other => {
                return Err(invalid(format!(
                    "tracking starts with BRANT_START_ALL (0) or BRANT_START_CLEAN (1), not {other}"
                )))
            }
        };
        self.consumer.start(with)?;
        self.walk().cursor = Cursor::default();
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<()> {
        self.walk().in_use.clear();
        self.consumer.stop()
    }

    /// # Safety
    /// `report` is null or a structure of C's.
    pub(super) unsafe fn sync(&self, when: u32, report: *mut brant_sync) -> Result<()> {
        let when = match when {
            BRANT_SYNC_RUNNING => When::Running,
            BRANT_SYNC_STOPPED => When::Stopped,
            other => {
                return Err(invalid(format!(
                    "a sync is BRANT_SYNC_RUNNING (0) or BRANT_SYNC_STOPPED (1), not {other}"
                )))
            }
        };
        let done = self.consumer.sync(when)?;
        if report.is_null() {
            return Ok(());
        }
        let sum = |kinds: &[LogKind], of: fn(&LogReport) -> u64| {
            let those = done.logs.iter().filter(|l| kinds.contains(&l.kind));
            those.map(of).sum::<u64>()
        };
        let ns = |kinds| sum(kinds, |l| l.time.as_nanos() as u64);
        let pages = |kinds| sum(kinds, |l| l.found.0);
        let kvm = &[LogKind::KvmLog, LogKind::KvmRing];
        let reported = &[LogKind::Reported];
        let vhost = &[LogKind::Vhost];
        let vfio = &[LogKind::Vfio, LogKind::Iommufd];
        let userfault = &[LogKind::Userfault];
        let filled = brant_sync {
            size: 0,
            found_pages: done.found.0,
            written_pages: done.written.0,
            observed_pages: done.observed.0,
            pending_pages: done.pending.0,
            time_ns: done.time.as_nanos() as u64,
            kvm_ns: ns(kvm),
            kvm_pages: pages(kvm),
            reported_ns: ns(reported),
            reported_pages: pages(reported),
            warnings: done.warnings.len() as u64,
            vhost_ns: ns(vhost),
            vhost_pages: pages(vhost),
            vfio_ns: ns(vfio),
            vfio_pages: pages(vfio),
            userfault_ns: ns(userfault),
            userfault_pages: pages(userfault),
        };
        // SAFETY: not null, a structure by contract.
        unsafe { write(report, &filled) }
    }

    /// # Safety
    /// There is room for `capacity` runs at `runs`, and `count` is null or a place.
    pub(super) unsafe fn take(
        &self,
        runs: *mut brant_run,
        capacity: usize,
        count: *mut usize,
    ) -> Result<()> {
        if (runs.is_null() && capacity > 0) || count.is_null() {
            return Err(invalid(
                "count is not NULL, and runs is not either unless the capacity is 0",
            ));
        }
        let mut walk = self.walk();
        walk.in_use.clear();
        let taken =
            self.consumer
                .take(&mut walk.cursor, capacity.min(TAKE_MAX), Pages(u64::MAX))?;
        for (i, run) in taken.runs().enumerate() {
            // SAFETY: i < capacity, and there is room for that many by contract.
            unsafe {
                runs.add(i).write(brant_run {
                    host: run.block.page_address(run.pages.first()).cast(),
                    first_page: run.pages.first().0,
                    pages: run.pages.count().0,
                    block: run.block.id().0,
                    reserved: 0,
                });
            }
        }
        // SAFETY: not null, a place by contract.
        unsafe { put(count, "count", taken.run_count()) }?;
        // The caller's from here on.
        walk.in_use = taken.delivered_in_use();
        Ok(())
    }

    pub(super) fn put_back(&self, block: u32, first: u64, pages: u64) -> Result<()> {
        let length = self
            .consumer
            .memory()
            .with_map(|map| map.block(BlockId(block)).map(|b| b.pages().0));
        if let Some(length) = length {
            if first.checked_add(pages).is_none_or(|end| end > length) {
                return Err(invalid(format!(
                    "block {block} has {length} pages; {pages} from page {first} reach past its end"
                )));
            }
        }
        self.consumer
            .put_back(BlockId(block), Pages(first), Pages(pages));
        Ok(())
    }
}

/// The most runs that one call takes.
const TAKE_MAX: usize = 4096;
