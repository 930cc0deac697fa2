//! The VFIO ioctls that tell which pages a device wrote: the log of a device (`VFIO_DEVICE_FEATURE`
//! with DMA logging, Linux 6.1), and that of a container's type 1 IOMMU (`VFIO_IOMMU_DIRTY_PAGES`).
//!
//! Numbers and layouts are those of `linux/vfio.h`; a test lets the C compiler compare them.

use super::ioctl::Ioctl;
use crate::error::{Error, Kind, Result};
use crate::fallible;

/// `VFIO_DEVICE_FEATURE`, on a device.
pub const DEVICE_FEATURE: u32 = 0x3b75;
/// `VFIO_IOMMU_DIRTY_PAGES`, on a container. The number is the same; the descriptor decides which
/// is meant.
pub const IOMMU_DIRTY_PAGES: u32 = 0x3b75;
/// `VFIO_IOMMU_GET_INFO`.
pub const IOMMU_GET_INFO: u32 = 0x3b70;

/// `VFIO_DEVICE_FEATURE_GET`.
pub const FEATURE_GET: u32 = 1 << 16;
/// `VFIO_DEVICE_FEATURE_SET`.
pub const FEATURE_SET: u32 = 1 << 17;
/// `VFIO_DEVICE_FEATURE_PROBE`.
pub const FEATURE_PROBE: u32 = 1 << 18;
/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`.
pub const DMA_LOGGING_START: u32 = 6;
/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`.
pub const DMA_LOGGING_STOP: u32 = 7;
/// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`.
pub const DMA_LOGGING_REPORT: u32 = 8;

/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_START`.
pub const DIRTY_PAGES_START: u32 = 1;
/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP`.
pub const DIRTY_PAGES_STOP: u32 = 2;
/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`.
pub const DIRTY_PAGES_GET: u32 = 4;

/// `VFIO_IOMMU_INFO_CAPS`.
const INFO_CAPS: u32 = 1 << 1;
/// `VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`.
const CAP_MIGRATION: u16 = 2;
/// More bytes of capabilities than any kernel has.
const INFO_MAX: usize = 64 << 10;

/// How many ranges of a device's log the kernel accepts for certain: as many as fit a page.
pub const RANGES_MAX: usize = 4096 / size_of::<LoggingRange>();

/// IOVAs to log: `vfio_device_feature_dma_logging_range`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggingRange {
    /// The first address.
    pub iova: u64,
    /// The length in bytes.
    pub length: u64,
}

/// `vfio_device_feature`, followed by its data.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Feature {
    argsz: u32,
    flags: u32,
}

/// `vfio_device_feature_dma_logging_control`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct LoggingControl {
    page_size: u64,
    num_ranges: u32,
    reserved: u32,
    ranges: u64,
}

/// `vfio_device_feature_dma_logging_report`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct LoggingReport {
    iova: u64,
    length: u64,
    page_size: u64,
    bitmap: u64,
}

/// `vfio_iommu_type1_dirty_bitmap`, followed by its data.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DirtyBitmap {
    argsz: u32,
    flags: u32,
}

/// `vfio_iommu_type1_dirty_bitmap_get`, with the `vfio_bitmap` at its end.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DirtyBitmapGet {
    iova: u64,
    size: u64,
    pgsize: u64,
    bitmap_size: u64,
    data: u64,
}

/// `vfio_iommu_type1_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Type1Info {
    argsz: u32,
    flags: u32,
    iova_pgsizes: u64,
    cap_offset: u32,
    pad: u32,
}

/// The argument of a call on a device's feature: head and data in one piece.
#[repr(C)]
struct With<H, D>(H, D);

/// Makes a call with a whole structure.
///
/// # Safety
/// `argument` is the structure of `request`, without padding, and its pointers are what the kernel
/// expects.
pub(super) unsafe fn call<T, D: Ioctl + ?Sized>(
    io: &mut D,
    request: u32,
    argument: &mut T,
) -> std::io::Result<()> {
    // SAFETY: the caller's promise; the structure is borrowed for the call.
    unsafe { io.ioctl(request, std::ptr::from_mut(argument).cast(), size_of::<T>()) }
}

