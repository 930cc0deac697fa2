//! Who runs the guest, decided by two pure state machines, one on each side.
//!
//! `step(state, event)` gives the next state and what to do on entering it. No clock, no
//! socket, no callback in here: the drivers carry actions out, and turn what came of it into
//! the next event. So every path, with every failure at every point, can be walked by a test.
//!
//! The order that the two machines keep between them:
//! 1. the source pauses the guest;
//! 2. saves device and vCPU state (saving writes guest memory);
//! 3. syncs all logs a last time;
//! 4. sends the last pages, then the end marker, then the state;
//! 5. the destination checks the marker, then loads the state (devices read rings from
//!    memory), and answers ready;
//! 6. the source lets go of what only one may hold;
//! 7. the source takes the gate, which a cancel takes too: one of them gets it;
//! 8. the source hands over. From before the first byte of that message it never resumes by itself;
//! 9. the destination, and only with that message, runs the guest and says so.
//!
//! **A late hand-over runs nothing.** The example: the hand-over's limit is 1 s at the source,
//! and the network holds the message for 5 s. After 1 s the source says that it has no answer.
//! Its VMM asks the destination, which does not run the guest, and so takes the guest back. After
//! 5 s the message arrives. A destination that ran the guest now would make it two. Asking
//! more often does not help, for whatever is asked, the message can be later. What helps is a
//! limit that both sides keep ([`window`]): the destination counts it from just before it says
//! ready, looks right before `run`, and refuses what is later. The source counts it from the
//! receipt of ready, which is later; sends nothing after it; and says that it has no answer only
//! when the destination has begun to run the guest or never will.
//!
//! What a state means for the guest itself is told to [`crate::memory::ownership`], which outlives
//! the migration.

pub mod destination;
pub mod source;
pub mod window;

use crate::error::{Error, Kind};
use crate::memory::ownership::Stage;
use crate::vmm::EventKind;

/// Why something ended, as far as the machines care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Somebody cancelled.
    Cancelled,
    /// A time limit passed.
    Timeout,
    /// The connection is gone.
    PeerGone,
    /// The peer said no.
    Refused,
    /// Anything else: the VMM, the kernel, a malformed record, a defect.
    Other,
}

/// The next state, and what to do on entering it, in this order. The last action is the one
/// whose outcome is the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<S, A: 'static> {
    /// The next state.
    pub state: S,
    /// What to do.
    pub actions: &'static [A],
}

/// A side's machine, as whoever runs it sees it.
pub(super) trait Machine: Copy + PartialEq + std::fmt::Debug {
    /// What happened.
    type Event: Copy;
    /// What to do.
    type Action: Copy + std::fmt::Debug + 'static;

    /// Not started.
    const IDLE: Self;
    /// The one end that is what the VMM asked for.
    const SUCCESS: Self;
    /// What the VMM's start is.
    const START: Self::Event;

    /// What a failure while doing `action` is (at the very start, of none).
    fn failed(failure: Failure, action: Option<Self::Action>) -> Self::Event;
    /// The next state and what to do on entering it.
    fn step(self, event: Self::Event) -> Step<Self, Self::Action>;
    /// Whether nothing happens any more without the VMM.
    fn is_over(self) -> bool;
    /// Its name, as in messages and JSON.
    fn name(self) -> &'static str;
    /// What it means for the guest.
    fn stage(self) -> Stage;
    /// What the VMM is told at the end.
    fn ending(self) -> EventKind;
    /// The error of a migration that ended in it, from the first thing that went wrong.
    fn explain(self, error: Error) -> Error;

    /// What the migration's error is in this state, whatever has gone wrong: none where it
    /// succeeded, one where it ended otherwise. So what is waited for, the last event and
    /// the figures say the same.
    fn verdict(self, error: Option<Error>) -> Option<Error> {
        if self == Self::SUCCESS {
            None
        } else if self.is_over() {
            let unknown = || {
                let message = format!("the migration ended `{}` for no known reason", self.name());
                Error::new(Kind::Internal, message)
            };
            Some(self.explain(error.unwrap_or_else(unknown)))
        } else {
            error
        }
    }
}

macro_rules! machine {
    ($success:ident, |$failure:ident, $action:ident| $failed:expr) => {
        impl super::Machine for State {
            type Event = Event;
            type Action = Action;
            const IDLE: Self = State::Idle;
            const SUCCESS: Self = State::$success;
            const START: Event = Event::Start;

            fn failed($failure: Failure, $action: Option<Action>) -> Event {
                $failed
            }
            fn step(self, event: Event) -> Step<State, Action> {
                step(self, event)
            }
            fn is_over(self) -> bool {
                State::is_over(self)
            }
            fn name(self) -> &'static str {
                State::name(self)
            }
            fn stage(self) -> crate::memory::ownership::Stage {
                State::stage(self)
            }
            fn ending(self) -> crate::vmm::EventKind {
                State::ending(self)
            }
            fn explain(self, error: crate::error::Error) -> crate::error::Error {
                State::explain(self, error)
            }
        }
    };
}
use machine;

#[cfg(test)]
mod tests;
