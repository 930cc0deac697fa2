//! The cost of asking first whether pages can be read, before brant's own code reads them. It is
//! compared with a whole migration of the same pages, of which it is a part.
//!
//! There are two ways. `readable.share` is what a migration asks (`Contents::readable`: which pages
//! are holes, and one question a run if pages are present). `readable.each` lets the kernel read
//! each page (`access::readable`), which is for pages that are not present. The first way does more
//! than the check, because a migration has to know the holes in any case.
//!
//! Both are processor time of this process, which is source and destination, over a socket pair, so
//! other load on the machine counts for neither. Memory was touched before on both sides.

use crate::report::{alternate, Report};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::contents::Contents;
use brant::memory::{access, BackingFile, BlockDescription, BlockFlags, HostMemory, Memory};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::{Bytes, Pages};
use brant::vmm::Vmm;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const PAGES: usize = 128 << 10;
const RUNS: usize = 7;
const LONG: Duration = Duration::from_secs(120);

/// Seconds for which processors have worked for this process.
fn processor() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure, which is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A guest that does nothing.
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

/// One side's memory, every `step`th page of which is written. It stays mapped.
struct Ram {
    memory: Arc<Memory>,
    step: usize,
}

impl Ram {
    fn new(memfd: bool, huge: bool, step: usize) -> Ram {
        const HUGE: usize = 2 << 20;
        let length = PAGES * 4096;
        let file = memfd.then(|| {
            // SAFETY: makes a descriptor, which is ours.
            let file = unsafe {
                File::from_raw_fd(libc::memfd_create(c"readable".as_ptr(), libc::MFD_CLOEXEC))
            };
            file.set_len(length as u64).unwrap();
            file
        });
        let flags = match &file {
            Some(_) => libc::MAP_SHARED,
            None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        };
        // A mapping of a file begins at the file's beginning; the other kind is aligned below.
        let room = if memfd { length } else { length + HUGE };
        // SAFETY: a new mapping where the kernel likes, and advice about it.
        let host = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let fd = file.as_ref().map_or(-1, |file| file.as_raw_fd());
            let at = libc::mmap(std::ptr::null_mut(), room, access, flags, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            let at = at as usize;
            let at = if memfd { at } else { at.next_multiple_of(HUGE) } as *mut u8;
            let advice = if huge {
                libc::MADV_HUGEPAGE
            } else {
                libc::MADV_NOHUGEPAGE
            };
            libc::madvise(at.cast(), length, advice);
            at
        };
        for page in (0..PAGES).step_by(step) {
            // SAFETY: inside our own mapping.
            unsafe {
                host.add(page * 4096)
                    .cast::<u64>()
                    .write_volatile(page as u64 + 1)
            };
        }
        let memory = Memory::new().unwrap();
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the mapping stays for the life of the process.
                host: unsafe { HostMemory::new(host) },
                length: Bytes(length as u64),
                page_size: Bytes(4096),
                file: file.map(|file| BackingFile {
                    fd: file.into(),
                    offset: 0,
                }),
                flags: BlockFlags::default(),
            })
            .unwrap();
        Ram {
            memory: Arc::new(memory),
            step,
        }
    }

    /// Seconds to ask about every written page, in the runs that a migration reads: page by page,
    /// or run by run.
    fn ask(&self, each: bool) -> f64 {
        let mut contents = Contents::new();
        let map = self.memory.map();
        let block = &map.blocks()[0];
        let begun = processor();
        for stretch in (0..PAGES as u64).step_by(512) {
            if !each {
                contents.refresh();
                let range = Pages(stretch)..Pages(stretch + 512);
                contents.readable(block, range).unwrap();
                continue;
            }
            let run = if self.step == 1 { 512 } else { 1 };
            for page in (stretch..stretch + 512).step_by(self.step.max(run as usize)) {
                access::readable(block, Pages(page)..Pages(page + run)).unwrap();
            }
        }
        processor() - begun
    }

    /// Seconds to migrate it.
    fn send(&self, to: &Ram) -> f64 {
        // The guest of the turn before is back, and its copy has ended.
        self.memory.reclaim().unwrap();
        to.memory.give_up().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let vmm = || Arc::new(Idle) as Arc<dyn Vmm>;
        let memory = Arc::clone(&to.memory);
        let incoming = Incoming::new(memory, vmm(), Params::default()).unwrap();
        let tracker = Tracker::new(Arc::clone(&self.memory), Clearing::default()).unwrap();
        let outgoing = Outgoing::new(tracker, Blockers::new(), vmm(), Params::default()).unwrap();
        incoming.start(AcceptFrom::Connected(there.into())).unwrap();
        let begun = processor();
        outgoing.start(ConnectTo::Connected(here.into())).unwrap();
        outgoing.wait(Some(LONG)).unwrap();
        incoming.wait(Some(LONG)).unwrap();
        processor() - begun
    }
}

/// All figures of asking first.
pub fn measure(report: &mut Report) {
    for (kind, memfd, huge, step) in [
        ("anonymous", false, false, 1),
        ("huge", false, true, 1),
        ("memfd", true, false, 1),
        ("every 8th page", false, false, 8),
    ] {
        let (share, each) = (
            format!("readable.share/{kind}"),
            format!("readable.each/{kind}"),
        );
        if !report.wants(&share) && !report.wants(&each) {
            continue;
        }
        let ours = || Ram::new(memfd, huge, step);
        let (from, to) = (ours(), ours());
        let [run, page, sending] = alternate(RUNS, |contender| match contender {
            0 => from.ask(false),
            1 => from.ask(true),
            _ => from.send(&to),
        });
        report.compared(&share, "s", &run, "the migration", &sending);
        report.compared(&each, "s", &page, "the migration", &sending);
    }
}
