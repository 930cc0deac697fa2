//! Pages of several channels that are with the kernel, because somebody on the way takes nothing
//! more: the removal of their block, and the end of one of the channels.

use crate::support::deciders::Never;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Outgoing, Params};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const CHANNELS: u32 = 3;

/// Bytes of a channel after which the way takes nothing more: some pages have arrived by then.
const TAKES: usize = 256 << 10;

/// What the ways have come to.
#[derive(Default)]
struct Ways {
    stalled: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Ways {
    /// Waits on a way that takes nothing more, until all go on.
    fn stall(&self) {
        let mut now = self.stalled.lock().unwrap();
        now.0 += 1;
        self.changed.notify_all();
        let _on = self.changed.wait_while(now, |now| !now.1).unwrap();
    }

    fn wait_for_all(&self) {
        let now = self.stalled.lock().unwrap();
        let all = |now: &mut (usize, bool)| now.0 < CHANNELS as usize;
        let (_now, waited) = self.changed.wait_timeout_while(now, LONG, all).unwrap();
        assert!(!waited.timed_out(), "not every channel stalls");
    }

    fn go_on(&self) {
        self.stalled.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Passes bytes on, and stalls once after [`TAKES`] of them if there are `ways`.
fn pass(mut from: TcpStream, mut to: TcpStream, ways: Option<Arc<Ways>>) {
    let (mut room, mut passed, mut ways) = (vec![0; 16 << 10], 0, ways);
    while let Ok(got @ 1..) = from.read(&mut room) {
        if to.write_all(&room[..got]).is_err() {
            break;
        }
        passed += got;
        if passed >= TAKES {
            if let Some(ways) = ways.take() {
                ways.stall();
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Starts a migration over channels whose ways stall, and calls `then` when all of them do. `then`
/// gets the ends of the ways that the source's connections lead to.
fn with_pages_at_the_kernel(pair: &Pair, then: impl FnOnce(&Outgoing, &Ways, &[TcpStream])) {
    pair.source.fill(1);
    let params = Params {
        channels: CHANNELS,
        zero_copy: true,
        ..Params::default()
    };
    let ways = Arc::new(Ways::default());
    let (out, inc) = (outgoing(pair, &params), incoming(pair, &params));
    let (mut near, mut far, mut ends): (Vec<OwnedFd>, Vec<OwnedFd>, Vec<TcpStream>) =
        Default::default();
    std::thread::scope(|scope| {
        for _ in 0..CHANNELS {
            let ((source, first), (last, destination)) = (connected(), connected());
            near.push(source.into());
            far.push(destination.into());
            ends.push(first.try_clone().unwrap());
            let back = (last.try_clone().unwrap(), first.try_clone().unwrap());
            let ways = Arc::clone(&ways);
            scope.spawn(move || pass(first, last, Some(ways)));
            scope.spawn(move || pass(back.0, back.1, None));
        }
        inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
        out.start_with(ConnectTo::ConnectedAll(near), Box::new(Never))
            .unwrap();
        ways.wait_for_all();
        then(&out, &ways, &ends);
        ways.go_on();
        let _ = out.cancel();
        let _ = inc.wait(Some(LONG));
        for end in &ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
    pair.assert_runs_on("pages at the kernel");
}

#[test]
fn the_removal_of_a_block_waits_for_the_kernel_on_every_channel_and_ends_when_they_go_on() {
    let pair = Pair::new(&[ram("ram", 64 << 10), ram("other", 512)]);
    with_pages_at_the_kernel(&pair, |out, ways, _| {
        let memory = Arc::clone(&pair.source.memory);
        let block = memory.find_block("ram").unwrap();
        let (tell, told) = channel();
        let remover = std::thread::spawn(move || tell.send(memory.remove_block(block)).unwrap());
        let early = told.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "the kernel still reads: {early:?}");
        ways.go_on();
        told.recv_timeout(LONG).unwrap().unwrap();
        remover.join().unwrap();
        out.cancel().unwrap();
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    });
}

#[test]
fn a_channel_that_breaks_lets_go_of_what_all_channels_have_at_the_kernel() {
    let pair = Pair::new(&[ram("ram", 64 << 10)]);
    with_pages_at_the_kernel(&pair, |out, _, ends| {
        let begun = Instant::now();
        // The way of channel 1 ends with unread bytes, so its connection is reset.
        ends[1].shutdown(Shutdown::Both).unwrap();
        let error = out.wait(Some(LONG)).unwrap_err();
        let broke = matches!(error.kind(), Kind::PeerGone | Kind::Io | Kind::Refused);
        assert!(broke, "{error}");
        if error.kind() != Kind::Refused {
            let named = error.message().starts_with("channel 1 (descriptor ");
            assert!(named, "{error}");
        }
        // Nothing is with the kernel any more, although the other ways still take nothing.
        let memory = &pair.source.memory;
        let block = memory.find_block("ram").unwrap();
        memory.remove_block(block).unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}
