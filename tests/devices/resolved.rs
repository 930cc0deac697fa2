//! A guest with devices that was handed over without an answer, and the VMM's decision.

use super::model::{Model, Size};
use super::sides::{patient, Devices};
use crate::support::link::Link;
use crate::support::sides::start_over;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{Incoming, Outgoing, Resolution};
use std::sync::Arc;
use std::time::Duration;

/// A migration that was handed over, and whose destination does not run.
fn unanswered() -> (Devices, Arc<Outgoing>, Arc<Incoming>) {
    let size = Size {
        running: 1 << 20,
        stopped: 1 << 20,
        ..Size::default()
    };
    let devices = Devices::new(64, &[size, size, size]);
    devices.there[0].fails_at("run");
    let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
    let (out, inc) = start_over(&devices.pair, &link, &patient());
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Unanswered);
    inc.wait(Some(LONG)).unwrap_err();
    // As long as nobody knows where the guest is, its devices stay.
    let memory = &devices.pair.source.memory;
    let removed = memory.remove_device("gpu", 0).unwrap_err();
    assert_eq!(removed.kind(), Kind::Busy);
    (devices, out, inc)
}

/// Devices are removed and added while the migration's object is still there.
fn assert_list_is_open(devices: &Devices) {
    let memory = &devices.pair.source.memory;
    memory.remove_device("nic", 0).unwrap();
    let model = Model::new("nic", Size::default(), &devices.log, true);
    memory.add_device("nic", 0, 3, model).unwrap();
}

#[test]
fn a_guest_that_is_taken_back_has_each_device_woken_and_resumed_once_before_it_runs() {
    let (devices, out, _inc) = unanswered();
    let log = &devices.log;
    let count = |device: &Model, call: &str| log.count(&format!("{} {call}", device.name));
    for device in &devices.here {
        assert_eq!((count(device, "end"), count(device, "resume")), (1, 0));
    }
    out.resolve(Resolution::Resume).unwrap();
    assert_eq!(devices.pair.world.who(), (true, false));
    for device in &devices.here {
        let counts = ["quiesce", "wake", "resume", "end"].map(|call| count(device, call));
        assert_eq!(counts, [1; 4], "{:?}", log.calls());
        assert!(device.runs());
        let resumed = log.last(&format!("{} resume", device.name));
        assert!(resumed < log.first("resume"), "{:?}", log.calls());
        for other in &devices.here {
            assert!(log.last(&format!("{} wake", other.name)) < resumed);
        }
    }
    assert_eq!(
        out.resolve(Resolution::Resume).unwrap_err().kind(),
        Kind::State
    );
    assert_list_is_open(&devices);
    devices.assert_sound("taken back");
    let resumes = devices
        .here
        .iter()
        .map(|d| count(d, "resume"))
        .sum::<usize>();
    assert_eq!(resumes, 3);
}

#[test]
fn a_guest_that_is_given_up_has_no_device_resumed_and_its_list_of_devices_is_open() {
    let (devices, out, _inc) = unanswered();
    out.resolve(Resolution::Destroy).unwrap();
    assert_list_is_open(&devices);
    for device in &devices.here {
        let resumed = format!("{} resume", device.name);
        assert_eq!(devices.log.count(&resumed), 0);
        assert!(!device.runs());
    }
    devices.assert_sound("given up");
    drop(out);
}
