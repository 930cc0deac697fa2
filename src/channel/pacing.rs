//! Pacing: how many bytes may be sent now, so that a stated bandwidth holds over any second.
//!
//! [`Allowance`] is the rule, a token bucket in its virtual-clock form, and pure: the time comes
//! in, bytes or a wait come out. [`Pacer`] is the rule with a clock and a lock, shared by all
//! connections of one sender: the cap is theirs together. A channel asks its pacer before each
//! call, so headers and control records count like contents, and one large record goes in pieces.
//!
//! **Any second.** Three things can make a second carry more than the rate: credit after idleness
//! ([`BURST`]), the last grant of the second, which counts whole (`QUANTUM`), and rounding. Both
//! times together are less than 2 % of a second.

use crate::runtime::Cancel;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How far a sender that was idle or late may catch up: what the rate carries in this time.
/// Covers a timer's lateness and a short scheduling gap.
pub const BURST: Duration = Duration::from_millis(12);

/// The most that is granted at once: what the rate carries in this time.
const QUANTUM: Duration = Duration::from_millis(3);

/// The longest that a sender waits before it asks again.
const LOOK: Duration = Duration::from_millis(20);

/// What a sender that asks is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// It may send so many bytes now.
    Bytes(u64),
    /// It asks again after this time.
    Wait(Duration),
}

/// A sender's place among those that wait; none at first.
#[derive(Debug, Default)]
pub struct Place(Duration);

/// See the file's description.
#[derive(Debug, Clone, Default)]
pub struct Allowance {
    /// Bytes a second; `None` for no limit.
    rate: Option<u64>,
    /// When all that was granted is paid for.
    paid_at: Option<Duration>,
    /// What those senders want that were told to wait and have not asked again, as time.
    waiting: Duration,
}

impl Allowance {
    /// Bytes a second. `None` and 0 are no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Allowance {
            rate: bytes_per_second.filter(|r| *r > 0),
            ..Allowance::default()
        }
    }

    /// The rate in bytes a second, if there is one.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Changes the rate from `now` on. What was granted and is not yet paid for is paid at the new
    /// rate: a raised limit is felt at once.
    pub fn set_rate(&mut self, now: Duration, bytes_per_second: Option<u64>) {
        let rate = bytes_per_second.filter(|r| *r > 0);
        self.paid_at = match (self.rate, rate, self.paid_at) {
            (Some(old), Some(new), Some(at)) if at > now => {
                Some(now.saturating_add(scale(at - now, old, new)))
            }
            (Some(_), Some(_), at) => at,
            _ => None,
        };
        self.rate = rate;
    }

    /// What a sender may do that has up to `want` bytes, at least one, to send `now` (any clock that
    /// does not go back). What is granted counts as sent; [`Allowance::give_back`] takes back what
    /// was not.
    ///
    /// Senders that wait are told one time after another, so that they do not wake together. `place`
    /// is the sender's own: a sender that was told to wait asks with it again, or gives it up by
    /// [`Allowance::leave`].
    pub fn ask(&mut self, now: Duration, want: u64, place: &mut Place) -> Grant {
        let has_waited = place.0 > Duration::ZERO;
        self.leave(place);
        let Some(rate) = self.rate else {
            return Grant::Bytes(want);
        };
        // The first sender finds no credit: a link that was just made is not owed any.
        let paid_at = self.paid_at.unwrap_or(now).max(now.saturating_sub(BURST));
        let bytes = want.min(bytes_in(QUANTUM, rate).max(1));
        let time = time_for(bytes, rate);
        if paid_at > now {
            let others = self.waiting;
            self.waiting = others.saturating_add(time);
            place.0 = self.waiting - others;
            // One whose turn has come, and was used by one that was late, does not begin again
            // behind all others: then nobody might ask for longer than the burst makes up for.
            let before = if has_waited { Duration::ZERO } else { others };
            return Grant::Wait((paid_at - now).saturating_add(before));
        }
        self.paid_at = Some(paid_at.saturating_add(time));
        Grant::Bytes(bytes)
    }

    /// Of what was granted, `bytes` were not sent.
    pub fn give_back(&mut self, bytes: u64) {
        if let (Some(rate), Some(at)) = (self.rate, self.paid_at) {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            self.paid_at = Some(at.saturating_sub(from_nanos(nanos)));
        }
    }

    /// A sender that was told to wait does not ask again.
    pub fn leave(&mut self, place: &mut Place) {
        self.waiting -= std::mem::take(&mut place.0);
    }

    /// How long, from `now`, until [`BURST`] of credit is there if nobody sends: then so much goes
    /// at the speed of the link.
    pub fn until_full(&self, now: Duration) -> Duration {
        let paid_at = self.paid_at.unwrap_or(now);
        match self.rate {
            Some(_) => paid_at.saturating_add(BURST).saturating_sub(now),
            None => Duration::ZERO,
        }
    }
}

