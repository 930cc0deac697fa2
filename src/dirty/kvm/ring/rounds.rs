//! A round over all rings: harvest, RESET, and only then is what was found there to be had. What
//! goes wrong on the way is noticed and mended here.
//!
//! **Overrun.** The kernel only warns when it pushes onto a full ring, and goes on. Pages are
//! lost, they stay writable, and as many entries stay in use for ever without holding anything
//! (*phantoms*): the next pages come behind them, where nobody looks, or the vCPU is told that
//! its ring is full when there is nothing in it. It is noticed
//! - (a) by as many entries as the ring has in one harvest;
//! - (b) by a RESET that consumes less than was flagged, and stops at an entry that was pushed onto;
//! - (c) by a dirty entry behind one that is not, which pushes in order cannot leave
//!   ([`Position::look`]): in the last sync every ring is looked through for that, and one that
//!   is under suspicion in each round;
//! - (d) by a vCPU that comes out full again and again with nothing in its ring.
//!
//! The ring is put right at once, with the vCPU running: [`Resync`] finds the kernel's place from
//! any dirty entry, and gives it the phantoms before that. Where there is no dirty entry, (d), the
//! exit itself proves that the ring is in use up to its soft limit at least, and that many can
//! be given. The lost pages are the log's: it switches logging off and on, which protects all
//! pages, and reports everything (see `mod.rs`).
//!
//! **An interrupted RESET** consumes entries and leaves the last ones, a batch of at most 64 pages,
//! unprotected.
//! It runs on a thread whose signals are masked; what cannot be masked (SIGSTOP, a
//! debugger, the freezer) shows as a short count or as a sleep of that thread. The
//! entries that it consumed are then *in doubt*: reported in every sync to the last. (All of them and
//! not just the last 64: with those alone a process that is stopped and continued all the time
//! still lost a page now and then.) What nothing shows is a stop that is taken back before this
//! thread has heard of it, at the very end of a RESET.

use super::found::Found;
use super::protocol::{Position, Resync, Seen, Settled, DIRTY};
use crate::error::{Error, Kind, Result};
use crate::sys::kvm_ring::{ResetRings, RingMemory, ENTRY_BYTES};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often a vCPU has to come out full for nothing before (d) counts. Once is ordinary (a
/// round was under way already); a VMM that reports one exit twice is not to break its ring.
const FULL_FOR_NOTHING: u32 = 4;
/// How often a ring is looked at again in one round.
const LOOKS: u32 = 8;
/// How often RESET is called again after a short count.
const RESETS: u32 = 16;
/// `KVM_DIRTY_RING_RSVD_ENTRIES`, and the buffer of page-modification logging.
const RESERVE: u64 = 64;
const RESERVE_PML: u64 = 512;

/// Which rings a round looks through to the end, besides those under suspicion.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    /// None: only entries in their order.
    #[default]
    Heads,
    /// Those whose position is not known yet.
    Unknown,
    /// All of them: nothing may be left.
    All,
}

/// One vCPU's ring.
pub(super) struct Ring {
    memory: Box<dyn RingMemory>,
    at: Position,
    /// `at` is where the kernel is. Not so for a ring that somebody else used before us.
    known: bool,
    /// Something was wrong with it and it has not been seen right since.
    suspect: bool,
    /// A look found it clean after the last round.
    clean: bool,
    /// This round found something at its place.
    found: bool,
    /// The vCPU stands outside of KVM_RUN and says that the ring is full.
    pub full: bool,
    /// How often it said so since anything was found.
    for_nothing: u32,
    /// Something was found since it said so last.
    gave: bool,
    /// What the vCPU's last exit was has been struck out, so if it is found full again, that is
    /// another exit.
    struck_out: bool,
    /// An overrun left phantoms that have not been found yet: a gap is no news.
    expects_gap: bool,
    /// Entries harvested.
    pub harvested: u64,
    /// Of those, before tracking started.
    pub harvested_before: u64,
}

impl Ring {
    pub fn new(memory: Box<dyn RingMemory>) -> Result<Self> {
        let entries = memory.entries();
        if !entries.len().is_power_of_two() {
            return Err(Error::new(
                Kind::Invalid,
                format!("a dirty ring of {} entries: no power of two", entries.len()),
            ));
        }
        let known = Position::is_untouched(entries);
        Ok(Ring {
            memory,
            at: Position::default(),
            known,
            suspect: false,
            clean: known,
            found: false,
            full: false,
            for_nothing: 0,
            gave: false,
            struck_out: false,
            expects_gap: false,
            harvested: 0,
            harvested_before: 0,
        })
    }

