//! The cost of each part of a sync, for guests of 256 GiB to 3 TiB: KVM's GET, merging its bitmaps,
//! the VMM's marks, and the logs of 24 vhost devices. Also: slots and addresses that are no
//! multiples of 64 pages cost the same as aligned ones.
//!
//! Devices write a tenth as much as vCPUs, and the VMM marks runs of 32 pages. Each device has a
//! log of its own here, as vhost-user back ends have when they do not share one; [`crate::vhost`]
//! has the log that they share.

use crate::back_ends::{Writers, DEVICES};
use crate::machine::{has_rings, kvm, scattered, Clear, Machine, Shape, GIB};
use crate::report::{alternate, Report, Runs};
use brant::dirty::tracker::{Clearing, LogReport, StartWith, SyncReport};
use brant::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use brant::memory::{BlockId, Map};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use kvm_ioctls::Kvm;
use std::time::Duration;
use vm_memory::GuestAddress;

const RUNS: usize = 5;
const SIZES: [(&str, u64); 3] = [
    ("256GiB", 256 * GIB),
    ("1TiB", 1024 * GIB),
    ("3TiB", 3072 * GIB),
];
const DENSITIES: [(&str, f64); 4] = [("0%", 0.0), ("0.1%", 0.001), ("1%", 0.01), ("10%", 0.1)];
/// Bytes for each guest page in all: KVM's own maps of a slot (10), its two bitmaps, brant's, and
/// those of the devices.
const BYTES_PER_PAGE: u64 = 10 + (2 + 4 + 2 * DEVICES) / 8 + 1;
/// The vCPUs of a guest of 256 GiB with rings.
const VCPUS: u64 = 64;
/// The memory that is left for other processes.
const SPARE: u64 = 2 * GIB;
/// How long a sync of a 256 GiB guest took on another machine, after misaligned blocks no longer
/// made a clear for every second page (73 ms before). It gives an order of magnitude.
const ELSEWHERE_MS: f64 = 12.0;

/// A log by guest address, as far off from the slots as the addresses say. Its bits stay, so each
/// harvest finds them again.
struct ByAddress {
    words: Vec<u64>,
}

impl ByAddress {
    fn new(pages: u64, density: f64) -> ByAddress {
        let mut words = vec![0u64; pages.div_ceil(64) as usize];
        scattered(&mut words, density, 1, |word, bit| *word |= bit);
        ByAddress { words }
    }
}

impl DirtyLog for ByAddress {
    fn kind(&self) -> LogKind {
        LogKind::Iommufd
    }
    fn start(&mut self, _: &Map) -> brant::Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> brant::Result<()> {
        Ok(())
    }
    fn harvest(&mut self, _: &Map, _: When, sink: &mut dyn Sink) -> brant::Result<Harvested> {
        let pages = Pages(self.words.len() as u64 * 64);
        sink.bitmap(Origin::Guest(GuestAddress(0)), &self.words, pages);
        Ok(Harvested::Complete)
    }
    fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> brant::Result<()> {
        Ok(())
    }
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    let families = ["sync.parts/", "sync.misaligned_ratio", "sync.clear_ioctls"];
    if !families.iter().any(|family| report.wants_any(family)) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => {
            for family in families {
                report.skipped(family, &reason);
            }
            return;
        }
    };
    if report.wants("sync.clear_ioctls") {
        clear_ioctls(report, &kvm);
    }
    if report.wants_any("sync.misaligned_ratio") {
        misaligned(report, &kvm);
    }
    for (size, length) in SIZES {
        for (density_name, density) in DENSITIES {
            let name = format!("sync.parts/{size}-{density_name}");
            if report.wants_any(&name) {
                parts(report, &kvm, &name, length, density);
            }
        }
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The clear calls for a block of 4 MiB whose pages are all dirty, compared with those for an
/// aligned one.
fn clear_ioctls(report: &mut Report, kvm: &Kvm) {
    let [odd, even]: [Runs; 2] = alternate(1, |contender| {
        let mut shape = Shape::plain(4 << 20);
        shape.odd = contender == 0;
        let machine = Machine::new(kvm, &shape, Vec::new());
        machine.consumer.start(StartWith::Everything).unwrap();
        machine.sync();
        machine.clears(Clear::Pass);
        machine.drain();
        let clears = machine.control.lock().unwrap().clears;
        machine.consumer.stop().unwrap();
        clears as f64
    });
    report.compared("sync.clear_ioctls", "calls", &odd, "aligned", &even);
}

/// 256 GiB in several slots, cut one page past multiples of 64, with a log of guest addresses that
/// is one page off from them; compared with slots cut at multiples of 64.
fn misaligned(report: &mut Report, kvm: &Kvm) {
    const DENSITY: f64 = 0.1;
    let length = SIZES[0].1;
    let machines = [true, false].map(|odd| {
        let shape = Shape {
            slots: 7,
            odd,
            ..Shape::plain(length)
        };
        let by_address = ByAddress::new(length / PAGE_SIZE + 2, DENSITY);
        let machine = Machine::new(kvm, &shape, vec![Box::new(by_address)]);
        machine.start_dirty(DENSITY);
        machine
    });
    let mut whole: [Runs; 2] = Default::default();
    let outside: [Runs; 2] = alternate(2 * RUNS, |contender| {
        let (synced, get) = machines[contender].sync();
        machines[contender].drain();
        whole[contender].push(ms(synced.time));
        ms(synced.time - get)
    });
    let [ours, theirs] = &outside;
    report.compared("sync.misaligned_ratio", "ms", ours, "aligned", theirs);
    let [ours, theirs] = &whole;
    let name = "sync.misaligned_ratio/with-kernel";
    report.compared(name, "ms", ours, "aligned", theirs);
    for machine in &machines {
        machine.consumer.stop().unwrap();
    }
}

/// The memory that the machine has free.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn parts(report: &mut Report, kvm: &Kvm, name: &str, length: u64, density: f64) {
    let pages = length / PAGE_SIZE;
    let needed = pages * BYTES_PER_PAGE + SPARE;
    if available() < needed {
        let reason = format!("needs {} GiB of free memory", needed.div_ceil(GIB));
        return report.skipped(name, &reason);
    }
    let writers = Writers::apart();
    let machine = Machine::new(kvm, &Shape::plain(length), writers.logs());
    machine.start_dirty(density);
    let names = ["kvm", "merge", "reported", "vhost", "whole"];
    let mut figures: [Runs; 5] = Default::default();
    for turn in 0..=RUNS {
        let (synced, get) = sync_written(&machine, &writers, length, density);
        machine.drain();
        if turn > 0 {
            for (runs, time) in figures.iter_mut().zip(split(&synced, get)) {
                runs.push(time);
            }
        }
    }
    machine.consumer.stop().unwrap();
    let whole = &figures[4];
    for (part, runs) in names.iter().zip(&figures) {
        let name = format!("{name}/{part}");
        if *part != "whole" {
            report.compared(&name, "ms", runs, "the whole sync", whole);
        } else if length == SIZES[0].1 {
            report.compared(&name, "ms", runs, "elsewhere", &Runs::of(ELSEWHERE_MS));
        } else {
            report.compared(&name, "ms", runs, "itself", whole);
        }
    }
}

