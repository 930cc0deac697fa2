//! The order of calls, and that every byte arrives.

use super::model::Size;
use super::sides::{patient, Devices, MIB};
use crate::support::link::Link;
use crate::support::sides::{incoming, outgoing, start_over, AbortsOnce};
use crate::support::time::{LONG, MS};
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use std::sync::Arc;
use std::time::Duration;

const KIB: u64 = 1 << 10;

fn sizes() -> [Size; 3] {
    [
        Size {
            initial: 300 * KIB,
            running: 5000 * KIB,
            stopped: 3 << 20,
            grows: 0,
        },
        Size {
            stopped: 70 * KIB + 1,
            ..Size::default()
        },
        Size {
            running: 2 << 20,
            stopped: 0,
            initial: 0,
            grows: 100 * KIB,
        },
    ]
}

#[test]
fn all_state_arrives_in_the_order_that_the_trait_says() {
    for (channels, verify) in [(1, false), (4, true), (2, false)] {
        let devices = Devices::new(4 * MIB, &sizes());
        let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
        let params = Params {
            channels,
            verify,
            ..patient()
        };
        let (out, inc) = start_over(&devices.pair, &link, &params);
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        let what = format!("{channels} channels: {:?}", out.stats());
        devices.assert_moved(&what);
        let log = &devices.log;
        let calls = log.calls();
        let before = |a: &str, b: &str| {
            assert!(log.last(a) < log.first(b), "{a} before {b}: {calls:?}");
        };
        for device in ["gpu", "nic", "disk"] {
            before(&format!("{device} begin"), "pause");
            before("pause", &format!("{device} quiesce"));
            for other in ["gpu", "nic", "disk"] {
                before(&format!("{device} quiesce"), &format!("{other} stop"));
                before(&format!("{device} stop"), &format!("{other} read_stopped"));
                before(
                    &format!("there {device} wake"),
                    &format!("there {other} run"),
                );
            }
            before(&format!("{device} stop"), "save");
            before("there load", &format!("there {device} loaded"));
            before(&format!("there {device} loaded"), "there loaded");
            before(&format!("there {device} run"), "there run");
            assert_eq!(log.count(&format!("{device} resume")), 0);
        }
        // One device after the other, in the order of adding.
        before("there gpu load_stopped", "there nic load_stopped");
        before("there nic load_stopped", "there load");
        let stats = out.stats();
        let there = inc.stats();
        let (all, running) = devices
            .here
            .iter()
            .map(|d| d.given())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        // The initial part at least.
        assert!(running >= 300 * KIB, "{what}");
        assert_eq!(stats.device_running_bytes, running, "{what}");
        assert_eq!(stats.device_stopped_bytes, all - running, "{what}");
        assert_eq!(there.device_running_bytes, running, "{what}");
        assert_eq!(there.device_stopped_bytes, all - running, "{what}");
        assert!(stats.device_stopped.is_some(), "{what}");
        assert_eq!(stats.device_left_bytes, 0, "{what}");
        assert_eq!(stats.mismatched_pages, 0, "{what}");
    }
}

#[test]
fn initial_state_is_loaded_before_the_pause() {
    let size = Size {
        initial: 3 << 20,
        running: 3 << 20,
        stopped: 10,
        grows: 0,
    };
    let devices = Devices::new(16, &[size, size]);
    // Two seconds of initial state, for a guest of 16 pages.
    let link = Link::of(3 << 20, MS * 5, 1 << 20);
    let loaded: Vec<_> = devices.there.clone();
    let log = Arc::clone(&devices.log);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    devices.pair.from.at("pause", move || {
        log.note("pause".into());
        noted
            .lock()
            .unwrap()
            .extend(loaded.iter().map(|d| d.loaded().1));
        Ok(())
    });
    let params = Params {
        channels: 2,
        downtime_limit: Duration::from_secs(60),
        ..Params::default()
    };
    let (out, inc) = start_over(&devices.pair, &link, &params);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    devices.assert_moved("initial");
    assert_eq!(*seen.lock().unwrap(), [3 << 20, 3 << 20]);
}

/// All of memory fits the limit at once, and the first bytes of the device take a minute.
#[test]
fn a_migration_whose_pause_waits_for_initial_state_names_the_device_and_initial_when_time_is_up() {
    let size = Size {
        initial: 60 << 20,
        running: 60 << 20,
        ..Size::default()
    };
    // Once the first pass has ended, and once in its middle: a piece takes longer than the time.
    for (rate, time) in [(8 << 20, 3000), (100_000, 1000)] {
        let devices = Devices::new(16, &[Size::default(), size]);
        let link = Link::of(rate, MS, 64 << 10);
        let params = Params {
            total_timeout: Some(MS * time),
            ..patient()
        };
        let (out, inc) = start_over(&devices.pair, &link, &params);
        let error = out.wait(Some(LONG)).unwrap_err();
        inc.wait(Some(LONG)).unwrap_err();
        for part in ["device `nic` has ", "`initial`", "before the pause"] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        assert_eq!(devices.log.count("pause"), 0);
        devices.assert_runs_on("initial state takes too long");
    }
}

#[test]
fn initial_state_that_begins_anew_after_an_aborted_pause_is_loaded_before_the_next_pause() {
    let size = Size {
        initial: 300 * KIB,
        running: 300 * KIB,
        stopped: 10,
        grows: 0,
    };
    for channels in [1, 2] {
        let devices = Devices::new(16, &[size, size]);
        devices.here[1].begins_anew_with(50 * KIB);
        let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
        let loaded: Vec<_> = devices.there.clone();
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        devices.pair.from.at("pause", move || {
            let mut noted = noted.lock().unwrap();
            noted.extend(loaded.iter().map(|d| d.loaded().1 / KIB));
            Ok(())
        });
        let params = Params {
            channels,
            ..patient()
        };
        let (near, far) = link.connect_all(channels as usize);
        let (out, inc) = (
            outgoing(&devices.pair, &params),
            incoming(&devices.pair, &params),
        );
        inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
        let connected = ConnectTo::ConnectedAll(near);
        out.start_with(connected, Box::new(AbortsOnce::default()))
            .unwrap();
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        devices.assert_moved("initial state twice");
        assert_eq!(out.stats().aborted_pauses, 1);
        assert_eq!(*seen.lock().unwrap(), [300, 300, 300, 350]);
    }
}

#[test]
fn a_guest_without_devices_says_nothing_of_them() {
    let devices = Devices::new(64, &[]);
    let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
    let (out, inc) = start_over(&devices.pair, &link, &patient());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    devices.assert_moved("none");
}
