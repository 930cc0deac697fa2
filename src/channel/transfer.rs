//! Moving the bytes of a list of parts over a connection: the loop of trying, waiting and giving
//! up, and the errors that say why it gave up. The loop is the same for both directions and for
//! every kind of connection.

use super::connection::Channel;
use super::cursor::{Cursor, CALL_BYTES, CUT_PARTS};
use super::io::{Io, Looked};
use super::kind::{Directed, Direction};
use super::pacing::{Grant, Pacer, Turn};
use super::parts::{Part, PartMut};
use crate::error::{Error, Kind, Result};
use crate::runtime::{Cancel, Deadline, Limit, Recall, Wake};
use crate::sys::net::Manner;
use crate::units::Bytes;
use std::io;
use std::time::{Duration, Instant};

/// The pause after a connection was reported ready and moved nothing, as TCP does when it is short
/// of memory. Long enough not to spin.
const BACK_OFF: Duration = Duration::from_millis(1);

/// The longest wait for more than one byte. A slow link brings as little as there is in this time.
const TOGETHER: Duration = Duration::from_millis(10);

/// The longest that a paced sender waits before it asks again.
const PACE: Duration = Duration::from_millis(20);

impl Channel {
    /// Moves the cursor's bytes. When `some` is set, returns once any have moved. When `recall` is
    /// raised, returns early.
    pub(super) fn transfer<P: Directed>(
        &mut self,
        cursor: &mut Cursor<'_, P>,
        io: &Io<'_>,
        some: bool,
        recall: Option<&Recall>,
    ) -> Result<()> {
        let pacer = match P::DIRECTION {
            Direction::Send => self.pacer.clone(),
            Direction::Receive => None,
        };
        let mut turn = pacer.as_deref().map(Pacer::turn);
        self.reap();
        let mut idle_until = None;
        let mut woken = false;
        // Whether a wait for many bytes was in vain.
        let mut slow = false;
        while !cursor.is_done() {
            // The limits are checked between successful calls too: on a fast link no call ever
            // waits.
            self.heed_at(cursor, io)?;
            if recall.is_some_and(Recall::is_raised) {
                return Ok(());
            }
            // Whoever is told something may remove the memory that is being sent. So a send that can
            // be recalled ends first, and goes on from a copy.
            let recallable = P::DIRECTION == Direction::Send && recall.is_some();
            match io.look(|| Some(self.kind.unsent())) {
                Looked::Nothing => {}
                Looked::News if recallable => return Ok(()),
                Looked::News => {
                    io.watch.inspect(|watch| watch.tell());
                }
                Looked::Over(limit) => {
                    let why = format!("{limit} ran out");
                    return Err(self.stopped(Kind::Timeout, cursor, io, &why));
                }
            }
            match self.paced_step(cursor, io, turn.as_mut())? {
                Step::Later(wait) => {
                    let start = Instant::now();
                    pause_until(
                        io.cancel,
                        Deadline::after(wait.min(PACE)).earlier(io.limit.at()),
                    );
                    self.counters.paced += start.elapsed();
                    continue;
                }
                Step::Moved(n) => {
                    cursor.advance(n);
                    if some {
                        return Ok(());
                    }
                    (idle_until, woken, slow) = (None, false, false);
                    continue;
                }
                Step::Again => continue,
                Step::Nothing => {}
            }
            if self.reap() {
                // The event that woke this thread has been handled.
                woken = false;
            }
            // The limit on idleness counts from the first wait after a byte moved.
            let idle = *idle_until.get_or_insert_with(|| io.idle.from_now());
            if idle.expired() {
                let why = match P::DIRECTION {
                    Direction::Send => format!("{idle} ran out: the peer took nothing"),
                    Direction::Receive => format!("{idle} ran out: the peer sent nothing"),
                };
                return Err(self.stopped(Kind::Timeout, cursor, io, &why));
            }
            let until = io.until_look(io.limit.earlier(idle).at());
            let start = Instant::now();
            let wake = if woken {
                recall.inspect(|recall| recall.settle());
                let pause = Deadline::after(BACK_OFF).earlier(until);
                pause_until(io.cancel, pause)
            } else {
                let awaited = match P::DIRECTION {
                    Direction::Receive if slow => self.kind.wait_for_bytes(1),
                    Direction::Receive => self.kind.wait_for_bytes(cursor.awaited()),
                    Direction::Send => 1,
                };
                let until = match awaited {
                    1 => until,
                    _ => until.earlier(Deadline::after(TOGETHER)),
                };
                let wake = self
                    .kind
                    .wait(P::DIRECTION.interest(), recall, io.cancel, until)?;
                slow = awaited > 1 && wake == Wake::TimedOut;
                wake
            };
            self.waited(P::DIRECTION, start.elapsed());
            // After a pause the connection is tried once, and waited for again when nothing moves.
            woken = !woken && wake == Wake::Ready;
        }
        Ok(())
    }

