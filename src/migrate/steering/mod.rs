//! When to switch over, when to go on and when to give up: pure functions of facts. They use no
//! clock, thread, socket or ioctl, so each is tested by table, property and simulation.

#[doc(hidden)]
pub mod bandwidth;
pub mod budget;
pub(super) mod compressing;
pub(super) mod delivery;
pub(super) mod delta_pays;
pub mod dirty_limit;
pub mod facts;
pub mod first_pass;
pub mod fits_downtime;
pub mod forecast;
pub(super) mod limited_rings;
pub mod operations;
pub(super) mod passes;
pub mod policies;
pub mod progress;
pub(super) mod recent;
pub mod rising;
pub(super) mod round_trip;
pub mod stall;
pub mod standstill;
#[cfg(test)]
mod tests;
pub mod throttle;
pub(super) mod timed;
pub mod to_postcopy;
pub mod working_set;

pub use budget::Parts;
pub(super) use compressing::{Batch, Compressing};
pub use facts::{Bounds, Decider, Decision, Facts, Moment, Next, PassFacts, Verdict};
pub use fits_downtime::{FitsDowntime, Overrun};
pub use operations::Operations;
