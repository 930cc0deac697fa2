//! The dirty log of devices behind an iommufd page table. The IOMMU sets a dirty bit in the entries
//! of its tables, and a harvest reads and clears these bits (Linux 6.7).
//!
//! The log is asked mapping by mapping, because a range with an unmapped part is an error. An entry
//! for a huge page is dirty as a whole, and the kernel reports every 4 KiB of it.

use super::iova::{Iovas, Reader};
use super::{DirtyLog, Extent, Harvested, Initial, LogKind, Sink, When};
use crate::error::Result;
use crate::memory::Map;
use crate::sys::ioctl::{Descriptor, Ioctl};
use crate::sys::iommufd;
use crate::units::PAGE_SIZE;
use std::os::fd::OwnedFd;

/// The log of one hardware page table: the IOMMU marks what devices write to. Linux 6.7.
///
/// ```no_run
/// use brant::dirty::iommufd::IommufdLog;
/// use brant::dirty::iova::Iovas;
/// use brant::dirty::tracker::Tracker;
/// use std::os::fd::OwnedFd;
///
/// /// `hwpt_id` is what IOMMU_HWPT_ALLOC gave, asked for with IOMMU_HWPT_ALLOC_DIRTY_TRACKING.
/// fn watch(tracker: &Tracker, iommufd: OwnedFd, hwpt_id: u32) -> brant::Result<()> {
///     let log = IommufdLog::from_fd(iommufd, hwpt_id, Iovas::Guest)?;
///     tracker.add_log(Box::new(log))
/// }
/// ```
pub struct IommufdLog {
    iommufd: Box<dyn Ioctl>,
    hwpt_id: u32,
    iovas: Iovas,
    reader: Option<Reader>,
}

impl IommufdLog {
    /// The log of page table `hwpt_id`, which was allocated with dirty tracking. Creating it
    /// switches the tracking off, which shows whether the table has any:
    /// [`crate::error::Kind::Unsupported`] if not.
    #[doc(hidden)]
    pub fn new(mut iommufd: Box<dyn Ioctl>, hwpt_id: u32, iovas: Iovas) -> Result<Self> {
        iommufd::set_dirty_tracking(&mut *iommufd, hwpt_id, false)?;
        Ok(IommufdLog {
            iommufd,
            hwpt_id,
            iovas,
            reader: None,
        })
    }

    /// The log of a page table of an iommufd, which brant owns from now on.
    pub fn from_fd(iommufd: OwnedFd, hwpt_id: u32, iovas: Iovas) -> Result<Self> {
        IommufdLog::new(Box::new(Descriptor::new(iommufd)), hwpt_id, iovas)
    }

    fn reader(&self, map: &Map) -> Result<Reader> {
        // Mappings begin and end at pages of the host, the smallest that the IOMMU accepts.
        Reader::new(&self.iovas.mapped(map)?, PAGE_SIZE, false)
    }
}

impl DirtyLog for IommufdLog {
    fn kind(&self) -> LogKind {
        LogKind::Iommufd
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        let reader = self.reader(map)?;
        iommufd::set_dirty_tracking(&mut *self.iommufd, self.hwpt_id, true)?;
        self.reader = Some(reader);
        Ok(Initial::Clean)
    }

    fn stop(&mut self, _map: &Map) -> Result<()> {
        match self.reader.take() {
            Some(_) => iommufd::set_dirty_tracking(&mut *self.iommufd, self.hwpt_id, false),
            None => Ok(()),
        }
    }

    fn harvest(&mut self, _map: &Map, _when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        if let Some(reader) = &mut self.reader {
            let (iommufd, hwpt_id) = (&mut *self.iommufd, self.hwpt_id);
            reader.harvest(&self.iovas, sink, |iova, length, page, bitmap| {
                iommufd::get_dirty_bitmap(iommufd, hwpt_id, iova, length, page, bitmap)
            })?;
        }
        Ok(Harvested::Complete)
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        self.iovas.covered(map, each);
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        let Some(reader) = &mut self.reader else {
            return Ok(());
        };
        let (gone, fresh) = (old.slots_not_in(new)?, new.slots_not_in(old)?);
        let showing = self.iovas.showing(&gone)?;
        let unmapped = self.iovas.mapped_by(gone.iter().map(|slot| &**slot))?;
        let mapped = self.iovas.mapped_by(fresh.iter().map(|slot| &**slot))?;
        // First, because this step can refuse the change.
        reader.make_room(&mapped)?;
        // The log's bits of these mappings are understood by the old map.
        let (iommufd, hwpt_id) = (&mut *self.iommufd, self.hwpt_id);
        reader.harvest_of(&showing, &self.iovas, sink, |iova, length, page, bitmap| {
            iommufd::get_dirty_bitmap(iommufd, hwpt_id, iova, length, page, bitmap)
        });
        reader.follow(&unmapped, &mapped);
        Ok(())
    }
}
