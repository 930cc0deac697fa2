//! How long a device may be silent while it gives its state or takes it, and the cancel that ends the
//! wait before. The devices that this crate knows wait in short slices and look at both between them.

use crate::error::{Error, Kind, Result};
use crate::runtime::Deadline;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a stopped device may give no byte of its state, or take none, before the migration fails.
/// [`VfioDevice::set_limits`](super::vfio::VfioDevice::set_limits) and
/// [`VhostUserDevice::set_silence`](super::vhost_user::VhostUserDevice::set_silence) set another limit.
pub const SILENCE: Duration = Duration::from_secs(10);

/// How long one wait lasts, at most, before cancel and the limit are looked at.
const SLICE: Duration = Duration::from_millis(20);

/// Whether a cancel has come that ends a device's waits.
#[derive(Debug, Default)]
pub struct Cancelled(AtomicBool);

impl Cancelled {
    /// A cancel has come.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// What came before counts no more.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Release);
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
        if self.cancelled.0.load(Ordering::Acquire) {
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
