//! The source's machine. See [`super`] for the order it keeps.

use super::{Failure, Step};
use crate::error::{Error, Kind};
use crate::memory::ownership::Stage;
use crate::vmm::EventKind;

/// The states of the source. The numbers are part of the C ABI.
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
    /// Waiting for the VMM to pause the guest. From here on the guest counts as paused.
    Pausing = 4,
    /// The VMM saves device and vCPU state.
    Saving = 5,
    /// All logs are harvested for the last time.
    LastSync = 6,
    /// Sending the last pages, the end marker and the state.
    SendingLast = 7,
    /// Waiting for the destination, which loads the state.
    AwaitingReady = 8,
    /// The VMM releases what only one side may hold.
    Releasing = 9,
    /// Competing with a cancel for the gate.
    Committing = 10,
    /// The gate is the hand-over's, and the hand-over is being sent.
    HandingOver = 11,
    /// Handed over. The destination has not yet said that the guest runs.
    AwaitingRunning = 12,
    /// The migration failed before the hand-over: the VMM resumes the guest.
    Resuming = 13,
    /// The guest runs at the destination.
    Completed = 14,
    /// The migration failed. The guest runs here as before.
    Failed = 15,
    /// The migration failed and the VMM could not resume the guest, which stands paused here.
    ResumeFailed = 16,
    /// Handed over and never answered. The guest stands paused here until the VMM decides.
    Unanswered = 17,
    /// Unanswered, and the VMM took the guest back.
    TakenBack = 18,
    /// Unanswered, or an interrupted postcopy, and the VMM gave the guest up here.
    GivenUp = 19,
    /// Handed over, and no answer can come any more. Waiting until the destination has begun to run
    /// the guest or never will.
    InDoubt = 20,
    /// The guest runs at the destination. The memory there is compared with the memory here.
    Verifying = 21,
    /// The pause is aborted, because the downtime would exceed its limit: the VMM resumes the guest,
    /// and passes go on.
    AbortingPause = 22,
    /// Postcopy: the guest runs at the destination, and the rest of its memory is being sent.
    Serving = 23,
    /// Postcopy: the connections were lost after the hand-over. The rest of the guest's memory is
    /// kept here until the VMM makes new connections or resolves the migration.
    Interrupted = 24,
    /// Postcopy, after an interruption: the VMM has given new connections. They are made, and both sides
    /// agree on what is missing.
    Recovering = 25,
}

/// The VMM's decision about a guest that was handed over without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Resolution {
    /// The VMM knows that the destination does not run the guest: the guest runs on here.
    Resume = 1,
    /// The VMM knows that the destination runs the guest, or wants that nobody does: the guest
    /// never runs here again.
    Destroy = 2,
}

/// What has become of the guest's memory since it was handed over, as far as this side knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AfterHandOver {
    /// The memory here is this side's own: what the destination did to its copy is not seen here.
    OwnMemory,
    /// The destination has some of the memory in common with this side, and has said that it never
    /// ran the guest.
    NeverRan,
    /// The destination has some of the memory in common with this side, and may have run the guest.
    MayHaveRan,
}

impl AfterHandOver {
    /// Whether the VMM may take the guest back ([`Resolution::Resume`]).
    ///
    /// Example: the destination ran the guest for a second and died. Memory that both have in common
    /// is a second ahead of the vCPUs and devices that stand still here. A guest that went on here
    /// would be no guest that ever was.
    pub fn may_resume(self) -> bool {
        self != AfterHandOver::MayHaveRan
    }
}

