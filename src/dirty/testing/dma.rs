//! A model of the kernel's side of the ioctls of VFIO and iommufd, after the text of their headers.
//! It sees number and bytes of each call, refuses what the kernel refuses, keeps dirty bits, and
//! loses what the kernel would lose. There is no hardware behind it. Only tests use it.

use crate::sys::ioctl::Ioctl;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// The calls made, in short, and the state of the log and the device.
#[derive(Default)]
pub struct State {
    /// Each call, with its arguments.
    pub calls: Vec<String>,
    /// Errors for calls whose name begins with the text, one each.
    pub fail: VecDeque<(&'static str, i32)>,
    /// The ranges that a device's log covers, if it is on.
    pub logging: Option<Vec<Range<u64>>>,
    pub page: u64,
    /// Dirty pages, by their number in units of `page`.
    dirty: BTreeSet<u64>,
    /// The page size that the driver insists on.
    pub driver_page: Option<u64>,
    /// What is mapped for DMA (container, iommufd).
    pub mapped: Vec<Range<u64>>,
    /// The most bytes of a container's bitmap.
    pub bitmap_max: u64,
}

/// The kernel behind a descriptor, shared with the test.
#[derive(Clone, Default)]
pub struct Kernel(Arc<Mutex<State>>);

impl Kernel {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
    }

    pub fn fail(&self, what: &'static str, errno: i32) {
        self.lock().fail.push_back((what, errno));
    }

    pub fn device(&self) -> Box<dyn Ioctl> {
        Box::new(Device(self.clone()))
    }

    pub fn container(&self, page: u64) -> Box<dyn Ioctl> {
        let mut state = self.lock();
        state.page = page;
        state.bitmap_max = 256 << 20;
        drop(state);
        Box::new(Container(self.clone()))
    }

    pub fn iommufd(&self) -> Box<dyn Ioctl> {
        self.lock().page = 4096;
        Box::new(Iommufd(self.clone()))
    }

    /// The device writes. The write is logged only inside the ranges, and while the log is on.
    pub fn write(&self, iova: u64) {
        let mut state = self.lock();
        let Some(ranges) = &state.logging else { return };
        if ranges.iter().any(|r| r.contains(&iova)) {
            let page = iova / state.page;
            state.dirty.insert(page);
        }
    }
}

