//! Whole postcopies: both sides are brant's, and at the end the destination's memory equals the source's,
//! which is frozen since the pause.

use super::scripted::{COMPLETING, INTERRUPTED};
use crate::support::guest::{differences, Guest};
use crate::support::memory::{ram, shared, PAGE};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{Side, TestVmm};
use brant::error::Kind;
use brant::migrate::{
    AcceptFrom, ConnectTo, Decider, Decision, DestinationState, Endpoint, Facts, Incoming,
    Listener, Next, OnDeadline, Outgoing, Params, Policy, Resolution, SourceState,
};
use brant::vmm::EventKind;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const PAGES: usize = 6000;

/// A pair whose destination reads none of its memory before the guest does.
pub(super) fn pair() -> Pair {
    let specs = [ram("ram", PAGES), shared("shared", 700)];
    let mut pair = Pair::of(Guest::new(&specs), Guest::new(&specs));
    pair.to = TestVmm::new(&pair.destination, None, &pair.world, Side::Destination);
    pair.source.fill(7);
    pair
}

pub(super) fn allowed(channels: u32) -> Params {
    Params {
        postcopy: true,
        channels,
        ..quick()
    }
}

/// Copies as long as nobody orders anything else.
pub struct CopiesOn;

impl Decider for CopiesOn {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}

/// Both sides of a migration, and the source's ends of its connections.
pub(super) struct Sides {
    pub(super) pair: Pair,
    pub(super) out: Arc<Outgoing>,
    pub(super) inc: Arc<Incoming>,
    ends: Vec<UnixStream>,
}

