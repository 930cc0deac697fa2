//! The dirty logs of devices that are passed through with VFIO: each device's own log of its DMA,
//! or, with the older interface, the log of a container's type 1 IOMMU.
//!
//! **Device log** ([`VfioDeviceLog`], Linux 6.1). It is started for ranges of IOVAs. A report reads
//! and clears it. A report that fails leaves the log in an unknown state: the interface wants all
//! memory taken as dirty, and the log started anew. That is done at once or, if it fails too, at
//! the next harvest. The driver chooses the page size; a page of a larger size stands for all pages
//! of 4096 bytes in it.
//!
//! **Container log** ([`VfioContainerLog`], Linux 5.8). It is asked mapping by mapping, because a
//! range may not split a mapping. For devices that do not tell which pages they pin, it reports
//! every mapped page at every harvest, because the kernel knows no better.

use super::iova::{at_most, round_out, Iovas, Reader};
use super::{DirtyLog, Extent, Harvested, Initial, LogKind, Sink, When};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::Map;
use crate::sys::ioctl::{Descriptor, Ioctl};
use crate::sys::vfio::{self, LoggingRange};
use crate::units::PAGE_SIZE;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// The largest page size, in bytes, that a VMM may ask a device's log for.
pub const PAGE_SIZE_MAX: u64 = 1 << 30;

/// The log that a device keeps of its own DMA. Started for ranges of IOVAs; a harvest reads and
/// clears it. Linux 6.1.
///
/// ```no_run
/// use brant::dirty::iova::Iovas;
/// use brant::dirty::tracker::Tracker;
/// use brant::dirty::vfio::VfioDeviceLog;
/// use std::os::fd::BorrowedFd;
///
/// /// `device` is what VFIO_GROUP_GET_DEVICE_FD returned; without a vIOMMU it writes by guest addresses.
/// fn watch(tracker: &Tracker, device: BorrowedFd<'_>) -> brant::Result<()> {
///     let device = device.try_clone_to_owned()?;
///     let log = VfioDeviceLog::from_fd(device, Iovas::Guest, 4096)?;
///     tracker.add_log(Box::new(log))
/// }
/// ```
pub struct VfioDeviceLog {
    device: Box<dyn Ioctl>,
    iovas: Iovas,
    /// The page size to ask for.
    hint: u64,
    started: bool,
    /// The ranges that are logged now; `None` while the log is not started, or could not be started
    /// again.
    logging: Option<Logging>,
}

struct Logging {
    /// The ranges that the log was started with.
    ranges: Vec<Range<u64>>,
    /// The page size that the driver chose, or 4096 if that is larger.
    page_size: u64,
    reader: Reader,
}

