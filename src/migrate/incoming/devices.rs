//! The state of devices, as it arrives in pieces on all lanes: which piece is loaded when.
//!
//! **Running parts** are loaded while memory arrives, each device by itself. **Stopped parts** are
//! loaded when all of memory is here, one device after the other in the source's order.
//!
//! Pieces of one part ascend on each lane, and lanes overtake one another. A piece that cannot be
//! loaded yet waits in a buffer of limited size. When the buffer is full, the lane waits, and its
//! connection with it.
//!
//! **No deadlock.** Example of one: the buffer is full of pieces from 5 on, and piece 4 stands behind
//! piece 9 on a lane that waits for room. It cannot come about: the source sends the pieces in one
//! order and each lane keeps it, so the first piece that is not loaded is the front of its lane. Such
//! a piece needs no room: the thread that read it loads it at once, and then all that follow it from
//! the buffer. Stopped parts come behind the end of the pages on each lane, so no page waits for
//! them.

use super::lane::Waits;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::callbacks::Callbacks;
use crate::runtime::{Cancel, Limit, Timeout};
use crate::vmm::device::{described, InUse, Registered};
use crate::vmm::held::{self, Arrivals};
use crate::vmm::watch::Watch;
use crate::wire::{DeviceLoaded, NamedDevice, Piece, DEVICES_MAX, PIECE_PREFIX};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a waiting piece takes beside its bytes.
const PIECE_COST: u64 = 256;
/// The time between two looks at a cancel.
const LOOK: Duration = Duration::from_millis(10);

/// Finds the devices that the source has named among ours.
///
/// # Errors
/// [`Kind::Layout`] for a device that only one side has, and for another version of its state.
/// [`Kind::Protocol`] for names that are out of order or there twice.
pub(super) fn matched(theirs: &[NamedDevice], ours: &InUse) -> Result<Vec<Arc<Registered>>> {
    let layout = |why: String| Err(Error::new(Kind::Layout, why));
    let mut list: Vec<Arc<Registered>> = Vec::new();
    for (number, named) in (0..).zip(theirs) {
        let what = described(&named.name, named.instance);
        if named.number != number {
            let why = format!("{what}: expected number {number}, found {}", named.number);
            return Err(Error::new(Kind::Protocol, why));
        }
        if list.iter().any(|d| d.is(&named.name, named.instance)) {
            let why = format!("{what} is named twice");
            return Err(Error::new(Kind::Protocol, why));
        }
        let Some(device) = ours.find(&named.name, named.instance) else {
            return layout(format!(
                "the source has {what} and the destination has none of that name and instance"
            ));
        };
        if device.version() != named.version {
            return layout(format!(
                "{what}: the source's state has version {}, and the destination's has version {}",
                named.version,
                device.version()
            ));
        }
        fallible::push(&mut list, Arc::clone(device), "the source's devices")?;
    }
    match ours
        .all()
        .iter()
        .find(|d| !list.iter().any(|other| Arc::ptr_eq(other, d)))
    {
        None => Ok(list),
        Some(more) => layout(format!(
            "the destination has {more} and the source has none"
        )),
    }
}

/// The devices of an arriving guest, as the file's description says.
pub(super) struct Devices {
    /// In the source's order. Its numbers are places in this list.
    list: Vec<Arc<Registered>>,
    /// No device is added or removed meanwhile.
    _in_use: InUse,
    /// The most bytes that may wait.
    most: u64,
    lanes: usize,
    vmm: Callbacks,
    /// The migration's cancel.
    cancelled: Cancel,
    arrivals: Arc<Arrivals>,
    /// Ends calls that outlast the migration's time, or the time for which the source waits for them.
    watch: Watch,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    running: Vec<Part>,
    stopped: Vec<Part>,
    /// Bytes that wait, with the cost of each piece.
    waiting: u64,
    /// The lanes whose pages have ended.
    ended: usize,
    /// All of memory is here, and stopped parts are loaded.
    open: bool,
    /// A call has failed: nothing is loaded any more.
    broken: bool,
    /// Counts what moves.
    moves: u64,
    figures: Figures,
}

impl State {
    /// The stopped or the running part of the device at `at`.
    fn part(&mut self, at: usize, stopped: bool) -> &mut Part {
        match stopped {
            true => &mut self.stopped[at],
            false => &mut self.running[at],
        }
    }

    /// The device whose stopped part is loaded now: the first that is not whole.
    fn turn(&self) -> Option<usize> {
        self.stopped.iter().position(|part| !part.is_whole())
    }
}

/// What was loaded so far.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Figures {
    pub(super) running: u64,
    pub(super) stopped: u64,
    /// The time in calls that load.
    pub(super) time: Duration,
}

