//! Pacing: how many bytes may be sent now, so that no second carries more than a stated bandwidth.
//!
//! [`Allowance`] is the rule, a token bucket in its virtual-clock form. It is pure: a time goes in,
//! a number of bytes or a wait comes out. [`Pacer`] is the rule with a clock and a lock. All
//! connections of one sender share a pacer, so the cap is for all of them together. A channel asks
//! its pacer before each call. So headers and control records count like contents, and a large
//! record is sent in pieces.
//!
//! **Any second.** Three things can make a second carry more than the rate: credit after idleness
//! ([`BURST`]), the last grant of the second, which counts whole (`QUANTUM`), and rounding. `BURST`
//! and `QUANTUM` together are less than 2 % of a second.
//!
//! **Standing still.** All connections share the pacer, so it also knows when any of them
//! last moved a byte.

use crate::runtime::Cancel;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The most that a sender catches up after it was idle or late: the bytes that the rate carries in
/// this time. It covers the lateness of a timer and a short gap in scheduling.
pub const BURST: Duration = Duration::from_millis(12);

/// The largest single grant: the bytes that the rate carries in this time.
const QUANTUM: Duration = Duration::from_millis(3);

/// The longest that a sender waits before it asks again.
const LOOK: Duration = Duration::from_millis(20);

/// The answer to a sender that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The sender may send so many bytes now.
    Bytes(u64),
    /// The sender has to ask again after this time.
    Wait(Duration),
}

/// A sender's place among the senders that wait. Empty at first.
#[derive(Debug, Default)]
pub struct Place(Duration);

/// The rule, as the file's description says.
#[derive(Debug, Clone, Default)]
pub struct Allowance {
    /// Bytes a second; `None` for no limit.
    rate: Option<u64>,
    /// The time at which everything granted so far is paid for.
    paid_at: Option<Duration>,
    /// The time that the waiting senders' bytes take. A sender waits when it was told to and has
    /// not asked again.
    waiting: Duration,
}

impl Allowance {
    /// Makes an allowance of so many bytes a second. `None` and 0 mean no limit.
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

    /// Changes the rate from `now` on. Grants that are not yet paid for are paid at the new rate,
    /// so a raised limit has an effect at once.
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

    /// Answers a sender that has up to `want` bytes (at least one) to send. `now` may be of any
    /// clock that does not go back. Granted bytes count as sent; [`Allowance::give_back`] returns
    /// those that were not.
    ///
    /// Senders that wait are given consecutive times, so that they do not wake together. `place`
    /// belongs to the sender. A sender that was told to wait asks again with the same place, or
    /// gives it up by [`Allowance::leave`].
    pub fn ask(&mut self, now: Duration, want: u64, place: &mut Place) -> Grant {
        let has_waited = place.0 > Duration::ZERO;
        self.leave(place);
        let Some(rate) = self.rate else {
            return Grant::Bytes(want);
        };
        // The first sender finds no credit, because a new connection was not idle before.
        let paid_at = self.paid_at.unwrap_or(now).max(now.saturating_sub(BURST));
        let bytes = want.min(bytes_in(QUANTUM, rate).max(1));
        let time = time_for(bytes, rate);
        if paid_at > now {
            let others = self.waiting;
            self.waiting = others.saturating_add(time);
            place.0 = self.waiting - others;
            // A sender whose time has come may find that a late sender has used it. Such a sender
            // does not wait behind all others again. Otherwise nobody might ask for longer than the
            // burst makes up for.
            let before = if has_waited { Duration::ZERO } else { others };
            return Grant::Wait((paid_at - now).saturating_add(before));
        }
        self.paid_at = Some(paid_at.saturating_add(time));
        Grant::Bytes(bytes)
    }

    /// Returns `bytes` of a grant, which were not sent.
    pub fn give_back(&mut self, bytes: u64) {
        if let (Some(rate), Some(at)) = (self.rate, self.paid_at) {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            self.paid_at = Some(at.saturating_sub(from_nanos(nanos)));
        }
    }

    /// Gives up the place of a sender that was told to wait and does not ask again.
    pub fn leave(&mut self, place: &mut Place) {
        self.waiting -= std::mem::take(&mut place.0);
    }