/// `bytes / rate`, rounded up to a nanosecond so that the rate is never exceeded.
fn time_for(bytes: u64, rate: u64) -> Duration {
    from_nanos((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate)))
}

/// `time * from / to`, saturating.
fn scale(time: Duration, from: u64, to: u64) -> Duration {
    from_nanos(time.as_nanos().saturating_mul(u128::from(from)) / u128::from(to))
}

fn from_nanos(nanos: u128) -> Duration {
    match u64::try_from(nanos / 1_000_000_000) {
        Ok(seconds) => Duration::new(seconds, (nanos % 1_000_000_000) as u32),
        Err(_) => Duration::MAX,
    }
}

/// What `rate` carries in `time`.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// What goes at the speed of the link after [`Allowance::until_full`].
pub fn burst_bytes(rate: u64) -> u64 {
    bytes_in(BURST, rate)
}

#[derive(Debug)]
struct Shared {
    allowance: Allowance,
    /// The rate that was stated, also while another is in force.
    stated: Option<u64>,
    overridden: bool,
}

/// The allowance of all connections of one sender. Any thread.
#[derive(Debug)]
pub struct Pacer {
    begun: Instant,
    shared: Mutex<Shared>,
}

impl Pacer {
    /// Bytes a second for all connections together. `None` is no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Pacer {
            begun: Instant::now(),
            shared: Mutex::new(Shared {
                allowance: Allowance::new(bytes_per_second),
                stated: bytes_per_second,
                overridden: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The stated rate.
    pub fn stated(&self) -> Option<u64> {
        self.lock().stated
    }

    /// States another rate. In force at once, or never after [`Pacer::override_rate`].
    pub fn state_rate(&self, bytes_per_second: Option<u64>) {
        let mut shared = self.lock();
        shared.stated = bytes_per_second;
        if !shared.overridden {
            let now = self.begun.elapsed();
            shared.allowance.set_rate(now, bytes_per_second);
        }
    }

    /// Puts `bytes_per_second` in force for good, whatever is stated.
    pub fn override_rate(&self, bytes_per_second: Option<u64>) {
        let mut shared = self.lock();
        shared.overridden = true;
        let now = self.begun.elapsed();
        shared.allowance.set_rate(now, bytes_per_second);
    }

    /// See [`Allowance::until_full`].
    pub fn until_full(&self) -> Duration {
        self.lock().allowance.until_full(self.begun.elapsed())
    }

    /// Waits until `bytes` are granted, all at once or in pieces; `false` when `cancel` comes first.
    /// For whoever writes to something else than a channel.
    pub fn take(&self, mut bytes: u64, cancel: &Cancel) -> bool {
        let mut turn = self.turn();
        while bytes > 0 {
            match turn.ask(bytes) {
                Grant::Bytes(granted) => bytes -= granted,
                Grant::Wait(wait) => {
                    // A rate that is changed meanwhile is felt soon.
                    if cancel.wait(wait.min(LOOK)) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A sender's place, for one list of parts.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn {
            pacer: self,
            place: Place::default(),
        }
    }
}

/// One sender that asks a pacer. Dropped, it waits no more.
pub(super) struct Turn<'a> {
    pacer: &'a Pacer,
    place: Place,
}

impl Turn<'_> {
    /// See [`Allowance::ask`].
    pub fn ask(&mut self, want: u64) -> Grant {
        let mut shared = self.pacer.lock();
        // Read under the lock: the allowance's clock does not go back.
        let now = self.pacer.begun.elapsed();
        shared.allowance.ask(now, want, &mut self.place)
    }

    /// See [`Allowance::give_back`].
    pub fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.pacer.lock().allowance.give_back(bytes);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pacer.lock().allowance.leave(&mut self.place);
    }
}

#[cfg(test)]
mod tests;