/// The events of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The VMM asked for a migration.
    Start,
    /// The connection is made.
    Connected,
    /// Both sides agreed on versions and layout.
    Agreed,
    /// The decider says that the rest fits into the downtime.
    SwitchOver,
    /// `pause` returned without an error.
    Paused,
    /// `save` returned without an error.
    Saved,
    /// The last harvest has ended.
    Synced,
    /// The decider wants the guest to run on: the downtime would exceed its limit.
    DoesNotFit,
    /// All pages, the end marker and the state are sent.
    Sent,
    /// The destination has said READY.
    PeerReady,
    /// `release` returned without an error.
    Released,
    /// The hand-over has taken the gate: no cancel can come any more.
    GateWon,
    /// A cancel has taken the gate first.
    GateLost,
    /// The hand-over was given to the kernel.
    HandoverSent,
    /// The hand-over's limit ran out before its first byte was given to the kernel.
    Late,
    /// The destination has said that the guest runs.
    PeerRunning,
    /// The destination has said that the guest runs, and the migration is to be verified.
    PeerRunningToVerify,
    /// The destination has said that the guest runs, and lacks pages that are sent now.
    PeerRunningToServe,
    /// The destination has every page.
    Served,
    /// The VMM gives new connections for the rest of the pages.
    Recover,
    /// The new connections are there, and the destination has said what it lacks.
    Recovered,
    /// The VMM resolves the migration, so no recovery follows. Nobody knows whether the guest runs at
    /// the destination.
    Retire,
    /// As [`Event::Retire`], and the destination has said that the guest runs there.
    RetireRunning,
    /// The comparison has ended, whatever it found.
    Verified,
    /// The destination has begun to run the guest, or never will.
    Decided,
    /// As [`Event::Decided`], in a migration that was switched to postcopy.
    DecidedToServe,
    /// `resume` returned without an error.
    Resumed,
    /// `resume` returned an error.
    ResumeFailed,
    /// The current action failed.
    Failed(Failure),
    /// The VMM has decided about an unanswered hand-over.
    Resolve(Resolution),
}

/// The actions of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make the connection.
    Connect,
    /// Agree on versions, configuration and layout.
    Negotiate,
    /// Start tracking and send memory until the decider says that the rest fits.
    Copy,
    /// Call the VMM's `pause`, harvest all logs, and have the decider judge the pause.
    CallPause,
    /// Call the VMM's `save`.
    CallSave,
    /// Harvest all logs for the last time, and have the decider judge the pause again.
    SyncLast,
    /// Send the last pages, the end marker and the state. After a switch to postcopy: say which pages
    /// are missing, and send the state.
    SendLast,
    /// Wait for READY.
    AwaitReady,
    /// Call the VMM's `release`.
    CallRelease,
    /// Try to take the gate.
    TakeGate,
    /// Send the hand-over.
    SendHandover,
    /// Wait for RUNNING.
    AwaitRunning,
    /// Compare the destination's memory with the memory here. Nothing depends on the result.
    Verify,
    /// Wait until the destination has begun to run the guest or never will.
    WaitOut,
    /// Send the pages that the destination lacks, those that it asks for first.
    Serve,
    /// Close all connections. Wait until the VMM gives new ones or resolves the migration.
    AwaitRecovery,
    /// Over new connections, agree with the destination on what it lacks.
    Reconnect,
    /// Call the VMM's `resume`.
    CallResume,
    /// Put every page that was not acknowledged back into the tracker.
    PutBack,
    /// Tell the peer that the migration is over, and why.
    TellPeer,
    /// Stop tracking, if the migration started it.
    StopTracking,
    /// Tell the VMM how the migration ended.
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

