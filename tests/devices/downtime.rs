//! What devices send while the guest runs is not a part of the downtime.

use super::model::Size;
use super::sides::{Devices, MIB};
use crate::support::link::Link;
use crate::support::sides::start_over;
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::Params;
use brant::vmm::EventKind;
use std::time::Duration;

const MB: u64 = 1_000_000;

fn link() -> Link {
    Link::of(20 * MB, Duration::ZERO, 1 << 20)
}

fn downtime(size: Size, channels: u32) -> Duration {
    let devices = Devices::new(MIB, &[size]);
    let params = Params {
        channels,
        downtime_limit: Duration::from_secs(10),
        ..Params::default()
    };
    let link = link();
    let (out, inc) = start_over(&devices.pair, &link, &params);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    devices.assert_moved("downtime");
    out.stats().downtime.unwrap()
}

#[test]
fn state_that_goes_while_the_guest_runs_does_not_stand_it_still() {
    // 20 MB at 20 MB/s: a second.
    let stopped = Size {
        stopped: 20 * MB,
        ..Size::default()
    };
    let running = Size {
        running: 20 * MB,
        stopped: 200_000,
        initial: 20 * MB,
        grows: 0,
    };
    for channels in [1, 2] {
        let (with, without) = (downtime(stopped, channels), downtime(running, channels));
        assert!(with >= MS * 900, "{with:?}");
        assert!(without < with / 2, "{without:?} and {with:?}");
    }
}

#[test]
fn the_stated_size_of_the_stopped_part_is_in_the_budget() {
    let devices = Devices::new(
        MIB,
        &[Size {
            stopped: 30 * MB,
            ..Size::default()
        }],
    );
    let params = Params {
        downtime_limit: MS * 300,
        ..Params::default()
    };
    let link = link();
    let (out, inc) = start_over(&devices.pair, &link, &params);
    let error = out.wait(Some(LONG)).unwrap_err();
    let _ = inc.wait(Some(LONG));
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    let message = error.message();
    assert!(message.contains("sending the device state"), "{message}");
    assert!(message.contains("30.0 MB"), "{message}");
    assert_eq!(devices.log.count("pause"), 0);
    devices.assert_runs_on("over the limit");
}

#[test]
fn a_device_that_is_faster_than_the_link_does_not_converge_and_the_vmm_is_told() {
    let grows = Size {
        running: 20 * MB,
        grows: 60 * MB,
        ..Size::default()
    };
    let devices = Devices::new(MIB, &[grows]);
    let params = Params {
        downtime_limit: MS * 100,
        total_timeout: Some(Duration::from_secs(3)),
        ..Params::default()
    };
    let link = link();
    let (out, inc) = start_over(&devices.pair, &link, &params);
    let error = out.wait(Some(LONG)).unwrap_err();
    let _ = inc.wait(Some(LONG));
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    let told = devices.pair.from.events(EventKind::Warning);
    let told = told
        .iter()
        .find(|text| text.contains("the state of devices grows"));
    assert!(
        told.is_some(),
        "{:?}",
        devices.pair.from.events(EventKind::Warning)
    );
    assert!(error.message().contains("device"), "{error}");
    devices.assert_runs_on("grows");
}
