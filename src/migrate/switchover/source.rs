//! The source's machine. See [`super`] for the order it keeps.

use super::{Failure, Step};
use crate::error::{Error, Kind};
use crate::memory::ownership::Stage;
use crate::vmm::EventKind;

/// Where the source is. The numbers are part of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum State {
    /// Not started.
    Idle = 0,
    /// Making the connection.
    Connecting = 1,
    /// Agreeing on versions, configuration and memory layout.
    Negotiating = 2,
    /// Sending memory while the guest runs.
    Copying = 3,
    /// Waiting for the VMM to stop the guest. From here on it counts as stopped.
    Pausing = 4,
    /// The VMM saves its state.
    Saving = 5,
    /// The last harvest of all logs.
    LastSync = 6,
    /// Sending the last pages, the end marker and the state.
    SendingLast = 7,
    /// The destination loads.
    AwaitingReady = 8,
    /// The VMM lets go of what only one may hold.
    Releasing = 9,
    /// Racing a cancel for the gate.
    Committing = 10,
    /// The gate is ours and the hand-over is being sent.
    HandingOver = 11,
    /// Handed over; the destination has not said yet that it runs.
    AwaitingRunning = 12,
    /// It failed before the hand-over: the VMM resumes the guest.
    Resuming = 13,
    /// The guest runs at the destination.
    Completed = 14,
    /// It failed; the guest runs here, as if nothing had been.
    Failed = 15,
    /// It failed and the VMM could not resume the guest, which stands paused here.
    ResumeFailed = 16,
    /// Handed over and never answered: the guest stands paused here until the VMM decides.
    Unanswered = 17,
    /// Unanswered, and the VMM took the guest back.
    TakenBack = 18,
    /// Unanswered, and the VMM gave the guest up here.
    GivenUp = 19,
    /// Handed over, and no answer can come any more: waiting until the destination has begun to
    /// run the guest or never will.
    InDoubt = 20,
}

/// What the VMM decides about a guest that was handed over without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Resolution {
    /// The destination does not run it (the VMM knows): it runs on here.
    Resume = 1,
    /// The destination runs it (the VMM knows), or nobody shall: it never runs here again.
    Destroy = 2,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The VMM asked for a migration.
    Start,
    /// There is a connection.
    Connected,
    /// Both sides agreed on versions and layout.
    Agreed,
    /// The decider says that the rest fits into the downtime.
    SwitchOver,
    /// `pause` returned well.
    Paused,
    /// `save` returned well.
    Saved,
    /// The last harvest is in.
    Synced,
    /// Everything is sent.
    Sent,
    /// The destination is ready.
    PeerReady,
    /// `release` returned well.
    Released,
    /// The gate is ours: no cancel can come any more.
    GateWon,
    /// A cancel was first.
    GateLost,
    /// The hand-over was given to the kernel.
    HandoverSent,
    /// The hand-over's limit ran out before its first byte was given to the kernel.
    Late,
    /// The destination runs.
    PeerRunning,
    /// The destination has begun to run the guest, or never will.
    Decided,
    /// `resume` returned well.
    Resumed,
    /// It did not.
    ResumeFailed,
    /// What was being done failed.
    Failed(Failure),
    /// The VMM decided.
    Resolve(Resolution),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make the connection.
    Connect,
    /// Agree on versions, configuration and layout.
    Negotiate,
    /// Start tracking and send memory until the decider says that the rest fits.
    Copy,
    /// Call the VMM's `pause`.
    CallPause,
    /// Call the VMM's `save`.
    CallSave,
    /// Harvest all logs a last time.
    SyncLast,
    /// Send the last pages, the end marker, the state.
    SendLast,
    /// Wait for ready.
    AwaitReady,
    /// Call the VMM's `release`.
    CallRelease,
    /// Try to take the gate.
    TakeGate,
    /// Send the hand-over.
    SendHandover,
    /// Wait for running.
    AwaitRunning,
    /// Wait until the destination must have decided.
    WaitOut,
    /// Call the VMM's `resume`.
    CallResume,
    /// Put every page that was not acknowledged back into the tracker.
    PutBack,
    /// Tell the peer that it is over, and why.
    TellPeer,
    /// Stop tracking, if the migration started it.
    StopTracking,
    /// Tell the VMM how it ended.
    Report,
}

const END_WELL: &[Action] = &[Action::StopTracking, Action::Report];
const END_BADLY: &[Action] = &[
    Action::PutBack,
    Action::TellPeer,
    Action::StopTracking,
    Action::Report,
];
/// After the hand-over nothing is said to the peer: it may be running the guest.
const END_OPEN: &[Action] = &[Action::PutBack, Action::StopTracking, Action::Report];

