//! A session of several connections that fails on one of them. The whole session ends soon, the
//! error is the one that helps most, and no guest runs.

use super::scripted::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::random::Random;
use crate::support::time::LONG;
use brant::error::{Error, Kind};
use brant::migrate::{Blockers, ConnectTo, Outgoing, Params};
use brant::units::Pages;
use brant::wire::{self, Header, Record};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Far less than any time limit of the parameters, and enough for a busy machine.
const SOON: Duration = Duration::from_secs(8);

/// Ends the session. Returns its error, and the reason that each channel was told. Checks that the
/// guest is safe.
fn ended(mut session: Session, what: &str) -> (Error, Vec<Option<String>>) {
    let begun = Instant::now();
    let told = session.lanes.iter_mut().map(Raw::hear_abort).collect();
    // A destination that has sent its reason listens until the source closes.
    session.lanes.clear();
    let error = session.inc.wait(Some(LONG)).unwrap_err();
    assert!(begun.elapsed() < SOON, "{what}: {:?}", begun.elapsed());
    assert_eq!(session.pair.to.calls("run"), 0, "{what}");
    assert_ne!(error.kind(), Kind::Internal, "{what}: {error}");
    session.pair.assert_sound(what);
    (error, told)
}

#[test]
fn what_one_channel_says_wrong_ends_all_of_them_with_its_reason() {
    type Say = fn(&mut Session, usize);
    let cases: [(&str, Say, &str); 9] = [
        ("garbage", |s, c| s.say(c, &[0x55; 64]), "channel"),
        (
            "an unknown block",
            |s, c| s.say(c, &zeros(77, 0, 1)),
            "block 77 was never announced",
        ),
        (
            "past the end",
            |s, c| s.say(c, &zeros(BLOCK, PAGES - 1, 2)),
            "20380",
        ),
        (
            "a marker that counts wrong",
            |s, c| {
                s.counts[c].zero += 1;
                let marker = s.counts[c].marker(false);
                s.say(c, &marker);
            },
            "marker 1 counts",
        ),
        (
            "a change of blocks",
            |s, c| s.lanes[c].say(&Record::BlockRemoved { id: BLOCK }),
            "expected pages or a marker, found BLOCK_REMOVED",
        ),
        (
            "state",
            |s, c| s.say(c, &state_end()),
            "expected pages or a marker, found STATE_END",
        ),
        (
            "HELLO again",
            |s, c| s.lanes[c].say(&Record::Hello(hello(c, 4))),
            "found HELLO",
        ),
        (
            "the hand-over",
            |s, c| {
                let token = hello(0, 1).token;
                s.lanes[c].say(&Record::Handover(wire::Handover { token }));
            },
            "found HANDOVER",
        ),
        (
            "ballooned pages that nobody agreed on",
            |s, c| s.say(c, &Header::ballooned(BLOCK, Pages(0), 1).encode()),
            "BALLOONED",
        ),
    ];
    for (what, say, reason) in cases {
        // On channel 0 other records may come too.
        for channel in [1, 3] {
            let what = format!("{what} on channel {channel}");
            let mut session = Session::of(4, &quick(), 3);
            session.agree();
            say(&mut session, channel);
            let (error, told) = ended(session, &what);
            assert_eq!(error.kind(), Kind::Protocol, "{what}: {error}");
            assert!(error.message().contains(reason), "{what}: {error}");
            let named = format!("channel {channel} (descriptor ");
            assert!(error.message().starts_with(&named), "{what}: {error}");
            // Every channel is told the same reason.
            let same = vec![Some(error.message().to_owned()); 4];
            assert_eq!(told, same, "{what}");
        }
    }
}

fn state_end() -> Vec<u8> {
    bytes(&Record::StateEnd(wire::StateEnd {
        blobs: wire::BlobEnd { count: 0, bytes: 0 },
        handover_millis: 30_000,
    }))
}