    /// Another tracker may have used it since: where the kernel is has to be found out again.
    pub fn begin(&mut self) {
        let entries = self.memory.entries();
        if self.at.flagged() > 0 {
            self.at.unflag(entries);
        }
        self.known = Position::is_untouched(entries);
        if self.known {
            self.at = Position::default();
        }
        self.clean = self.known;
        (self.suspect, self.expects_gap) = (false, false);
        (self.for_nothing, self.gave, self.struck_out) = (0, false, false);
        self.harvested_before = self.harvested;
    }

    /// Whether more than 1/`part` of it is dirty, as far as one load can tell.
    pub fn fills(&self, part: u64) -> bool {
        self.known && self.at.fills(self.memory.entries(), part)
    }

    /// `n` entries were harvested.
    fn got(&mut self, n: u64) {
        self.harvested += n;
        self.gave |= n > 0;
    }

    pub fn bytes(&self) -> u64 {
        self.memory.entries().len() as u64 * ENTRY_BYTES
    }

    /// Entries that are in use for certain when the vCPU comes out full.
    fn soft_limit(&self) -> u64 {
        let len = self.memory.entries().len() as u64;
        // A kernel with page-modification logging refuses rings that its buffer would fill.
        match len {
            0..=RESERVE => 0,
            len if len < RESERVE + RESERVE_PML => len - RESERVE,
            len => len - RESERVE - RESERVE_PML,
        }
    }
}

/// Running totals.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Rounds made.
    pub rounds: u64,
    /// Entries harvested, of all rings. A page that is written, reset and written again counts twice.
    pub harvested: u64,
    /// Times that a vCPU came out with its ring full.
    pub full_exits: u64,
    /// Times that a ring overran.
    pub overruns: u64,
    /// Pushes that were lost in them.
    pub lost: u64,
    /// RESETs that were interrupted, or may have been.
    pub interrupted: u64,
    /// Times that logging was switched off and on, and everything was reported.
    pub recoveries: u64,
    /// Entries that named no page of the map.
    pub strays: u64,
    /// Pages that may be unprotected and are reported in every sync.
    pub doubtful: u64,
}

/// All rings, and what they gave. Under one lock: see `reaper.rs`.
#[derive(Default)]
pub(super) struct Rounds {
    /// By the VMM's number of the vCPU.
    pub rings: BTreeMap<u32, Ring>,
    pub found: Found,
    /// Whether what is found is kept.
    pub tracking: bool,
    /// Pages were lost: everything counts as dirty once all are protected again.
    pub lost: bool,
    /// What happened, in words, for the next sync's report.
    pub notes: Vec<String>,
    pub figures: Figures,
}

fn keep(found: &mut Found, tracking: bool) -> impl FnMut(u32, u64) + '_ {
    move |slot, offset| {
        if tracking {
            found.page(slot, offset);
        }
    }
}

impl Rounds {
    /// A round.
    pub fn round(&mut self, vm: &Arc<dyn ResetRings>, look: Look) -> Result<()> {
        self.figures.rounds += 1;
        let mut flagged = 0;
        let mut overran = Vec::new();
        for (&vcpu, ring) in &mut self.rings {
            ring.found = false;
            if !ring.known {
                continue;
            }
            let entries = ring.memory.entries();
            let n = ring
                .at
                .harvest(entries, keep(&mut self.found, self.tracking));
            let full = ring.at.flagged() == entries.len() as u64;
            ring.found = n > 0;
            ring.got(n);
            self.figures.harvested += n;
            flagged += ring.at.flagged();
            if full {
                overran.push(vcpu);
            }
        }
        for vcpu in overran {
            self.overrun(vcpu, "it was full to the last entry");
        }
        self.reset(vm, flagged)?;
        let vcpus: Vec<u32> = self.rings.keys().copied().collect();
        for vcpu in vcpus {
            let Some(ring) = self.rings.get(&vcpu) else {
                continue;
            };
            let unknown = !ring.known && (look == Look::Unknown || ring.full);
            if ring.suspect || unknown || look == Look::All {
                self.look(vm, vcpu)?;
            }
            self.full_for_nothing(vm, vcpu)?;
        }
        if self.found.in_too_much_doubt() {
            self.lost = true;
        }
        Ok(())
    }

