//! What devices that are passed through write, by VFIO and by iommufd.

use super::error::{brant_error, invalid};
use super::structs::{duplicated, handle, read, sized};
use super::tracker::brant_tracker;
use crate::dirty::iommufd::IommufdLog;
use crate::dirty::iova::{DmaRange, DmaTarget, Iovas, RANGES_MAX};
use crate::dirty::vfio::{VfioContainerLog, VfioDeviceLog};
use crate::error::Result;
use crate::fallible;
use crate::memory::BlockId;
use crate::units::{Bytes, PAGE_SIZE};
use std::os::fd::OwnedFd;
use vm_memory::GuestAddress;

/// In `brant_dma_range.block`: `address` is a guest physical address.
pub const BRANT_NO_BLOCK: u32 = 0xffff_ffff;

/// The guest memory that a device sees at a range of I/O virtual addresses: one mapping for DMA,
/// page-aligned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_dma_range {
    /// The first I/O virtual address.
    pub iova: u64,
    /// Bytes; not 0.
    pub length: u64,
    /// Where the memory begins: an offset in `block`, bytes, or a guest physical address.
    pub address: u64,
    /// The block's number, or BRANT_NO_BLOCK.
    pub block: u32,
    /// 0.
    pub reserved: u32,
}

/// The log of a VFIO device, or of a VFIO container with a type 1 IOMMU.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_vfio_log {
    /// sizeof(brant_vfio_log).
    pub size: usize,
    /// The descriptor of the device or the container. brant keeps a duplicate.
    pub fd: i32,
    /// 0.
    pub reserved: u32,
    /// For a device: the page size in which it should track, bytes, a power of two from 4096 to 1
    /// GiB; its driver may choose another. 0 means 4096. For a container: 0.
    pub page_size: u64,
    /// The ranges that the device may write, without overlaps; copied. NULL: each writable slot of
    /// the guest is one mapping, whose I/O virtual address is the slot's guest address.
    pub ranges: *const brant_dma_range,
    /// How many; at most 65536.
    pub range_count: usize,
}

/// A hardware page table of iommufd.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_iommufd_log {
    /// sizeof(brant_iommufd_log).
    pub size: usize,
    /// The iommufd. brant keeps a duplicate.
    pub fd: i32,
    /// The page table, allocated with IOMMU_HWPT_ALLOC_DIRTY_TRACKING.
    pub hwpt_id: u32,
    /// As in `brant_vfio_log`.
    pub ranges: *const brant_dma_range,
    /// How many; at most 65536.
    pub range_count: usize,
}

sized!(brant_vfio_log, brant_iommufd_log);

/// The ranges as the crate takes them.
///
/// # Safety
/// `ranges` is null or points to `count` ranges.
unsafe fn iovas(ranges: *const brant_dma_range, count: usize) -> Result<Iovas> {
    if ranges.is_null() && count == 0 {
        return Ok(Iovas::Guest);
    }
    if ranges.is_null() || count > RANGES_MAX {
        return Err(invalid(format!(
            "ranges are NULL and none, or 1 to {RANGES_MAX} of them; found {count}{}",
            if ranges.is_null() { " at NULL" } else { "" }
        )));
    }
    let mut made = Vec::new();
    fallible::reserve(&mut made, count, "DMA ranges")?;
    for i in 0..count {
        // SAFETY: below `count`; C may have aligned it less.
        let range = unsafe { ranges.add(i).read_unaligned() };
        if range.reserved != 0 {
            return Err(invalid("brant_dma_range.reserved is not 0"));
        }
        made.push(DmaRange {
            iova: range.iova,
            length: Bytes(range.length),
            target: match range.block {
                BRANT_NO_BLOCK => DmaTarget::Guest(GuestAddress(range.address)),
                block => DmaTarget::Block {
                    block: BlockId(block),
                    offset: Bytes(range.address),
                },
            },
        });
    }
    Iovas::ranges(made)
}

/// What both kinds of VFIO descriptors come with.
///
/// # Safety
/// `vfio` is null or a structure as its size says, whose descriptor nobody closes during the call.
unsafe fn vfio_of(vfio: *const brant_vfio_log) -> Result<(OwnedFd, brant_vfio_log)> {
    // SAFETY: the caller's promise.
    let vfio = unsafe { read(vfio) }?;
    if vfio.size < std::mem::offset_of!(brant_vfio_log, reserved) {
        return Err(invalid("brant_vfio_log.fd is no descriptor"));
    }
    if vfio.reserved != 0 {
        return Err(invalid("brant_vfio_log.reserved is not 0"));
    }
    // SAFETY: the caller's promise.
    let fd = unsafe { duplicated(vfio.fd, "brant_vfio_log.fd") }?;
    Ok((fd, vfio))
}

