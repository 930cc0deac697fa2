//! A cancel while a call of a device blocks.

use super::model::Size;
use super::sides::{patient, Devices};
use crate::support::link::Link;
use crate::support::sides::start_over;
use crate::support::time::{cancel_promptly, LONG};
use brant::error::Kind;
use brant::migrate::Params;
use std::time::Duration;

fn sizes() -> [Size; 3] {
    let size = Size {
        initial: 1000,
        running: 3 << 20,
        stopped: 3 << 20,
        grows: 0,
    };
    [size, size, size]
}

fn link() -> Link {
    Link::of(400_000_000, Duration::ZERO, 1 << 20)
}

#[test]
fn a_cancel_ends_a_call_of_a_device_that_blocks_at_the_source() {
    for channels in [1, 3] {
        for step in ["read_running", "quiesce", "stop", "read_stopped"] {
            let devices = Devices::new(64, &sizes());
            devices.here[1].sticks_at(step);
            let params = Params {
                channels,
                ..patient()
            };
            let link = link();
            let (out, inc) = start_over(&devices.pair, &link, &params);
            devices.here[1].await_stuck();
            cancel_promptly(step, || out.cancel()).unwrap();
            let error = out.wait(Some(LONG)).unwrap_err();
            inc.wait(Some(LONG)).unwrap_err();
            assert_eq!(error.kind(), Kind::Cancelled, "{step}: {error}");
            devices.assert_runs_on(step);
            // The same objects again, and their end, cancel nothing any more.
            out.cancel().unwrap();
            drop((out, inc));
            for device in &devices.here {
                let cancel = format!("{} cancel", device.name);
                assert_eq!(devices.log.count(&cancel), 1, "{step}");
            }
        }
    }
}

#[test]
fn a_cancel_ends_a_call_of_a_device_that_blocks_at_the_destination() {
    for channels in [1, 3] {
        for step in ["load_running", "load_stopped"] {
            let devices = Devices::new(64, &sizes());
            devices.there[1].sticks_at(step);
            let params = Params {
                channels,
                ..patient()
            };
            let link = link();
            let (out, inc) = start_over(&devices.pair, &link, &params);
            devices.there[1].await_stuck();
            cancel_promptly(step, || inc.cancel()).unwrap();
            let error = inc.wait(Some(LONG)).unwrap_err();
            out.wait(Some(LONG)).unwrap_err();
            assert_eq!(error.kind(), Kind::Cancelled, "{step}: {error}");
            devices.assert_runs_on(step);
            inc.cancel().unwrap();
            drop((out, inc));
            for device in &devices.there {
                let count = |call| devices.log.count(&format!("{} {call}", device.name));
                assert_eq!((count("cancel"), count("reset")), (1, 1), "{step}");
            }
        }
    }
}

#[test]
fn a_cancel_after_the_hand_over_reaches_no_device() {
    let devices = Devices::new(64, &sizes());
    let link = link();
    let (out, inc) = start_over(&devices.pair, &link, &patient());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.cancel().unwrap_err().kind(), Kind::State);
    assert_eq!(inc.cancel().unwrap_err().kind(), Kind::State);
    drop((out, inc));
    devices.assert_moved("cancelled too late");
    for device in devices.here.iter().chain(&devices.there) {
        assert_eq!(devices.log.count(&format!("{} cancel", device.name)), 0);
    }
}
