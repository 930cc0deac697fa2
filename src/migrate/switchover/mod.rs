//! Who runs the guest, decided by two pure state machines, one on each side.
//!
//! `step(state, event)` gives the next state and what to do on entering it. The machines have no
//! clock and no socket, and call no operation. The drivers carry the actions out, and turn each
//! outcome into the next event. So a test can walk every path, with every failure at every point.
//!
//! The order that the two machines keep between them:
//! 1. the source pauses the guest;
//! 2. saves device and vCPU state (saving writes guest memory);
//! 3. syncs all logs a last time. Until here nothing but pages of a running guest was sent. When
//!    the downtime would exceed its limit, the source resumes the guest and copies on, and the
//!    destination does not notice;
//! 4. sends the last pages, then the end marker, then the state;
//! 5. the destination checks the marker, then loads the state (devices read rings from
//!    memory), and answers ready;
//! 6. the source lets go of what only one side may hold;
//! 7. the source takes the gate, which a cancel takes too: one of them gets it;
//! 8. the source hands over. From before the first byte of the hand-over it never resumes by
//!    itself;
//! 9. the destination runs the guest only after the hand-over, and says so.
//!
//! **A late hand-over runs nothing.** The example: the hand-over's limit is 1 s at the source, and
//! the network holds the message for 5 s. After 1 s the source says that it has no answer. Its VMM
//! asks the destination, which does not run the guest, and takes the guest back. After 5 s the
//! message arrives. If the destination ran the guest now, two copies would run. Asking more often
//! does not help, because the message can always come later. The way out is a limit that both sides
//! keep ([`window`]). The destination counts the limit from just before it says ready, checks it
//! right before `run`, and refuses a later hand-over. The source counts the limit from the receipt
//! of ready, which is later, and sends no hand-over after it. The source says that it has no answer
//! only when the destination has begun to run the guest or never will.
//!
//! **Postcopy.** In step 4 the source sends no last pages, but says which are missing, and in step 9 the
//! destination runs the guest without them. Both machines go on after step 9: the source serves and the
//! destination completes. Before the hand-over a failure is a failure as any other, and the guest stays
//! at the source. After it nobody but the two sides together has the guest, so neither gives its part up
//! by itself: whatever fails, both are interrupted and keep what they have, until their VMMs make new
//! connections, any number of times, or resolve the migration.
//!
//! [`crate::memory::ownership`], which outlives the migration, learns each state's meaning for the
//! guest.

pub mod destination;
pub mod source;
pub mod window;

use crate::error::{Error, Kind};
use crate::memory::ownership::Stage;
use crate::vmm::EventKind;

/// Why an action failed, as far as the machines distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The migration was cancelled.
    Cancelled,
    /// A time limit passed.
    Timeout,
    /// The connection is gone.
    PeerGone,
    /// The peer refused.
    Refused,
    /// Any other cause: the VMM, the kernel, a malformed record, a defect.
    Other,
}

/// The next state, and what to do on entering it, in this order. The last action is the one
/// whose outcome is the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<S, A: 'static> {
    /// The next state.
    pub state: S,
    /// The actions on entering the state.
    pub actions: &'static [A],
}

/// The interface of a side's machine to its driver.
pub(super) trait Machine: Copy + PartialEq + std::fmt::Debug {
    /// The machine's events.
    type Event: Copy;
    /// The machine's actions.
    type Action: Copy + std::fmt::Debug + 'static;

    /// The state before the start.
    const IDLE: Self;
    /// The end state of a successful migration.
    const SUCCESS: Self;
    /// The event of the VMM's start.
    const START: Self::Event;

    /// The event of a failure in `action`; `None` before the first action.
    fn failed(failure: Failure, action: Option<Self::Action>) -> Self::Event;
    /// The next state and what to do on entering it.
    fn step(self, event: Self::Event) -> Step<Self, Self::Action>;
    /// Whether nothing happens any more without the VMM.
    fn is_over(self) -> bool;
    /// The state's name, as in messages and JSON.
    fn name(self) -> &'static str;
    /// The state's meaning for the guest.
    fn stage(self) -> Stage;
    /// The kind of the last event.
    fn ending(self) -> EventKind;
    /// The error of a migration that ended in this state, made from the first error.
    fn explain(self, error: Error) -> Error;

    /// The migration's error in this state: none after success, one after any other end. So a wait,
    /// the last event and the figures agree.
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
