//! A migration: what moves, when, and who runs the guest.
//!
//! Pure deciders ([`bandwidth`], [`converge`], [`switchover`]) say what happens next and are
//! tested without a clock or a socket; the drivers ([`outgoing`], [`incoming`]) do it and
//! decide nothing. What users see of it is in [`report`].

pub mod bandwidth;
pub mod blockers;
mod callbacks;
pub mod converge;
mod handle;
mod inbox;
pub mod incoming;
mod outbox;
pub mod outgoing;
pub mod params;
pub mod report;
mod sender;
mod session;
mod sink;
pub mod switchover;

pub use blockers::{Blocker, Blockers};
pub use converge::{Decider, Decision, FitsDowntime};
pub use incoming::{Incoming, Source};
pub use outgoing::{Outgoing, Target};
pub use params::Params;
pub use report::{Phase, Stats};
pub use switchover::source::Resolution;
