//! The name of a lane in errors: the number of its channel, and the descriptor when the VMM made the
//! connection. For example: `channel 3 (descriptor 17)`. A lane that is the only one has no name.

use crate::channel::SocketName;
use crate::error::{Error, Kind};
use std::fmt;

/// See the file's description.
#[derive(Debug, Default, Clone)]
pub(super) struct LaneName(Option<String>);

impl LaneName {
    /// The name of channel `number` of several.
    pub(super) fn of(number: usize, socket: Option<SocketName>) -> LaneName {
        LaneName(Some(match socket {
            Some(socket) => format!("channel {number} (descriptor {})", socket.descriptor()),
            None => format!("channel {number}"),
        }))
    }

    /// The name of the lane of pages that somebody waits for.
    pub(super) fn urgent(socket: Option<SocketName>) -> LaneName {
        LaneName(Some(match socket {
            Some(socket) => format!("the urgent lane (descriptor {})", socket.descriptor()),
            None => "the urgent lane".to_owned(),
        }))
    }

    /// The name of a connection whose channel is not known yet. A connection that brant accepted
    /// has none.
    pub(super) fn before_hello(socket: Option<SocketName>) -> LaneName {
        LaneName(socket.map(|socket| socket.to_string()))
    }

    /// The name, or "the channel" where there is only one.
    pub(super) fn text(&self) -> &str {
        self.0.as_deref().unwrap_or("the channel")
    }

    /// The error with the lane's name before it, when a connection or its peer can be the cause,
    /// and when the name is not there yet.
    pub(super) fn before(&self, error: Error) -> Error {
        let Some(name) = &self.0 else {
            return error;
        };
        let of_a_connection = matches!(
            error.kind(),
            Kind::PeerGone
                | Kind::Io
                | Kind::Timeout
                | Kind::Protocol
                | Kind::Version
                | Kind::Unsupported
        );
        let after = error.message().strip_prefix(name.as_str());
        match of_a_connection && !after.is_some_and(|after| after.starts_with(": ")) {
            true => error.context(name),
            false => error,
        }
    }
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_a_connection_causes_gets_the_lanes_name_once_and_no_other_error_gets_it() {
        let name = LaneName::of(1, None);
        let before = |kind, message: &str| {
            let error = name.before(name.before(Error::new(kind, message)));
            error.message().to_owned()
        };
        assert_eq!(
            before(Kind::PeerGone, "it is gone"),
            "channel 1: it is gone"
        );
        assert_eq!(before(Kind::Timeout, "it is late"), "channel 1: it is late");
        // The name of another channel is not this one's.
        assert_eq!(
            before(Kind::Io, "channel 12: no"),
            "channel 1: channel 12: no"
        );
        for kind in [Kind::Cancelled, Kind::NoMemory, Kind::Vmm, Kind::Memory] {
            assert_eq!(before(kind, "another cause"), "another cause");
        }
        let only = LaneName::default();
        let error = only.before(Error::new(Kind::PeerGone, "it is gone"));
        assert_eq!(error.message(), "it is gone");
    }
}
