//! Panics planted for tests, and the tests of the promise behind them: a defect in any work of a
//! migration's thread fails the migration, the guest runs on, and it never runs twice. The drivers
//! and the boundary of the C interface have points at which a panic can be planted. Only builds of
//! the crate's own unit tests have them. (tests/migration/panics.rs has panics in the VMM's
//! callbacks.)

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// The point at which this thread has to panic once, and whether it did.
#[derive(Clone)]
struct Planted {
    place: String,
    fired: Arc<AtomicBool>,
}

thread_local! {
    static PLANTED: RefCell<Option<Planted>> = const { RefCell::new(None) };
}

/// Plants a panic on this thread: "before NAME" or "after NAME" of a [`point`]. The returned flag
/// tells whether it happened.
pub(crate) fn plant(place: &str) -> Arc<AtomicBool> {
    let fired = Arc::new(AtomicBool::new(false));
    plant_at(place, &fired);
    fired
}

fn plant_at(place: &str, fired: &Arc<AtomicBool>) {
    let planted = Planted {
        place: place.to_owned(),
        fired: Arc::clone(fired),
    };
    PLANTED.set(Some(planted));
}

/// A point where planted panics happen: "before NAME" in this call, and "after NAME" when the
/// returned value is dropped.
#[must_use]
pub(crate) fn point(name: &str) -> Leaving {
    fire("before", name);
    Leaving(name.to_owned())
}

pub(crate) struct Leaving(String);

impl Drop for Leaving {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fire("after", &self.0);
        }
    }
}

fn fire(when: &str, name: &str) {
    let here = PLANTED.with_borrow_mut(|planted| {
        planted.take_if(|p| p.place.strip_prefix(when).map(str::trim_start) == Some(name))
    });
    if let Some(planted) = here {
        planted.fired.store(true, Ordering::SeqCst);
        panic!("planted {when} {name}");
    }
}

mod tests {
    use super::*;
    use crate::dirty::tracker::{Clearing, Tracker};
    use crate::error::{Error, Kind, Result};
    use crate::memory::{BlockDescription, BlockFlags, Memory};
    use crate::migrate::switchover::{destination, source};
    use crate::migrate::{
        AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params, Resolution, State, Stats,
    };
    use crate::units::Bytes;
    use crate::vmm::{Event, EventKind, Role, StateBlob, StateSink, Vmm};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicU32;
    use std::sync::Mutex;
    use std::time::Duration;

    const BYTES: usize = 1 << 20;

    /// A VMM whose migration's thread panics at one point.
    #[derive(Default)]
    struct Guest {
        place: String,
        fired: Arc<AtomicBool>,
        end: End,
        /// The destination's end of the connection, for cutting it.
        connection: Mutex<Option<UnixStream>>,
        pauses: AtomicU32,
        resumes: AtomicU32,
        runs: AtomicU32,
        /// The events by which the VMM was told of the end.
        ends: Mutex<Vec<EventKind>>,
    }

    impl Guest {
        /// Checks that the result of the wait, the last event, the state and the figures agree.
        fn agrees(&self, what: &str, wait: &Result<()>, stats: &Stats, success: State) {
            let end = match wait {
                Ok(()) => EventKind::Completed,
                Err(e) if e.kind() == Kind::Unanswered => EventKind::Unanswered,
                Err(_) => EventKind::Failed,
            };
            assert_eq!(*self.ends.lock().unwrap(), [end], "{what}: {wait:?}");
            let error = wait.as_ref().err().map(Error::kind);
            assert_eq!(stats.error, error, "{what}: {wait:?}");
            assert_eq!(wait.is_ok(), stats.state == success, "{what}: {wait:?}");
        }
    }

