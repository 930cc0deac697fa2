//! The memory of a vhost log: a sealed memfd, its mapping, and how much of it is backed. What its bits
//! mean to a harvest is not here.

use crate::error::{Error, Kind, Result};
use crate::memory::{Map, Slot};
use crate::sys::shm::Shm;
use crate::units::PAGE_SIZE;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// The highest guest address that a log can reach: 2^48, a log of 8 GiB (of address space).
pub const REACH_MAX: u64 = 1 << 48;

/// The memory of a log, which the VMM passes to back ends.
#[derive(Debug)]
pub struct LogMemory(pub(super) Shm);

impl LogMemory {
    pub(super) fn new(reach: u64) -> Result<LogMemory> {
        if reach > REACH_MAX {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "a vhost log reaches to guest address {REACH_MAX:#x} at most, and {reach:#x} \
                     was asked for"
                ),
            ));
        }
        let length = log_bytes(reach).max(PAGE_SIZE);
        Ok(LogMemory(Shm::new(c"brant-vhost-log", length)?))
    }

    /// A memfd of exactly [`LogMemory::length`] bytes, sealed against shrinking and growing. It is
    /// the descriptor that vhost-user's `SET_LOG_BASE` carries, with offset 0. The VMM may keep a
    /// duplicate.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// The address of the mapping in this process, for the kernel's `VHOST_SET_LOG_BASE`.
    pub fn address(&self) -> *mut u8 {
        self.0.address()
    }

    /// The length in bytes, a multiple of 4096.
    pub fn length(&self) -> u64 {
        self.0.length()
    }

    /// Takes memory for the bits of these pages.
    pub(super) fn reserve(&self, pages: &Range<u64>) -> Result<()> {
        self.0.reserve(pages.start / 8, pages.end.div_ceil(8))
    }

    /// Takes memory for the bits of all addresses at which a map has RAM.
    pub(super) fn reserve_all(&self, map: &Map) -> Result<()> {
        // Slots come in order of addresses, so adjacent ones are joined into one call.
        let mut joined: Option<Range<u64>> = None;
        for slot in map.slots() {
            let next = pages_of(slot);
            match &mut joined {
                Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
                last => {
                    if let Some(done) = last.replace(next) {
                        self.reserve(&done)?;
                    }
                }
            }
        }
        joined.map_or(Ok(()), |last| self.reserve(&last))
    }
}

/// The bytes, in whole pages, of a log that reaches to a guest address.
pub(super) fn log_bytes(reach: u64) -> u64 {
    reach
        .div_ceil(PAGE_SIZE)
        .div_ceil(8)
        .next_multiple_of(PAGE_SIZE)
}

/// The guest's pages that a slot shows.
pub(super) fn pages_of(slot: &Slot) -> Range<u64> {
    let first = slot.guest_address.0 / PAGE_SIZE;
    first..first + slot.pages.0
}
