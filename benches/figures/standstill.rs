//! How long a guest stands still, in milliseconds: migrations over TCP on the loopback, from the
//! call of `pause` to the receipt of "running". Each row changes one condition, and is compared
//! with an idle guest of 1 MiB, whose downtime is only the round trips. The row of a writing guest
//! is compared with the downtime limit.
//!
//! Source and destination are one process. Memory that counts as touched was written before.

use crate::kinds::{Area, Made};
use crate::machine::GIB;
use crate::memory::block;
use crate::report::{alternate, Report, Runs};
use brant::channel::Endpoint;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::{BlockId, Memory, SlotDescription};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::{Bytes, PAGE_SIZE};
use brant::vmm::Vmm;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

const FAMILY: &str = "standstill.";
const RUNS: usize = 5;
/// Writes a second of the writing guest.
const WRITES: u64 = 20_000;
const LONG: Duration = Duration::from_secs(300);

/// The kind of the destination's memory.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Private anonymous memory that was never touched.
    Fresh,
    /// The same, all of it written.
    Touched,
    /// Shared memory without a descriptor, whose untouched pages cannot be told.
    Unknown,
}

impl Kind {
    fn make(self, length: u64) -> Area {
        let made = match self {
            Kind::Unknown => Made::SharedAnonymous,
            _ => Made::Anonymous,
        };
        let area = Area::new(made, length as usize);
        let area = area.unwrap_or_else(|| panic!("{length} bytes of address space"));
        if self == Kind::Touched {
            // SAFETY: the mapping, for its whole length.
            unsafe { std::ptr::write_bytes(area.at, 7, area.length) };
        }
        area
    }
}

/// Makes a guest of `blocks` blocks, with a slot for each. Also returns the first block.
fn guest(area: &Area, blocks: u64) -> (Arc<Memory>, BlockId) {
    let memory = Memory::new().unwrap();
    let length = area.length as u64 / blocks;
    let ids = (0..blocks).map(|i| {
        let part = (i * length) as usize..((i + 1) * length) as usize;
        let id = memory.add_block(block(area, &format!("ram{i}"), part));
        let slot = SlotDescription {
            slot: i as u32,
            ..SlotDescription::new(id.unwrap(), GuestAddress(i * length), Bytes(length))
        };
        memory.add_slot(&slot).unwrap();
        slot.block
    });
    let ids: Vec<BlockId> = ids.collect();
    (Arc::new(memory), ids[0])
}

/// Pauses a guest that may be writing, between two bursts.
#[derive(Default)]
struct Guest {
    paused: RwLock<bool>,
}

