//! What a socket that the VMM handed in is called in messages.
//!
//! The name has both numbers that the VMM knows: the place in the list that it handed in, and the
//! descriptor. For example: `fds[2] (descriptor 17)`.

use std::fmt;
use std::os::fd::RawFd;

/// The place of a socket in the list that it was handed in with, and its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketName {
    pub(super) at: usize,
    pub(super) descriptor: RawFd,
}

impl SocketName {
    /// The descriptor's number. It is brant's by now and keeps its number until it is closed.
    pub fn descriptor(self) -> RawFd {
        self.descriptor
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fds[{}] (descriptor {})", self.at, self.descriptor)
    }
}