impl State {
    fn called(&mut self, call: String) -> io::Result<()> {
        self.calls.push(call.clone());
        match self.fail.front() {
            Some((what, errno)) if call.starts_with(what) => {
                let errno = *errno;
                self.fail.pop_front();
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    /// ORs the dirty pages of a range into a bitmap of pages of `page` bytes, and clears them. A
    /// page of the device's that lies partly in the range is clean afterwards as a whole.
    fn report(&mut self, iova: u64, length: u64, page: u64, bitmap: u64) {
        let pages = iova / self.page..(iova + length).div_ceil(self.page);
        let dirty: Vec<u64> = self.dirty.range(pages).copied().collect();
        for n in dirty {
            self.dirty.remove(&n);
            let from = (n * self.page).max(iova);
            let to = ((n + 1) * self.page).min(iova + length);
            for bit in (from - iova) / page..(to - iova).div_ceil(page) {
                let at = (bitmap as *mut u64).wrapping_add(bit as usize / 64);
                // SAFETY: the caller of the ioctl promised a bitmap for the range.
                unsafe { *at |= 1 << (bit % 64) };
            }
        }
    }
}

/// All IOVAs, for logs that have no ranges.
fn all() -> Vec<Range<u64>> {
    std::iter::once(0..u64::MAX).collect()
}

fn bad<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// The structure as words of 32 bits, by which the ABI of all of them is laid out.
fn words(argument: *mut u8, size: usize) -> Vec<u32> {
    assert!(size.is_multiple_of(4));
    // SAFETY: `size` bytes by the contract of the trait.
    let bytes = unsafe { std::slice::from_raw_parts(argument, size) };
    let words = bytes.chunks(4).map(|w| w.try_into().unwrap());
    words.map(u32::from_ne_bytes).collect()
}

fn long(words: &[u32], at: usize) -> u64 {
    u64::from(words[at]) | u64::from(words[at + 1]) << 32
}

struct Device(Kernel);

impl Ioctl for Device {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()> {
        assert_eq!(request, 0x3b75, "VFIO_DEVICE_FEATURE");
        let w = words(argument, size);
        assert_eq!(w[0] as usize, size, "argsz");
        let mut state = self.0.lock();
        match (w[1], size) {
            // PROBE | SET | START
            (0x6_0006, 8) => state.called("probe".into()),
            // SET | START
            (0x2_0006, 32) => {
                let (page, n) = (long(&w, 2), w[4] as usize);
                assert_eq!(w[5], 0, "reserved");
                let at = long(&w, 6) as *const [u64; 2];
                let ranges: Vec<Range<u64>> = (0..n)
                    // SAFETY: the caller promised `num_ranges` ranges.
                    .map(|i| unsafe { at.wrapping_add(i).read() })
                    .map(|[iova, length]| iova..iova + length)
                    .collect();
                state.called(format!("start {page} {ranges:x?}"))?;
                let fits = |r: &Range<u64>| (r.start | r.end).is_multiple_of(page) && !r.is_empty();
                if state.logging.is_some()
                    || !(1..=256).contains(&n)
                    || !ranges.iter().all(fits)
                    || ranges.windows(2).any(|r| r[0].end > r[1].start)
                {
                    return bad();
                }
                state.page = state.driver_page.unwrap_or(page);
                state.dirty.clear();
                state.logging = Some(ranges);
                let chosen = state.page;
                // SAFETY: the place of the page size in the structure.
                unsafe { argument.add(8).cast::<u64>().write_unaligned(chosen) };
                Ok(())
            }
            // SET | STOP
            (0x2_0007, 8) => {
                state.called("stop".into())?;
                state.logging.take().map_or_else(bad, |_| Ok(()))
            }
            // GET | REPORT
            (0x1_0008, 40) => {
                let (iova, length, page) = (long(&w, 2), long(&w, 4), long(&w, 6));
                state.called(format!("report {iova:x}+{length:x} {page}"))?;
                // Drivers look for the logged range of a report, and refuse a report that lies in
                // none.
                let logged = |r: &Range<u64>| r.start <= iova && iova + length <= r.end;
                if !state.logging.iter().flatten().any(logged)
                    || page < 4096
                    || !page.is_power_of_two()
                    || iova.checked_add(length).is_none()
                {
                    return bad();
                }
                state.report(iova, length, page, long(&w, 8));
                Ok(())
            }
            other => panic!("flags and size {other:x?}"),
        }
    }
}

struct Container(Kernel);

impl Ioctl for Container {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()> {
        let w = words(argument, size);
        let mut state = self.0.lock();
        assert_eq!(w[0] as usize, size, "argsz");
        if request == 0x3b70 {
            let needed = 24 + 32;
            let mut info: Vec<u32> = vec![needed, 2, 4096, 0, 24, 0];
            if size == 24 {
                info[4] = 0;
            } else {
                info.extend([2 | 1 << 16, 0, 0, 0]);
                // The container's page size and a larger one.
                let sizes = state.page | 1 << 30;
                info.extend([sizes as u32, (sizes >> 32) as u32]);
                info.extend([state.bitmap_max as u32, (state.bitmap_max >> 32) as u32]);
            }
            for (i, word) in info.iter().take(size / 4).enumerate() {
                // SAFETY: within `size`.
                unsafe { argument.add(i * 4).cast::<u32>().write_unaligned(*word) };
            }
            return state.called("info".into());
        }
        assert_eq!(request, 0x3b75, "VFIO_IOMMU_DIRTY_PAGES");
        match (w[1], size) {
            (1, 8) => {
                state.called("start".into())?;
                state.dirty.clear();
                state.logging = Some(all());
                Ok(())
            }
            (2, 8) => {
                state.called("stop".into())?;
                state.logging = None;
                Ok(())
            }
            (4, 48) => {
                let (iova, length, page) = (long(&w, 2), long(&w, 4), long(&w, 6));
                state.called(format!("get {iova:x}+{length:x} {page}"))?;
                let room = long(&w, 8);
                let end = iova + length;
                let splits = |r: &Range<u64>| {
                    r.start < end && iova < r.end && (r.start < iova || end < r.end)
                };
                if state.logging.is_none()
                    || page != state.page
                    || !(iova | length).is_multiple_of(page)
                    || room < (length / page).div_ceil(64) * 8
                    || room > state.bitmap_max
                    || state.mapped.iter().any(splits)
                {
                    return bad();
                }
                state.report(iova, length, page, long(&w, 10));
                Ok(())
            }
            other => panic!("flags and size {other:x?}"),
        }
    }
}

struct Iommufd(Kernel);

impl Ioctl for Iommufd {
    unsafe fn ioctl(&mut self, request: u32, argument: *mut u8, size: usize) -> io::Result<()> {
        let w = words(argument, size);
        assert_eq!(w[0] as usize, size, "size");
        let mut state = self.0.lock();
        match (request, size) {
            (0x3b8b, 16) => {
                assert_eq!((w[1] & !1, w[3]), (0, 0), "flags, reserved");
                state.called(format!("set {} of {}", w[1], w[2]))?;
                state.dirty.clear();
                state.logging = (w[1] == 1).then(all);
                Ok(())
            }
            (0x3b8c, 48) => {
                assert_eq!((w[2], w[3]), (0, 0), "flags, reserved");
                let (iova, length, page) = (long(&w, 4), long(&w, 6), long(&w, 8));
                state.called(format!("get {iova:x}+{length:x} {page} of {}", w[1]))?;
                // The whole range must be mapped, by mappings that touch.
                let mut at = iova;
                for range in &state.mapped {
                    if range.contains(&at) {
                        at = range.end;
                    }
                }
                if state.logging.is_none()
                    || !(iova | length).is_multiple_of(state.page.max(page))
                    || at < iova + length
                {
                    return bad();
                }
                state.report(iova, length, page, long(&w, 10));
                Ok(())
            }
            other => panic!("request and size {other:x?}"),
        }
    }
}
