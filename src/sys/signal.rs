//! Signals to threads of the VMM's: what a signal does, sending one to a thread, and a handler that
//! does nothing.

use super::kernel;
use crate::error::{Error, Kind, Result};
use std::io;

/// What a signal does when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Its default action.
    Default,
    /// Nothing: it is dropped.
    Ignored,
    /// It has a handler.
    Handler,
}

/// A thread of this process, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread(libc::pid_t);

/// The calling thread.
pub fn this_thread() -> Thread {
    // SAFETY: it has no arguments and cannot fail.
    Thread(unsafe { libc::gettid() })
}

/// The signal for kicks when the VMM chooses none.
pub fn default_for_kicks() -> i32 {
    libc::SIGRTMIN() + 4
}

/// Refuses numbers that are no signal, or that a kick cannot be.
pub fn check(signal: i32) -> Result<()> {
    const NEVER: [i32; 6] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
    ];
    // The C library keeps those between the two ranges for itself.
    let known =
        (1..32).contains(&signal) || (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal);
    if known && !NEVER.contains(&signal) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        format!(
            "signal {signal}: expected one that can have a handler and is no fault, such as SIGUSR1 or \
             SIGRTMIN + 4 ({})",
            default_for_kicks()
        ),
    ))
}

fn refused(signal: i32) -> Error {
    Error::os(
        format_args!("sigaction of signal {signal}"),
        io::Error::last_os_error(),
    )
}

/// What `signal` does in this process.
///
/// # Errors
/// `Invalid` for a number that is no signal.
pub fn disposition(signal: i32) -> Result<Disposition> {
    // SAFETY: plain integers and a pointer that may be null.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks; the structure outlives the call.
    if unsafe { kernel::sigaction(signal, std::ptr::null(), &mut now) } != 0 {
        return Err(refused(signal));
    }
    Ok(match now.sa_sigaction {
        libc::SIG_DFL => Disposition::Default,
        libc::SIG_IGN => Disposition::Ignored,
        _ => Disposition::Handler,
    })
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs a handler that does nothing. Without `SA_RESTART`: other calls of the thread return too.
///
/// # Errors
/// `Invalid` for a signal that cannot have a handler.
pub fn install_nothing(signal: i32) -> Result<()> {
    // SAFETY: as above; no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = nothing;
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: the handler is a function of this library and touches nothing.
    if unsafe { kernel::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
        return Err(refused(signal));
    }
    Ok(())
}

/// Unblocks `signal` on the calling thread.
pub fn unblock(signal: i32) -> Result<()> {
    // SAFETY: sigset_t is plain integers; all zero is an empty set, on this stack frame.
    let error = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut())
    };
    match error {
        0 => Ok(()),
        error => Err(Error::os(
            format_args!("unblocking signal {signal}"),
            io::Error::from_raw_os_error(error),
        )),
    }
}

/// Sends `signal` to a thread of this process.
pub fn send(thread: Thread, signal: i32) -> io::Result<()> {
    // SAFETY: integers alone.
    match unsafe { kernel::tgkill(thread.0, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a thread has ended. A new thread may have got its number since.
pub fn has_ended(thread: Thread) -> bool {
    send(thread, 0).is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_no_kick_can_be_are_refused_with_a_proposal() {
        for signal in [
            -1,
            0,
            32,
            33,
            65,
            i32::MAX,
            libc::SIGKILL,
            libc::SIGSTOP,
            libc::SIGSEGV,
        ] {
            let error = check(signal).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.message().contains("SIGRTMIN + 4"), "{error}");
        }
        for signal in [libc::SIGUSR1, libc::SIGRTMIN(), libc::SIGRTMAX()] {
            check(signal).unwrap();
        }
    }

    #[test]
    fn a_thread_that_is_gone_has_ended() {
        let gone = std::thread::spawn(this_thread).join().unwrap();
        assert!(!has_ended(this_thread()));
        // The kernel forgets the number a moment after the join.
        while !has_ended(gone) {
            std::thread::yield_now();
        }
    }
}
