//! Every run of the two machines together, walked exhaustively.
//!
//! The world is: both states, who runs the guest, and the messages on their way. At each
//! point every outcome of the action in progress is tried: it succeeds, it fails, a cancel
//! comes, a message is lost.

use super::{destination, source, Failure};
use destination::{Action as DA, Event as DE, State as DS};
use source::{Action as SA, Event as SE, Resolution, State as SS};
use std::collections::HashSet;

/// What is on its way from one side to the other. All but hand-over and running are not
/// modelled one by one: what they lead to can simply happen or fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Wire {
    ready: bool,
    handover: bool,
    running: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    source: SS,
    destination: DS,
    runs_here: bool,
    runs_there: bool,
    wire: Wire,
    /// `resume` is being called.
    resuming: bool,
    /// The destination's VMM was called to `run`.
    starting: bool,
}

const FAILURES: [Failure; 5] = [
    Failure::Cancelled,
    Failure::Timeout,
    Failure::PeerGone,
    Failure::Refused,
    Failure::Other,
];

impl World {
    fn source(mut self, event: SE) -> World {
        let step = source::step(self.source, event);
        self.source = step.state;
        self.resuming = false;
        for action in step.actions {
            match action {
                SA::CallResume => self.resuming = true,
                SA::SendHandover => self.wire.handover = true,
                _ => {}
            }
        }
        self
    }

    fn destination(mut self, event: DE) -> World {
        let step = destination::step(self.destination, event);
        self.destination = step.state;
        self.starting = false;
        for action in step.actions {
            match action {
                DA::CallRun => self.starting = true,
                DA::SendReady => self.wire.ready = true,
                DA::SendRunning => self.wire.running = true,
                _ => {}
            }
        }
        self
    }

    /// Everything that can happen next.
    fn next(self) -> Vec<World> {
        let mut worlds = Vec::new();
        // The source's action in progress.
        match self.source {
            SS::Idle => worlds.push(self.source(SE::Start)),
            SS::Connecting => worlds.push(self.source(SE::Connected)),
            SS::Negotiating => worlds.push(self.source(SE::Agreed)),
            SS::Copying => worlds.push(self.source(SE::SwitchOver)),
            SS::Pausing => {
                let mut stopped = self;
                stopped.runs_here = false;
                worlds.push(stopped.source(SE::Paused));
                // It failed, having stopped the guest, or half of it.
                worlds.push(stopped.source(SE::Failed(Failure::Other)));
            }
            SS::Saving => worlds.push(self.source(SE::Saved)),
            SS::LastSync => worlds.push(self.source(SE::Synced)),
            SS::SendingLast => worlds.push(self.source(SE::Sent)),
            SS::AwaitingReady if self.wire.ready => {
                let mut taken = self;
                taken.wire.ready = false;
                worlds.push(taken.source(SE::PeerReady));
            }
            SS::Releasing => worlds.push(self.source(SE::Released)),
            SS::Committing => {
                worlds.push(self.source(SE::GateWon));
                worlds.push(self.source(SE::GateLost));
            }
            SS::HandingOver => worlds.push(self.source(SE::HandoverSent)),
            SS::AwaitingRunning if self.wire.running => {
                let mut taken = self;
                taken.wire.running = false;
                worlds.push(taken.source(SE::PeerRunning));
            }
            _ => {}
        }
        if self.resuming {
            let mut resumed = self;
            resumed.runs_here = true;
            worlds.push(resumed.source(SE::Resumed));
            worlds.push(self.source(SE::ResumeFailed));
        } else if !self.source.is_over() {
            worlds.extend(FAILURES.iter().map(|f| self.source(SE::Failed(*f))));
        }
        if self.source == SS::Unanswered {
            worlds.push(self.source(SE::Resolve(Resolution::Destroy)));
            // The VMM takes the guest back when it knows that the destination is dead: it
            // neither runs nor ever will.
            if !self.runs_there && !self.starting && self.destination.is_over() {
                worlds.push(self.source(SE::Resolve(Resolution::Resume)));
            }
        }
        // The destination's.
        match self.destination {
            DS::Idle => worlds.push(self.destination(DE::Start)),
            DS::Listening => worlds.push(self.destination(DE::Accepted)),
            DS::Negotiating => worlds.push(self.destination(DE::Agreed)),
            DS::Receiving => worlds.push(self.destination(DE::AllReceived)),
            DS::Loading => worlds.push(self.destination(DE::Loaded)),
            DS::Ready => worlds.push(self.destination(DE::ReadySent)),
            DS::AwaitingHandover if self.wire.handover => {
                let mut taken = self;
                taken.wire.handover = false;
                worlds.push(taken.destination(DE::Handover));
            }
            DS::Committing => {
                worlds.push(self.destination(DE::GateWon));
                worlds.push(self.destination(DE::GateLost));
            }
            DS::Starting if self.starting => {
                let mut running = self;
                running.runs_there = true;
                worlds.push(running.destination(DE::Started));
            }
            _ => {}
        }
        if !self.destination.is_over() {
            worlds.extend(FAILURES.iter().map(|f| self.destination(DE::Failed(*f))));
        }
        // A message is lost.
        for lost in [
            Wire {
                ready: false,
                ..self.wire
            },
            Wire {
                handover: false,
                ..self.wire
            },
            Wire {
                running: false,
                ..self.wire
            },
        ] {
            worlds.push(World { wire: lost, ..self });
        }
        worlds
    }
}

