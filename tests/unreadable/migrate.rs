//! A migration between two memories, and the checks of one that failed for a page.

use super::side::{Side, PAGE};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing, Params, Stats,
};
use brant::vmm::{Event, EventKind, StateSink, Vmm};
use brant::{Error, Kind, Result};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

pub type Hook = Box<dyn Fn() + Send + Sync>;

/// A VMM that counts, keeps its warnings, and calls a hook in `save` and after each pass.
#[derive(Default)]
pub struct Counting {
    stands: AtomicBool,
    runs: AtomicU32,
    in_save: Mutex<Option<Hook>>,
    at_pass: Mutex<Option<Hook>>,
    warnings: Mutex<Vec<String>>,
}

impl Vmm for Counting {
    fn pause(&self) -> Result<()> {
        self.stands.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.stands.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn save(&self, _: &mut dyn StateSink) -> Result<()> {
        if let Some(hook) = &*self.in_save.lock().unwrap() {
            hook();
        }
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn event(&self, event: &Event) {
        match event.kind {
            EventKind::Warning => self.warnings.lock().unwrap().push(event.message.clone()),
            EventKind::Pass => {
                if let Some(hook) = &*self.at_pass.lock().unwrap() {
                    hook();
                }
            }
            _ => {}
        }
    }
}

/// The result of a migration on both sides.
pub struct Outcome {
    pub source: Result<()>,
    pub destination: Result<()>,
    pub stats: Stats,
    pub warnings: Vec<String>,
}

impl Outcome {
    /// Checks that it failed at the source, for page `page` of block `ram`, with `words`.
    pub fn assert_source_failed(&self, page: usize, words: &str) {
        assert_names(self.source.as_ref().unwrap_err(), Kind::Memory, page, words);
        assert!(self.destination.is_err());
    }

    /// Checks that it failed at the destination, which told the source.
    pub fn assert_destination_failed(&self, page: usize, words: &str) {
        let error = self.destination.as_ref().unwrap_err();
        assert_names(error, Kind::Memory, page, words);
        let told = self.source.as_ref().unwrap_err();
        assert_names(told, Kind::Refused, page, words);
    }
}

pub fn assert_names(error: &Error, kind: Kind, page: usize, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    let named = format!("block `ram`: the page at offset {:#x} ", page * PAGE);
    for part in [named.as_str(), words] {
        assert!(error.message().contains(part), "{part} in: {error}");
    }
}

/// Migrates. `save` may change the source's guest while it stands still. However the migration
/// ends, one guest runs.
pub fn migrate(source: &Side, destination: &Side, save: Option<Hook>) -> Outcome {
    let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
    migrate_with(tracker, destination, save)
}

pub fn migrate_with(tracker: Arc<Tracker>, destination: &Side, save: Option<Hook>) -> Outcome {
    migrate_by(tracker, destination, None, save, None)
}

/// [`migrate`] with a decider of the test's; `pass` is called after each pass.
pub fn migrate_by(
    tracker: Arc<Tracker>,
    destination: &Side,
    decider: Option<Box<dyn Decider>>,
    save: Option<Hook>,
    pass: Option<Hook>,
) -> Outcome {
    // Some tests migrate the same memory again. The guest is back then, and its copy has ended.
    tracker.memory().reclaim().unwrap();
    destination.memory.give_up().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let vmms: [Arc<Counting>; 2] = Default::default();
    *vmms[0].in_save.lock().unwrap() = save;
    *vmms[0].at_pass.lock().unwrap() = pass;
    let vmm = |i: usize| Arc::clone(&vmms[i]) as Arc<dyn Vmm>;
    let memory = Arc::clone(&destination.memory);
    let incoming = Incoming::new(memory, vmm(1), Params::default()).unwrap();
    incoming.start(AcceptFrom::Connected(there.into())).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), vmm(0), Params::default()).unwrap();
    let to = ConnectTo::Connected(here.into());
    match decider {
        Some(decider) => outgoing.start_with(to, decider).unwrap(),
        None => outgoing.start(to).unwrap(),
    }
    let outcome = Outcome {
        source: outgoing.wait(Some(LONG)),
        destination: incoming.wait(Some(LONG)),
        stats: outgoing.stats(),
        warnings: vmms[0].warnings.lock().unwrap().clone(),
    };
    let runs = vmms[1].runs.load(Ordering::SeqCst);
    let stands = vmms[0].stands.load(Ordering::SeqCst);
    let (state, good) = (outgoing.state(), outcome.source.is_ok());
    let expected = if good {
        State::Completed
    } else {
        State::Failed
    };
    assert_eq!((runs, stands, state), (u32::from(good), good, expected));
    outcome
}

/// Switches over after this many passes.
pub struct After(pub u32);

impl Decider for After {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let enough = facts.moment == Moment::Synced && facts.pass >= self.0;
        let over = Next::SwitchOver {
            expected: Duration::ZERO,
        };
        if enough { over } else { Next::GoOn }.into()
    }
}
