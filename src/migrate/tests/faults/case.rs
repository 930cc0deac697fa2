//! One migration in which at most one system call fails, and the checks afterwards.
//!
//! Whatever fails, there are two allowed outcomes. The migration completed, and the destination's
//! memory equals the source's. When the call only has to be made again, this is the only allowed
//! outcome. Or the migration failed: an error says why, the guest runs on exactly one side, every
//! page in which the sides differ is pending, and the same guest can be migrated again. In both
//! outcomes no descriptor and no thread is left.

use super::guest::{Guest, Log, Machine};
use crate::channel::Endpoint;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::tracker::StartWith;
use crate::dirty::When;
use crate::error::{Error, Kind};
use crate::migrate::steering::{Facts, Moment, Next};
use crate::migrate::switchover::destination;
use crate::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing, Params, Resolution,
};
use crate::sys::kernel::plan::{Call, Fault, Scope};
use crate::units::Pages;
use crate::vmm::{StateBlob, StateSink, Vmm};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything takes that is not broken, and shorter than the limit of a case.
const LONG: Duration = Duration::from_secs(12);

/// How the two sides are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A pair of sockets that the VMM made.
    Pair,
    /// Two such pairs, for a migration with two channels.
    Pairs,
    /// The destination listens at a TCP address, and the source connects.
    Tcp,
    /// The destination listens at a path, and the source connects.
    Unix,
}

/// What is migrated, and over which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    pub log: Log,
    pub link: Link,
}

/// The thread whose call is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Source,
    Destination,
}

/// A call that is to fail.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    pub side: Side,
    pub call: Call,
    pub fault: Fault,
}

/// The outcome of a case.
#[derive(Debug)]
pub struct Played {
    /// Whether the planned call was made.
    pub fired: bool,
    pub calls: Vec<(Side, Call)>,
    /// "completed", or the error.
    pub end: String,
}

/// The source's VMM.
struct From {
    guest: Arc<Mutex<Guest>>,
    pauses: AtomicU32,
    resumes: AtomicU32,
}

impl From {
    fn runs(&self) -> bool {
        self.pauses.load(Ordering::SeqCst) <= self.resumes.load(Ordering::SeqCst)
    }
}

