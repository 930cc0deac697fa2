//! Lanes of a postcopy are cut at random, again and again, while threads at the destination touch its
//! pages: one lane, all of them, the urgent one; in the middle of a record, in the middle of a recovery,
//! and at the hand-over. `BRANT_CUTS` says how many cuts there are (`make test-cuts`: 500), `BRANT_SEED`
//! repeats the choices of a run.
//!
//! At the end every page is what it was at the source, and what each thread has added to it.

use super::vcpus::{Order, Vcpus, ORDERS};
use super::whole::{allowed, CopiesOn};
use super::wires::{Reach, Wires};
use crate::support::guest::Guest;
use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{Side, TestVmm};
use brant::migrate::{
    AcceptFrom, ConnectTo, DestinationState, Incoming, Outgoing, Params, SourceState,
};
use brant::vmm::EventKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: usize = 2000;
const SHARED: usize = 400;
/// Bytes a second: the rest of the memory takes half a second.
const SLOW: u64 = 16 << 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}: {text} is no number")),
    )
}

/// What has become of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    /// Both sides wait for a recovery.
    Interrupted,
    /// The source knows that all is there.
    Completed,
    /// All is there, and the word for it was lost.
    Untold,
    /// Cut before the hand-over: the guest runs at the source.
    Stayed,
}

/// What was done, over all sessions.
#[derive(Debug, Default)]
struct Sum {
    sessions: usize,
    cuts: usize,
    in_recovery: usize,
    of_urgent: usize,
    of_all: usize,
    untold: usize,
    stayed: usize,
    faults: u64,
    steps: usize,
}

/// One migration, with the connections that it has now.
struct Session {
    what: String,
    pair: Pair,
    out: Arc<Outgoing>,
    inc: Arc<Incoming>,
    wires: Wires,
    channels: usize,
    random: Random,
    /// Interruptions that each side has told of.
    told: [usize; 2],
    vcpus: Option<Vcpus>,
}

impl Session {
    fn start(seed: u64, number: usize) -> Session {
        let mut random = Random(seed.wrapping_add(number as u64 * 0x1_0001));
        let specs = [ram("ram", PAGES), shared("shared", SHARED)];
        let mut pair = Pair::of(Guest::new(&specs), Guest::new(&specs));
        pair.to = TestVmm::new(&pair.destination, None, &pair.world, Side::Destination);
        pair.source.fill(random.next());
        pair.source.writers(1, MS);
        let channels = 1 + random.below(3);
        let params = Params {
            max_bandwidth: Some(4 * SLOW),
            switchover_max_bandwidth: Some(SLOW),
            handover_timeout: MS * 1000,
            ..allowed(channels as u32)
        };
        let (wires, near, far) = Wires::new(channels + 1);
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
        out.start_with(ConnectTo::ConnectedAll(near), Box::new(CopiesOn))
            .unwrap();
        let what = format!("session {number} of seed {seed}, {channels} channels");
        Session {
            what,
            pair,
            out,
            inc,
            wires,
            channels,
            random,
            told: [0, 0],
            vcpus: None,
        }
    }

    fn interruptions(&self) -> [usize; 2] {
        [&self.pair.from, &self.pair.to].map(|vmm| vmm.events(EventKind::Interrupted).len())
    }

    fn is_interrupted(&self) -> bool {
        let told = self.interruptions();
        (0..2).all(|side| told[side] > self.told[side])
            && self.out.state() == SourceState::Interrupted
            && self.inc.state() == DestinationState::Interrupted
    }

    /// What the session has come to, if that is known.
    fn now(&self) -> Option<Now> {
        match self.out.state() {
            SourceState::Completed => Some(Now::Completed),
            SourceState::Failed => Some(Now::Stayed),
            SourceState::Interrupted if self.inc.state() == DestinationState::Running => {
                Some(Now::Untold)
            }
            _ => self.is_interrupted().then_some(Now::Interrupted),
        }
    }

