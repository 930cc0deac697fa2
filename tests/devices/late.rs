//! A call of a device that blocks for longer than a time limit of the migration: the device is asked
//! to return, as by a cancel, and the error names it. A device that cannot be asked is named by the side
//! that waits for it.

use super::model::Size;
use super::sides::{patient, Devices};
use crate::support::link::Link;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Incoming, Outgoing, Params};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn sizes() -> [Size; 3] {
    let size = Size {
        initial: 0,
        running: 1 << 20,
        stopped: 1 << 20,
        grows: 0,
    };
    [size, size, size]
}

fn start(devices: &Devices, here: &Params, there: &Params) -> (Arc<Outgoing>, Arc<Incoming>, Link) {
    let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
    let (near, far) = link.connect_all(here.channels as usize);
    let out = outgoing(&devices.pair, here);
    let inc = incoming(&devices.pair, there);
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start(ConnectTo::ConnectedAll(near)).unwrap();
    (out, inc, link)
}

/// Far below the model's own patience, which waits for a cancel.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_time_limit_ends_a_call_of_a_device_that_blocks_at_the_source() {
    let total = Params {
        total_timeout: Some(MS * 1000),
        ..patient()
    };
    let switchover = Params {
        switchover_timeout: MS * 1000,
        ..patient()
    };
    let cases = [
        ("begin", &total, "the total timeout of 1 s"),
        ("read_running", &total, "the total timeout of 1 s"),
        ("quiesce", &switchover, "the switchover timeout of 1 s"),
        ("stop", &switchover, "the switchover timeout of 1 s"),
        ("read_stopped", &switchover, "the switchover timeout of 1 s"),
    ];
    for (step, params, limit) in cases {
        let devices = Devices::new(64, &sizes());
        devices.here[1].sticks_at(step);
        let begun = Instant::now();
        let (out, inc, _link) = start(&devices, params, &patient());
        let error = out.wait(Some(LONG)).unwrap_err();
        assert!(begun.elapsed() < SOON, "{step}: {:?}", begun.elapsed());
        inc.wait(Some(LONG)).unwrap_err();
        for part in [limit, "in a call of a device", "device `nic`", step] {
            assert!(error.message().contains(part), "{step}: {part}: {error}");
        }
        // The destination has nothing to do with it.
        let blamed = error.message().contains("has not acknowledged the state");
        assert!(!blamed, "{step}: {error}");
        devices.assert_runs_on(step);
        drop((out, inc));
        for (at, device) in devices.here.iter().enumerate() {
            // A device that has not begun is asked nothing.
            let asked = usize::from(step != "begin" || at < 2);
            let cancel = format!("{} cancel", device.name);
            assert_eq!(devices.log.count(&cancel), asked, "{step}: {cancel}");
        }
    }
}

#[test]
fn a_call_that_loads_for_longer_than_the_source_waits_is_ended_and_named_at_both_sides() {
    let short = Params {
        io_timeout: MS * 500,
        switchover_timeout: MS * 500,
        ..patient()
    };
    for step in ["load_running", "load_stopped"] {
        for channels in [1, 2] {
            let with = |params: &Params| Params {
                channels,
                ..params.clone()
            };
            let devices = Devices::new(64, &sizes());
            devices.there[1].sticks_at(step);
            let begun = Instant::now();
            let (out, inc, _link) = start(&devices, &with(&patient()), &with(&short));
            let error = inc.wait(Some(LONG)).unwrap_err();
            assert!(begun.elapsed() < SOON, "{step}: {:?}", begun.elapsed());
            assert_eq!(error.kind(), Kind::Timeout, "{step}: {error}");
            let told = out.wait(Some(LONG)).unwrap_err();
            for part in ["3/4 of the I/O or switchover timeout", "device `nic`", step] {
                assert!(error.message().contains(part), "{step}: {part}: {error}");
                assert!(told.message().contains(part), "{step}: {part}: {told}");
            }
            devices.assert_runs_on(step);
        }
    }
}

/// The destination waits as long as it likes. The source's patience is short, and all that it sees is
/// that nothing is acknowledged.
#[test]
fn a_source_that_waits_in_vain_while_state_is_loaded_names_the_devices() {
    let short = Params {
        io_timeout: MS * 500,
        ..patient()
    };
    let devices = Devices::new(64, &sizes());
    devices.there[1].sticks_at("load_running");
    let (out, inc, _link) = start(&devices, &short, &patient());
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    for part in [
        "has not acknowledged the state of ",
        "device `nic`",
        "loads it",
    ] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    inc.cancel().unwrap();
    inc.wait(Some(LONG)).unwrap_err();
    devices.assert_runs_on("a slow load");
}
