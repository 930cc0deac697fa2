//! The trial itself: brant's own guest runs under each kind of log, and is timed. x86-64 only.

use super::{Cost, Costs};
use crate::dirty::kvm::mode::KvmMode;
use crate::dirty::kvm::ring::protocol::Position;
use crate::error::{Error, Kind, Result};
use crate::runtime::Timeout;
use crate::sys::clock::thread_time;
use crate::sys::event::SignalMask;
use crate::sys::guarded::Guarded;
use crate::sys::kvm::{Vm, VmFd, CAP_MANUAL_DIRTY_LOG_PROTECT2};
use crate::sys::kvm_machine::{self, Exit, Machine, DATA_SLOT, IDLE_SLOT};
use crate::sys::kvm_ring::{ResetRings, RingMap, RingMemory, RingVm};
use crate::units::{Bytes, Pages};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// The most pages that the guest writes: 4 MiB, so that touching them takes milliseconds.
const PAGES: u64 = 1024;
/// Pages written between two looks at the clock, and the fewest that give a figure. A quarter of
/// the ring: there brant's reaper makes a round.
const BATCH: u64 = 256;
/// One entry for each page. This includes the 576 entries that page-modification logging reserves.
const RING_BYTES: u64 = PAGES * 16;
/// Memory that is never touched, to measure a sync of clean pages.
const IDLE: Bytes = Bytes(1 << 30);
/// How often the guest writes the pages between two syncs of a bitmap.
const SWEEPS: u64 = 4;
/// The same for a ring, where all sweeps cost the same.
const RING_SWEEPS: u64 = 2;
/// How often each trial is repeated if there is time.
const ROUNDS: usize = 5;
/// How often the bitmap of clean pages is read.
const LOOKS: usize = 5;
/// One more than there are trials (four kinds, and writes without a log): [`Time::share`] subtracts
/// one before it divides.
const SHARES: u32 = 6;

type Missing = Vec<(KvmMode, Error)>;

/// The figures, and the reasons for those that are missing.
pub fn measure(kvm: Option<BorrowedFd<'_>>, limit: Duration) -> Result<(Costs, Missing)> {
    let mut time = Time::new(limit);
    let kvm = kvm_machine::kvm(kvm)?;
    let mut costs = Costs::default();
    let mut missing = Missing::new();
    let machine = Machine::new(kvm.as_fd(), Pages(PAGES), IDLE, 0)?;
    let mut trial = Trial::new(machine)?;
    time.share()?;
    costs.untracked_write = trial.untracked(&time)?;
    let manual = trial
        .machine
        .vm
        .check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2);
    // The most important kinds come first, in case time runs out.
    let kinds = [
        KvmMode::InitiallySet,
        KvmMode::Ring,
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
    ];
    for mode in kinds {
        let tried = time.share().and_then(|()| match mode {
            KvmMode::Ring => {
                let machine = Machine::new(kvm.as_fd(), Pages(PAGES), Bytes(4096), RING_BYTES)?;
                Trial::new(machine)?.ring(manual, &time)
            }
            mode if manual & mode.manual() != mode.manual() => Err(Error::new(
                Kind::Unsupported,
                format!("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is {manual}"),
            )),
            mode => trial.bitmap(mode, &time),
        });
        match (tried, costs.of_mut(mode)) {
            (Ok(cost), Some(place)) => *place = Some(cost),
            (Ok(_), None) => {}
            (Err(e), _) => missing.push((mode, e)),
        }
    }
    Ok((costs, missing))
}

/// The limit's remaining time, in equal shares for the remaining trials.
struct Time {
    limit: Duration,
    end: Instant,
    left: u32,
    /// When the present share ends.
    share: Instant,
}

impl Time {
    fn new(limit: Duration) -> Time {
        let end = Instant::now() + limit;
        Time {
            limit,
            end,
            left: SHARES,
            share: end,
        }
    }

    /// Begins the next share. An error if no time remains.
    fn share(&mut self) -> Result<()> {
        let now = Instant::now();
        self.check()?;
        self.left = self.left.saturating_sub(1).max(1);
        self.share = now + (self.end - now) / self.left;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if Instant::now() < self.end {
            return Ok(());
        }
        let limit = Timeout::new("the limit of the measurement", self.limit);
        Err(Error::new(Kind::Timeout, format!("{limit} ran out")))
    }

    fn left_of_share(&self) -> Duration {
        self.share.saturating_duration_since(Instant::now())
    }

    /// Whether there is time for another round.
    fn permits(&self, rounds: usize) -> bool {
        rounds < ROUNDS && Instant::now() < self.share
    }
}

fn timed<T>(what: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let begun = thread_time();
    let done = what()?;
    Ok((thread_time().saturating_sub(begun), done))
}

/// The median, but at least one nanosecond, so that no cost is 0.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.max(Duration::from_nanos(1))
}

