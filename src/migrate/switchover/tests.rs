//! Every run of the two machines together, walked exhaustively.
//!
//! The modelled world has both states, who runs the guest, what each side's guest object knows, the
//! messages on their way, and how much time has passed. At each point every outcome of the current
//! action is tried: it succeeds, it fails, a cancel comes, a message is lost or delayed for any
//! time, a limit runs out. Each VMM does everything that it may. Its kicks are of the roughest
//! kind: it pauses the guest and resumes it. After a hand-over without an answer it asks the
//! destination. When the destination does not run the guest, the VMM takes the guest back.
//!
//! The drivers' part beside the machines (to look at the clock, to wait, to refuse a kick) is in
//! [`Rules`], so that a test can show why each rule is needed.

use super::{destination, source, Failure};
use crate::memory::ownership::{Guest, Stage, Whose};
use destination::{Action as DA, Event as DE, State as DS};
use source::{Action as SA, Event as SE, Resolution, State as SS};
use std::collections::HashSet;

/// Messages on their way from one side to the other. Other messages are not modelled one by one:
/// their effects can simply happen or fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Wire {
    /// The end marker and the state, or a part of them. They are not lost while the connection lasts.
    last: bool,
    ready: bool,
    handover: bool,
    running: bool,
    /// Postcopy: every page is at the destination, and it says so.
    complete: bool,
}

/// How much time has passed. The destination counts from an earlier moment, so its window closes
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Time {
    Open,
    ClosedThere,
    ClosedHere,
    /// The margin has passed too.
    Decided,
}

/// The rules that the drivers keep.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// The destination looks at its clock right before `run`.
    looks: bool,
    /// `run` begins within the margin after that look.
    margin: bool,
    /// The source reports that it has no answer only when the destination has decided.
    waits: bool,
    /// A kick is called only where the guest object allows it.
    gates_kicks: bool,
}

const KEPT: Rules = Rules {
    looks: true,
    margin: true,
    waits: true,
    gates_kicks: true,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    source: SS,
    destination: DS,
    runs_here: bool,
    runs_there: bool,
    here: Guest,
    there: Guest,
    wire: Wire,
    time: Time,
    /// The clocks of the destination and of the source count.
    counts_there: bool,
    counts_here: bool,
    /// The source has looked at its clock and gives the hand-over to the kernel.
    sending: bool,
    /// `resume` is being called.
    resuming: bool,
    /// The destination has looked at its clock and calls `run`.
    starting: bool,
    /// At the destination the hand-over has won against a cancel.
    committed_there: bool,
    /// A cancel of the destination has succeeded.
    cancelled_there: bool,
    /// The source has switched to postcopy.
    postcopy: bool,
    /// Every page is at the destination.
    whole_there: bool,
    /// How often each side has taken new connections, up to two.
    recoveries: [u8; 2],
}

const FAILURES: [Failure; 5] = [
    Failure::Cancelled,
    Failure::Timeout,
    Failure::PeerGone,
    Failure::Refused,
    Failure::Other,
];

impl World {
    fn first() -> World {
        World {
            source: SS::Idle,
            destination: DS::Idle,
            runs_here: true,
            runs_there: false,
            here: Guest::default().leaves().unwrap(),
            there: Guest::default().arrives().unwrap(),
            wire: Wire::default(),
            time: Time::Open,
            counts_there: false,
            counts_here: false,
            sending: false,
            resuming: false,
            starting: false,
            committed_there: false,
            cancelled_there: false,
            postcopy: false,
            whole_there: false,
            recoveries: [0; 2],
        }
    }

    fn source(mut self, event: SE) -> World {
        let step = source::step(self.source, event);
        self.source = step.state;
        self.resuming = step.actions.contains(&SA::CallResume);
        self.sending = false;
        self.wire.last |= step.actions.contains(&SA::SendLast);
        // The guest is back only when `resume` has succeeded.
        if step.state != SS::TakenBack {
            self.here = self.here.comes_to(step.state.stage());
        }
        if event == SE::PeerReady {
            self.counts_here = true;
        }
        self
    }