#[test]
fn a_channel_that_is_cut_at_any_byte_ends_the_session_and_names_itself() {
    let mut random = Random(0xc07);
    for round in 0..60 {
        let mut session = Session::of(3, &quick(), round);
        session.agree();
        let channel = (round % 3) as usize;
        let mut counts = Counts::default();
        let mut stream = pages(BLOCK, 512, 3, 1);
        counts.data(3);
        stream.extend(zeros(BLOCK, 600, 9));
        counts.zero(9);
        stream.extend(list(BLOCK, 700, 2, 5));
        counts.data(2);
        stream.extend(counts.marker(true));
        // A part of the record, never the whole of it.
        let cut = match round {
            0..3 => 0,
            3..6 => stream.len() - 1,
            _ => random.below(stream.len()),
        };
        session.say(channel, &stream[..cut]);
        session.lanes[channel].0.shutdown(Shutdown::Both).unwrap();
        let what = format!("channel {channel} cut at byte {cut} of {}", stream.len());
        let (error, told) = ended(session, &what);
        let gone = matches!(error.kind(), Kind::PeerGone | Kind::Io);
        assert!(gone, "{what}: {:?} {error}", error.kind());
        let named = format!("channel {channel} (descriptor ");
        assert!(error.message().starts_with(&named), "{what}: {error}");
        // The source is told the reason on the other channels.
        let other = (channel + 1) % 3;
        assert_eq!(told[other].as_deref(), Some(error.message()), "{what}");
    }
}

#[test]
fn what_the_source_said_wins_over_what_broke_when_it_closed() {
    for (said_on, channels) in [(0, 2), (1, 2), (3, 4), (0, 64)] {
        let mut session = Session::of(channels, &quick(), 9);
        session.agree();
        // The source's word comes behind pages that keep the destination busy for a while.
        for stretch in 0..4 {
            session.data(said_on, stretch * STRETCH, 512, 0x61);
        }
        let other = (said_on + 1) % channels;
        session.lanes[other].0.shutdown(Shutdown::Both).unwrap();
        session.lanes[said_on].say(&Record::Abort(wire::Abort {
            code: Kind::Cancelled as i32,
            reason: "the operator has changed their mind".into(),
        }));
        let what = format!("said on channel {said_on} of {channels}");
        let (error, _) = ended(session, &what);
        assert_eq!(error.kind(), Kind::Cancelled, "{what}: {error}");
        let wanted = "the source ended the migration: the operator has changed their mind";
        assert_eq!(error.message(), wanted, "{what}");
    }
}

#[test]
fn an_abort_on_a_channel_that_is_done_is_heard_when_the_connection_ends() {
    let mut session = Session::of(3, &quick(), 9);
    session.agree();
    (0..3).for_each(|channel| session.mark(channel, true));
    session.lanes[2].say(&Record::Abort(wire::Abort {
        code: Kind::Cancelled as i32,
        reason: "no room".into(),
    }));
    session.lanes.drain(..).for_each(|lane| {
        let _ = lane.0.shutdown(Shutdown::Both);
    });
    let (error, _) = ended(session, "an ABORT after the end");
    assert_eq!(error.message(), "the source ended the migration: no room");
}

#[test]
fn nothing_may_follow_the_end_marker_of_a_channel() {
    for (what, stream) in [
        ("pages", pages(BLOCK, 0, 1, 9)),
        ("zeros", zeros(BLOCK, 0, 1)),
        ("state", state_end()),
    ] {
        let mut session = Session::of(3, &quick(), 9);
        session.agree();
        (0..3).for_each(|channel| session.mark(channel, true));
        // KEEPALIVE may come at any time.
        session.lanes[1].say(&Record::Keepalive);
        session.say(2, &stream);
        session.state_end();
        let destination = std::sync::Arc::clone(&session.pair.destination);
        let (error, _) = ended(session, what);
        assert_eq!(error.kind(), Kind::Protocol, "{what}: {error}");
        let message = error.message();
        assert!(
            message.starts_with("channel 2 (descriptor "),
            "{what}: {message}"
        );
        let wanted = "expected nothing after the final MARKER";
        assert!(message.contains(wanted), "{what}: {message}");
        let page = destination.ram("ram").page(0)[0];
        assert_eq!(page, 0, "{what}: it was written");
    }
}

#[test]
fn a_cancel_ends_all_channels_soon_whatever_they_wait_for() {
    for half in [false, true] {
        let mut session = Session::of(64, &quick(), 4);
        session.agree();
        if half {
            let run = pages(BLOCK, 0, 2, 1);
            (0..64).for_each(|channel| session.say(channel, &run[..5000]));
        }
        let begun = Instant::now();
        session.inc.cancel().unwrap();
        // The promise is a tenth of a second, and the limit allows for a busy machine.
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        let error = session.inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        assert_eq!(error.message(), "the migration was cancelled");
    }
}

