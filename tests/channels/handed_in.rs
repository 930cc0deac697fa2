//! Connections that the VMM has made. All of them belong to the source, so a wrong HELLO on any of
//! them ends the migration.

use super::scripted::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::sides::{incoming, socketpair};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, Params};
use brant::wire::{Hello, Record};
use std::time::{Duration, Instant};

#[test]
fn connections_that_were_handed_in_are_told_apart_by_their_hello() {
    for seed in 0..6 {
        let mut session = Session::of(5, &quick(), seed);
        session.agree();
        for channel in 0..5 {
            session.data(channel, channel as u64 * STRETCH, 1, 40 + channel as u8);
            session.mark(channel, true);
        }
        session.hand_over();
        for channel in 0..5 {
            let lane = session.inc.lane_stats(channel as u32).unwrap();
            assert_eq!(lane.data_pages, 1, "channel {channel}");
            assert_eq!(session.page(channel * STRETCH), 40 + channel as u8);
        }
    }
}

#[test]
fn a_connection_that_does_not_belong_to_the_session_is_refused_with_the_reason() {
    let of = |channel, change: fn(&mut Hello)| {
        let mut hello = hello(channel, 3);
        change(&mut hello);
        hello
    };
    let cases: Vec<(&str, [Hello; 3], Kind, &str)> = vec![
        (
            "another token",
            [of(0, |_| ()), of(1, |h| h.token = [8; 16]), of(2, |_| ())],
            Kind::Protocol,
            "expected the token of the session that goes on, found another",
        ),
        (
            "a channel twice",
            [of(0, |_| ()), of(1, |_| ()), of(1, |_| ())],
            Kind::Protocol,
            "channel 1 is there already",
        ),
        (
            "other features",
            [
                of(0, |_| ()),
                of(1, |h| h.features_offered = 3),
                of(2, |_| ()),
            ],
            Kind::Protocol,
            "the versions and features that channel 0 offers",
        ),
        (
            "an urgent one",
            [
                of(0, |_| ()),
                of(1, |h| h.role = brant::wire::ROLE_URGENT),
                of(2, |_| ()),
            ],
            Kind::Unsupported,
            "role 1",
        ),
        (
            "fewer channels than connections",
            [of(0, |_| ()), of(1, |h| h.channels = 2), of(1, |_| ())],
            Kind::Unsupported,
            "expected a source of 3 channels, one for each socket that was handed in here; found one of 2",
        ),
        (
            "more channels than connections",
            [of(0, |h| h.channels = 4), of(1, |_| ()), of(2, |_| ())],
            Kind::Unsupported,
            "expected a source of 3 channels, one for each socket that was handed in here; found one of 4",
        ),
    ];
    for (what, hellos, kind, reason) in cases {
        let mut session = Session::of(3, &quick(), 2);
        for (lane, hello) in session.lanes.iter_mut().zip(&hellos) {
            let _ = std::io::Write::write_all(&mut lane.0, &bytes(&Record::Hello(hello.clone())));
        }
        let error = session.inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.message().contains(reason), "{what}: {error}");
        // The VMM knows its sockets by their place and their descriptor.
        let named = error.message().starts_with("fds[") && error.message().contains("(descriptor ");
        assert!(named, "{what}: {error}");
        for lane in &mut session.lanes {
            assert_eq!(
                lane.hear_abort().as_deref(),
                Some(error.message()),
                "{what}"
            );
        }
        assert_eq!(session.pair.to.calls("early_load"), 0);
    }
}

#[test]
fn the_connect_timeout_counts_for_all_hellos_together() {
    let params = Params {
        connect_timeout: Duration::from_millis(300),
        ..quick()
    };
    for silent in [&[0][..], &[1], &[3], &[1, 2], &[0, 1, 2, 3]] {
        let mut session = Session::of(4, &params, 8);
        for channel in (0..4).filter(|channel| !silent.contains(channel)) {
            session.lanes[channel].say(&Record::Hello(hello(channel, 4)));
        }
        let begun = Instant::now();
        let error = session.inc.wait(Some(LONG)).unwrap_err();
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(error.kind(), Kind::Timeout, "{error}");
        let wanted = "the connect timeout of 300 ms ran out";
        assert!(error.message().contains(wanted), "{error}");
        assert!(error.message().contains("HELLO"), "{error}");
        // Each silent socket is named, and no other.
        let named = error.message().matches("fds[").count();
        assert_eq!(named, silent.len(), "{silent:?}: {error}");
    }
}

#[test]
fn a_socket_on_which_something_else_than_hello_comes_is_named() {
    let mut session = Session::of(3, &quick(), 4);
    session.lanes[0].say(&Record::Hello(hello(0, 3)));
    session.lanes[2].say(&Record::EarlyOk);
    let error = session.inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    let message = error.message();
    assert!(message.starts_with("fds["), "{message}");
    assert!(
        message.ends_with("expected HELLO, found EARLY_OK"),
        "{message}"
    );
}

#[test]
fn how_many_connections_may_be_handed_in_is_said_before_anything_begins() {
    let params = Params {
        incoming_channels: 2,
        ..quick()
    };
    let pair = Pair::new(&[ram("ram", 600)]);
    for count in [0, 4] {
        let inc = incoming(&pair, &params);
        let fds = (0..count).map(|_| socketpair().1).collect();
        let error = inc.start(AcceptFrom::ConnectedAll(fds)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(
            error
                .message()
                .contains("at most 2, the number of channels"),
            "{error}"
        );
    }
    // When a descriptor is no connection, nothing begins, and the other connections are closed.
    let (mut raw, fd) = Raw::pair();
    let file = std::fs::File::open("/dev/null").unwrap();
    let inc = incoming(&pair, &params);
    let error = inc
        .start(AcceptFrom::ConnectedAll(vec![fd, file.into()]))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert!(
        error.message().starts_with("fds[1] (descriptor "),
        "{error}"
    );
    assert!(raw.hear().is_none());
}

#[test]
fn more_channels_than_this_side_takes_are_refused_by_name() {
    let params = Params {
        incoming_channels: 1,
        ..quick()
    };
    let pair = Pair::new(&[ram("ram", 600)]);
    let inc = incoming(&pair, &params);
    let (mut raw, fd) = Raw::pair();
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    raw.say(&Record::Hello(hello(0, 2)));
    let told = raw.hear_abort().unwrap();
    assert!(
        told.contains("expected a source of 1 channels, one for each socket"),
        "{told}"
    );
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
}
