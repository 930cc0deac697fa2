//! Events that a recording has still to write. Any thread of the migration puts them here, and never waits
//! for whoever reads the recording.

use crate::fallible;
use crate::vmm::callbacks::Ear;
use crate::vmm::EventKind;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// The most events that wait. More are dropped and counted.
const EVENTS_MAX: usize = 1024;

/// An event, and when it was.
pub(super) struct Heard {
    pub(super) at: Instant,
    pub(super) kind: EventKind,
    pub(super) message: String,
}

#[derive(Default)]
struct Reel {
    open: bool,
    heard: Vec<Heard>,
    lost: u64,
}

/// See the file's description.
#[derive(Default)]
pub(in crate::migrate) struct Tape(Mutex<Reel>);

impl Tape {
    fn reel(&self) -> MutexGuard<'_, Reel> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// From now on events are kept.
    pub(super) fn open(&self) {
        *self.reel() = Reel {
            open: true,
            ..Reel::default()
        };
    }

    /// No event is kept any more.
    pub(super) fn close(&self) {
        *self.reel() = Reel::default();
    }

    /// The events since the last call, and how many more were dropped.
    pub(super) fn take(&self) -> (Vec<Heard>, u64) {
        let mut reel = self.reel();
        let lost = std::mem::take(&mut reel.lost);
        (std::mem::take(&mut reel.heard), lost)
    }
}

impl Ear for Tape {
    fn hears(&self, kind: EventKind, message: &str) {
        let mut reel = self.reel();
        if !reel.open {
            return;
        }
        let heard = Heard {
            at: Instant::now(),
            kind,
            message: message.to_owned(),
        };
        let full = reel.heard.len() >= EVENTS_MAX;
        if full || fallible::push(&mut reel.heard, heard, "events of a recording").is_err() {
            reel.lost += 1;
        }
    }
}
