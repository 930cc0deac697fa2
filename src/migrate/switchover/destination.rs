//! The destination's machine. See [`super`] for the order it keeps.
//!
//! Its one law: `run` is called after a hand-over was received in time, and never otherwise.

use super::{Failure, Step};
use crate::error::Error;
use crate::memory::ownership::Stage;
use crate::vmm::EventKind;

/// The states of the destination. The numbers are part of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum State {
    /// Not started.
    Idle = 32,
    /// Waiting for a connection.
    Listening = 33,
    /// Agreeing on versions, configuration and memory layout.
    Negotiating = 34,
    /// Memory arrives.
    Receiving = 35,
    /// All memory is here. The state is being read and loaded.
    Loading = 36,
    /// Telling the source that this side is ready.
    Ready = 37,
    /// Waiting for the hand-over.
    AwaitingHandover = 38,
    /// Competing with a cancel for the gate.
    Committing = 39,
    /// The VMM starts the guest.
    Starting = 40,
    /// The guest runs here.
    Running = 41,
    /// The migration failed, or the hand-over came too late. The guest never ran here and never
    /// will.
    Failed = 42,
    /// The guest was handed over and did not start. The source was told, or has no answer.
    StartFailed = 43,
    /// Postcopy: the guest runs here, and pages of its memory still arrive.
    Completing = 44,
    /// Postcopy: the guest runs here, and the connections were lost before all of its memory came. A
    /// vCPU that needs a missing page waits until the VMM takes new connections or gives the pages up.
    Interrupted = 45,
    /// Postcopy: the guest runs here, and the VMM has given up pages of its memory.
    Incomplete = 46,
}

/// The events of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The VMM asked for an incoming migration.
    Start,
    /// A connection was accepted.
    Accepted,
    /// Both sides agreed on versions and layout.
    Agreed,
    /// The end marker came and its counts are right.
    AllReceived,
    /// Every blob of state was loaded.
    Loaded,
    /// READY was sent.
    ReadySent,
    /// The hand-over came with the session's token.
    Handover,
    /// The hand-over has taken the gate: no cancel can come any more.
    GateWon,
    /// A cancel has taken the gate first.
    GateLost,
    /// The hand-over's limit has run out, and `run` has not been called.
    Late,
    /// `run` returned without an error.
    Started,
    /// `run` returned without an error, and pages are missing.
    StartedToComplete,
    /// Every page is here.
    AllHere,
    /// The VMM takes new connections for the rest of the pages.
    Recover,
    /// The VMM gives the missing pages up.
    GiveUp,
    /// The current action failed.
    Failed(Failure),
}

/// The actions of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Wait for a connection.
    Accept,
    /// Agree on versions, configuration and layout.
    Negotiate,
    /// Take memory until the end marker, and check its counts. After a switch to postcopy, discard
    /// what is missing, and serve faults on it.
    Receive,
    /// Take the state, compute the checksums of memory for a source that verifies, and call the
    /// VMM's `load`.
    CallLoad,
    /// Send READY.
    SendReady,
    /// Wait for the hand-over.
    AwaitHandover,
    /// Try to take the gate.
    TakeGate,
    /// Call the VMM's `run`, unless the hand-over's limit has run out.
    CallRun,
    /// Send RUNNING. Nothing depends on its arrival.
    SendRunning,
    /// Send the checksums of memory to a source that verifies. Nothing depends on their arrival.
    SendDigests,
    /// Place the pages that arrive, and ask for those that the guest waits for, until all are here.
    Complete,
    /// Tell the source that every page is here. Nothing depends on its arrival.
    SendComplete,
    /// End the lanes, and wait for the VMM.
    AwaitRecovery,
    /// Agree with the source on what is missing, over new connections.
    Reconnect,
    /// Tell the peer that the migration is over, and why.
    TellPeer,
    /// Tell the VMM how the migration ended.
    Report,
}

const END_WELL: &[Action] = &[Action::SendRunning, Action::SendDigests, Action::Report];
const END_BADLY: &[Action] = &[Action::TellPeer, Action::Report];

