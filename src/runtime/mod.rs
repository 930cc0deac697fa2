//! What brant's threads are built on: roles and signal masks, cancelling, deadlines, and the
//! eventfd that tells the VMM to look.
//!
//! Nothing in this module knows of migration. All layers above use it.

pub mod cancel;
pub mod deadline;
pub mod fair;
pub mod grace;
pub mod limit;
pub(crate) mod nap;
pub(crate) mod probes;
mod readers;
pub mod recall;
mod round;
pub mod snapshot;
pub(crate) mod sync;
pub mod thread;

pub use cancel::{wait_ready, wait_ready_or, Cancel, Interest, Wake};
pub use deadline::Deadline;
pub use limit::{Limit, Timeout};
pub use recall::Recall;
pub use thread::{catch, quiet_panics, spawn, Join, Role};

use crate::error::{Error, Result};
use crate::sys::{event, file};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// An eventfd that becomes readable when there is something new to look at (statistics, an event).
/// Many raises between two looks are one wake-up.
#[derive(Debug, Clone)]
pub struct Notify {
    fd: Arc<OwnedFd>,
}

impl Notify {
    /// A notifier that is not raised.
    ///
    /// # Errors
    /// `Kernel` when no descriptor can be made.
    pub fn new() -> Result<Self> {
        let fd = event::eventfd().map_err(|e| Error::os("eventfd for notifications", e))?;
        Ok(Notify { fd: Arc::new(fd) })
    }

    /// Makes the fd readable. Never waits, since the descriptor is `O_NONBLOCK` and a full counter
    /// wakes the reader too (eventfd(2)).
    pub fn raise(&self) {
        // The only failure left is a descriptor that other code has closed, and then nobody reads
        // it.
        let _ = event::eventfd_raise(self.fd.as_fd());
    }

    /// Takes the raises since the last call, so that the fd is no longer readable. The VMM does the
    /// same by reading eight bytes.
    ///
    /// # Errors
    /// `Kernel` when the descriptor cannot be read.
    pub fn take(&self) -> Result<u64> {
        event::eventfd_take(self.fd.as_fd()).map_err(|e| Error::os("reading an eventfd", e))
    }

    /// The descriptor, for poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A duplicate (closed on exec) for the VMM to keep and close.
    ///
    /// # Errors
    /// `Kernel` when no descriptor can be made.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        file::duplicate(self.fd()).map_err(|e| Error::os("duplicating an eventfd", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn readable(fd: BorrowedFd<'_>) -> bool {
        let limit = Deadline::after(Duration::ZERO);
        wait_ready(fd, Interest::Read, None, limit).unwrap() == Wake::Ready
    }

    #[test]
    fn a_notification_wakes_whoever_holds_a_duplicate_until_taken() {
        let notify = Notify::new().unwrap();
        let theirs = notify.duplicate().unwrap();
        assert!(!readable(theirs.as_fd()));
        notify.raise();
        notify.clone().raise();
        assert!(readable(theirs.as_fd()));
        assert_eq!(notify.take().unwrap(), 2);
        assert!(!readable(theirs.as_fd()));
        assert_eq!(notify.take().unwrap(), 0);
    }

    #[test]
    fn raising_a_full_notification_does_not_wait() {
        use std::io::Write;
        let notify = Notify::new().unwrap();
        let mut theirs = std::fs::File::from(notify.duplicate().unwrap());
        theirs.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        notify.raise();
        assert!(readable(notify.fd()));
    }
}