fn each(time: Duration, pages: u64) -> Duration {
    Duration::from_nanos((time.as_nanos() / u128::from(pages.max(1))) as u64)
}

/// A vCPU's ring, emptied on this thread.
struct Emptied {
    memory: RingMap,
    reset: RingVm,
    at: Position,
}

impl Emptied {
    /// Makes a round, harvest and RESET, and returns how many pages it found.
    fn round(&mut self) -> Result<u64> {
        // An interrupted RESET leaves pages unprotected, and their writes would look cheap.
        let _masked = SignalMask::full().put();
        let harvested = self.at.harvest(self.memory.entries(), |_, _| {});
        self.reset.reset()?;
        self.at.settle();
        Ok(harvested)
    }
}

/// The time that the syncs of a trial took, and the pages they found.
#[derive(Default)]
struct Syncs {
    time: Duration,
    pages: u64,
}

struct Trial {
    // Declared before the machine, to be dropped first: it has the ring of the machine's vCPU
    // mapped.
    ring: Option<Emptied>,
    machine: Machine,
    /// How many pages the guest writes: fewer than there are on a machine where a fault is slow.
    pages: u64,
    /// The time of entering and leaving the guest, with one write.
    bare: Duration,
    words: Guarded,
    idle: Guarded,
    syncs: Syncs,
}

impl Trial {
    fn new(machine: Machine) -> Result<Trial> {
        Ok(Trial {
            ring: None,
            machine,
            pages: PAGES,
            bare: Duration::ZERO,
            words: Guarded::new((PAGES / 64) as usize, "a measuring guest's bitmap")?,
            idle: Guarded::new(
                Pages(IDLE.0 >> 12).index() / 64,
                "a measuring guest's bitmap",
            )?,
            syncs: Syncs::default(),
        })
    }

    /// Lets the guest write pages; returns its time, without that of entering and leaving.
    fn write(&mut self, first: u64, pages: u64, time: &Time) -> Result<Duration> {
        self.machine.order(Pages(first), Pages(pages));
        let mut took = Duration::ZERO;
        loop {
            let (entered, exit) = timed(|| self.machine.enter())?;
            took += entered;
            match exit {
                Exit::Done => return Ok(took.saturating_sub(self.bare)),
                Exit::Interrupted => time.check()?,
                Exit::RingFull => {
                    time.check()?;
                    self.sync_ring()?;
                }
            }
        }
    }

    /// Writes all pages once, in batches, and calls `after` behind each.
    fn sweep(
        &mut self,
        time: &Time,
        mut after: impl FnMut(&mut Trial) -> Result<()>,
    ) -> Result<Duration> {
        let mut took = Duration::ZERO;
        for first in (0..self.pages).step_by(BATCH as usize) {
            took += self.write(first, BATCH, time)?;
            time.check()?;
            after(self)?;
        }
        Ok(took)
    }

    /// The cost of a write while nothing is tracked, once every page is mapped.
    fn untracked(&mut self, time: &Time) -> Result<Duration> {
        // When KVM maps a page, that costs about as much as lifting its protection. In its share
        // each kind should get through more than one sweep over clean pages.
        let batch = self.write(0, BATCH, time)?;
        let page = (batch.as_nanos() / u128::from(BATCH)).max(1);
        let fit = (time.left_of_share().as_nanos() / (2 * page)) as u64;
        self.pages = fit.clamp(BATCH, PAGES) / BATCH * BATCH;
        self.sweep(time, |_| Ok(()))?;
        let mut bare = Vec::with_capacity(LOOKS);
        for _ in 0..LOOKS {
            bare.push(self.write(0, 1, time)?);
        }
        self.bare = median(bare);
        let mut times = Vec::with_capacity(ROUNDS);
        while times.is_empty() || time.permits(times.len()) {
            times.push(each(self.sweep(time, |_| Ok(()))?, self.pages));
        }
        Ok(median(times))
    }

    /// The cost of `mode`, a kind of bitmap. Logging is off afterwards, whatever happens.
    fn bitmap(&mut self, mode: KvmMode, time: &Time) -> Result<Cost> {
        let done = self.set(mode.manual()).and_then(|()| {
            self.machine.log(DATA_SLOT, true)?;
            self.rounds(mode, time)
        });
        let off = self.machine.log(DATA_SLOT, false);
        let idle = self.machine.log(IDLE_SLOT, false);
        let cost = done?;
        off.and(idle)?;
        Ok(cost)
    }

