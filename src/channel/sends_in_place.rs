//! Sending in place: the kernel reads memory while it sends it, and says when it is done
//! (`MSG_ZEROCOPY`). The channel's verbs for that; what is on its way is in `in_flight`.
//!
//! Pages of a guest that runs may be written while they are on their way. Then they arrive as they
//! were, as they are or torn, as with a copy that is made while the guest writes; the dirty log has
//! the write, and the page goes again. Memory that is reused for something else must not be on its
//! way any more: whoever sends hands over what keeps it ([`Keep`]).

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
/// what it was given.
const LET_GO: Duration = Duration::from_millis(20);

impl Channel {
    /// From now on [`Channel::send_held`] sends in place, if the kernel can on this kind of socket.
    pub fn send_in_place(&mut self) {
        let copying = match self.kind.allow_in_place() {
            Ok(()) => Copying::No,
            Err(_) => Copying::Unsupported,
        };
        self.in_flight.set(copying);
    }

    /// What became of sends in place.
    pub fn zero_copy(&self) -> ZeroCopy {
        self.in_flight.so_far()
    }

    /// Whether [`Channel::send_held`] would send in place now.
    pub fn sends_in_place(&self) -> bool {
        self.in_flight.is_on()
    }

    /// [`Channel::send_unless`] of parts of which some stay as they are until the kernel has read
    /// them: those for which `held`, which is as long, is true. `keep` is dropped when the kernel has,
    /// also after an error. All other parts are copied.
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

    /// Hears which sends in place are complete, without waiting; whether any were.
    pub fn reap(&mut self) -> bool {
        let mut any = false;
        while self.in_flight.any() {
            match self.kind.said() {
                Ok(Said::Complete(completion)) => {
                    self.in_flight.complete(completion);
                    any = true;
                }
                Ok(Said::Other) => {}
                // A connection that has failed says so where it is used.
                Ok(Said::Nothing) | Err(_) => break,
            }
        }
        any
    }

    /// Waits until the kernel reads no memory any more that was sent in place.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout` when the limit of `io`, or its limit on idleness, has run out.
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
            if idle.expired() {
                let what = format!(
                    "{idle} ran out: the kernel still sends memory to {}",
                    self.peer()
                );
                return Err(Error::new(Kind::Timeout, what));
            }
            let until = io.limit.earlier(idle).at();
            let woken = self.kind.wait(Interest::Errors, None, io.cancel, until)?;
            if woken == Wake::Ready && !self.reap() {
                // The connection has failed, which wakes every wait.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Gives up what is on its way: the connection is reset, and its memory is let go of.
    pub fn let_go(&mut self) {
        if !self.in_flight.any() {
            return;
        }
        let _ = self.kind.reset();
        let io = Io::patient(LET_GO).within(Deadline::after(LET_GO));
        // A device that still reads holds the pages themselves: unmapping them is safe.
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
