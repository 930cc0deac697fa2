//! What costs more than it must where a guest is larger, or has more blocks or slots: each
//! operation at two sizes, eight times apart, over what linear growth (or none) allows. A ratio of
//! 1 grows as it should; 8 is one factor of the size too many.
//!
//! The sizes take turns. What may cost eight times as much at the larger size is done eight times at
//! the smaller one, to eight guests that are all there before the clock starts. So both turns are
//! equally long and go through as much memory, and the ratio is that of brant's work. Eight times
//! the time of one small run would not do. On a machine with other work the scheduler lets a run of
//! 2 ms end and interrupts one of 16 ms (2,000 blocks against 250 with three busy loops on two
//! processors: a ratio of 2 to 4, and below 1.3 without them). And the dirty bitmap of a small guest
//! stays in a cache of the processor that a bitmap eight times as large does not fit in.
//!
//! The map finds blocks and slots in trees: a change costs the logarithm of their number, which is
//! 1.3 times as much for 8,000 as for 1,000.
//!
//! Memory of which nothing is read is reserved and never touched; what a migration reads was
//! touched before.

use crate::machine::{self, Machine, Reserved, Shape, GIB};
use crate::report::{alternate, Report, Runs};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::memory::{
    BackingFile, BlockDescription, BlockFlags, HostMemory, Memory, SlotDescription, NO_SLOT,
};
use brant::migrate::{Blockers, Incoming, Outgoing, Params, Source, Target};
use brant::units::{Bytes, PAGE_SIZE};
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

