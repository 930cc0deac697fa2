//! The userfaultfd log on the real kernel: memory of this process of any kind, and its writers.
//!
//! If the kernel has no asynchronous write protection (before Linux 6.7) these tests say so and
//! pass.

mod blocks;
mod children;
mod discarded;
mod exact;
mod kernel;
mod refusals;
mod watched;
mod writers;
