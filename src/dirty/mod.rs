//! Who wrote to guest memory: one [`DirtyLog`] for each way a page gets dirty.
//!
//! A log knows the writes of one kind of writer only, for example from a KVM bitmap or the VMM's
//! marks. The [`tracker`] merges what all logs found, and knows which pages are still to be read.
//!
//! The trait serves KVM's bitmap and rings, the VMM's own marks, vhost, VFIO, iommufd and
//! userfaultfd. These logs differ in four ways. They give bitmaps or lists of pages ([`Sink`]).
//! They count pages from a slot, a guest address, an IOVA or a block ([`Origin`]). Some can fail,
//! and then every page is dirty. Some are exact only when the vCPUs are stopped ([`Exact`]).

mod ballooned;
mod beside;
mod by_vcpu;
pub mod consumer;
mod figures;
mod follow;
mod frozen;
mod guarded;
mod hints;
pub mod iommufd;
pub mod iova;
pub mod kvm;
mod lease;
mod led;
mod left_out;
mod merge;
mod pending;
mod protected;
mod rearm;
mod report;
pub mod reported;
mod run;
mod slices;
mod state;
mod strays;
mod sync;
mod take;
pub mod taken;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tracker;
pub mod userfault;
pub mod vcpus;
pub mod vfio;
pub mod vhost;
mod write_marks;

pub use write_marks::WriteMarks;

use crate::bits::summary::Bitmap;
use crate::error::{Error, Result};
use crate::memory::{Block, BlockId, Map, Ownership, Slot};
use crate::runtime::Cancel;
use crate::units::Pages;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// The place of the first page that a log reports.
///
/// A log may report pages that the guest does not have: of a slot or block that is gone, past the
/// end of one, or at an address without memory. Such pages are passed over. They are strays
/// ([`Tracker::stray_marks`](tracker::Tracker::stray_marks)) and count neither as found nor as
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Page `page` of a KVM slot.
    Slot {
        /// KVM's number, address space included.
        slot: u32,
        /// Page of the slot.
        page: Pages,
    },
    /// A guest physical address, page-aligned (vhost).
    Guest(GuestAddress),
    /// An I/O virtual address, page-aligned (VFIO, iommufd). Without a vIOMMU an IOVA is the guest
    /// address. brant treats it as one as long as no other translation is known.
    Iova(u64),
    /// Page `page` of a block.
    Block {
        /// The block.
        block: BlockId,
        /// Page of the block.
        page: Pages,
    },
}

/// The kinds of logs: seven that brant has, and those of a VMM's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LogKind {
    /// The VMM's own marks.
    Reported,
    /// KVM's bitmap of each slot.
    KvmLog,
    /// KVM's ring of each vCPU.
    KvmRing,
    /// The log that vhost and vhost-user back ends write to.
    Vhost,
    /// A VFIO device's or container's log.
    Vfio,
    /// An iommufd page table's log.
    Iommufd,
    /// Write protection by userfaultfd.
    Userfault,
    /// A log of the VMM's own. [`DirtyLog::name`] says which.
    Other,
}

impl LogKind {
    /// A short name for reports and messages.
    pub fn name(self) -> &'static str {
        match self {
            LogKind::Reported => "reported",
            LogKind::KvmLog => "kvm-log",
            LogKind::KvmRing => "kvm-ring",
            LogKind::Vhost => "vhost",
            LogKind::Vfio => "vfio",
            LogKind::Iommufd => "iommufd",
            LogKind::Userfault => "userfault",
            LogKind::Other => "other",
        }
    }
}

/// Pages of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The block.
    pub block: BlockId,
    /// Which of its pages.
    pub pages: Range<u64>,
}

impl Extent {
    /// Every page of a block.
    pub fn all_of(block: &Block) -> Extent {
        Extent {
            block: block.id(),
            pages: 0..block.pages().0,
        }
    }

    /// The part of a block that a slot shows.
    pub(crate) fn of(slot: &Slot) -> Extent {
        Extent {
            block: slot.block,
            pages: slot.first.0..slot.first.0 + slot.pages.0,
        }
    }

