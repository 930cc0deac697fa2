//! The state of the devices of a guest that leaves, as it is read: rounds of reads while the guest
//! runs, and the reads after the stop. What the devices are told beside that is in
//! [`crate::vmm::held`].
//!
//! **A slow device does not starve pages.** After a round that took 5 ms, pages have at least 5 ms
//! before the next round.

use super::leaving::Leaving;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::common::Migration;
use crate::migrate::switchover::source::State;
use crate::vmm::device::{Left, Registered};
use crate::vmm::held::{call, read};
use crate::vmm::watch::{is_of_a_late_call, Watch};
use crate::wire::{
    Piece, HEADER_LEN, PIECE_BYTES_MAX, PIECE_INITIAL, PIECE_LAST, PIECE_PREFIX, PIECE_STOPPED,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many devices an error lists.
const NAMED: usize = 8;

/// One piece as bytes: header, prefix and state.
#[derive(Debug)]
pub(super) struct PieceBytes(Vec<u8>);

impl PieceBytes {
    pub(super) fn all(&self) -> &[u8] {
        &self.0
    }
}

/// The state of one device as it is read.
struct Stream {
    device: Arc<Registered>,
    left: Left,
    /// Bytes of the running part that were read.
    running: u64,
    /// Bytes of the stopped part that were read.
    stopped: u64,
    /// The device has bytes that are to be loaded before the pause, or had them, and their end was
    /// not sent. A device may have such bytes again: a VFIO device after an aborted pause, say.
    initial: bool,
    /// Where such bytes end that were sent and that the destination has not loaded yet. Until it has,
    /// no further end is sent.
    awaited: Option<u64>,
    /// Bytes of the running part that the destination has taken, by the acknowledgements.
    acknowledged: u64,
}

impl Stream {
    /// Whether the destination has not said that it took all that was sent.
    fn is_untaken(&self) -> bool {
        self.running > self.acknowledged || self.stopped > 0
    }
}

/// The states of all devices as they are read, as the file's description says.
#[derive(Default)]
pub(super) struct Streams {
    list: Vec<Stream>,
    /// The device whose turn it is.
    turn: usize,
    /// When the last round ended, and how long its reads took.
    last: Option<(Instant, Duration)>,
    /// The time in reads, while the guest ran and after the stop.
    pub(super) time: Duration,
    buffer: Vec<u8>,
    growth: Growth,
    /// Ends calls that outlast a time limit; where there are devices.
    watch: Option<Arc<Watch>>,
}

/// How fast the devices' running parts grow.
#[derive(Debug, Default, Clone, Copy)]
struct Growth {
    since: Option<Instant>,
    /// What was left then, and what was read by then.
    left: u64,
    read: u64,
    rate: Option<f64>,
}

impl Growth {
    /// The window of a rate.
    const WINDOW: Duration = Duration::from_millis(200);

    /// At `now`, `left` bytes can be read, and `read` bytes were.
    fn seen(&mut self, now: Instant, left: u64, read: u64) {
        let Some(since) = self.since else {
            *self = Growth {
                since: Some(now),
                left,
                read,
                rate: None,
            };
            return;
        };
        let time = now - since;
        if time < Growth::WINDOW {
            return;
        }
        let grown = (left + (read - self.read)).saturating_sub(self.left);
        let rate = Some(grown as f64 / time.as_secs_f64());
        *self = Growth {
            since: Some(now),
            left,
            read,
            rate,
        };
    }
}

/// What is left of all devices' state.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct AllLeft {
    /// Bytes that are read while the guest runs.
    pub(super) running: u64,
    /// Bytes that are read after the stop.
    pub(super) stopped: u64,
    /// Bytes a second by which the running parts grow, once measured.
    pub(super) growth: Option<f64>,
}

/// Has the guest's devices asked to end their calls when a time limit of the migration passes.
pub(super) fn watch(shared: &Arc<Migration<Leaving, State>>) -> Watch {
    let ours = Arc::clone(shared);
    Watch::new(shared.callbacks(), move || {
        ours.guest.devices.cancel(&ours.callbacks());
    })
}

