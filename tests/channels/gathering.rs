//! The connections of one source are gathered at a listener. They come in any order, with strangers
//! among them.

use super::scripted::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::random::Random;
use crate::support::sides::incoming;
use crate::support::time::LONG;
use brant::channel::Endpoint;
use brant::error::Kind;
use brant::migrate::{Incoming, Params};
use brant::vmm::EventKind;
use brant::wire::{Hello, Record, ROLE_URGENT};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Listening {
    pair: Pair,
    inc: Arc<Incoming>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Listening {
    fn new(params: &Params) -> Listening {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let inc = incoming(&pair, params);
        inc.listen(&Endpoint::Unix(path.clone())).unwrap();
        Listening {
            pair,
            inc,
            path,
            _dir: dir,
        }
    }

    fn call(&self) -> Raw {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Raw(stream)
    }

    fn say(&self, hello: &Hello) -> Raw {
        let mut raw = self.call();
        raw.say(&Record::Hello(hello.clone()));
        raw
    }

    /// The session of the connections that were greeted, channel 0 first.
    fn session(self, lanes: Vec<Raw>) -> Session {
        let Listening { pair, inc, .. } = self;
        let counts = vec![Counts::default(); lanes.len()];
        Session {
            pair,
            inc,
            lanes,
            counts,
        }
    }

    /// Checks that the session goes on to its end when all of its channels have come.
    fn goes_on(self, mut lanes: Vec<Raw>, what: &str) {
        for lane in &mut lanes {
            let reply = lane.hear_record();
            assert!(
                matches!(reply, Some(Record::HelloReply(_))),
                "{what}: {reply:?}"
            );
        }
        let mut session = self.session(lanes);
        session.layout();
        for channel in 0..session.channels() {
            session.data(channel, (channel as u64 % 39) * STRETCH, 1, 3);
            session.mark(channel, true);
        }
        session.hand_over();
    }
}

#[test]
fn the_channels_of_a_session_are_found_in_any_order() {
    for (round, channels) in [1, 2, 3, 5, 64, 2, 5, 5].into_iter().enumerate() {
        let listening = Listening::new(&quick());
        // Channel 0 comes at any place in the order.
        let order = shuffled((0..channels).collect::<Vec<_>>(), round as u64);
        let mut lanes: Vec<(usize, Raw)> = order
            .into_iter()
            .map(|channel| (channel, listening.say(&hello(channel, channels))))
            .collect();
        lanes.sort_by_key(|(channel, _)| *channel);
        let lanes = lanes.into_iter().map(|(_, raw)| raw).collect();
        listening.goes_on(lanes, &format!("round {round}: {channels} channels"));
    }
}

#[test]
fn hellos_that_come_in_pieces_and_late_are_read_beside_each_other() {
    let mut random = Random(11);
    let listening = Listening::new(&quick());
    let channels = 6;
    let mut lanes: Vec<Raw> = (0..channels).map(|_| listening.call()).collect();
    let hellos = (0..channels).map(|channel| bytes(&Record::Hello(hello(channel, channels))));
    interleaved(&mut lanes, hellos.collect(), &mut random);
    listening.goes_on(lanes, "in pieces");
}

/// Connections that do not belong to the session of `hello(_, 3)`, and the answer that each one
/// gets.
fn strangers() -> Vec<(&'static str, Hello, &'static str)> {
    let changed = |channel, change: fn(&mut Hello)| {
        let mut hello = hello(channel, 3);
        change(&mut hello);
        hello
    };
    vec![
        (
            "another token",
            changed(1, |h| h.token = [1; 16]),
            "expected the token of the session",
        ),
        (
            "another session's first",
            changed(0, |h| h.token = [1; 16]),
            "expected the token",
        ),
        (
            "another number",
            changed(1, |h| h.channels = 4),
            "found one of 4",
        ),
        (
            "other features",
            changed(1, |h| h.features_offered = 3),
            "versions and features",
        ),
        (
            "other versions",
            changed(1, |h| h.version_max = 2),
            "versions and features",
        ),
        (
            "channel 0 again",
            changed(0, |_| ()),
            "channel 0 is there already",
        ),
        (
            "an urgent one",
            changed(1, |h| h.role = ROLE_URGENT),
            "role 1",
        ),
        ("of a role to come", changed(2, |h| h.role = 9), "role 9"),
    ]
}

#[test]
fn whoever_does_not_belong_to_the_session_is_refused_and_does_it_no_harm() {
    for (what, stranger, reason) in strangers() {
        let listening = Listening::new(&quick());
        let first = listening.say(&hello(0, 3));
        let mut refused = listening.say(&stranger);
        let told = refused
            .hear_abort()
            .unwrap_or_else(|| panic!("{what}: it is not told"));
        assert!(told.contains(reason), "{what}: {told}");
        let lanes = vec![
            first,
            listening.say(&hello(1, 3)),
            listening.say(&hello(2, 3)),
        ];
        let inc = Arc::clone(&listening.inc);
        let to = Arc::clone(&listening.pair.to);
        listening.goes_on(lanes, what);
        assert_eq!(inc.stats().error, None, "{what}");
        assert!(
            !to.events(EventKind::Warning).is_empty(),
            "{what}: the VMM is not told"
        );
    }
}

#[test]
fn a_channel_that_is_there_twice_is_refused_the_second_time() {
    let listening = Listening::new(&quick());
    let first = listening.say(&hello(0, 3));
    let mut second = listening.say(&hello(1, 3));
    let reply = second.hear_record();
    assert!(matches!(reply, Some(Record::HelloReply(_))), "{reply:?}");
    let told = listening.say(&hello(1, 3)).hear_abort().unwrap();
    assert!(told.contains("channel 1 is there already"), "{told}");
    let third = listening.say(&hello(2, 3));
    let mut lanes = vec![first, second, third];
    for at in [0, 2] {
        let reply = lanes[at].hear_record();
        assert!(matches!(reply, Some(Record::HelloReply(_))), "{reply:?}");
    }
    let mut session = listening.session(lanes);
    session.layout();
    (0..3).for_each(|channel| session.mark(channel, true));
    session.hand_over();
}

#[test]
fn strangers_that_claim_channels_before_the_session_begins_keep_nobody_out() {
    let listening = Listening::new(&quick());
    // More connections than the destination looks at. Each sends the HELLO of a channel of some
    // session.
    let mut crowd: Vec<Raw> = (0..300)
        .map(|n| {
            let mut claim = hello(1 + n % 2, 3);
            claim.token = [n as u8; 16];
            claim.token[15] = 1;
            let mut raw = listening.call();
            let _ = raw.0.write_all(&bytes(&Record::Hello(claim)));
            raw
        })
        .collect();
    // The session's own second channel comes before channel 0 too.
    let second = listening.say(&hello(1, 3));
    let first = listening.say(&hello(0, 3));
    let third = listening.say(&hello(2, 3));
    listening.goes_on(vec![first, second, third], "a crowd of claims");
    // The connections that the destination looked at when the session began have got an answer.
    let told = crowd.iter_mut().filter_map(Raw::hear_abort).count();
    assert!(told > 0, "none is told");
}

#[test]
fn connections_that_never_come_end_the_migration_in_the_time_limit_and_are_named() {
    let params = Params {
        connect_timeout: Duration::from_millis(400),
        ..quick()
    };
    let listening = Listening::new(&params);
    // The limit begins only when channel 0 has come.
    let early = listening.say(&hello(3, 5));
    std::thread::sleep(Duration::from_millis(100));
    let mut first = listening.say(&hello(0, 5));
    let second = listening.say(&hello(2, 5));
    let begun = Instant::now();
    let error = listening.inc.wait(Some(LONG)).unwrap_err();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    let wanted = "waiting for HELLO on channels 1, 4: the connect timeout of 400 ms ran out";
    assert_eq!(error.message(), wanted);
    assert_eq!(first.hear_abort().as_deref(), Some(wanted));
    drop((early, second));
    assert_eq!(listening.pair.to.calls("run"), 0);
}

#[test]
fn a_source_that_gives_up_while_its_channels_are_gathered_is_heard_at_once() {
    for say in [true, false] {
        let listening = Listening::new(&quick());
        let mut first = listening.say(&hello(0, 4));
        let mut third = listening.say(&hello(2, 4));
        for lane in [&mut first, &mut third] {
            let reply = lane.hear_record();
            assert!(matches!(reply, Some(Record::HelloReply(_))), "{reply:?}");
        }
        if say {
            third.say(&Record::Abort(brant::wire::Abort {
                code: Kind::Refused as i32,
                reason: "no more sockets".into(),
            }));
        }
        drop((first, third));
        let begun = Instant::now();
        let error = listening.inc.wait(Some(LONG)).unwrap_err();
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
        if say {
            let wanted = "the source ended the migration: no more sockets";
            assert_eq!(error.message(), wanted);
        } else {
            let gone = matches!(error.kind(), Kind::PeerGone | Kind::Io);
            assert!(gone, "{error}");
        }
        // The address is free again, so another migration can listen there.
        let again = incoming(&listening.pair, &quick());
        again
            .listen(&Endpoint::Unix(listening.path.clone()))
            .unwrap();
        again.cancel().unwrap();
    }
}

#[test]
fn a_cancel_while_channels_are_gathered_is_prompt() {
    let listening = Listening::new(&quick());
    let mut first = listening.say(&hello(0, 4));
    let reply = first.hear_record();
    assert!(matches!(reply, Some(Record::HelloReply(_))), "{reply:?}");
    let begun = Instant::now();
    listening.inc.cancel().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}
