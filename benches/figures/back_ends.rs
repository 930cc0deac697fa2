//! Vhost devices that write to a guest's memory and set bits for that, each in a log of its own or all
//! in one log. The time for clearing these bits, when pages are taken, is measured beside.

use crate::machine::scattered;
use brant::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
use brant::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Rearmed, Sink, When};
use brant::memory::{BlockId, Map};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const DEVICES: u64 = 24;

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
    pub clearing: Arc<Mutex<Duration>>,
}

impl Writers {
    /// Each device has a log of its own.
    pub fn apart() -> Writers {
        Writers::new(1)
    }

    /// All devices share one log.
    pub fn together() -> Writers {
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
