//! The descriptors that a peer has attached to its records, until somebody takes them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// How many descriptors wait at most. The user takes one with each record, and a read reaches into
/// the next record's header.
const WAITING: usize = 2;

/// The descriptors that a peer has attached and nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Attached {
    waiting: VecDeque<OwnedFd>,
    /// The peer has attached more than one descriptor to a record, or one to a record that takes
    /// none; or this process may have no more.
    excess: bool,
}

impl Attached {
    /// Whether more came than records that take one.
    pub(super) fn has_excess(&self) -> bool {
        self.excess
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The descriptor that came first.
    pub(super) fn pop(&mut self) -> Option<OwnedFd> {
        self.waiting.pop_front()
    }

    /// Keeps what came with one read. `cut`: the kernel had no room for all that came.
    pub(super) fn came(&mut self, descriptors: Vec<OwnedFd>, cut: bool) {
        self.excess |= cut;
        for descriptor in descriptors {
            match self.waiting.len() < WAITING {
                true => self.waiting.push_back(descriptor),
                // Dropping it closes it.
                false => self.excess = true,
            }
        }
    }
}