/// The next state and what to do on entering it. The function is total, as the source's.
pub fn step(state: State, event: Event) -> Step<State, Action> {
    use Action as A;
    use Event as E;
    use State as S;
    let to = |state, actions| Step { state, actions };
    match (state, event) {
        (S::Idle, E::Start) => to(S::Listening, &[A::Accept]),
        (S::Listening, E::Accepted) => to(S::Negotiating, &[A::Negotiate]),
        (S::Negotiating, E::Agreed) => to(S::Receiving, &[A::Receive]),
        (S::Receiving, E::AllReceived) => to(S::Loading, &[A::CallLoad]),
        (S::Loading, E::Loaded) => to(S::Ready, &[A::SendReady]),
        (S::Ready, E::ReadySent) => to(S::AwaitingHandover, &[A::AwaitHandover]),
        (S::AwaitingHandover, E::Handover) => to(S::Committing, &[A::TakeGate]),
        (S::Committing, E::GateWon) => to(S::Starting, &[A::CallRun]),
        (S::Starting, E::Started) => to(S::Running, END_WELL),

        (S::Starting, E::StartedToComplete) => to(S::Completing, &[A::SendRunning, A::Complete]),
        (S::Completing, E::AllHere) => to(S::Running, &[A::SendComplete, A::Report]),
        // The guest runs on, and only the source has the pages.
        (S::Completing, _) => to(S::Interrupted, &[A::AwaitRecovery]),
        (S::Interrupted, E::Recover) => to(S::Completing, &[A::Reconnect, A::Complete]),
        (S::Interrupted, _) => to(S::Incomplete, &[A::Report]),

        // The source may have taken the guest back by now.
        (S::Committing | S::Starting, E::Late) => to(S::Failed, END_BADLY),

        // The source has handed the guest over. The message does not make the source resume the
        // guest, but its VMM learns what to decide.
        (S::Committing | S::Starting, _) => to(S::StartFailed, END_BADLY),

        (S::Running | S::Failed | S::StartFailed | S::Incomplete, _) => to(state, &[]),

        (
            S::Idle
            | S::Listening
            | S::Negotiating
            | S::Receiving
            | S::Loading
            | S::Ready
            | S::AwaitingHandover,
            _,
        ) => to(S::Failed, END_BADLY),
    }
}

impl State {
    /// Whether nothing happens any more.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            State::Running | State::Failed | State::StartFailed | State::Incomplete
        )
    }

    /// The state's name, as in messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Listening => "listening",
            State::Negotiating => "negotiating",
            State::Receiving => "receiving",
            State::Loading => "loading",
            State::Ready => "ready",
            State::AwaitingHandover => "awaiting the hand-over",
            State::Committing => "committing",
            State::Starting => "starting",
            State::Running => "running",
            State::Failed => "failed",
            State::StartFailed => "handed over, not started",
            State::Completing => "running, memory arrives",
            State::Interrupted => "running, interrupted",
            State::Incomplete => "running, incomplete",
        }
    }

    /// What the state means for the guest.
    pub(crate) fn stage(self) -> Stage {
        match self {
            State::Idle | State::Listening | State::Negotiating => Stage::Arriving,
            State::Receiving
            | State::Loading
            | State::Ready
            | State::AwaitingHandover
            | State::Committing
            | State::Starting => Stage::Filling,
            // Pages that were given up count as lost: what is left is whole.
            State::Running | State::Incomplete => Stage::Arrived,
            State::Completing | State::Interrupted => Stage::Incomplete,
            State::Failed => Stage::NotArrived,
            State::StartFailed => Stage::Stands,
        }
    }

    /// The kind of the last event that the VMM gets.
    pub(super) fn ending(self) -> EventKind {
        match self {
            State::Running => EventKind::Completed,
            _ => EventKind::Failed,
        }
    }

    /// The error of a migration that ended in this state, made from the first error.
    pub(super) fn explain(self, error: Error) -> Error {
        error
    }
}

super::machine!(Running, |failure, _action| Event::Failed(failure));
