//! The calls of a migration to its devices, in their order, without a migration.

use super::model::{Bus, RUNNING};
use brant::device::vfio::VfioDevice;
use brant::vmm::device::Device;
use brant::Result;
use std::sync::Arc;

/// Both machines: their devices as the kernel has them and as brant has them.
pub struct Machines {
    pub from: Bus,
    pub to: Bus,
    pub sources: Vec<Arc<VfioDevice>>,
    pub destinations: Vec<Arc<VfioDevice>>,
}

fn devices(bus: &Bus, count: usize) -> Vec<Arc<VfioDevice>> {
    let device = |i| Arc::new(VfioDevice::new(bus.device(i)));
    (0..count).map(device).collect()
}

impl Machines {
    pub fn new(seed: u64, abilities: &[u64]) -> Machines {
        let (from, to) = (
            Bus::new(seed, abilities),
            Bus::new(!seed, abilities).waiting(),
        );
        Machines {
            sources: devices(&from, abilities.len()),
            destinations: devices(&to, abilities.len()),
            from,
            to,
        }
    }

    /// Buffers of any size do; these are of a few.
    fn buffer(&self, round: usize) -> Vec<u8> {
        vec![0; [1, 20, 64, 100, 4096][round % 5]]
    }

    pub fn begin(&self) -> Result<()> {
        self.sources.iter().try_for_each(|d| d.begin())
    }

    /// Rounds of reads while the guest runs, until no device has initial bytes left.
    pub fn rounds(&self) -> Result<()> {
        for round in 0..1000 {
            let mut initial = 0;
            for (source, destination) in self.sources.iter().zip(&self.destinations) {
                let mut buffer = self.buffer(round);
                let n = source.read_running(&mut buffer)?;
                if n > 0 {
                    destination.load_running(&buffer[..n])?;
                }
                initial += source.left()?.initial;
            }
            if initial == 0 {
                return Ok(());
            }
        }
        panic!("the initial bytes do not end");
    }

    pub fn stop(&self) -> Result<()> {
        self.sources.iter().try_for_each(|d| d.quiesce())?;
        self.sources.iter().try_for_each(|d| d.stop())
    }

    /// The rest of all states, to the end.
    pub fn rest(&self) -> Result<()> {
        for (source, destination) in self.sources.iter().zip(&self.destinations) {
            for round in 0.. {
                let mut buffer = self.buffer(round);
                match source.read_stopped(&mut buffer)? {
                    0 => break,
                    n => destination.load_stopped(&buffer[..n])?,
                }
            }
        }
        Ok(())
    }

    pub fn loaded(&self) -> Result<()> {
        self.destinations.iter().try_for_each(|d| d.loaded())
    }

    pub fn run(&self) -> Result<()> {
        self.destinations.iter().try_for_each(|d| d.wake())?;
        self.destinations.iter().try_for_each(|d| d.run())
    }

    /// The source runs on.
    pub fn resume(&self) -> Result<()> {
        self.sources.iter().try_for_each(|d| d.wake())?;
        self.sources.iter().try_for_each(|d| d.resume())
    }

    pub fn end(&self) {
        self.sources.iter().for_each(|d| d.end());
    }

    pub fn reset(&self) {
        self.destinations.iter().for_each(|d| d.reset());
    }

    pub fn assert_no_faults(&self, what: &str) {
        for bus in [&self.from, &self.to] {
            let state = bus.lock();
            assert!(state.faults.is_empty(), "{what}: {:?}", state.faults);
        }
    }

    /// All devices of a machine run, and no transfer is open.
    pub fn assert_runs(&self, bus: &Bus, what: &str) {
        for i in 0..self.sources.len() {
            assert_eq!(
                bus.state(i),
                RUNNING,
                "{what}: device {i}: {:?}",
                bus.lock().calls
            );
            assert!(!bus.has_transfer(i), "{what}: device {i} has a transfer");
        }
    }
}
