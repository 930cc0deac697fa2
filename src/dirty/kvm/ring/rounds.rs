//! A round over all rings: harvest, then RESET; only then may what was found be used. A round also
//! notices what goes wrong, and repairs it.
//!
//! **Overrun.** When the kernel pushes onto a full ring it only warns, and goes on. Pages are lost,
//! and they stay writable. As many entries stay in use for ever without holding a page
//! (*phantoms*). The next pages then come behind the phantoms, where nobody looks, or the vCPU is
//! told that its ring is full when it is empty. An overrun shows by one of four signs:
//! - (a) one harvest finds as many entries as the ring has;
//! - (b) a RESET consumes less than was flagged, and stops at an entry that was pushed onto;
//! - (c) an entry is dirty behind one that is not, which pushes in order cannot cause
//!   ([`Position::look`]). The last sync looks for this in every ring, each round in the suspected
//!   ones;
//! - (d) a vCPU comes out full again and again, with nothing in its ring.
//!
//! The ring is repaired at once, with the vCPU running. [`Resync`] finds the kernel's place from
//! any dirty entry, and returns the phantoms before that entry to the kernel. In case (d) there is
//! no dirty entry. There the exit proves that the ring is in use at least up to its soft limit, so
//! that many entries can be returned. The log takes care of the lost pages: it switches logging off
//! and on, which protects every page, and reports every page (see `mod.rs`).
//!
//! **An interrupted RESET** consumes entries but leaves the last batch of them, at most 64 pages,
//! unprotected. RESET runs on a thread whose signals are masked. Interruptions that cannot be
//! masked (SIGSTOP, a debugger, the freezer) show as a short count, or as a sleep of that thread.
//! The pages of all entries that the RESET consumed are then *in doubt*: every sync up to the last
//! reports them. Reporting the last 64 alone was not enough: a process that was stopped and
//! continued all the time still lost a page now and then. One case shows by nothing: a stop at the
//! very end of a RESET that is withdrawn before this thread has noticed it.

use super::found::Found;
use super::protocol::{Position, Resync, Seen, Settled, DIRTY};
use crate::dirty::slices::Slices;
use crate::error::{Error, Kind, Result};
use crate::sys::kvm_ring::{ResetRings, RingMemory, ENTRY_BYTES};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often a vCPU may come out full with nothing in its ring before (d) counts. Once is ordinary,
/// because a round may have been under way. And a VMM that reports one exit twice must not break
/// its ring.
const FULL_FOR_NOTHING: u32 = 4;
/// How often one round looks at the same ring.
const LOOKS: u32 = 8;
/// How often one round calls RESET again after a short count.
const RESETS: u32 = 16;
/// `KVM_DIRTY_RING_RSVD_ENTRIES`, without and with the buffer of page-modification logging.
const RESERVE: u64 = 64;
const RESERVE_PML: u64 = 512;

/// Which rings a round looks through to the end, besides the suspected ones.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    /// None: each ring is read in order, up to its first entry that is not dirty. The ring of a vCPU
    /// over its dirty limit is left alone, unless that vCPU waits for room.
    #[default]
    Heads,
    /// Rings whose position is not known yet.
    Unknown,
    /// All rings: no page may be missed.
    All,
}

/// One vCPU's ring.
pub(super) struct Ring {
    memory: Box<dyn RingMemory>,
    at: Position,
    /// `at` is the kernel's place. False for a ring that another user may have used before.
    known: bool,
    /// An overrun was noticed, and the ring has not been seen in order since.
    suspect: bool,
    /// After the last round a look at the whole ring found it clean.
    clean: bool,
    /// This round found an entry at the position.
    found: bool,
    /// The vCPU stands outside of KVM_RUN and says that the ring is full.
    pub full: bool,
    /// How often the vCPU said so since an entry was last found.
    for_nothing: u32,
    /// An entry was found since the vCPU last said so.
    gave: bool,
    /// The exit reason in `kvm_run` has been overwritten. If it says "ring full" later, that is
    /// another exit.
    struck_out: bool,
    /// The phantoms of a noticed overrun are not found yet, so a gap is no new overrun.
    expects_gap: bool,
    /// Entries harvested.
    pub harvested: u64,
    /// The vCPU's dirty limit.
    pub slices: Slices,
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
            slices: Slices::default(),
        })
    }

    /// Prepares the ring for a tracker. Another one may have used it since, so the kernel's place
    /// has to be found anew.
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
    }

    /// Whether more than 1/`part` of the ring is dirty. Costs one load.
    pub fn fills(&self, part: u64) -> bool {
        self.known && self.at.fills(self.memory.entries(), part)
    }

    /// Whether the ring is to fill up, because its vCPU is over its dirty limit. A ring that has to
    /// be repaired is not.
    pub fn is_left_alone(&mut self, now: Duration) -> bool {
        self.known && !self.suspect && self.slices.is_over(now)
    }

    /// Whether the VMM wants the vCPU to leave the guest at once.
    pub fn is_wanted_out(&self) -> bool {
        self.memory.is_wanted_out()
    }

    /// Counts `n` entries harvested at `now`.
    fn got(&mut self, n: u64, now: Duration) {
        self.harvested += n;
        self.gave |= n > 0;
        self.slices.wrote(now, n);
    }

    pub fn entries(&self) -> u64 {
        self.memory.entries().len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.entries() * ENTRY_BYTES
    }

    /// How many entries are certainly in use when the vCPU comes out with a full ring.
    fn soft_limit(&self) -> u64 {
        let len = self.memory.entries().len() as u64;
        // With page-modification logging the kernel refuses rings that its buffer alone would fill.
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
    /// Entries harvested from all rings. A page that is written, reset and written again counts
    /// twice.
    pub harvested: u64,
    /// How often a vCPU came out with its ring full.
    pub full_exits: u64,
    /// How many slices vCPUs have waited because they were over their dirty limit.
    pub limit_waits: u64,
    /// How often a ring overran.
    pub overruns: u64,
    /// Pushes that were lost in overruns.
    pub lost: u64,
    /// RESETs that were interrupted, or may have been.
    pub interrupted: u64,
    /// How often logging was switched off and on, after which every page was reported.
    pub recoveries: u64,
    /// Entries that named no page of the map.
    pub strays: u64,
    /// Pages that may be unprotected. Every sync reports them.
    pub doubtful: u64,
}

