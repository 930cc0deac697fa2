//! Descriptors that travel with the bytes of a unix socket: sending one with a record, and keeping
//! those that a peer attaches until their records are read.
//!
//! A channel keeps what a peer attaches only while its user says so ([`Channel::keep_descriptors`]).
//! At any other time the kernel closes attached descriptors, because a read has no room for them. So
//! a peer cannot fill this process's table of descriptors.
//!
//! The kernel ends a read behind the bytes that a descriptor came with. So descriptors come out of
//! this queue in the order of the bytes that they were sent with.

use super::connection::Channel;
use super::io::Io;
use super::kind::Direction;
use super::parts::Part;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Interest, Wake};
use std::os::fd::{BorrowedFd, OwnedFd};

impl Channel {
    /// Whether this connection can carry descriptors: it is a unix socket.
    pub fn carries_descriptors(&self) -> bool {
        self.kind.carries_descriptors()
    }

    /// From now on descriptors that the peer attaches are kept, or are closed by the kernel.
    pub fn keep_descriptors(&mut self, keep: bool) {
        self.kind.keep_descriptors(keep);
    }

    /// The descriptor that came with the record which was just read.
    ///
    /// # Errors
    /// `Protocol` when none came, and when more came than records that take one. `NoMemory` cannot
    /// be told from the latter: the kernel drops descriptors also when this process may have no
    /// more, and the message says so.
    pub fn take_descriptor(&mut self) -> Result<OwnedFd> {
        let attached = self.kind.attached();
        let excess = attached
            .as_ref()
            .is_some_and(|attached| attached.has_excess());
        let first = attached.and_then(|attached| attached.pop());
        match first {
            Some(descriptor) if !excess => Ok(descriptor),
            None if !excess => Err(Error::new(
                Kind::Protocol,
                "expected a descriptor with this record, found none",
            )),
            _ => Err(excess_error()),
        }
    }

    /// Checks that no descriptor waits which no record has taken.
    ///
    /// # Errors
    /// `Protocol`.
    pub fn check_no_descriptor(&mut self) -> Result<()> {
        match self.kind.attached() {
            Some(attached) if attached.has_excess() || !attached.is_empty() => Err(excess_error()),
            _ => Ok(()),
        }
    }

    /// Sends `record` whole, and `descriptor` with its first byte. The peer gets a duplicate.
    ///
    /// # Errors
    /// Those of [`Channel::send`]; `Unsupported` where the connection carries no descriptors.
    pub fn send_with_descriptor(
        &mut self,
        record: &[u8],
        descriptor: BorrowedFd<'_>,
        io: &Io<'_>,
    ) -> Result<()> {
        self.check(Direction::Send)?;
        let idle = io.idle.from_now();
        let sent = loop {
            if let Some(cancel) = io.cancel {
                cancel.check(io.what)?;
            }
            match self.kind.send_with_descriptor(record, descriptor) {
                Ok(sent) => break sent,
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                // The kernel allows only so many descriptors on their way (unix(7)): they wait like
                // bytes that find no room, until the peer reads.
                Err(e) if e.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                Err(e) => return Err(self.sending_failed(io, e)),
            }
            let until = io.limit.earlier(idle);
            if until.expired() {
                let message = format!("sending {} to {}: {until} ran out", io.what, self.peer());
                return Err(Error::new(Kind::Timeout, message));
            }
            match self.wait(Interest::Write, io.cancel, until.at())? {
                Wake::Ready | Wake::Cancelled | Wake::TimedOut => {}
            }
        };
        self.count_sent(sent);
        let rest = record.get(sent..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        // Marks the channel as broken when it fails.
        self.send_rest(&[Part::bytes(rest)], io)
    }
}

fn excess_error() -> Error {
    Error::new(
        Kind::Protocol,
        "expected one descriptor with each record that announces one and none with others, found \
         more; or this process may not have so many descriptors (RLIMIT_NOFILE)",
    )
}

#[cfg(test)]
mod tests;
