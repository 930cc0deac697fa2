//! Starting threads, and what the C library knows of the calling one.

use super::kernel;
use std::io;
use std::thread::JoinHandle;

/// Starts a thread, whose name has at most 15 bytes, with a stack of `stack` bytes.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    kernel::spawn(name, stack, body)
}

/// Where the C library keeps the calling thread: another number for each thread that there is.
/// Looks at a register; allocates nothing, also at a thread's first call.
pub fn address() -> usize {
    // SAFETY: it has no arguments, cannot fail, and is async-signal-safe.
    unsafe { libc::pthread_self() as usize }
}
