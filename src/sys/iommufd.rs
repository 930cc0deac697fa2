//! The iommufd ioctls that tell which pages devices behind a hardware page table wrote (Linux 6.7).
//!
//! Numbers and layouts are those of `linux/iommufd.h`. If the system's header has them, a test lets
//! the C compiler compare them.

use super::ioctl::Ioctl;
use crate::error::{Error, Kind, Result};

/// `IOMMU_HWPT_SET_DIRTY_TRACKING`.
pub const HWPT_SET_DIRTY_TRACKING: u32 = 0x3b8b;
/// `IOMMU_HWPT_GET_DIRTY_BITMAP`.
pub const HWPT_GET_DIRTY_BITMAP: u32 = 0x3b8c;
/// `IOMMU_HWPT_DIRTY_TRACKING_ENABLE`.
pub const DIRTY_TRACKING_ENABLE: u32 = 1;

/// `iommu_hwpt_set_dirty_tracking`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SetTracking {
    size: u32,
    flags: u32,
    hwpt_id: u32,
    reserved: u32,
}

/// `iommu_hwpt_get_dirty_bitmap`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GetBitmap {
    size: u32,
    hwpt_id: u32,
    flags: u32,
    reserved: u32,
    iova: u64,
    length: u64,
    page_size: u64,
    data: u64,
}

/// Switches tracking on or off. Switching on clears earlier dirty bits. Switching off may be
/// repeated.
pub fn set_dirty_tracking(iommufd: &mut dyn Ioctl, hwpt_id: u32, on: bool) -> Result<()> {
    let mut set = SetTracking {
        size: size_of::<SetTracking>() as u32,
        flags: if on { DIRTY_TRACKING_ENABLE } else { 0 },
        hwpt_id,
        reserved: 0,
    };
    let size = size_of::<SetTracking>();
    // SAFETY: the structure of this ioctl, without pointers or padding.
    let done = unsafe {
        iommufd.ioctl(
            HWPT_SET_DIRTY_TRACKING,
            std::ptr::from_mut(&mut set).cast(),
            size,
        )
    };
    done.map_err(|e| {
        let what = format!("IOMMU_HWPT_SET_DIRTY_TRACKING of page table {hwpt_id}");
        match e.raw_os_error() {
            Some(libc::ENOTTY | libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => Error::new(
                Kind::Unsupported,
                format!(
                    "{what}: {e}; expected an iommufd and a page table of it that was allocated \
                     with IOMMU_HWPT_ALLOC_DIRTY_TRACKING"
                ),
            ),
            _ => Error::os(what, e),
        }
    })
}

/// ORs into `words` which pages of `length` bytes from `iova` on were written, and clears them in
/// the page table. There is one bit for each `page_size` bytes, bit 0 for `iova`. `words` are zero
/// before. The whole range is mapped.
pub fn get_dirty_bitmap(
    iommufd: &mut dyn Ioctl,
    hwpt_id: u32,
    iova: u64,
    length: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<()> {
    let bits = length.checked_div(page_size).unwrap_or(u64::MAX);
    if bits.div_ceil(64) > words.len() as u64 {
        return Err(Error::new(
            Kind::Internal,
            format!(
                "{length} bytes in pages of {page_size} do not fit a bitmap of {} words",
                words.len()
            ),
        ));
    }
    let mut get = GetBitmap {
        size: size_of::<GetBitmap>() as u32,
        hwpt_id,
        flags: 0,
        reserved: 0,
        iova,
        length,
        page_size,
        data: words.as_mut_ptr() as u64,
    };
    let size = size_of::<GetBitmap>();
    // SAFETY: the structure of this ioctl. The kernel sets a bit for each page of the range, for
    // which there is room, as checked above.
    let done = unsafe {
        iommufd.ioctl(
            HWPT_GET_DIRTY_BITMAP,
            std::ptr::from_mut(&mut get).cast(),
            size,
        )
    };
    done.map_err(|e| {
        Error::os(
            format_args!(
                "IOMMU_HWPT_GET_DIRTY_BITMAP of page table {hwpt_id}, {length} bytes from IOVA \
                 {iova:#x} (all of a range is mapped)"
            ),
            e,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layouts_are_those_of_the_abi_and_of_the_system_s_header_if_it_has_them() {
        // The published ABI.
        assert_eq!(size_of::<SetTracking>(), 16);
        assert_eq!(offset_of!(SetTracking, hwpt_id), 8);
        assert_eq!(size_of::<GetBitmap>(), 48);
        let get = [
            ("hwpt_id", offset_of!(GetBitmap, hwpt_id), 4),
            ("flags", offset_of!(GetBitmap, flags), 8),
            ("iova", offset_of!(GetBitmap, iova), 16),
            ("length", offset_of!(GetBitmap, length), 24),
            ("page_size", offset_of!(GetBitmap, page_size), 32),
            ("data", offset_of!(GetBitmap, data), 40),
        ];
        let mut c = String::from(
            "#include <stddef.h>\n#if __has_include(<linux/iommufd.h>)\n\
             #include <linux/iommufd.h>\n#endif\n#ifdef IOMMU_HWPT_GET_DIRTY_BITMAP\n",
        );
        for (field, ours, theirs) in get {
            assert_eq!(ours, theirs, "{field}");
            c.push_str(&format!(
                "_Static_assert(offsetof(struct iommu_hwpt_get_dirty_bitmap, {field}) == {ours}, \
                 \"{field}\");\n"
            ));
        }
        c.push_str(&format!(
            "_Static_assert(sizeof(struct iommu_hwpt_get_dirty_bitmap) == 48, \"get\");\n\
             _Static_assert(sizeof(struct iommu_hwpt_set_dirty_tracking) == 16, \"set\");\n\
             _Static_assert(IOMMU_HWPT_SET_DIRTY_TRACKING == {HWPT_SET_DIRTY_TRACKING}, \"set\");\n\
             _Static_assert(IOMMU_HWPT_GET_DIRTY_BITMAP == {HWPT_GET_DIRTY_BITMAP}, \"get\");\n\
             #endif\n"
        ));
        crate::sys::ioctl::assert_compiles(&c);
    }
}
