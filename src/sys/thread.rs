//! What the C library knows of the calling thread.

/// Where the C library keeps the calling thread: another number for each thread that there is.
/// Looks at a register; allocates nothing, also at a thread's first call.
pub fn address() -> usize {
    // SAFETY: it has no arguments, cannot fail, and is async-signal-safe.
    unsafe { libc::pthread_self() as usize }
}
