//! The waits of vCPUs over their dirty limit, as far as all vCPUs share them. `limits.rs` decides who
//! waits.

use crate::dirty::slices::SLICE_MAX;
use crate::error::{Error, Kind, Result};
use crate::memory::Ownership;
use crate::runtime::nap::Naps;
use std::sync::Arc;
use std::time::Duration;

/// What the limits of all vCPUs have in common.
pub(super) struct Limits {
    /// Made with the first limit, and dropped when all are lifted.
    pub naps: Option<Naps>,
    /// Says whether the guest is being paused or kicked.
    pub guest: Arc<Ownership>,
    /// The longest slice. Tests make it long, so that only an event can end it.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            naps: None,
            guest: Arc::default(),
            longest: SLICE_MAX,
        }
    }
}

impl Limits {
    /// Makes what a first limit needs.
    pub fn need(&mut self, tracking: bool) -> Result<()> {
        if !tracking {
            return Err(Error::new(
                Kind::State,
                "a dirty limit needs a tracker that is started: nobody else harvests the rings",
            ));
        }
        if self.naps.is_none() {
            self.naps = Some(Naps::new()?);
        }
        Ok(())
    }

    /// Ends all waits.
    pub fn end(&mut self) {
        if let Some(naps) = &mut self.naps {
            naps.end_all();
        }
    }
}
