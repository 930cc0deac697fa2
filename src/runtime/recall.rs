//! Asking a thread of ours, which may be waiting for its peer, to let go of what it holds
//! meanwhile. The thread goes on afterwards; ending it is [`super::Cancel`]'s.

use super::Notify;
use crate::error::Result;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag, and a descriptor that wakes whoever polls. Raised by anybody; lowered by the thread
/// that is asked, before it takes hold of something.
#[derive(Debug)]
pub struct Recall {
    raised: AtomicBool,
    notify: Notify,
}

impl Recall {
    /// A new one, not raised.
    ///
    /// # Errors
    /// `Kernel` when no descriptor can be had.
    pub fn new() -> Result<Self> {
        Ok(Recall {
            raised: AtomicBool::new(false),
            notify: Notify::new()?,
        })
    }

    /// Asks. Does not wait.
    pub fn raise(&self) {
        // The flag before the descriptor: whoever that wakes must find the flag set.
        self.raised.store(true, Ordering::SeqCst);
        self.notify.raise();
    }

    /// Whether somebody has asked since it was lowered.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// What was asked so far is done: nothing is held now.
    pub fn lower(&self) {
        // The flag first: one that asks in between finds its wake-up taken, but the flag is looked
        // at before each wait.
        if self.raised.swap(false, Ordering::SeqCst) {
            let _ = self.notify.take();
        }
    }

    /// Readable while it is raised, for poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.notify.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{wait_ready, Deadline, Interest, Wake};
    use std::time::Duration;

    #[test]
    fn it_can_be_raised_again_after_it_was_lowered() {
        let recall = Recall::new().unwrap();
        let wake = || {
            let at_once = Deadline::after(Duration::ZERO);
            wait_ready(recall.fd(), Interest::Read, None, at_once).unwrap()
        };
        for _ in 0..3 {
            assert_eq!((recall.is_raised(), wake()), (false, Wake::TimedOut));
            recall.raise();
            recall.raise();
            assert_eq!((recall.is_raised(), wake()), (true, Wake::Ready));
            recall.lower();
        }
    }
}
