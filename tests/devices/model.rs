//! A device whose state is a sequence of known bytes, some of which it gives while the guest runs.
//! It remembers every call, and what was wrong with it.

use crate::support::time::LONG;
use brant::error::{Error, Kind, Result};
use brant::vmm::device::{Device, Left};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The calls of all devices and VMMs of a test, in their order.
#[derive(Default)]
pub struct Log {
    calls: Mutex<Vec<String>>,
    wrongs: Mutex<Vec<String>>,
}

impl Log {
    pub fn note(&self, what: String) {
        self.calls.lock().unwrap().push(what);
    }
    fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap().push(what);
    }
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
    /// How often a call was made.
    pub fn count(&self, what: &str) -> usize {
        self.calls().iter().filter(|call| *call == what).count()
    }
    /// Where a call stands among all; the last one of several.
    pub fn last(&self, what: &str) -> usize {
        let calls = self.calls();
        let at = calls.iter().rposition(|call| call == what);
        at.unwrap_or_else(|| panic!("no {what} in {calls:?}"))
    }
    pub fn first(&self, what: &str) -> usize {
        let calls = self.calls();
        let at = calls.iter().position(|call| call == what);
        at.unwrap_or_else(|| panic!("no {what} in {calls:?}"))
    }
    pub fn assert_sound(&self) {
        let wrongs = self.wrongs.lock().unwrap();
        assert!(wrongs.is_empty(), "{wrongs:?}");
    }
}

/// How large a device's state is, in bytes.
#[derive(Default, Clone, Copy)]
pub struct Size {
    pub initial: u64,
    /// What it gives while the guest runs, `initial` included.
    pub running: u64,
    /// What it gives only after the stop.
    pub stopped: u64,
    /// How much the first of these grows in a second while the guest runs.
    pub grows: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Runs,
    Quiet,
    Stopped,
    Gone,
}

struct Inner {
    mode: Mode,
    /// Since when it grows, and until when it did.
    begun: Option<Instant>,
    stopped_after: Option<Duration>,
    given_running: u64,
    given: u64,
    loaded: u64,
    loaded_running: u64,
    fails_at: Option<&'static str>,
    /// Initial bytes that the next `resume` adds to its state.
    again: u64,
    /// Bytes that were added to its state.
    more: u64,
    /// Calls of `read_running` that give nothing after that.
    shy: u32,
}

/// See the file's description.
pub struct Model {
    pub name: String,
    size: Size,
    log: Arc<Log>,
    inner: Mutex<Inner>,
    stuck: Mutex<Stuck>,
    changed: Condvar,
}

/// A call that does not return before the device is cancelled.
#[derive(Default)]
struct Stuck {
    at: Option<&'static str>,
    is: bool,
    cancelled: bool,
}

/// The state repeats this many bytes, which are no power of two.
const PERIOD: usize = 65_521;

/// Byte `at` of the state.
pub fn byte(at: u64) -> u8 {
    let at = at % PERIOD as u64;
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8
}

/// The state's bytes from `at` on, as far as they are at hand.
fn bytes_from(at: u64) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| (0..2 * PERIOD as u64).map(byte).collect());
    &bytes[(at % PERIOD as u64) as usize..]
}

/// `length` bytes of the state from `at` on.
pub fn bytes(at: u64, length: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(length);
    while all.len() < length {
        let more = bytes_from(at + all.len() as u64);
        all.extend_from_slice(&more[..more.len().min(length - all.len())]);
    }
    all
}

impl Model {
    pub fn new(name: &str, size: Size, log: &Arc<Log>, runs: bool) -> Arc<Model> {
        Arc::new(Model {
            name: name.into(),
            size,
            log: Arc::clone(log),
            inner: Mutex::new(Inner {
                mode: if runs { Mode::Runs } else { Mode::Gone },
                begun: None,
                stopped_after: None,
                given_running: 0,
                given: 0,
                loaded: 0,
                loaded_running: 0,
                fails_at: None,
                again: 0,
                more: 0,
                shy: 0,
            }),
            stuck: Mutex::default(),
            changed: Condvar::new(),
        })
    }
    /// The next call of this name fails.
    pub fn fails_at(&self, call: &'static str) {
        self.inner.lock().unwrap().fails_at = Some(call);
    }
    /// Calls of this name do not return before a cancel, and fail then.
    pub fn sticks_at(&self, call: &'static str) {
        self.stuck.lock().unwrap().at = Some(call);
    }
    /// Waits until a call sticks.
    pub fn await_stuck(&self) {
        let stuck = self.stuck.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(stuck, LONG, |stuck| !stuck.is);
        assert!(!waited.unwrap().1.timed_out(), "{}: no call", self.name);
    }
    /// The next `resume` adds so many initial bytes to its state, of which a few calls give none.
    pub fn begins_anew_with(&self, bytes: u64) {
        self.inner.lock().unwrap().again = bytes;
    }
    pub fn runs(&self) -> bool {
        self.inner.lock().unwrap().mode == Mode::Runs
    }
    /// Bytes given, and those of them that were given while the guest ran.
    pub fn given(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.given, inner.given_running)
    }
    pub fn loaded(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.loaded, inner.loaded_running)
    }
    fn call(&self, what: &'static str, expected: &[Mode], next: Option<Mode>) -> Result<()> {
        self.log.note(format!("{} {what}", self.name));
        let mut stuck = self.stuck.lock().unwrap();
        if stuck.at == Some(what) {
            stuck.is = true;
            self.changed.notify_all();
            let waited = self
                .changed
                .wait_timeout_while(stuck, LONG, |stuck| !stuck.cancelled);
            if waited.unwrap().1.timed_out() {
                self.log.wrong(format!("{} {what}: no cancel", self.name));
            }
            return Err(Error::new(Kind::Io, "told to return"));
        }
        drop(stuck);
        let mut inner = self.inner.lock().unwrap();
        if !expected.contains(&inner.mode) {
            self.log
                .wrong(format!("{} {what} while {:?}", self.name, inner.mode));
        }
        if inner.fails_at == Some(what) {
            inner.fails_at = None;
            return Err(Error::new(Kind::Vmm, "told to fail"));
        }
        if let Some(next) = next {
            inner.mode = next;
        }
        Ok(())
    }
    fn left_of(&self, inner: &Inner) -> Left {
        let grown = match (inner.stopped_after, inner.begun) {
            (Some(time), _) => time,
            (None, Some(begun)) => begun.elapsed(),
            (None, None) => Duration::ZERO,
        };
        let grown = (self.size.grows as f64 * grown.as_secs_f64()) as u64;
        Left {
            initial: (self.size.initial + inner.more).saturating_sub(inner.given),
            running: (self.size.running + inner.more + grown).saturating_sub(inner.given),
            stopped: Some(self.size.stopped),
        }
    }
    fn give(&self, inner: &mut Inner, buffer: &mut [u8], most: u64) -> usize {
        let read = most.min(buffer.len() as u64) as usize;
        buffer[..read].copy_from_slice(&bytes(inner.given, read));
        inner.given += read as u64;
        read
    }
    fn take(&self, inner: &mut Inner, data: &[u8]) {
        let mut rest = data;
        while !rest.is_empty() {
            let at = inner.loaded + (data.len() - rest.len()) as u64;
            let expected = bytes_from(at);
            let length = expected.len().min(rest.len());
            if rest[..length] != expected[..length] {
                self.log
                    .wrong(format!("{}: bytes from {at} on are others", self.name));
            }
            rest = &rest[length..];
        }
        inner.loaded += data.len() as u64;
    }
}

