//! What a guest waits for behind a switch to postcopy ([`faults`]), and how long it stands still at the
//! switch ([`blackout`]).
//!
//! Source and destination are one process, over connected sockets or over a link with a rate and a
//! delay.

mod blackout;
mod faults;

pub use blackout::measure as blackout;
pub use faults::measure as faults;