/// All rings, and the pages found in them. One lock covers both: see `reaper.rs`.
#[derive(Default)]
pub(super) struct Rounds {
    /// By the VMM's number of the vCPU.
    pub rings: BTreeMap<u32, Ring>,
    pub found: Found,
    /// Whether found pages are kept.
    pub tracking: bool,
    /// Pages were lost. Once every page is protected again, all of them count as dirty.
    pub lost: bool,
    /// Sentences on what happened, for the next sync's report.
    pub notes: Vec<String>,
    pub figures: Figures,
    /// When the round began.
    now: Duration,
}

fn keep(found: &mut Found, tracking: bool) -> impl FnMut(u32, u64) + '_ {
    move |slot, offset| {
        if tracking {
            found.page(slot, offset);
        }
    }
}

impl Rounds {
    /// Makes one round over all rings. `now` is the time for the dirty limits.
    pub fn round(&mut self, vm: &Arc<dyn ResetRings>, look: Look, now: Duration) -> Result<()> {
        self.figures.rounds += 1;
        self.now = now;
        let mut flagged = 0;
        let mut overran = Vec::new();
        for (&vcpu, ring) in &mut self.rings {
            ring.found = false;
            let alone = look == Look::Heads && !ring.full && ring.is_left_alone(now);
            if !ring.known || alone {
                continue;
            }
            let entries = ring.memory.entries();
            let n = ring
                .at
                .harvest(entries, keep(&mut self.found, self.tracking));
            let full = ring.at.flagged() == entries.len() as u64;
            ring.found = n > 0;
            ring.got(n, self.now);
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
        // One overrun can show by several signs, and counts once.
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

    /// Has the kernel reset every flagged entry.
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
            // After an interruption the next RESET goes on where this one stopped. It does not go
            // past an entry that was pushed onto.
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
                // The ring overran, or the kernel stands elsewhere in it.
                Settled::Before(_) | Settled::Overwritten => {
                    // These entries are harvested once more when the kernel's place is known again.
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

    /// A RESET ended, or may have ended, before it protected the pages of all entries that it
    /// consumed.
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
            // The vCPU may have pushed onto these entries meanwhile. Then the pages that they named
            // before are unknown.
            self.lost |= Position::came_round(entries, from, end);
        }
    }

    /// Looks through a whole ring, and moves its position to the kernel's place.
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
                    // The ring was clean, then in order, and is not full: the position is the
                    // kernel's place.
                    if in_order && seen && ring.known {
                        ring.suspect = false;
                        // There were no phantoms, so the next gap is another overrun.
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
                    ring.got(n, self.now);
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
        // The right count is unknown here. So an interrupted RESET shows when the next one consumes
        // more.
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
        ring.got(n, self.now);
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
                // The phantoms were returned to the kernel just now.
                ring.expects_gap = false;
            }
        }
        if n + 1 == len {
            self.overrun(vcpu, "it was full to the last entry");
        }
        if disturbed {
            // Which entries the interrupted RESET left unprotected is unknown here.
            self.figures.interrupted += 1;
            self.lost |= self.tracking;
        }
        Ok(())
    }

    /// Sign (d) of an overrun, and its repair.
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
        // `kvm_run` may hold an exit of long ago. If the kernel is given entries that are not in
        // use, the ring is broken for ever. So the exit reason is overwritten, and only a new exit
        // is proof.
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
        // With a known position one window is enough. Otherwise every window of the ring is tried.
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
                // There can be many times as many phantoms. The fault is proved now, so the next
                // time takes less.
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

    /// Running totals, with those that `found` counts.
    pub fn figures(&self) -> Figures {
        Figures {
            strays: self.found.strays(),
            doubtful: self.found.doubtful(),
            ..self.figures
        }
    }
}
