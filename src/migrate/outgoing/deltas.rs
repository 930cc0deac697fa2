//! Re-sent pages of one lane, encoded as what has changed in them.
//!
//! A page enters the cache with its second sending, and from the third on it can go as a delta. If
//! pages entered with their first sending, the first pass of a guest of a terabyte would copy all
//! of its memory and churn the cache for nothing: most pages never come back.
//!
//! Example: in pass 2 a page comes back. The page is copied, and the copy is both sent whole and
//! kept ([`SentPages`]). In pass 3 the page comes back with 8 changed bytes. The new copy is
//! encoded against the kept one, which the destination has in its memory. Some 11 bytes are sent,
//! and the new copy replaces the kept one.
//!
//! The lane's encoder owns this cache and asks it for each page. [`DeltaPays`] decides whether
//! deltas are worth the work. A cache ends with its lane: a lane of another session knows nothing
//! of this destination's memory.

use super::sent_pages::{Key, SentPages};
use crate::error::Result;
use crate::fallible;
use crate::memory::{BlockId, PageRun};
use crate::migrate::steering::delta_pays::{DeltaPass, DeltaPays};
use crate::page::delta::{self, PAGE};
use crate::units::Pages;

/// When an encoding would be longer, it is not worth the work of both sides, and the page goes
/// whole.
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
    /// The page goes as its encoding, against the version with this checksum.
    Changed { base: u32 },
    /// The page was not in the cache: its copy goes.
    Missed,
    /// Too much of the page has changed: its copy goes.
    Overflowed,
}

impl Deltas {
    /// A cache of at most `bytes` bytes.
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

    /// The pages that follow belong to pass `pass`.
    pub(super) fn in_pass(&mut self, pass: u32) {
        if pass != self.pass {
            self.pays.passed(&std::mem::take(&mut self.this_pass));
            self.pass = pass;
        }
    }

    /// The key of a re-sent page, when its copy is to be sent by [`Deltas::encode`]. When the
    /// answer is `None`, the page may be sent in any way, and the cache has forgotten it.
    pub(super) fn wants(&mut self, block: BlockId, page: Pages) -> Option<Key> {
        let key = Key::new(block, page)?;
        if self.pays.is_on() || self.sent.is_sample(key) {
            return Some(key);
        }
        self.sent.forget(key);
        None
    }

    /// Whether the cache is empty, so that no page has to be forgotten.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.held() == 0
    }

    /// Forgets pages that are sent in another way than as a copy that was encoded here.
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

    /// Decides how the page `copy` is sent, with exactly these bytes. When the page goes as an
    /// encoding, the encoding is appended to `out`.
    ///
    /// # Errors
    /// [`crate::error::Kind::NoMemory`]. The lane's cache and the lane are of no use after this
    /// error.
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
