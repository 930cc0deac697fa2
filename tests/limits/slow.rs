//! Peers that are slow in one of three manners, time limits of which one is short, and the expected
//! end of a migration. For `source` and `destination`.

use brant::error::{Error, Kind};
use brant::migrate::Params;
use brant::wire::Record;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const MS: Duration = Duration::from_millis(1);
/// The limit that should run out. The place that a test is about must be reached before.
pub const SHORT: Duration = Duration::from_millis(1000);
/// The same for the whole migration.
pub const TOTAL: Duration = Duration::from_millis(3000);
/// All other limits.
pub const NEVER: Duration = Duration::from_secs(600);
/// Far more than the short limits on a busy machine, and far less than the others.
pub const SOON: Duration = Duration::from_secs(25);

/// The manner in which a peer is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Sends and takes nothing.
    Silent,
    /// Now and then sends a byte of the right answer, and takes some bytes.
    Trickles,
    /// Sends KEEPALIVE, and takes nothing.
    Chatters,
}
pub use Manner::{Chatters, Silent, Trickles};

/// The parameter that is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    Connect,
    Io,
    /// Both of them: between two records a destination waits for the longer one.
    IoAndSwitchover,
    Switchover,
    /// The source's, which tells it to the destination.
    Handover,
    Total,
    None,
}

impl Short {
    pub fn params(self) -> Params {
        let is = |short: &[Short]| match self {
            _ if !short.contains(&self) => NEVER,
            Short::Total => TOTAL,
            _ => SHORT,
        };
        Params {
            switchover_bandwidth: Some(1 << 30),
            connect_timeout: is(&[Short::Connect]),
            io_timeout: is(&[Short::Io, Short::IoAndSwitchover]),
            switchover_timeout: is(&[Short::Switchover, Short::IoAndSwitchover]),
            handover_timeout: is(&[Short::Handover]),
            total_timeout: Some(is(&[Short::Total])),
            incoming_timeout: Some(is(&[Short::Total])),
            ..Params::default()
        }
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Short::Connect => "the connect timeout of 1 s ran out",
            Short::Io | Short::IoAndSwitchover => "the I/O timeout of 1 s ran out",
            Short::Switchover => "the switchover timeout of 1 s ran out",
            Short::Handover => "the hand-over timeout and one second, counted from READY, of 2 s",
            Short::Total => "total timeout of 3 s ran out",
            Short::None => "",
        }
    }
}

/// The limit of a record includes time for its bytes.
pub const RECORD: &str =
    "the limit on one record (the I/O timeout, and its bytes at 64 KiB/s) of 1.";

pub fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).unwrap();
    bytes
}

/// Stays in its manner until the other side closes or `stop`. It sends `right` a byte at a time.
pub fn stay(socket: &UnixStream, manner: Manner, right: &[u8], reads: bool, stop: &AtomicBool) {
    socket.set_read_timeout(Some(MS * 5)).unwrap();
    socket.set_write_timeout(Some(MS * 50)).unwrap();
    let keepalive = bytes(&Record::Keepalive);
    let mut socket = socket;
    // Without the last byte, because the complete answer would end the wait.
    let mut right = right[..right.len().saturating_sub(1)].iter();
    while !stop.load(Ordering::SeqCst) {
        match manner {
            Silent => {}
            Trickles if reads => {
                let _ = socket.read(&mut [0; 2000]);
            }
            Trickles => {
                if let Some(byte) = right.next() {
                    let _ = socket.write_all(&[*byte]);
                }
            }
            Chatters => {
                if socket.write_all(&keepalive).is_err() {
                    // No room or no peer. A part of a record may have been sent.
                    break;
                }
            }
        }
        std::thread::sleep(MS * 10);
    }
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(MS);
    }
}

/// The result, and how long it took.
pub struct End {
    pub error: Error,
    pub took: Duration,
}

impl End {
    pub fn check(&self, what: &str, kinds: &[Kind], awaited: &str, limit: &str) {
        let End { error, took } = self;
        println!("{what}: {took:?}: {error}");
        assert!(
            kinds.contains(&error.kind()),
            "{what}: {:?} {error}",
            error.kind()
        );
        assert!(
            error.message().contains(awaited),
            "{what}: {awaited} in: {error}"
        );
        assert!(
            error.message().contains(limit),
            "{what}: {limit} in: {error}"
        );
        assert!(*took < SOON, "{what}: {took:?}");
    }
}
/// The promise is a tenth of a second.
pub const PROMPT: Duration = Duration::from_secs(2);

pub fn prompt(what: &str, cancel: impl FnOnce()) {
    let begun = Instant::now();
    cancel();
    let took = begun.elapsed();
    println!("cancelled, {what}: {took:?}");
    assert!(took < PROMPT, "{what}: {took:?}");
}
