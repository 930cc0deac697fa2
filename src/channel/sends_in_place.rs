//! Sending in place (`MSG_ZEROCOPY`): the kernel reads memory while it sends it, and reports when
//! it is done. This file has the channel's verbs for that. `in_flight` knows the calls that are on
//! their way.
//!
//! Pages of a running guest may be written while they are on their way. The peer then gets the old
//! contents, the new ones or a mix, as with a copy that is made while the guest writes. The dirty
//! log has the write, so the page is sent again. Memory may be reused for something else only when
//! it is no longer on its way. So the caller hands over a value that keeps the memory ([`Keep`]).

use super::connection::Channel;
use super::cursor::Cursor;
use super::in_flight::{Copying, Keep, ZeroCopy};
use super::io::Io;
use super::parts::Part;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Deadline, Interest, Recall, Wake};
use crate::sys::errqueue::Said;
use std::time::Duration;

/// How long a connection that was reset may take to let go of memory: a device still has to finish
/// the packets that it was given.
const LET_GO: Duration = Duration::from_millis(20);

impl Channel {
    /// Makes [`Channel::send_held`] send in place from now on, if the kernel can on this kind of
    /// socket.
    pub fn send_in_place(&mut self) {
        let copying = match self.kind.allow_in_place() {
            Ok(()) => Copying::No,
            Err(_) => Copying::Unsupported,
        };
        self.in_flight.set(copying);
    }

    /// Has this connection and `other` find out together whether sends in place pay, if both go
    /// between the same two addresses. Returns whether they do. Called before the first send.
    pub fn learns_with(&mut self, other: &Channel) -> bool {
        let same_way = self.kind.way() == other.kind.way();
        if same_way {
            self.in_flight.learn_from(other.in_flight.findings());
        }
        same_way
    }

    /// What became of sends in place so far.
    pub fn zero_copy(&self) -> ZeroCopy {
        self.in_flight.so_far()
    }

    /// Whether [`Channel::send_held`] would send in place now.
    pub fn sends_in_place(&self) -> bool {
        self.in_flight.is_on()
    }

    /// [`Channel::send_unless`] for parts of which some stay unchanged until the kernel has read
    /// them: those whose entry in `held` is true. `held` is as long as the list of parts. All other
    /// parts are copied. `keep` is dropped when the kernel has read the held parts, also after an
    /// error.
    ///
    /// # Errors
    /// As for [`Channel::send`].
    pub fn send_held(
        &mut self,
        parts: &[Part<'_>],
        held: &[bool],
        keep: Keep,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<u64> {
        let before = self.in_flight.position();
        let cursor = match self.in_flight.is_on() {
            true => Cursor::keeping(parts, held),
            false => Cursor::new(parts),
        };
        let sent = self.send_from(cursor, Some(recall), io);
        let after = self.in_flight.position();
        if after > before {
            self.in_flight.keep(after, keep);
        }
        sent
    }

    /// Whether the kernel may still read memory that was sent in place.
    pub fn is_sending_in_place(&self) -> bool {
        self.in_flight.any()
    }

    /// Reads which sends in place are complete, without waiting. Returns whether any were.
    pub fn reap(&mut self) -> bool {
        let mut any = false;
        while self.in_flight.any() {
            match self.kind.said() {
                Ok(Said::Complete(completion)) => {
                    self.in_flight.complete(completion);
                    any = true;
                }
                Ok(Said::Other) => {}
                // The error of a failed connection is reported when the connection is next used.
                Ok(Said::Nothing) | Err(_) => break,
            }
        }
        any
    }

    /// Waits until the kernel no longer reads any memory that was sent in place.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout` when the limit of `io`, or its limit on idleness, has passed.
    pub fn land(&mut self, io: &Io<'_>) -> Result<()> {
        let mut idle = io.idle.from_now();
        loop {
            if self.reap() {
                idle = io.idle.from_now();
            }
            if !self.in_flight.any() {
                return Ok(());
            }
            self.heed(io)?;
            if let Some(limit) = io.look_and_tell(|| Some(self.kind.unsent())) {
                return Err(self.out_of(limit, io));
            }
            if idle.expired() {
                let what = format!(
                    "{idle} ran out: the kernel still sends memory to {}",
                    self.peer()
                );
                return Err(Error::new(Kind::Timeout, what));
            }
            let until = io.until_look(io.limit.earlier(idle).at());
            let woken = self.kind.wait(Interest::Errors, None, io.cancel, until)?;
            if woken == Wake::Ready && !self.reap() {
                // The connection has failed, and a failed connection ends every poll at once.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Gives up the sends that are on their way: resets the connection, so that the kernel lets go
    /// of their memory.
    pub fn let_go(&mut self) {
        if !self.in_flight.any() {
            return;
        }
        let _ = self.kind.reset();
        let io = Io::patient(LET_GO).within(Deadline::after(LET_GO));
        // A device that still reads holds the pages themselves, so unmapping them is safe.
        let _ = self.land(&io);
        self.in_flight.forget();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests;