/// The next state and what to do on entering it. The function is total: an event that a state does
/// not expect is a failure there. When the migration is over, the event is ignored.
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
        // Nothing has been sent since the pause, so the destination does not notice.
        (S::Pausing | S::LastSync, E::DoesNotFit) => to(S::AbortingPause, &[A::CallResume]),
        (S::AbortingPause, E::Resumed) => to(S::Copying, &[A::Copy]),
        (S::SendingLast, E::Sent) => to(S::AwaitingReady, &[A::AwaitReady]),
        (S::AwaitingReady, E::PeerReady) => to(S::Releasing, &[A::CallRelease]),
        (S::Releasing, E::Released) => to(S::Committing, &[A::TakeGate]),
        (S::Committing, E::GateWon) => to(S::HandingOver, &[A::SendHandover]),
        (S::HandingOver, E::HandoverSent) => to(S::AwaitingRunning, &[A::AwaitRunning]),
        (S::AwaitingRunning, E::PeerRunning) => to(S::Completed, END_WELL),
        (S::AwaitingRunning, E::PeerRunningToVerify) => to(S::Verifying, &[A::Verify]),
        // The guest runs at the destination, whatever is found or goes wrong here.
        (S::Verifying, _) => to(S::Completed, END_WELL),
        (S::InDoubt, E::Decided) => to(S::Unanswered, END_OPEN),

        (S::AwaitingRunning, E::PeerRunningToServe) => to(S::Serving, &[A::Serve]),
        (S::Serving, E::Served) => to(S::Completed, END_WELL),
        // Whatever goes wrong here, the guest runs at the destination and needs these pages.
        (S::Serving, _) => to(S::Interrupted, &[A::AwaitRecovery]),
        (S::InDoubt, E::DecidedToServe) => to(S::Interrupted, &[A::AwaitRecovery]),
        (S::Interrupted, E::Recover) => to(S::Recovering, &[A::Reconnect]),
        (S::Interrupted, E::Retire) => to(S::Unanswered, END_OPEN),
        (S::Interrupted, E::RetireRunning) => to(S::GivenUp, END_OPEN),
        (S::Recovering, E::Recovered) => to(S::Serving, &[A::Serve]),
        (S::Interrupted | S::Recovering, _) => to(S::Interrupted, &[A::AwaitRecovery]),

        (S::Resuming, E::Resumed) => to(S::Failed, END_BADLY),
        (S::Resuming | S::AbortingPause, _) => to(S::ResumeFailed, END_BADLY),

        (S::Unanswered, E::Resolve(Resolution::Resume)) => to(S::TakenBack, &[A::CallResume]),
        (S::Unanswered, E::Resolve(Resolution::Destroy)) => to(S::GivenUp, &[]),
        (S::TakenBack, E::ResumeFailed) => to(S::Unanswered, &[]),

        // The guest has not been paused yet.
        (S::Idle | S::Connecting | S::Negotiating | S::Copying, _) => to(S::Failed, END_BADLY),
        // The guest is paused, or may be, and still belongs to this side. A `pause` that failed may
        // have stopped some vCPUs.
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
        // Not one byte of the hand-over was sent, so the destination never runs the guest.
        (S::HandingOver, E::Late) => to(S::Resuming, &[A::CallResume]),
        // A destination that says that the migration is over has decided.
        (S::AwaitingRunning, E::Failed(Failure::Refused | Failure::Cancelled)) => {
            to(S::Unanswered, END_OPEN)
        }
        // The first byte of the hand-over may be on its way, so the source never resumes the guest
        // by itself. And as long as the destination may still begin to run the guest, the VMM
        // cannot decide.
        (S::HandingOver | S::AwaitingRunning | S::InDoubt, _) => to(S::InDoubt, &[A::WaitOut]),

        (
            S::Completed | S::Failed | S::ResumeFailed | S::Unanswered | S::TakenBack | S::GivenUp,
            _,
        ) => to(state, &[]),
    }
}

impl State {
    /// Whether both sides have agreed on what is to be sent, or the migration ended before.
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

    /// The state's name, as in messages and JSON.
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
            State::Verifying => "verifying",
            State::AbortingPause => "aborting the pause",
            State::Serving => "sending the rest",
            State::Interrupted => "interrupted",
            State::Recovering => "recovering",
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
            | State::Resuming
            | State::AbortingPause => Stage::Paused,
            State::HandingOver | State::AwaitingRunning | State::InDoubt => Stage::HandingOver,
            // The memory here is still read, so no other guest may arrive in it.
            State::Verifying | State::Serving | State::Interrupted | State::Recovering => {
                Stage::HandingOver
            }
            State::Completed => Stage::HandedOver,
            State::Failed | State::TakenBack => Stage::Kept,
            State::ResumeFailed => Stage::Stands,
            State::Unanswered => Stage::Unanswered,
            State::GivenUp => Stage::GivenUp,
        }
    }

    /// The kind of the last event that the VMM gets.
    pub(super) fn ending(self) -> EventKind {
        match self {
            State::Completed => EventKind::Completed,
            State::Unanswered | State::GivenUp => EventKind::Unanswered,
            _ => EventKind::Failed,
        }
    }

    /// The error of a migration that ended in this state, made from the first error.
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
            // Every other kind would say that the guest runs on here.
            State::GivenUp => Error::new(
                Kind::Unanswered,
                format!(
                    "the guest runs at the destination and never again here: the VMM gave up the rest of \
                     its memory ({})",
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