    /// Reports every page of the extent as dirty.
    pub(crate) fn everything(&self, sink: &mut dyn Sink) {
        let origin = Origin::Block {
            block: self.block,
            page: Pages(self.pages.start),
        };
        sink.everything(origin, Pages(self.pages.end - self.pages.start));
    }
}

/// When the last harvest of a log, the one before memory counts as frozen, is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// Each harvest is exact for the writes that came before it.
    Always,
    /// A harvest can miss pages that a running vCPU still holds back (page-modification logging,
    /// rings). It is exact once all vCPUs are out of `KVM_RUN` and their state is saved.
    VcpusStopped,
}

/// Whether vCPUs may be running during a harvest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The guest runs.
    Running,
    /// The vCPUs are out of `KVM_RUN` and their state is saved. Nothing writes guest memory any
    /// more.
    Stopped,
}

/// Which pages of a log count as dirty right after its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// No page. Every write from now on is logged.
    Clean,
    /// Every page, and none is protected. Writes to a page are logged only after
    /// [`DirtyLog::rearm`] of that page, or after the first harvest of a log that clears in
    /// harvests. A log that does neither is refused at its start.
    Unprotected,
}

/// Where a harvest puts what it found.
pub trait Sink {
    /// Reports `pages` pages from `origin` on, one bit each; bit 0 of `words[0]` is the first. Bits
    /// past `pages` are ignored.
    fn bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages);

    /// [`Sink::bitmap`] for a log whose bits stay set until protection is restored. An earlier
    /// harvest reported `known` of the bits, and they have not been cleared since. Whether those
    /// pages were written again is unknown. Returns how many bits are set.
    fn lasting_bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages, known: Pages) -> u64 {
        let _ = known;
        self.bitmap(origin, words, pages);
        crate::bits::words::count_range(words, 0, pages.index())
    }

    /// Reports single pages, counted from `origin`.
    fn list(&mut self, origin: Origin, pages: &[u64]);

    /// Lets a log that keeps a bitmap for each block merge it into that block's pending itself,
    /// which saves a copy. `merge` returns how many pages it reported, whether or not they were
    /// pending before.
    fn block(
        &mut self,
        block: BlockId,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> Result<()>;

    /// Reports all of these pages as dirty, because the log does not know which were written.
    fn everything(&mut self, origin: Origin, pages: Pages);

    /// The cancel of the caller that asked for the harvest. A log that waits for another thread
    /// during its harvest ends the wait on a cancel, and answers [`Harvested::Postponed`].
    #[doc(hidden)]
    fn given_up(&self) -> Option<Cancel> {
        None
    }
}

/// How a harvest went.
#[derive(Debug)]
pub enum Harvested {
    /// Every write before the harvest has been reported.
    Complete,
    /// As [`Harvested::Complete`], with warnings, one sentence each.
    Told(Vec<String>),
    /// Some pages come with the next harvest, for this reason; no page is lost. The last harvest
    /// before memory counts as frozen must not end like this.
    Postponed(Error),
}

/// What restoring protection cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Rearmed {
    /// Kernel calls made.
    pub calls: u64,
    /// Dirty bits they cleared.
    pub bits: u64,
}

