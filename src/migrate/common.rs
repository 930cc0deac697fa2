//! What both sides of a migration have: the data that the VMM's object shares with the migration's
//! thread, and the data that every driver owns.
//!
//! Data of one side only is in a type of that side: `Leaving` at the source, `Arriving` at the
//! destination. Nothing here decides anything.

use super::callbacks::Callbacks;
use super::handle::Handle;
use super::params::Params;
use super::record::Record;
use super::report::{Meter, Renewed, Stats};
use super::state::Side;
use super::switchover::window::Window;
use crate::error::{Error, Kind, Result};
use crate::sys::clock;
use crate::vmm::Vmm;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The data that the VMM's object and the migration's thread share. `G` is the guest, as it leaves
/// or arrives.
pub(super) struct Migration<G, S> {
    pub(super) guest: G,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) params: Params,
    pub(super) handle: Handle<S>,
    pub(super) record: Record,
}

impl<G, S: Side> Migration<G, S> {
    /// A migration that has not begun. Checks the parameters.
    pub(super) fn new(guest: G, vmm: Arc<dyn Vmm>, params: Params) -> Result<Arc<Self>> {
        params.check()?;
        Ok(Arc::new(Migration {
            guest,
            vmm,
            params,
            handle: Handle::new()?,
            record: Record::default(),
        }))
    }

    /// The VMM's operations, called in the name of this migration.
    pub(super) fn callbacks(&self) -> Callbacks {
        let callbacks = Callbacks::new(Arc::clone(&self.vmm), self.handle.owner());
        callbacks.heard_by(self.record.ear())
    }
}

/// The data that the thread owns at either side.
pub(super) struct Common<G, S: Side> {
    pub(super) shared: Arc<Migration<G, S>>,
    pub(super) vmm: Callbacks,
    pub(super) begun: Instant,
    /// The time in which a hand-over counts. The source's window begins at the receipt of READY, so
    /// later than the destination's.
    window: Option<Window>,
    pub(super) stats: Stats,
    pub(super) meter: Meter,
    pub(super) renewed: Renewed,
    /// The first error.
    pub(super) error: Option<Error>,
    /// The event that the current action has reached already. When a defect of brant's follows on
    /// something that the VMM or the peer has done, the event still counts.
    pub(super) done: Option<S::Event>,
}

impl<G, S: Side> Common<G, S> {
    pub(super) fn new(shared: Arc<Migration<G, S>>) -> Self {
        Common {
            vmm: shared.callbacks(),
            shared,
            begun: Instant::now(),
            window: None,
            stats: Stats::default(),
            meter: Meter::default(),
            renewed: Renewed::default(),
            error: None,
            done: None,
        }
    }

    /// Opens the window: from now on a hand-over counts for `limit`.
    pub(super) fn open_window(&mut self, limit: Duration) {
        self.window = Some(Window::new(clock::boottime(), limit));
    }

    /// Whether a hand-over counts now.
    pub(super) fn handover_counts(&self) -> bool {
        self.window.is_some_and(|w| w.is_open(clock::boottime()))
    }

    /// How long a hand-over still counts.
    pub(super) fn handover_left(&self) -> Duration {
        self.window
            .map_or(Duration::ZERO, |w| w.left(clock::boottime()))
    }

    /// The time until the destination has begun to run the guest or never will.
    pub(super) fn until_decided(&self) -> Duration {
        self.window
            .map_or(Duration::ZERO, |w| w.until_decided(clock::boottime()))
    }

    /// Takes the gate, unless a cancel has taken it.
    pub(super) fn take_gate(&mut self) -> bool {
        let won = self.shared.handle.commit();
        if !won {
            self.error
                .get_or_insert_with(|| Error::new(Kind::Cancelled, "cancelled"));
        }
        won
    }

    /// The hand-over is too late, with `error`. Gives the gate back, so that a cancel can take it.
    pub(super) fn too_late(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.shared.handle.withdraw();
    }
}
