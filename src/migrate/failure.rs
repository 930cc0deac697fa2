//! Why the lanes of a migration have failed: one reason for all lanes, whichever thread finds it.
//!
//! Example: the peer refuses a record on lane 3. It sends ABORT there and closes every connection.
//! Lane 1 finds its connection broken before lane 3 has read the ABORT. The user should read the
//! peer's reason, not that a connection broke. So the first error wins, but the peer's reason
//! replaces a broken connection. When one lane breaks, the others may read on for a moment.

use crate::error::{Error, Kind};
use crate::runtime::Cancel;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// How long lanes read on after one of them broke. The peer's ABORT comes before the end of its
/// connection, but perhaps behind pages.
const READ_ON: Duration = Duration::from_millis(100);

/// Why an error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A connection is gone. The peer may have said why, on this lane or another.
    Broke,
    /// An error on this side, or a violation of the protocol by the peer.
    Found,
    /// The peer's ABORT.
    Said,
}

impl Cause {
    /// The cause of an error on a lane. `peer_ended`: the peer has said ABORT on it.
    pub(super) fn of(error: &Error, peer_ended: bool) -> Cause {
        match error.kind() {
            _ if peer_ended => Cause::Said,
            Kind::PeerGone | Kind::Io => Cause::Broke,
            _ => Cause::Found,
        }
    }
}

/// See the file's description.
#[derive(Debug)]
pub(super) struct Failure {
    reason: Mutex<Option<(Cause, Error)>>,
    /// Ends every wait on a lane.
    stop: Cancel,
}

impl Failure {
    /// No failure yet. The first failure cancels `stop`.
    pub(super) fn new(stop: Cancel) -> Failure {
        Failure {
            reason: Mutex::new(None),
            stop,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Cause, Error)>> {
        self.reason.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What ends the waits on all lanes: the first failure, or a cancel of the migration.
    pub(super) fn stop(&self) -> &Cancel {
        &self.stop
    }

    /// Reports an error on a lane, which ends all lanes. An error that only says that `stop` was
    /// cancelled is ignored.
    pub(super) fn offer(&self, cause: Cause, error: Error) {
        self.note(cause, error);
        self.stop.cancel();
    }

    /// As [`Failure::offer`], while other lanes are at work. When the connection merely broke, they
    /// have a moment to read the peer's reason.
    pub(super) fn offer_beside_others(&self, cause: Cause, error: Error) {
        self.note(cause, error);
        if cause == Cause::Broke {
            self.stop.wait(READ_ON);
        }
        self.stop.cancel();
    }

    fn note(&self, cause: Cause, error: Error) {
        let stopped = error.kind() == Kind::Cancelled && self.stop.is_cancelled();
        if cause != Cause::Said && stopped {
            return;
        }
        let mut reason = self.lock();
        let better = match &*reason {
            None => true,
            Some((known, _)) => *known == Cause::Broke && cause == Cause::Said,
        };
        if better {
            *reason = Some((cause, error));
        }
    }

    /// The reason so far.
    pub(super) fn reason(&self) -> Option<(Cause, Error)> {
        self.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: Kind) -> Error {
        Error::new(kind, format!("{kind:?}"))
    }

    #[test]
    fn the_first_error_wins_and_what_the_peer_said_wins_over_what_broke() {
        use Cause::{Broke, Found, Said};
        let table = [
            (
                vec![(Found, Kind::NoMemory), (Said, Kind::Refused)],
                Kind::NoMemory,
            ),
            (
                vec![(Said, Kind::Layout), (Found, Kind::NoMemory)],
                Kind::Layout,
            ),
            (
                vec![(Said, Kind::Layout), (Said, Kind::Refused)],
                Kind::Layout,
            ),
            (
                vec![(Broke, Kind::PeerGone), (Said, Kind::Refused)],
                Kind::Refused,
            ),
            (
                vec![(Broke, Kind::PeerGone), (Said, Kind::Cancelled)],
                Kind::Cancelled,
            ),
            (
                vec![(Broke, Kind::PeerGone), (Found, Kind::Protocol)],
                Kind::PeerGone,
            ),
            (vec![(Broke, Kind::Io), (Broke, Kind::PeerGone)], Kind::Io),
            // An error that the stop caused is no reason of its own.
            (vec![(Broke, Kind::Io), (Found, Kind::Cancelled)], Kind::Io),
        ];
        for (offers, wins) in table {
            let failure = Failure::new(Cancel::new().unwrap());
            for (cause, kind) in &offers {
                failure.offer(*cause, error(*kind));
                assert!(failure.stop().is_cancelled());
            }
            let (_, reason) = failure.reason().unwrap();
            assert_eq!(reason.kind(), wins, "{offers:?}");
        }
    }

    #[test]
    fn a_cancel_of_the_migration_is_no_failure_of_a_lane() {
        let stop = Cancel::new().unwrap();
        let failure = Failure::new(stop.clone());
        stop.cancel();
        failure.offer(Cause::Found, error(Kind::Cancelled));
        assert!(failure.reason().is_none());
    }
}
