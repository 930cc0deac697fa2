//! How long a device may be silent while it gives its state or takes it, and the cancel that ends the
//! wait before. The devices that this crate knows wait in short slices and look at both between them.

use crate::error::{Error, Kind, Result};
use crate::runtime::Deadline;
use std::cell::RefCell;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// How long a stopped device may give no byte of its state, or take none, before the migration fails.
/// [`VfioDevice::set_limits`](super::vfio::VfioDevice::set_limits) and
/// [`VhostUserDevice::set_silence`](super::vhost_user::VhostUserDevice::set_silence) set another limit.
pub const SILENCE: Duration = Duration::from_secs(10);
/// The longest such limit. What a device does for longer belongs into its running part.
pub const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// Checks a limit that is to replace [`SILENCE`].
///
/// # Errors
/// [`Kind::Invalid`] outside of 1 ms to [`SILENCE_MAX`].
pub fn check(silence: Duration) -> Result<Duration> {
    if (Duration::from_millis(1)..=SILENCE_MAX).contains(&silence) {
        return Ok(silence);
    }
    Err(Error::new(
        Kind::Invalid,
        format!(
            "the time for which a device may be silent is {} ms; it can be 1 to {} ms",
            silence.as_millis(),
            SILENCE_MAX.as_millis()
        ),
    ))
}

/// How long one wait lasts, at most, before cancel and the limit are looked at.
pub const SLICE: Duration = Duration::from_millis(20);

thread_local! {
    /// The device whose code of the VMM's this thread is in.
    static INSIDE: RefCell<Option<Cancelled>> = const { RefCell::new(None) };
}

/// Whether a cancel has come that ends a device's waits.
#[derive(Debug, Default, Clone)]
pub struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// A cancel has come.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// What came before counts no more.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Calls code of the VMM's for a device. Waits of this crate in there, on this thread, end with a
    /// cancel of that device ([`check_inside`]).
    pub fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        struct Before(Option<Cancelled>);
        impl Drop for Before {
            fn drop(&mut self) {
                INSIDE.set(self.0.take());
            }
        }
        let _before = Before(INSIDE.replace(Some(self.clone())));
        call()
    }
}

/// Inside of code that is called for a device: whether a cancel has come.
///
/// # Errors
/// [`Kind::Cancelled`], with `what` was cancelled.
pub fn check_inside(what: impl Display) -> Result<()> {
    let is_set = INSIDE.with_borrow(|inside| inside.as_ref().is_some_and(Cancelled::is_set));
    match is_set {
        true => Err(Error::new(Kind::Cancelled, format!("{what}: cancelled"))),
        false => Ok(()),
    }
}

/// How long a transfer may be silent, and what ends the wait before.
pub struct Patience<'a> {
    /// Without a byte for so long, the call fails.
    pub limit: Duration,
    /// Set by a cancel.
    pub cancelled: &'a Cancelled,
}

impl Patience<'_> {
    /// The end of a silence that begins now.
    pub fn until(&self) -> Deadline {
        Deadline::after(self.limit)
    }

    /// How long the next wait lasts in a silence that ends at `until`.
    ///
    /// # Errors
    /// [`Kind::Cancelled`], with `what` was cancelled; [`Kind::Timeout`] when the silence has ended,
    /// with `who` did what, such as "the device took" no byte.
    pub fn slice(
        &self,
        until: Deadline,
        what: impl Display,
        who: impl Display,
    ) -> Result<Duration> {
        if self.cancelled.is_set() {
            return Err(Error::new(Kind::Cancelled, format!("{what}: cancelled")));
        }
        if until.expired() {
            return Err(Error::new(
                Kind::Timeout,
                format!("{who} no byte of its state for {:?}", self.limit),
            ));
        }
        Ok(until.remaining().map_or(SLICE, |left| left.min(SLICE)))
    }
}

/// Whether a call is to be made again after a wait.
pub fn again(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}
