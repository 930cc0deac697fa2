//! What the VMM decides about an interrupted migration: new connections, or none any more.

use crate::channel::Route;
use crate::error::{Error, Kind, Result};
use crate::runtime::Cancel;
use std::sync::{Condvar, Mutex, MutexGuard};

/// The VMM's decision.
#[derive(Debug)]
pub(super) enum Decision {
    /// Go on over these connections.
    Recover(Route),
    /// The session is over, and no recovery follows.
    Retire,
}

#[derive(Debug, Default)]
struct Told {
    route: Option<Route>,
    retired: bool,
    /// A route was taken, and what becomes of it is not known yet: ends the attempt.
    under_way: Option<Cancel>,
}

/// The error of a recovery that comes too early.
pub(super) fn under_way() -> Error {
    Error::new(Kind::Busy, "a recovery of this migration is in progress")
}

/// See the file's description.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    told: Mutex<Told>,
    news: Condvar,
}

impl Decisions {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The migration is to go on over new connections.
    ///
    /// # Errors
    /// [`Kind::Busy`] while others wait to be used, or are tried. The new ones would be left over
    /// otherwise, and a later interruption would find them, when nobody is at their other ends.
    /// [`Kind::State`] when the session is retired.
    pub(super) fn recover(&self, route: Route) -> Result<()> {
        let mut told = self.lock();
        if told.retired {
            let why = "the migration was resolved, and is not recovered any more";
            return Err(Error::new(Kind::State, why));
        }
        if told.route.is_some() || told.under_way.is_some() {
            return Err(under_way());
        }
        told.route = Some(route);
        self.news.notify_all();
        Ok(())
    }

    /// No recovery follows, however often connections are lost. One that is in progress ends soon.
    pub(super) fn retire(&self) {
        let mut told = self.lock();
        told.retired = true;
        if let Some(attempt) = &told.under_way {
            attempt.cancel();
        }
        drop(told);
        self.news.notify_all();
    }

    /// The attempt to recover is over: it has failed, or the migration is not interrupted any more.
    pub(super) fn attempted(&self) {
        self.lock().under_way = None;
    }

    /// Waits for the next decision. `attempt` ends the attempt to recover, when one follows and the VMM
    /// resolves the migration meanwhile; [`Decisions::attempted`] has to follow it. No other decision comes
    /// behind [`Decisions::retire`], so all attempts may have the same one.
    pub(super) fn next(&self, attempt: &Cancel) -> Decision {
        let mut told = self.lock();
        // An attempt that ended in a panic has not said so.
        told.under_way = None;
        loop {
            if told.retired {
                return Decision::Retire;
            }
            if let Some(route) = told.route.take() {
                told.under_way = Some(attempt.clone());
                return Decision::Recover(route);
            }
            told = self.news.wait(told).unwrap_or_else(|e| e.into_inner());
        }
    }
}
