//! For what, how long, and until what, a transfer may wait.

use crate::runtime::{Cancel, Limit, Timeout};

/// See the file's description.
#[derive(Debug, Clone, Copy)]
pub struct Io<'a> {
    /// Ends it with `Cancelled`.
    pub cancel: Option<&'a Cancel>,
    /// Ends it with `Timeout`, however well it goes.
    pub limit: Limit,
    /// Ends it with `Timeout` when not one byte has moved for this long.
    pub idle: Timeout,
    /// What is sent or waited for, for messages; "" for bytes of no name.
    pub what: &'static str,
}

impl<'a> Io<'a> {
    /// No cancel and no limit but that on idleness.
    pub fn patient(idle: impl Into<Timeout>) -> Io<'static> {
        Io {
            cancel: None,
            limit: Limit::never(),
            idle: idle.into(),
            what: "",
        }
    }

    /// Until `cancel`, without a limit but that on idleness.
    pub fn until(cancel: &'a Cancel, idle: impl Into<Timeout>) -> Io<'a> {
        Io {
            cancel: Some(cancel),
            ..Io::patient(idle)
        }
    }

    /// The same, no longer than to `limit`.
    #[must_use]
    pub fn within(self, limit: impl Into<Limit>) -> Io<'a> {
        Io {
            limit: self.limit.earlier(limit),
            ..self
        }
    }

    /// The same, for `what`.
    #[must_use]
    pub fn of(self, what: &'static str) -> Io<'a> {
        Io { what, ..self }
    }
}