impl Device for Model {
    fn begin(&self) -> Result<()> {
        self.call("begin", &[Mode::Runs], None)?;
        self.inner.lock().unwrap().begun = Some(Instant::now());
        Ok(())
    }
    fn left(&self) -> Result<Left> {
        let mut inner = self.inner.lock().unwrap();
        if inner.fails_at == Some("left") {
            inner.fails_at = None;
            return Err(Error::new(Kind::Vmm, "told to fail"));
        }
        Ok(self.left_of(&inner))
    }
    fn read_running(&self, buffer: &mut [u8]) -> Result<usize> {
        self.call("read_running", &[Mode::Runs], None)?;
        let mut inner = self.inner.lock().unwrap();
        if inner.shy > 0 {
            inner.shy -= 1;
            return Ok(0);
        }
        let most = self.left_of(&inner).running;
        let read = self.give(&mut inner, buffer, most);
        inner.given_running += read as u64;
        Ok(read)
    }
    fn quiesce(&self) -> Result<()> {
        self.call("quiesce", &[Mode::Runs], Some(Mode::Quiet))
    }
    fn stop(&self) -> Result<()> {
        self.call("stop", &[Mode::Quiet], Some(Mode::Stopped))?;
        let mut inner = self.inner.lock().unwrap();
        inner.stopped_after = inner.begun.map(|begun| begun.elapsed());
        Ok(())
    }
    fn read_stopped(&self, buffer: &mut [u8]) -> Result<usize> {
        self.call("read_stopped", &[Mode::Stopped], None)?;
        let mut inner = self.inner.lock().unwrap();
        let rest = self.stopped_end(&inner).saturating_sub(inner.given);
        Ok(self.give(&mut inner, buffer, rest))
    }
    fn wake(&self) -> Result<()> {
        let stands = [Mode::Quiet, Mode::Stopped, Mode::Gone, Mode::Runs];
        self.call("wake", &stands, None)
    }
    fn resume(&self) -> Result<()> {
        let stands = [Mode::Quiet, Mode::Stopped, Mode::Runs];
        self.call("resume", &stands, Some(Mode::Runs))?;
        let mut inner = self.inner.lock().unwrap();
        inner.stopped_after = None;
        let again = std::mem::take(&mut inner.again);
        if again > 0 {
            inner.more += again;
            inner.shy = 5;
        }
        Ok(())
    }
    fn end(&self) {
        let any = [Mode::Runs, Mode::Quiet, Mode::Stopped];
        let _ = self.call("end", &any, None);
    }
    fn cancel(&self) {
        self.log.note(format!("{} cancel", self.name));
        self.stuck.lock().unwrap().cancelled = true;
        self.changed.notify_all();
    }
    fn load_running(&self, data: &[u8]) -> Result<()> {
        self.call("load_running", &[Mode::Gone], None)?;
        let mut inner = self.inner.lock().unwrap();
        self.take(&mut inner, data);
        inner.loaded_running += data.len() as u64;
        Ok(())
    }
    fn load_stopped(&self, data: &[u8]) -> Result<()> {
        self.call("load_stopped", &[Mode::Gone], None)?;
        let mut inner = self.inner.lock().unwrap();
        self.take(&mut inner, data);
        Ok(())
    }
    fn loaded(&self) -> Result<()> {
        self.call("loaded", &[Mode::Gone], None)
    }
    fn run(&self) -> Result<()> {
        self.call("run", &[Mode::Gone], Some(Mode::Runs))
    }
    fn reset(&self) {
        let _ = self.call("reset", &[Mode::Gone], None);
    }
}

impl Model {
    /// Where the state of a stopped device ends.
    fn stopped_end(&self, inner: &Inner) -> u64 {
        let grown = inner.stopped_after.unwrap_or_default().as_secs_f64();
        let running = self.size.running + inner.more + (self.size.grows as f64 * grown) as u64;
        running.max(inner.given_running) + self.size.stopped
    }
}
