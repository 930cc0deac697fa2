//! Cancelling: a flag for a running loop, and an eventfd for a sleeping poll. Waits that can be
//! cancelled are here too, because they poll the eventfd. All code that waits or loops uses this
//! file.

use super::Deadline;
use crate::error::{Error, Result};
use crate::sys::event::{self, Poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// A cancellation that many threads share. It cannot be undone.
///
/// A cancellation may stand under another one ([`Cancel::under`]). When the upper one is cancelled,
/// so is the lower one.
#[derive(Debug, Clone)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cancelled: AtomicBool,
    fd: OwnedFd,
    upper: Option<Cancel>,
}

impl Cancel {
    /// A cancellation that has not happened yet.
    ///
    /// # Errors
    /// `Kernel` when no descriptor can be made.
    pub fn new() -> Result<Self> {
        Cancel::make(None)
    }

    /// A new one that counts as cancelled also once `upper` is, and does not cancel `upper`: for a
    /// part of what `upper` cancels as a whole.
    ///
    /// # Errors
    /// As for [`Cancel::new`].
    pub fn under(upper: &Cancel) -> Result<Self> {
        Cancel::make(Some(upper.clone()))
    }

    fn make(upper: Option<Cancel>) -> Result<Self> {
        let fd = event::eventfd().map_err(|e| Error::os("eventfd for cancelling", e))?;
        Ok(Cancel {
            inner: Arc::new(Inner {
                cancelled: AtomicBool::new(false),
                fd,
                upper,
            }),
        })
    }

    /// Cancels. Returns true for the first caller. May be called on any thread and in a signal
    /// handler (an atomic and a write, both async-signal-safe).
    pub fn cancel(&self) -> bool {
        // The flag comes before the fd, because a thread that the fd wakes must find the flag set.
        let first = !self.inner.cancelled.swap(true, Ordering::AcqRel);
        if first {
            let _ = event::eventfd_raise(self.inner.fd.as_fd());
        }
        first
    }

    /// Whether it is cancelled. Costs one atomic load, and one more for the upper cancellation.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Acquire)
            || self.upper().is_some_and(Cancel::is_cancelled)
    }

    /// The cancellation that this one also ends with. A wait for a cancel waits for both.
    fn upper(&self) -> Option<&Cancel> {
        self.inner.upper.as_ref()
    }

    /// A descriptor that becomes readable on the cancel and stays so. Poll it, and never read it. A
    /// cancel of the upper cancellation does not make it readable.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }

    /// Sleeps for `duration`, or until cancelled. Returns whether it is cancelled.
    pub fn wait(&self, duration: Duration) -> bool {
        let until = Deadline::after(duration);
        loop {
            match wait_ready(self.fd(), Interest::Read, Some(self), until) {
                Ok(Wake::Cancelled | Wake::Ready) => return true,
                Ok(Wake::TimedOut) => return self.is_cancelled(),
                // poll had no memory, so a plain short sleep replaces it.
                Err(_) => {
                    let left = until.remaining().unwrap_or(Duration::MAX);
                    std::thread::sleep(left.min(Duration::from_millis(1)));
                    if self.is_cancelled() || until.expired() {
                        return self.is_cancelled();
                    }
                }
            }
        }
    }

    /// `Err(Cancelled)` that names `what`, if cancelled.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self, what: &str) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(
                crate::error::Kind::Cancelled,
                format!("{what}: cancelled"),
            ));
        }
        Ok(())
    }

    /// The error of a call that a cancel may have ended: that of [`Cancel::check`] if cancelled, else
    /// `error`.
    pub fn or(&self, what: &str, error: Error) -> Error {
        self.check(what).err().unwrap_or(error)
    }
}

/// The event that a wait for a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, or a connection to accept.
    Read,
    /// Room to write, or the end of connecting.
    Write,
    /// A message in a socket's error queue, or a failure.
    Errors,
}

/// The reason why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is ready, has failed or has hung up. The next call on it tells which.
    Ready,
    /// Cancelled. This overrides the other two.
    Cancelled,
    /// The deadline passed.
    TimedOut,
}

/// Waits until `fd` is ready, `cancel` is cancelled or `until` has passed. A signal handler that
/// runs meanwhile (on a thread of the VMM's) does not end the wait.
///
/// # Errors
/// `Kernel` or `NoMemory` when poll itself fails.
pub fn wait_ready(
    fd: BorrowedFd<'_>,
    interest: Interest,
    cancel: Option<&Cancel>,
    until: Deadline,
) -> Result<Wake> {
    wait_ready_or(fd, interest, None, cancel, until)
}

