//! Whole lines on a descriptor of any kind, without waiting for its reader.
//!
//! The descriptor's open file is the VMM's too, so it is not made non-blocking: that would change the
//! VMM's own writes. When poll says that there is room, a write of at most `PIPE_BUF` bytes does not wait,
//! by pipe(7), unless somebody else has filled the pipe in between. A file on a disk may take its time, which
//! is the recording's thread's alone, and so may a terminal.

use super::lines::Line;
use super::params::Recorded;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::{wait_ready, Deadline, Interest, Wake};
use crate::sys::pipe;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Bytes of lines that may wait. More are dropped, as whole lines.
const WAITING_MAX: usize = 256 << 10;
/// The most that is written at once: `PIPE_BUF`.
const AT_ONCE: usize = 4096;

/// See the file's description.
pub(super) struct Outlet {
    to: OwnedFd,
    waiting: VecDeque<u8>,
    done: Recorded,
    /// Lines of which some bytes wait.
    lines: u64,
}

impl Outlet {
    pub(super) fn new(to: OwnedFd) -> Outlet {
        Outlet {
            to,
            waiting: VecDeque::new(),
            done: Recorded::default(),
            lines: 0,
        }
    }

    /// Puts a line behind those that wait, or drops it when they are too many.
    pub(super) fn add(&mut self, line: &Line) -> Result<()> {
        let bytes = line.bytes();
        if bytes.is_empty() || self.waiting.len() + bytes.len() > WAITING_MAX {
            self.done.dropped += 1;
            return Ok(());
        }
        if fallible::reserve_back(&mut self.waiting, bytes.len(), "a recording").is_err() {
            self.done.dropped += 1;
            return Ok(());
        }
        self.waiting.extend(bytes);
        self.lines += 1;
        Ok(())
    }

    /// Lines that were dropped elsewhere.
    pub(super) fn lost(&mut self, lines: u64) {
        self.done.dropped += lines;
    }

    /// How many lines were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.done.dropped
    }

    /// Writes as much as there is room for.
    pub(super) fn push(&mut self) -> Result<()> {
        self.flush(Deadline::after(Duration::ZERO))
    }

    /// Writes all that waits. What nobody takes until `until` waits on.
    ///
    /// # Errors
    /// [`Kind::Io`] when nobody reads any more, and those of the descriptor.
    pub(super) fn flush(&mut self, until: Deadline) -> Result<()> {
        while !self.waiting.is_empty() {
            if wait_ready(self.to.as_fd(), Interest::Write, None, until)? != Wake::Ready {
                return Ok(());
            }
            let (head, _) = self.waiting.as_slices();
            let written = match pipe::write(self.to.as_fd(), &head[..head.len().min(AT_ONCE)]) {
                Ok(written) => written,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    let why = "nobody reads the recording any more";
                    return Err(Error::new(Kind::Io, why));
                }
                Err(e) => return Err(Error::os("writing a recording", e)),
            };
            let lines = self.waiting.drain(..written).filter(|byte| *byte == b'\n');
            let lines = lines.count() as u64;
            self.lines -= lines;
            self.done.lines += lines;
            self.done.bytes += written as u64;
        }
        Ok(())
    }

    /// What became of it. Lines that wait still are dropped.
    pub(super) fn settle(mut self, error: Option<Error>) -> Recorded {
        self.done.dropped += self.lines;
        self.done.error = error;
        self.done
    }
}
