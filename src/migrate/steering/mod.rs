//! When to switch over, when to go on and when to give up: pure functions of facts. They use no
//! clock, thread, socket or ioctl, so each is tested by table, property and simulation.

#[doc(hidden)]
pub mod bandwidth;
pub(super) mod compressing;
pub(super) mod delta_pays;
pub mod facts;
pub mod fits_downtime;
pub(super) mod passes;
#[cfg(test)]
mod tests;

pub(super) use compressing::{Batch, Compressing};
pub use facts::{Decider, Decision, Facts, Moment, Next, PassFacts};
pub use fits_downtime::FitsDowntime;