/// Connected sockets for this many channels and the urgent lane: for the source, for the destination,
/// and the source's ends once more.
pub(super) fn connections(channels: u32) -> (Vec<OwnedFd>, Vec<OwnedFd>, Vec<UnixStream>) {
    let (mut near, mut far, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=channels {
        let (a, b) = socketpair();
        let end = UnixStream::from(a);
        near.push(end.try_clone().unwrap().into());
        ends.push(end);
        far.push(b);
    }
    (near, far, ends)
}

impl Sides {
    pub(super) fn start(pair: Pair, params: &Params) -> Sides {
        Sides::start_with(pair, params, None)
    }

    pub(super) fn start_with(
        pair: Pair,
        params: &Params,
        decider: Option<Box<dyn Decider>>,
    ) -> Sides {
        let (near, far, ends) = connections(params.channels);
        let (out, inc) = (outgoing(&pair, params), incoming(&pair, params));
        inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
        let to = ConnectTo::ConnectedAll(near);
        match decider {
            Some(decider) => out.start_with(to, decider).unwrap(),
            None => out.start(to).unwrap(),
        }
        Sides {
            pair,
            out,
            inc,
            ends,
        }
    }

    /// Waits for the end of both sides, and compares all of the memory.
    pub(super) fn assert_whole(&self, what: &str) {
        let ended = self.out.wait(Some(LONG));
        assert!(
            ended.is_ok(),
            "{what}: {ended:?}, {:?}; here {:?}, {:?}; there {:?}, {:?}, {:?}",
            self.out.stats(),
            self.pair.from.states(),
            self.pair.from.events(EventKind::Interrupted),
            self.pair.to.states(),
            self.pair.to.events(EventKind::Interrupted),
            self.pair.to.events(EventKind::Warning),
        );
        self.inc.wait(Some(LONG)).unwrap();
        self.pair.destination.pause();
        self.pair.assert_sound(what);
        assert_eq!(
            differences(&self.pair.source, &self.pair.destination),
            [""; 0],
            "{what}"
        );
        assert_eq!(self.out.state(), SourceState::Completed, "{what}");
        assert_eq!(self.inc.state(), DestinationState::Running, "{what}");
        assert_eq!(self.out.stats().missing_pages, 0, "{what}");
    }

    /// Cuts every connection.
    pub(super) fn cut(&mut self) {
        for end in self.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Has both sides go on over new connections.
    pub(super) fn recover(&mut self, channels: u32) {
        let (near, far, ends) = connections(channels);
        self.ends = ends;
        self.inc.recover(AcceptFrom::ConnectedAll(far)).unwrap();
        self.out.recover(ConnectTo::ConnectedAll(near)).unwrap();
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.out.state() == SourceState::Interrupted
            && self.inc.state() == DestinationState::Interrupted
    }

    /// Waits until `is`, or until the source is over.
    pub(super) fn wait_until(&self, is: impl Fn(&Sides) -> bool) -> bool {
        let begun = std::time::Instant::now();
        while !is(self) {
            if self.out.state().is_over() {
                return false;
            }
            assert!(begun.elapsed() < LONG, "{:?}", self.out.stats());
            let _ = self.out.wait(Some(MS));
        }
        true
    }
}

/// Pages before the switch: `tenth` tenths of the memory.
fn switch_at(tenth: u64, channels: u32) {
    let params = Params {
        max_bandwidth: Some(40 << 20),
        ..allowed(channels)
    };
    let sides = Sides::start_with(pair(), &params, Some(Box::new(CopiesOn)));
    let wanted = tenth * (PAGES as u64 + 700) / 10;
    sides.wait_until(|sides| {
        let stats = sides.out.stats();
        sides.out.state() == SourceState::Copying && stats.data_pages + stats.zero_pages >= wanted
    });
    sides.out.start_postcopy().unwrap();
    sides.out.set_max_bandwidth(None).unwrap();
    let what = format!("at {tenth} tenths, over {channels} channels");
    sides.assert_whole(&what);
    let (stats, events) = (
        sides.out.stats(),
        sides.pair.from.events(EventKind::Downtime),
    );
    assert!(
        stats.urgent_pages + stats.bulk_pages > 0,
        "{what}: {events:?}"
    );
    // Each page goes once.
    assert_eq!(stats.put_back_pages, 0, "{what}");
    assert_eq!(sides.pair.from.calls("resume"), 0, "{what}");
}

#[test]
fn a_guest_is_whole_after_a_switch_at_each_tenth_of_the_first_pass() {
    for tenth in 0..10 {
        switch_at(tenth, [1, 2, 3][tenth as usize % 3]);
    }
}

#[test]
fn pages_that_the_guest_needs_overtake_those_that_it_does_not() {
    // So slow that the rest takes seconds.
    let params = Params {
        max_bandwidth: Some(8 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        ..allowed(2)
    };
    let sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    sides.pair.to.wait_state(COMPLETING);
    let ram = sides.pair.destination.ram("ram");
    let source = sides.pair.source.ram("ram");
    for page in [PAGES - 1, PAGES / 2, 1] {
        let here = ram.word(page * PAGE).load(Ordering::SeqCst);
        assert_eq!(here, source.word(page * PAGE).load(Ordering::SeqCst));
    }
    // All of it came before the rest did.
    assert_eq!(sides.out.state(), SourceState::Serving);
    assert!(sides.wait_until(|sides| sides.out.stats().requests >= 1));
    let stats = sides.out.stats();
    assert!(stats.missing_pages > 0, "{stats:?}");
    sides.out.set_max_bandwidth(None).unwrap();
    let refused = sides.out.cancel().unwrap_err();
    assert_eq!(refused.kind(), Kind::State);
    sides.assert_whole("slow");
}

#[test]
fn a_migration_whose_connections_are_lost_goes_on_over_new_ones_any_number_of_times() {
    let params = Params {
        max_bandwidth: Some(40 << 20),
        switchover_max_bandwidth: Some(40 << 20),
        ..allowed(2)
    };
    let mut sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    // Before the source hears RUNNING, a lost connection leaves it in doubt for as long as a hand-over
    // counts.
    sides.wait_until(|sides| sides.out.state() == SourceState::Serving);
    let mut recoveries = 0;
    for round in 0..4 {
        sides.cut();
        if !sides.wait_until(Sides::is_interrupted) {
            break;
        }
        let events = sides.pair.from.events(EventKind::Interrupted);
        assert!(events.len() > round, "{events:?}");
        let left = sides.out.stats().missing_pages;
        assert!(left > 0);
        sides.recover(2);
        recoveries += 1;
        sides.wait_until(|sides| {
            let stats = sides.out.stats();
            stats.recoveries == recoveries && stats.missing_pages + 200 < left
        });
    }
    assert!(recoveries >= 2, "{recoveries}");
    sides.assert_whole("recovered");
    assert_eq!(sides.out.stats().recoveries, recoveries);
}

#[test]
fn connections_that_brant_makes_have_one_more_for_pages_that_somebody_waits_for() {
    for channels in [1, 2] {
        let pair = pair();
        let params = allowed(channels);
        let listener = Listener::bind(&Endpoint::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
        let at = listener.local_endpoint().clone();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        inc.start(AcceptFrom::Listener(Arc::new(listener))).unwrap();
        out.start_with(ConnectTo::Endpoint(at), Box::new(CopiesOn))
            .unwrap();
        let sides = Sides {
            pair,
            out,
            inc,
            ends: Vec::new(),
        };
        sides.wait_until(|sides| sides.out.state() == SourceState::Copying);
        sides.out.start_postcopy().unwrap();
        sides.assert_whole(&format!("at an endpoint, {channels} channels"));
        let stats = sides.out.stats();
        assert!(stats.urgent_pages + stats.bulk_pages > 0, "{stats:?}");
    }
}

#[test]
fn a_recovery_at_an_endpoint_brings_pages_that_a_thread_waits_for() {
    for channels in [1, 2] {
        let params = Params {
            max_bandwidth: Some(8 << 20),
            switchover_max_bandwidth: Some(8 << 20),
            ..allowed(channels)
        };
        let mut sides = Sides::start(pair(), &params);
        sides.out.start_postcopy().unwrap();
        sides.wait_until(|sides| sides.out.state() == SourceState::Serving);
        sides.cut();
        assert!(sides.wait_until(Sides::is_interrupted));
        let (source, ram) = (
            sides.pair.source.ram("ram"),
            sides.pair.destination.ram("ram"),
        );
        std::thread::scope(|scope| {
            let pages = [PAGES - 1, PAGES - 600, PAGES / 2];
            let readers = pages.map(|page| {
                let ram = &ram;
                scope.spawn(move || ram.word(page * PAGE).load(Ordering::SeqCst))
            });
            let endpoint = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
            let at = sides.inc.recover_at(&endpoint).unwrap();
            sides.out.recover(ConnectTo::Endpoint(at)).unwrap();
            for (page, reader) in pages.into_iter().zip(readers) {
                let here = source.word(page * PAGE).load(Ordering::SeqCst);
                assert_eq!(reader.join().unwrap(), here, "page {page}");
            }
        });
        sides.out.set_max_bandwidth(None).unwrap();
        sides.assert_whole("recovered at an endpoint");
        assert_eq!(sides.out.stats().recoveries, 1);
    }
}

#[test]
fn an_interrupted_migration_that_is_resolved_is_not_recovered_and_its_guest_never_runs_here() {
    let params = Params {
        max_bandwidth: Some(8 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        ..allowed(1)
    };
    let mut sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    sides.pair.to.wait_state(COMPLETING);
    let (near, _far, _) = connections(1);
    let early = sides
        .out
        .recover(ConnectTo::ConnectedAll(near))
        .unwrap_err();
    assert_eq!(early.kind(), Kind::State, "{early}");
    sides.wait_until(|sides| sides.out.state() == SourceState::Serving);
    sides.cut();
    sides.pair.to.wait_state(INTERRUPTED);
    assert!(sides.wait_until(Sides::is_interrupted));
    let refused = sides.out.resolve(Resolution::Resume).unwrap_err();
    assert_eq!(refused.kind(), Kind::State, "{refused}");
    sides.out.resolve(Resolution::Destroy).unwrap();
    assert_eq!(sides.out.state(), SourceState::GivenUp);
    let (near, _far, _) = connections(1);
    let late = sides
        .out
        .recover(ConnectTo::ConnectedAll(near))
        .unwrap_err();
    assert_eq!(late.kind(), Kind::State, "{late}");
    assert_eq!(sides.pair.from.calls("resume"), 0);
    sides.inc.give_up().unwrap();
    sides.inc.wait(Some(LONG)).unwrap_err();
}

#[test]
fn a_connection_that_is_lost_before_the_hand_over_leaves_the_guest_here() {
    let sides = Sides::start(pair(), &allowed(2));
    let ends: Vec<UnixStream> = sides.ends.iter().map(|e| e.try_clone().unwrap()).collect();
    sides.pair.from.at("release", move || {
        for end in &ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        Ok(())
    });
    sides.out.start_postcopy().unwrap();
    sides.out.wait(Some(LONG)).unwrap_err();
    sides.inc.wait(Some(LONG)).unwrap_err();
    sides.pair.assert_runs_on("cut at release");
}

#[test]
fn a_switch_that_would_overrun_the_downtime_limit_is_refused_with_the_figure_and_copying_goes_on() {
    let params = Params {
        downtime_limit: MS * 20,
        expected: brant::migrate::Operations {
            load: Some(MS * 500),
            ..Default::default()
        },
        overrun: brant::migrate::Overrun::CarryOn,
        ..allowed(1)
    };
    let sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    sides.assert_whole("refused");
    let events = sides.pair.from.events(EventKind::Downtime);
    let refused = events
        .iter()
        .any(|e| e.contains("a switch to postcopy would") && e.contains("20.0 ms"));
    assert!(refused, "{events:?}");
    let stats = sides.out.stats();
    assert_eq!(stats.urgent_pages + stats.bulk_pages, 0);
    assert!(!sides.pair.to.states().iter().any(|s| s == COMPLETING));
}

#[test]
fn a_policy_sends_the_guest_ahead_at_its_deadline() {
    let params = Params {
        max_bandwidth: Some(8 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        policy: Policy {
            deadline: Some(MS * 300),
            on_deadline: OnDeadline::Postcopy,
            ..Policy::default()
        },
        ..allowed(1)
    };
    let sides = Sides::start(pair(), &params);
    sides.pair.to.wait_state(COMPLETING);
    sides.out.set_max_bandwidth(None).unwrap();
    sides.assert_whole("by policy");
    let events = sides.pair.from.events(EventKind::Downtime);
    assert!(events.iter().any(|e| e.contains("deadline")), "{events:?}");
}

#[test]
fn postcopy_that_the_parameters_do_not_allow_is_refused_by_name() {
    let sides = Sides::start(pair(), &allowed(1));
    let params = quick();
    let out = outgoing(&sides.pair, &params);
    let error = out.start_postcopy().unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    let verified = Params {
        verify: true,
        ..allowed(1)
    };
    let vmm = Arc::clone(&sides.pair.from);
    let made = brant::migrate::Outgoing::new(
        Arc::clone(&sides.pair.source.tracker),
        brant::migrate::Blockers::new(),
        vmm,
        verified,
    );
    assert_eq!(made.err().unwrap().kind(), Kind::Invalid);
    sides.assert_whole("allowed and not used");
}

#[test]
fn blocks_neither_come_nor_go_while_memory_follows_its_guest() {
    let params = Params {
        max_bandwidth: Some(8 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        ..allowed(1)
    };
    let sides = Sides::start(pair(), &params);
    sides.out.start_postcopy().unwrap();
    sides.wait_until(|sides| sides.out.state() == SourceState::Serving);
    let memory = &sides.pair.source.memory;
    let (id, _) = sides.pair.source.rams()[0];
    let removed = memory.remove_block(id).unwrap_err();
    let more = crate::support::memory::Ram::new(&ram("more", 10));
    let added = memory.add_block(more.describe()).unwrap_err();
    for error in [removed, added] {
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        assert!(error.message().contains("postcopy"), "{error}");
    }
    sides.out.set_max_bandwidth(None).unwrap();
    sides.assert_whole("blocks");
    // Then they may.
    memory.remove_block(id).unwrap();
}

#[test]
fn a_guest_that_started_unheard_gets_its_pages_after_a_recovery() {
    let params = Params {
        max_bandwidth: Some(40 << 20),
        switchover_max_bandwidth: Some(8 << 20),
        handover_timeout: MS * 1000,
        ..allowed(1)
    };
    let mut sides = Sides::start(pair(), &params);
    let ends: Vec<UnixStream> = sides.ends.iter().map(|e| e.try_clone().unwrap()).collect();
    sides.pair.to.at("run", move || {
        for end in &ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        Ok(())
    });
    sides.out.start_postcopy().unwrap();
    // RUNNING never comes. The source waits until the destination has decided.
    assert!(sides.wait_until(Sides::is_interrupted));
    assert_eq!(sides.pair.world.who(), (false, true));
    sides.recover(1);
    sides.assert_whole("started unheard");
    assert_eq!(sides.pair.from.calls("resume"), 0);
}