/// The error of the first call on a descriptor, with what it means.
fn first(what: &str, expected: &str, error: std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => Error::new(
            Kind::Unsupported,
            format!("{what}: {error}; expected {expected}"),
        ),
        _ => Error::os(what, error),
    }
}

/// Whether the device has a log of its own; [`Kind::Unsupported`] if not. Changes nothing.
pub fn logging_probe(device: &mut dyn Ioctl) -> Result<()> {
    let mut probe = Feature {
        argsz: size_of::<Feature>() as u32,
        flags: FEATURE_PROBE | FEATURE_SET | DMA_LOGGING_START,
    };
    // SAFETY: a head without data is what a probe takes.
    unsafe { call(device, DEVICE_FEATURE, &mut probe) }.map_err(|e| {
        first(
            "asking for VFIO_DEVICE_FEATURE_DMA_LOGGING",
            "a VFIO device whose driver logs DMA",
            e,
        )
    })
}

/// Starts the device's log of `ranges`, which do not overlap and are multiples of `page_size`.
/// Returns the page size that the driver chose.
pub fn logging_start(
    device: &mut dyn Ioctl,
    page_size: u64,
    ranges: &[LoggingRange],
) -> Result<u64> {
    type Start = With<Feature, LoggingControl>;
    let mut start: Start = With(
        Feature {
            argsz: size_of::<Start>() as u32,
            flags: FEATURE_SET | DMA_LOGGING_START,
        },
        LoggingControl {
            page_size,
            num_ranges: ranges.len() as u32,
            reserved: 0,
            ranges: ranges.as_ptr() as u64,
        },
    );
    // SAFETY: head and data without padding; the kernel reads `num_ranges` ranges, which exist.
    unsafe { call(device, DEVICE_FEATURE, &mut start) }.map_err(|e| {
        Error::os(
            format_args!(
                "VFIO_DEVICE_FEATURE_DMA_LOGGING_START of {} ranges in pages of {page_size} bytes",
                ranges.len()
            ),
            e,
        )
    })?;
    Ok(start.1.page_size)
}

/// Stops the device's log.
pub fn logging_stop(device: &mut dyn Ioctl) -> Result<()> {
    let mut stop = Feature {
        argsz: size_of::<Feature>() as u32,
        flags: FEATURE_SET | DMA_LOGGING_STOP,
    };
    // SAFETY: this call takes a head without data.
    unsafe { call(device, DEVICE_FEATURE, &mut stop) }
        .map_err(|e| Error::os("VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", e))
}

/// ORs into `words` which pages of `length` bytes from `iova` on the device wrote, and clears them
/// in its log. There is one bit for each `page_size` bytes, bit 0 for `iova`. The kernel only sets
/// bits, so `words` are zero before.
pub fn logging_report(
    device: &mut dyn Ioctl,
    iova: u64,
    length: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<()> {
    check_room(length, page_size, words)?;
    type Report = With<Feature, LoggingReport>;
    let mut report: Report = With(
        Feature {
            argsz: size_of::<Report>() as u32,
            flags: FEATURE_GET | DMA_LOGGING_REPORT,
        },
        LoggingReport {
            iova,
            length,
            page_size,
            bitmap: words.as_mut_ptr() as u64,
        },
    );
    // SAFETY: head and data without padding; the kernel writes a bit for each page of the range,
    // for which there is room, as checked above.
    unsafe { call(device, DEVICE_FEATURE, &mut report) }.map_err(|e| {
        Error::os(
            format_args!(
                "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT of {length} bytes from IOVA {iova:#x}"
            ),
            e,
        )
    })
}

fn check_room(length: u64, page_size: u64, words: &[u64]) -> Result<()> {
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
    Ok(())
}

/// What a container's IOMMU can report about dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type1Dirty {
    /// The page sizes that a bitmap can have, one bit each. The kernel accepts only the smallest.
    pub page_sizes: u64,
    /// The longest bitmap, in bytes.
    pub bitmap_max: u64,
}