    /// The error of a wait that has run out of `limit`.
    pub(super) fn out_of(&self, limit: Limit, io: &Io<'_>) -> Error {
        let why = format!("{limit} ran out");
        let at = Cursor::<PartMut<'_>>::new(&[]);
        self.stopped(Kind::Timeout, &at, io, &why)
    }

    fn heed_at<P: Directed>(&self, at: &Cursor<'_, P>, io: &Io<'_>) -> Result<()> {
        if io.cancel.is_some_and(Cancel::is_cancelled) {
            return Err(self.stopped(Kind::Cancelled, at, io, "cancelled"));
        }
        if io.limit.expired() {
            let why = format!("{} ran out", io.limit);
            return Err(self.stopped(Kind::Timeout, at, io, &why));
        }
        Ok(())
    }

    /// Checks whether receiving may go on. For a caller that has already read the bytes it would
    /// wait for.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout` when the limit of `io` has passed.
    pub fn heed(&self, io: &Io<'_>) -> Result<()> {
        self.heed_at(&Cursor::<PartMut<'_>>::new(&[]), io)
    }

    /// Moves the bytes that go without waiting. Returns 0 when none do.
    pub(super) fn at_once<P: Directed>(&mut self, parts: &[P]) -> Result<usize> {
        let io = Io::patient(Duration::ZERO);
        let mut cursor = Cursor::new(parts);
        self.reap();
        while !cursor.is_done() {
            match self.step(&mut cursor, &io, CALL_BYTES)? {
                Step::Moved(n) => return Ok(n),
                Step::Again => {}
                Step::Nothing | Step::Later(_) => return Ok(0),
            }
        }
        Ok(0)
    }

    /// Makes one call, with no more bytes than the pacer grants.
    fn paced_step<P: Directed>(
        &mut self,
        cursor: &mut Cursor<'_, P>,
        io: &Io<'_>,
        turn: Option<&mut Turn<'_>>,
    ) -> Result<Step> {
        let Some(turn) = turn else {
            return self.step(cursor, io, CALL_BYTES);
        };
        let want = cursor.left() as u64;
        let granted = match turn.ask(want) {
            Grant::Wait(wait) => return Ok(Step::Later(wait)),
            Grant::Bytes(bytes) => bytes,
        };
        // When all bytes are granted, the call needs no cut.
        let most = match granted < want {
            true => granted as usize,
            false => CALL_BYTES,
        };
        let step = self.step(cursor, io, most);
        let moved = match &step {
            Ok(Step::Moved(n)) => *n as u64,
            _ => 0,
        };
        turn.give_back(granted - moved);
        step
    }

    /// Makes one call, with `most` bytes at most.
    fn step<P: Directed>(
        &mut self,
        cursor: &mut Cursor<'_, P>,
        io: &Io<'_>,
        most: usize,
    ) -> Result<Step> {
        let mut cut = [P::EMPTY; CUT_PARTS];
        let window = cursor.window(most, &mut cut);
        let manner = cursor.manner(window.iter().map(|part| part.len()).sum());
        if manner == Manner::InPlace {
            self.in_flight.make_room()?;
        }
        match P::go(&mut self.kind, window, manner) {
            Ok(0) if P::DIRECTION == Direction::Receive => {
                let why = "the peer closed the connection";
                Err(self.stopped(Kind::PeerGone, cursor, io, why))
            }
            Ok(0) => Ok(Step::Nothing),
            Ok(n) => {
                self.count(P::DIRECTION, n);
                if manner == Manner::InPlace {
                    self.in_flight.sent(n as u64);
                }
                Ok(Step::Moved(n))
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR) => Ok(Step::Again),
                Some(libc::EAGAIN) => Ok(Step::Nothing),
                Some(libc::EFAULT) if cursor.narrow() => Ok(Step::Again),
                Some(libc::ENOBUFS) if manner == Manner::InPlace => {
                    // Memory that may be locked, or room for completions, is used up. Calls that
                    // are complete make room for later ones. The rest of this list is copied.
                    self.reap();
                    self.in_flight.refused();
                    cursor.keep_none();
                    Ok(Step::Again)
                }
                _ => Err(self.failed(cursor, io, e)),
            },
        }
    }

