//! What a migration has at either side: what its VMM and its thread share, and what every driver
//! owns beside its own.
//!
//! What only one side has is a type of that side: `Leaving` at the source, `Arriving` at the
//! destination. Decides nothing.

use super::callbacks::Callbacks;
use super::handle::Handle;
use super::params::Params;
use super::report::{Meter, Renewed, Stats};
use super::state::Side;
use super::switchover::window::Window;
use crate::error::{Error, Kind, Result};
use crate::sys::clock;
use crate::vmm::Vmm;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the VMM's object and the migration's thread share. `G` is the guest, as it leaves or
/// arrives.
pub(super) struct Migration<G, S> {
    pub(super) guest: G,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) params: Params,
    pub(super) handle: Handle<S>,
}

impl<G, S: Side> Migration<G, S> {
    /// One that has not begun. Checks the parameters.
    pub(super) fn new(guest: G, vmm: Arc<dyn Vmm>, params: Params) -> Result<Arc<Self>> {
        params.check()?;
        Ok(Arc::new(Migration {
            guest,
            vmm,
            params,
            handle: Handle::new()?,
        }))
    }

    /// The VMM, as this migration calls it.
    pub(super) fn callbacks(&self) -> Callbacks {
        Callbacks::new(Arc::clone(&self.vmm), self.handle.owner())
    }
}

/// What the thread owns at either side.
pub(super) struct Common<G, S: Side> {
    pub(super) shared: Arc<Migration<G, S>>,
    pub(super) vmm: Callbacks,
    pub(super) begun: Instant,
    /// In which the hand-over counts. The source's begins later, with the receipt of READY, than the
    /// destination's.
    window: Option<Window>,
    pub(super) stats: Stats,
    pub(super) meter: Meter,
    pub(super) renewed: Renewed,
    /// The first thing that went wrong.
    pub(super) error: Option<Error>,
    /// What the action in progress has come to already: where a defect of ours follows on what
    /// the VMM or the peer has done, that is done all the same.
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

    /// From now on a hand-over counts for so long.
    pub(super) fn open_window(&mut self, limit: Duration) {
        self.window = Some(Window::new(clock::boottime(), limit));
    }

    /// Whether a hand-over counts now.
    pub(super) fn handover_counts(&self) -> bool {
        self.window.is_some_and(|w| w.is_open(clock::boottime()))
    }

    /// For how long a hand-over still counts.
    pub(super) fn handover_left(&self) -> Duration {
        self.window
            .map_or(Duration::ZERO, |w| w.left(clock::boottime()))
    }

    /// Until the destination has begun to run the guest or never will.
    pub(super) fn until_decided(&self) -> Duration {
        self.window
            .map_or(Duration::ZERO, |w| w.until_decided(clock::boottime()))
    }

    /// Takes the gate, unless a cancel has it.
    pub(super) fn take_gate(&mut self) -> bool {
        let won = self.shared.handle.commit();
        if !won {
            self.error
                .get_or_insert_with(|| Error::new(Kind::Cancelled, "cancelled"));
        }
        won
    }

    /// The hand-over is too late, with `error`: gives the gate back to whoever cancels now.
    pub(super) fn too_late(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.shared.handle.withdraw();
    }
}