impl Vmm for Guest {
    fn pause(&self) -> brant::Result<()> {
        *self.paused.write().unwrap() = true;
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        *self.paused.write().unwrap() = false;
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
}

/// The difference to an idle guest whose memory was touched on neither side.
#[derive(Clone, Copy)]
struct Shape {
    length: u64,
    blocks: u64,
    source: Kind,
    destination: Kind,
    /// Every second page ballooned.
    ballooned: bool,
    writes: bool,
}

const IDLE: Shape = Shape {
    length: 1 << 20,
    blocks: 1,
    source: Kind::Fresh,
    destination: Kind::Fresh,
    ballooned: false,
    writes: false,
};

/// Writes until stopped: a page here and a page there, with each mark after its write.
fn write(guest: &Guest, tracker: &Tracker, block: BlockId, ram: (usize, u64), stop: &AtomicBool) {
    const BURST: u64 = 20;
    let begun = Instant::now();
    let (mut written, mut state) = (0, 0x1234_5678_9abc_def1u64);
    while !stop.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_micros() as u64 * WRITES / 1_000_000;
        let paused = guest.paused.read().unwrap();
        if !*paused {
            for _ in 0..BURST.min(due.saturating_sub(written)) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = state % (ram.1 / PAGE_SIZE) * PAGE_SIZE;
                let word = (ram.0 + at as usize) as *mut u64;
                // SAFETY: in the mapping; the migration reads it as a guest's memory is read,
                // while it changes.
                unsafe { word.write_volatile(state) };
                tracker.mark_block(block, Bytes(at), 8);
                written += 1;
            }
        }
        drop(paused);
        // While the guest stands still no write becomes due.
        if due.saturating_sub(written) > WRITES / 10 {
            written = due;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Migrates once, and returns the downtime in milliseconds.
fn downtime(shape: &Shape) -> f64 {
    let from = shape.source.make(shape.length);
    let to = shape.destination.make(shape.length);
    let (here, block) = guest(&from, shape.blocks);
    let (there, _) = guest(&to, shape.blocks);
    if shape.ballooned {
        here.set_must_tell_host(true);
        there.set_must_tell_host(true);
        for page in (0..shape.length / PAGE_SIZE).step_by(2) {
            here.mark_ballooned(GuestAddress(page * PAGE_SIZE), PAGE_SIZE);
        }
    }
    let guest = Arc::new(Guest::default());
    let tracker = Tracker::new(here, Clearing::default()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = shape.writes.then(|| {
        let (guest, tracker, stop) = (guest.clone(), Arc::clone(&tracker), Arc::clone(&stop));
        let ram = (from.at as usize, shape.length);
        std::thread::spawn(move || write(&guest, &tracker, block, ram, &stop))
    });
    let incoming = Incoming::new(there, Arc::new(Guest::default()), Params::default()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), guest, Params::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    outgoing.start(ConnectTo::Endpoint(endpoint)).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let peer = AcceptFrom::Connected(OwnedFd::from(peer));
    incoming.start(peer).unwrap();
    outgoing.wait(Some(LONG)).unwrap();
    incoming.wait(Some(LONG)).unwrap();
    stop.store(true, Ordering::Relaxed);
    if let Some(writer) = writer {
        writer.join().unwrap();
    }
    outgoing.stats().downtime.unwrap_or_default().as_secs_f64() * 1e3
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let touched = Shape {
        length: 2 * GIB,
        source: Kind::Touched,
        destination: Kind::Touched,
        ..IDLE
    };
    let mut rows = vec![("idle_touched/2GiB".to_owned(), touched)];
    for gib in [1, 8] {
        let sparse = Shape {
            length: gib * GIB,
            ..IDLE
        };
        let unknown = Shape {
            destination: Kind::Unknown,
            ..sparse
        };
        let touched = Shape {
            destination: Kind::Touched,
            ..sparse
        };
        let ballooned = Shape {
            ballooned: true,
            ..touched
        };
        rows.push((format!("idle_sparse/{gib}GiB/unknown"), unknown));
        rows.push((format!("idle_sparse/{gib}GiB/touched"), touched));
        rows.push((format!("idle_sparse/{gib}GiB/ballooned"), ballooned));
    }
    let huge = Shape {
        length: 1024 * GIB,
        ..IDLE
    };
    rows.push(("idle_sparse/1TiB/fresh".to_owned(), huge));
    let blocks = Shape {
        length: GIB / 4,
        blocks: 4096,
        ..IDLE
    };
    rows.push(("idle_blocks/4096".to_owned(), blocks));
    for (name, shape) in rows {
        let name = format!("{FAMILY}{name}");
        if !report.wants(&name) {
            continue;
        }
        // Touching 8 GiB again for each run takes long.
        let runs = match shape.destination {
            Kind::Fresh => RUNS,
            _ => (RUNS * GIB as usize * 2 / shape.length as usize).clamp(2, RUNS),
        };
        let [row, small]: [Runs; 2] = alternate(runs, |contender| {
            downtime(if contender == 0 { &shape } else { &IDLE })
        });
        report.compared(&name, "ms", &row, "1 MiB, idle", &small);
    }
    let name = format!("{FAMILY}writes/{WRITES}");
    if report.wants(&name) {
        let shape = Shape {
            length: GIB,
            source: Kind::Touched,
            destination: Kind::Touched,
            writes: true,
            ..IDLE
        };
        let [row]: [Runs; 1] = alternate(RUNS, |_| downtime(&shape));
        let limit = Params::default().downtime_limit.as_secs_f64() * 1e3;
        report.compared(&name, "ms", &row, "downtime limit", &Runs::of(limit));
    }
}
