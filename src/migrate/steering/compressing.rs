//! Whether compressing contents makes a lane faster. The lane's speed with compression is compared
//! with its speed without. Pure.
//!
//! Example: the codec compresses 500 MB/s to a third. A link of 100 MB/s then carries 300 MB/s of
//! pages, so compressing pays. A link of 2 GB/s carries less than before, so it does not. Nobody
//! knows both speeds beforehand: they depend on the pages, on who else needs the processor, and on
//! the destination, which has to decompress.
//!
//! So both ways, compressed and plain, are measured in bytes of pages a second, and the faster one
//! is used. Now and then the other way has a *trial*. When ratio and speed of the codec show that
//! compressing cannot win, its trial ends at once. Trials that change nothing become rare.
//!
//! Bytes that a batch puts into the socket's buffer have not been carried yet. So the measurement
//! counts the bytes that left the buffer meanwhile. And bytes that were in the buffer when the way
//! changed belong to the other way.

use std::time::Duration;

/// The time of sending that makes one measurement.
const WINDOW: Duration = Duration::from_millis(20);
/// The share of a new measurement in the estimate.
const NEWEST: f64 = 0.5;
/// Compressing starts when it carries this many times as much as plain contents. It goes on as long
/// as it carries at least as much.
const START: f64 = 1.15;
/// The first wait between two trials. Each trial that changes nothing multiplies the wait by
/// `LONGER`.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGER: u32 = 4;
/// The longest wait between two trials.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// When the speed of the way in use changes by this factor, a trial begins at once.
const UNLIKE: f64 = 1.5;

/// The speed of one way, in bytes of pages a second.
#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    estimate: Option<f64>,
    /// Bytes in the socket's buffer that belong to the other way.
    skip: u64,
    /// Bytes of pages that left the socket, and bytes of pages that went into it.
    left: f64,
    put: f64,
    time: Duration,
}

impl Rate {
    /// This way comes into use, while the socket's buffer holds `held` bytes. In a `trial` the
    /// earlier estimate no longer counts.
    fn begin(&mut self, held: u64, trial: bool) {
        *self = Rate {
            estimate: self.estimate.filter(|_| !trial),
            skip: held,
            ..Rate::default()
        };
    }

    /// Records that in `time` `bytes` left the socket and `put` went into it. Each of them is
    /// `worth` bytes of pages. Returns whether the estimate is new.
    fn carried(&mut self, bytes: u64, put: u64, worth: f64, time: Duration) -> bool {
        if self.skip > 0 {
            // Not counted, however much left: the time was partly the other way's.
            self.skip = self.skip.saturating_sub(bytes);
            return false;
        }
        self.left += bytes as f64 * worth;
        self.put += put as f64 * worth;
        self.time += time;
        if self.time < WINDOW {
            return false;
        }
        // The lower of the two counts: while a full buffer empties, more bytes leave it than the
        // sender puts into it.
        let found = self.left.min(self.put) / self.time.as_secs_f64();
        let old = self.estimate.unwrap_or(found);
        self.estimate = Some(old * (1.0 - NEWEST) + found * NEWEST);
        (self.left, self.put, self.time) = (0.0, 0.0, Duration::ZERO);
        true
    }
}

/// The measurements of one batch of pages.
#[derive(Debug, Default, Clone, Copy)]
pub struct Batch {
    /// Bytes of pages that went with contents.
    pub contents: u64,
    /// Bytes of the contents that were compressed, before compression and after it.
    pub before: u64,
    pub after: u64,
    /// All bytes that the socket took.
    pub sent: u64,
    /// Bytes that the socket held afterwards.
    pub held: u64,
    /// The part of `time` that the codec took; zero when nothing was compressed.
    pub codec: Duration,
    /// From the first look at the pages until the socket had taken the last byte.
    pub time: Duration,
}