    /// The time from `now` until [`BURST`] of credit is there, if nobody sends. Those bytes then go
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

/// The bytes that `rate` carries in `time`.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// The bytes that go at the speed of the link after [`Allowance::until_full`].
pub fn burst_bytes(rate: u64) -> u64 {
    bytes_in(BURST, rate)
}

#[derive(Debug)]
struct Shared {
    allowance: Allowance,
    /// The rate that was stated, even while another rate is in force.
    stated: Option<u64>,
    overridden: bool,
}

/// The allowance of all connections of one sender. Any thread may use it.
#[derive(Debug)]
pub struct Pacer {
    begun: Instant,
    shared: Mutex<Shared>,
    /// When a connection last moved a byte, in nanoseconds since `begun`.
    moved: AtomicU64,
    /// Bytes that all connections have sent.
    sent: AtomicU64,
}

impl Pacer {
    /// Makes a pacer of so many bytes a second for all connections together. `None` means no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Pacer {
            begun: Instant::now(),
            shared: Mutex::new(Shared {
                allowance: Allowance::new(bytes_per_second),
                stated: bytes_per_second,
                overridden: false,
            }),
            moved: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    /// For how long no connection has sent or received a byte.
    pub fn still(&self) -> Duration {
        self.begun.elapsed().saturating_sub(self.moved_at())
    }

    /// When a connection last moved a byte: a time since this pacer was made. Zero before the first.
    pub fn moved_at(&self) -> Duration {
        Duration::from_nanos(self.moved.load(Ordering::Relaxed))
    }

    /// Bytes that the connections have sent since they share this pacer.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// A connection has moved bytes, of which it has sent `sent`.
    pub(super) fn moved(&self, sent: u64) {
        let now = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.moved.fetch_max(now, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The stated rate, in bytes a second.
    pub fn stated(&self) -> Option<u64> {
        self.lock().stated
    }

    /// States another rate. It is in force at once, unless [`Pacer::override_rate`] was called.
    pub fn state_rate(&self, bytes_per_second: Option<u64>) {
        let mut shared = self.lock();
        shared.stated = bytes_per_second;
        if !shared.overridden {
            let now = self.begun.elapsed();
            shared.allowance.set_rate(now, bytes_per_second);
        }
    }

    /// Puts `bytes_per_second` in force until [`Pacer::end_override`]. Rates that are stated later are
    /// not in force.
    pub fn override_rate(&self, bytes_per_second: Option<u64>) {
        let mut shared = self.lock();
        shared.overridden = true;
        let now = self.begun.elapsed();
        shared.allowance.set_rate(now, bytes_per_second);
    }

    /// Puts the stated rate in force again.
    pub fn end_override(&self) {
        let mut shared = self.lock();
        shared.overridden = false;
        let (now, stated) = (self.begun.elapsed(), shared.stated);
        shared.allowance.set_rate(now, stated);
    }

    /// See [`Allowance::until_full`].
    pub fn until_full(&self) -> Duration {
        self.lock().allowance.until_full(self.begun.elapsed())
    }

    /// Waits until `bytes` are granted, at once or in pieces. Returns `false` when `cancel` comes
    /// first. For a caller that writes to something other than a channel.
    pub fn take(&self, mut bytes: u64, cancel: &Cancel) -> bool {
        let mut turn = self.turn();
        while bytes > 0 {
            match turn.ask(bytes) {
                Grant::Bytes(granted) => bytes -= granted,
                Grant::Wait(wait) => {
                    // The wait is short, so that a change of the rate has an effect soon.
                    if cancel.wait(wait.min(LOOK)) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A sender's turn at the pacer, for one list of parts.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn {
            pacer: self,
            place: Place::default(),
        }
    }
}

/// One sender that asks a pacer. When this value is dropped, the sender's place is given up.
pub(super) struct Turn<'a> {
    pacer: &'a Pacer,
    place: Place,
}

impl Turn<'_> {
    /// See [`Allowance::ask`].
    pub fn ask(&mut self, want: u64) -> Grant {
        let mut shared = self.pacer.lock();
        // The clock is read under the lock, so that the allowance's time does not go back.
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
