//! The bounds of a transfer's wait: cancel, time limits, the name of what is transferred, and what
//! its thread looks at meanwhile.

use crate::runtime::{Cancel, Deadline, Limit, Timeout};
use std::fmt;

/// What a thread looks at now and then while it transfers bytes or waits for its peer. All methods
/// are called on that thread.
pub trait Watch: fmt::Debug {
    /// The time of the next look.
    fn due(&self) -> Deadline;

    /// Looks. `held`: how many sent bytes the peer does not have, where one connection is waited for.
    fn look(&self, held: Option<u64>) -> Looked;

    /// Tells what the look before has found. Called where the thread keeps no memory in its place
    /// but what is sent without a copy.
    fn tell(&self);
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// Nothing: the transfer goes on.
    Nothing,
    /// Something that is to be told. Until it is, the next look is due at once.
    News,
    /// The transfer has run out of this time limit.
    Over(Limit),
}

/// See the file's description.
#[derive(Debug, Clone, Copy)]
pub struct Io<'a> {
    /// Ends the transfer with `Cancelled`.
    pub cancel: Option<&'a Cancel>,
    /// Ends the transfer with `Timeout`, even if it makes progress.
    pub limit: Limit,
    /// Ends the transfer with `Timeout` when no byte has moved for this long.
    pub idle: Timeout,
    /// What is transferred, for messages; "" for bytes without a name.
    pub what: &'static str,
    /// What the thread looks at meanwhile.
    pub watch: Option<&'a dyn Watch>,
}

impl<'a> Io<'a> {
    /// No cancel, and no time limit but that on idleness.
    pub fn patient(idle: impl Into<Timeout>) -> Io<'static> {
        Io {
            cancel: None,
            limit: Limit::never(),
            idle: idle.into(),
            what: "",
            watch: None,
        }
    }

    /// Until `cancel`, with no time limit but that on idleness.
    pub fn until(cancel: &'a Cancel, idle: impl Into<Timeout>) -> Io<'a> {
        Io {
            cancel: Some(cancel),
            ..Io::patient(idle)
        }
    }

    /// The same bounds, and `limit`.
    #[must_use]
    pub fn within(self, limit: impl Into<Limit>) -> Io<'a> {
        Io {
            limit: self.limit.earlier(limit),
            ..self
        }
    }

    /// The same bounds, under `watch`.
    #[must_use]
    pub fn watched(self, watch: &'a dyn Watch) -> Io<'a> {
        Io {
            watch: Some(watch),
            ..self
        }
    }

    /// `until`, or the time of the next look when that is earlier.
    pub fn until_look(&self, until: Deadline) -> Deadline {
        self.watch.map_or(until, |watch| until.earlier(watch.due()))
    }

    /// Looks when that is due. `held` is as in [`Watch::look`].
    pub fn look(&self, held: impl FnOnce() -> Option<u64>) -> Looked {
        match self.watch.filter(|watch| watch.due().expired()) {
            Some(watch) => watch.look(held()),
            None => Looked::Nothing,
        }
    }

    /// Looks when that is due, and tells at once what was found. Returns a limit that has run out.
    pub fn look_and_tell(&self, held: impl FnOnce() -> Option<u64>) -> Option<Limit> {
        match self.look(held) {
            Looked::Nothing => None,
            Looked::News => {
                self.watch.inspect(|watch| watch.tell());
                None
            }
            Looked::Over(limit) => Some(limit),
        }
    }

    /// The same bounds, for `what`.
    #[must_use]
    pub fn of(self, what: &'static str) -> Io<'a> {
        Io { what, ..self }
    }
}
