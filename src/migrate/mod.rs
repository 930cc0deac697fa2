//! A migration: what moves, when, and who runs the guest.
//!
//! [`outgoing`] is the source's side, [`incoming`] the destination's. The modules [`steering`] and
//! `switchover` decide what happens next. They are pure and tested without a clock or a socket. The
//! drivers of the two sides carry the decisions out. [`report`] holds the figures that users see.

pub mod before;
mod common;
mod control;
mod failure;
mod handle;
pub mod incoming;
mod lane_name;
mod layout;
mod line;
mod outbox;
pub mod outgoing;
pub mod params;
mod record;
pub mod report;
pub mod state;
pub mod steering;
#[doc(hidden)]
pub mod switchover;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watching;
mod work;

#[cfg(test)]
pub(crate) use testing::planted;

use crate::vmm::callbacks;

pub use incoming::{AcceptFrom, Incoming};
pub use line::LINE_MAX;
pub use outgoing::{ConnectTo, Outgoing};
pub use params::{Compression, HandOver, PageChecksums, Params};
pub use record::{RecordParams, Recorded, RECORD_VERSION, RECORD_WHAT_MAX};
pub use report::{LaneState, LaneStats, Stats, ZeroCopyState, JSON_MAX};
pub use state::State;
pub use steering::forecast::{Forecast, Remedies};
#[doc(inline)]
pub use steering::policies::{OnDeadline, Policy, Slowing};
pub use steering::{Bounds, Decider, Decision, Facts, FitsDowntime, Moment, Next, PassFacts};
pub use steering::{Operations, Overrun, Parts, Verdict};
#[doc(inline)]
pub use switchover::destination::State as DestinationState;
#[doc(inline)]
pub use switchover::source::{Resolution, State as SourceState};

#[doc(inline)]
pub use crate::channel::{Endpoint, Listener};
#[doc(inline)]
pub use crate::memory::blockers::{Blocker, Blockers};
#[doc(inline)]
pub use crate::memory::served::{Blocked, Theirs};
