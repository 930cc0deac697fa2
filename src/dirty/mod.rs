//! Who wrote to guest memory: one [`DirtyLog`] for each way a page gets dirty.
//!
//! A log only knows its own source (a KVM bitmap, the VMM's marks). What all of them
//! found together, and which of it is still to be sent, is the [`tracker`]'s.
//!
//! The trait is made for six kinds: KVM's bitmap and ring, the VMM's own marks, vhost,
//! VFIO and userfaultfd. They differ in four ways, and each has its place here: what they
//! give (bitmaps or lists of pages), where they say it is ([`Origin`]: a slot, a guest
//! address, an IOVA), whether they can fail (then everything is dirty), and whether the
//! last harvest is exact only with the vCPUs stopped.

mod ballooned;
mod beside;
pub mod consumer;
mod figures;
mod follow;
mod guarded;
mod hints;
pub mod iommufd;
pub mod iova;
pub mod kvm;
mod lease;
mod led;
mod merge;
mod pending;
mod protected;
mod rearm;
mod report;
pub mod reported;
mod run;
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

/// Where the first page of what a log reports lies.
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
    /// An I/O virtual address, page-aligned (VFIO, iommufd). Without a vIOMMU it is the
    /// guest address, and it is taken as one as long as no other translation is known.
    Iova(u64),
    /// Page `page` of a block.
    Block {
        /// The block.
        block: BlockId,
        /// Page of the block.
        page: Pages,
    },
}

/// The kinds of logs.
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

    /// What a slot shows.
    pub(crate) fn of(slot: &Slot) -> Extent {
        Extent {
            block: slot.block,
            pages: slot.first.0..slot.first.0 + slot.pages.0,
        }
    }

    /// All of it is dirty.
    pub(crate) fn everything(&self, sink: &mut dyn Sink) {
        let origin = Origin::Block {
            block: self.block,
            page: Pages(self.pages.start),
        };
        sink.everything(origin, Pages(self.pages.end - self.pages.start));
    }
}

/// When a log may be asked for the last time before the memory counts as frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// Each harvest is exact for the writes that came before it.
    Always,
    /// A harvest can miss what a running vCPU still holds back; exact once all are out of
    /// `KVM_RUN` and their state is saved (page-modification logging, rings).
    VcpusStopped,
}

/// Whether vCPUs may be running during a harvest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The guest runs.
    Running,
    /// vCPUs are out of `KVM_RUN`, their state is saved, nothing writes any more.
    Stopped,
}

/// How dirty a log is when it has just been started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// From now on every write is logged.
    Clean,
    /// Everything counts as dirty and nothing is protected: what a page holds is only
    /// logged once [`DirtyLog::rearm`] has been called for it, or after the first harvest of a
    /// log that clears in harvests. A log that does neither is refused at its start.
    Unprotected,
}

/// Where a harvest puts what it found.
pub trait Sink {
    /// `pages` pages from `origin`, one bit each, bit 0 of `words[0]` first. Bits past
    /// `pages` are ignored.
    fn bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages);

    /// The same, where bits stay until protection is restored: `known` of them were reported by an
    /// earlier harvest and have not been cleared since. Of those pages nobody can tell whether
    /// they were written again. Returns how many bits are set.
    fn lasting_bitmap(&mut self, origin: Origin, words: &[u64], pages: Pages, known: Pages) -> u64 {
        let _ = known;
        self.bitmap(origin, words, pages);
        crate::bits::words::count_range(words, 0, pages.index())
    }

    /// Single pages, counted from `origin`.
    fn list(&mut self, origin: Origin, pages: &[u64]);

    /// A log that is kept per block may merge into what is pending there itself: the
    /// fewest copies. `merge` returns how many pages it reported, pending before or not.
    fn block(
        &mut self,
        block: BlockId,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> Result<()>;

    /// It is not known what was written in these pages: all of them count as dirty.
    fn everything(&mut self, origin: Origin, pages: Pages);

    /// By what whoever asked for the harvest takes the question back: a log that waits for somebody in
    /// its harvest ends the wait then, and answers [`Harvested::Postponed`].
    #[doc(hidden)]
    fn given_up(&self) -> Option<Cancel> {
        None
    }
}