#[test]
fn a_silent_channel_beside_busy_ones_runs_into_its_limit() {
    let params = brant::migrate::Params {
        io_timeout: Duration::from_millis(400),
        switchover_timeout: Duration::from_millis(400),
        ..quick()
    };
    for silent in [0, 2] {
        let mut session = Session::of(3, &params, 4);
        session.agree();
        let begun = Instant::now();
        while session.inc.stats().error.is_none() {
            assert!(
                begun.elapsed() < SOON,
                "{silent}: it is waited for too long"
            );
            for channel in (0..3).filter(|channel| *channel != silent) {
                use std::io::Write;
                let _ = session.lanes[channel].0.write_all(&zeros(BLOCK, 0, 1));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (error, _) = ended(session, "a silent channel");
        assert_eq!(error.kind(), Kind::Timeout, "{error}");
        let wanted = "the I/O timeout of 400 ms ran out";
        assert!(error.message().contains(wanted), "{error}");
        let named = error.message().starts_with("channel 2 (descriptor ");
        assert_eq!(named, silent == 2, "{error}");
    }
}

#[test]
fn a_thread_that_the_vmm_does_not_let_start_ends_the_session() {
    let mut session = Session::of(3, &quick(), 4);
    session.pair.to.at("thread_start", {
        let calls = std::sync::atomic::AtomicU32::new(0);
        move || {
            // The first call is made by the migration's own thread.
            let later = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0;
            assert!(!later, "no seccomp here");
            Ok(())
        }
    });
    session.agree();
    let (error, _) = ended(session, "thread_start");
    assert_eq!(error.kind(), Kind::Vmm, "{error}");
    assert!(error.message().contains("no seccomp here"), "{error}");
}

#[test]
fn damage_on_any_channel_is_refused_without_a_panic_and_nothing_runs() {
    let seed = 0xda3a;
    println!("seed {seed}");
    let mut random = Random(seed);
    for round in 0..150 {
        let channels = 2 + random.below(3);
        let mut session = Session::of(channels, &quick(), round);
        session.agree();
        let mut streams = vec![Vec::new(); channels];
        for (channel, stream) in streams.iter_mut().enumerate() {
            let counts = &mut session.counts[channel];
            for _ in 0..4 {
                let first =
                    (channel as u64 * 2 + random.next() % 2) * STRETCH + random.next() % 500;
                stream.extend(match random.below(3) {
                    0 => zeros(BLOCK, first, 3),
                    1 => list(BLOCK, first, 2, 9),
                    _ => pages(BLOCK, first, 2, 8),
                });
                stream.extend(counts.marker(false));
            }
        }
        let hit = random.below(channels);
        let at = random.below(streams[hit].len());
        streams[hit][at] ^= 1 << random.below(8);
        for (channel, stream) in streams.iter().enumerate() {
            use std::io::Write;
            let _ = session.lanes[channel].0.write_all(stream);
            let _ = session.lanes[channel].0.shutdown(Shutdown::Write);
        }
        // The markers' counts are wrong too, so any of several errors may be found first.
        ended(session, &format!("round {round}: channel {hit} byte {at}"));
    }
}

#[test]
fn a_connection_that_ends_before_its_answer_is_noticed_while_others_are_silent() {
    // The destination answers nothing on channel 0, and closes another.
    for closed in [1, 2] {
        let pair = Pair::new(&[ram("ram", 4)]);
        let (peers, fds): (Vec<Raw>, Vec<OwnedFd>) = (0..3).map(|_| Raw::pair()).unzip();
        let params = Params {
            channels: 3,
            ..Params::default()
        };
        let out = Outgoing::new(
            Arc::clone(&pair.source.tracker),
            Blockers::new(),
            Arc::clone(&pair.from) as _,
            params,
        )
        .unwrap();
        let begun = Instant::now();
        out.start(ConnectTo::ConnectedAll(fds)).unwrap();
        peers[closed].0.shutdown(Shutdown::Both).unwrap();
        let error = out.wait(Some(LONG)).unwrap_err();
        // Without any look at the others: the I/O timeout of channel 0.
        assert!(begun.elapsed() < SOON, "{:?}: {error}", begun.elapsed());
        assert_eq!(error.kind(), Kind::PeerGone, "{error}");
        let named = format!("channel {closed} (descriptor ");
        assert!(error.message().starts_with(&named), "{error}");
        pair.assert_runs_on("a source without a destination");
    }
}