/// One part of one device's state.
#[derive(Default)]
struct Part {
    /// Everything before this was given to the device, or is being given.
    taken: u64,
    /// Pieces that wait, by their offset. None of them is empty, and none begins before `taken`.
    waiting: BTreeMap<u64, Waiting>,
    /// A thread is giving it a piece.
    busy: bool,
    /// Where the part ends, once the source has said so.
    end: Option<u64>,
    /// The source has said where an initial part ends, and that part is not loaded yet.
    initial: bool,
}

/// The payload of a piece.
struct Waiting(Vec<u8>);

impl Waiting {
    fn bytes(&self) -> &[u8] {
        &self.0[PIECE_PREFIX..]
    }

    fn cost(&self) -> u64 {
        self.bytes().len() as u64 + PIECE_COST
    }
}

/// Where a lane is among the pieces.
pub(super) struct Pieces {
    devices: Arc<Devices>,
    /// The ends of the lane's last pieces, by device: of running parts, and of stopped ones once the
    /// pages have ended.
    ends: Vec<u64>,
    pages_ended: bool,
    /// The device of the lane's last piece of a stopped part: those of the devices before it have
    /// been sent.
    turn: usize,
}

/// How long a call may load. The source waits no longer for a call than for any other sign of life, and
/// nor do the other channels, which have nothing to receive meanwhile. This ends before they give up, so
/// that all of them hear the device's name.
fn call_limit(waits: &Waits<'_>) -> Timeout {
    let length = waits.patience().length() * 3 / 4;
    Timeout::new(
        "the limit of a call that loads (3/4 of the I/O or switchover timeout)",
        length,
    )
}