    fn overrun(&mut self, vcpu: u32, how: &str) {
        let Some(ring) = self.rings.get_mut(&vcpu) else {
            return;
        };
        // One event goes by several signs.
        if !ring.suspect {
            self.figures.overruns += 1;
            if self.tracking {
                self.notes.push(format!(
                    "the dirty ring of vCPU {vcpu} ({} entries) overran: {how}; every page counts \
                     as dirty and logging is set up anew",
                    ring.memory.entries().len()
                ));
            }
        }
        ring.suspect = true;
        ring.clean = false;
        ring.expects_gap = true;
        self.lost |= self.tracking;
    }

    /// RESET of everything that is flagged.
    fn reset(&mut self, vm: &Arc<dyn ResetRings>, flagged: u64) -> Result<()> {
        if flagged == 0 {
            return Ok(());
        }
        let mut consumed = 0;
        for _ in 0..RESETS {
            let done = vm.reset()?;
            consumed += done.count;
            if consumed >= flagged && !done.disturbed {
                break;
            }
            self.in_doubt();
            // Interrupted, it goes on where it stopped; at an entry that was pushed onto, it does not.
            let goes_on = self.rings.values().any(|ring| {
                let mut at = ring.at;
                matches!(
                    at.settle_by_flags(ring.memory.entries()),
                    Settled::Before(_)
                )
            });
            if consumed >= flagged || !goes_on {
                break;
            }
        }
        if consumed == flagged {
            self.rings.values_mut().for_each(|ring| ring.at.settle());
            return Ok(());
        }
        let mut overran = Vec::new();
        for (&vcpu, ring) in &mut self.rings {
            match ring.at.settle_by_flags(ring.memory.entries()) {
                Settled::All => {}
                // Overwritten, or the kernel does not come here at all.
                Settled::Before(_) | Settled::Overwritten => {
                    // Harvested once more when the kernel's place is known again.
                    ring.at.unflag(ring.memory.entries());
                    ring.known = false;
                    overran.push(vcpu);
                }
            }
        }
        for vcpu in overran {
            self.overrun(vcpu, "it was pushed onto entries that were not reset yet");
        }
        Ok(())
    }

    /// A RESET ended, or may have ended, before it had protected what it consumed.
    fn in_doubt(&mut self) {
        self.figures.interrupted += 1;
        if !self.tracking {
            return;
        }
        for ring in self.rings.values_mut().filter(|r| r.at.flagged() > 0) {
            let entries = ring.memory.entries();
            let from = ring.at.head() - ring.at.flagged();
            let mut at = ring.at;
            let end = match at.settle_by_flags(entries) {
                Settled::Before(place) => place,
                _ => at.head(),
            };
            Position::before(entries, end, end - from, |slot, offset| {
                self.found.in_doubt(slot, offset);
            });
            // The vCPU may have come round to them meanwhile: what they named then is not known.
            self.lost |= Position::came_round(entries, from, end);
        }
    }

    /// Looks through a whole ring, and makes its position the kernel's.
    fn look(&mut self, vm: &Arc<dyn ResetRings>, vcpu: u32) -> Result<()> {
        let ring = &self.rings[&vcpu];
        let (mut in_order, mut seen) = (ring.clean, ring.found);
        for _ in 0..LOOKS {
            let Some(ring) = self.rings.get_mut(&vcpu) else {
                return Ok(());
            };
            let entries = ring.memory.entries();
            let what = match (ring.known, ring.at.last_dirty(entries)) {
                (true, _) => ring.at.look(entries),
                (false, Some(last)) => Seen::Gap(last),
                (false, None) => Seen::Clean,
            };
            match what {
                Seen::Clean => {
                    // Clean before, in order since, and not full: the kernel is where we are.
                    if in_order && seen && ring.known {
                        ring.suspect = false;
                        // There were no phantoms. The next gap is another overrun's.
                        ring.expects_gap = false;
                    }
                    ring.clean = ring.known;
                    return Ok(());
                }
                Seen::InOrder => {
                    let n = ring
                        .at
                        .harvest(entries, keep(&mut self.found, self.tracking));
                    let flagged = ring.at.flagged();
                    let full = flagged == entries.len() as u64;
                    ring.got(n);
                    self.figures.harvested += n;
                    seen = true;
                    if full {
                        in_order = false;
                        self.overrun(vcpu, "it was full to the last entry");
                    }
                    self.reset(vm, flagged)?;
                }
                Seen::Gap(barrier) => {
                    in_order = false;
                    self.resync(vm, vcpu, barrier)?;
                }
            }
        }
        Ok(())
    }