    /// Waits until that is known, or until `until`.
    fn wait(&mut self, limit: Duration, until: impl Fn(&Session) -> bool) -> Option<Now> {
        let begun = Instant::now();
        loop {
            if let Some(now) = self.now() {
                return Some(now);
            }
            if until(self) {
                return None;
            }
            assert!(
                begun.elapsed() < limit,
                "{}: source {:?} {:?} {:?}, destination {:?} {:?} {:?}; {:?}; {:?}",
                self.what,
                self.out.state(),
                self.pair.from.states(),
                self.pair.from.events(EventKind::Interrupted),
                self.inc.state(),
                self.pair.to.states(),
                self.pair.to.events(EventKind::Interrupted),
                self.out.stats(),
                self.inc.stats(),
            );
            let _ = self.out.wait(Some(MS));
        }
    }

    /// Starts threads that touch memory at the destination, where the guest runs by now.
    fn touch(&mut self) {
        let mut orders = vec![Order::Random, *self.random.pick(&ORDERS)];
        if self.random.below(2) == 0 {
            orders.push(*self.random.pick(&ORDERS));
        }
        let (source, destination) = (&self.pair.source, &self.pair.destination);
        let seed = self.random.next();
        self.vcpus = Some(Vcpus::start(source, destination, &orders, seed, MS / 10));
    }

    /// Orders a cut within about `most` bytes.
    fn order_cut(&mut self, most: u64, sum: &mut Sum) {
        let all = self.random.below(3) == 0;
        let wire = match self.random.below(3) {
            0 => self.channels,
            _ => self.random.below(self.channels + 1),
        };
        // Back to the source go acknowledgements and requests.
        let way = usize::from(self.random.below(4) == 0);
        // The urgent connection carries less.
        let most = match way == 1 || wire == self.channels {
            true => most / 64 + 1,
            false => most,
        };
        let bytes = self.random.next() % (most / 3 + 1);
        let reach = if all { Reach::All } else { Reach::One };
        sum.of_all += usize::from(all);
        sum.of_urgent += usize::from(wire == self.channels && !all);
        self.wires.cut_behind(wire, way, bytes, reach);
    }

    /// New connections for both sides; perhaps with a cut within the recovery.
    fn recover(&mut self, sum: &mut Sum) {
        self.told = self.interruptions();
        let (wires, near, far) = Wires::new(self.channels + 1);
        self.wires = wires;
        if self.random.below(3) == 0 {
            let most = [100, 400, 3000][self.random.below(3)];
            sum.in_recovery += 1;
            // Each connection carries as much of it, so any of them will do.
            let (wire, way) = (self.random.below(self.channels + 1), self.random.below(2));
            let bytes = self.random.next() % most;
            let reach = [Reach::One, Reach::All][self.random.below(2)];
            self.wires.cut_behind(wire, way, bytes, reach);
        }
        // In either order: connected sockets hold what is said too early.
        if self.random.below(2) == 0 {
            self.inc.recover(AcceptFrom::ConnectedAll(far)).unwrap();
            self.out.recover(ConnectTo::ConnectedAll(near)).unwrap();
        } else {
            self.out.recover(ConnectTo::ConnectedAll(near)).unwrap();
            self.inc.recover(AcceptFrom::ConnectedAll(far)).unwrap();
        }
    }

