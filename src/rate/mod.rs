//! How fast a guest dirties its memory, measured without migrating it.
//!
//! A [`Probe`] measures for a period, in one of two [`Way`]s. The tracker's logs give an exact
//! count, at the cost of logging. Reading some pages twice gives an estimate with a stated error,
//! at no cost to the guest. `estimate` makes a rate of the counts; it has no clock and no memory.
//! `sample` reads the pages.

#[doc(hidden)]
pub mod estimate;
mod sample;

#[doc(inline)]
pub use estimate::Rate;

use crate::bits::summary::Bitmap;
use crate::dirty::consumer::{Consumer, Cursor};
use crate::dirty::tracker::{StartWith, Tracker};
use crate::dirty::vcpus::VcpuPages;
use crate::dirty::When;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::{Bytes, Pages};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The shortest period. Below it, beginning and ending would be a large part of it.
pub const PERIOD_MIN: Duration = Duration::from_millis(10);
/// The longest period.
pub const PERIOD_MAX: Duration = Duration::from_secs(60);
/// The default period.
pub const PERIOD_DEFAULT: Duration = Duration::from_secs(1);
/// The default number of pages read of each GiB: one in 512. When memory is read at 1 GiB/s, 1 TiB
/// takes two seconds for each of the two readings.
pub const SAMPLES_DEFAULT: u32 = 512;
/// The largest number of pages of each GiB: every page.
pub const SAMPLES_MAX: u32 = 1 << 18;

/// The way to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By all logs of the tracker, as one more consumer, so that other consumers lose nothing. The
    /// guest takes a write fault for each page that it writes, twice in the period.
    Log,
    /// By the contents of some pages, read at the beginning and at the end of the period. Needs no
    /// log.
    Sample {
        /// How many pages of each GiB, 1 to [`SAMPLES_MAX`]; at least one page in all.
        per_gib: u32,
    },
}

/// The parameters of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// The way to measure.
    pub way: Way,
    /// The length of the period: [`PERIOD_MIN`] to [`PERIOD_MAX`].
    pub period: Duration,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            way: Way::Log,
            period: PERIOD_DEFAULT,
        }
    }
}

impl Params {
    fn check(&self) -> Result<()> {
        if !(PERIOD_MIN..=PERIOD_MAX).contains(&self.period) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "a dirty rate is measured for {} to {} ms, not for {}",
                    PERIOD_MIN.as_millis(),
                    PERIOD_MAX.as_millis(),
                    self.period.as_millis()
                ),
            ));
        }
        match self.way {
            Way::Sample { per_gib } if !(1..=SAMPLES_MAX).contains(&per_gib) => Err(Error::new(
                Kind::Invalid,
                format!("1 to {SAMPLES_MAX} pages of a GiB are sampled, not {per_gib}"),
            )),
            _ => Ok(()),
        }
    }
}

/// Progress of a complete measurement, in hundredths of a percent.
const DONE: u32 = 10_000;
/// Progress when the period is over.
const ENDING: u32 = 9_900;

/// The state of a measurement, and what was asked of it.
#[derive(Debug, Default)]
struct State {
    measuring: bool,
    cancelled: bool,
    /// The period has to end now.
    finish: bool,
    /// When the period began. `None` before and after it.
    begun: Option<Instant>,
    progress: u32,
}

