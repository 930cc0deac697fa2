//! A guest's memory in one block, of any kind that a guest can have, and a guest that does nothing: what
//! most figures move, save or restore.

use crate::kinds::{Area, Made};
use brant::memory::{BackingFile, BlockDescription, HostMemory, Memory, SlotDescription};
use brant::units::Bytes;
use brant::vm_memory::GuestAddress;
use brant::vmm::Vmm;
use std::ops::Range;
use std::sync::Arc;

pub const PAGE: usize = 4096;

/// A VMM whose guest does nothing.
pub struct Idle;

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

/// A block that is a part of a mapping. Whoever drops the mapping has ended all use of the block before.
pub fn block(area: &Area, name: &str, part: Range<usize>) -> BlockDescription {
    assert!(part.end <= area.length);
    // SAFETY: inside of the mapping, which outlives all use of the block.
    let host = unsafe { HostMemory::new(area.at.wrapping_add(part.start)) };
    let file = area.file.as_ref().filter(|_| area.made.is_told());
    BlockDescription {
        page_size: Bytes(area.made.page_size() as u64),
        file: file.map(|file| BackingFile {
            fd: file.try_clone().unwrap().into(),
            offset: part.start as u64,
        }),
        ..BlockDescription::new(name, host, Bytes(part.len() as u64))
    }
}

fn guest(area: &Area) -> Arc<Memory> {
    let memory = Arc::new(Memory::new().unwrap());
    let id = memory.add_block(block(area, "ram", 0..area.length));
    let length = Bytes(area.length as u64);
    let slot = SlotDescription::new(id.unwrap(), GuestAddress(0), length);
    memory.add_slot(&slot).unwrap();
    memory
}

/// Memory of one block and one slot. It was not touched when it is made.
pub struct Ram {
    pub memory: Arc<Memory>,
    area: Area,
}

impl Ram {
    /// Private memory in pages of 4 KiB.
    pub fn new(length: usize) -> Ram {
        Ram::of(Made::Anonymous, length)
    }

    /// Of a kind that this machine has.
    pub fn of(made: Made, length: usize) -> Ram {
        let area = Area::new(made, length).unwrap_or_else(|| panic!("{length} bytes of {made:?}"));
        Ram {
            memory: guest(&area),
            area,
        }
    }

    /// A new guest in the same memory. The one before has ended.
    pub fn guest(&self) -> Arc<Memory> {
        guest(&self.area)
    }

    pub fn host(&self) -> *mut u8 {
        self.area.at
    }

    pub fn length(&self) -> usize {
        self.area.length
    }

    pub fn pages(&self) -> usize {
        self.area.pages()
    }

    /// The first word of a page.
    fn word(&self, page: usize) -> *mut u64 {
        self.area.page(page).cast()
    }

    /// Reads the first word of a page.
    pub fn read(&self, page: usize) -> u64 {
        // SAFETY: inside of the mapping, aligned.
        unsafe { self.word(page).read_volatile() }
    }

    /// Writes the first word of a page.
    pub fn write(&self, page: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(page).write_volatile(value) };
    }

    /// Writes all words, in order.
    pub fn write_all(&self, mut contents: impl FnMut(usize) -> u64) {
        for at in 0..self.area.length / 8 {
            // SAFETY: inside of the mapping, aligned.
            unsafe { self.area.at.cast::<u64>().add(at).write(contents(at)) };
        }
    }

    /// Whether all words have what [`Ram::write_all`] has written.
    pub fn holds(&self, contents: impl Fn(usize) -> u64) -> bool {
        // SAFETY: inside of the mapping, aligned.
        let word = |at| unsafe { self.area.at.cast::<u64>().add(at).read() };
        (0..self.area.length / 8).all(|at| word(at) == contents(at))
    }

    /// Writes to a page what a compressor and the zero test make nothing of.
    pub fn fill(&self, page: usize) {
        let mut random = Random(page as u64 + 1);
        for word in 0..PAGE / 8 {
            // SAFETY: inside of the page.
            unsafe { self.word(page).add(word).write(random.next()) };
        }
    }
}

/// The generator of George Marsaglia's xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// All numbers below `count`, in any order.
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            all.swap(at, self.next() as usize % (at + 1));
        }
        all
    }
}