    fn resync(&mut self, vm: &Arc<dyn ResetRings>, vcpu: u32, barrier: u64) -> Result<()> {
        let Some(ring) = self.rings.get_mut(&vcpu) else {
            return Ok(());
        };
        let entries = ring.memory.entries();
        let (was_known, len) = (ring.known, entries.len() as u64);
        let mut n = 0;
        let mut keep = keep(&mut self.found, self.tracking);
        let resync = Resync::begin(entries, barrier, |slot, offset| {
            n += 1;
            keep(slot, offset);
        });
        drop(keep);
        // Nothing says how many it should be, so an interrupted one shows by going on.
        let (mut count, mut went_on, mut disturbed, mut outcome) = (0, 0, false, Ok(()));
        let mut zeros = 0;
        while zeros < 2 && went_on < RESETS {
            match vm.reset() {
                Ok(done) => {
                    count += done.count;
                    disturbed |= done.disturbed;
                    zeros += u32::from(done.count == 0);
                    went_on += u32::from(done.count > 0);
                }
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        disturbed |= went_on > 1;
        let came_to = resync.end(entries, count);
        outcome?;
        ring.got(n);
        self.figures.harvested += n;
        ring.known = came_to.position.is_some();
        if let Some(position) = came_to.position {
            ring.at = position;
        }
        let expected = std::mem::take(&mut ring.expects_gap);
        if ring.suspect || was_known {
            self.figures.lost += came_to.phantoms;
        }
        if was_known && !expected {
            self.overrun(vcpu, "pages were pushed behind entries that hold none");
            if let Some(ring) = self.rings.get_mut(&vcpu) {
                // They were released just now.
                ring.expects_gap = false;
            }
        }
        if n + 1 == len {
            self.overrun(vcpu, "it was full to the last entry");
        }
        if disturbed {
            // Which entries it was cannot be told from here.
            self.figures.interrupted += 1;
            self.lost |= self.tracking;
        }
        Ok(())
    }

    /// Sign (d), and its cure.
    fn full_for_nothing(&mut self, vm: &Arc<dyn ResetRings>, vcpu: u32) -> Result<()> {
        let Some(ring) = self.rings.get_mut(&vcpu) else {
            return Ok(());
        };
        if !std::mem::take(&mut ring.full) {
            return Ok(());
        }
        if std::mem::take(&mut ring.gave) {
            ring.for_nothing = 0;
            ring.struck_out = false;
            return Ok(());
        }
        ring.for_nothing = ring.for_nothing.saturating_add(1);
        let (entries, give) = (ring.memory.entries(), ring.soft_limit());
        if ring.for_nothing <= FULL_FOR_NOTHING || give == 0 || !ring.memory.exited_full() {
            return Ok(());
        }
        // What stands there may be an exit of long ago, and a ring that is given what it has not in
        // use is broken for ever. The exit after this one is proof.
        ring.memory.strike_out();
        if !std::mem::replace(&mut ring.struck_out, true) {
            return Ok(());
        }
        let any = entries
            .iter()
            .any(|e| e.flags.load(std::sync::atomic::Ordering::Acquire) == DIRTY);
        if any {
            ring.suspect = true;
            return self.look(vm, vcpu);
        }
        // One window suffices where the position is known; else each that the ring has.
        let windows = if ring.known {
            1
        } else {
            (entries.len() as u64).div_ceil(give)
        };
        for _ in 0..windows {
            ring.at.give(entries, give);
            let done = vm.reset();
            let count = done.as_ref().map_or(0, |d| d.count);
            ring.at.took(entries, give, count);
            done?;
            if count > 0 {
                self.figures.lost += count;
                ring.known = true;
                // There can be many times as much; it was proved once, so this goes faster.
                ring.for_nothing = FULL_FOR_NOTHING - 1;
                break;
            }
            ring.at.move_by(give);
        }
        ring.clean = false;
        self.overrun(
            vcpu,
            "the kernel calls it full again and again and there is nothing in it",
        );
        Ok(())
    }

    /// Figures, with those that are kept elsewhere.
    pub fn figures(&self) -> Figures {
        Figures {
            strays: self.found.strays(),
            doubtful: self.found.doubtful(),
            ..self.figures
        }
    }
}