/// Measures the dirty rate of a tracker's guest, any number of times, one at a time.
///
/// Every method may be called on any thread.
///
/// ```
/// use brant::dirty::tracker::{Clearing, Tracker};
/// use brant::memory::{Memory, NO_SLOT};
/// use brant::rate::{Params, Probe, Way};
/// use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// # fn main() -> brant::Result<()> {
/// let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let memory = Arc::new(Memory::new()?);
/// memory.add_guest_memory(&ram, NO_SLOT)?;
/// let tracker = Tracker::new(memory, Clearing::default())?;
///
/// // By the contents of one page in 512, which needs no log.
/// let params = Params {
///     way: Way::Sample { per_gib: 512 },
///     period: Duration::from_millis(20),
/// };
/// let rate = Probe::new(tracker, params)?.measure()?;
/// println!("{:.0} pages a second, give or take {:.0}", rate.pages_per_second, rate.error);
/// assert_eq!(rate.written.0, 0); // nobody writes this memory
/// # Ok(())
/// # }
/// ```
pub struct Probe {
    tracker: Arc<Tracker>,
    params: Params,
    state: Mutex<State>,
    asked: Condvar,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("params", &self.params)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

/// Makes room for the next measurement, however this one ends.
struct Turn<'a>(&'a Probe);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.measuring = false;
        state.begun = None;
    }
}

