//! A guest whose memory is never touched, and the pages that a tracker finds in it: for tests of
//! logs that only know addresses.

pub(crate) mod dma;
pub(crate) mod oracle;

use super::consumer::{Consumer, Cursor, Run};
use super::taken::Taken;
use super::tracker::{Clearing, Tracker};
use super::{DirtyLog, When};
use crate::error::Result;
use crate::memory::{BlockDescription, BlockFlags, BlockId, Memory, SlotDescription, NO_SLOT};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// Guest memory of the test's own, never touched.
pub struct Guest {
    pub memory: Arc<Memory>,
    host: *mut u8,
    bytes: usize,
    used: AtomicUsize,
}

// SAFETY: an address range of its own.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

impl Guest {
    pub fn new(pages: usize) -> Guest {
        let bytes = pages * PAGE_SIZE as usize;
        // SAFETY: a new mapping.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        Guest {
            memory: Arc::new(Memory::new().unwrap()),
            host: host.cast(),
            bytes,
            used: AtomicUsize::new(0),
        }
    }

    /// A block in memory that no other block has.
    pub fn block(&self, name: &str, pages: u64) -> BlockId {
        self.memory.add_block(self.describe(name, pages)).unwrap()
    }

    pub fn describe(&self, name: &str, pages: u64) -> BlockDescription {
        let used = self.used.fetch_add(pages as usize, Ordering::Relaxed);
        assert!((used + pages as usize) * PAGE_SIZE as usize <= self.bytes);
        BlockDescription {
            name: name.to_owned(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe {
                crate::memory::HostMemory::new(self.host.wrapping_add(used * PAGE_SIZE as usize))
            },
            length: Pages(pages).bytes(),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        }
    }

    pub fn slot(&self, block: &str, first: u64, pages: u64, guest_page: u64) -> Result<()> {
        self.memory.add_slot(&SlotDescription {
            slot: NO_SLOT,
            flags: 0,
            block: self.memory.find_block(block).unwrap(),
            offset: Pages(first).bytes(),
            length: Pages(pages).bytes(),
            guest_address: GuestAddress(guest_page * PAGE_SIZE),
        })
    }

    pub fn tracker(&self, log: Box<dyn DirtyLog>) -> Consumer {
        let tracker = Tracker::new(Arc::clone(&self.memory), Clearing::default()).unwrap();
        tracker.add_log(log).unwrap();
        tracker.consumer()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nothing touches.
        unsafe { libc::munmap(self.host.cast(), self.bytes) };
    }
}

/// All pending pages, as (block, page).
pub fn take_all(consumer: &Consumer) -> BTreeSet<(u32, u64)> {
    let mut found = BTreeSet::new();
    let mut cursor = Cursor::default();
    loop {
        let taken = consumer.take(&mut cursor, 64, Pages(u64::MAX)).unwrap();
        if taken.is_empty() && consumer.pending().0 == 0 {
            return found;
        }
        for run in taken.runs() {
            let pages = run.pages.first().0..run.pages.end().0;
            found.extend(pages.map(|page| (run.block.id().0, page)));
        }
        taken.delivered();
    }
}

/// Splits taken pages into single runs, so that each can arrive, or not, by itself.
pub fn apart(mut taken: Taken) -> Vec<Taken> {
    let mut each = Vec::new();
    while !taken.is_empty() {
        let mut first = true;
        let one = taken.split_off(|_, _| std::mem::take(&mut first));
        each.push(one.unwrap());
    }
    each
}

/// The only run of a value that [`apart`] made.
pub fn the_run(taken: &Taken) -> Run<'_> {
    let mut runs = taken.runs();
    let one = runs.next().unwrap();
    assert!(runs.next().is_none(), "more than one run");
    one
}

pub fn sync_all(consumer: &Consumer) -> BTreeSet<(u32, u64)> {
    consumer.sync(When::Running).unwrap();
    take_all(consumer)
}