impl Vmm for From {
    fn pause(&self) -> crate::Result<()> {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> crate::Result<()> {
        self.resumes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> crate::Result<()> {
        // The VMM may write to guest memory while it saves.
        self.guest.lock().unwrap().vmm_writes(5, &[0x5a]);
        sink.put(&StateBlob {
            name: "device",
            instance: 0,
            version: 1,
            data: &[7; 3000],
        })
    }
}

/// The destination's VMM.
#[derive(Default)]
struct To {
    runs: AtomicU32,
}

impl Vmm for To {
    fn load(&self, blob: &StateBlob<'_>) -> crate::Result<()> {
        assert_eq!(blob.data, [7; 3000]);
        Ok(())
    }
    fn run(&self) -> crate::Result<()> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Has the guest write between the passes, so that there are several. All of it is on one thread,
/// so that the order of system calls is the same each time, as far as two sides allow.
struct Script {
    guest: Arc<Mutex<Guest>>,
    rounds: Vec<&'static [usize]>,
}

impl Decider for Script {
    fn decide(&mut self, facts: &Facts) -> Decision {
        if facts.moment != Moment::Synced {
            return Next::GoOn.into();
        }
        let Some(pages) = self.rounds.pop() else {
            let expected = Duration::from_millis(1);
            return Next::SwitchOver { expected }.into();
        };
        self.guest.lock().unwrap().write(pages);
        Next::GoOn.into()
    }
}

fn params(link: Link) -> Params {
    Params {
        channels: if link == Link::Pairs { 2 } else { 1 },
        connect_timeout: Duration::from_secs(3),
        io_timeout: Duration::from_secs(3),
        switchover_timeout: Duration::from_secs(3),
        handover_timeout: Duration::from_millis(500),
        ..Params::default()
    }
}

/// The open descriptors, and the number of threads.
fn held() -> (Vec<String>, usize) {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds = entries.filter_map(|e| {
        let e = e.ok()?;
        let to = std::fs::read_link(e.path()).ok()?;
        // All but the directory that is being read.
        (!to.ends_with("fd")).then(|| format!("{} {}", e.file_name().display(), to.display()))
    });
    let mut fds: Vec<String> = fds.collect();
    fds.sort();
    (fds, std::fs::read_dir("/proc/self/task").unwrap().count())
}

/// Plays one case. `Err` says which of the checks failed.
pub fn play(kinds: Kinds, planned: Option<Planned>) -> Result<Played, String> {
    let before = held();
    let scopes = [Scope::default(), Scope::default()];
    if let Some(planned) = planned {
        scopes[planned.side as usize].plan(planned.call, planned.fault);
    }
    let end = migrate(kinds, &scopes)?;
    // A thread that was joined is gone a moment later.
    let limit = Instant::now() + Duration::from_secs(2);
    loop {
        let after = held();
        if after == before {
            break;
        }
        if Instant::now() > limit {
            return Err(format!(
                "after `{end}`: held before {before:?}, now {after:?}"
            ));
        }
        std::thread::yield_now();
    }
    let sides = [Side::Source, Side::Destination];
    let calls = sides
        .into_iter()
        .zip(&scopes)
        .flat_map(|(side, scope)| scope.calls().into_iter().map(move |call| (side, call)));
    Ok(Played {
        fired: scopes.iter().any(Scope::fired),
        calls: calls.collect(),
        end,
    })
}

fn check(good: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    match good {
        true => Ok(()),
        false => Err(what()),
    }
}

/// Checks that an error says enough to act on, and returns its text.
fn clear(error: &Error) -> Result<String, String> {
    let text = error.to_string();
    let defect = error.kind() == Kind::Internal || text.contains("panicked");
    check(!defect && error.message().len() > 10, || {
        format!("unclear: {text}")
    })?;
    Ok(text)
}

fn migrate(kinds: Kinds, scopes: &[Scope; 2]) -> Result<String, String> {
    let [source, _] = scopes;
    let guest = match source.enter(|| Guest::new(kinds.log)) {
        Ok(guest) => guest,
        Err(e) => return Ok(format!("the guest was not made: {}", clear(&e)?)),
    };
    let tracker = Arc::clone(&guest.tracker);
    let guest = Arc::new(Mutex::new(guest));
    let consumer = source.enter(|| tracker.consumer());
    // The tracker's pages are checked whatever the migration's outcome is.
    if let Err(e) = source.enter(|| consumer.start(StartWith::Everything)) {
        let text = clear(&e)?;
        check(!tracker.is_started(), || format!("started after {text}"))?;
        source.enter(|| drop((consumer, tracker, guest)));
        return Ok(format!("tracking did not start: {text}"));
    }
    let machine = Machine::new();
    let (consumer, end) = attempt(kinds.link, scopes, &guest, consumer, &machine)?;
    let Some(consumer) = consumer else {
        source.enter(|| drop((tracker, guest)));
        return Ok(end);
    };
    // The guest goes on at the source. Its writes are found, and pages that did not arrive are
    // pending.
    let pending = source.enter(|| {
        guest.lock().unwrap().write(&[2, 30]);
        match consumer.sync(When::Stopped) {
            // The planned failure was in this sync. It comes only once.
            Err(_) => consumer.sync(When::Stopped),
            done => done,
        }
        .map_err(|e| format!("after `{end}` no sync: {e}"))?;
        take_all(&consumer).map_err(|e| format!("after `{end}` no take: {e}"))
    })?;
    let differ = guest.lock().unwrap().machine.differences(&machine);
    let lost: Vec<_> = differ
        .iter()
        .filter(|page| !pending.contains(page))
        .collect();
    check(lost.is_empty(), || {
        format!("after `{end}`: pages lost: {lost:?}")
    })?;
    // The same guest can be migrated again.
    let calm = [Scope::default(), Scope::default()];
    let fresh = Machine::new();
    let again = attempt(kinds.link, &calm, &guest, consumer, &fresh);
    let (left, again) = again.map_err(|e| format!("after `{end}`, again: {e}"))?;
    check(left.is_none() && again == "completed", || {
        format!("after `{end}`, again: {again}")
    })?;
    source.enter(|| drop((tracker, guest)));
    Ok(end)
}

fn take_all(consumer: &Consumer) -> crate::Result<BTreeSet<(usize, usize)>> {
    let mut found = BTreeSet::new();
    let mut cursor = Cursor::default();
    loop {
        let taken = consumer.take(&mut cursor, 64, Pages(u64::MAX))?;
        if taken.is_empty() {
            return Ok(found);
        }
        for run in taken.runs() {
            let pages = run.pages.first().0..run.pages.end().0;
            found.extend(pages.map(|page| (run.block.id().index(), page as usize)));
        }
    }
}

/// Makes one migration. Returns the consumer when the migration failed and the guest runs on at the
/// source.
fn attempt(
    link: Link,
    [source, destination]: &[Scope; 2],
    guest: &Arc<Mutex<Guest>>,
    consumer: Consumer,
    machine: &Machine,
) -> Result<(Option<Consumer>, String), String> {
    let (from, to) = (
        Arc::new(From {
            guest: Arc::clone(guest),
            pauses: AtomicU32::new(0),
            resumes: AtomicU32::new(0),
        }),
        Arc::new(To::default()),
    );
    let directory = tempfile::tempdir().unwrap();
    let endpoint = match link {
        Link::Tcp => Some(Endpoint::parse("tcp:127.0.0.1:0").unwrap()),
        Link::Unix => Some(Endpoint::Unix(directory.path().join("s"))),
        Link::Pair | Link::Pairs => None,
    };
    let pairs = match link {
        Link::Pair => 1,
        Link::Pairs => 2,
        Link::Tcp | Link::Unix => 0,
    };
    let pairs = (0..pairs).map(|_| UnixStream::pair().unwrap());
    let (ours, theirs): (Vec<OwnedFd>, Vec<OwnedFd>) =
        pairs.map(|(a, b)| (a.into(), b.into())).unzip();
    let arriving = destination.enter(|| {
        let incoming = Incoming::new(machine.memory()?, to.clone(), params(link))?;
        let at = match &endpoint {
            Some(endpoint) => Some(incoming.listen(endpoint)?),
            None => {
                incoming.start(AcceptFrom::ConnectedAll(theirs))?;
                None
            }
        };
        Ok::<_, Error>((incoming, at))
    });
    let (incoming, at) = match arriving {
        Ok(arriving) => arriving,
        Err(e) => {
            return Ok((
                Some(consumer),
                format!("the destination did not start: {}", clear(&e)?),
            ));
        }
    };
    let target = match at {
        Some(at) => ConnectTo::Endpoint(at),
        None => ConnectTo::ConnectedAll(ours),
    };
    let script = Script {
        guest: Arc::clone(guest),
        rounds: vec![&[3, 9, 11], &[0, 4, 5, 6, 20, 47]],
    };
    let leaving = source.enter(|| {
        let params = params(link);
        let made = Outgoing::with_consumer(consumer, Blockers::new(), from.clone(), params);
        let outgoing = made?;
        let started = outgoing.start_with(target, Box::new(script));
        Ok::<_, Error>((outgoing, started))
    });
    let ended = |incoming: Incoming| -> Result<(), String> {
        destination.enter(|| {
            // No source comes any more.
            if incoming.state() == destination::State::Listening {
                incoming.cancel().map_err(|e| format!("no cancel: {e}"))?;
            }
            match incoming.wait(Some(LONG)) {
                Err(e) if e.kind() == Kind::Pending => Err("the destination hangs".to_owned()),
                Err(e) => clear(&e).map(|_| ()),
                Ok(()) => Ok(()),
            }
        })
    };
    let (outgoing, started) = match leaving {
        Ok(leaving) => leaving,
        Err(e) => {
            ended(incoming)?;
            check(to.runs.load(Ordering::SeqCst) == 0, || {
                "it runs there".to_owned()
            })?;
            return Ok((None, format!("the source was not made: {}", clear(&e)?)));
        }
    };
    if let Err(e) = started {
        check(from.runs(), || format!("{e}: paused for ever"))?;
        source.enter(|| drop(outgoing));
        ended(incoming)?;
        check(to.runs.load(Ordering::SeqCst) == 0, || {
            "it runs there".to_owned()
        })?;
        return Ok((None, format!("the source did not start: {}", clear(&e)?)));
    }
    let left = source.enter(|| outgoing.wait(Some(LONG)));
    let there = |to: &To| to.runs.load(Ordering::SeqCst) > 0;
    let end = match &left {
        Ok(()) => {
            // The destination's thread may not have read the source's last record yet.
            ended(incoming)?;
            check(there(&to) && !from.runs(), || {
                "completed, and it does not run".to_owned()
            })?;
            let differ = guest.lock().unwrap().machine.differences(machine);
            check(differ.is_empty(), || {
                format!("completed, and memory differs: {differ:?}")
            })?;
            source.enter(|| drop(outgoing));
            return Ok((None, "completed".to_owned()));
        }
        Err(e) if e.kind() == Kind::Pending => return Err("the source hangs".to_owned()),
        Err(e) if e.kind() == Kind::Unanswered => {
            let text = clear(e)?;
            check(!from.runs(), || format!("{text}: it runs here"))?;
            let arrived = destination.enter(|| incoming.wait(Some(LONG)));
            ended(incoming)?;
            check(arrived.is_ok() == there(&to), || {
                format!("{text}: {arrived:?}")
            })?;
            let decision = match there(&to) {
                true => Resolution::Destroy,
                false => Resolution::Resume,
            };
            let resolved = source.enter(|| outgoing.resolve(decision));
            resolved.map_err(|e| format!("{text}: resolving: {e}"))?;
            check(from.runs() != there(&to), || {
                format!("{text}: resolved, and it runs twice")
            })?;
            if there(&to) {
                let differ = guest.lock().unwrap().machine.differences(machine);
                check(differ.is_empty(), || {
                    format!("{text}: memory differs: {differ:?}")
                })?;
                source.enter(|| drop(outgoing));
                return Ok((None, format!("unanswered, and it runs there: {text}")));
            }
            format!("unanswered, and it runs here: {text}")
        }
        Err(e) => {
            let text = clear(e)?;
            ended(incoming)?;
            check(from.runs(), || format!("{text}: paused for ever"))?;
            check(!there(&to), || format!("{text}: two guests run"))?;
            text
        }
    };
    let consumer = source.enter(|| outgoing.leftover());
    check(consumer.is_some(), || {
        format!("{end}: the consumer is not handed back")
    })?;
    source.enter(|| drop(outgoing));
    Ok((consumer, end))
}
