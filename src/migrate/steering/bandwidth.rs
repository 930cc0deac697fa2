//! Two estimates: the link's bandwidth, from bytes delivered and the time of delivering; and the
//! dirty rate, from the pages that syncs found. Pure.
//!
//! Only the time counts in which something was on its way (`delivery`), not that of a sync
//! or of a scan for zero pages. A sync of a terabyte guest takes as long as thousands of pages.
//! Several windows are remembered, and their medians count: one window that stalled or burst changes
//! nothing. But a link that has become slow must show soon, so the estimate is the lower of the long
//! and the short view.
//!
//! A cap on the bandwidth hides the link. Sending at the cap shows only the cap, and the time in
//! which a small batch leaves is that of a copy into the socket. So with a cap some batches are
//! *timed*: from the first byte until the destination says that it has the whole batch. Only time
//! counts in which something was on its way (`timed`). That time includes a round trip, so
//! the estimate is rather too low. The switchover, which is not capped, reaches at least this rate.

use super::recent::Recent;
use crate::units::Pages;
use std::time::Duration;

/// Length of a window, in time in which something was on its way.
const WINDOW: Duration = Duration::from_millis(100);
/// How many windows, or timed batches, are remembered.
const REMEMBERED: usize = 20;
/// How many windows make the short view.
const SHORT: usize = 3;
/// Fewer bytes than this, delivered in less than a window, do not measure the link: the time is
/// mostly that of the two threads.
const LEAST_BYTES: u64 = 32 << 20;
/// After a timed batch no batch is timed for this many times as long, because the link is idle
/// while the sender waits for an answer.
const TIMED_SHARE: u32 = 20;

#[derive(Debug, Default, Clone, Copy)]
struct Sample {
    bytes: u64,
    time: Duration,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// The last windows, or timed batches: their rates in bytes a second.
type Rates = Recent<f64, REMEMBERED>;

/// The lower of two medians, that of all rates and that of the newest ones.
fn lower(rates: &Rates) -> Option<f64> {
    let long = rates.median_of(REMEMBERED, f64::total_cmp);
    let short = rates.median_of(SHORT, f64::total_cmp);
    long.zip(short).map(|(long, short)| long.min(short))
}

/// The estimate of the link's bandwidth. It is fed by [`Bandwidth::delivered`] and, when there is a cap,
/// by [`Bandwidth::timed`].
#[derive(Debug, Default, Clone)]
pub struct Bandwidth {
    windows: Rates,
    current: Sample,
    timed: Rates,
    /// When the next batch may be timed.
    next_timed: Duration,
}

impl Bandwidth {
    /// Records that `bytes` were acknowledged, and that something was on its way for `time` until
    /// then. Waits for a cap are included.
    pub fn delivered(&mut self, bytes: u64, time: Duration) {
        self.current.bytes += bytes;
        self.current.time += time;
        if self.current.time >= WINDOW {
            self.windows.push(self.current.rate());
            self.current = Sample::default();
        }
    }

    /// Whether a batch that is sent now shall be timed. `now` is any clock that does not go back.
    pub fn wants_timed(&self, now: Duration) -> bool {
        now >= self.next_timed
    }

    /// Records a timed batch: its `bytes`, or those of one lane, were on their way for `time`, and
    /// nothing else was. At `now` all have arrived. The timing took `whole`, from when the lanes came
    /// to rest before the batch until they were at rest after it.
    pub fn timed(&mut self, now: Duration, bytes: u64, time: Duration, whole: Duration) {
        self.next_timed = now.saturating_add(whole.saturating_mul(TIMED_SHARE));
        self.timed.push(Sample { bytes, time }.rate());
    }