/// [`wait_ready`] for two descriptors: it also ends as ready when `other` is readable.
///
/// # Errors
/// Those of [`wait_ready`].
pub fn wait_ready_or(
    fd: BorrowedFd<'_>,
    interest: Interest,
    other: Option<BorrowedFd<'_>>,
    cancel: Option<&Cancel>,
    until: Deadline,
) -> Result<Wake> {
    let events = match interest {
        Interest::Read => event::READABLE,
        Interest::Write => event::WRITABLE,
        // Always waited for, poll(2).
        Interest::Errors => 0,
    };
    let [own, upper] = cancelled(cancel);
    let mut polls = [
        Poll::new(fd, events),
        own,
        upper,
        other.map_or(Poll::none(), |fd| Poll::new(fd, event::READABLE)),
    ];
    wait_for(&mut polls, cancel, until)
}

/// What to wait for so that `cancel`, and the one above it, end the wait.
pub fn cancelled(cancel: Option<&Cancel>) -> [Poll; 2] {
    [cancel, cancel.and_then(Cancel::upper)]
        .map(|cancel| cancel.map_or(Poll::none(), |c| Poll::new(c.fd(), event::READABLE)))
}

/// Waits until one of `polls` is as wanted; for the cancel, whose [`cancelled`] are among `polls`; and
/// for the deadline. A signal does not end the wait.
///
/// # Errors
/// `Kernel` when the wait itself fails.
pub fn wait_for(polls: &mut [Poll], cancel: Option<&Cancel>, until: Deadline) -> Result<Wake> {
    loop {
        let found = match event::poll(polls, until.remaining()) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(Error::os("poll", e)),
        };
        if cancel.is_some_and(Cancel::is_cancelled) {
            return Ok(Wake::Cancelled);
        }
        if found > 0 {
            return Ok(Wake::Ready);
        }
        if until.expired() {
            return Ok(Wake::TimedOut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn at_once() -> Deadline {
        Deadline::after(Duration::ZERO)
    }

    #[test]
    fn only_the_first_cancel_is_first_and_it_lasts_for_ever() {
        let cancel = Cancel::new().unwrap();
        let other = cancel.clone();
        assert!(!other.is_cancelled());
        assert!(cancel.check("x").is_ok());
        let ready = |c: &Cancel| wait_ready(c.fd(), Interest::Read, None, at_once()).unwrap();
        assert_eq!(ready(&other), Wake::TimedOut);
        assert!(cancel.cancel());
        assert!(!other.cancel());
        assert!(other.is_cancelled());
        for _ in 0..3 {
            assert_eq!(ready(&other), Wake::Ready);
        }
        let error = other.check("x").unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Cancelled);
    }

    #[test]
    fn a_cancel_under_another_ends_with_it_and_does_not_end_it() {
        let upper = Cancel::new().unwrap();
        let lower = Cancel::under(&upper).unwrap();
        assert!(lower.cancel());
        assert_eq!((lower.is_cancelled(), upper.is_cancelled()), (true, false));
        let lower = Cancel::under(&upper).unwrap();
        let there = lower.clone();
        let waiter = std::thread::spawn(move || there.wait(Duration::from_secs(60)));
        let never = Cancel::new().unwrap();
        let start = Instant::now();
        upper.cancel();
        assert!(waiter.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(20));
        let wake = wait_ready(never.fd(), Interest::Read, Some(&lower), Deadline::never());
        assert_eq!(wake.unwrap(), Wake::Cancelled);
        assert!(lower.check("x").is_err());
    }

    #[test]
    fn a_wait_lasts_as_long_as_asked_or_until_cancelled() {
        let cancel = Cancel::new().unwrap();
        let start = Instant::now();
        assert!(!cancel.wait(Duration::from_millis(5)));
        assert!(start.elapsed() >= Duration::from_millis(5));
        let there = cancel.clone();
        let waiter = std::thread::spawn(move || there.wait(Duration::from_secs(60)));
        let start = Instant::now();
        cancel.cancel();
        assert!(waiter.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(cancel.wait(Duration::MAX));
    }

    #[test]
    fn cancelled_wins_over_ready_and_over_the_deadline() {
        let (cancel, ready) = (Cancel::new().unwrap(), Cancel::new().unwrap());
        cancel.cancel();
        ready.cancel();
        for fd in [ready.fd(), Cancel::new().unwrap().fd()] {
            let wake = wait_ready(fd, Interest::Read, Some(&cancel), at_once()).unwrap();
            assert_eq!(wake, Wake::Cancelled);
        }
    }
}
