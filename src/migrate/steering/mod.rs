//! When to switch over, when to go on and when to give up: pure functions of facts. They use no
//! clock, thread, socket or ioctl, so each is tested by table, property and simulation.
//!
//! What a VMM needs of them is in [`migrate`](super): policies, deciders and their facts, forecasts.
//! The modules that are hidden are public for the simulator and the tests, and may change in any
//! version.

#[doc(hidden)]
pub mod bandwidth;
#[doc(hidden)]
pub mod budget;
pub(super) mod compressing;
pub(super) mod delivery;
pub(super) mod delta_pays;
#[doc(hidden)]
pub mod dirty_limit;
#[doc(hidden)]
pub mod facts;
#[doc(hidden)]
pub mod first_pass;
#[doc(hidden)]
pub mod fits_downtime;
pub mod forecast;
pub(super) mod limited_rings;
#[doc(hidden)]
pub mod operations;
pub(super) mod passes;
#[doc(hidden)]
pub mod policies;
#[doc(hidden)]
pub mod policy;
#[doc(hidden)]
pub mod progress;
pub(super) mod recent;
#[doc(hidden)]
pub mod rising;
pub(super) mod round_trip;
#[doc(hidden)]
pub mod stall;
#[doc(hidden)]
pub mod standstill;
#[cfg(test)]
mod tests;
#[doc(hidden)]
pub mod throttle;
pub(super) mod timed;
#[doc(hidden)]
pub mod to_postcopy;
#[doc(hidden)]
pub mod working_set;

pub use budget::Parts;
pub(super) use compressing::{Batch, Compressing};
pub use facts::{Bounds, Decider, Decision, Facts, Moment, Next, PassFacts, Verdict};
pub use fits_downtime::{FitsDowntime, Overrun};
pub use operations::Operations;