impl Devices {
    pub(super) fn new(
        list: Vec<Arc<Registered>>,
        in_use: InUse,
        most: u64,
        lanes: usize,
        vmm: Callbacks,
        cancelled: Cancel,
    ) -> Result<Arc<Devices>> {
        debug_assert!(list.len() <= DEVICES_MAX as usize);
        let parts = || -> Result<Vec<Part>> {
            fallible::collect(list.iter().map(|_| Part::default()), "devices")
        };
        let state = State {
            running: parts()?,
            stopped: parts()?,
            waiting: 0,
            ended: 0,
            open: false,
            broken: false,
            moves: 0,
            figures: Figures::default(),
        };
        let all = fallible::collect(list.iter().cloned(), "devices")?;
        let arrivals = Arc::new(Arrivals::new(vmm.clone(), all));
        let asked = Arc::clone(&arrivals);
        Ok(Arc::new(Devices {
            list,
            _in_use: in_use,
            most,
            lanes,
            watch: Watch::new(vmm.clone(), move || asked.cancel()),
            vmm,
            cancelled,
            arrivals,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// A lane's place among the pieces, for each lane.
    pub(super) fn lane(self: &Arc<Self>) -> Result<Pieces> {
        Ok(Pieces {
            devices: Arc::clone(self),
            ends: fallible::collect(self.list.iter().map(|_| 0), "devices")?,
            pages_ended: false,
            turn: 0,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn figures(&self) -> Figures {
        self.lock().figures
    }

    /// Waits for a change, or fails when the migration is over or `since` is longer ago than the
    /// source may be silent.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        waits: &Waits<'_>,
        seen: &mut (u64, Instant),
        what: &dyn Fn() -> String,
    ) -> Result<MutexGuard<'a, State>> {
        waits.cancel.check("waiting for devices' state")?;
        if seen.0 != state.moves {
            *seen = (state.moves, Instant::now());
        }
        let patience = waits.patience();
        if seen.1.elapsed() > patience.length() || waits.overall.expired() {
            let message = format!("{}: {patience} ran out", what());
            return Err(Error::new(Kind::Timeout, message));
        }
        let waited = self.changed.wait_timeout(state, LOOK);
        Ok(waited.unwrap_or_else(|e| e.into_inner()).0)
    }

    /// Waits, on channel 0 behind the end of its pages, until all of memory is here.
    pub(super) fn await_memory(&self, waits: &Waits<'_>) -> Result<()> {
        let mut state = self.lock();
        let mut seen = (state.moves, Instant::now());
        while state.ended < self.lanes {
            let what = || "waiting for the end of the pages on another channel".to_owned();
            state = self.wait(state, waits, &mut seen, &what)?;
        }
        // What is missing now does not come any more.
        self.check_whole(&state.running, "running")
    }

    /// Whether the part called `name` of each device was loaded up to its end.
    fn check_whole(&self, parts: &[Part], name: &str) -> Result<()> {
        for (part, device) in parts.iter().zip(&self.list) {
            if !part.is_whole() {
                let next = part.waiting.keys().next().copied().or(part.end);
                let why = match next.filter(|next| *next > part.taken) {
                    Some(next) => {
                        let from = part.taken;
                        format!("bytes {from} to {next} of its {name} part are missing")
                    }
                    None => format!("the end of its {name} part is missing"),
                };
                return Err(Error::new(Kind::Protocol, why).context(device));
            }
        }
        Ok(())
    }

    /// All of memory is here: loads the stopped parts that have come, and each later piece when it
    /// comes.
    pub(super) fn open(&self, waits: &Waits<'_>) -> Result<()> {
        let mut state = self.lock();
        state.open = true;
        state.moves += 1;
        self.changed.notify_all();
        self.load_stopped(state, waits)
    }

    /// Loads what waits and is next of a running part.
    fn load_running<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        at: usize,
        waits: &Waits<'_>,
    ) -> Result<()> {
        while !state.broken && !state.running[at].busy {
            let part = &mut state.running[at];
            let Some(piece) = part.waiting.remove(&part.taken) else {
                break;
            };
            state = self.give(state, at, piece, false, waits)?;
        }
        Ok(())
    }

    /// Loads what waits and is next of the stopped parts.
    fn load_stopped<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        waits: &Waits<'_>,
    ) -> Result<()> {
        while state.open && !state.broken {
            let Some(at) = state.turn() else {
                break;
            };
            let part = &mut state.stopped[at];
            if part.busy {
                break;
            }
            let Some(piece) = part.waiting.remove(&part.taken) else {
                break;
            };
            state = self.give(state, at, piece, true, waits)?;
        }
        Ok(())
    }

    /// Gives a device its next piece, with the lock released meanwhile.
    fn give<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        at: usize,
        piece: Waiting,
        stopped: bool,
        waits: &Waits<'_>,
    ) -> Result<MutexGuard<'a, State>> {
        let length = piece.bytes().len() as u64;
        state.waiting -= piece.cost();
        let giving = state.part(at, stopped);
        giving.taken += length;
        giving.busy = true;
        drop(state);
        let begun = Instant::now();
        let device = &self.list[at];
        let limit = call_limit(waits).from_now().earlier(waits.overall);
        let done = self.watch.within(limit).and_then(|watched| {
            let done = match stopped {
                true => held::call(&self.vmm, device, "load_stopped", |d| {
                    d.load_stopped(piece.bytes())
                }),
                false => held::call(&self.vmm, device, "load_running", |d| {
                    d.load_running(piece.bytes())
                }),
            };
            done.map_err(|e| watched.explain(e))
        });
        let mut state = self.lock();
        state.figures.time += begun.elapsed();
        match stopped {
            true => state.figures.stopped += length,
            false => state.figures.running += length,
        }
        state.broken |= done.is_err();
        state.moves += 1;
        state.part(at, stopped).busy = false;
        self.changed.notify_all();
        // A call that the cancel has ended is no failure of the device's.
        done.map_err(|e| self.cancelled.or("loading", e))
            .map(|()| state)
    }

    /// Called when every lane has ended: each device has all of its state.
    pub(super) fn check_complete(&self) -> Result<()> {
        self.check_whole(&self.lock().stopped, "stopped")
    }

    /// Tells every device that all state is here.
    pub(super) fn loaded(&self, limit: Limit) -> Result<()> {
        let watched = self.watch.within(limit)?;
        let loaded = held::loaded(&self.vmm, &self.list);
        loaded.map_err(|e| watched.explain(e))
    }

    /// The migration is cancelled: asks every device to end the call that it is in.
    pub(super) fn cancel(&self) {
        self.arrivals.cancel();
    }

    /// The guest is this side's: all devices run.
    pub(super) fn run(&self) -> Result<()> {
        self.arrivals.close();
        held::run(&self.vmm, &self.list)
    }

    /// The guest never runs here: all devices drop what they have loaded.
    pub(super) fn reset(&self) {
        self.arrivals.close();
        held::reset(&self.vmm, &self.list);
    }
}

impl Part {
    /// Whether the part is loaded up to its end.
    fn is_whole(&self) -> bool {
        self.end == Some(self.taken) && !self.busy
    }

    /// Why `piece` cannot be one of this part.
    fn problem(&self, piece: &Piece) -> std::result::Result<(), String> {
        let (from, to) = (piece.offset, piece.end());
        let before = self.waiting.range(..=from).next_back();
        let before = before.map_or(0, |(at, w)| at + w.bytes().len() as u64);
        let after = self.waiting.range(from..).next();
        if from < self.taken || from < before || after.is_some_and(|(at, _)| *at < to) {
            return Err(format!("bytes {from} to {to} overlap what came before"));
        }
        let last = self.waiting.last_key_value();
        let last = last.map_or(self.taken, |(at, w)| at + w.bytes().len() as u64);
        match self.end {
            Some(_) if piece.is_last() => Err("its end was said twice".into()),
            Some(end) if to > end => Err(format!("byte {to} is behind its end at {end}")),
            None if piece.is_last() && to < last => {
                Err(format!("its end at byte {to} lies before what came"))
            }
            _ if piece.is_initial() && self.initial => {
                Err("the end of an initial part came before the last one was loaded".into())
            }
            _ => Ok(()),
        }
    }
}

impl Pieces {
    /// Whether no page run may come any more.
    pub(super) fn pages_ended(&self) -> bool {
        self.pages_ended
    }