    fn set(&mut self, manual: u64) -> Result<()> {
        match self
            .machine
            .vm
            .check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2)
        {
            0 => Ok(()),
            _ => self
                .machine
                .vm
                .enable_cap(CAP_MANUAL_DIRTY_LOG_PROTECT2, manual),
        }
    }

    fn rounds(&mut self, mode: KvmMode, time: &Time) -> Result<Cost> {
        // At the beginning every bit may be set, with no page protected.
        self.sync_bitmap(mode)?;
        let cost = self.repeat(time, |trial| {
            let clean = trial.sweep(time, |_| Ok(()))?;
            let mut all = clean;
            for _ in 1..SWEEPS {
                all += trial.sweep(time, |_| Ok(()))?;
            }
            trial.sync_bitmap(mode)?;
            trial.found(trial.pages)?;
            Ok((clean, each(all, SWEEPS)))
        })?;
        Ok(Cost {
            sync_gib: self.idle(mode, time)?,
            ..cost
        })
    }

    /// Repeats a round, which returns the times of the clean sweep and of the mean one.
    fn repeat(
        &mut self,
        time: &Time,
        mut round: impl FnMut(&mut Trial) -> Result<(Duration, Duration)>,
    ) -> Result<Cost> {
        let (mut first, mut busy, mut sync) = (Vec::new(), Vec::new(), Vec::new());
        while first.is_empty() || time.permits(first.len()) {
            self.syncs = Syncs::default();
            let (clean, mean) = match round(self) {
                Ok(done) => done,
                // The rounds before this one have given figures.
                Err(e) if e.kind() == Kind::Timeout && !first.is_empty() => break,
                Err(e) => return Err(e),
            };
            first.push(each(clean, self.pages));
            busy.push(each(mean, self.pages));
            sync.push(each(self.syncs.time, self.syncs.pages));
        }
        Ok(Cost {
            first_write: median(first),
            busy_write: median(busy),
            sync_page: median(sync),
            sync_gib: Duration::ZERO,
        })
    }

    /// Checks that this round's syncs found at least `pages`.
    fn found(&self, pages: u64) -> Result<()> {
        if self.syncs.pages >= pages {
            return Ok(());
        }
        let found = self.syncs.pages;
        Err(Error::new(
            Kind::Internal,
            format!("{pages} pages were written, and {found} found"),
        ))
    }

    /// A sync as brant's log makes it: GET, then CLEAR of its bits in modes in which GET clears
    /// nothing.
    fn sync_bitmap(&mut self, mode: KvmMode) -> Result<()> {
        let (vm, words) = (&mut self.machine.vm, &mut self.words);
        let (took, pages) = timed(|| get_and_clear(vm, mode, DATA_SLOT, words, PAGES))?;
        self.syncs.time += took;
        self.syncs.pages += pages;
        Ok(())
    }

    /// The cost of a sync of 1 GiB without a dirty page.
    fn idle(&mut self, mode: KvmMode, time: &Time) -> Result<Duration> {
        self.machine.log(IDLE_SLOT, true)?;
        let (vm, words) = (&mut self.machine.vm, &mut self.idle);
        let mut sync = || get_and_clear(vm, mode, IDLE_SLOT, words, IDLE.0 >> 12);
        sync()?;
        let mut times = Vec::with_capacity(LOOKS);
        while times.is_empty() || (times.len() < LOOKS && time.check().is_ok()) {
            times.push(timed(&mut sync)?.0);
        }
        Ok(median(times))
    }

    /// The cost of rings, on a machine that has them enabled.
    fn ring(mut self, manual: u64, time: &Time) -> Result<Cost> {
        self.untracked(time)?;
        if manual != 0 {
            // Rings never go with initially-set bitmaps, which would protect no page.
            self.set(0)?;
        }
        self.ring = Some(Emptied {
            memory: self.machine.ring()?,
            reset: RingVm::new(&self.machine.vm)?,
            at: Position::default(),
        });
        self.machine.log(DATA_SLOT, true)?;
        // Clean pages are not in a ring, so a sync costs nothing for them.
        self.repeat(time, |trial| {
            let clean = trial.sweep(time, Trial::sync_ring)?;
            let mut all = clean;
            for _ in 1..RING_SWEEPS {
                all += trial.sweep(time, Trial::sync_ring)?;
            }
            trial.found(trial.pages * RING_SWEEPS)?;
            Ok((clean, each(all, RING_SWEEPS)))
        })
    }

    fn sync_ring(&mut self) -> Result<()> {
        let Some(ring) = &mut self.ring else {
            return Err(Error::new(Kind::Internal, "a full ring without a ring"));
        };
        let (took, pages) = timed(|| ring.round())?;
        self.syncs.time += took;
        self.syncs.pages += pages;
        Ok(())
    }
}

/// Syncs one slot, and returns how many pages were dirty.
fn get_and_clear(
    vm: &mut VmFd,
    mode: KvmMode,
    slot: u32,
    words: &mut Guarded,
    pages: u64,
) -> Result<u64> {
    vm.get_dirty_log(slot, words)?;
    let dirty = crate::bits::words::count(words);
    if mode.manual() != 0 && dirty > 0 {
        vm.clear_dirty_log(slot, 0, pages as u32, words)?;
    }
    Ok(dirty)
}