    /// What the destination's VMM does with the guest.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    enum End {
        #[default]
        Runs,
        /// It refuses the device state.
        Refuses,
        /// It runs the guest, and the connection breaks before it can say so.
        Vanishes,
    }

    fn count(counter: &AtomicU32) -> u32 {
        counter.load(Ordering::SeqCst)
    }

    impl Vmm for Guest {
        fn event(&self, event: &Event) {
            use EventKind as E;
            if matches!(event.kind, E::Completed | E::Failed | E::Unanswered) {
                self.ends.lock().unwrap().push(event.kind);
            }
        }
        fn thread_start(&self, _role: Role) {
            plant_at(&self.place, &self.fired);
        }
        fn pause(&self) -> Result<()> {
            self.pauses.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn resume(&self) -> Result<()> {
            self.resumes.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
            sink.put(&StateBlob {
                name: "device",
                instance: 0,
                version: 1,
                data: &[1, 2, 3],
            })
        }
        fn load(&self, _blob: &StateBlob<'_>) -> Result<()> {
            if self.end == End::Refuses {
                return Err(Error::new(Kind::Vmm, "not this device"));
            }
            Ok(())
        }
        fn run(&self) -> Result<()> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            if let (End::Vanishes, Some(connection)) = (self.end, &*self.connection.lock().unwrap())
            {
                connection.shutdown(Shutdown::Both).unwrap();
            }
            Ok(())
        }
    }

    /// A block of the test's own memory, described to brant.
    fn memory(fill: u64) -> (Vec<u64>, Arc<Memory>) {
        let words = vec![fill; (BYTES + 4096) / 8];
        let host = words.as_ptr().cast::<u8>();
        let host = host.wrapping_add(host.align_offset(4096)).cast_mut();
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".to_owned(),
                // SAFETY: the test's own memory, or an address that nothing reads or writes.
                host: unsafe { crate::memory::HostMemory::new(host.cast()) },
                length: Bytes(BYTES as u64),
                page_size: Bytes(4096),
                file: None,
                flags: BlockFlags {
                    rom: false,
                    zeroed: false,
                },
            })
            .unwrap();
        (words, memory)
    }

    /// Makes a migration with a panic at one point of one side. Returns whether the panic happened.
    fn migrate(at_destination: bool, place: &str, end: End) -> bool {
        let what = format!(
            "{place} at the {}{}",
            if at_destination {
                "destination"
            } else {
                "source"
            },
            match end {
                End::Runs => "",
                End::Refuses => ", refused",
                End::Vanishes => ", unanswered",
            }
        );
        let guest = |here: bool| {
            Arc::new(Guest {
                place: if here {
                    place.to_owned()
                } else {
                    String::new()
                },
                end,
                ..Guest::default()
            })
        };
        let (from, to) = (guest(!at_destination), guest(at_destination));
        let (_from_words, from_memory) = memory(7);
        let (_to_words, to_memory) = memory(0);
        let tracker = Tracker::new(from_memory, Clearing::default()).unwrap();
        let params = || Params {
            handover_timeout: Duration::from_secs(2),
            switchover_timeout: Duration::from_secs(5),
            io_timeout: Duration::from_secs(5),
            verify: true,
            ..Params::default()
        };
        let outgoing = Outgoing::new(
            Arc::clone(&tracker),
            Blockers::new(),
            from.clone(),
            params(),
        )
        .unwrap();
        let incoming = Incoming::new(to_memory, to.clone(), params()).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        *to.connection.lock().unwrap() = Some(b.try_clone().unwrap());
        incoming.start(AcceptFrom::Connected(b.into())).unwrap();
        outgoing.start(ConnectTo::Connected(a.into())).unwrap();
        let limit = Some(Duration::from_secs(60));
        let left = outgoing.wait(limit);
        let arrived = incoming.wait(limit);
        for side in [&left, &arrived] {
            let pending = matches!(side, Err(e) if e.kind() == Kind::Pending);
            assert!(!pending, "{what}: it hangs");
        }
        // A defect before the call of `pause` counts as a failed pause, so `resume` is called
        // without a `pause`.
        let runs_here = || count(&from.pauses) <= count(&from.resumes);
        let runs_there = count(&to.runs) > 0;
        assert!(!(runs_here() && runs_there), "{what}: two guests run");
        assert!(count(&to.runs) <= 1, "{what}: it was started twice");
        let completed = State::from(source::State::Completed);
        from.agrees(&what, &left, &outgoing.stats(), completed);
        let running = State::from(destination::State::Running);
        to.agrees(&what, &arrived, &incoming.stats(), running);
        assert_eq!(runs_there, arrived.is_ok(), "{what}: {arrived:?}");
        match &left {
            Ok(()) => assert!(runs_there && !runs_here(), "{what}: completed"),
            Err(e) if e.kind() == Kind::Unanswered => {
                assert!(!runs_here(), "{what}: unanswered, and it runs here");
                outgoing.resolve(Resolution::Destroy).unwrap();
            }
            // When the source reports a failure, the guest has to run on here.
            Err(e) => {
                let resume_failed = place.ends_with("CallResume");
                assert!(runs_here() || resume_failed, "{what}: {e}: paused for ever");
                assert!(!runs_there, "{what}: {e}: it runs there");
            }
        }
        let fired = from.fired.load(Ordering::SeqCst) || to.fired.load(Ordering::SeqCst);
        // A success was checked above, and stays one even if reporting it panicked. A failure has
        // to name the planted panic.
        let own = if at_destination { &arrived } else { &left };
        if let (true, Err(e), End::Runs) = (fired, own, end) {
            assert!(e.message().contains("planted"), "{what}: {e}");
        }
        // Nothing uses the memory any more.
        drop(outgoing);
        drop(incoming);
        assert!(
            !tracker.is_started(),
            "{what}: the guest is logged for ever"
        );
        fired
    }

    fn everywhere(at_destination: bool, names: &[String]) {
        for name in names {
            for when in ["before", "after"] {
                let place = format!("{when} {name}");
                let fired = migrate(at_destination, &place, End::Runs);
                // A migration that the destination refuses has actions that a successful one lacks.
                let fired = migrate(at_destination, &place, End::Refuses) || fired;
                // States that neither of the two migrations enters.
                let elsewhere = [
                    "Resuming",
                    "ResumeFailed",
                    "Unanswered",
                    "TakenBack",
                    "GivenUp",
                    "InDoubt",
                    "WaitOut",
                    "Serve",
                    "AwaitRecovery",
                    "Reconnect",
                    "Serving",
                    "Interrupted",
                    "Recovering",
                ];
                let rare = elsewhere.iter().any(|s| name.ends_with(s))
                    || name.ends_with("StartFailed")
                    || name.ends_with("Idle");
                assert!(fired || rare, "{place} was never reached");
            }
        }
    }

    #[test]
    fn a_defect_in_any_action_or_state_of_the_source_never_makes_two_guests_or_none() {
        use source::Action as A;
        let actions = [
            A::Connect,
            A::Negotiate,
            A::Copy,
            A::CallPause,
            A::CallSave,
            A::SyncLast,
            A::SendLast,
            A::AwaitReady,
            A::CallRelease,
            A::TakeGate,
            A::SendHandover,
            A::AwaitRunning,
            A::Verify,
            A::WaitOut,
            A::Serve,
            A::AwaitRecovery,
            A::Reconnect,
            A::CallResume,
            A::PutBack,
            A::TellPeer,
            A::StopTracking,
            A::Report,
        ];
        for action in actions {
            // A new action fails to compile here. Add it to the list above as well.
            match action {
                A::Connect | A::Negotiate | A::Copy | A::CallPause | A::CallSave => {}
                A::SyncLast | A::SendLast | A::AwaitReady | A::CallRelease | A::TakeGate => {}
                A::SendHandover | A::AwaitRunning | A::Verify | A::WaitOut => {}
                A::CallResume | A::PutBack => {}
                A::Serve | A::AwaitRecovery | A::Reconnect => {}
                A::TellPeer | A::StopTracking | A::Report => {}
            }
        }
        let mut names: Vec<String> = actions.iter().map(|a| format!("{a:?}")).collect();
        use source::State as S;
        let states = [
            S::Connecting,
            S::Negotiating,
            S::Copying,
            S::Pausing,
            S::Saving,
            S::LastSync,
            S::SendingLast,
            S::AwaitingReady,
            S::Releasing,
            S::Committing,
            S::HandingOver,
            S::AwaitingRunning,
            S::Resuming,
            S::Completed,
            S::Failed,
            S::ResumeFailed,
            S::Unanswered,
            S::TakenBack,
            S::GivenUp,
            S::InDoubt,
            S::Verifying,
            S::Serving,
            S::Interrupted,
            S::Recovering,
        ];
        names.extend(states.iter().map(|s| format!("entering {s:?}")));
        everywhere(false, &names);
    }

    #[test]
    fn a_defect_in_any_action_or_state_of_the_destination_never_makes_two_guests_or_none() {
        use destination::Action as A;
        let actions = [
            A::Accept,
            A::Negotiate,
            A::Receive,
            A::CallLoad,
            A::SendReady,
            A::AwaitHandover,
            A::TakeGate,
            A::CallRun,
            A::SendRunning,
            A::SendDigests,
            A::TellPeer,
            A::Report,
        ];
        for action in actions {
            // As above.
            match action {
                A::Accept | A::Negotiate | A::Receive | A::CallLoad | A::SendReady => {}
                A::AwaitHandover | A::TakeGate | A::CallRun | A::SendRunning | A::SendDigests => {}
                A::TellPeer | A::Report => {}
                // Only in a postcopy.
                A::Complete | A::SendComplete | A::AwaitRecovery | A::Reconnect => {}
            }
        }
        let mut names: Vec<String> = actions.iter().map(|a| format!("{a:?}")).collect();
        use destination::State as S;
        let states = [
            S::Listening,
            S::Negotiating,
            S::Receiving,
            S::Loading,
            S::Ready,
            S::AwaitingHandover,
            S::Committing,
            S::Starting,
            S::Running,
            S::Failed,
            S::StartFailed,
        ];
        names.extend(states.iter().map(|s| format!("entering {s:?}")));
        everywhere(true, &names);
    }

    #[test]
    fn a_defect_while_the_answer_is_in_doubt_never_makes_two_guests() {
        let places = [
            "before AwaitRunning",
            "after AwaitRunning",
            "entering InDoubt",
            "before WaitOut",
            "after WaitOut",
            "entering Unanswered",
            "before PutBack",
            "before Report",
        ];
        let places = places.map(|place| match place.strip_prefix("entering") {
            Some(_) => format!("before {place}"),
            None => place.to_owned(),
        });
        // Each migration takes the hand-over's time limit and the margin.
        std::thread::scope(|scope| {
            for place in &places {
                scope.spawn(move || {
                    assert!(migrate(false, place, End::Vanishes), "{place}: not reached");
                });
            }
        });
    }
}
