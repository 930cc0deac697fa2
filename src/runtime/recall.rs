//! A request to a thread of brant's, which may be waiting for its peer, to let go of what it holds
//! meanwhile. The thread goes on afterwards. Ending it is the part of [`super::Cancel`].

use super::Notify;
use crate::error::Result;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag, and a descriptor that wakes a poll. Any thread raises it. The thread that is asked
/// lowers it before it takes hold of anything.
#[derive(Debug)]
pub struct Recall {
    raised: AtomicBool,
    notify: Notify,
}

impl Recall {
    /// A recall that is not raised.
    ///
    /// # Errors
    /// `Kernel` when no descriptor can be made.
    pub fn new() -> Result<Self> {
        Ok(Recall {
            raised: AtomicBool::new(false),
            notify: Notify::new()?,
        })
    }

    /// Asks the thread to let go. Does not wait.
    pub fn raise(&self) {
        // The flag comes before the descriptor, because a thread that the descriptor wakes must
        // find the flag set.
        self.raised.store(true, Ordering::SeqCst);
        self.notify.raise();
    }

    /// Whether it was raised since it was last lowered.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Ends all requests so far: the thread holds nothing now.
    pub fn lower(&self) {
        // The flag comes first. A raise in between loses its wake-up here, but the flag is looked
        // at before each wait.
        if self.raised.swap(false, Ordering::SeqCst) {
            let _ = self.notify.take();
        }
    }

    /// Takes back a wake-up without a request. Call it when a wait was ended by the descriptor and
    /// the flag is down.
    ///
    /// Example: thread A raises the flag; the thread that is asked lowers it, and finds no wake-up
    /// to take back yet; thread A raises the descriptor. From then on the descriptor is readable
    /// with the flag down, and every wait ends at once, until the next raise.
    ///
    /// A thread that asks meanwhile has raised the flag before the descriptor. So look at the flag
    /// after this call and before the next wait.
    pub fn settle(&self) {
        if !self.is_raised() {
            let _ = self.notify.take();
        }
    }

    /// A descriptor for poll. It is readable while the recall is raised, and sometimes when it is
    /// not: see [`settle`](Self::settle).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.notify.fd()
    }
}

#[cfg(test)]
impl Recall {
    /// [`raise`](Self::raise) with a call of `between` in its middle.
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
        // A recall that is raised is not settled.
        recall.raise();
        recall.settle();
        assert_eq!((recall.is_raised(), wake()), (true, Wake::Ready));
        recall.lower();
        // Raised while the wake-up is taken back: a thread that looks at the flag before it waits
        // sees the request.
        recall.raise_around(|| recall.settle());
        assert_eq!((recall.is_raised(), wake()), (true, Wake::Ready));
    }
}
