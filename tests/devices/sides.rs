//! A pair of guests with the same devices.

use super::model::{Log, Model, Size};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::quick;
use brant::migrate::Params;
use std::sync::Arc;
use std::time::Duration;

/// Two sides with the same devices, and all calls in their order. Calls at the destination have
/// `there ` before them.
pub struct Devices {
    pub pair: Pair,
    pub log: Arc<Log>,
    pub here: Vec<Arc<Model>>,
    pub there: Vec<Arc<Model>>,
}

pub const MIB: usize = 256;

/// Parameters with which a busy machine changes nothing: whatever is left goes after the pause.
pub fn patient() -> Params {
    Params {
        downtime_limit: Duration::from_secs(60),
        ..quick()
    }
}

impl Devices {
    /// A guest of `pages` with the devices `gpu`, `nic` and so on, one of each size.
    pub fn new(pages: usize, sizes: &[Size]) -> Devices {
        let pair = Pair::new(&[ram("ram", pages)]);
        pair.source.fill(7);
        let log = Arc::new(Log::default());
        let names = ["gpu", "nic", "disk", "fpga"];
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for (size, name) in sizes.iter().zip(names) {
            let one = Model::new(name, *size, &log, true);
            let other = Model::new(&format!("there {name}"), *size, &log, false);
            pair.source
                .memory
                .add_device(name, 0, 3, one.clone())
                .unwrap();
            pair.destination
                .memory
                .add_device(name, 0, 3, other.clone())
                .unwrap();
            here.push(one);
            there.push(other);
        }
        for operation in ["pause", "save", "resume"] {
            let log = Arc::clone(&log);
            pair.from.at(operation, move || {
                log.note(operation.into());
                Ok(())
            });
        }
        for operation in ["load", "loaded", "run"] {
            let log = Arc::clone(&log);
            pair.to.at(operation, move || {
                log.note(format!("there {operation}"));
                Ok(())
            });
        }
        Devices {
            pair,
            log,
            here,
            there,
        }
    }

    /// Checks that no call was wrong, and that no device runs at both sides.
    pub fn assert_sound(&self, what: &str) {
        self.log.assert_sound();
        self.pair.assert_sound(what);
        for (here, there) in self.here.iter().zip(&self.there) {
            assert!(
                !(here.runs() && there.runs()),
                "{what}: {} runs twice",
                here.name
            );
        }
    }

    /// Checks that the guest and its devices run at the source, each resumed as often as quiesced.
    pub fn assert_runs_on(&self, what: &str) {
        self.assert_sound(what);
        assert_eq!(self.pair.world.who(), (true, false), "{what}");
        for device in &self.here {
            let count = |call: &str| self.log.count(&format!("{} {call}", device.name));
            assert!(device.runs(), "{what}: {} stands still", device.name);
            assert_eq!(
                count("resume"),
                count("quiesce"),
                "{what}: {:?}",
                self.log.calls()
            );
            assert_eq!(count("wake"), count("quiesce"), "{what}");
            assert_eq!(count("end"), count("begin"), "{what}");
            assert!(count("end") <= 1, "{what}");
        }
        for device in &self.there {
            let count = |call: &str| self.log.count(&format!("{} {call}", device.name));
            assert_eq!(count("run"), 0, "{what}");
            assert!(count("reset") <= 1, "{what}");
        }
    }

    /// Checks that the guest and its devices run at the destination, with all of their state.
    pub fn assert_moved(&self, what: &str) {
        self.assert_sound(what);
        assert_eq!(self.pair.world.who(), (false, true), "{what}");
        for (here, there) in self.here.iter().zip(&self.there) {
            assert!(there.runs() && !here.runs(), "{what}");
            assert_eq!(there.loaded(), here.given(), "{what}: {}", here.name);
            assert_eq!(self.log.count(&format!("{} reset", there.name)), 0);
            assert_eq!(self.log.count(&format!("{} end", here.name)), 1);
        }
    }
}
