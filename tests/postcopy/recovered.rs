//! The destination of a postcopy that gets new connections.

use super::scripted::{postcopy_hello, word, Scripted, COMPLETING, INTERRUPTED};
use crate::support::memory::{ram, shared, PAGE};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, DestinationState, Endpoint, Params};
use brant::wire::{self, Record};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

const PAGES: u64 = 1100;

/// A destination that runs the guest without the pages of `missing`.
fn running(missing: &[Range<u64>], channels: u16) -> Scripted {
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), channels, &Params::default());
    source.precopy(missing);
    source.switch(missing);
    source.hand_over();
    source
}

/// Waits until the migration has been interrupted `times` times.
fn interrupted(source: &Scripted, times: usize) {
    let begun = std::time::Instant::now();
    loop {
        let states = source.to.states();
        let count = states.iter().filter(|s| *s == INTERRUPTED).count();
        if count >= times && source.incoming.state() == DestinationState::Interrupted {
            return;
        }
        assert!(begun.elapsed() < LONG, "{states:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_destination_says_what_it_lacks_asks_again_and_takes_the_rest() {
    let mut source = running(&[5..9, 512..600], 2);
    source.bulk[1].pages(512..590);
    source.bulk[1].marked(0);
    // Asked for, and never answered.
    let reader = source.reader([7, 595]);
    assert_eq!(source.urgent.asked(), [7..8]);
    source.lose();
    source.to.wait_state(INTERRUPTED);
    source.reconnect(1);
    assert_eq!(source.told(1), [5..9, 590..600]);
    assert_eq!(source.urgent.asked(), [7..8]);
    source.urgent.pages(7..8);
    source.urgent.answer_until(595);
    assert_eq!(reader.join().unwrap(), [7, 595].map(word));
    source.bulk[0].pages(5..9);
    source.bulk[1].pages(590..600);
    source.finish();
    source.assert_whole(&[]);
    assert_eq!(source.incoming.state(), DestinationState::Running);
    assert_eq!(source.to.calls("run"), 1);
    let stats = source.incoming.stats();
    assert_eq!((stats.recoveries, stats.missing_pages), (1, 0));
}

#[test]
fn a_recovery_that_breaks_can_be_recovered_and_an_older_one_is_refused() {
    let spec = shared("ram", PAGES as usize);
    let missing = [5..9, 512..600];
    let mut source = Scripted::begin(&spec, 1, &Params::default());
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    source.lose();
    source.to.wait_state(INTERRUPTED);
    // Broken before the destination has said anything, and behind its description.
    source.reconnect(1);
    source.lose();
    interrupted(&source, 2);
    source.reconnect(2);
    assert_eq!(source.told(2), missing);
    source.bulk[0].pages(512..550);
    source.bulk[0].marked(0);
    source.lose();
    interrupted(&source, 3);
    for old in [1, 2] {
        source.reconnect(old);
        let reason = source.bulk[0].raw.hear_abort();
        drop(reason);
        interrupted(&source, 3 + old as usize);
    }
    source.reconnect(7);
    assert_eq!(source.told(7), [5..9, 550..600]);
    source.bulk[0].pages(5..9);
    source.bulk[0].pages(550..600);
    source.finish();
    source.assert_whole(&[]);
}

#[test]
fn the_guest_keeps_what_it_wrote_before_and_during_a_recovery() {
    let mut source = running(&[5..9], 1);
    source.bulk[0].pages(5..7);
    source.bulk[0].marked(0);
    source.ram.word(5 * PAGE).store(1, Ordering::SeqCst);
    source.lose();
    source.to.wait_state(INTERRUPTED);
    source.ram.word(6 * PAGE).store(2, Ordering::SeqCst);
    source.reconnect(1);
    assert_eq!(source.told(1), [7..9]);
    // A source that sends more than it was asked for changes nothing.
    source.bulk[0].pages(5..9);
    source.finish();
    source.incoming.wait(Some(LONG)).unwrap();
    let now = [5, 6].map(|page| {
        let first = source.ram.word(page * PAGE);
        first.swap(word(page as u64), Ordering::SeqCst)
    });
    assert_eq!(now, [1, 2]);
    source.assert_whole(&[]);
}

#[test]
fn a_recovery_is_refused_while_nothing_is_lost_and_when_the_pages_are_given_up() {
    let mut source = running(&[5..9], 1);
    source.to.wait_state(COMPLETING);
    let endpoint = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
    let error = source.incoming.recover_at(&endpoint).unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    source.lose();
    source.to.wait_state(INTERRUPTED);
    source.incoming.give_up().unwrap();
    let error = source.incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::PeerGone, "{error}");
    let (_raw, fd) = crate::support::peer::Raw::pair();
    let error = source
        .incoming
        .recover(AcceptFrom::Connected(fd))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
}

#[test]
fn a_wrong_number_of_sockets_interrupts_again() {
    let mut source = running(&[5..9], 2);
    source.lose();
    source.to.wait_state(INTERRUPTED);
    let (_raw, fd) = crate::support::peer::Raw::pair();
    source.incoming.recover(AcceptFrom::Connected(fd)).unwrap();
    interrupted(&source, 2);
    source.reconnect(1);
    assert_eq!(source.told(1), [5..9]);
    source.bulk[0].pages(5..9);
    source.finish();
    source.assert_whole(&[]);
}

/// What a source sends first on a connection of recovery `epoch`.
fn opening(channel: u16, epoch: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    Record::Hello(postcopy_hello(channel, 1))
        .encode(&mut bytes)
        .unwrap();
    Record::Recover(wire::Recover { epoch })
        .encode(&mut bytes)
        .unwrap();
    bytes
}

/// A destination that lacks four pages, has lost its connections and listens for new ones, and where.
fn listening() -> (Scripted, SocketAddr) {
    let mut source = running(&[5..9], 1);
    source.lose();
    source.to.wait_state(INTERRUPTED);
    let endpoint = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
    match source.incoming.recover_at(&endpoint).unwrap() {
        Endpoint::Tcp(at) => (source, at),
        other => panic!("{other}"),
    }
}

#[test]
fn at_a_listener_a_newer_recovery_takes_the_place_of_an_older_one() {
    let (mut source, at) = listening();
    // The older recovery has one of its connections here, and is gone.
    let mut old = TcpStream::connect(at).unwrap();
    old.set_read_timeout(Some(LONG)).unwrap();
    old.write_all(&opening(0, 1)).unwrap();
    let mut reply = [0; 32];
    old.read_exact(&mut reply).unwrap();
    // The newer one connects, and the older one is let go of.
    let mut urgent = TcpStream::connect(at).unwrap();
    urgent.write_all(&opening(1, 2)).unwrap();
    // By a reset, as long as it has not read its reply.
    let _ = old.read_to_end(&mut Vec::new());
    let mut first = TcpStream::connect(at).unwrap();
    first.write_all(&opening(0, 2)).unwrap();
    for connection in [&mut urgent, &mut first] {
        connection.set_read_timeout(Some(LONG)).unwrap();
        connection.read_exact(&mut reply).unwrap();
    }
    drop((urgent, first));
    interrupted(&source, 2);
    source.reconnect(3);
    assert_eq!(source.told(3), [5..9]);
    source.bulk[0].pages(5..9);
    source.finish();
    source.assert_whole(&[]);
}

#[test]
fn at_a_listener_the_same_channel_of_a_newer_recovery_takes_the_place_of_a_lost_one() {
    let (mut source, at) = listening();
    let mut reply = [0; 32];
    // The links of two tries are lost when each has one connection here: the same one. The third has all.
    let mut here = Vec::new();
    for (channel, epoch) in [(0, 1), (0, 2), (0, 3), (1, 3)] {
        let mut connection = TcpStream::connect(at).unwrap();
        connection.set_read_timeout(Some(LONG)).unwrap();
        connection.write_all(&opening(channel, epoch)).unwrap();
        connection.read_exact(&mut reply).unwrap();
        assert_eq!(
            &reply[..5],
            b"BRNT\x02",
            "HELLO_REPLY to {channel} of {epoch}"
        );
        here.push(connection);
    }
    drop(here);
    interrupted(&source, 2);
    source.reconnect(4);
    assert_eq!(source.told(4), [5..9]);
    source.bulk[0].pages(5..9);
    source.finish();
    source.assert_whole(&[]);
}
