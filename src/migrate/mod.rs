//! A migration: what moves, when, and who runs the guest.
//!
//! By side: [`outgoing`] is the source's, [`incoming`] the destination's. Pure deciders
//! ([`steering`], `switchover`) say what happens next and are tested without a clock or a
//! socket; the drivers do it and decide nothing. What users see of a migration is in [`report`].

mod handle;
pub mod incoming;
mod layout;
mod outbox;
pub mod outgoing;
pub mod params;
pub mod report;
mod session;
pub mod state;
pub mod steering;
#[doc(hidden)]
pub mod switchover;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod work;

#[cfg(test)]
pub(crate) use testing::planted;

use crate::vmm::callbacks;

pub use incoming::{AcceptFrom, Incoming};
pub use outgoing::{ConnectTo, Outgoing};
pub use params::Params;
pub use report::Stats;
pub use state::State;
pub use steering::{Decider, Decision, Facts, FitsDowntime, Moment, Next, PassFacts};
#[doc(inline)]
pub use switchover::destination::State as DestinationState;
#[doc(inline)]
pub use switchover::source::{Resolution, State as SourceState};

#[doc(inline)]
pub use crate::channel::{Endpoint, Listener};
#[doc(inline)]
pub use crate::memory::blockers::{Blocker, Blockers};