    /// Bytes a second; `None` until enough was sent for an estimate.
    pub fn estimate(&self) -> Option<f64> {
        let current = &self.current;
        let enough = current.bytes >= LEAST_BYTES || current.time >= WINDOW;
        let sent = lower(&self.windows);
        let sent = sent.or_else(|| enough.then(|| current.rate()));
        let timed = lower(&self.timed);
        // The link has reached both rates, so the higher one counts.
        match (sent, timed) {
            (Some(sent), Some(timed)) => Some(sent.max(timed)),
            (sent, timed) => sent.or(timed),
        }
    }
}

/// A shorter time between two syncs does not measure the dirty rate, because a guest's writes come
/// in bursts.
const DIRTY_WINDOW: Duration = Duration::from_millis(100);

/// Pages a second that the guest writes, over the syncs of the last tenth of a second or more.
///
/// A page that is pending already is not found again. So a sync in the middle of a pass finds few
/// pages or none, even when the guest writes fast: most pages that it writes are still pending. The
/// pages of such a sync count together with the next sync that comes when nothing was pending.
#[derive(Debug, Default, Clone)]
pub struct DirtyRate {
    pages: u64,
    time: Duration,
    rate: Option<f64>,
}

impl DirtyRate {
    /// Records that a sync found `pages` that were written in `time`. `all_sent` says whether no
    /// page was pending before the sync.
    pub fn found(&mut self, pages: Pages, time: Duration, all_sent: bool) {
        self.pages += pages.0;
        self.time += time;
        if !all_sent {
            return;
        }
        if self.time >= DIRTY_WINDOW || self.rate.is_none() {
            self.rate = Some(self.pages as f64 / self.time.as_secs_f64().max(1e-6));
        }
        if self.time >= DIRTY_WINDOW {
            self.pages = 0;
            self.time = Duration::ZERO;
        }
    }

    /// Pages a second; `None` before the first sync that counts.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
}

/// Pages a second that the guest writes, by the pages that syncs found written, pending or not.
///
/// A page can be found only while it is protected. Example: a first pass of 100 s in KVM's
/// manual-protect mode has sent a quarter of memory, and the last 2 s of it have protected 2 %. So 24 %
/// of memory was observed on average. 4,800 pages found in 2 s mean 10,000 pages a second in all of
/// memory, if the guest writes alike everywhere.
#[derive(Debug, Default, Clone)]
pub struct WriteRate {
    /// The share of memory that could be observed at the end of the last sync.
    observed: Option<f64>,
    pages: u64,
    /// Seconds, each as much as the share of memory that was observed in it.
    time: f64,
    rate: Option<f64>,
}

impl WriteRate {
    /// Records that a sync found `written` pages. In the `time` before it, `observed` of all `total`
    /// pages came to be protected.
    pub fn found(&mut self, written: Pages, observed: Pages, total: Pages, time: Duration) {
        let now = (observed.0 as f64 / (total.0 as f64).max(1.0)).min(1.0);
        let whole = if now < 1.0 { 0.0 } else { 1.0 };
        let before = self.observed.replace(now).unwrap_or(whole);
        self.pages += written.0;
        self.time += time.as_secs_f64() * (before.min(now) + now) / 2.0;
        if self.time >= DIRTY_WINDOW.as_secs_f64() {
            self.rate = Some(self.pages as f64 / self.time);
            self.pages = 0;
            self.time = 0.0;
        }
    }

    /// Pages a second; `None` until enough of memory was observed for long enough.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn fed(windows: &[(u64, u64)]) -> Bandwidth {
        let mut b = Bandwidth::default();
        for &(bytes, ms) in windows {
            b.delivered(bytes, Duration::from_millis(ms));
        }
        b
    }