/// Asks the container's IOMMU for its migration capability.
pub fn type1_dirty(container: &mut dyn Ioctl) -> Result<Type1Dirty> {
    const HEAD: usize = size_of::<Type1Info>();
    const WHAT: &str = "VFIO_IOMMU_GET_INFO";
    let ask = |container: &mut dyn Ioctl, size: usize| -> Result<Vec<u8>> {
        // As words, so that the kernel finds its structure aligned.
        let mut words = Vec::new();
        fallible::reserve(&mut words, size.div_ceil(8), WHAT)?;
        words.resize(size.div_ceil(8), 0u64);
        words[0] = (size as u64).to_le();
        // SAFETY: `size` bytes that begin with a structure whose argsz has that value.
        let done = unsafe { container.ioctl(IOMMU_GET_INFO, words.as_mut_ptr().cast(), size) };
        done.map_err(|e| first(WHAT, "a VFIO container with a type 1 IOMMU", e))?;
        let bytes = words.iter().flat_map(|w| w.to_ne_bytes());
        let mut bytes = fallible::collect(bytes, WHAT)?;
        bytes.truncate(size);
        Ok(bytes)
    };
    let mut bytes = ask(container, HEAD)?;
    // With too little room the kernel reports how much it needs, and leaves out the capabilities.
    let needed = at::<4>(&bytes, 0).map_or(0, u32::from_ne_bytes) as usize;
    if needed > INFO_MAX {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{WHAT} wants {needed} bytes, at most {INFO_MAX} were expected"),
        ));
    }
    if needed > HEAD {
        bytes = ask(container, needed)?;
    }
    let flags = at::<4>(&bytes, 4).map_or(0, u32::from_ne_bytes);
    let mut next = match flags & INFO_CAPS {
        0 => 0,
        _ => at::<4>(&bytes, 16).map_or(0, u32::from_ne_bytes) as usize,
    };
    // Each capability lies behind the one before it, so this loop ends.
    while next >= HEAD {
        let Some(id) = at::<2>(&bytes, next).map(u16::from_ne_bytes) else {
            break;
        };
        if id == CAP_MIGRATION {
            // Header (8 bytes), flags, padding, page sizes, size of a bitmap.
            let sizes = at::<8>(&bytes, next + 16).map(u64::from_ne_bytes);
            let most = at::<8>(&bytes, next + 24).map(u64::from_ne_bytes);
            if let (Some(page_sizes), Some(bitmap_max)) = (sizes, most) {
                return Ok(Type1Dirty {
                    page_sizes,
                    bitmap_max,
                });
            }
        }
        let after = at::<4>(&bytes, next + 4).map_or(0, u32::from_ne_bytes) as usize;
        if after <= next {
            break;
        }
        next = after;
    }
    Err(Error::new(
        Kind::Unsupported,
        "this VFIO container's IOMMU tells no dirty pages (no migration capability)",
    ))
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// Switches the container's tracking on or off.
pub fn type1_switch(container: &mut dyn Ioctl, on: bool) -> Result<()> {
    let mut switch = DirtyBitmap {
        argsz: size_of::<DirtyBitmap>() as u32,
        flags: if on {
            DIRTY_PAGES_START
        } else {
            DIRTY_PAGES_STOP
        },
    };
    // SAFETY: this call takes a head without data.
    unsafe { call(container, IOMMU_DIRTY_PAGES, &mut switch) }.map_err(|e| {
        let which = if on { "START" } else { "STOP" };
        Error::os(format_args!("VFIO_IOMMU_DIRTY_PAGES {which}"), e)
    })
}