    fn count(&mut self, direction: Direction, bytes: usize) {
        if let Some(pacer) = &self.pacer {
            pacer.moved(match direction {
                Direction::Send => bytes as u64,
                Direction::Receive => 0,
            });
        }
        let counters = &mut self.counters;
        match direction {
            Direction::Send => {
                counters.sent += Bytes(bytes as u64);
                counters.send_calls += 1;
            }
            Direction::Receive => {
                counters.received += Bytes(bytes as u64);
                counters.recv_calls += 1;
            }
        }
    }

    fn waited(&mut self, direction: Direction, time: Duration) {
        match direction {
            Direction::Send => self.counters.send_waited += time,
            Direction::Receive => self.counters.recv_waited += time,
        }
    }

    #[cold]
    fn stopped<P: Directed>(
        &self,
        kind: Kind,
        at: &Cursor<'_, P>,
        io: &Io<'_>,
        why: &str,
    ) -> Error {
        let mut message = format!("{}: {why}", self.doing(P::DIRECTION, io.what));
        if at.moved > 0 {
            message += &format!(" ({} of {} bytes moved)", at.moved, at.total());
        }
        Error::new(kind, message)
    }

    /// Names the transfer in messages.
    fn doing(&self, to: Direction, what: &str) -> String {
        match (to, what) {
            (Direction::Send, "") => format!("sending to {}", self.peer),
            (Direction::Send, what) => format!("sending {what} to {}", self.peer),
            (Direction::Receive, "") => format!("receiving from {}", self.peer),
            (Direction::Receive, what) => format!("waiting for {what} from {}", self.peer),
        }
    }

    /// Counts bytes that were sent by another call than this file's.
    pub(super) fn count_sent(&mut self, bytes: usize) {
        self.count(Direction::Send, bytes);
    }

    /// The error of such a call.
    #[cold]
    pub(super) fn sending_failed(&mut self, io: &Io<'_>, error: io::Error) -> Error {
        self.failed(&Cursor::<Part<'_>>::new(&[]), io, error)
    }

    #[cold]
    fn failed<P: Directed>(&mut self, at: &Cursor<'_, P>, io: &Io<'_>, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => {
                let why = format!("the peer is gone: {error}");
                self.stopped(Kind::PeerGone, at, io, &why)
            }
            Some(libc::EFAULT) => {
                let access = match P::DIRECTION {
                    Direction::Send => "read",
                    Direction::Receive => "written",
                };
                self.fault = Some(at.address());
                let why = format!("memory at {:#x} cannot be {access}", at.address());
                self.stopped(Kind::Memory, at, io, &why)
            }
            // Keep-alive gave up, or a router on the way did.
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
                self.stopped(Kind::Io, at, io, &error.to_string())
            }
            _ => Error::os(self.doing(P::DIRECTION, io.what), error),
        }
    }
}

/// The result of one call.
enum Step {
    /// The call moved so many bytes.
    Moved(usize),
    /// The call moved nothing, and is to be made again at once.
    Again,
    /// The call moved nothing: the connection is not ready.
    Nothing,
    /// The pacer grants nothing for so long.
    Later(Duration),
}

/// Waits until `pause` passes, or for the cancel. Returns `Ready` when the pause has passed.
fn pause_until(cancel: Option<&Cancel>, pause: Deadline) -> Wake {
    let left = pause.remaining().unwrap_or(BACK_OFF);
    match cancel {
        Some(cancel) if cancel.wait(left) => Wake::Cancelled,
        Some(_) => Wake::Ready,
        None => {
            std::thread::sleep(left);
            Wake::Ready
        }
    }
}

#[cfg(test)]
mod tests;