/// The next state and what to do on entering it. Total: an event that a state does not know is
/// a failure there, and is ignored where the migration is over.
pub fn step(state: State, event: Event) -> Step<State, Action> {
    use Action as A;
    use Event as E;
    use State as S;
    let to = |state, actions| Step { state, actions };
    match (state, event) {
        (S::Idle, E::Start) => to(S::Connecting, &[A::Connect]),
        (S::Connecting, E::Connected) => to(S::Negotiating, &[A::Negotiate]),
        (S::Negotiating, E::Agreed) => to(S::Copying, &[A::Copy]),
        (S::Copying, E::SwitchOver) => to(S::Pausing, &[A::CallPause]),
        (S::Pausing, E::Paused) => to(S::Saving, &[A::CallSave]),
        (S::Saving, E::Saved) => to(S::LastSync, &[A::SyncLast]),
        (S::LastSync, E::Synced) => to(S::SendingLast, &[A::SendLast]),
        (S::SendingLast, E::Sent) => to(S::AwaitingReady, &[A::AwaitReady]),
        (S::AwaitingReady, E::PeerReady) => to(S::Releasing, &[A::CallRelease]),
        (S::Releasing, E::Released) => to(S::Committing, &[A::TakeGate]),
        (S::Committing, E::GateWon) => to(S::HandingOver, &[A::SendHandover]),
        (S::HandingOver, E::HandoverSent) => to(S::AwaitingRunning, &[A::AwaitRunning]),
        (S::AwaitingRunning, E::PeerRunning) => to(S::Completed, END_WELL),
        (S::InDoubt, E::Decided) => to(S::Unanswered, END_OPEN),

        (S::Resuming, E::Resumed) => to(S::Failed, END_BADLY),
        (S::Resuming, _) => to(S::ResumeFailed, END_BADLY),

        (S::Unanswered, E::Resolve(Resolution::Resume)) => to(S::TakenBack, &[A::CallResume]),
        (S::Unanswered, E::Resolve(Resolution::Destroy)) => to(S::GivenUp, &[]),
        (S::TakenBack, E::ResumeFailed) => to(S::Unanswered, &[]),

        // The guest has not been touched yet.
        (S::Idle | S::Connecting | S::Negotiating | S::Copying, _) => to(S::Failed, END_BADLY),
        // The guest is, or may be, stopped, and is still ours. A `pause` that failed may have
        // stopped half of it.
        (
            S::Pausing
            | S::Saving
            | S::LastSync
            | S::SendingLast
            | S::AwaitingReady
            | S::Releasing
            | S::Committing,
            _,
        ) => to(S::Resuming, &[A::CallResume]),
        // Not one byte of the hand-over was sent, so the destination never runs.
        (S::HandingOver, E::Late) => to(S::Resuming, &[A::CallResume]),
        // A destination that says that it has ended has decided.
        (S::AwaitingRunning, E::Failed(Failure::Refused | Failure::Cancelled)) => {
            to(S::Unanswered, END_OPEN)
        }
        // The first byte of the hand-over may be on its way: never again by ourselves. And as
        // long as the destination may still begin to run the guest, nobody can decide.
        (S::HandingOver | S::AwaitingRunning | S::InDoubt, _) => to(S::InDoubt, &[A::WaitOut]),

        (
            S::Completed | S::Failed | S::ResumeFailed | S::Unanswered | S::TakenBack | S::GivenUp,
            _,
        ) => to(state, &[]),
    }
}

impl State {
    /// Whether both sides have agreed on what is to be sent, or tried to and it is over.
    pub fn has_agreed(self) -> bool {
        !matches!(self, State::Idle | State::Connecting | State::Negotiating)
    }

    /// Whether nothing happens any more without the VMM.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            State::Completed
                | State::Failed
                | State::ResumeFailed
                | State::Unanswered
                | State::TakenBack
                | State::GivenUp
        )
    }

    /// Its name, as in messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Connecting => "connecting",
            State::Negotiating => "negotiating",
            State::Copying => "copying",
            State::Pausing => "pausing",
            State::Saving => "saving",
            State::LastSync => "last sync",
            State::SendingLast => "sending the last pages",
            State::AwaitingReady => "awaiting ready",
            State::Releasing => "releasing",
            State::Committing => "committing",
            State::HandingOver => "handing over",
            State::AwaitingRunning => "awaiting running",
            State::Resuming => "resuming",
            State::Completed => "completed",
            State::Failed => "failed",
            State::ResumeFailed => "failed, guest not resumed",
            State::Unanswered => "handed over, unanswered",
            State::TakenBack => "taken back",
            State::GivenUp => "given up",
            State::InDoubt => "handed over, in doubt",
        }
    }

    /// What the state means for the guest.
    pub(crate) fn stage(self) -> Stage {
        match self {
            State::Idle | State::Connecting | State::Negotiating | State::Copying => Stage::Leaving,
            State::Pausing
            | State::Saving
            | State::LastSync
            | State::SendingLast
            | State::AwaitingReady
            | State::Releasing
            | State::Committing
            | State::Resuming => Stage::Paused,
            State::HandingOver | State::AwaitingRunning | State::InDoubt => Stage::HandingOver,
            State::Completed => Stage::HandedOver,
            State::Failed | State::TakenBack => Stage::Kept,
            State::ResumeFailed => Stage::Stands,
            State::Unanswered => Stage::Unanswered,
            State::GivenUp => Stage::GivenUp,
        }
    }

    /// What the VMM is told at the end.
    pub(super) fn ending(self) -> EventKind {
        match self {
            State::Completed => EventKind::Completed,
            State::Unanswered => EventKind::Unanswered,
            _ => EventKind::Failed,
        }
    }

    /// The error of a migration that ended in this state, from the first thing that went wrong.
    pub(super) fn explain(self, error: Error) -> Error {
        match self {
            State::Unanswered => Error::new(
                Kind::Unanswered,
                format!(
                    "the guest was handed over and the destination did not say that it runs \
                     ({}); it stays paused here until that is resolved",
                    error.message()
                ),
            ),
            _ => error,
        }
    }
}

super::machine!(Completed, |failure, action| match action {
    Some(Action::CallResume) => Event::ResumeFailed,
    _ => Event::Failed(failure),
});
