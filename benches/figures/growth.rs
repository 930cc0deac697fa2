//! What costs more than it must where a guest is larger, or has more blocks or slots: each
//! operation at two sizes, eight times apart, over what linear growth (or none) allows. A ratio of
//! 1 grows as it should; 8 is one factor of the size too many.
//!
//! The sizes take turns. Memory of which nothing is read is reserved and never touched; what a
//! migration reads was touched before.

use crate::machine::{self, Machine, Reserved, Shape, GIB};
use crate::report::{alternate, Report, Runs};
use brant::dirty::consumer::Cursor;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{
    BackingFile, BlockDescription, BlockFlags, HostMemory, Memory, SlotDescription, NO_SLOT,
};
use brant::migrate::{Blockers, Incoming, Outgoing, Params, Source, Target};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::Vmm;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

const FAMILY: &str = "growth.";
/// How far apart the two sizes are.
const APART: u64 = 8;
const RUNS: usize = 5;
const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

/// One row: `run` does it at a size and returns microseconds. `linear`: the larger may take eight
/// times as long.
fn row(report: &mut Report, name: &str, small: u64, linear: bool, mut run: impl FnMut(u64) -> f64) {
    let name = format!("{FAMILY}{name}");
    if !report.wants(&name) {
        return;
    }
    let allowed = if linear { APART as f64 } else { 1.0 };
    let [large, small]: [Runs; 2] = alternate(RUNS, |contender| match contender {
        0 => run(small * APART),
        _ => run(small) * allowed,
    });
    report.compared(&name, "us", &large, "allowed growth", &small);
}

fn micros(f: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    f();
    begun.elapsed().as_secs_f64() * 1e6
}

fn block(memory: &Memory, name: &str, host: *mut u8, length: u64, file: Option<BackingFile>) {
    memory
        .add_block(BlockDescription {
            name: name.into(),
            // SAFETY: mapped as long as the memory is used, or never looked at.
            host: unsafe { HostMemory::new(host) },
            length: Bytes(length),
            page_size: Bytes(PAGE_SIZE),
            file,
            flags: BlockFlags::default(),
        })
        .unwrap();
}

fn slot(memory: &Memory, number: u32, name: &str, offset: u64, length: u64, guest: u64) {
    memory
        .add_slot(&SlotDescription {
            slot: number,
            flags: 0,
            block: name.into(),
            offset: Bytes(offset),
            length: Bytes(length),
            guest_address: GuestAddress(guest),
        })
        .unwrap();
}