/// See the file's description. Each lane has one.
#[derive(Debug, Default, Clone)]
pub struct Compressing {
    on: bool,
    /// The current way is on trial.
    trial: bool,
    /// The last batch was compressed.
    packed: bool,
    /// The most bytes that the lane may send in a second, when there is a cap.
    cap: Option<f64>,
    ways: [Rate; 2],
    /// The codec's speed, in bytes of contents a second.
    codec: f64,
    /// The compression ratio: how many bytes become one.
    ratio: f64,
    /// Bytes that the socket held after the last batch.
    held: u64,
    next_trial: Duration,
    wait: Duration,
    /// The speed of the way in use when it was last judged.
    judged: f64,
}

impl Compressing {
    /// Compression is off at first. `cap` is the most bytes that the lane may send in a second.
    pub fn new(cap: Option<f64>) -> Self {
        Compressing {
            cap,
            wait: FIRST_WAIT,
            ..Compressing::default()
        }
    }

    /// Whether the next batch is to be compressed. `now` is any clock that does not go back.
    pub fn next(&mut self, now: Duration) -> bool {
        let here = self.ways[usize::from(self.on)].estimate.is_some();
        if !self.trial && here && now >= self.next_trial {
            self.trial = true;
        }
        let packed = self.on != self.trial;
        if packed != self.packed {
            self.packed = packed;
            self.ways[usize::from(packed)].begin(self.held, self.trial);
        }
        packed
    }

    /// Records a batch that was sent in the way that [`Compressing::next`] said.
    pub fn sent(&mut self, now: Duration, batch: &Batch) {
        let left = (self.held + batch.sent).saturating_sub(batch.held);
        self.held = batch.held;
        if batch.contents == 0 || batch.sent == 0 {
            return;
        }
        if batch.before > 0 && !batch.codec.is_zero() {
            self.codec = batch.before as f64 / batch.codec.as_secs_f64();
            self.ratio = batch.before as f64 / batch.after.max(1) as f64;
        }
        let worth = batch.contents as f64 / batch.sent as f64;
        let way = &mut self.ways[usize::from(self.packed)];
        let renewed = way.carried(left, batch.sent, worth, batch.time);
        if self.trial && self.packed && self.is_hopeless() {
            return self.keep(now);
        }
        if !renewed {
            return;
        }
        if self.trial {
            return self.judge(now);
        }
        // When the speed of the way in use has changed, the other way may be better now.
        let used = self.rate(self.packed).unwrap_or(self.judged);
        if used > self.judged * UNLIKE || used * UNLIKE < self.judged {
            self.judged = used;
            self.next_trial = now;
        }
    }

    /// The speed of a way, within the cap.
    fn rate(&self, packed: bool) -> Option<f64> {
        let most = match self.cap {
            Some(cap) if packed => cap * self.ratio,
            Some(cap) => cap,
            None => f64::INFINITY,
        };
        self.ways[usize::from(packed)]
            .estimate
            .map(|rate| rate.min(most))
    }

    /// Whether codec and ratio show that compressing cannot win, however well the rest goes.
    fn is_hopeless(&self) -> bool {
        let Some(plain) = self.rate(false) else {
            return false;
        };
        self.codec.min(plain * self.ratio) < plain * START
    }

    /// Chooses the faster way, once the speeds of both are known.
    fn judge(&mut self, now: Duration) {
        let (Some(plain), Some(packed)) = (self.rate(false), self.rate(true)) else {
            return;
        };
        let least = if self.on { plain } else { plain * START };
        let on = packed >= least;
        if on == self.on {
            return self.keep(now);
        }
        // The way on trial is the way in use from now on.
        (self.on, self.trial) = (on, false);
        (self.wait, self.next_trial) = (FIRST_WAIT, now + FIRST_WAIT);
        self.judged = if on { packed } else { plain };
    }

    /// Ends a trial that changed nothing.
    fn keep(&mut self, now: Duration) {
        self.trial = false;
        self.next_trial = now + self.wait;
        self.wait = (self.wait * LONGER).min(LONGEST_WAIT);
        self.judged = self.rate(self.on).unwrap_or(self.judged);
    }
}

#[cfg(test)]
mod tests;
