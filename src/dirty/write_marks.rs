//! A bitmap type for vm-memory that reports to a tracker: writes that a VMM's device emulation
//! makes through vm-memory are reported without a call of the VMM's.
//!
//! vm-memory makes a region's bitmap together with the region, before any tracker exists. So a
//! bitmap begins unconnected, and is connected later. It holds no bits of its own: a mark goes to
//! the tracker's [`Reported`], by guest address.

use super::reported::Reported;
use super::tracker::Tracker;
use crate::runtime::snapshot::Snapshot;
use std::fmt;
use std::sync::{Arc, Weak};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

/// The trackers that are told of writes to one region.
#[derive(Default)]
struct MarkedRegion {
    /// Weak, because a tracker keeps the guest's memory alive, and with it the regions and their
    /// bitmaps.
    listeners: Snapshot<Vec<(Weak<Reported>, GuestAddress)>>,
}

/// The bitmap of vm-memory's regions. Any thread may mark; no lock is taken.
///
/// ```
/// use brant::dirty::tracker::{Clearing, StartWith, Tracker};
/// use brant::dirty::{When, WriteMarks};
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// use std::sync::Arc;
///
/// # fn main() -> brant::Result<()> {
/// let ram = GuestMemoryMmap::<WriteMarks>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
/// WriteMarks::connect(&ram, &tracker);
///
/// let consumer = tracker.consumer();
/// consumer.start(StartWith::Nothing)?;
/// ram.write_obj(42u64, GuestAddress(0x5ffc))?; // the last bytes of page 5, the first of page 6
/// assert_eq!(consumer.sync(When::Running)?.found.0, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct WriteMarks {
    region: Arc<MarkedRegion>,
    /// Where in the region this slice begins, in bytes.
    offset: usize,
}

impl WriteMarks {
    /// Tells `tracker` of every write to `memory` from now on. Call it before the first write that
    /// must be found: before the tracker starts, or before anybody uses a region that was added to
    /// the guest meanwhile. Several trackers may be connected, and a second call for the same one
    /// does no harm. A tracker that is dropped is told nothing any more.
    pub fn connect(memory: &GuestMemoryMmap<WriteMarks>, tracker: &Tracker) {
        let reported = Arc::downgrade(tracker.reported());
        for region in memory.iter() {
            let marks: WriteMarks = region.bitmap();
            let listeners = &marks.region.listeners;
            listeners.update(|old| {
                let mut new = old.clone();
                new.retain(|(other, _)| other.strong_count() > 0 && !other.ptr_eq(&reported));
                new.push((reported.clone(), region.start_addr()));
                Arc::new(new)
            });
        }
    }
}

impl fmt::Debug for WriteMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteMarks")
            .field("listeners", &self.region.listeners.load().len())
            .field("offset", &self.offset)
            .finish()
    }
}

impl<'a> WithBitmapSlice<'a> for WriteMarks {
    type S = WriteMarks;
}

impl BitmapSlice for WriteMarks {}

impl Bitmap for WriteMarks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let offset = self.offset.saturating_add(offset) as u64;
        // Outside of any look at the snapshot, because the last reference to a tracker's marks may
        // go here.
        for (reported, start) in self.region.listeners.load().iter() {
            if let Some(reported) = reported.upgrade() {
                reported.mark_guest(GuestAddress(start.0.saturating_add(offset)), len as u64);
            }
        }
    }

    /// Always `false`: the tracker has the dirty pages, and hands out each once.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> WriteMarks {
        WriteMarks {
            region: Arc::clone(&self.region),
            offset: self.offset.saturating_add(offset),
        }
    }
}

impl NewBitmap for WriteMarks {
    /// A region's bitmap costs the same whatever the region's length.
    fn with_len(_len: usize) -> Self {
        WriteMarks::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::consumer::{Consumer, Cursor};
    use crate::dirty::tracker::{Clearing, StartWith};
    use crate::dirty::When;
    use crate::memory::{Memory, NO_SLOT};
    use crate::units::Pages;
    use vm_memory::{Bytes as _, VolatileMemory as _};

    const MIB: usize = 1 << 20;
    const HIGH: u64 = 1 << 32;

    fn guest() -> (GuestMemoryMmap<WriteMarks>, Arc<Memory>) {
        let ranges = [(GuestAddress(0), MIB), (GuestAddress(HIGH), MIB)];
        let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let memory = Arc::new(Memory::new().unwrap());
        memory.add_guest_memory(&ram, NO_SLOT).unwrap();
        (ram, memory)
    }

    fn consumer(memory: &Arc<Memory>) -> Consumer {
        let tracker = Tracker::new(Arc::clone(memory), Clearing::default()).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        consumer
    }

    #[test]
    fn writes_through_slices_and_to_any_region_are_pages_of_their_own_guest_address() {
        let (ram, memory) = guest();
        let consumer = consumer(&memory);
        WriteMarks::connect(&ram, consumer.tracker());
        ram.write_slice(&[1; 10], GuestAddress(HIGH + 0x3000))
            .unwrap();
        let region = ram.find_region(GuestAddress(0)).unwrap();
        let slice = region.as_volatile_slice().unwrap();
        // A slice of a slice of a region.
        let inner = slice.offset(0x4000).unwrap().offset(0x2000).unwrap();
        inner.get_ref::<u64>(8).unwrap().store(7);
        consumer.sync(When::Running).unwrap();
        let (mut cursor, mut found) = (Cursor::default(), Vec::new());
        loop {
            let taken = consumer.take(&mut cursor, 16, Pages(64)).unwrap();
            if taken.is_empty() {
                break;
            }
            let runs = taken.runs();
            found.extend(runs.map(|run| (run.block.name().to_owned(), run.pages.first().0)));
            taken.delivered();
        }
        assert_eq!(
            found,
            [("ram-0x0".to_owned(), 6), ("ram-0x100000000".to_owned(), 3)]
        );
        assert_eq!(consumer.tracker().stray_marks(), 0);
    }

    #[test]
    fn every_connected_tracker_hears_a_write_once_and_one_that_is_gone_nothing() {
        let (ram, memory) = guest();
        let (one, two) = (consumer(&memory), consumer(&memory));
        ram.write_obj(1u8, GuestAddress(0)).unwrap();
        WriteMarks::connect(&ram, one.tracker());
        WriteMarks::connect(&ram, two.tracker());
        WriteMarks::connect(&ram, two.tracker());
        let found = |consumer: &Consumer| consumer.sync(When::Running).unwrap().found.0;
        ram.write_obj(1u8, GuestAddress(0x1000)).unwrap();
        assert_eq!((found(&one), found(&two)), (1, 1));
        drop(one);
        ram.write_obj(1u8, GuestAddress(0x2000)).unwrap();
        assert_eq!(found(&two), 1);
        let third = consumer(&memory);
        WriteMarks::connect(&ram, third.tracker());
        let region = ram.find_region(GuestAddress(0)).unwrap();
        assert_eq!(region.bitmap().region.listeners.load().len(), 2);
    }

    #[test]
    fn a_connected_tracker_and_its_memory_are_freed_all_the_same() {
        let (ram, memory) = guest();
        let consumer = consumer(&memory);
        WriteMarks::connect(&ram, consumer.tracker());
        let region = Arc::downgrade(&ram.find_region(GuestAddress(0)).unwrap().bitmap().region);
        drop((ram, consumer));
        assert!(region.upgrade().is_some(), "the memory has the region");
        drop(memory);
        assert!(region.upgrade().is_none());
    }
}
