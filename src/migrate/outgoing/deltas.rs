//! Re-sent pages of one lane as what has changed in them.
//!
//! Only pages that have been sent before are looked at. In the first pass a guest of a terabyte would
//! churn the cache and copy all of its memory for nothing: most pages never come back. So a page
//! enters the cache with its second sending, and from the third on it can go as a delta.
//!
//! Example: in pass 2 a page comes back. It is copied, the copy is sent whole, and kept
//! ([`SentPages`]). In pass 3 it comes back with 8 other bytes: the copy of today is encoded against
//! the kept one, which the destination has in its memory; some 11 bytes are sent, and the copy of
//! today is kept.
//!
//! The encoder of a lane owns this, and asks for each page; [`DeltaPays`] decides whether it is worth
//! it. Caches die with their lane: a lane of another session knows nothing of this destination's
//! memory.

use super::sent_pages::{Key, SentPages};
use crate::error::Result;
use crate::fallible;
use crate::memory::{BlockId, PageRun};
use crate::migrate::steering::delta_pays::{DeltaPass, DeltaPays};
use crate::page::delta::{self, PAGE};
use crate::units::Pages;

/// A longer encoding is not worth the work of both sides: the page goes whole.
const LONGEST: usize = PAGE * 3 / 4;

/// See the file's description.
#[derive(Debug)]
pub(super) struct Deltas {
    sent: SentPages,
    pays: DeltaPays,
    pass: u32,
    this_pass: DeltaPass,
}

/// What became of a re-sent page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resent {
    /// It goes as its encoding, against the version with this checksum.
    Changed { base: u32 },
    /// It was not in the cache: its copy goes.
    Missed,
    /// Too much of it has changed: its copy goes.
    Overflowed,
}

impl Deltas {
    /// With a cache of at most so many bytes.
    ///
    /// # Errors
    /// [`crate::error::Kind::NoMemory`].
    pub(super) fn new(bytes: u64) -> Result<Self> {
        Ok(Deltas {
            sent: SentPages::new(bytes)?,
            pays: DeltaPays::default(),
            pass: 0,
            this_pass: DeltaPass::default(),
        })
    }

    /// The pages that come now are of this pass.
    pub(super) fn in_pass(&mut self, pass: u32) {
        if pass != self.pass {
            self.pays.passed(&std::mem::take(&mut self.this_pass));
            self.pass = pass;
        }
    }

    /// The name of a re-sent page, if its copy is to go, by [`Deltas::encode`]. Otherwise it goes
    /// however it likes, and is forgotten.
    pub(super) fn wants(&mut self, block: BlockId, page: Pages) -> Option<Key> {
        let key = Key::new(block, page)?;
        if self.pays.is_on() || self.sent.is_sample(key) {
            return Some(key);
        }
        self.sent.forget(key);
        None
    }

    /// Whether anything is kept that could have to be forgotten.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.held() == 0
    }

    /// Pages go in some other way than as a copy that was encoded here.
    pub(super) fn forget(&mut self, run: PageRun) {
        if self.is_empty() {
            return;
        }
        for page in run.first().0..run.end().0 {
            if let Some(key) = Key::new(run.block(), Pages(page)) {
                self.sent.forget(key);
            }
        }
    }

    /// What becomes of the page `copy`, which is sent as it is here; its encoding, if it is to go as
    /// that, is appended to `out`.
    ///
    /// # Errors
    /// [`crate::error::Kind::NoMemory`]. The lane's cache is of no use then, and neither is the lane.
    pub(super) fn encode(
        &mut self,
        key: Key,
        copy: &[u8; PAGE],
        out: &mut Vec<u8>,
    ) -> Result<Resent> {
        self.this_pass.pages += 1;
        let Some(found) = self.sent.find(key, self.pass) else {
            self.sent.keep(key, self.pass, copy);
            return Ok(Resent::Missed);
        };
        let mut encoding = [0; LONGEST];
        let Some(length) = delta::encode(found.page(), copy, &mut encoding) else {
            found.renew_in_vain(copy);
            return Ok(Resent::Overflowed);
        };
        let base = crc32fast::hash(found.page());
        found.renew(copy);
        fallible::reserve(out, length, "changed pages")?;
        out.extend_from_slice(&encoding[..length]);
        self.this_pass.saved += (PAGE - length) as u64;
        Ok(Resent::Changed { base })
    }
}

#[cfg(test)]
mod tests;