/// A sync after the devices have written a tenth of `density`, and the VMM has marked as much; and
/// its time in the kernel's GET.
pub fn sync_written(
    machine: &Machine,
    writers: &Writers,
    length: u64,
    density: f64,
) -> (SyncReport, Duration) {
    let block: BlockId = machine.consumer.memory().map().blocks()[0].id();
    if density > 0.0 {
        // One run of 32 pages in each step.
        let step = (32.0 * 10.0 / density) as usize;
        for page in (0..length / PAGE_SIZE).step_by(step) {
            let offset = Bytes(page * PAGE_SIZE);
            machine.consumer.mark_block(block, offset, 32 * PAGE_SIZE);
        }
        writers.write(density / 10.0);
    }
    machine.sync()
}

/// A sync's milliseconds: in the kernel's GET, in the merging of what it gave, for the VMM's marks,
/// for vhost's logs, and in all.
pub fn split(synced: &SyncReport, get: Duration) -> [f64; 5] {
    let of = |kind| {
        let those = synced.logs.iter().filter(|log| log.kind == kind);
        those.map(|log: &LogReport| log.time).sum::<Duration>()
    };
    [
        ms(get),
        ms(of(LogKind::KvmLog) - get),
        ms(of(LogKind::Reported)),
        ms(of(LogKind::Vhost)),
        ms(synced.time),
    ]
}

/// brant's memory for each page of the guest, including the dirty rings. It is compared with three
/// bitmaps: one of a slot, a global one and a migration's.
pub fn layers(report: &mut Report) {
    use brant::dirty::kvm::KvmMode;
    const FAMILY: &str = "layers.bytes_per_page/";
    if !report.wants_any(FAMILY) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped(FAMILY, &reason),
    };
    let length = SIZES[0].1;
    // A harvest clears a ring.
    for (name, mode, clearing, ring_vcpus) in [
        ("get-and-clear", KvmMode::GetAndClear, Clearing::AtSync, 0),
        ("manual", KvmMode::InitiallySet, Clearing::default(), 0),
        ("manual-at-sync", KvmMode::InitiallySet, Clearing::AtSync, 0),
        ("ring", KvmMode::GetAndClear, Clearing::AtSync, VCPUS),
    ] {
        let name = format!("{FAMILY}{name}");
        if ring_vcpus > 0 && !has_rings(&kvm) {
            report.skipped(&name, "this KVM has no dirty rings");
            continue;
        }
        let shape = Shape {
            mode,
            clearing,
            ring_vcpus,
            ..Shape::plain(length)
        };
        let machine = Machine::new(&kvm, &shape, Vec::new());
        machine.consumer.start(StartWith::Nothing).unwrap();
        let held = machine.consumer.heap_bytes() + machine.ring_bytes;
        let held = held as f64 / (length / PAGE_SIZE) as f64;
        machine.consumer.stop().unwrap();
        let three = Runs::of(3.0 / 8.0);
        report.compared(&name, "bytes", &Runs::of(held), "three bitmaps", &three);
    }
}
