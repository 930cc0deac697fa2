//! Single pages of an image, read while their thread does something else: for the thread that serves
//! page faults, which must not wait for a disk.
//!
//! Only what needs no wait begins here: the file is read past the page cache, and the page's checksum
//! is known already. All else is the [`Picker`]'s, and so is a page that cannot be had: it is read
//! again there, which says why.

use super::format::sum_fits;
use super::picker::Picker;
use crate::error::Result;
use crate::fallible;
use crate::sys::aio::Reads;
use crate::units::PAGE_SIZE;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// Pages that are read at one time.
const MOST: usize = 64;

/// What became of a page that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is on its way.
    Coming,
    /// It is zero.
    Zeros,
    /// It has to be picked.
    No,
}

/// A page of a block of the index.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    entry: usize,
    page: u64,
    sum: u32,
}

#[derive(Debug)]
struct Under {
    reads: Reads,
    /// By number of the read.
    asked: Vec<Option<Asked>>,
    /// The kernel has refused: nothing begins here any more.
    refused: bool,
}

/// See the file's description. Any thread.
#[derive(Debug)]
pub struct Singles {
    /// Readable when pages have come.
    ended: Arc<OwnedFd>,
    under: Mutex<Under>,
}

impl Singles {
    /// Room for as many pages as are read at one time.
    ///
    /// # Errors
    /// When the kernel has no such reads, or there is no memory.
    pub fn new() -> Result<Singles> {
        let reads = Reads::new(MOST, PAGE_SIZE as usize)?;
        Ok(Singles {
            ended: Arc::clone(reads.ended()),
            under: Mutex::new(Under {
                reads,
                asked: fallible::collect((0..MOST).map(|_| None), "pages that are read")?,
                refused: false,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Under> {
        self.under.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Readable when pages have come.
    pub fn coming(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Begins to read a page of the block at `entry` of the index, if that needs no wait.
    pub fn begin(&self, picker: &Picker, entry: usize, page: u64) -> Begun {
        let Some((sum, layer)) = picker.known_sum(entry, page) else {
            return Begun::No;
        };
        if sum == 0 {
            return Begun::Zeros;
        }
        let Some((file, offset)) = picker.in_file((entry, layer), page) else {
            return Begun::No;
        };
        let mut under = self.lock();
        if under.refused {
            return Begun::No;
        }
        match under.reads.start(file, offset) {
            Ok(Some(number)) => {
                under.asked[number] = Some(Asked { entry, page, sum });
                Begun::Coming
            }
            Ok(None) => Begun::No,
            Err(_) => {
                under.refused = true;
                Begun::No
            }
        }
    }

    /// Calls `each` with the pages that have come: the block's place in the index, the page, and its
    /// contents; `None` where it has to be picked.
    pub fn came(&self, mut each: impl FnMut(usize, u64, Option<&[u8]>)) {
        let mut under = self.lock();
        let Under {
            reads,
            asked,
            refused,
        } = &mut *under;
        let taken = reads.take(|number, read| {
            let Some(Asked { entry, page, sum }) = asked[number].take() else {
                return;
            };
            let whole = |bytes: &&[u8]| bytes.len() as u64 == PAGE_SIZE && sum_fits(sum, bytes);
            each(entry, page, read.ok().filter(whole));
        });
        if taken.is_err() {
            *refused = true;
            for Asked { entry, page, .. } in asked.iter_mut().filter_map(Option::take) {
                each(entry, page, None);
            }
        }
    }
}
