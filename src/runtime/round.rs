//! What a round of a grace period waits for. In a file of its own: the rounds ([`super::grace`]) keep
//! it beside the counters of readers, and the model checker has counters of its own.

/// See the file's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// No round goes on.
    Idle,
    /// The readers under the number that is not current.
    Before,
    /// Those under this number, which was current until a moment ago.
    After(usize),
}