    /// The pages of this lane have ended.
    pub(super) fn end_pages(&mut self) {
        self.pages_ended = true;
        self.ends.fill(0);
        let mut state = self.devices.lock();
        state.ended += 1;
        state.moves += 1;
        self.devices.changed.notify_all();
    }

    /// Takes a piece with its payload: loads it, or keeps it for later. Returns what the source is to
    /// be told of.
    pub(super) fn take(
        &mut self,
        piece: &Piece,
        payload: Vec<u8>,
        waits: &Waits<'_>,
    ) -> Result<Option<DeviceLoaded>> {
        let devices = Arc::clone(&self.devices);
        let at = piece.number as usize;
        let protocol = |why: String| Error::new(Kind::Protocol, format!("DEVICE: {why}"));
        let Some(device) = devices.list.get(at) else {
            let (n, found) = (devices.list.len(), piece.number);
            return Err(protocol(format!(
                "expected one of {n} devices, found number {found}"
            )));
        };
        let named = |why: String| protocol(why).context(device);
        let stopped = piece.is_stopped();
        if stopped != self.pages_ended {
            return Err(named(match stopped {
                true => "a piece of its stopped part came before the end of the pages".into(),
                false => "a piece of its running part came after the end of the pages".into(),
            }));
        }
        if stopped && at < self.turn {
            let other = &devices.list[self.turn];
            return Err(named(format!(
                "a piece of its stopped part came after one of {other}, and stopped parts come in \
                 the order of the devices' numbers"
            )));
        }
        if stopped {
            self.turn = at;
        }
        let before = &mut self.ends[at];
        if piece.offset < *before {
            let offset = piece.offset;
            return Err(named(format!("byte {offset} came after byte {before}")));
        }
        *before = piece.end();
        devices.put(at, piece, Waiting(payload), waits)
    }
}

impl Devices {
    fn put(
        &self,
        at: usize,
        piece: &Piece,
        waiting: Waiting,
        waits: &Waits<'_>,
    ) -> Result<Option<DeviceLoaded>> {
        let device = &self.list[at];
        let stopped = piece.is_stopped();
        // A cancel that came before the devices were known has not told them.
        self.cancelled.check("loading devices' state")?;
        let mut state = self.lock();
        let mut seen = (state.moves, Instant::now());
        loop {
            let room = self.most.saturating_sub(state.waiting);
            let turn = !stopped || state.open && state.turn() == Some(at);
            let part = state.part(at, stopped);
            part.problem(piece).map_err(|why| {
                Error::new(Kind::Protocol, format!("DEVICE: {why}")).context(device)
            })?;
            let next = turn && part.taken == piece.offset && !part.busy;
            // An empty piece only says where something ends, and needs no room.
            if next || piece.length == 0 || waiting.cost() <= room {
                if piece.is_last() {
                    part.end = Some(piece.end());
                }
                if piece.is_initial() {
                    part.initial = true;
                }
                break;
            }
            let what = || {
                format!(
                    "{device}: no room for its state from byte {} on: {} bytes wait for others \
                     that have not come, and {} may",
                    piece.offset,
                    self.most - room,
                    self.most
                )
            };
            state = self.wait(state, waits, &mut seen, &what)?;
        }
        state.moves += 1;
        if piece.length > 0 {
            state.waiting += waiting.cost();
            let part = state.part(at, stopped);
            part.waiting.insert(piece.offset, waiting);
        }
        match stopped {
            true => {
                self.changed.notify_all();
                self.load_stopped(state, waits)?;
                Ok(None)
            }
            false => {
                self.load_running(state, at, waits)?;
                self.await_initial(at, piece, waits)
            }
        }
    }

    /// On the lane of the piece that ends a device's initial part: waits until all of that part is
    /// loaded.
    fn await_initial(
        &self,
        at: usize,
        piece: &Piece,
        waits: &Waits<'_>,
    ) -> Result<Option<DeviceLoaded>> {
        if !piece.is_initial() {
            return Ok(None);
        }
        let bytes = piece.end();
        let mut state = self.lock();
        let mut seen = (state.moves, Instant::now());
        while state.running[at].taken < bytes || state.running[at].busy {
            let what = || format!("{}: waiting for its initial part", self.list[at]);
            state = self.wait(state, waits, &mut seen, &what)?;
        }
        state.running[at].initial = false;
        Ok(Some(DeviceLoaded {
            number: piece.number,
            bytes,
        }))
    }
}
