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

    /// Takes back a wake-up that nobody asks with any more; called by whoever was woken and finds
    /// the flag down.
    ///
    /// Example: one thread raises the flag; the thread that is asked lowers it, and finds no wake-up
    /// to take yet; the first raises the descriptor. From there on the descriptor is readable, the
    /// flag is down, and every wait ends at once, until somebody raises it again.
    ///
    /// Whoever asks meanwhile has raised the flag before the descriptor: look at the flag after this
    /// and before the next wait.
    pub fn settle(&self) {
        if !self.is_raised() {
            let _ = self.notify.take();
        }
    }

    /// Readable while it is raised, for poll; and now and then when it is not, see
    /// [`settle`](Self::settle).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.notify.fd()
    }
}

#[cfg(test)]
impl Recall {
    /// As [`raise`](Self::raise), with all of `between` in the middle of it.
    pub(crate) fn raise_around(&self, between: impl FnOnce()) {
        self.raised.store(true, Ordering::SeqCst);
        between();
        self.notify.raise();
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
    #[test]
    fn a_wake_up_that_came_after_the_lowering_is_taken_back_and_the_next_one_is_not() {
        let recall = Recall::new().unwrap();
        let wake = || {
            let at_once = Deadline::after(Duration::ZERO);
            wait_ready(recall.fd(), Interest::Read, None, at_once).unwrap()
        };
        recall.raise_around(|| recall.lower());
        assert_eq!((recall.is_raised(), wake()), (false, Wake::Ready));
        recall.settle();
        assert_eq!((recall.is_raised(), wake()), (false, Wake::TimedOut));
        // What is asked for is not.
        recall.raise();
        recall.settle();
        assert_eq!((recall.is_raised(), wake()), (true, Wake::Ready));
        recall.lower();
        // Asked while it is being taken back: whoever looks at the flag before waiting sees it.
        recall.raise_around(|| recall.settle());
        assert_eq!((recall.is_raised(), wake()), (true, Wake::Ready));
    }
}