    #[test]
    fn a_steady_link_is_estimated_at_its_rate() {
        let b = fed(&[(100 * MB, 100); 10]);
        assert!((b.estimate().unwrap() / 1e9 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_is_claimed_before_enough_was_sent_to_leave_the_socket_buffers() {
        assert_eq!(Bandwidth::default().estimate(), None);
        assert_eq!(fed(&[(MB, 1)]).estimate(), None);
        assert_eq!(fed(&[(8 * MB, 4)]).estimate(), None);
        assert!(fed(&[(40 * MB, 20)]).estimate().is_some());
        // A slow link is known by the time that it takes.
        assert_eq!(fed(&[(MB, 100)]).estimate(), Some(10e6));
    }

    #[test]
    fn one_fast_window_does_not_raise_it_and_a_slow_link_is_believed_at_once() {
        let mut b = fed(&[(50 * MB, 100); 10]);
        b.delivered(500 * MB, Duration::from_millis(100));
        let steady = 500e6;
        assert!(b.estimate().unwrap() < 2.0 * steady);
        let mut b = fed(&[(100 * MB, 100); 20]);
        for _ in 0..SHORT {
            b.delivered(10 * MB, Duration::from_millis(100));
        }
        assert!(b.estimate().unwrap() <= 100e6 * 1.01);
    }

    #[test]
    fn two_syncs_close_together_do_not_make_a_dirty_guest_look_idle() {
        let mut dirtied = DirtyRate::default();
        dirtied.found(Pages(1000), Duration::from_millis(100), true);
        assert_eq!(dirtied.rate(), Some(10_000.0));
        dirtied.found(Pages(0), Duration::from_micros(50), true);
        assert_eq!(dirtied.rate(), Some(10_000.0));
        dirtied.found(Pages(2000), Duration::from_millis(200), true);
        assert!((dirtied.rate().unwrap() - 10_000.0).abs() < 10.0);
    }

    #[test]
    fn a_sync_in_the_middle_of_a_pass_does_not_make_a_guest_that_writes_flat_out_look_idle() {
        let mut dirtied = DirtyRate::default();
        // All pages that the guest writes are pending already.
        dirtied.found(Pages(0), Duration::from_millis(400), false);
        assert_eq!(dirtied.rate(), None, "unknown is unknown");
        dirtied.found(Pages(5000), Duration::from_millis(100), true);
        assert_eq!(dirtied.rate(), Some(10_000.0));
        dirtied.found(Pages(0), Duration::from_millis(400), false);
        assert_eq!(dirtied.rate(), Some(10_000.0));
    }

    #[test]
    fn pages_found_written_count_by_the_share_of_memory_that_was_observed() {
        let second = Duration::from_secs(1);
        let total = Pages(100_000);
        // A first pass protects a tenth of memory in a second; the guest writes 10,000 pages a second
        // everywhere, so it writes to what was protected by then, on average half a tenth less.
        let mut rate = WriteRate::default();
        for tenth in 1..=10u64 {
            let written = 10_000 * (2 * tenth - 1) / 20;
            rate.found(Pages(written), Pages(total.0 / 10 * tenth), total, second);
            let found = rate.rate();
            match tenth {
                1 => assert_eq!(found, None, "a twentieth of a second was observed"),
                _ => assert!(
                    (found.unwrap() - 10_000.0).abs() < 1.0,
                    "{tenth}: {found:?}"
                ),
            }
        }
        // A log that protects all memory when it starts.
        let mut rate = WriteRate::default();
        rate.found(Pages(300), total, total, second);
        assert_eq!(rate.rate(), Some(300.0));
        rate.found(Pages(0), total, total, second);
        assert_eq!(rate.rate(), Some(0.0));
        // Nothing could be observed.
        let mut rate = WriteRate::default();
        rate.found(Pages(0), Pages(0), total, second);
        assert_eq!(rate.rate(), None, "unknown is unknown");
    }

    /// A link of 1 GB/s behind a cap of 3 MB/s: batches of 150 kB, each of which leaves for the
    /// socket at the speed of a copy.
    #[test]
    fn a_cap_is_not_taken_for_the_link() {
        let mut b = Bandwidth::default();
        let batch = 150_000;
        for i in 0..100u32 {
            let now = Duration::from_millis(50) * i;
            let took = Duration::from_micros(150) + Duration::from_micros(200);
            if b.wants_timed(now) {
                b.timed(now + took, batch, took, took);
            }
            b.delivered(batch, Duration::from_millis(50));
        }
        let link = b.estimate().unwrap();
        // The time includes a round trip of 200 us. So the estimate is lower than the link, and far
        // above the cap.
        assert!((100e6..1e9).contains(&link), "{link}");
        // When the link is no faster than its cap, the estimate shows that.
        let mut b = Bandwidth::default();
        for i in 0..100u32 {
            let now = Duration::from_millis(50) * i;
            let took = Duration::from_millis(90);
            b.timed(now, batch, took, took);
            b.delivered(batch, Duration::from_millis(50));
        }
        assert!((b.estimate().unwrap() - 3e6).abs() < 1.0);
    }

    #[test]
    fn timing_batches_leaves_the_link_to_others_nineteen_parts_of_twenty() {
        let mut b = Bandwidth::default();
        let (mut now, mut timing) = (Duration::ZERO, Duration::ZERO);
        let round_trip = Duration::from_millis(100);
        while now < Duration::from_secs(60) {
            if b.wants_timed(now) {
                now += round_trip;
                timing += round_trip;
                b.timed(now, 1_500_000, round_trip / 10, round_trip);
            }
            now += Duration::from_millis(1);
        }
        assert!(timing <= now / 20, "{timing:?} of {now:?}");
        assert!(timing >= now / 30, "{timing:?} of {now:?}");
    }
}