    fn destination(mut self, event: DE) -> World {
        let step = destination::step(self.destination, event);
        self.destination = step.state;
        self.there = self.there.comes_to(step.state.stage());
        self.starting = false;
        self.committed_there = match event {
            DE::GateWon => true,
            DE::Late => false,
            _ => self.committed_there,
        };
        for action in step.actions {
            match action {
                DA::SendReady => {
                    self.wire.ready = true;
                    self.counts_there = true;
                }
                DA::SendRunning => self.wire.running = true,
                DA::SendComplete => self.wire.complete = true,
                _ => {}
            }
        }
        self
    }

    /// Everything that can happen next.
    fn next(self, rules: Rules) -> Vec<World> {
        let mut worlds = Vec::new();
        self.source_goes_on(&mut worlds);
        self.destination_goes_on(rules, &mut worlds);
        self.vmms_do(rules, &mut worlds);
        self.time_goes_on(rules, &mut worlds);
        // A message is lost. Any delay is covered already.
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
            Wire {
                complete: false,
                ..self.wire
            },
        ] {
            worlds.push(World { wire: lost, ..self });
        }
        worlds
    }

    /// Every outcome of the source's current action.
    fn source_goes_on(self, worlds: &mut Vec<World>) {
        let in_time = self.time < Time::ClosedHere;
        match self.source {
            SS::Idle => worlds.push(self.source(SE::Start)),
            SS::Connecting => worlds.push(self.source(SE::Connected)),
            SS::Negotiating => worlds.push(self.source(SE::Agreed)),
            SS::Copying => worlds.push(self.source(SE::SwitchOver)),
            SS::Pausing => {
                let mut stopped = self;
                stopped.runs_here = false;
                worlds.push(stopped.source(SE::Paused));
                // `pause` failed, and all or some of the guest's vCPUs have stopped.
                worlds.push(stopped.source(SE::Failed(Failure::Other)));
                worlds.push(stopped.source(SE::DoesNotFit));
            }
            SS::Saving => worlds.push(self.source(SE::Saved)),
            SS::LastSync => {
                worlds.push(self.source(SE::Synced));
                let switched = World {
                    postcopy: true,
                    ..self
                };
                worlds.push(switched.source(SE::Synced));
                worlds.push(self.source(SE::DoesNotFit));
            }
            SS::SendingLast => worlds.push(self.source(SE::Sent)),
            SS::AwaitingReady if self.wire.ready => {
                let mut taken = self;
                taken.wire.ready = false;
                worlds.push(taken.source(SE::PeerReady));
            }
            SS::Releasing => worlds.push(self.source(SE::Released)),
            SS::Committing if in_time => {
                worlds.push(self.source(SE::GateWon));
                worlds.push(self.source(SE::GateLost));
            }
            SS::HandingOver if self.sending => {
                let mut sent = self;
                sent.wire.handover = true;
                worlds.push(sent.source(SE::HandoverSent));
                // The whole message may have been sent, or all but the last byte.
                worlds.push(sent.source(SE::Failed(Failure::PeerGone)));
            }
            SS::HandingOver if in_time => worlds.push(World {
                sending: true,
                ..self
            }),
            SS::HandingOver => worlds.push(self.source(SE::Late)),
            SS::AwaitingRunning if self.wire.running => {
                let mut taken = self;
                taken.wire.running = false;
                if self.postcopy {
                    worlds.push(taken.source(SE::PeerRunningToServe));
                } else {
                    worlds.push(taken.source(SE::PeerRunning));
                    worlds.push(taken.source(SE::PeerRunningToVerify));
                }
            }
            SS::Serving => {
                // Pages arrive, until all are there. They come only while the destination takes them.
                if self.destination == DS::Completing {
                    worlds.push(World {
                        whole_there: true,
                        ..self
                    });
                }
                if self.wire.complete {
                    worlds.push(self.source(SE::Served));
                }
            }
            SS::Recovering => worlds.push(self.source(SE::Recovered)),
            SS::Verifying => worlds.push(self.source(SE::Verified)),
            _ => {}
        }
        if self.resuming {
            let mut resumed = self;
            resumed.runs_here = true;
            if self.source != SS::AbortingPause {
                resumed.here = self.here.comes_to(Stage::Kept);
            }
            worlds.push(resumed.source(SE::Resumed));
            worlds.push(self.source(SE::ResumeFailed));
        } else if !self.source.is_over() {
            // What the destination says about its end is true, but not every failure comes from its
            // message.
            let ended_there = matches!(self.destination, DS::Failed | DS::StartFailed);
            let handed_over = self.source == SS::AwaitingRunning;
            let failures = FAILURES.iter().filter(|f| {
                let its_word = matches!(f, Failure::Refused | Failure::Cancelled);
                !(handed_over && its_word) || ended_there
            });
            worlds.extend(failures.map(|f| self.source(SE::Failed(*f))));
        }
    }

    fn destination_goes_on(self, rules: Rules, worlds: &mut Vec<World>) {
        let in_time = self.time < Time::ClosedThere || !rules.looks;
        match self.destination {
            DS::Idle => worlds.push(self.destination(DE::Start)),
            DS::Listening => worlds.push(self.destination(DE::Accepted)),
            DS::Negotiating => worlds.push(self.destination(DE::Agreed)),
            DS::Receiving if self.wire.last => worlds.push(self.destination(DE::AllReceived)),
            DS::Loading => worlds.push(self.destination(DE::Loaded)),
            DS::Ready => worlds.push(self.destination(DE::ReadySent)),
            DS::AwaitingHandover if self.wire.handover => {
                let mut taken = self;
                taken.wire.handover = false;
                worlds.push(taken.destination(DE::Handover));
            }
            DS::Committing if self.cancelled_there => {
                worlds.push(self.destination(DE::GateLost));
            }
            DS::Committing if in_time => worlds.push(self.destination(DE::GateWon)),
            DS::Committing => worlds.push(self.destination(DE::Late)),
            DS::Starting if self.runs_there && self.postcopy => {
                worlds.push(self.destination(DE::StartedToComplete));
            }
            DS::Starting if self.runs_there => worlds.push(self.destination(DE::Started)),
            DS::Completing if self.whole_there => worlds.push(self.destination(DE::AllHere)),
            // `run` is entered: from here on the guest may run.
            DS::Starting if self.starting => worlds.push(World {
                runs_there: true,
                starting: false,
                ..self
            }),
            DS::Starting if in_time => worlds.push(World {
                starting: true,
                ..self
            }),
            DS::Starting => worlds.push(self.destination(DE::Late)),
            _ => {}
        }
        if !self.destination.is_over() {
            // A `run` that fails leaves the guest stopped. A lane that fails does not.
            let goes_on = matches!(self.destination, DS::Completing | DS::Interrupted);
            let stopped = World {
                runs_there: self.runs_there && goes_on,
                ..self
            };
            let failures = FAILURES
                .iter()
                .filter(|_| self.destination != DS::Interrupted);
            worlds.extend(failures.map(|f| stopped.destination(DE::Failed(*f))));
        }
        if !self.committed_there && !self.destination.is_over() {
            worlds.push(World {
                cancelled_there: true,
                ..self
            });
        }
    }

    fn vmms_do(self, rules: Rules, worlds: &mut Vec<World>) {
        // A kick for some tracker, which pauses the guest and resumes it.
        if self.here.may_kick() || !rules.gates_kicks {
            worlds.push(World {
                runs_here: true,
                ..self
            });
        }
        if self.there.may_kick() || !rules.gates_kicks {
            worlds.push(World {
                runs_there: true,
                ..self
            });
        }
        if self.source == SS::Interrupted {
            worlds.push(self.source(SE::Retire));
            if self.runs_there {
                worlds.push(self.source(SE::RetireRunning));
            }
            if self.recoveries[0] < 2 {
                let mut again = self;
                again.recoveries[0] += 1;
                // What was on its way went with the old connections.
                again.wire.complete = false;
                worlds.push(again.source(SE::Recover));
            }
        }
        if self.destination == DS::Interrupted {
            worlds.push(self.destination(DE::GiveUp));
            if self.recoveries[1] < 2 {
                let mut again = self;
                again.recoveries[1] += 1;
                worlds.push(again.destination(DE::Recover));
            }
        }
        if self.source == SS::Unanswered {
            worlds.push(self.source(SE::Resolve(Resolution::Destroy)));
            // The VMM asks the destination's VMM, which has not called `run`, or whose `run`
            // failed.
            if !self.runs_there {
                worlds.push(self.source(SE::Resolve(Resolution::Resume)));
            }
        }
    }

    fn time_goes_on(self, rules: Rules, worlds: &mut Vec<World>) {
        let next = match self.time {
            Time::Open if self.counts_there => Time::ClosedThere,
            Time::ClosedThere if self.counts_here => Time::ClosedHere,
            Time::ClosedHere if !(self.starting && rules.margin) => Time::Decided,
            _ => self.time,
        };
        worlds.push(World { time: next, ..self });
        if self.source == SS::InDoubt && (self.time == Time::Decided || !rules.waits) {
            worlds.push(self.source(match self.postcopy {
                true => SE::DecidedToServe,
                false => SE::Decided,
            }));
        }
    }
}