impl VfioDeviceLog {
    /// The log of the device behind `device`. It asks the driver for pages of `page_size` bytes: a
    /// power of two from 4096 to [`PAGE_SIZE_MAX`]. [`Kind::Unsupported`] if the device has no log.
    #[doc(hidden)]
    pub fn new(mut device: Box<dyn Ioctl>, iovas: Iovas, page_size: u64) -> Result<Self> {
        if !page_size.is_power_of_two() || !(PAGE_SIZE..=PAGE_SIZE_MAX).contains(&page_size) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "a device's page size is a power of two from {PAGE_SIZE} to {PAGE_SIZE_MAX}, \
                     not {page_size}"
                ),
            ));
        }
        vfio::logging_probe(&mut *device)?;
        Ok(VfioDeviceLog {
            device,
            iovas,
            hint: page_size,
            started: false,
            logging: None,
        })
    }

    /// The log of the device behind a descriptor, which brant owns from now on.
    pub fn from_fd(device: OwnedFd, iovas: Iovas, page_size: u64) -> Result<Self> {
        VfioDeviceLog::new(Box::new(Descriptor::new(device)), iovas, page_size)
    }

    /// Starts the device's log, which is off, for the memory that devices may write by `map`.
    fn start_logging(&mut self, map: &Map) -> Result<()> {
        let mapped = self.iovas.mapped(map)?;
        // The kernel wants multiples of the page size that it is asked for.
        let mut asked = at_most(round_out(&mapped, self.hint)?, vfio::RANGES_MAX)?;
        if asked.is_empty() {
            // A start without ranges is an error, and there is nothing to log yet.
            self.logging = Some(Logging {
                ranges: Vec::new(),
                page_size: self.hint,
                reader: Reader::new(&[], self.hint, false)?,
            });
            return Ok(());
        }
        let mut chosen = self.begin(self.hint, &asked)?;
        let whole = |r: &Range<u64>| (r.start | r.end).is_multiple_of(chosen);
        if chosen > self.hint && chosen.is_power_of_two() && !asked.iter().all(whole) {
            // Reports are of whole pages of the device's, which can reach out of these ranges, and
            // a driver may refuse that. So the log is started again, with ranges in the driver's
            // pages.
            vfio::logging_stop(&mut *self.device)?;
            asked = at_most(round_out(&mapped, chosen)?, vfio::RANGES_MAX)?;
            chosen = self.begin(chosen, &asked)?;
        }
        let made = self.logging_of(&mapped, asked, chosen);
        match made {
            Ok(logging) => self.logging = Some(logging),
            Err(e) => {
                // The first error is the one that is returned.
                let _ = vfio::logging_stop(&mut *self.device);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Has the device log `ranges`, and returns the page size that it chose.
    fn begin(&mut self, page_size: u64, ranges: &[Range<u64>]) -> Result<u64> {
        let ranges = ranges.iter().map(|r| LoggingRange {
            iova: r.start,
            length: r.end - r.start,
        });
        let ranges = fallible::collect(ranges, "ranges of IOVAs")?;
        vfio::logging_start(&mut *self.device, page_size, &ranges)
    }

    fn logging_of(
        &self,
        mapped: &[Range<u64>],
        ranges: Vec<Range<u64>>,
        chosen: u64,
    ) -> Result<Logging> {
        if !chosen.is_power_of_two() {
            return Err(Error::new(
                Kind::Kernel,
                format!("the VFIO driver logs pages of {chosen} bytes, which is no power of two"),
            ));
        }
        let page_size = chosen.max(PAGE_SIZE);
        Ok(Logging {
            ranges,
            page_size,
            reader: Reader::new(&round_out(mapped, page_size)?, page_size, false)?,
        })
    }

    fn stop_logging(&mut self) -> Result<()> {
        match self.logging.take() {
            Some(logging) if !logging.ranges.is_empty() => vfio::logging_stop(&mut *self.device),
            _ => Ok(()),
        }
    }

    /// Switches a broken log off and on again.
    fn restart(&mut self, map: &Map) -> Result<()> {
        // A broken log may be off already.
        let _ = self.stop_logging();
        self.start_logging(map)
    }

    /// Reads the log. After an error the log has been started anew, or is off.
    fn read(&mut self, map: &Map, sink: &mut dyn Sink) -> Result<()> {
        let Some(logging) = &mut self.logging else {
            self.restart(map)
                .map_err(|e| e.context("the device's log is off, and does not start"))?;
            return Err(Error::new(
                Kind::Kernel,
                "the device's log was off until now, after an earlier error",
            ));
        };
        let device = &mut *self.device;
        let done = logging
            .reader
            .harvest(&self.iovas, sink, |iova, length, page, bitmap| {
                vfio::logging_report(device, iova, length, page, bitmap)
            });
        done.map_err(|e| {
            // All pages count as dirty. The device logs again before any of them is read.
            match self.restart(map) {
                Ok(()) => e.context("the device's log is started anew"),
                Err(again) => Error::new(e.kind(), format!("{e}; and it does not start: {again}")),
            }
        })
    }
}

/// Whether all of `inner` lies in `outer`; both are sorted, and `outer` does not overlap.
fn inside(inner: &[Range<u64>], outer: &[Range<u64>]) -> bool {
    inner.iter().all(|r| {
        let at = outer.partition_point(|o| o.end < r.end);
        outer.get(at).is_some_and(|o| o.start <= r.start)
    })
}

impl DirtyLog for VfioDeviceLog {
    fn kind(&self) -> LogKind {
        LogKind::Vfio
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        self.start_logging(map)?;
        self.started = true;
        Ok(Initial::Clean)
    }

    fn stop(&mut self, _map: &Map) -> Result<()> {
        self.started = false;
        self.stop_logging()
    }

    fn harvest(&mut self, map: &Map, _when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        if !self.started {
            return Ok(Harvested::Complete);
        }
        self.read(map, sink)?;
        Ok(Harvested::Complete)
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        self.iovas.covered(map, each);
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        if !self.started || old.slots() == new.slots() {
            return Ok(());
        }
        // The log is read first, because its bits are understood by the old map.
        if self.read(old, sink).is_err() {
            // A failed report does not refuse the change: with everything reported, no write is
            // lost.
            self.iovas.everything(old, sink);
        }
        let wanted = self.iovas.mapped(new)?;
        let Some(logging) = &mut self.logging else {
            // The log stays off, and the next harvest tries again.
            return Ok(());
        };
        let page_size = logging.page_size;
        let spans = round_out(&wanted, page_size)?;
        if inside(&spans, &logging.ranges) {
            if !logging.reader.reads(&spans) {
                logging.reader = Reader::new(&spans, page_size, false)?;
            }
            return Ok(());
        }
        // A log's ranges cannot be changed: it is switched off, and on with the new ones. Nothing
        // logs writes in between, so every page counts as dirty once it is on again.
        let grown = self.restart(new);
        if grown.is_err() {
            // Back to the old ranges. If that fails too, the next harvest tries again.
            let _ = self.restart(old);
        }
        self.iovas.everything(old, sink);
        grown
    }
}

/// The log of a container's type 1 IOMMU. For devices that do not tell what they pin it reports
/// every mapped page at every harvest. Linux 5.8.
///
/// ```no_run
/// use brant::dirty::iova::{DmaRange, DmaTarget, Iovas};
/// use brant::dirty::tracker::Tracker;
/// use brant::dirty::vfio::VfioContainerLog;
/// use brant::memory::BlockId;
/// use brant::units::Bytes;
/// use std::os::fd::OwnedFd;
///
/// /// Of a container whose devices see 1 GiB of a block at IOVA 0 and nothing else.
/// fn watch(tracker: &Tracker, container: OwnedFd, block: BlockId) -> brant::Result<()> {
///     let mapped = DmaRange {
///         iova: 0,
///         length: Bytes(1 << 30),
///         target: DmaTarget::Block { block, offset: Bytes(0) },
///     };
///     let log = VfioContainerLog::from_fd(container, Iovas::Ranges(vec![mapped]))?;
///     tracker.add_log(Box::new(log))
/// }
/// ```
pub struct VfioContainerLog {
    container: Box<dyn Ioctl>,
    iovas: Iovas,
    page_size: u64,
    bitmap_max: u64,
    reader: Option<Reader>,
}

impl VfioContainerLog {
    /// The log of the container behind `container`, whose IOMMU is set. [`Kind::Unsupported`] if
    /// the container has no log.
    #[doc(hidden)]
    pub fn new(mut container: Box<dyn Ioctl>, iovas: Iovas) -> Result<Self> {
        let can = vfio::type1_dirty(&mut *container)?;
        // The kernel accepts only the smallest page size.
        let page_size = can.page_sizes & can.page_sizes.wrapping_neg();
        if !(PAGE_SIZE..=PAGE_SIZE_MAX).contains(&page_size) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the container's IOMMU tells dirty pages of sizes {:#x}; the smallest of them \
                     is to be from {PAGE_SIZE} to {PAGE_SIZE_MAX} bytes",
                    can.page_sizes
                ),
            ));
        }
        Ok(VfioContainerLog {
            container,
            iovas,
            page_size,
            bitmap_max: can.bitmap_max,
            reader: None,
        })
    }

    /// The log of the container behind a descriptor, which brant owns from now on.
    pub fn from_fd(container: OwnedFd, iovas: Iovas) -> Result<Self> {
        VfioContainerLog::new(Box::new(Descriptor::new(container)), iovas)
    }

    /// An error if one of these mappings needs a longer bitmap than the kernel accepts.
    fn check(&self, mapped: &[Range<u64>]) -> Result<()> {
        let bytes = Reader::bitmap_bytes(mapped, self.page_size);
        if bytes > self.bitmap_max {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the longest mapping for DMA needs a bitmap of {bytes} bytes, and this \
                     kernel's are at most {}: map it in parts, and give those as ranges",
                    self.bitmap_max
                ),
            ));
        }
        Ok(())
    }

    fn reader(&self, map: &Map) -> Result<Reader> {
        let mapped = self.iovas.mapped(map)?;
        self.check(&mapped)?;
        Reader::new(&mapped, self.page_size, true)
    }
}

