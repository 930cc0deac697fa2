//! A migration: what moves, when, and who runs the guest.
//!
//! Pure deciders ([`bandwidth`], [`converge`], [`switchover`]) say what happens next and are
//! tested without a clock or a socket; the drivers do it and decide nothing;
//! what the VMM holds meanwhile are [`Outgoing`] and [`Incoming`]. What users see of it is in [`report`].

pub mod bandwidth;
pub mod blockers;
mod callbacks;
pub mod converge;
mod destination_driver;
mod gather;
mod handle;
mod inbox;
pub mod incoming;
mod known_zero;
mod outbox;
pub mod outgoing;
pub mod params;
mod passes;
#[cfg(test)]
pub(crate) mod planted;
pub mod report;
mod sender;
mod session;
mod sink;
mod source_driver;
pub mod switchover;
mod work;

pub use blockers::{Blocker, Blockers};
pub use converge::{Decider, Decision, FitsDowntime};
pub use destination_driver::Source;
pub use incoming::Incoming;
pub use outgoing::Outgoing;
pub use params::Params;
pub use report::{Phase, Stats};
pub use source_driver::Target;
pub use switchover::source::Resolution;
