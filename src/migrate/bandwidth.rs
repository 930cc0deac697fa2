//! How fast the link is, from what was sent and how long the sending took; and how fast the
//! guest dirties, from what syncs found. Pure.
//!
//! Only sending counts: not the time of a sync (a terabyte guest's takes as long as
//! thousands of pages), not a scan for zero pages. Pacing does count: a link that was only
//! ever used at the cap has shown no more than the cap. Several windows are remembered, and
//! the newest does not get to decide alone; but a link that has just become slow must be
//! believed, so the estimate is the lower of the long and the short view.

use crate::units::Pages;
use std::collections::VecDeque;
use std::time::Duration;

/// Length of a window, in time spent sending.
const WINDOW: Duration = Duration::from_millis(100);
/// How many windows are remembered.
const REMEMBERED: usize = 20;
/// How many make the short view.
const SHORT: usize = 3;
/// Fewer bytes than this, sent in less than a window, say nothing: much of them went into
/// socket buffers (10 MiB of both ends' on a usual host), at the speed of a copy.
const LEAST_BYTES: u64 = 32 << 20;

#[derive(Debug, Default, Clone, Copy)]
struct Sample {
    bytes: u64,
    time: Duration,
}

/// The estimate. Feed it with [`Bandwidth::sent`].
#[derive(Debug, Default, Clone)]
pub struct Bandwidth {
    windows: VecDeque<Sample>,
    current: Sample,
}

impl Bandwidth {
    /// `bytes` went out in `time` spent sending.
    pub fn sent(&mut self, bytes: u64, time: Duration) {
        self.current.bytes += bytes;
        self.current.time += time;
        if self.current.time >= WINDOW {
            if self.windows.len() == REMEMBERED {
                self.windows.pop_front();
            }
            self.windows.push_back(self.current);
            self.current = Sample::default();
        }
    }

    /// Bytes a second; `None` as long as too little was sent to know.
    pub fn estimate(&self) -> Option<f64> {
        let rate = |samples: &mut dyn Iterator<Item = &Sample>| {
            let sum = samples.fold(Sample::default(), |a, b| Sample {
                bytes: a.bytes + b.bytes,
                time: a.time + b.time,
            });
            ((sum.bytes >= LEAST_BYTES || sum.time >= WINDOW) && !sum.time.is_zero())
                .then(|| sum.bytes as f64 / sum.time.as_secs_f64())
        };
        let long = rate(&mut self.windows.iter().chain([&self.current]));
        let short = rate(&mut self.windows.iter().rev().take(SHORT));
        match (long, short) {
            (Some(long), Some(short)) => Some(long.min(short)),
            (long, short) => long.or(short),
        }
    }
}

/// A shorter time between two syncs says little of how fast a guest dirties: its writes come
/// in bursts.
const DIRTY_WINDOW: Duration = Duration::from_millis(100);

/// Pages a second that the guest dirties, over the syncs of the last tenth of a second or more.
#[derive(Debug, Default, Clone)]
pub struct DirtyRate {
    pages: u64,
    time: Duration,
    rate: Option<f64>,
}

impl DirtyRate {
    /// A sync found `pages` that were written in `time`.
    pub fn found(&mut self, pages: Pages, time: Duration) {
        self.pages += pages.0;
        self.time += time;
        if self.time >= DIRTY_WINDOW || self.rate.is_none() {
            self.rate = Some(self.pages as f64 / self.time.as_secs_f64().max(1e-6));
        }
        if self.time >= DIRTY_WINDOW {
            self.pages = 0;
            self.time = Duration::ZERO;
        }
    }

    /// Pages a second; `None` before the first sync.
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
            b.sent(bytes, Duration::from_millis(ms));
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
        // A slow link shows itself by the time it takes.
        assert_eq!(fed(&[(MB, 100)]).estimate(), Some(10e6));
    }

    #[test]
    fn one_fast_window_does_not_raise_it_and_a_slow_link_is_believed_at_once() {
        let mut b = fed(&[(50 * MB, 100); 10]);
        b.sent(500 * MB, Duration::from_millis(100));
        let steady = 500e6;
        assert!(b.estimate().unwrap() < 2.0 * steady);
        let mut b = fed(&[(100 * MB, 100); 20]);
        for _ in 0..SHORT {
            b.sent(10 * MB, Duration::from_millis(100));
        }
        assert!(b.estimate().unwrap() <= 100e6 * 1.01);
    }

    #[test]
    fn two_syncs_close_together_do_not_make_a_dirty_guest_look_idle() {
        let mut dirtied = DirtyRate::default();
        dirtied.found(Pages(1000), Duration::from_millis(100));
        assert_eq!(dirtied.rate(), Some(10_000.0));
        dirtied.found(Pages(0), Duration::from_micros(50));
        assert_eq!(dirtied.rate(), Some(10_000.0));
        dirtied.found(Pages(2000), Duration::from_millis(200));
        assert!((dirtied.rate().unwrap() - 10_000.0).abs() < 10.0);
    }
}
