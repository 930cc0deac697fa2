//! Shared memory that other processes, or the kernel, write to: a sealed memfd and its mapping, as
//! words that are only accessed by atomics.
//!
//! The vhost log is built on it, and knows what the words mean.

use super::kernel;
use crate::error::{Error, Kind, Result};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A memfd of fixed size, mapped shared and writable. It is all zero at first.
#[derive(Debug)]
pub struct Shm {
    fd: OwnedFd,
    address: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the object, and is accessed through atomics only.
unsafe impl Send for Shm {}
// SAFETY: as above.
unsafe impl Sync for Shm {}

impl Shm {
    /// `length` bytes, a multiple of 4096 and not 0, in a memfd called `name`. Its size is sealed.
    /// So a process that gets the descriptor can neither enlarge it nor shrink it; shrinking would
    /// end every process that touches the cut part. No part is backed by memory yet.
    pub fn new(name: &CStr, length: u64) -> Result<Shm> {
        let no_memory = || Error::no_memory(format_args!("shared memory {name:?}"), length);
        let bytes = usize::try_from(length).map_err(|_| no_memory())?;
        if bytes == 0 || !bytes.is_multiple_of(4096) {
            return Err(Error::new(
                Kind::Invalid,
                format!("shared memory {name:?}: {length} bytes are no whole pages"),
            ));
        }
        let size = libc::off_t::try_from(length).map_err(|_| no_memory())?;
        let limit = file_size_limit();
        if length > limit {
            return Err(Error::new(
                Kind::NoMemory,
                format!(
                    "shared memory {name:?} needs {length} bytes, and a file of this process may \
                     have {limit} (RLIMIT_FSIZE)"
                ),
            ));
        }
        // SAFETY: takes a string, makes a descriptor.
        let fd = unsafe {
            kernel::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(Error::last_os(format_args!("memfd_create of {name:?}")));
        }
        // SAFETY: just made, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a descriptor of ours; touches no memory.
        if unsafe { kernel::ftruncate(fd.as_raw_fd(), size) } != 0 {
            return Err(Error::last_os(format_args!(
                "ftruncate of {name:?} to {length} bytes"
            )));
        }
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: as above.
        if unsafe { kernel::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(Error::last_os(format_args!("sealing {name:?}")));
        }
        // SAFETY: a new mapping, where the kernel likes.
        let address = unsafe {
            kernel::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os(format_args!(
                "mapping {length} bytes of {name:?}"
            )));
        }
        match NonNull::new(address.cast::<AtomicU64>()) {
            Some(address) => Ok(Shm {
                fd,
                address,
                words: bytes / 8,
            }),
            // The kernel maps at address 0 only when asked to.
            None => Err(no_memory()),
        }
    }

    /// Takes memory for a range now, bytes rounded out to pages, so that no later write there ends
    /// a process for want of memory. Contents stay.
    pub fn reserve(&self, start: u64, end: u64) -> Result<()> {
        let end = end.min(self.length());
        if start >= end {
            return Ok(());
        }
        // SAFETY: changes the file, not our address space. Both fit, as the length did.
        let result = unsafe {
            kernel::fallocate(
                self.fd.as_raw_fd(),
                libc::FALLOC_FL_KEEP_SIZE,
                start as libc::off_t,
                (end - start) as libc::off_t,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        Err(match error.raw_os_error() {
            Some(libc::ENOSPC) => Error::no_memory("shared memory", end - start),
            _ => Error::os("fallocate of shared memory", error),
        })
    }

    /// Closes the descriptor, and leaves the mapping in place for ever: for memory to which other
    /// code may still write by its address.
    pub fn leave_mapped(self) {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: read once, from an object that is neither dropped nor used again.
        drop(unsafe { std::ptr::read(&this.fd) });
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The address of the first byte in this process.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr().cast()
    }

    /// The length in bytes.
    pub fn length(&self) -> u64 {
        self.words as u64 * 8
    }

    /// Copies the words from `first` on, which others may be changing. No order is implied: a
    /// change made during the copying may be missed, or be in one of two copied words and not in
    /// the other.
    ///
    /// # Panics
    /// If there are not as many words.
    pub fn read(&self, first: usize, to: &mut [u64]) {
        copy(&self.words()[first..first + to.len()], to);
    }

    /// All words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: a mapping of that many words, aligned to a page, that lives as long as `self`.
        // Other writers use atomics by the protocol that the memory is for. One that does not can
        // lose its own bits, and decides nothing else.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.words) }
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no borrow of it exists any more.
        unsafe { kernel::munmap(self.address.as_ptr().cast(), self.words * 8) };
    }
}

/// Copies words that others may be changing. Their lengths are the same.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn copy(from: &[AtomicU64], to: &mut [u64]) {
    let words = from.len().min(to.len());
    // SAFETY: both slices have that many words, and do not overlap, because one is borrowed mutably.
    // The direction flag is clear, as the calling convention has it. The instruction moves more
    // than a word at a time where it can. The compiler does not see these reads, so they race with
    // other threads' atomic writes as the processor defines it: each byte is the old or the new one.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies words that others may be changing. Their lengths are the same.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn copy(from: &[AtomicU64], to: &mut [u64]) {
    for (from, to) in from.iter().zip(to) {
        *to = from.load(std::sync::atomic::Ordering::Relaxed);
    }
}

/// Starts to load a word's cache line for a write a little later. A hint, which does nothing on
/// architectures without it.
pub fn prefetch_to_write(word: &AtomicU64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint for an address that is mapped; it changes nothing that a program sees.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_ET0};
        _mm_prefetch::<_MM_HINT_ET0>(std::ptr::from_ref(word).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = word;
}

/// The longest file that this process may write (`RLIMIT_FSIZE`). It is checked first, because
/// enlarging a file beyond it raises SIGXFSZ, which ends a process that does not expect it. A memfd
/// is a file too.
fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the kernel fills the structure, which outlives the call. If the call fails, the
    // structure says that there is no limit.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    limit.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn who_has_the_descriptor_can_neither_shrink_nor_grow_it() {
        let shm = Shm::new(c"brant-test", 8192).unwrap();
        for size in [0, 4096, 1 << 20] {
            // SAFETY: a descriptor of ours.
            assert_ne!(unsafe { libc::ftruncate(shm.fd().as_raw_fd(), size) }, 0);
        }
        shm.words()[1023].store(7, Ordering::Relaxed);
        assert_eq!(shm.words()[1023].load(Ordering::Relaxed), 7);
        assert_eq!(shm.words().len(), 1024);
    }

    #[test]
    fn reserving_keeps_what_is_there_and_is_cut_at_the_end() {
        let shm = Shm::new(c"brant-test", 8192).unwrap();
        shm.words()[3].store(9, Ordering::Relaxed);
        shm.reserve(0, u64::MAX).unwrap();
        shm.reserve(1 << 40, 1 << 41).unwrap();
        assert_eq!(shm.words()[3].load(Ordering::Relaxed), 9);
        assert_eq!(shm.length(), 8192);
    }

    #[test]
    fn sizes_that_cannot_be_are_errors() {
        for size in [0, 5, 4097, u64::MAX, u64::MAX - 4095, 1 << 62] {
            assert!(Shm::new(c"brant-test", size).is_err(), "{size}");
        }
    }
}