/// How a harvest went.
#[derive(Debug)]
pub enum Harvested {
    /// Every write that came before it has been reported.
    Complete,
    /// As complete, and this happened, one sentence each.
    Told(Vec<String>),
    /// Some of it comes with the next harvest, for this reason; nothing is lost. A last
    /// harvest that ends like this is none.
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
/// Used by one thread at a time. All methods get the map as it was when what is to be
/// read was logged. A panic in one of them is an error of the log, by name: the tracker takes
/// what the log covers as dirty, and stops the other logs all the same.
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
    /// What it is: [`LogKind::Other`] for a log that is not one of brant's. The kind decides
    /// nothing; it is told in reports.
    fn kind(&self) -> LogKind {
        LogKind::Other
    }

    /// A short name for reports and messages.
    fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// When its last harvest is exact.
    fn exact(&self) -> Exact {
        Exact::Always
    }

    /// Asks a log that would leave clearing to [`DirtyLog::rearm`] to clear all that it
    /// reports in the harvest itself, or not to; returns whether it will. Before it is started.
    fn clear_at_harvest(&mut self, whole: bool) -> bool {
        let _ = whole;
        false
    }

    /// Which guest it logs: a tracker says so when the log is added to it. A log that has the
    /// VMM's vCPUs kicked does so through this, because not every moment allows it.
    fn joins(&mut self, guest: &Arc<Ownership>) {
        let _ = guest;
    }

    /// Whether protection is restored chunk by chunk ([`DirtyLog::rearm`]) after a
    /// harvest. If not, a harvest has restored it already.
    fn rearms(&self) -> bool {
        false
    }

    /// Starts logging, for every slot or block of `map` that this log covers.
    fn start(&mut self, map: &Map) -> Result<Initial>;

    /// Stops logging. What has not been harvested is lost.
    fn stop(&mut self, map: &Map) -> Result<()>;

    /// Takes what the log holds into `sink`. Each page written before the call is reported
    /// in this harvest or was in an earlier one. After an error nothing is known: the
    /// tracker takes everything of [`DirtyLog::covered`] as dirty.
    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> Result<Harvested>;

    /// Calls `each` with the pages that are in this log's care, in pieces that may overlap.
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent));

    /// Bytes of bitmaps and rings that it holds for the memory tracked, the kernel's own
    /// not counted.
    fn heap_bytes(&self) -> u64 {
        0
    }

    /// Pages that each vCPU wrote, by the harvests since the start, if this log knows: a ring
    /// does, a bitmap does not. A page counts for each harvest that reported it.
    fn vcpu_counts(&self) -> Option<Vec<u64>> {
        None
    }

    /// Restores the protection of pages of a block, wherever they are mapped: what is
    /// written to them after this returns is in a later harvest. Bits outside the range
    /// may be cleared as well, if they have been harvested before.
    fn rearm(&mut self, map: &Map, block: BlockId, pages: Range<u64>) -> Result<Rearmed> {
        let _ = (map, block, pages);
        Ok(Rearmed::default())
    }

    /// Pages that it was told of and that are no memory of the guest's; since it was made.
    fn strays(&self) -> u64 {
        0
    }

    /// The map is about to change while the log is started: harvest what goes away into
    /// `sink`, start what is new. Pages of new slots are taken as dirty by the tracker.
    ///
    /// An error refuses the change, and the log is as it was before. Where somebody else refuses it,
    /// this is called once more with the two maps the other way round. A log that cannot go back then
    /// is led on from `old` by a later sync or change, and until then all memory counts as dirty.
    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()>;
}