impl Streams {
    /// The streams of `list`, none of which has begun.
    pub(super) fn of(list: Vec<Arc<Registered>>, watch: Watch) -> Result<Streams> {
        let mut streams = Streams::default();
        if list.is_empty() {
            return Ok(streams);
        }
        streams.watch = Some(Arc::new(watch));
        fallible::reserve(&mut streams.buffer, PIECE_BYTES_MAX, "devices' state")?;
        streams.buffer.resize(PIECE_BYTES_MAX, 0);
        let each = list.into_iter().map(|device| Stream {
            device,
            left: Left::default(),
            running: 0,
            stopped: 0,
            initial: false,
            awaited: None,
            acknowledged: 0,
        });
        streams.list = fallible::collect(each, "devices")?;
        Ok(streams)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What ends calls that outlast a time limit; where there are devices.
    pub(super) fn watch(&self) -> Option<Arc<Watch>> {
        self.watch.clone()
    }

    /// The destination has acknowledged all that was sent.
    pub(super) fn acknowledged(&mut self) {
        for stream in &mut self.list {
            stream.acknowledged = stream.running;
        }
    }

    /// The error of a migration that waited too long for the destination, with the devices whose state
    /// the destination may be loading.
    pub(super) fn naming_untaken(&self, error: Error) -> Error {
        let untaken = self.list.iter().filter(|s| s.is_untaken());
        let mut names: Vec<String> = untaken.map(|s| s.device.to_string()).collect();
        let waited = error.kind() == Kind::Timeout && !is_of_a_late_call(&error);
        if names.is_empty() || !waited {
            return error;
        }
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        Error::new(
            error.kind(),
            format!(
                "{}; the destination has not acknowledged the state of {}, and may be in a call that \
                 loads it",
                error.message(),
                names.join(", ")
            ),
        )
    }

    /// Asks every device how much is left.
    pub(super) fn look(&mut self, vmm: &Callbacks) -> Result<()> {
        for at in 0..self.list.len() {
            self.look_at(at, vmm)?;
        }
        let (left, read) = (self.left().running, self.running());
        self.growth.seen(Instant::now(), left, read);
        Ok(())
    }

    fn look_at(&mut self, at: usize, vmm: &Callbacks) -> Result<()> {
        let stream = &mut self.list[at];
        stream.left = call(vmm, &stream.device, "left", |d| d.left())?;
        stream.initial |= stream.left.initial > 0;
        Ok(())
    }

    /// What is left, as of the last look.
    pub(super) fn left(&self) -> AllLeft {
        let sum = |of: fn(&Stream) -> u64| self.list.iter().map(of).fold(0u64, u64::saturating_add);
        AllLeft {
            running: sum(|s| s.left.running),
            stopped: sum(|s| s.left.stopped.unwrap_or(0)),
            growth: self.growth.rate,
        }
    }

    /// Bytes a second at which devices were read, once enough was.
    pub(super) fn rate(&self) -> Option<f64> {
        let read = self.running() + self.stopped();
        let enough = read >= PIECE_BYTES_MAX as u64 && self.time > Duration::ZERO;
        enough.then(|| read as f64 / self.time.as_secs_f64())
    }

    /// Bytes that were read while the guest ran.
    pub(super) fn running(&self) -> u64 {
        self.list.iter().map(|s| s.running).sum()
    }

    /// Bytes that were read after the stop.
    pub(super) fn stopped(&self) -> u64 {
        self.list.iter().map(|s| s.stopped).sum()
    }

    /// The first device whose state must be at the destination before the pause and is not.
    pub(super) fn not_ready(&self) -> Option<String> {
        let waits = self
            .list
            .iter()
            .find(|s| s.initial || s.awaited.is_some())?;
        Some(match waits.initial {
            true => format!(
                "{} has {} bytes (`initial`) that the destination must load before the pause",
                waits.device, waits.left.initial
            ),
            false => format!(
                "the destination has not loaded the initial state of {}",
                waits.device
            ),
        })
    }

    /// Whether a device has bytes that the destination needs before the pause, and that can be sent
    /// now.
    pub(super) fn not_read(&self) -> bool {
        self.list.iter().any(|s| s.initial && s.awaited.is_none())
    }

    /// The destination has loaded the running part of a device up to `bytes`.
    pub(super) fn loaded(&mut self, number: u32, bytes: u64) -> Result<()> {
        let expected = |s: &&mut Stream| s.awaited == Some(bytes);
        let Some(stream) = self.list.get_mut(number as usize).filter(expected) else {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "DEVICE_LOADED: the destination has loaded {bytes} bytes of device {number}, \
                     which were not sent as an initial part"
                ),
            ));
        };
        stream.awaited = None;
        Ok(())
    }

    /// Whether a further round may begin now: pages had at least as long as the last round.
    pub(super) fn may_read(&self) -> bool {
        self.last.is_none_or(|(at, took)| at.elapsed() >= took)
    }

    /// One round: reads the next device that has something, at most `most` bytes. `None` when no
    /// device has anything now.
    pub(super) fn round(&mut self, most: usize, vmm: &Callbacks) -> Result<Option<PieceBytes>> {
        let begun = Instant::now();
        let read = self.read_one(most.clamp(1, PIECE_BYTES_MAX), vmm);
        let took = begun.elapsed();
        self.time += took;
        self.last = Some((Instant::now(), took));
        read
    }

    fn read_one(&mut self, most: usize, vmm: &Callbacks) -> Result<Option<PieceBytes>> {
        for _ in 0..self.list.len() {
            let at = self.turn;
            self.turn = (at + 1) % self.list.len();
            self.look_at(at, vmm)?;
            let stream = &mut self.list[at];
            let buffer = &mut self.buffer[..most];
            let read = match stream.left.running {
                0 => 0,
                _ => read(vmm, &stream.device, "read_running", buffer, |d, b| {
                    d.read_running(b)
                })?,
            };
            let offset = stream.running;
            stream.running += read as u64;
            if read > 0 {
                self.look_at(at, vmm)?;
            }
            let stream = &mut self.list[at];
            let mut flags = 0;
            if stream.initial && stream.awaited.is_none() && stream.left.initial == 0 {
                stream.initial = false;
                stream.awaited = Some(stream.running);
                flags = PIECE_INITIAL;
            }
            if read > 0 || flags != 0 {
                let data = &self.buffer[..read];
                return piece(at, flags, offset, data).map(Some);
            }
        }
        Ok(None)
    }

    /// The pieces that end the running parts. Nothing is read of them any more.
    pub(super) fn running_ends(&self) -> impl Iterator<Item = Result<PieceBytes>> + '_ {
        let each = self.list.iter().enumerate();
        each.map(|(at, stream)| piece(at, PIECE_LAST, stream.running, &[]))
    }

    /// Reads the next bytes of the stopped parts, one device after the other. `None` at the end of
    /// all.
    pub(super) fn read_stopped(&mut self, vmm: &Callbacks) -> Result<Option<PieceBytes>> {
        let Some(stream) = self.list.get_mut(self.turn) else {
            return Ok(None);
        };
        let begun = Instant::now();
        let buffer = &mut self.buffer[..];
        let read = read(vmm, &stream.device, "read_stopped", buffer, |d, b| {
            d.read_stopped(b)
        });
        self.time += begun.elapsed();
        let (read, at, offset) = (read?, self.turn, stream.stopped);
        stream.stopped += read as u64;
        let mut flags = PIECE_STOPPED;
        if read == 0 {
            flags |= PIECE_LAST;
            stream.left = Left::default();
            self.turn += 1;
        }
        piece(at, flags, offset, &self.buffer[..read]).map(Some)
    }

    /// The devices stand still, and their stopped parts are read from the first device on.
    pub(super) fn stops(&mut self) {
        self.turn = 0;
    }

    /// The pause was aborted: rounds go on.
    pub(super) fn go_on(&mut self) {
        self.turn = 0;
        self.growth = Growth::default();
    }
}

fn piece(at: usize, flags: u32, offset: u64, data: &[u8]) -> Result<PieceBytes> {
    let piece = Piece {
        number: at as u32,
        flags,
        offset,
        length: data.len() as u32,
    };
    let head = piece.encode(data)?;
    let mut bytes = Vec::new();
    fallible::reserve(
        &mut bytes,
        HEADER_LEN + PIECE_PREFIX + data.len(),
        "a device's state",
    )?;
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(data);
    Ok(PieceBytes(bytes))
}

#[cfg(test)]
mod tests;