impl DirtyLog for VfioContainerLog {
    fn kind(&self) -> LogKind {
        LogKind::Vfio
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        let reader = self.reader(map)?;
        vfio::type1_switch(&mut *self.container, true)?;
        self.reader = Some(reader);
        Ok(Initial::Clean)
    }

    fn stop(&mut self, _map: &Map) -> Result<()> {
        match self.reader.take() {
            Some(_) => vfio::type1_switch(&mut *self.container, false),
            None => Ok(()),
        }
    }

    fn harvest(&mut self, _map: &Map, _when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        if let Some(reader) = &mut self.reader {
            let container = &mut *self.container;
            reader.harvest(&self.iovas, sink, |iova, length, page, bitmap| {
                vfio::type1_bitmap(container, iova, length, page, bitmap)
            })?;
        }
        Ok(Harvested::Complete)
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        self.iovas.covered(map, each);
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        if self.reader.is_none() {
            return Ok(());
        }
        let (gone, fresh) = (old.slots_not_in(new)?, new.slots_not_in(old)?);
        let showing = self.iovas.showing(&gone)?;
        let unmapped = self.iovas.mapped_by(gone.iter().map(|slot| &**slot))?;
        let mapped = self.iovas.mapped_by(fresh.iter().map(|slot| &**slot))?;
        // First, because this step can refuse the change.
        self.check(&mapped)?;
        let Some(reader) = &mut self.reader else {
            return Ok(());
        };
        reader.make_room(&mapped)?;
        // The log's bits of these mappings are understood by the old map.
        let container = &mut *self.container;
        reader.harvest_of(&showing, &self.iovas, sink, |iova, length, page, bitmap| {
            vfio::type1_bitmap(container, iova, length, page, bitmap)
        });
        reader.follow(&unmapped, &mapped);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
