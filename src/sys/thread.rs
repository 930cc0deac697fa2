//! Starting threads, and the C library's address of the calling one.

use super::kernel;
use std::io;
use std::thread::JoinHandle;

/// Starts a thread with a name of at most 15 bytes and a stack of `stack` bytes.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    kernel::spawn(name, stack, body)
}

/// The address of the C library's data on the calling thread: another one for each thread. Reads a
/// register, and allocates nothing, even at a thread's first call.
pub fn address() -> usize {
    // SAFETY: it has no arguments, cannot fail, and is async-signal-safe.
    unsafe { libc::pthread_self() as usize }
}

/// The kernel's number of the calling thread.
pub fn number() -> u32 {
    // SAFETY: it has no arguments and cannot fail.
    let number = unsafe { libc::gettid() };
    number.unsigned_abs()
}
