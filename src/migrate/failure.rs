//! Why the lanes of a migration have failed: one reason for all of them, whichever thread finds it.
//!
//! Example: the peer refuses a record on lane 3. It sends ABORT there and closes every connection.
//! Lane 1 finds its connection broken before lane 3 has read the ABORT. The user is to hear what
//! the peer said, and not that a connection broke. So the first error wins, but what the peer said
//! wins over what merely broke; and where one lane breaks, the others may read on for a moment.

use crate::error::{Error, Kind};
use crate::runtime::Cancel;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// For how long lanes read on after one of them broke: the peer's ABORT comes before the end of its
/// connection, but perhaps behind pages.
const READ_ON: Duration = Duration::from_millis(100);

/// Why an error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A connection is gone. Its peer may have said why, here or on another lane.
    Broke,
    /// Something on this side, or the peer broke the protocol.
    Found,
    /// The peer's ABORT.
    Said,
}

impl Cause {
    /// Of an error on a lane whose peer has said ABORT, or not.
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
    /// Ends all that waits on a lane.
    stop: Cancel,
}

impl Failure {
    /// None yet. `stop` is cancelled with the first.
    pub(super) fn new(stop: Cancel) -> Failure {
        Failure {
            reason: Mutex::new(None),
            stop,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Cause, Error)>> {
        self.reason.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What ends the waiting on all lanes: the first failure, or a cancel of the migration.
    pub(super) fn stop(&self) -> &Cancel {
        &self.stop
    }

    /// An error on a lane, which ends all of them. One that only tells of the stop is none.
    pub(super) fn offer(&self, cause: Cause, error: Error) {
        self.note(cause, error);
        self.stop.cancel();
    }

    /// The same of a lane beside others. Where it merely broke, they have a moment to read why.
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
            // What the stop ended is no reason of its own.
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
