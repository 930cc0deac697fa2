//! The migration state of either side, as figures, JSON and C show it.
//!
//! Each of the two machines has a state type of its own. [`State`] is a state of one or of the
//! other, and decides nothing.

use super::switchover::{destination, source, Machine};
use serde::{Serialize, Serializer};

/// The state of a migration.
///
/// ```
/// use brant::migrate::{SourceState, State, Stats};
///
/// let state = Stats::default().state;
/// assert_eq!(state, State::Source(SourceState::Idle));
/// assert_eq!((state.name(), state.number(), state.is_over()), ("idle", 0, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The state of an outgoing migration.
    Source(source::State),
    /// The state of an incoming migration.
    Destination(destination::State),
}

impl State {
    /// The state's name, as in messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Source(state) => state.name(),
            State::Destination(state) => state.name(),
        }
    }

    /// The state's number in the C interface. A source's numbers are below 32, a destination's from
    /// 32 on.
    pub fn number(self) -> u32 {
        match self {
            State::Source(state) => state as u32,
            State::Destination(state) => state as u32,
        }
    }

    /// Whether nothing happens any more without the VMM.
    pub fn is_over(self) -> bool {
        match self {
            State::Source(state) => state.is_over(),
            State::Destination(state) => state.is_over(),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        State::Source(source::State::Idle)
    }
}

impl From<source::State> for State {
    fn from(state: source::State) -> Self {
        State::Source(state)
    }
}

impl From<destination::State> for State {
    fn from(state: destination::State) -> Self {
        State::Destination(state)
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// A side of a migration: a machine whose states are a migration's.
pub(super) trait Side: Machine + Into<State> {}

impl<M: Machine + Into<State>> Side for M {}
