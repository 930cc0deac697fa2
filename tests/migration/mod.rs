//! Whole migrations in one process, through the public API: what arrives, who runs the guest after
//! every failure at every point, and which pages are pending afterwards.
//!
//! The guest, the VMMs and the network are in `support`. Tests are named after their promise, files
//! after their subject.

mod arrival;
mod cancelling;
mod channels;
mod endings;
mod faults;
mod followers;
mod handles;
mod layout;
mod pacing;
mod panics;
mod progress;
mod resent;
mod resolution;
mod state;
mod whole;
mod zero_copy;
mod zero_copy_stalled;
