//! The userfaultfd log on the real kernel: any memory of this process, and who writes to it.
//!
//! Where the kernel has no asynchronous write protection (before Linux 6.7) these tests say so and
//! pass.

mod blocks;
mod children;
mod discarded;
mod exact;
mod kernel;
mod refusals;
mod watched;
mod writers;
