//! A failure at every step: the devices run on at the source, resumed once, and those of the
//! destination are reset.

use super::model::Size;
use super::sides::{patient, Devices};
use crate::support::link::Link;
use crate::support::relay::{at, Point, Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, start_over};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Params, SourceState};
use brant::wire::RecordType;
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

#[test]
fn a_device_that_fails_at_any_step_at_the_source_leaves_all_running_there() {
    for channels in [1, 3] {
        for step in [
            "begin",
            "left",
            "read_running",
            "quiesce",
            "stop",
            "read_stopped",
        ] {
            let devices = Devices::new(64, &sizes());
            devices.here[1].fails_at(step);
            let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
            let (out, inc) = start_over(
                &devices.pair,
                &link,
                &Params {
                    channels,
                    ..patient()
                },
            );
            let error = out.wait(Some(LONG)).unwrap_err();
            inc.wait(Some(LONG)).unwrap_err();
            let what = format!("{step}, {channels} channels: {error}");
            assert_eq!(error.kind(), Kind::Vmm, "{what}");
            assert!(error.message().contains("device `nic`"), "{what}");
            assert!(error.message().contains(step), "{what}");
            devices.assert_runs_on(&what);
            for device in &devices.there {
                assert_eq!(
                    devices.log.count(&format!("{} reset", device.name)),
                    1,
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn a_device_that_fails_at_any_step_at_the_destination_leaves_all_running_at_the_source() {
    for channels in [1, 3] {
        for step in ["load_running", "load_stopped", "loaded"] {
            let devices = Devices::new(64, &sizes());
            devices.there[1].fails_at(step);
            let link = Link::of(400_000_000, Duration::ZERO, 1 << 20);
            let (out, inc) = start_over(
                &devices.pair,
                &link,
                &Params {
                    channels,
                    ..patient()
                },
            );
            let error = inc.wait(Some(LONG)).unwrap_err();
            let here = out.wait(Some(LONG)).unwrap_err();
            let what = format!("{step}, {channels} channels: {error}; {here}");
            assert_eq!(error.kind(), Kind::Vmm, "{what}");
            for message in [error.message(), here.message()] {
                assert!(message.contains("device `nic`"), "{what}");
                assert!(message.contains(step), "{what}");
            }
            devices.assert_runs_on(&what);
            for device in &devices.there {
                assert_eq!(
                    devices.log.count(&format!("{} reset", device.name)),
                    1,
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn a_connection_that_ends_between_any_two_pieces_leaves_all_running_at_the_source() {
    for nth in [1, 4, 9, 10, 15, 20] {
        for verdict in [Verdict::Cut, Verdict::CutMid] {
            let devices = Devices::new(64, &sizes());
            let point = Point::Nth(RecordType::Device, nth);
            let (_proxy, near, far) = Proxy::new(at(point, verdict.clone()));
            let params = patient();
            let (out, inc) = (
                outgoing(&devices.pair, &params),
                incoming(&devices.pair, &params),
            );
            inc.start(AcceptFrom::Connected(far)).unwrap();
            out.start(ConnectTo::Connected(near)).unwrap();
            let what = format!("piece {nth}, {verdict:?}");
            out.wait(Some(LONG)).expect_err(&what);
            inc.wait(Some(LONG)).expect_err(&what);
            devices.assert_runs_on(&what);
        }
    }
}

#[test]
fn a_cancel_while_stopped_state_is_sent_resumes_every_device_once() {
    let size = Size {
        stopped: 30 << 20,
        ..Size::default()
    };
    let devices = Devices::new(64, &[size, size]);
    let link = Link::of(5_000_000, Duration::ZERO, 1 << 20);
    let params = Params {
        downtime_limit: Duration::from_secs(60),
        ..Params::default()
    };
    let (out, inc) = start_over(&devices.pair, &link, &params);
    while out.state() != SourceState::SendingLast {
        assert!(!out.stats().state.is_over(), "{:?}", out.stats());
        std::thread::yield_now();
    }
    out.cancel().unwrap();
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    inc.wait(Some(LONG)).unwrap_err();
    devices.assert_runs_on("cancelled");
}