    /// Up to `cuts` cuts, and the end.
    fn run(mut self, cuts: usize, sum: &mut Sum) {
        sum.sessions += 1;
        let first = self.random.below((PAGES + SHARED) * 9 / 10) as u64;
        self.wait(LONG, |session| {
            let stats = session.out.stats();
            stats.data_pages + stats.zero_pages >= first
        });
        // Some are cut at the switch.
        if self.random.below(6) == 0 {
            let (wire, way) = (self.random.below(self.channels + 1), self.random.below(2));
            let most = if way == 1 { 300 } else { 6000 };
            let bytes = self.random.next() % most;
            self.wires.cut_behind(wire, way, bytes, Reach::All);
        }
        self.out.set_max_bandwidth(Some(SLOW)).unwrap();
        let _ = self.out.start_postcopy();
        let mut now = self.wait(LONG, |session| session.out.state() == SourceState::Serving);
        let (mut done, mut recoveries) = (0, 0);
        loop {
            if self.vcpus.is_none() && self.pair.world.who().1 {
                self.touch();
            }
            match now {
                Some(Now::Interrupted) => {
                    done += 1;
                    sum.cuts += 1;
                    self.recover(sum);
                }
                Some(Now::Completed | Now::Untold) => break,
                Some(Now::Stayed) => return self.stayed(sum),
                None if done < cuts => {
                    let most = u64::from(u32::MAX).min(self.left() * 4096 + 64);
                    self.order_cut(most, sum);
                }
                None => {
                    self.wires.spare();
                    self.out.set_max_bandwidth(None).unwrap();
                }
            }
            // After a recovery: until pages go again. After an order: until the cut has come.
            let recovered = now == Some(Now::Interrupted);
            let before = recoveries;
            now = self.wait(LONG, |session| {
                recovered && session.out.stats().recoveries > before
            });
            recoveries = self.out.stats().recoveries;
        }
        self.complete(now, sum);
    }

    fn left(&self) -> u64 {
        self.out.stats().missing_pages
    }

    fn stayed(self, sum: &mut Sum) {
        sum.stayed += 1;
        sum.cuts += 1;
        let _ = self.inc.wait(Some(LONG));
        self.pair.assert_runs_on(&self.what);
        let from = self.pair.source.counter();
        self.pair.source.wait_goes_on(from);
    }

    fn complete(mut self, now: Option<Now>, sum: &mut Sum) {
        if now == Some(Now::Untold) {
            sum.untold += 1;
            sum.cuts += 1;
            // The destination says so once more.
            let (wires, near, far) = Wires::new(self.channels + 1);
            self.wires = wires;
            self.inc.wait(Some(LONG)).unwrap();
            self.inc.recover(AcceptFrom::ConnectedAll(far)).unwrap();
            self.out.recover(ConnectTo::ConnectedAll(near)).unwrap();
        }
        self.out.wait(Some(LONG)).unwrap();
        self.inc.wait(Some(LONG)).unwrap();
        let stats = self.inc.stats();
        sum.faults += stats.faults;
        let vcpus = self.vcpus.take();
        if let Some(vcpus) = &vcpus {
            sum.steps += vcpus.steps();
        }
        let what = &self.what;
        assert_eq!((stats.missing_pages, stats.lost_pages), (0, 0), "{what}");
        self.pair.assert_sound(what);
        assert_eq!(self.pair.world.who(), (false, true), "{what}");
        assert_eq!(self.pair.from.calls("resume"), 0, "{what}");
        assert_eq!(self.pair.to.calls("run"), 1, "{what}");
        // Without threads the memory is compared alone.
        let (source, destination) = (&self.pair.source, &self.pair.destination);
        let vcpus = vcpus.unwrap_or_else(|| Vcpus::start(source, destination, &[], 0, MS));
        vcpus.assert_exact(what);
        assert_eq!(self.inc.stats().fault_waiting, 0, "{what}");
    }
}

#[test]
fn lanes_that_are_cut_at_random_are_recovered_and_no_page_no_write_and_no_fault_is_lost() {
    let wanted = number("BRANT_CUTS").unwrap_or(20) as usize;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("BRANT_SEED").unwrap_or(clock.unwrap().as_nanos() as u64 >> 10);
    println!("seed {seed} (BRANT_SEED), {wanted} cuts (BRANT_CUTS)");
    let (mut sum, mut choice) = (Sum::default(), Random(seed));
    while sum.cuts < wanted {
        let cuts = 2 + choice.below(9);
        Session::start(seed, sum.sessions).run(cuts.min(wanted - sum.cuts), &mut sum);
        // A session may end before its cut comes.
        assert!(sum.sessions < 10 * wanted + 10, "{sum:?}");
    }
    println!("{sum:?}");
    assert!(sum.faults > 0 && sum.steps > 0, "{sum:?}");
}
