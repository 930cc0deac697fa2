//! The memory of one block of a guest: its kind, its mapping, and reads and writes.

use super::random::Random;
use brant::memory::block::{BackingFile, BlockDescription, BlockFlags};
use brant::units::{Bytes, PAGE_SIZE};
use std::any::Any;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

pub const PAGE: usize = PAGE_SIZE as usize;

/// The description of a block.
#[derive(Clone)]
pub struct Spec {
    pub name: &'static str,
    pub pages: usize,
    pub memfd: bool,
    pub rom: bool,
    pub page_size: u64,
}

/// Private anonymous memory.
pub fn ram(name: &'static str, pages: usize) -> Spec {
    Spec {
        name,
        pages,
        memfd: false,
        rom: false,
        page_size: PAGE_SIZE,
    }
}

/// A shared mapping of a memfd.
pub fn shared(name: &'static str, pages: usize) -> Spec {
    Spec {
        memfd: true,
        ..ram(name, pages)
    }
}

/// Memory that the guest does not write.
pub fn rom(name: &'static str, pages: usize) -> Spec {
    Spec {
        rom: true,
        ..ram(name, pages)
    }
}

/// The memory of one block.
pub struct Ram {
    pub spec: Spec,
    host: *mut u8,
    fd: Option<OwnedFd>,
    /// The owner of the mapping, when that is not this object.
    owner: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: a mapping that is this object's own; accesses go through atomics while others write.
unsafe impl Send for Ram {}

// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Drop for Ram {
    fn drop(&mut self) {
        if self.owner.is_none() {
            // SAFETY: mapped in `new` with this length, and not used any more.
            unsafe { libc::munmap(self.host.cast(), self.spec.pages * PAGE) };
        }
    }
}

impl Ram {
    pub fn new(spec: &Spec) -> Ram {
        let length = spec.pages * PAGE;
        let (flags, fd) = if spec.memfd {
            // SAFETY: a literal name; the descriptor is owned at once.
            let fd = unsafe {
                let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
                libc::memfd_create(c"ram".as_ptr(), flags)
            };
            assert!(fd >= 0);
            // SAFETY: just made, and nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: only changes the length of this function's own file.
            assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), length as i64) }, 0);
            (libc::MAP_SHARED, Some(fd))
        } else {
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
        };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd.as_ref().map_or(-1, |fd| fd.as_raw_fd()),
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        // Without huge pages, so that only written pages are touched.
        // SAFETY: advice about this object's own mapping.
        unsafe { libc::madvise(host, length, libc::MADV_NOHUGEPAGE) };
        Ram {
            spec: spec.clone(),
            host: host.cast(),
            fd,
            owner: None,
        }
    }

    /// Memory that another process hands over: `length` bytes of `file` from `offset` on, mapped at
    /// `at`, or anywhere if that is null.
    pub fn of_file(name: &str, file: BorrowedFd<'_>, length: u64, offset: u64, at: *mut u8) -> Ram {
        let flags = match at.is_null() {
            true => libc::MAP_SHARED,
            false => libc::MAP_SHARED | libc::MAP_FIXED,
        };
        // SAFETY: a new mapping at an address of the kernel's choice, or in the place of one that the
        // caller gives up.
        let host = unsafe {
            libc::mmap(
                at.cast(),
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file.as_raw_fd(),
                offset as i64,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        let pages = length as usize / PAGE;
        Ram {
            spec: shared(String::leak(name.to_owned()), pages),
            host: host.cast(),
            fd: Some(file.try_clone_to_owned().unwrap()),
            // A mapping in the place of another one belongs to whoever had that.
            owner: (!at.is_null()).then(|| Box::new(()) as Box<dyn Any + Send + Sync>),
        }
    }

    /// The address of the first byte.
    pub fn host(&self) -> *mut u8 {
        self.host
    }

    /// Memory of any other kind: a mapping at `host` with the length of `spec`, which `owner` keeps
    /// for as long as this object lives.
    pub fn over(
        spec: &Spec,
        host: *mut u8,
        fd: Option<OwnedFd>,
        owner: impl Any + Send + Sync,
    ) -> Ram {
        Ram {
            spec: spec.clone(),
            host,
            fd,
            owner: Some(Box::new(owner)),
        }
    }

    pub fn describe(&self) -> BlockDescription {
        BlockDescription {
            name: self.spec.name.to_owned(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { brant::memory::HostMemory::new(self.host) },
            length: Bytes((self.spec.pages * PAGE) as u64),
            page_size: Bytes(self.spec.page_size),
            file: self.fd.as_ref().map(|fd| BackingFile {
                fd: fd.try_clone().unwrap(),
                offset: 0,
            }),
            flags: BlockFlags {
                rom: self.spec.rom,
                zeroed: false,
            },
        }
    }

    /// The word at `offset` bytes.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.spec.pages * PAGE);
        // SAFETY: aligned, within the mapping, which lives as long as `self`.
        unsafe { &*self.host.add(offset).cast::<AtomicU64>() }
    }

    /// A page that no thread writes now.
    pub fn page(&self, page: usize) -> &[u8] {
        assert!(page < self.spec.pages);
        // SAFETY: within the mapping; the caller has the writers stopped.
        unsafe { std::slice::from_raw_parts(self.host.add(page * PAGE), PAGE) }
    }

    /// Writes a number into every word of a page.
    pub fn fill(&self, page: usize, random: &mut Random) {
        for word in 0..PAGE / 8 {
            self.word(page * PAGE + word * 8)
                .store(random.next() | 1, Ordering::Relaxed);
        }
    }

    pub fn fill_all(&self, random: &mut Random) {
        for page in 0..self.spec.pages {
            self.fill(page, random);
        }
    }
}
