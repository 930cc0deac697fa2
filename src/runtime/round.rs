//! The step of a round of grace periods. It has a file of its own: [`super::grace`] keeps the step
//! beside the counters of readers, and the model checker has counters of its own.

/// See the file's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// No round is in progress.
    Idle,
    /// The round waits for readers under the number that is not current.
    Before,
    /// The round waits for readers under this number, which was current before.
    After(usize),
}
