//! Growth with a guest's size, kind of memory and runs when it moves: what is sent, how a
//! destination begins, and the cost of a cancel. From one memory to another in this process, over a
//! pair of sockets.

use super::{block, on_a_processor, row, row_of, Growth, Turn, MIB};
use crate::kinds::{Area, HugePool, Made, HUGE};
use crate::machine::{Reserved, GIB};
use crate::memory;
use crate::report::Report;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::Memory;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::PAGE_SIZE;
use brant::vmm::{Event, EventKind, Vmm};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// A VMM whose guest is only memory. It reports each new state of its migration, with the
/// nanoseconds for which the migration's thread was on a processor until then.
struct Watched(Mutex<Sender<(String, u64)>>);

impl Vmm for Watched {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
    fn event(&self, event: &Event) {
        if event.kind == EventKind::State {
            // A receiver that is not interested has dropped its end.
            let told = (event.message.clone(), on_a_processor());
            let _ = self.0.lock().unwrap().send(told);
        }
    }
}

/// A migration from one memory to another.
pub struct Migration {
    outgoing: Outgoing,
    incoming: Incoming,
    /// The states that the destination enters.
    entered: Receiver<(String, u64)>,
}

impl Migration {
    pub fn new(here: Arc<Memory>, there: Arc<Memory>) -> Migration {
        Migration::with(here, there, Params::default())
    }

    fn with(here: Arc<Memory>, there: Arc<Memory>, params: Params) -> Migration {
        let tracker = Tracker::new(here, Clearing::default()).unwrap();
        let vmm = |sender| Arc::new(Watched(Mutex::new(sender))) as Arc<dyn Vmm>;
        let blockers = Blockers::new();
        let (unheard, _) = channel();
        let outgoing = Outgoing::new(tracker, blockers, vmm(unheard), params).unwrap();
        let (sender, entered) = channel();
        let incoming = Incoming::new(there, vmm(sender), Params::default()).unwrap();
        Migration {
            outgoing,
            incoming,
            entered,
        }
    }

    pub fn run(&self) {
        self.start();
        self.outgoing.wait(Some(LONG)).unwrap();
        self.incoming.wait(Some(LONG)).unwrap();
    }

    fn start(&self) {
        let (a, b) = UnixStream::pair().unwrap();
        self.incoming
            .start(AcceptFrom::Connected(b.into()))
            .unwrap();
        self.outgoing.start(ConnectTo::Connected(a.into())).unwrap();
    }

    /// Starts the destination, and returns when it has everything that it needs for the first page.
    /// Returns the nanoseconds that its thread needed for that.
    fn start_receiving(&self) -> u64 {
        self.start();
        loop {
            let (state, nanoseconds) = self.entered.recv_timeout(LONG).unwrap();
            if state == "receiving" {
                return nanoseconds;
            }
        }
    }

    fn cancel(&self) {
        self.outgoing.cancel().unwrap();
        assert!(self.outgoing.wait(Some(LONG)).is_err());
        assert!(self.incoming.wait(Some(LONG)).is_err());
    }
}

/// A guest whose memory is a part of an area.
fn part(area: &Area, offset: u64, length: u64) -> Arc<Memory> {
    let memory = Memory::new().unwrap();
    let part = offset as usize..(offset + length) as usize;
    memory.add_block(memory::block(area, "ram", part)).unwrap();
    Arc::new(memory)
}

fn fill(area: &Area, from: u64, length: u64, byte: u8) {
    assert!((from + length) as usize <= area.length);
    let at = area.at.wrapping_add(from as usize);
    // SAFETY: inside the mapping.
    unsafe { std::ptr::write_bytes(at, byte, length as usize) };
}

/// Memory for both sides.
fn both(made: Made, length: u64) -> [Area; 2] {
    let area = || Area::new(made, length as usize);
    [area(), area()].map(|area| area.unwrap_or_else(|| panic!("{length} bytes of {made:?}")))
}

