//! The time in which one lane was full while another was idle: the cost of an uneven assignment of
//! stretches.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Now {
    /// How many lanes have nothing to send.
    idle: usize,
    /// How many lanes are full: the migration's thread waits for room.
    full: usize,
    /// The beginning of the present time of imbalance.
    since: Option<Instant>,
    uneven: Duration,
}

/// See the file's description. Shared by the threads of all lanes.
#[derive(Debug, Default)]
pub(super) struct Balance(Mutex<Now>);

/// The load of a lane for as long as this value lives.
pub(super) struct Being<'b> {
    balance: &'b Balance,
    state: Load,
}

/// The load of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// The lane has nothing to send.
    Idle,
    /// The lane has no room, and the migration's thread waits with more work.
    Full,
}

impl Balance {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gives a lane this load until the returned value is dropped.
    pub(super) fn be(&self, state: Load) -> Being<'_> {
        self.lock().change(Instant::now(), state, 1);
        Being {
            balance: self,
            state,
        }
    }

    /// The sum of all times of imbalance.
    pub(super) fn uneven(&self) -> Duration {
        let now = self.lock();
        now.uneven + now.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Now {
    fn change(&mut self, at: Instant, state: Load, by: isize) {
        let count = match state {
            Load::Idle => &mut self.idle,
            Load::Full => &mut self.full,
        };
        *count = count.saturating_add_signed(by);
        match (self.idle > 0 && self.full > 0, self.since) {
            (true, None) => self.since = Some(at),
            (false, Some(since)) => {
                self.uneven += at.saturating_duration_since(since);
                self.since = None;
            }
            _ => {}
        }
    }
}

impl Drop for Being<'_> {
    fn drop(&mut self) {
        self.balance.lock().change(Instant::now(), self.state, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_one_is_full_and_another_idle_counts() {
        let begun = Instant::now();
        let mut now = Now::default();
        let steps = [
            // Each row: milliseconds, the change, and the sum of imbalance by then.
            (0, Load::Idle, 1, 0),
            (10, Load::Full, 1, 0),
            (15, Load::Idle, 1, 0),
            (25, Load::Idle, -1, 0),
            (30, Load::Idle, -1, 20),
            (90, Load::Idle, 1, 20),
            (100, Load::Full, -1, 30),
            (200, Load::Idle, -1, 30),
        ];
        for (ms, state, by, uneven) in steps {
            now.change(begun + Duration::from_millis(ms), state, by);
            assert_eq!(now.uneven, Duration::from_millis(uneven), "at {ms} ms");
        }
    }

    #[test]
    fn a_lane_is_what_it_is_until_that_is_dropped() {
        let balance = Balance::default();
        let idle = balance.be(Load::Idle);
        assert_eq!(balance.uneven(), Duration::ZERO);
        let full = balance.be(Load::Full);
        while balance.uneven().is_zero() {}
        drop(idle);
        let uneven = balance.uneven();
        assert_eq!(balance.uneven(), uneven);
        drop(full);
        assert_eq!(balance.uneven(), uneven);
    }
}
