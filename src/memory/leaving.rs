//! A block on its way out of the map.

use super::block::Block;
use crate::error::Result;

/// A block that is leaving: as long as this exists, no holder begins to use it.
pub(super) struct Leaving<'a>(&'a Block);

impl<'a> Leaving<'a> {
    /// # Errors
    /// [`crate::Kind::Busy`] with the names of the holders of its pages.
    pub fn begin(block: &'a Block) -> Result<Leaving<'a>> {
        block.uses().leaves(block.name())?;
        Ok(Leaving(block))
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.uses().stays();
    }
}
