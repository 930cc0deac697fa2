//! Devices in an image: a save stops them and has all of their state, a restore loads it.

use super::model::{Log, Model, Size};
use super::sides::Devices;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::Blockers;
use brant::snapshot::{Restore, RestoreParams, Save, SaveParams};
use brant::vmm::device::Device;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn sizes() -> [Size; 2] {
    [
        Size {
            running: 2 << 20,
            stopped: 1 << 20,
            ..Size::default()
        },
        Size {
            stopped: 100,
            ..Size::default()
        },
    ]
}

fn saved(devices: &Devices, path: &Path) -> brant::Result<()> {
    let (tracker, vmm) = (
        Arc::clone(&devices.pair.source.tracker),
        devices.pair.from.clone(),
    );
    let save = Save::new(tracker, Blockers::new(), vmm, SaveParams::default()).unwrap();
    save.start(path).unwrap();
    save.wait(Some(LONG))
}

fn restored(devices: &Devices, path: &Path) -> brant::Result<()> {
    let (memory, vmm) = (
        Arc::clone(&devices.pair.destination.memory),
        devices.pair.to.clone(),
    );
    let restore = Restore::new(memory, vmm, RestoreParams::default()).unwrap();
    restore.start(path).unwrap();
    restore.wait(Some(LONG))
}

#[test]
fn a_save_has_all_state_of_devices_and_a_restore_loads_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.image");
    let devices = Devices::new(64, &sizes());
    saved(&devices, &path).unwrap();
    devices.assert_runs_on("saved");
    for (device, size) in devices.here.iter().zip(sizes()) {
        assert_eq!(
            device.given(),
            (size.running + size.stopped, 0),
            "{}",
            device.name
        );
        assert_eq!(devices.log.count(&format!("{} resume", device.name)), 1);
    }
    // What the image has is gone here, before it comes again.
    devices.pair.world.set(Some(false), None);
    for device in &devices.here {
        device.quiesce().unwrap();
        device.stop().unwrap();
    }
    restored(&devices, &path).unwrap();
    for (there, size) in devices.there.iter().zip(sizes()) {
        assert!(there.runs(), "{}", there.name);
        assert_eq!(there.loaded(), (size.running + size.stopped, 0));
    }
    let log = &devices.log;
    assert!(log.last("there gpu load_stopped") < log.first("there nic load_stopped"));
    assert!(log.last("there nic load_stopped") < log.first("there load"));
    assert!(log.last("there load") < log.first("there gpu loaded"));
    assert!(log.last("there nic run") < log.first("there run"));
    assert_eq!(log.count("there gpu reset"), 0);
    log.assert_sound();
}

#[test]
fn a_device_that_only_the_image_or_only_the_guest_has_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.image");
    let devices = Devices::new(64, &sizes());
    saved(&devices, &path).unwrap();
    let memory = &devices.pair.destination.memory;
    memory.remove_device("nic", 0).unwrap();
    let error = restored(&devices, &path).unwrap_err();
    assert_eq!(error.kind(), Kind::Layout, "{error}");
    assert!(
        error.message().contains("the image has device `nic`"),
        "{error}"
    );
    let log = Arc::new(Log::default());
    for name in ["nic", "more"] {
        let model = Model::new(name, Size::default(), &log, false);
        memory.add_device(name, 0, 3, model).unwrap();
    }
    let error = restored(&devices, &path).unwrap_err();
    assert!(
        error.message().contains("the guest has device `more`"),
        "{error}"
    );
    assert_eq!(devices.log.count("there gpu load_stopped"), 0);
}

#[test]
fn a_device_that_refuses_its_state_in_a_restore_is_reset_with_all_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.image");
    let devices = Devices::new(64, &sizes());
    saved(&devices, &path).unwrap();
    devices.there[1].fails_at("load_stopped");
    let error = restored(&devices, &path).unwrap_err();
    assert!(error.message().contains("device `nic`"), "{error}");
    for device in &devices.there {
        assert_eq!(devices.log.count(&format!("{} reset", device.name)), 1);
    }
    devices.assert_sound("refused");
}

#[test]
fn a_cancel_ends_a_call_of_a_device_that_blocks_in_a_save() {
    for step in ["quiesce", "stop", "read_stopped"] {
        let folder = tempfile::tempdir().unwrap();
        let devices = Devices::new(32, &sizes());
        devices.here[1].sticks_at(step);
        let tracker = Arc::clone(&devices.pair.source.tracker);
        let vmm = devices.pair.from.clone();
        let save = Save::new(tracker, Blockers::new(), vmm, SaveParams::default()).unwrap();
        save.start(folder.path().join("guest.image")).unwrap();
        devices.here[1].await_stuck();
        save.cancel();
        // It has waited for the end.
        let error = save.wait(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{step}: {error}");
        devices.assert_runs_on(step);
        save.cancel();
        drop(save);
        for device in &devices.here {
            let cancel = format!("{} cancel", device.name);
            assert_eq!(devices.log.count(&cancel), 1, "{step}");
        }
    }
}

#[test]
fn a_cancel_ends_a_call_of_a_device_that_blocks_in_a_restore() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.image");
    for step in ["load_stopped", "loaded"] {
        let devices = Devices::new(32, &sizes());
        saved(&devices, &path).unwrap();
        devices.there[1].sticks_at(step);
        let memory = Arc::clone(&devices.pair.destination.memory);
        let vmm = devices.pair.to.clone();
        let restore = Restore::new(memory, vmm, RestoreParams::default()).unwrap();
        restore.start(&path).unwrap();
        devices.there[1].await_stuck();
        restore.cancel();
        let error = restore.wait(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{step}: {error}");
        devices.log.assert_sound();
        drop(restore);
        for device in &devices.there {
            let count = |call| devices.log.count(&format!("{} {call}", device.name));
            assert_eq!((count("cancel"), count("reset")), (1, 1), "{step}");
        }
    }
}