/// One way a page gets dirty.
///
/// One thread at a time uses a log. All methods get the map as it was when the writes to be read
/// were logged. A panic in a method is an error with the log's name. The tracker then takes all
/// pages that the log covers as dirty, and it can still stop the other logs.
///
/// A log of the VMM's own: an emulated device that notes the pages it writes.
///
/// ```
/// use brant::dirty::tracker::{Clearing, StartWith, Tracker};
/// use brant::dirty::{DirtyLog, Extent, Harvested, Initial, Origin, Sink, When};
/// use brant::memory::{Map, Memory, NO_SLOT};
/// use brant::units::Pages;
/// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use brant::Result;
/// use std::sync::{Arc, Mutex};
///
/// /// Page frame numbers, as the device notes them: after the write.
/// #[derive(Clone, Default)]
/// struct Device(Arc<Mutex<Vec<u64>>>);
///
/// impl DirtyLog for Device {
///     fn name(&self) -> &'static str {
///         "my-device"
///     }
///     fn start(&mut self, _: &Map) -> Result<Initial> {
///         self.0.lock().unwrap().clear();
///         Ok(Initial::Clean)
///     }
///     fn stop(&mut self, _: &Map) -> Result<()> {
///         Ok(())
///     }
///     fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> Result<Harvested> {
///         let noted = std::mem::take(&mut *self.0.lock().unwrap());
///         sink.list(Origin::Guest(GuestAddress(0)), &noted);
///         Ok(Harvested::Complete)
///     }
///     /// All of the guest's memory: if a harvest fails, all of it counts as written.
///     fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
///         map.blocks().into_iter().for_each(|block| each(Extent::all_of(block)));
///     }
///     fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
///         Ok(()) // It notes guest addresses, whatever is there.
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
/// let device = Device::default();
/// tracker.add_log(Box::new(device.clone()))?;
///
/// let consumer = tracker.consumer();
/// consumer.start(StartWith::Nothing)?;
/// device.0.lock().unwrap().extend([3, 7, 3]);
/// let report = consumer.sync(When::Running)?;
/// let share = report.logs.iter().find(|log| log.name == "my-device").unwrap();
/// assert_eq!(share.found, Pages(2));
/// # Ok(())
/// # }
/// ```
pub trait DirtyLog: Send {
    /// The kind for reports, [`LogKind::Other`] for a log of the VMM's own. Nothing is decided by
    /// it.
    fn kind(&self) -> LogKind {
        LogKind::Other
    }

    /// A short name for reports and messages.
    fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// When the log's last harvest is exact.
    fn exact(&self) -> Exact {
        Exact::Always
    }

    /// Asks a log that leaves clearing to [`DirtyLog::rearm`] to clear in each harvest all pages
    /// that it reports (`whole`), or not to. Returns whether it will do so; other logs return
    /// `false`. Called before the log is started.
    fn clear_at_harvest(&mut self, whole: bool) -> bool {
        let _ = whole;
        false
    }

    /// Tells the log its guest; called when the log is added to a tracker. A log that needs the
    /// VMM's vCPUs kicked asks `guest`, because a kick is not allowed at every moment.
    fn joins(&mut self, guest: &Arc<Ownership>) {
        let _ = guest;
    }

    /// Whether protection is restored chunk by chunk ([`DirtyLog::rearm`]) after a harvest. If not,
    /// the harvest itself restores it.
    fn rearms(&self) -> bool {
        false
    }

    /// Starts logging, for every slot or block of `map` that this log covers.
    fn start(&mut self, map: &Map) -> Result<Initial>;

    /// Stops logging. Pages that have not been harvested are lost.
    fn stop(&mut self, map: &Map) -> Result<()>;

    /// Moves the log's pages into `sink`. Each page written before the call is reported in this
    /// harvest, unless an earlier one reported it. After an error the tracker takes all pages of
    /// [`DirtyLog::covered`] as dirty.
    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested>;

    /// Calls `each` with the pages whose writes this log finds, in pieces that may overlap.
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent));

    /// Bytes of the log's bitmaps and rings for the memory tracked, without the kernel's own.
    fn heap_bytes(&self) -> u64 {
        0
    }

    /// The vCPUs that the log tells apart. `None` if it cannot: rings can, a bitmap cannot. Asked
    /// once, when the log is added to a tracker.
    fn vcpus(&self) -> Option<Arc<dyn vcpus::Vcpus>> {
        None
    }

    /// Restores the protection of pages of a block, in every slot that shows them. A later harvest
    /// reports the writes to them from the return of this call on. Bits outside the range may be
    /// cleared as well, if they have been harvested before.
    fn rearm(&mut self, map: &Map, block: BlockId, pages: Range<u64>) -> Result<Rearmed> {
        let _ = (map, block, pages);
        Ok(Rearmed::default())
    }

    /// Strays that the log has counted since it was made: pages outside of guest memory.
    fn strays(&self) -> u64 {
        0
    }

    /// Prepares a started log for a change of the map: harvest the slots and blocks that go away
    /// into `sink`, and start logging the new ones. The tracker takes the pages of new slots as
    /// dirty.
    ///
    /// An error refuses the change, and the log is as it was before. When another observer refuses
    /// the change, this is called once more with the two maps exchanged. If the log fails to go
    /// back, a later sync or change leads it on from `old`. Until then all memory counts as dirty.
    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()>;
}
