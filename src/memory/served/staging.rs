//! Huge pages that have arrived in part. The kernel fills a page of a huge page's size in one call or
//! not at all, so its pieces are gathered here until it is whole.

use crate::bits::Bitmap;
use crate::error::Result;
use crate::fallible;
use crate::sys::own::OwnMemory;
use crate::units::Pages;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// What arrives for some pages.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece<'a> {
    /// Contents: whole pages.
    Data(&'a [u8]),
    /// Zeros.
    Zeros,
}

impl<'a> Piece<'a> {
    /// The part of it for `pages`, of the pages from `first` on that it is for.
    pub(super) fn part(self, first: u64, pages: &Range<u64>) -> Piece<'a> {
        match self {
            Piece::Zeros => Piece::Zeros,
            Piece::Data(bytes) => {
                let at = |page: u64| Pages(page - first).bytes().0 as usize;
                Piece::Data(&bytes[at(pages.start)..at(pages.end)])
            }
        }
    }
}

/// The gathered part of one huge page.
#[derive(Debug)]
pub(super) struct Staged {
    /// Zero where nothing was gathered.
    pub(super) contents: OwnMemory,
    here: Bitmap,
}

/// Huge pages by block and first page.
type Gathered = HashMap<(usize, u64), Arc<Mutex<Staged>>>;

/// The huge pages that are being gathered. Any thread.
#[derive(Debug, Default)]
pub(super) struct Staging(Mutex<Gathered>);

impl Staging {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gathers a piece for `pages` of the huge page `unit`. Returns the huge page when it is whole by
    /// this piece.
    pub(super) fn gather(
        &self,
        block: usize,
        unit: &Range<u64>,
        pages: &Range<u64>,
        piece: Piece<'_>,
    ) -> Result<Option<OwnMemory>> {
        let key = (block, unit.start);
        let count = (unit.end - unit.start) as usize;
        let staged = {
            let mut all = self.lock();
            match all.get(&key) {
                Some(staged) => Arc::clone(staged),
                None => {
                    let length = Pages(count as u64).bytes().0 as usize;
                    let new = Arc::new(Mutex::new(Staged {
                        contents: OwnMemory::new(length, "a huge page that arrives in parts")?,
                        here: Bitmap::new(count)?,
                    }));
                    fallible::insert(&mut all, key, Arc::clone(&new), "huge pages")?;
                    new
                }
            }
        };
        let mut staged = staged.lock().unwrap_or_else(|e| e.into_inner());
        let at = (pages.start - unit.start) as usize;
        if let Piece::Data(bytes) = piece {
            let from = Pages(at as u64).bytes().0 as usize;
            if staged.contents.len() < count {
                // Another thread has taken it, whole.
                return Ok(None);
            }
            staged.contents[from..from + bytes.len()].copy_from_slice(bytes);
        }
        let new = staged
            .here
            .set_range(at, (pages.end - pages.start) as usize);
        if new == 0 || staged.here.count() < count as u64 {
            return Ok(None);
        }
        let whole = std::mem::replace(&mut staged.contents, OwnMemory::new(0, "nothing")?);
        self.lock().remove(&key);
        Ok(Some(whole))
    }

    /// Forgets what was gathered of a huge page: it arrived otherwise, or never will.
    pub(super) fn forget(&self, block: usize, unit: u64) {
        self.lock().remove(&(block, unit));
    }
}
