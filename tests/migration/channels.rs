//! Whole migrations over several connections. The guest's memory arrives unchanged. A connection
//! that breaks at any moment fails the migration and does no other harm.

use crate::support::guest::{differences, lost};
use crate::support::memory::{ram, rom, shared};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{at, Point, Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, quick, socketpair};
use crate::support::time::{LONG, MS};
use brant::channel::Endpoint;
use brant::error::{Error, Kind};
use brant::migrate::{AcceptFrom, ConnectTo, Incoming, Outgoing, Params};
use brant::vmm::EventKind;
use brant::wire::RecordType as R;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A guest with several stretches of memory that writes all the time.
fn busy() -> Pair {
    let pair = Pair::new(&[ram("ram", 2100), shared("shm", 700), rom("rom", 3)]);
    pair.source.fill(1);
    pair.destination.fill(2);
    // One stretch is all zero.
    let zeros = pair.source.ram("ram");
    (600..1000).for_each(|page| {
        let words = page * 512..(page + 1) * 512;
        words.for_each(|w| {
            zeros
                .word(w * 8)
                .store(0, std::sync::atomic::Ordering::Relaxed)
        });
    });
    drop(zeros);
    pair.source.writers(2, MS);
    pair.source.track();
    pair.source.wait_goes_on(0);
    pair
}

fn params(channels: u32) -> Params {
    Params {
        channels,
        ..quick()
    }
}

/// Starts both sides over the given connections. The destination gets them in another order.
fn start(
    pair: &Pair,
    params: &Params,
    ends: Vec<(OwnedFd, OwnedFd)>,
) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    let (from, mut to): (Vec<OwnedFd>, Vec<OwnedFd>) = ends.into_iter().unzip();
    let mut random = Random(to.len() as u64);
    for last in (1..to.len()).rev() {
        to.swap(last, random.below(last + 1));
    }
    inc.start(AcceptFrom::ConnectedAll(to)).unwrap();
    out.start(ConnectTo::ConnectedAll(from)).unwrap();
    (out, inc)
}

/// Checks that both sides agree that the guest has arrived, unchanged.
fn arrived(pair: &Pair, out: &Outgoing, inc: &Incoming, what: &str) {
    out.wait(Some(LONG))
        .unwrap_or_else(|e| panic!("{what}: the source: {e}"));
    inc.wait(Some(LONG))
        .unwrap_or_else(|e| panic!("{what}: the destination: {e}"));
    // The memory was compared when the device state was loaded, before the guest ran on.
    pair.assert_sound(what);
    assert_eq!(pair.world.who(), (false, true), "{what}");
    assert_eq!(pair.to.calls("run"), 1, "{what}");
    assert_eq!(pair.from.events(EventKind::Completed).len(), 1, "{what}");
}

#[test]
fn a_guest_that_writes_meanwhile_arrives_whole_however_many_channels_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join("s");
    for channels in [2, 4, 64] {
        for endpoint in [None, Some("tcp:127.0.0.1:0"), Some("unix")] {
            let what = format!("{channels} channels, {endpoint:?}");
            let pair = busy();
            let params = params(channels);
            let (out, inc) = match endpoint {
                None => start(
                    &pair,
                    &params,
                    (0..channels).map(|_| socketpair()).collect(),
                ),
                Some(text) => {
                    let at = match text {
                        "unix" => Endpoint::Unix(unix.clone()),
                        text => Endpoint::parse(text).unwrap(),
                    };
                    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
                    let at = inc.listen(&at).unwrap();
                    out.start(ConnectTo::Endpoint(at)).unwrap();
                    (out, inc)
                }
            };
            arrived(&pair, &out, &inc, &what);
            let (sent, came) = (out.stats(), inc.stats());
            let counts = |s: &brant::migrate::Stats| (s.data_pages, s.zero_pages);
            assert_eq!(counts(&sent), counts(&came), "{what}");
            let pages = |lane: u32| {
                let (sent, came) = (out.lane_stats(lane).unwrap(), inc.lane_stats(lane).unwrap());
                let counts = (sent.data_pages, sent.zero_pages);
                assert_eq!(
                    counts,
                    (came.data_pages, came.zero_pages),
                    "{what}: channel {lane}"
                );
                came.data_pages + came.zero_pages
            };
            let lanes: Vec<u64> = (0..channels).map(pages).collect();
            assert_eq!(
                lanes.iter().sum::<u64>(),
                came.data_pages + came.zero_pages,
                "{what}"
            );
            let used = lanes.iter().filter(|pages| **pages > 0).count();
            assert!(used > 1, "{what}: one channel carried all");
        }
    }
}

#[test]
fn a_guest_that_stands_still_is_the_same_at_both_sides() {
    for channels in [2, 64] {
        let pair = Pair::new(&[ram("ram", 3000), shared("shm", 1500)]);
        pair.source.fill(1);
        pair.destination.fill(2);
        let ends = (0..channels).map(|_| socketpair()).collect();
        let (out, inc) = start(&pair, &params(channels), ends);
        arrived(&pair, &out, &inc, &format!("{channels} channels"));
        pair.destination.pause();
        let differ = differences(&pair.source, &pair.destination);
        assert_eq!(differ, Vec::<String>::new(), "{channels} channels");
    }
}