/// Adds the log that a VFIO device keeps of its own DMA (VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
/// _REPORT, _STOP; Linux 6.1); before tracking starts. BRANT_E_UNSUPPORTED if it keeps none.
///
/// When the guest gets memory that the log was not started for, the log is started anew, and all
/// pages that it covers count as dirty. Before you unmap DMA memory, or remove a slot whose memory
/// other slots still show, stop the device's DMA to that memory. The log is read when the slot is
/// removed. Not tried on hardware yet: tested against the interface in the kernel's header.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_vfio_device(
    tracker: *mut brant_tracker,
    vfio: *const brant_vfio_log,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let (fd, vfio) = unsafe { vfio_of(vfio) }?;
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        // SAFETY: as many as it says by contract.
        let iovas = unsafe { iovas(vfio.ranges, vfio.range_count) }?;
        let page_size = match vfio.page_size {
            0 => PAGE_SIZE,
            size => size,
        };
        let log = VfioDeviceLog::from_fd(fd, iovas, page_size)?;
        tracker.tracker.add_log(Box::new(log))
    })
}

/// Adds the dirty log of a VFIO container whose type 1 IOMMU is set (VFIO_IOMMU_DIRTY_PAGES; Linux
/// 5.8); before tracking starts. BRANT_E_UNSUPPORTED if it has none.
///
/// Each range has to consist of whole mappings: the kernel refuses to report part of a mapping, and
/// then all pages count as dirty. When a device does not tell the kernel which pages it pins, the
/// kernel reports every mapped page each time. The log of a mapping is lost with the mapping. So
/// unmap memory that stays the guest's with VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, and give the
/// bitmap to `brant_tracker_mark_bitmap`. Not tried on hardware yet: see
/// `brant_tracker_add_vfio_device`.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_vfio_container(
    tracker: *mut brant_tracker,
    vfio: *const brant_vfio_log,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let (fd, vfio) = unsafe { vfio_of(vfio) }?;
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        if vfio.page_size != 0 {
            return Err(invalid(format!(
                "brant_vfio_log.page_size is 0 for a container, whose IOMMU decides; found {}",
                vfio.page_size
            )));
        }
        // SAFETY: as many as it says by contract.
        let iovas = unsafe { iovas(vfio.ranges, vfio.range_count) }?;
        let log = VfioContainerLog::from_fd(fd, iovas)?;
        tracker.tracker.add_log(Box::new(log))
    })
}

/// Adds the dirty log of an iommufd page table (IOMMU_HWPT_SET_DIRTY_TRACKING and
/// IOMMU_HWPT_GET_DIRTY_BITMAP; Linux 6.7); before tracking starts. BRANT_E_UNSUPPORTED if it
/// has none.
///
/// All of each range has to be mapped while it is tracked. So map a new slot for DMA before you add
/// the slot to brant, and unmap a slot after you have removed it from brant. A range with an
/// unmapped part counts as dirty at each sync. Not tried on hardware yet: see
/// `brant_tracker_add_vfio_device`.
///
/// Experimental: tested against a model of the kernel's side only, because no such hardware was
/// available. What real devices need may change it.
#[no_mangle]
pub unsafe extern "C" fn brant_tracker_add_iommufd(
    tracker: *mut brant_tracker,
    iommufd: *const brant_iommufd_log,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract.
        let iommufd = unsafe { read(iommufd) }?;
        if iommufd.size < std::mem::offset_of!(brant_iommufd_log, hwpt_id) {
            return Err(invalid("brant_iommufd_log.fd is no descriptor"));
        }
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        // SAFETY: as many as it says by contract.
        let iovas = unsafe { iovas(iommufd.ranges, iommufd.range_count) }?;
        // SAFETY: open during the call by contract.
        let fd = unsafe { duplicated(iommufd.fd, "brant_iommufd_log.fd") }?;
        let log = IommufdLog::from_fd(fd, iommufd.hwpt_id, iovas)?;
        tracker.tracker.add_log(Box::new(log))
    })
}
