//! The bounds of a transfer's wait: cancel, time limits, and the name of what is transferred.

use crate::runtime::{Cancel, Limit, Timeout};

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
}

impl<'a> Io<'a> {
    /// No cancel, and no time limit but that on idleness.
    pub fn patient(idle: impl Into<Timeout>) -> Io<'static> {
        Io {
            cancel: None,
            limit: Limit::never(),
            idle: idle.into(),
            what: "",
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

    /// The same bounds, for `what`.
    #[must_use]
    pub fn of(self, what: &'static str) -> Io<'a> {
        Io { what, ..self }
    }
}