/// Checks that after a cut connection exactly one side has the guest. Returns the source's result.
fn one_side_has_it(pair: &Pair, out: &Outgoing, inc: &Incoming, what: &str) -> Result<(), Error> {
    let left = out.wait(Some(LONG));
    let came = inc.wait(Some(LONG));
    pair.assert_sound(what);
    match left {
        Ok(()) => {
            came.unwrap_or_else(|e| panic!("{what}: the destination: {e}"));
            assert_eq!(pair.world.who(), (false, true), "{what}");
            Ok(())
        }
        Err(error) => {
            assert_ne!(error.kind(), Kind::Pending, "{what}");
            let kinds = [Kind::PeerGone, Kind::Io, Kind::Refused];
            assert!(
                kinds.contains(&error.kind()),
                "{what}: {:?} {error}",
                error.kind()
            );
            pair.assert_runs_on(what);
            assert!(came.is_err(), "{what}: it runs at neither side and at both");
            if pair.from.states().iter().any(|state| state == "copying") {
                pair.source.pause();
                let lost = lost(&pair.source, &pair.destination);
                assert_eq!(lost, Vec::<String>::new(), "{what}");
            }
            Err(error)
        }
    }
}

#[test]
fn a_connection_that_dies_at_any_record_ends_the_migration_and_loses_nothing() {
    let first = |kind| Point::Nth(kind, 1);
    let points = [
        first(R::Hello),
        first(R::HelloReply),
        first(R::Pages),
        first(R::Marker),
        first(R::Ack),
        Point::FinalMarker,
        Point::FinalAck,
    ];
    for (channels, lane) in [(2, 0), (2, 1), (4, 3)] {
        for point in points {
            for verdict in [Verdict::Cut, Verdict::CutMid, Verdict::CutAfter] {
                let what = format!("{verdict:?} at {point:?} on channel {lane} of {channels}");
                let pair = busy();
                let hit = Arc::<Mutex<bool>>::default();
                let mut rule = at(point, verdict.clone());
                let there = Arc::clone(&hit);
                let (proxy, from, to) = Proxy::new(Box::new(move |header, payload| {
                    let verdict = rule(header, payload);
                    *there.lock().unwrap() |= !matches!(verdict, Verdict::Forward);
                    verdict
                }));
                let mut cut = Some((from, to));
                let ends = (0..channels).map(|channel| match channel == lane {
                    true => cut.take().unwrap(),
                    false => socketpair(),
                });
                let (out, inc) = start(&pair, &params(channels), ends.collect());
                let end = one_side_has_it(&pair, &out, &inc, &what);
                assert!(
                    *hit.lock().unwrap(),
                    "{what}: it never came to that: {end:?}"
                );
                // When the final ACK of a channel other than 0 is cut off, that connection has done
                // all its work.
                let last = matches!(point, Point::FinalAck) && lane > 0;
                assert!(end.is_err() || last, "{what}: it went through");
                drop(proxy);
            }
        }
    }
}

#[test]
fn a_connection_that_dies_while_the_guest_stands_leaves_it_at_one_side() {
    use crate::support::vmm::Side;
    for (side, operation) in [
        (Side::Source, "pause"),
        (Side::Source, "save"),
        (Side::Destination, "load"),
        (Side::Destination, "loaded"),
        (Side::Source, "release"),
    ] {
        for lane in [0u32, 2] {
            let what = format!("channel {lane} dies in `{operation}`");
            let pair = busy();
            let (proxy, from, to) = Proxy::new(Box::new(|_, _| Verdict::Forward));
            let mut cut = Some((from, to));
            let ends = (0..3).map(|channel| match channel == lane {
                true => cut.take().unwrap(),
                false => socketpair(),
            });
            let proxy = Mutex::new(Some(proxy));
            let vmm = match side {
                Side::Source => &pair.from,
                Side::Destination => &pair.to,
            };
            vmm.at(operation, move || {
                drop(proxy.lock().unwrap().take());
                Ok(())
            });
            let (out, inc) = start(&pair, &params(3), ends.collect());
            let end = one_side_has_it(&pair, &out, &inc, &what);
            // Channel 0 has more records to carry. Any other channel is done when its last ACK has
            // come.
            assert!(end.is_err() || lane > 0, "{what}: it went through");
        }
    }
}

#[test]
fn a_cancel_of_either_side_ends_all_channels() {
    for source in [true, false] {
        let pair = busy();
        let params = Params {
            max_bandwidth: Some(1 << 20),
            ..params(4)
        };
        let ends = (0..4).map(|_| socketpair()).collect();
        let (out, inc) = start(&pair, &params, ends);
        pair.to.wait_state("receiving");
        pair.from.wait_state("copying");
        let begun = std::time::Instant::now();
        match source {
            true => out.cancel().unwrap(),
            false => inc.cancel().unwrap(),
        }
        // The promise is a tenth of a second.
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        for end in [out.wait(Some(LONG)), inc.wait(Some(LONG))] {
            let error = end.unwrap_err();
            let gone = matches!(error.kind(), Kind::Cancelled | Kind::PeerGone | Kind::Io);
            assert!(gone, "source {source}: {:?} {error}", error.kind());
        }
        pair.assert_runs_on("a cancel");
        pair.source.pause();
        assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
    }
}
