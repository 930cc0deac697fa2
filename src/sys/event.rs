//! System calls by which a thread waits and is woken: eventfds, signalfds, `ppoll`, and the signal
//! mask under which it waits.
//!
//! Each function is one call and safe; errors are `io::Error`. The callers, in `runtime`, decide
//! what a wake-up means.

use super::kernel;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Bytes to read, or a connection to accept.
pub const READABLE: i16 = libc::POLLIN;
/// Room to write, or the end of connecting.
pub const WRITABLE: i16 = libc::POLLOUT;
/// The other end has stopped writing or is gone, or the descriptor has failed.
pub const HUNG_UP: i16 = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;

/// A new eventfd with count 0, non-blocking and closed on exec.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { kernel::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds 1 to an eventfd. A full counter (`EAGAIN`) is no error, because it wakes a poll too.
/// Async-signal-safe.
pub fn eventfd_raise(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one: u64 = 1;
    loop {
        // SAFETY: eight readable bytes live on this stack frame.
        let n = unsafe { kernel::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
        if n == 8 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// Takes the count of an eventfd, and sets it to 0. Returns 0 if nothing was raised.
pub fn eventfd_take(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: u64 = 0;
    loop {
        // SAFETY: eight writable bytes live on this stack frame.
        let n = unsafe { kernel::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        if n == 8 {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Ok(0),
            _ => return Err(error),
        }
    }
}

/// A new signalfd for all signals: readable for a thread while a signal is pending for it that it
/// blocks. Non-blocking and closed on exec.
pub fn signalfd() -> io::Result<OwnedFd> {
    let SignalMask(all) = SignalMask::full();
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set lives on this stack frame.
    let fd = unsafe { kernel::signalfd(-1, &raw const all, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One descriptor to poll, laid out as `struct pollfd`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Poll(libc::pollfd);

impl Poll {
    /// Asks for `events` of `fd`. Polling a closed descriptor is harmless (the kernel answers
    /// `POLLNVAL`), so the borrow need not be kept.
    pub fn new(fd: BorrowedFd<'_>, events: i16) -> Self {
        Poll(libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        })
    }

    /// An entry that the kernel skips (a negative descriptor).
    pub fn none() -> Self {
        Poll(libc::pollfd {
            fd: -1,
            events: 0,
            revents: 0,
        })
    }

    /// The result of the last [`poll`]. Errors and hang-ups are reported unasked.
    pub fn found(&self) -> i16 {
        self.0.revents
    }
}

/// Waits until an entry has a result, or `timeout` has passed (`None`: for ever). Returns how many
/// entries have a result. `EINTR` is returned, because only the caller knows how much time is left.
pub fn poll(polls: &mut [Poll], timeout: Option<Duration>) -> io::Result<usize> {
    let time = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let time_ptr = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: Poll is repr(transparent) over pollfd, the length is the slice's;
    // the timespec outlives the call; a null mask leaves the signal mask alone.
    let n = unsafe {
        kernel::ppoll(
            polls.as_mut_ptr().cast(),
            polls.len() as libc::nfds_t,
            time_ptr,
            std::ptr::null(),
        )
    };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n as usize)
}

/// A signal mask for a thread.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// Every signal that can be blocked. SIGKILL and SIGSTOP cannot, nor the two that the C library
    /// keeps for setuid and thread cancellation.
    pub fn full() -> SignalMask {
        // SAFETY: sigset_t is plain integers; all zero is a value of it.
        let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set lives on this stack frame.
        unsafe { libc::sigfillset(&mut all) };
        SignalMask(all)
    }

    /// Forgets pending signals of the calling thread whose call returned an error too: SIGXFSZ for
    /// a write past the limit on file sizes, SIGPIPE. While masked they stay pending, and would end
    /// the process under this mask. A signal that this mask blocks stays pending.
    pub fn forget_pending_errors(&self) {
        // SAFETY: sigset_t is plain integers; all zero is an empty set. The sets live on this stack
        // frame; nothing is written but `errors`.
        unsafe {
            let mut errors: libc::sigset_t = std::mem::zeroed();
            for signal in [libc::SIGXFSZ, libc::SIGPIPE] {
                if libc::sigismember(&self.0, signal) == 0 {
                    libc::sigaddset(&mut errors, signal);
                }
            }
            let now: libc::timespec = std::mem::zeroed();
            // One at a time, until none is pending (EAGAIN).
            while libc::sigtimedwait(&errors, std::ptr::null_mut(), &now) > 0 {}
        }
    }

    /// Sets this mask on the calling thread. A thread that is started meanwhile inherits it from
    /// its first instruction on (pthread_create(3)).
    pub fn put(&self) -> io::Result<SignalsMasked> {
        // SAFETY: sigset_t is plain integers; all zero is a value of it.
        let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: both sets outlive the call.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, &mut before) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(SignalsMasked {
            before: SignalMask(before),
            not_send: std::marker::PhantomData,
        })
    }
}

/// Holds another mask on the calling thread. When this is dropped, the mask from before comes back.
#[must_use]
pub struct SignalsMasked {
    before: SignalMask,
    /// The mask belongs to this thread, so this must not be dropped on another one.
    not_send: std::marker::PhantomData<*const ()>,
}

impl SignalsMasked {
    /// The mask from before, for a thread that is started meanwhile.
    pub fn before(&self) -> SignalMask {
        self.before
    }
}

impl Drop for SignalsMasked {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by pthread_sigmask on this thread.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before.0, std::ptr::null_mut());
        }
    }
}