struct Nothing;
impl Vmm for Nothing {
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

/// From one memory to another in this process, over a pair of sockets.
fn migrate(here: Arc<Memory>, there: Arc<Memory>) -> f64 {
    let tracker = Tracker::new(here, Clearing::default()).unwrap();
    let vmm = || Arc::new(Nothing) as Arc<dyn Vmm>;
    let outgoing = Outgoing::new(tracker, Blockers::new(), vmm(), Params::default()).unwrap();
    let incoming = Incoming::new(there, vmm(), Params::default()).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    micros(|| {
        incoming.start(Source::Connected(b.into())).unwrap();
        outgoing.start(Target::Connected(a.into())).unwrap();
        outgoing.wait(Some(LONG)).unwrap();
        incoming.wait(Some(LONG)).unwrap();
    })
}

/// Memory of a kind.
struct Ram(*mut u8, u64, Option<OwnedFd>);

impl Ram {
    fn new(kind: &str, length: u64) -> Ram {
        let file = match kind {
            "anonymous" => None,
            "file" => Some(OwnedFd::from(tempfile::tempfile().unwrap())),
            _ => {
                // SAFETY: a name, and a descriptor of our own.
                let fd = unsafe { libc::memfd_create(c"growth".as_ptr(), libc::MFD_CLOEXEC) };
                assert!(fd >= 0);
                // SAFETY: as above.
                Some(unsafe { OwnedFd::from_raw_fd(fd) })
            }
        };
        if let Some(fd) = &file {
            File::from(fd.try_clone().unwrap()).set_len(length).unwrap();
        }
        let shared = file.is_some() && kind != "memfd-private";
        let flags = match (&file, shared) {
            (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (_, true) => libc::MAP_SHARED,
            (_, false) => libc::MAP_PRIVATE,
        };
        let fd = file.as_ref().map_or(-1, |fd| fd.as_raw_fd());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length as usize, access, flags, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Ram(at.cast(), length, file.filter(|_| shared))
    }

    fn memory(&self) -> Arc<Memory> {
        let file = self.2.as_ref().map(|fd| BackingFile {
            fd: fd.try_clone().unwrap(),
            offset: 0,
        });
        let memory = Memory::new().unwrap();
        block(&memory, "ram", self.0, self.1, file);
        Arc::new(memory)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping; who used it is gone.
        unsafe { libc::munmap(self.0.cast(), self.1 as usize) };
    }
}

fn sending(report: &mut Report) {
    const SMALL: u64 = 32 * MIB;
    for kind in ["anonymous", "memfd", "memfd-private", "file"] {
        for what in ["data", "zeros", "holes"] {
            let name = format!("send_{what}/{kind}");
            if !report.wants(&format!("{FAMILY}{name}")) {
                continue;
            }
            let pairs = [SMALL, SMALL * APART].map(|length| {
                let pair = [Ram::new(kind, length), Ram::new(kind, length)];
                let fill = [7, 0][usize::from(what == "zeros")];
                if what != "holes" {
                    // SAFETY: our own mapping, for its whole length.
                    unsafe { std::ptr::write_bytes(pair[0].0, fill, length as usize) };
                }
                pair
            });
            row(report, &name, SMALL, true, |length| {
                let [here, there] = &pairs[usize::from(length > SMALL)];
                migrate(here.memory(), there.memory())
            });
        }
    }
    report.skipped("growth.send_data/hugetlb", "no huge pages are reserved");
}

/// An address that nothing is mapped at, for blocks that nobody looks at.
const NOWHERE: u64 = 0x2000_0000_0000;

fn blocks_and_slots(report: &mut Report) {
    let plugged = |count: u64| {
        let memory = Arc::new(Memory::new().unwrap());
        for i in 0..count {
            let host = (NOWHERE + i * MIB) as *mut u8;
            block(&memory, &format!("b{i}"), host, MIB, None);
        }
        memory
    };
    row(report, "add_blocks", 250, true, |n| {
        micros(|| drop(plugged(n)))
    });
    row(report, "remove_blocks", 250, true, |n| {
        let memory = plugged(n);
        micros(|| (0..n).for_each(|i| memory.remove_block(&format!("b{i}")).unwrap()))
    });
    row(report, "layout_exchange", 250, true, |n| {
        // A page each, which nobody touches.
        let sides = [Reserved::new(n * PAGE_SIZE), Reserved::new(n * PAGE_SIZE)];
        let made = sides.each_ref().map(|side| {
            let memory = Arc::new(Memory::new().unwrap());
            for i in 0..n {
                let host = side.address().wrapping_add((i * PAGE_SIZE) as usize);
                block(&memory, &format!("b{i}"), host, PAGE_SIZE, None);
            }
            memory
        });
        let [here, there] = made;
        migrate(here, there)
    });
    let slotted = |count: u64, tracked: bool| {
        let memory = Arc::new(Memory::new().unwrap());
        block(&memory, "ram", NOWHERE as *mut u8, count * MIB, None);
        let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
        let consumer = tracker.consumer();
        if tracked {
            consumer.start(StartWith::Nothing).unwrap();
        }
        // One long one in the other address space, above which all others lie.
        slot(&memory, 1 << 16, "ram", 0, count * MIB, 0);
        for i in 0..count {
            slot(&memory, i as u32, "ram", i * MIB, MIB, i * MIB);
        }
        (memory, consumer)
    };
    for (name, tracked) in [("add_slots", false), ("add_slots/tracked", true)] {
        row(report, name, 1000, true, |n| {
            micros(|| drop(slotted(n, tracked)))
        });
    }
    row(report, "remove_slots", 1000, true, |n| {
        let (memory, _consumer) = slotted(n, true);
        micros(|| {
            for i in 0..n {
                memory.remove_slot(i as u32, GuestAddress(i * MIB)).unwrap();
            }
        })
    });
    row(report, "mark_last_slot", 1000, false, |n| {
        let (_memory, consumer) = slotted(n, true);
        let last = GuestAddress((n - 1) * MIB);
        micros(|| (0..100_000).for_each(|_| consumer.mark_guest(last, 1)))
    });
}

/// A tracker of so many bytes that nobody looks at.
fn huge(length: u64) -> (Arc<Memory>, Arc<Tracker>) {
    let memory = Arc::new(Memory::new().unwrap());
    block(&memory, "ram", NOWHERE as *mut u8, length, None);
    slot(&memory, NO_SLOT, "ram", 0, length, 0);
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    (memory, tracker)
}

fn marks_and_balloon(report: &mut Report) {
    row(report, "mark_bitmap", 1 << 17, true, |pages| {
        let (_memory, tracker) = huge(pages * PAGE_SIZE);
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let words = vec![0x5555_5555_5555_5555; pages as usize / 64];
        let mark = || tracker.mark_words(GuestAddress(0), &words, pages);
        // Touches both sides' words.
        mark();
        micros(mark)
    });
    row(report, "balloon_told_again", 128 * GIB, false, |length| {
        let (memory, _tracker) = huge(length);
        memory.set_must_tell_host(true);
        memory.mark_discarded(GuestAddress(0), length);
        let page = |i: u64| memory.mark_discarded(GuestAddress(i * PAGE_SIZE), PAGE_SIZE);
        micros(|| (0..10_000).for_each(page))
    });
    row(report, "hint", 128 * GIB, false, |length| {
        let (_memory, tracker) = huge(length);
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let round = tracker.hint_begin().unwrap();
        micros(|| {
            for i in 0..10_000 {
                let at = GuestAddress(i * PAGE_SIZE);
                tracker.hint_free(round, at, PAGE_SIZE).unwrap();
            }
        })
    });
}

fn tracking(report: &mut Report) {
    let kvm = match machine::kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped("growth.sync", &reason),
    };
    const SMALL: u64 = 64 * GIB;
    let made = |length| Machine::new(&kvm, &Shape::plain(length), Vec::new());
    row(report, "start", SMALL, true, |length| {
        let machine = made(length);
        micros(|| machine.consumer.start(StartWith::Everything).unwrap())
    });
    row(report, "stop", SMALL, true, |length| {
        let machine = made(length);
        machine.start_dirty(0.001);
        micros(|| machine.consumer.stop().unwrap())
    });
    row(report, "sync/0.1%", SMALL, true, |length| {
        let machine = made(length);
        machine.start_dirty(0.001);
        machine.sync();
        machine.drain();
        micros(|| drop(machine.sync()))
    });
    row(report, "take/0.1%", SMALL, true, |length| {
        let machine = made(length);
        machine.start_dirty(0.001);
        machine.consumer.sync(When::Running).unwrap();
        let (mut cursor, mut runs) = (Cursor::default(), Vec::new());
        micros(|| loop {
            let take = machine
                .consumer
                .take(&mut cursor, 4096, Pages(1 << 20), &mut runs);
            take.unwrap();
            if runs.is_empty() {
                break;
            }
        })
    });
}

/// All figures of growth.
pub fn measure(report: &mut Report) {
    if report.wants_any(FAMILY) {
        blocks_and_slots(report);
        marks_and_balloon(report);
        tracking(report);
        sending(report);
    }
}