/// One row: `work` is done at a size, to what `prepare` has made for that size. `linear`: the larger
/// may take eight times as long.
fn row<T>(
    report: &mut Report,
    name: &str,
    small: u64,
    linear: bool,
    mut prepare: impl FnMut(u64) -> T,
    mut work: impl FnMut(u64, &mut T),
) {
    let name = format!("{FAMILY}{name}");
    if !report.wants(&name) {
        return;
    }
    let often = if linear { APART } else { 1 };
    let [large, small]: [Runs; 2] = alternate(RUNS, |contender| {
        let (size, times) = [(small * APART, 1), (small, often)][contender];
        let mut made: Vec<T> = (0..times).map(|_| prepare(size)).collect();
        micros(|| made.iter_mut().for_each(|it| work(size, it)))
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

/// A migration from one memory to another in this process, over a pair of sockets.
struct Migration(Outgoing, Incoming);

impl Migration {
    fn new(here: Arc<Memory>, there: Arc<Memory>) -> Migration {
        let tracker = Tracker::new(here, Clearing::default()).unwrap();
        let vmm = || Arc::new(Nothing) as Arc<dyn Vmm>;
        let outgoing = Outgoing::new(tracker, Blockers::new(), vmm(), Params::default()).unwrap();
        let incoming = Incoming::new(there, vmm(), Params::default()).unwrap();
        Migration(outgoing, incoming)
    }

    fn run(&self) {
        let (a, b) = UnixStream::pair().unwrap();
        self.1.start(Source::Connected(b.into())).unwrap();
        self.0.start(Target::Connected(a.into())).unwrap();
        self.0.wait(Some(LONG)).unwrap();
        self.1.wait(Some(LONG)).unwrap();
    }
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

    /// A guest whose memory is a piece of this.
    fn memory(&self, offset: u64, length: u64) -> Arc<Memory> {
        let file = self.2.as_ref().map(|fd| BackingFile {
            fd: fd.try_clone().unwrap(),
            offset,
        });
        let memory = Memory::new().unwrap();
        let host = self.0.wrapping_add(offset as usize);
        block(&memory, "ram", host, length, file);
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
            let length = SMALL * APART;
            let [here, there] = [Ram::new(kind, length), Ram::new(kind, length)];
            let fill = [7, 0][usize::from(what == "zeros")];
            if what != "holes" {
                // SAFETY: our own mapping, for its whole length.
                unsafe { std::ptr::write_bytes(here.0, fill, length as usize) };
            }
            // Both sizes send the same pages: in one piece, or in eight.
            let mut at = 0;
            let piece = |size| {
                let offset = at % length;
                at += size;
                Migration::new(here.memory(offset, size), there.memory(offset, size))
            };
            row(report, &name, SMALL, true, piece, |_, it| it.run());
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
    let add = |n, _: &mut ()| drop(plugged(n));
    row(report, "add_blocks", 250, true, |_| (), add);
    row(report, "remove_blocks", 250, true, plugged, |n, memory| {
        (0..n).for_each(|i| memory.remove_block(&format!("b{i}")).unwrap());
    });
    let many = |n| {
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
        (Migration::new(here, there), sides)
    };
    let exchange = |_, it: &mut (Migration, _)| it.0.run();
    row(report, "layout_exchange", 250, true, many, exchange);
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
        let add = |n, _: &mut ()| drop(slotted(n, tracked));
        row(report, name, 1000, true, |_| (), add);
    }
    let tracked = |n| slotted(n, true);
    row(report, "remove_slots", 1000, true, tracked, |n, it| {
        for i in 0..n {
            it.0.remove_slot(i as u32, GuestAddress(i * MIB)).unwrap();
        }
    });
    row(report, "mark_last_slot", 1000, false, tracked, |n, it| {
        let last = GuestAddress((n - 1) * MIB);
        (0..100_000).for_each(|_| it.1.mark_guest(last, 1));
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
    let words = |pages: u64| vec![0x5555_5555_5555_5555; pages as usize / 64];
    let started = |length| {
        let (_memory, tracker) = huge(length);
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        (tracker, consumer)
    };
    let marked = |pages| {
        let (made, words) = (started(pages * PAGE_SIZE), words(pages));
        // Touches both sides' words.
        made.0.mark_words(GuestAddress(0), &words, pages);
        (made, words)
    };
    row(report, "mark_bitmap", 1 << 17, true, marked, |pages, it| {
        it.0 .0.mark_words(GuestAddress(0), &it.1, pages);
    });
    let ballooned = |length| {
        let (memory, tracker) = huge(length);
        memory.set_must_tell_host(true);
        memory.mark_discarded(GuestAddress(0), length);
        (memory, tracker)
    };
    let again = |_, it: &mut (Arc<Memory>, _)| {
        let page = |i: u64| it.0.mark_discarded(GuestAddress(i * PAGE_SIZE), PAGE_SIZE);
        (0..10_000).for_each(page);
    };
    let length = 128 * GIB;
    row(
        report,
        "balloon_told_again",
        length,
        false,
        ballooned,
        again,
    );
    let asked = |length| {
        let (tracker, consumer) = started(length);
        let round = tracker.hint_begin().unwrap();
        (tracker, consumer, round)
    };
    row(report, "hint", length, false, asked, |_, it| {
        for i in 0..10_000 {
            let at = GuestAddress(i * PAGE_SIZE);
            it.0.hint_free(it.2, at, PAGE_SIZE).unwrap();
        }
    });
}

fn tracking(report: &mut Report) {
    let kvm = match machine::kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped("growth.sync", &reason),
    };
    const SMALL: u64 = 64 * GIB;
    let made = |length| Machine::new(&kvm, &Shape::plain(length), Vec::new());
    let started = |length| {
        let machine = made(length);
        machine.start_dirty(0.001);
        machine
    };
    row(report, "start", SMALL, true, made, |_, it| {
        it.consumer.start(StartWith::Everything).unwrap();
    });
    row(report, "stop", SMALL, true, started, |_, it| {
        it.consumer.stop().unwrap();
    });
    let drained = |length| {
        let machine = started(length);
        machine.sync();
        machine.drain();
        machine
    };
    row(report, "sync/0.1%", SMALL, true, drained, |_, it| {
        it.sync();
    });
    let synced = |length| {
        let machine = started(length);
        machine.sync();
        machine
    };
    row(report, "take/0.1%", SMALL, true, synced, |_, it| it.drain());
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
