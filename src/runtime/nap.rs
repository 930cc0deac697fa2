//! Short waits of the VMM's threads inside brant. Any thread of brant's can end all of them at once,
//! and so does any signal to the thread that waits.
//!
//! A wait on a condition variable would not do: the C library goes on with it after a signal. A
//! `ppoll` ends when a signal handler has run. A thread that blocks its signals, and lets KVM
//! unblock them in `KVM_RUN`, runs no handler here. For it there is a signalfd of all signals, which
//! is readable for a thread that has one pending.

use crate::error::{Error, Result};
use crate::sys::event::{self, Poll, READABLE};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// The waits that can be ended together.
#[derive(Debug)]
pub(crate) struct Naps {
    /// Raised, and replaced, when the waits that have begun end. `None` when there was no
    /// descriptor for the next ones: those last their whole time.
    end: Option<Arc<OwnedFd>>,
    signals: Arc<OwnedFd>,
}

impl Naps {
    /// # Errors
    /// `Kernel` when no descriptor can be made.
    pub fn new() -> Result<Self> {
        let cannot = |e| Error::os("descriptors for the waits of vCPU threads", e);
        Ok(Naps {
            end: Some(Arc::new(event::eventfd().map_err(cannot)?)),
            signals: Arc::new(event::signalfd().map_err(cannot)?),
        })
    }

    /// A wait of the calling thread. What ends all waits from now on ends this one too, whether or
    /// not it has begun then.
    pub fn begin(&self) -> Nap {
        Nap {
            end: self.end.clone(),
            signals: Arc::clone(&self.signals),
        }
    }

    /// Ends all waits so far.
    pub fn end_all(&mut self) {
        // Without a nap that shares it there is nobody to wake, and the next naps can have it. No nap
        // begins meanwhile: `begin` borrows the same object.
        if let Some(end) = self.end.take_if(|end| Arc::strong_count(end) > 1) {
            let _ = event::eventfd_raise(end.as_fd());
            self.end = event::eventfd().ok().map(Arc::new);
        }
    }
}

impl Drop for Naps {
    fn drop(&mut self) {
        if let Some(end) = &self.end {
            let _ = event::eventfd_raise(end.as_fd());
        }
    }
}

/// One wait that is about to begin.
#[derive(Debug)]
pub(crate) struct Nap {
    end: Option<Arc<OwnedFd>>,
    signals: Arc<OwnedFd>,
}

impl Nap {
    /// Waits for `time`, or until it is ended or the calling thread gets a signal.
    pub fn take(self, time: Duration) {
        let mut polls = [
            match &self.end {
                Some(end) => Poll::new(end.as_fd(), READABLE),
                None => Poll::none(),
            },
            Poll::new(self.signals.as_fd(), READABLE),
        ];
        // An error is a signal, or the kernel has no memory. Either way the caller asks again.
        let _ = event::poll(&mut polls, Some(time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::event::SignalMask;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    /// As long as a test may take. A wait that nothing ends fails the test by its time limit.
    const LONG: Duration = Duration::from_secs(3600);

    extern "C" fn ignore(_: libc::c_int) {}

    /// SIGUSR2 has a handler, which does nothing and asks for interrupted calls to be restarted.
    fn handle() {
        // SAFETY: all zero is a valid value of that plain structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the structure lives on this stack frame; the handler does nothing.
        unsafe { libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()) };
    }

    #[test]
    fn a_wait_lasts_its_time_and_one_that_was_ended_before_it_began_does_not() {
        let mut naps = Naps::new().unwrap();
        naps.begin().take(Duration::from_micros(100));
        let nap = naps.begin();
        naps.end_all();
        nap.take(LONG);
        let nap = naps.begin();
        drop(naps);
        nap.take(LONG);
    }

    #[test]
    fn a_signal_with_a_handler_ends_a_wait() {
        handle();
        let naps = Naps::new().unwrap();
        let (tell, hear) = channel();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: asks for this thread's own identity.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                naps.begin().take(LONG);
                over.store(true, Ordering::SeqCst);
            });
            let thread = hear.recv().unwrap();
            // A signal before the wait begins does not count, so there are several.
            while !over.load(Ordering::SeqCst) {
                // SAFETY: the scope has not joined the thread yet.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_signal_that_the_thread_blocks_ends_a_wait_whether_it_came_before_or_meanwhile() {
        handle();
        let naps = Naps::new().unwrap();
        let (tell, hear) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let masked = SignalMask::full().put().unwrap();
                // SAFETY: asks for this thread's own identity.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                // The signal comes before this wait or during it, and stays pending.
                naps.begin().take(LONG);
                naps.begin().take(LONG);
                drop(masked);
            });
            let thread = hear.recv().unwrap();
            // SAFETY: the scope has not joined the thread yet.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
        });
    }
}