/// Writes into `words`, which are zero before, which pages of `length` bytes from `iova` on were
/// written, or may have been, since the last call. The range splits no mapping.
pub fn type1_bitmap(
    container: &mut dyn Ioctl,
    iova: u64,
    length: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<()> {
    check_room(length, page_size, words)?;
    type Get = With<DirtyBitmap, DirtyBitmapGet>;
    let mut get: Get = With(
        DirtyBitmap {
            argsz: size_of::<Get>() as u32,
            flags: DIRTY_PAGES_GET,
        },
        DirtyBitmapGet {
            iova,
            size: length,
            pgsize: page_size,
            bitmap_size: words.len() as u64 * 8,
            data: words.as_mut_ptr() as u64,
        },
    );
    // SAFETY: head and data without padding; the kernel writes at most `bitmap_size` bytes.
    unsafe { call(container, IOMMU_DIRTY_PAGES, &mut get) }.map_err(|e| {
        Error::os(
            format_args!(
                "VFIO_IOMMU_DIRTY_PAGES GET_BITMAP of {length} bytes from IOVA {iova:#x} \
                 (a range is mapped for DMA by one or more whole mappings)"
            ),
            e,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Numbers and layouts as C sees them, for the compiler to compare.
    fn layouts() -> String {
        let mut c = String::from(
            "#include <stddef.h>\n#include <linux/vfio.h>\n#define IS(a, b) \
             _Static_assert((a) == (b), #a)\n",
        );
        let mut is = |what: &str, value: u64| c.push_str(&format!("IS({what}, {value}ull);\n"));
        is("VFIO_DEVICE_FEATURE", DEVICE_FEATURE.into());
        is("VFIO_IOMMU_DIRTY_PAGES", IOMMU_DIRTY_PAGES.into());
        is("VFIO_IOMMU_GET_INFO", IOMMU_GET_INFO.into());
        is("VFIO_DEVICE_FEATURE_GET", FEATURE_GET.into());
        is("VFIO_DEVICE_FEATURE_SET", FEATURE_SET.into());
        is("VFIO_DEVICE_FEATURE_PROBE", FEATURE_PROBE.into());
        is("VFIO_IOMMU_INFO_CAPS", INFO_CAPS.into());
        is("VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION", CAP_MIGRATION.into());
        is(
            "VFIO_IOMMU_DIRTY_PAGES_FLAG_START",
            DIRTY_PAGES_START.into(),
        );
        is("VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP", DIRTY_PAGES_STOP.into());
        is(
            "VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP",
            DIRTY_PAGES_GET.into(),
        );
        let mut layout = |name: &str, size: usize, fields: &[(&str, usize)]| {
            is(&format!("sizeof(struct {name})"), size as u64);
            for (field, offset) in fields {
                is(&format!("offsetof(struct {name}, {field})"), *offset as u64);
            }
        };
        layout(
            "vfio_device_feature",
            size_of::<Feature>(),
            &[("argsz", 0), ("flags", offset_of!(Feature, flags))],
        );
        layout(
            "vfio_iommu_type1_dirty_bitmap",
            size_of::<DirtyBitmap>(),
            &[("argsz", 0), ("flags", offset_of!(DirtyBitmap, flags))],
        );
        layout(
            "vfio_iommu_type1_dirty_bitmap_get",
            size_of::<DirtyBitmapGet>(),
            &[
                ("iova", 0),
                ("size", offset_of!(DirtyBitmapGet, size)),
                ("bitmap.pgsize", offset_of!(DirtyBitmapGet, pgsize)),
                ("bitmap.size", offset_of!(DirtyBitmapGet, bitmap_size)),
                ("bitmap.data", offset_of!(DirtyBitmapGet, data)),
            ],
        );
        layout(
            "vfio_iommu_type1_info",
            // Older headers end before the padding.
            size_of::<Type1Info>(),
            &[
                ("flags", offset_of!(Type1Info, flags)),
                ("cap_offset", offset_of!(Type1Info, cap_offset)),
            ],
        );
        layout(
            "vfio_iommu_type1_info_cap_migration",
            32,
            &[("pgsize_bitmap", 16), ("max_dirty_bitmap_size", 24)],
        );
        layout(
            "vfio_info_cap_header",
            8,
            &[("id", 0), ("version", 2), ("next", 4)],
        );
        c.push_str("#ifdef VFIO_DEVICE_FEATURE_DMA_LOGGING_START\n");
        let mut is = |what: &str, value: u64| c.push_str(&format!("IS({what}, {value}ull);\n"));
        for (name, number) in [
            ("START", DMA_LOGGING_START),
            ("STOP", DMA_LOGGING_STOP),
            ("REPORT", DMA_LOGGING_REPORT),
        ] {
            is(
                &format!("VFIO_DEVICE_FEATURE_DMA_LOGGING_{name}"),
                number.into(),
            );
        }
        let mut layout = |name: &str, size: usize, fields: &[(&str, usize)]| {
            let name = format!("struct vfio_device_feature_dma_logging_{name}");
            is(&format!("sizeof({name})"), size as u64);
            for (field, offset) in fields {
                is(&format!("offsetof({name}, {field})"), *offset as u64);
            }
        };
        layout(
            "control",
            size_of::<LoggingControl>(),
            &[
                ("page_size", 0),
                ("num_ranges", offset_of!(LoggingControl, num_ranges)),
                ("__reserved", offset_of!(LoggingControl, reserved)),
                ("ranges", offset_of!(LoggingControl, ranges)),
            ],
        );
        layout(
            "range",
            size_of::<LoggingRange>(),
            &[("iova", 0), ("length", offset_of!(LoggingRange, length))],
        );
        layout(
            "report",
            size_of::<LoggingReport>(),
            &[
                ("iova", 0),
                ("length", offset_of!(LoggingReport, length)),
                ("page_size", offset_of!(LoggingReport, page_size)),
                ("bitmap", offset_of!(LoggingReport, bitmap)),
            ],
        );
        c.push_str("#endif\n");
        c
    }

    #[test]
    fn numbers_and_layouts_are_those_of_the_system_s_header() {
        crate::sys::ioctl::assert_compiles(&layouts());
    }

    /// Answers GET_INFO with bytes of the test's choice.
    struct Info(Vec<u8>);

    impl Ioctl for Info {
        unsafe fn ioctl(
            &mut self,
            request: u32,
            argument: *mut u8,
            size: usize,
        ) -> std::io::Result<()> {
            assert_eq!(request, IOMMU_GET_INFO);
            // SAFETY: by the trait's contract.
            let to = unsafe { std::slice::from_raw_parts_mut(argument, size) };
            assert_eq!(to[..4], (size as u32).to_ne_bytes());
            let n = size.min(self.0.len());
            to[..n].copy_from_slice(&self.0[..n]);
            Ok(())
        }
    }

    fn info(needed: u32, flags: u32, cap_offset: u32, caps: &[u8]) -> Info {
        let mut bytes = Vec::new();
        bytes.extend(needed.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(4096u64.to_ne_bytes());
        bytes.extend(cap_offset.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(caps);
        Info(bytes)
    }

    #[test]
    fn the_migration_capability_is_found_behind_another() {
        let mut caps = Vec::new();
        // At offset 24: another capability of 16 bytes, the next one at 40.
        caps.extend(1u16.to_ne_bytes());
        caps.extend(1u16.to_ne_bytes());
        caps.extend(40u32.to_ne_bytes());
        caps.extend([0xff; 8]);
        caps.extend(2u16.to_ne_bytes());
        caps.extend(1u16.to_ne_bytes());
        caps.extend(0u32.to_ne_bytes());
        caps.extend([0; 8]);
        caps.extend(0x1000u64.to_ne_bytes());
        caps.extend((1u64 << 28).to_ne_bytes());
        let found = type1_dirty(&mut info(24 + caps.len() as u32, INFO_CAPS, 24, &caps)).unwrap();
        assert_eq!((found.page_sizes, found.bitmap_max), (0x1000, 1 << 28));
    }

    #[test]
    fn without_the_capability_or_with_nonsense_it_is_unsupported_and_ends() {
        let mut circle = Vec::new();
        circle.extend(1u16.to_ne_bytes());
        circle.extend(1u16.to_ne_bytes());
        circle.extend(24u32.to_ne_bytes());
        for mut io in [
            info(24, 0, 0, &[]),
            info(24, INFO_CAPS, 24, &[]),
            info(24, INFO_CAPS, u32::MAX, &[]),
            info(32, INFO_CAPS, 24, &circle),
            // The capability is cut off in the middle.
            info(
                40,
                INFO_CAPS,
                24,
                &[2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            info(u32::MAX, INFO_CAPS, 24, &[]),
        ] {
            assert_eq!(type1_dirty(&mut io).unwrap_err().kind(), Kind::Unsupported);
        }
    }

    #[test]
    fn a_bitmap_that_is_too_small_never_reaches_the_kernel() {
        struct Never;
        impl Ioctl for Never {
            unsafe fn ioctl(&mut self, _: u32, _: *mut u8, _: usize) -> std::io::Result<()> {
                panic!("it did");
            }
        }
        let mut one = [0];
        assert!(logging_report(&mut Never, 0, 65 * 4096, 4096, &mut one).is_err());
        assert!(type1_bitmap(&mut Never, 0, 65 * 4096, 4096, &mut one).is_err());
        assert!(type1_bitmap(&mut Never, 0, 4096, 0, &mut one).is_err());
    }
}
