//! Served memory: real userfaultfds, and threads that wait for pages.

mod ends;
mod rules;
mod storm;

use super::{Absent, Announce, How, Served, Supplier};
use crate::bits::Stretches;
use crate::memory::testing::kinds::{Area, Made, PAGE};
use crate::memory::{BackingFile, Block, BlockDescription, HostMemory, Memory};
use crate::units::{Bytes, Pages};
use std::ops::Range;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// A supplier that passes on what it is asked for.
pub(super) struct Asked {
    wanted: Mutex<Sender<Range<u64>>>,
    all_here: Mutex<Sender<()>>,
}

impl Supplier for Asked {
    fn wanted(&self, _: &Arc<Block>, pages: Range<Pages>) {
        let _ = self.wanted.lock().unwrap().send(pages.start.0..pages.end.0);
    }
    fn all_here(&self) {
        self.all_here.lock().unwrap().send(()).unwrap();
    }
}

/// A guest of one block.
pub(super) struct Guest {
    pub(super) served: Option<Arc<Served>>,
    pub(super) block: Arc<Block>,
    pub(super) wanted: Receiver<Range<u64>>,
    pub(super) all_here: Receiver<()>,
    pub(super) memory: Arc<Memory>,
    pub(super) area: Arc<Area>,
}

pub(super) fn quiet() -> Announce {
    Box::new(|_| Ok(()))
}

pub(super) fn describe(area: &Area) -> BlockDescription {
    let file = area.file.as_ref().filter(|_| area.made.is_told());
    // SAFETY: mapped until the test ends.
    let host = unsafe { HostMemory::new(area.at) };
    BlockDescription {
        page_size: Bytes(area.made.page_size() as u64),
        file: file.map(|file| BackingFile {
            fd: file.try_clone().unwrap().into(),
            offset: 0,
        }),
        ..BlockDescription::new("ram", host, Bytes(area.length as u64))
    }
}

pub(super) fn marks(pages: usize, absent: &[Range<usize>]) -> Stretches {
    let bits = Stretches::new(pages).unwrap();
    absent
        .iter()
        .for_each(|run| bits.set_range(run.start, run.len()));
    bits
}

impl Guest {
    /// `absent` pages of memory of this kind; `before` may write to it first. `None` where the
    /// machine has no such memory.
    pub(super) fn new(
        made: Made,
        pages: usize,
        absent: &[Range<usize>],
        how: How,
        before: impl FnOnce(&Area),
    ) -> Option<Guest> {
        let area = Arc::new(Area::new(made, pages * PAGE)?);
        before(&area);
        let memory = Arc::new(Memory::new().unwrap());
        let id = memory.add_block(describe(&area)).unwrap();
        let block = Arc::clone(memory.map().block(id).unwrap());
        let (wanted, wants) = channel();
        let (all_here, here) = channel();
        let supplier = Arc::new(Asked {
            wanted: Mutex::new(wanted),
            all_here: Mutex::new(all_here),
        });
        let checked = Served::check(&memory).unwrap();
        let absent = vec![Absent {
            block: Arc::clone(&block),
            pages: marks(pages, absent),
        }];
        let served = Served::begin(&memory, &checked, absent, how, supplier, quiet()).unwrap();
        Some(Guest {
            served: Some(served),
            block,
            wanted: wants,
            all_here: here,
            memory,
            area,
        })
    }

    pub(super) fn served(&self) -> &Arc<Served> {
        self.served.as_ref().unwrap()
    }

    /// Puts pages of `value` from `first` on.
    pub(super) fn place(&self, first: usize, count: usize, value: u8) -> u64 {
        let contents = vec![value; count * PAGE];
        let placed = self
            .served()
            .place(&self.block, Pages(first as u64), &contents);
        placed.unwrap().0
    }

    pub(super) fn zeros(&self, pages: Range<usize>) -> u64 {
        let pages = Pages(pages.start as u64)..Pages(pages.end as u64);
        self.served().place_zeros(&self.block, pages).unwrap().0
    }

    /// Reads a page on a thread of its own.
    pub(super) fn reader(&self, page: usize) -> std::thread::JoinHandle<u8> {
        let area = Arc::clone(&self.area);
        std::thread::spawn(move || area.read(page))
    }
}

/// The kinds that are served in different ways.
pub(super) const KINDS: [Made; 4] = [
    Made::Anonymous,
    Made::Memfd,
    Made::MemfdUntold,
    Made::SharedAnonymous,
];
