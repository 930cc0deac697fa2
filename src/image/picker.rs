//! Any pages of an image in any order, each checked: for a guest that runs while its pages come in.
//!
//! A page that cannot be had, because it is damaged or the file cannot be read there, is told as
//! such, and the pages around it are had nevertheless.

use super::buffer::Buffer;
use super::deal::{Sums, PAGES_AT_ONCE};
use super::format::{page_sum, sum_fits, PIECE_PAGES};
use super::reader::{Image, Place};
use crate::error::{Error, Result};
use crate::fallible;
use crate::units::{Pages, PAGE_SIZE};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

/// Tables of checksums that are kept: each has those of 64 MiB of the guest, in 64 KiB.
const TABLES: usize = 256;

/// What the image has for some pages.
#[derive(Debug)]
pub enum Picked<'a> {
    /// Contents: whole pages.
    Data(&'a [u8]),
    /// Zeros.
    Zeros,
    /// Nothing that can be trusted.
    Lost(Error),
}

/// One piece of a block: the block's place in the index, the piece's number.
type Piece = (usize, usize);

/// See the file's description. Any thread.
#[derive(Debug)]
pub struct Picker {
    image: Arc<Image>,
    /// The oldest first.
    tables: Mutex<VecDeque<(Piece, Arc<Sums>)>>,
}

/// Room for the pages that one thread reads.
#[derive(Debug)]
pub struct Room(Buffer);

impl Room {
    /// # Errors
    /// [`crate::error::Kind::NoMemory`].
    pub fn new() -> Result<Room> {
        Buffer::new(Pages(PAGES_AT_ONCE).bytes().0 as usize).map(Room)
    }
}

impl Picker {
    /// Of an open image.
    pub fn new(image: Arc<Image>) -> Picker {
        Picker {
            image,
            tables: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Piece, Arc<Sums>)>> {
        self.tables.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Calls `each` with runs that make up `pages` of the block at `entry` of the index, in order.
    ///
    /// # Errors
    /// Those of `each`, and when there is no memory.
    pub fn pick(
        &self,
        entry: usize,
        pages: Range<u64>,
        room: &mut Room,
        mut each: impl FnMut(Range<u64>, Picked<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut at = pages.start;
        while at < pages.end {
            let piece = at / PIECE_PAGES;
            let end = pages.end.min((piece + 1) * PIECE_PAGES);
            let sums = match self.sums((entry, piece as usize)) {
                Ok(sums) => sums,
                Err(error) => {
                    each(at..end, Picked::Lost(error))?;
                    at = end;
                    continue;
                }
            };
            while at < end {
                let source = sums.source(at);
                let most = match source {
                    None => end,
                    Some(_) => end.min(at + PAGES_AT_ONCE),
                };
                let stop = (at + 1..most).find(|page| sums.source(*page) != source);
                let run = at..stop.unwrap_or(most);
                at = run.end;
                match source {
                    None => each(run, Picked::Zeros)?,
                    Some(layer) => self.data((entry, layer), run, &sums, room, &mut each)?,
                }
            }
        }
        Ok(())
    }

    fn data(
        &self,
        place: Place,
        run: Range<u64>,
        sums: &Sums,
        room: &mut Room,
        each: &mut impl FnMut(Range<u64>, Picked<'_>) -> Result<()>,
    ) -> Result<()> {
        let length = Pages(run.end - run.start).bytes().0 as usize;
        let bytes = &mut room.0.bytes_mut()[..length];
        if let Err(error) = self.image.pages(place, &run, bytes) {
            if run.end - run.start == 1 {
                return each(run, Picked::Lost(error));
            }
            // Only those that cannot be read are lost.
            let mut pages = run;
            return pages.try_for_each(|page| self.data(place, page..page + 1, sums, room, each));
        }
        let page = PAGE_SIZE as usize;
        let mut good = run.start;
        let bytes_of = |pages: &Range<u64>| {
            let at = |page: u64| Pages(page - run.start).bytes().0 as usize;
            at(pages.start)..at(pages.end)
        };
        for (number, contents) in run.clone().zip(bytes.chunks_exact(page)) {
            let expected = sums.of(number);
            if sum_fits(expected, contents) {
                continue;
            }
            if good < number {
                let pages = good..number;
                let at = bytes_of(&pages);
                each(pages, Picked::Data(&bytes[at]))?;
            }
            good = number + 1;
            let found = page_sum(contents);
            let error = self.image.damaged(place, number, expected, found);
            each(number..number + 1, Picked::Lost(error))?;
        }
        if good < run.end {
            let pages = good..run.end;
            let at = bytes_of(&pages);
            each(pages, Picked::Data(&bytes[at]))?;
        }
        Ok(())
    }

    /// The checksum of a page, 0 for a zero page, and the image of the chain that has the page, if
    /// the table was read already.
    pub(super) fn known_sum(&self, entry: usize, page: u64) -> Option<(u32, usize)> {
        let piece = (entry, (page / PIECE_PAGES) as usize);
        let sums = self.known(piece)?;
        Some((sums.of(page), sums.layer(page)))
    }

    /// The file past the page cache that has a page, and where. `None`: the page has to be read
    /// through the page cache.
    pub(super) fn in_file(&self, place: Place, page: u64) -> Option<(BorrowedFd<'_>, u64)> {
        self.image.in_file(place, page)
    }

    fn known(&self, piece: Piece) -> Option<Arc<Sums>> {
        let tables = self.lock();
        let known = tables.iter().find(|(known, _)| *known == piece);
        known.map(|(_, sums)| Arc::clone(sums))
    }

    /// The checksums of a piece.
    fn sums(&self, piece: Piece) -> Result<Arc<Sums>> {
        if let Some(sums) = self.known(piece) {
            return Ok(sums);
        }
        // Two threads may read the same one, which costs less than a wait of both.
        let sums = Arc::new(self.image.sums(piece.0, piece.1)?);
        let mut tables = self.lock();
        if tables.len() >= TABLES {
            tables.pop_front();
        }
        fallible::reserve_back(&mut tables, 1, "tables of checksums")?;
        tables.push_back((piece, Arc::clone(&sums)));
        Ok(sums)
    }
}
