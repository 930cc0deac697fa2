//! How long the VMMs' operations take while the guest stands still. Plain values.

use std::time::Duration;

/// The operations of both VMMs that run while the guest stands still: how long each takes, and the
/// size of the device state. `None`: neither stated nor measured.
///
/// A source states them in [`Params::expected`](crate::migrate::Params::expected). What an aborted
/// pause has measured replaces what was stated.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// The source's `pause`.
    pub pause: Option<Duration>,
    /// The source's `save`.
    pub save: Option<Duration>,
    /// The destination's `load`, for all blobs together.
    pub load: Option<Duration>,
    /// The source's `release`.
    pub release: Option<Duration>,
    /// The destination's `run`.
    pub run: Option<Duration>,
    /// Bytes of device state.
    pub state_bytes: Option<u64>,
}