fn all_worlds(rules: Rules) -> HashSet<World> {
    let mut seen = HashSet::from([World::first()]);
    let mut open = vec![World::first()];
    while let Some(world) = open.pop() {
        for next in world.next(rules) {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

fn two_run(worlds: &HashSet<World>) -> Option<&World> {
    worlds.iter().find(|w| w.runs_here && w.runs_there)
}

#[test]
fn the_guest_never_runs_on_both_sides_whatever_fails_and_whenever_and_however_late() {
    let worlds = all_worlds(KEPT);
    assert!(worlds.len() > 500, "the model explores: {}", worlds.len());
    assert_eq!(two_run(&worlds), None);
    let reached = |what: &str, is: &dyn Fn(&World) -> bool| {
        assert!(worlds.iter().any(is), "never reached: {what}");
    };
    reached("completed", &|w| w.source == SS::Completed && w.runs_there);
    reached("verifying", &|w| w.source == SS::Verifying && w.runs_there);
    reached("taken back", &|w| w.source == SS::TakenBack && w.runs_here);
    reached("a hand-over that comes too late", &|w| {
        w.wire.handover && w.time == Time::Decided && w.destination == DS::AwaitingHandover
    });
    reached("refused as late", &|w| {
        w.source == SS::InDoubt && w.destination == DS::Failed && w.time >= Time::ClosedThere
    });
    reached("postcopy completed", &|w| {
        w.source == SS::Completed && w.postcopy && w.destination == DS::Running
    });
    reached("completed after two recoveries", &|w| {
        w.source == SS::Completed && w.recoveries == [2, 2]
    });
    reached("interrupted on one side only", &|w| {
        w.source == SS::Serving && w.destination == DS::Interrupted
    });
    reached(
        "a start that nobody was told of, served all the same",
        &|w| w.source == SS::Interrupted && w.runs_there && w.recoveries == [0; 2],
    );
    reached("incomplete for good", &|w| w.destination == DS::Incomplete);
    reached("a late start here, and the guest is kept", &|w| {
        w.source == SS::Failed && w.runs_here && w.time >= Time::ClosedHere
    });
}

#[test]
fn without_the_destinations_look_at_its_clock_a_late_hand_over_makes_two() {
    let worlds = all_worlds(Rules {
        looks: false,
        ..KEPT
    });
    assert!(two_run(&worlds).is_some());
}

#[test]
fn without_the_sources_wait_the_vmm_decides_too_early_and_there_are_two() {
    let worlds = all_worlds(Rules {
        waits: false,
        ..KEPT
    });
    assert!(two_run(&worlds).is_some());
}

#[test]
fn without_the_margin_a_run_that_has_not_begun_yet_makes_two() {
    let worlds = all_worlds(Rules {
        margin: false,
        ..KEPT
    });
    assert!(two_run(&worlds).is_some());
}

#[test]
fn without_the_guests_word_a_kick_makes_two() {
    let worlds = all_worlds(Rules {
        gates_kicks: false,
        ..KEPT
    });
    assert!(two_run(&worlds).is_some());
}

#[test]
fn unanswered_comes_only_when_the_destination_runs_the_guest_or_never_will() {
    // In every later world: a destination that has not begun to run the guest never begins.
    let worlds = all_worlds(KEPT);
    let mut open: Vec<World> = worlds
        .iter()
        .copied()
        .filter(|w| w.source == SS::Unanswered && !w.runs_there)
        .collect();
    assert!(!open.is_empty());
    let mut seen: HashSet<World> = open.iter().copied().collect();
    while let Some(world) = open.pop() {
        for next in world.next(KEPT) {
            assert!(!next.runs_there, "{world:?}\n{next:?}");
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
}

#[test]
fn after_an_aborted_pause_the_guest_runs_and_the_destination_has_noticed_nothing() {
    let worlds = all_worlds(KEPT);
    let aborting = worlds.iter().filter(|w| w.source == SS::AbortingPause);
    let mut aborted = 0;
    for world in aborting {
        aborted += 1;
        assert!(
            matches!(
                world.destination,
                DS::Idle | DS::Listening | DS::Negotiating | DS::Receiving | DS::Failed
            ),
            "{world:?}"
        );
        assert_eq!(world.wire, Wire::default(), "{world:?}");
        assert_eq!(world.here.whose(), Whose::Paused, "{world:?}");
    }
    assert!(aborted > 0);
    for world in worlds.iter().filter(|w| w.source == SS::Copying) {
        assert!(world.runs_here && !world.runs_there, "{world:?}");
        assert_eq!(world.here.whose(), Whose::Leaving, "{world:?}");
    }
    let step = source::step(SS::AbortingPause, SE::Resumed);
    assert_eq!((step.state, step.actions), (SS::Copying, &[SA::Copy][..]));
    // A guest that cannot be resumed is not copied on.
    for event in [SE::ResumeFailed, SE::Failed(Failure::Other), SE::SwitchOver] {
        let step = source::step(SS::AbortingPause, event);
        assert_eq!(step.state, SS::ResumeFailed, "{event:?}");
    }
}

#[test]
fn a_destination_that_was_cancelled_never_runs() {
    for world in all_worlds(KEPT) {
        assert!(!(world.cancelled_there && world.runs_there), "{world:?}");
    }
}

#[test]
fn what_the_guest_object_says_is_so() {
    for world in all_worlds(KEPT) {
        let gone = [
            Whose::HandingOver,
            Whose::HandedOver,
            Whose::Unanswered,
            Whose::GivenUp,
        ];
        if world.runs_there {
            assert!(gone.contains(&world.here.whose()), "{world:?}");
        }
        if gone.contains(&world.here.whose()) {
            assert!(!world.runs_here, "{world:?}");
        }
        if world.here.whose() == Whose::HandedOver {
            assert_eq!(world.there.whose(), Whose::Here, "{world:?}");
        }
        // When the guest object says that the guest is here, that is true. Before the start the VMM
        // runs the guest.
        if world.here.whose() == Whose::Here {
            assert!(world.runs_here && !world.runs_there, "{world:?}");
        }
        if world.there.whose() == Whose::Here {
            assert!(world.runs_there && !world.runs_here, "{world:?}");
        }
    }
}

#[test]
fn where_it_ends_the_guest_runs_somewhere_or_the_vmm_is_asked() {
    for world in all_worlds(KEPT) {
        if !world.source.is_over() || world.resuming {
            continue;
        }
        match world.source {
            SS::Completed => assert!(world.runs_there, "{world:?}"),
            SS::Failed | SS::TakenBack => {
                assert!(world.runs_here && !world.runs_there, "{world:?}")
            }
            // The state is reported to the VMM, which decides.
            SS::ResumeFailed | SS::Unanswered | SS::GivenUp => {}
            _ => unreachable!("{world:?}"),
        }
    }
}

#[test]
fn without_a_hand_over_the_destination_never_runs() {
    for world in all_worlds(KEPT) {
        if world.runs_there || world.starting {
            assert!(
                matches!(
                    world.source,
                    SS::AwaitingRunning
                        | SS::InDoubt
                        | SS::Verifying
                        | SS::Completed
                        | SS::Serving
                        | SS::Interrupted
                        | SS::Recovering
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
    for state in [SS::HandingOver, SS::AwaitingRunning, SS::InDoubt] {
        for failure in FAILURES {
            let step = source::step(state, SE::Failed(failure));
            let its_word = matches!(failure, Failure::Refused | Failure::Cancelled);
            let end = match state {
                SS::AwaitingRunning if its_word => SS::Unanswered,
                _ => SS::InDoubt,
            };
            assert_eq!(step.state, end, "{state:?} {failure:?}");
            assert!(!step.actions.contains(&SA::CallResume));
        }
    }
    let step = source::step(SS::InDoubt, SE::Decided);
    assert_eq!(step.state, SS::Unanswered);
    assert!(!step.actions.contains(&SA::CallResume));
    assert!(step.actions.contains(&SA::PutBack));
}

#[test]
fn nothing_that_happens_while_the_source_verifies_is_a_failure() {
    let failures = FAILURES.map(SE::Failed);
    let others = [SE::Verified, SE::Decided, SE::Late, SE::ResumeFailed];
    for event in failures.into_iter().chain(others) {
        let step = source::step(SS::Verifying, event);
        assert_eq!(step.state, SS::Completed, "{event:?}");
        assert!(!step.actions.contains(&SA::CallResume), "{event:?}");
        assert!(!step.actions.contains(&SA::PutBack), "{event:?}");
    }
    // The memory is still read, so nothing else may use it.
    assert_eq!(SS::Verifying.stage(), Stage::HandingOver);
    for world in all_worlds(KEPT) {
        if world.source == SS::Verifying {
            assert!(world.here.arrives().is_err(), "{world:?}");
        }
    }
}

#[test]
fn before_the_hand_over_postcopy_fails_as_precopy_does_and_after_it_neither_side_ends_by_itself() {
    for world in all_worlds(KEPT).into_iter().filter(|w| w.postcopy) {
        // Every failure and every event of each side, whatever it means there.
        for failure in FAILURES {
            let failed = world.source(SE::Failed(failure));
            match world.source {
                SS::Serving | SS::Recovering => {
                    assert_eq!(failed.source, SS::Interrupted, "{world:?}")
                }
                SS::SendingLast | SS::AwaitingReady | SS::Releasing | SS::Committing => {
                    assert_eq!(failed.source, SS::Resuming, "{world:?}")
                }
                _ => {}
            }
            let failed = world.destination(DE::Failed(failure));
            match world.destination {
                DS::Completing => assert_eq!(failed.destination, DS::Interrupted, "{world:?}"),
                DS::Receiving | DS::Loading | DS::Ready | DS::AwaitingHandover => {
                    assert_eq!(failed.destination, DS::Failed, "{world:?}")
                }
                _ => {}
            }
        }
        // A guest whose pages are missing is nobody's to run here, and its memory is kept.
        if matches!(world.source, SS::Serving | SS::Interrupted | SS::Recovering) {
            assert!(!world.runs_here, "{world:?}");
            assert_eq!(world.here.whose(), Whose::HandingOver, "{world:?}");
            assert!(world.here.arrives().is_err() && world.here.leaves().is_err());
        }
        if matches!(world.destination, DS::Completing | DS::Interrupted) {
            assert!(world.there.arrives().is_err() && world.there.leaves().is_err());
            assert!(world.there.is_saved().is_err(), "{world:?}");
        }
    }
}

#[test]
fn a_switch_to_postcopy_completes_only_when_every_page_is_there() {
    for world in all_worlds(KEPT) {
        if world.source == SS::Completed && world.postcopy {
            assert!(world.whole_there, "{world:?}");
            assert_eq!(world.destination, DS::Running, "{world:?}");
        }
        if world.destination == DS::Running && world.postcopy {
            assert!(world.whole_there, "{world:?}");
        }
    }
}

#[test]
fn only_the_vmm_ends_an_interrupted_migration_and_a_resolved_one_is_not_recovered() {
    for event in [
        SE::Retire,
        SE::RetireRunning,
        SE::Recover,
        SE::Failed(Failure::Other),
    ] {
        let step = source::step(SS::Interrupted, event);
        assert!(!step.actions.contains(&SA::CallResume), "{event:?}");
    }
    let retired = source::step(SS::Interrupted, SE::Retire);
    assert_eq!(retired.state, SS::Unanswered);
    assert!(retired.actions.contains(&SA::PutBack));
    let running = source::step(SS::Interrupted, SE::RetireRunning);
    assert_eq!(running.state, SS::GivenUp);
    assert_eq!(running.actions, retired.actions);
    for state in [SS::Unanswered, SS::GivenUp, SS::TakenBack, SS::Completed] {
        assert_eq!(source::step(state, SE::Recover).state, state);
        assert_eq!(source::step(state, SE::Recovered).state, state);
    }
    for state in [DS::Running, DS::Incomplete, DS::Failed, DS::StartFailed] {
        assert_eq!(destination::step(state, DE::Recover).state, state);
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
