//! Devices that the two sides do not have alike are refused by name, before the guest is paused.

use super::model::{Log, Model, Size};
use super::sides::{patient, Devices};
use crate::support::link::Link;
use crate::support::sides::start_over;
use crate::support::time::LONG;
use brant::error::Kind;
use std::sync::Arc;
use std::time::Duration;

fn one(change: impl FnOnce(&Devices), expected: &str) {
    let size = Size {
        running: 1000,
        stopped: 1000,
        ..Size::default()
    };
    let devices = Devices::new(64, &[size, size]);
    change(&devices);
    let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
    let (out, inc) = start_over(&devices.pair, &link, &patient());
    let here = out.wait(Some(LONG)).unwrap_err();
    let there = inc.wait(Some(LONG)).unwrap_err();
    for error in [&here, &there] {
        assert_eq!(error.kind(), Kind::Layout, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    assert_eq!(
        (devices.log.count("pause"), devices.log.count("gpu begin")),
        (0, 0)
    );
}

fn more() -> Arc<Model> {
    Model::new("more", Size::default(), &Arc::new(Log::default()), false)
}

#[test]
fn a_device_that_one_side_lacks_is_refused_by_name_at_the_handshake() {
    let there = |d: &Devices| Arc::clone(&d.pair.destination.memory);
    let here = |d: &Devices| Arc::clone(&d.pair.source.memory);
    one(
        |d| there(d).remove_device("nic", 0).unwrap(),
        "the source has device `nic`",
    );
    one(
        |d| here(d).remove_device("nic", 0).unwrap(),
        "the destination has device `nic`",
    );
    one(
        |d| there(d).add_device("nic", 7, 3, more()).unwrap(),
        "the destination has device `nic` 7",
    );
    one(
        |d| {
            here(d).remove_device("gpu", 0).unwrap();
            here(d).remove_device("nic", 0).unwrap();
        },
        "the destination has device `gpu`",
    );
}

#[test]
fn another_version_of_a_devices_state_is_refused_by_name_at_the_handshake() {
    one(
        |d| {
            let memory = &d.pair.destination.memory;
            memory.remove_device("gpu", 0).unwrap();
            memory.add_device("gpu", 0, 4, more()).unwrap();
        },
        "device `gpu`: the source's state has version 3, and the destination's has version 4",
    );
}

#[test]
fn devices_are_neither_added_nor_removed_during_a_migration_and_may_be_after_it() {
    let devices = Devices::new(
        64,
        &[Size {
            stopped: 10,
            ..Size::default()
        }],
    );
    let hold = devices.pair.from.hold_at("pause");
    let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
    let (out, inc) = start_over(&devices.pair, &link, &patient());
    hold.reached();
    for memory in [
        &devices.pair.source.memory,
        &devices.pair.destination.memory,
    ] {
        let busy = memory.remove_device("gpu", 0).unwrap_err();
        assert_eq!(busy.kind(), Kind::Busy, "{busy}");
        assert_eq!(
            memory.add_device("x", 0, 1, more()).unwrap_err().kind(),
            Kind::Busy
        );
    }
    hold.go();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    for memory in [
        &devices.pair.source.memory,
        &devices.pair.destination.memory,
    ] {
        memory.remove_device("gpu", 0).unwrap();
    }
}
