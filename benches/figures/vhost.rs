//! The log that vhost back ends share, beside a log for each of them: a sync of 256 GiB of which a
//! tenth is dirty. vCPUs wrote that much; 24 back ends wrote a tenth of it between them, and the VMM
//! marked another tenth.
//!
//! A sync reads a vhost log and leaves its bits set. They are cleared when pages are taken, and the
//! time for that is reported too.

use crate::machine::{kvm, scattered, Machine, Shape, GIB};
use crate::parts::{ms, split, sync_written};
use crate::report::{Report, Runs};
use brant::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
use brant::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Rearmed, Sink, When};
use brant::memory::{BlockId, Map};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const DEVICES: u64 = 24;
const RUNS: usize = 9;
const LENGTH: u64 = 256 * GIB;
const DENSITY: f64 = 0.1;
const CASE: &str = "256GiB-10%";

/// A vhost device, with the place of its log.
#[derive(Default)]
struct Device {
    log: Mutex<Option<(usize, usize)>>,
}

impl Device {
    /// Logs the device's writes since the last sync.
    fn write(&self, number: u64, density: f64) {
        if let Some((address, length)) = *self.log.lock().unwrap() {
            let words = std::ptr::slice_from_raw_parts_mut(address as *mut u64, length / 8);
            // SAFETY: the mapping stays while the log is on, and no harvest runs meanwhile.
            scattered(unsafe { &mut *words }, density, number, |word, bit| {
                *word |= bit
            });
        }
    }
}

/// Devices that share a log.
struct Sharing(Vec<Arc<Device>>);

impl VhostBackEnds for Sharing {
    fn log_on(&self, memory: &LogMemory) -> brant::Result<()> {
        let at = (memory.address() as usize, memory.length() as usize);
        for device in &self.0 {
            *device.log.lock().unwrap() = Some(at);
        }
        Ok(())
    }
    fn log_off(&self) -> brant::Result<()> {
        for device in &self.0 {
            *device.log.lock().unwrap() = None;
        }
        Ok(())
    }
}

/// Devices that write, and how long the clearing of their bits has taken.
pub struct Writers {
    devices: Vec<Arc<Device>>,
    /// How many devices share a log.
    sharing: usize,
    clearing: Arc<Mutex<Duration>>,
}

impl Writers {
    /// Each device has a log of its own.
    pub fn apart() -> Writers {
        Writers::new(1)
    }

    /// All devices share one log.
    fn together() -> Writers {
        Writers::new(DEVICES as usize)
    }

    fn new(sharing: usize) -> Writers {
        Writers {
            devices: (0..DEVICES).map(|_| Arc::default()).collect(),
            sharing,
            clearing: Arc::default(),
        }
    }

    /// The devices' logs.
    pub fn logs(&self) -> Vec<Box<dyn DirtyLog>> {
        let logs = self.devices.chunks(self.sharing).map(|devices| {
            let sharing = Arc::new(Sharing(devices.to_vec()));
            let log = VhostLog::new(sharing as _, 0).unwrap();
            Box::new(Timed(log, Arc::clone(&self.clearing))) as Box<dyn DirtyLog>
        });
        logs.collect()
    }

    /// The devices write this share of the guest's pages between them.
    pub fn write(&self, density: f64) {
        for (number, device) in self.devices.iter().enumerate() {
            device.write(number as u64 + 1, density / DEVICES as f64);
        }
    }
}

/// A vhost log whose clearing is timed.
struct Timed(VhostLog, Arc<Mutex<Duration>>);

impl DirtyLog for Timed {
    fn kind(&self) -> LogKind {
        self.0.kind()
    }
    fn clear_at_harvest(&mut self, whole: bool) -> bool {
        self.0.clear_at_harvest(whole)
    }
    fn rearms(&self) -> bool {
        self.0.rearms()
    }
    fn start(&mut self, map: &Map) -> brant::Result<Initial> {
        self.0.start(map)
    }
    fn stop(&mut self, map: &Map) -> brant::Result<()> {
        self.0.stop(map)
    }
    fn harvest(&mut self, map: &Map, when: When, sink: &mut dyn Sink) -> brant::Result<Harvested> {
        self.0.harvest(map, when, sink)
    }
    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        self.0.covered(map, each)
    }
    fn rearm(&mut self, map: &Map, block: BlockId, pages: Range<u64>) -> brant::Result<Rearmed> {
        let begun = Instant::now();
        let done = self.0.rearm(map, block, pages);
        *self.1.lock().unwrap() += begun.elapsed();
        done
    }
    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> brant::Result<()> {
        self.0.map_changes(old, new, sink)
    }
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    const FAMILIES: [&str; 3] = ["vhost.shared/", "vhost.separate/", "vhost.clear/"];
    if !FAMILIES.iter().any(|family| report.wants_any(family)) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => {
            let skip = |family: &&str| report.skipped(family, &reason);
            return FAMILIES.iter().for_each(skip);
        }
    };
    let machines = [Writers::together(), Writers::apart()].map(|writers| {
        let machine = Machine::new(&kvm, &Shape::plain(LENGTH), writers.logs());
        machine.start_dirty(DENSITY);
        (machine, writers)
    });
    let mut kernel_and_merge = Runs::default();
    let mut whole: [Runs; 2] = Default::default();
    let mut vhost: [Runs; 2] = Default::default();
    let mut clear: [Runs; 2] = Default::default();
    for turn in 0..=RUNS {
        for (i, (machine, writers)) in machines.iter().enumerate() {
            let (synced, get) = sync_written(machine, writers, LENGTH, DENSITY);
            let [kernel, merge, _, logs, all] = split(&synced, get);
            *writers.clearing.lock().unwrap() = Duration::ZERO;
            machine.drain();
            if turn == 0 {
                continue;
            }
            clear[i].push(ms(*writers.clearing.lock().unwrap()));
            vhost[i].push(logs);
            whole[i].push(all);
            if i == 0 {
                kernel_and_merge.push(kernel + merge);
            }
        }
    }
    let [shared, apart] = &whole;
    let name = format!("vhost.shared/{CASE}");
    report.compared(&name, "ms", shared, "KVM and its merge", &kernel_and_merge);
    let name = format!("vhost.separate/{CASE}");
    report.compared(&name, "ms", &vhost[1], "one shared log", &vhost[0]);
    for (which, clear, whole) in [
        ("shared", &clear[0], shared),
        ("separate", &clear[1], apart),
    ] {
        let name = format!("vhost.clear/{CASE}/{which}");
        report.compared(&name, "ms", clear, "the whole sync", whole);
    }
    for (machine, _) in &machines {
        machine.consumer.stop().unwrap();
    }
}