fn sending(report: &mut Report) {
    for (kind, made) in [
        ("anonymous", Made::Anonymous),
        ("memfd", Made::Memfd),
        ("memfd-private", Made::MemfdPrivateUntold),
        ("file", Made::Disk),
        ("hugetlb", Made::HugeMemfd),
    ] {
        for what in ["data", "zeros", "holes"] {
            let name = format!("send_{what}/{kind}");
            if !report.wants(&format!("growth.{name}")) {
                continue;
            }
            let (small, nothing) = match (kind, what) {
                // Both sides together: 128 MiB.
                ("hugetlb", _) => (8 * MIB, HUGE as u64),
                // An almost free operation needs a large size, or all of its cost is fixed. A
                // file's length is limited by its file system.
                ("file", "holes") => (256 * MIB, PAGE_SIZE),
                (_, "holes") => (8 * GIB, PAGE_SIZE),
                _ => (32 * MIB, PAGE_SIZE),
            };
            let length = small * super::APART;
            let pages = 2 * length as usize / HUGE;
            let pool = made.is_huge().then(|| HugePool::new(pages));
            if matches!(pool, Some(None)) {
                report.skipped(&format!("growth.{name}"), "huge pages cannot be reserved");
                continue;
            }
            let [here, there] = both(made, length);
            if what != "holes" {
                let byte = [7, 0][usize::from(what == "zeros")];
                fill(&here, 0, length, byte);
            }
            // Both sizes send the same pages, in one run or in eight.
            let mut at = 0u64;
            let piece = |size| {
                let offset = at.next_multiple_of(size) % length;
                at = offset + size;
                Migration::new(part(&here, offset, size), part(&there, offset, size))
            };
            let growth = Growth::Beside(nothing);
            row(report, &name, small, growth, piece, |_, it| it.run());
        }
    }
}

/// The same number of pages, with holes between them: each page and each hole is a run.
fn sending_runs(report: &mut Report) {
    const PIECES: u64 = 2048;
    let length = 2 * super::APART * PIECES * PAGE_SIZE;
    for (kind, made) in [("anonymous", Made::Anonymous), ("memfd", Made::Memfd)] {
        let name = format!("send_data/{kind}/runs");
        if !report.wants(&format!("growth.{name}")) {
            continue;
        }
        let [here, there] = both(made, length);
        for i in 0..super::APART * PIECES {
            fill(&here, 2 * i * PAGE_SIZE, PAGE_SIZE, 7);
        }
        let mut at = 0u64;
        let piece = |pieces| {
            let size = 2 * pieces * PAGE_SIZE;
            let offset = at.next_multiple_of(size) % length;
            at = offset + size;
            Migration::new(part(&here, offset, size), part(&there, offset, size))
        };
        let growth = Growth::Beside(1);
        row(report, &name, PIECES, growth, piece, |_, it| it.run());
    }
}

/// Two memories whose first 16 MiB are touched, and a source that sends them slowly: it stays in
/// the middle of its first pass.
fn slow(length: u64) -> (Migration, [Reserved; 2]) {
    const TOUCHED: u64 = 16 * MIB;
    let sides = [Reserved::new(length), Reserved::new(length)];
    let made = sides.each_ref().map(|side| {
        let memory = Arc::new(Memory::new().unwrap());
        block(&memory, "ram", side.address(), length);
        memory
    });
    // SAFETY: inside a mapping of our own.
    unsafe { std::ptr::write_bytes(sides[0].address(), 7, TOUCHED as usize) };
    let [here, there] = made;
    let params = Params {
        max_bandwidth: Some(1 << 20),
        ..Params::default()
    };
    (Migration::with(here, there, params), sides)
}

fn beginning_and_end(report: &mut Report) {
    const SMALL: u64 = 512 * GIB;
    let growth = || Growth::Beside(GIB);
    let (name, begin) = ("destination_start", |_, made: &mut [(Migration, _)]| {
        let begun = Instant::now();
        let nanoseconds = made.iter().map(|it| it.0.start_receiving()).sum::<u64>();
        Turn {
            cpu: nanoseconds as f64 / 1e3,
            wall: begun.elapsed().as_secs_f64() * 1e6,
        }
    });
    row_of(report, name, SMALL, growth(), slow, begin);
    let begun = |length| {
        let made = slow(length);
        made.0.start_receiving();
        // Both sides are in the middle once pages have arrived.
        while made.0.incoming.stats().data_pages == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        made
    };
    let end = |_, it: &mut (Migration, _)| it.0.cancel();
    row(report, "cancel", SMALL, growth(), begun, end);
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    sending(report);
    sending_runs(report);
    beginning_and_end(report);
}