fn all_worlds() -> HashSet<World> {
    let first = World {
        source: SS::Idle,
        destination: DS::Idle,
        runs_here: true,
        runs_there: false,
        wire: Wire::default(),
        resuming: false,
        starting: false,
    };
    let mut seen = HashSet::from([first]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        for next in world.next() {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

#[test]
fn the_guest_never_runs_on_both_sides_whatever_fails_and_whenever() {
    let worlds = all_worlds();
    assert!(worlds.len() > 150, "the model explores: {}", worlds.len());
    for world in &worlds {
        assert!(!(world.runs_here && world.runs_there), "{world:?}");
    }
    assert!(worlds
        .iter()
        .any(|w| w.source == SS::Completed && w.runs_there));
}

#[test]
fn where_it_ends_the_guest_runs_somewhere_or_the_vmm_is_asked() {
    for world in all_worlds() {
        if !world.source.is_over() || world.resuming {
            continue;
        }
        match world.source {
            SS::Completed => assert!(world.runs_there, "{world:?}"),
            SS::Failed | SS::TakenBack => {
                assert!(world.runs_here && !world.runs_there, "{world:?}")
            }
            // Told to the VMM, which has the say.
            SS::ResumeFailed | SS::Unanswered | SS::GivenUp => {}
            _ => unreachable!("{world:?}"),
        }
    }
}

#[test]
fn without_a_hand_over_the_destination_never_runs() {
    for world in all_worlds() {
        if world.runs_there || world.starting {
            assert!(
                matches!(
                    world.source,
                    SS::HandingOver
                        | SS::AwaitingRunning
                        | SS::Completed
                        | SS::Unanswered
                        | SS::GivenUp
                ),
                "{world:?}"
            );
        }
    }
}

#[test]
fn a_failure_before_the_hand_over_ends_with_the_guest_here_and_after_it_is_left_to_the_vmm() {
    let before = [
        SS::Pausing,
        SS::Saving,
        SS::LastSync,
        SS::SendingLast,
        SS::AwaitingReady,
        SS::Releasing,
        SS::Committing,
    ];
    for state in before {
        for failure in FAILURES {
            let step = source::step(state, SE::Failed(failure));
            assert_eq!(step.state, SS::Resuming, "{state:?} {failure:?}");
            assert_eq!(step.actions, [SA::CallResume]);
        }
    }
    for state in [SS::Idle, SS::Connecting, SS::Negotiating, SS::Copying] {
        for failure in FAILURES {
            let step = source::step(state, SE::Failed(failure));
            assert_eq!(step.state, SS::Failed);
            assert!(step.actions.contains(&SA::PutBack));
            assert!(
                !step.actions.contains(&SA::CallResume),
                "it was never paused"
            );
        }
    }
    for state in [SS::HandingOver, SS::AwaitingRunning] {
        for failure in FAILURES {
            let step = source::step(state, SE::Failed(failure));
            assert_eq!(step.state, SS::Unanswered);
            assert!(!step.actions.contains(&SA::CallResume));
            assert!(step.actions.contains(&SA::PutBack));
        }
    }
}

#[test]
fn every_failed_end_puts_the_unacknowledged_pages_back() {
    for resumed in [SE::Resumed, SE::ResumeFailed] {
        let step = source::step(SS::Resuming, resumed);
        assert!(step.actions.contains(&SA::PutBack));
        assert!(step.actions.contains(&SA::StopTracking));
    }
}