impl Probe {
    /// A probe for these parameters, which are checked.
    pub fn new(tracker: Arc<Tracker>, params: Params) -> Result<Self> {
        params.check()?;
        Ok(Probe {
            tracker,
            params,
            state: Mutex::default(),
            asked: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Measures, and returns when the period is over. [`Probe::finish`] ends the period early;
    /// [`Probe::cancel`] ends the measurement with [`Kind::Cancelled`]. [`Kind::Busy`] while
    /// another thread measures with this probe, and while some of the guest's memory has not arrived
    /// ([`Incomplete`](crate::memory::Whose::Incomplete)).
    pub fn measure(&self) -> Result<Rate> {
        let ownership = self.tracker.memory().ownership();
        ownership.is_whole("measuring how fast it dirties")?;
        let mut state = self.state();
        if state.measuring {
            return Err(Error::new(
                Kind::Busy,
                "another thread is measuring with this probe",
            ));
        }
        // Requests to the last measurement are forgotten, but not a cancel.
        *state = State {
            measuring: true,
            cancelled: state.cancelled,
            ..State::default()
        };
        drop(state);
        let _turn = Turn(self);
        self.check()?;
        let rate = match self.params.way {
            Way::Log => self.by_log(),
            Way::Sample { per_gib } => self.by_sample(per_gib),
        }?;
        self.state().progress = DONE;
        Ok(rate)
    }

    /// Ends the current measurement, and every later one, with [`Kind::Cancelled`]. Does not wait
    /// for the end.
    pub fn cancel(&self) {
        self.state().cancelled = true;
        self.asked.notify_all();
    }

    /// Ends the period of the current measurement, which then returns what it has found. Does not
    /// wait for the end. Does nothing without a measurement.
    pub fn finish(&self) {
        self.state().finish = true;
        self.asked.notify_all();
    }

    /// The progress of the measurement, in hundredths of a percent. 0 until the period has begun.
    /// From 1 on, every write of the guest is seen. 9,900 when the period is over, 10,000 when the
    /// measurement has succeeded.
    pub fn progress(&self) -> u32 {
        let state = self.state();
        match state.begun {
            Some(begun) if state.progress == 0 => {
                let share = begun.elapsed().as_secs_f64() / self.params.period.as_secs_f64();
                1 + (share.min(1.0) * f64::from(ENDING - 2)) as u32
            }
            _ => state.progress,
        }
    }

    fn check(&self) -> Result<()> {
        if self.state().cancelled {
            return Err(Error::new(
                Kind::Cancelled,
                "measuring the dirty rate: cancelled",
            ));
        }
        Ok(())
    }

    /// Notes that the period has begun, for queries of the progress.
    fn begin(&self, begun: Instant) {
        self.state().begun = Some(begun);
    }

    /// Waits until `begun + after`, or until the period has to end.
    fn wait(&self, begun: Instant, after: Duration) -> Result<()> {
        let mut state = self.state();
        while !state.cancelled && !state.finish {
            let left = after.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            (state, _) = self
                .asked
                .wait_timeout(state, left)
                .unwrap_or_else(|e| e.into_inner());
        }
        drop(state);
        self.check()
    }

    /// The memory of the guest that is measured.
    pub fn memory_bytes(&self) -> Bytes {
        self.tracker.memory().with_map(|map| map.total())
    }

    /// Notes that the period is over.
    fn ending(&self) {
        self.state().progress = ENDING;
    }

    fn by_log(&self) -> Result<Rate> {
        // However the measurement ends, this consumer is dropped. Tracking stops then, unless
        // another consumer is started.
        let consumer = self.tracker.consumer();
        let called = Instant::now();
        consumer.start(StartWith::Nothing)?;
        let vcpus_before = consumer.vcpu_counts();
        // Slots are protected one after the other. The period of each slot began during this.
        let begun = Instant::now();
        let starting = begun - called;
        self.begin(begun);
        // The pages written in the first half are remembered. Those that the second half finds
        // again were written in both.
        self.wait(begun, self.params.period / 2)?;
        let first = consumer.sync(When::Running)?;
        let mut seen = Vec::new();
        let (in_first, _) = drain(&consumer, &mut seen)?;
        self.wait(begun, self.params.period)?;
        self.ending();
        let ending = Instant::now();
        let second = consumer.sync(When::Running)?;
        let period = begun.elapsed();
        let edges = starting + ending.elapsed();
        let (in_second, new) = drain(&consumer, &mut seen)?;
        let per_vcpu = consumer.vcpu_counts().map(|counts| {
            let before = vcpus_before.unwrap_or_default();
            let since = |now: &VcpuPages| match before.iter().find(|b| b.vcpu == now.vcpu) {
                Some(before) => now.pages.saturating_sub(before.pages),
                None => now.pages,
            };
            counts.iter().map(since).collect()
        });
        Ok(estimate::logged(&estimate::Logged {
            // The pages that were taken count, not those that the syncs found. A block that comes
            // meanwhile is pending without a sync, and a block that goes is not pending after one.
            first: in_first,
            second: in_second,
            both: in_second - new,
            period,
            edges,
            warned: !first.warnings.is_empty() || !second.warnings.is_empty(),
            per_vcpu,
        }))
    }

    fn by_sample(&self, per_gib: u32) -> Result<Rate> {
        let memory = self.tracker.memory();
        let mut sample = sample::Sample::choose(memory, per_gib)?;
        let begun = Instant::now();
        sample.read(memory, || self.check())?;
        // Every write is seen only from now on.
        self.begin(begun);
        self.wait(begun, self.params.period)?;
        self.ending();
        // Both readings have the same order and about the same pace. So each page is read again
        // after about the time between the two beginnings.
        let period = begun.elapsed();
        let counts = sample.compare(memory, || self.check())?;
        Ok(estimate::sampled(&counts, period))
    }
}

/// Takes every pending page into `seen`, one bitmap for each block. Returns how many pages they
/// were, and how many of them are new there.
fn drain(consumer: &Consumer, seen: &mut Vec<Option<Bitmap>>) -> Result<(Pages, Pages)> {
    let mut cursor = Cursor::default();
    let (mut all, mut new) = (0, 0);
    loop {
        let taken = consumer.take_recallable(&mut cursor, 1024, Pages(1 << 20))?;
        if taken.is_empty() {
            return Ok((Pages(all), Pages(new)));
        }
        for run in taken.runs() {
            let block = run.block.id().index();
            while seen.len() <= block {
                fallible::push(seen, None, "what was written in the period")?;
            }
            if seen[block].is_none() {
                seen[block] = Some(Bitmap::new(run.block.pages().index())?);
            }
            if let Some(seen) = &mut seen[block] {
                // While the guest writes behind the walk, the walk can come to a page twice.
                let (first, count) = (run.pages.first(), run.pages.count());
                all += count.0;
                new += seen.set_range(first.index(), count.index());
            }
        }
        taken.delivered();
    }
}

#[cfg(test)]
mod tests;
