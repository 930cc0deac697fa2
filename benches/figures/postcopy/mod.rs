//! What a guest waits for behind a switch to postcopy ([`faults`]), and how long it stands still at the
//! switch ([`blackout`]).
//!
//! Source and destination are one process, over connected sockets or over a link with a rate and a
//! delay.

mod blackout;
mod faults;

pub use blackout::measure as blackout;
pub use faults::measure as faults;

use brant::memory::{BlockDescription, HostMemory, Memory, SlotDescription};
use brant::units::Bytes;
use brant::vm_memory::GuestAddress;
use brant::vmm::Vmm;
use std::sync::Arc;

const PAGE: usize = 4096;

/// A VMM whose guest does nothing.
struct Idle;

impl Vmm for Idle {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
}

/// Private memory of one block, reserved and not touched.
struct Ram {
    host: *mut u8,
    length: usize,
    memory: Arc<Memory>,
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whose users have ended.
        unsafe { libc::munmap(self.host.cast(), self.length) };
    }
}

impl Ram {
    fn new(length: usize) -> Ram {
        Ram::of(length, PAGE)
    }

    /// In pages of so many bytes, those of the processor or huge ones of a pool.
    fn of(length: usize, page: usize) -> Ram {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let huge = if page > PAGE {
            libc::MAP_HUGETLB
        } else {
            libc::MAP_NORESERVE
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge;
        // SAFETY: a new mapping where the kernel likes.
        let host = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
        assert_ne!(host, libc::MAP_FAILED);
        // SAFETY: advice about that mapping. A page that is touched is one page.
        unsafe { libc::madvise(host, length, libc::MADV_NOHUGEPAGE) };
        let memory = Arc::new(Memory::new().unwrap());
        // SAFETY: mapped until the drop, when nobody uses it any more.
        let at = unsafe { HostMemory::new(host.cast()) };
        let block = BlockDescription {
            page_size: Bytes(page as u64),
            ..BlockDescription::new("ram", at, Bytes(length as u64))
        };
        let block = memory.add_block(block).unwrap();
        let slot = SlotDescription::new(block, GuestAddress(0), Bytes(length as u64));
        memory.add_slot(&slot).unwrap();
        Ram {
            host: host.cast(),
            length,
            memory,
        }
    }

    fn pages(&self) -> usize {
        self.length / PAGE
    }

    /// Reads the first word of a page.
    fn read(&self, page: usize) -> u64 {
        assert!(page < self.pages());
        // SAFETY: inside of the mapping, aligned.
        unsafe { self.host.add(page * PAGE).cast::<u64>().read_volatile() }
    }

    /// Writes to a page what a compressor and the zero test make nothing of.
    fn fill(&self, page: usize) {
        assert!(page < self.pages());
        let mut random = Random(page as u64 + 1);
        for at in (0..PAGE).step_by(8) {
            // SAFETY: inside of the mapping, aligned.
            unsafe {
                let word = self.host.add(page * PAGE + at).cast::<u64>();
                word.write(random.next());
            }
        }
    }
}

/// The generator of George Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// All numbers below `count`, in any order.
    fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            all.swap(at, self.next() as usize % (at + 1));
        }
        all
    }
}
