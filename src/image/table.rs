//! The table of one block during a save: for each page in the image its checksum, or 0 for a zero
//! page. In a table of changes 0 is a page that is as in the parent, and 1 is a zero page.
//!
//! A row is one page of the table in the file, for 4 MiB of the guest. A row is made when the first
//! of its pages gets contents. So a guest that never touched most of its memory needs few rows, and
//! its table is mostly holes.

use super::format::{change_sum, page_sum, AS_BEFORE, PIECE_PAGES, ZERO};
use crate::error::{Error, Result};
use crate::fallible;
use crate::units::PAGE_SIZE;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::OnceLock;

/// Checksums in a row.
const ROW: u64 = PAGE_SIZE / 4;
/// Rows in a piece of the table that has a checksum of its own.
const PIECE_ROWS: usize = (PIECE_PAGES / ROW) as usize;

/// See the file's description. May be used on any thread. The pool gives a page to one thread at a
/// time, so updates of a page are in order.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<OnceLock<Vec<AtomicU32>>>,
    /// It says what changed since the parent.
    changes: bool,
}

impl Table {
    /// The table of a block of `pages` pages: all zero, or all as in the parent.
    pub(super) fn new(pages: u64, changes: bool) -> Result<Table> {
        let count = pages.div_ceil(ROW);
        let rows = (0..count).map(|_| OnceLock::new());
        Ok(Table {
            rows: fallible::collect(rows, "checksums of pages")?,
            changes,
        })
    }

    /// Whether it says what changed since the parent.
    pub(super) fn is_of_changes(&self) -> bool {
        self.changes
    }

    fn row(&self, page: u64) -> Result<&[AtomicU32]> {
        let row = &self.rows[(page / ROW) as usize];
        if let Some(row) = row.get() {
            return Ok(row);
        }
        let mut made = Vec::new();
        fallible::reserve(&mut made, ROW as usize, "checksums of pages")?;
        made.resize_with(ROW as usize, AtomicU32::default);
        // If two threads make the row at once, the first one's is kept.
        let _ = row.set(made);
        row.get()
            .map(Vec::as_slice)
            .ok_or_else(|| Error::no_memory("checksums of pages", PAGE_SIZE))
    }

    /// Whether the image has contents for a page.
    pub(super) fn has(&self, page: u64) -> bool {
        let row = self.rows[(page / ROW) as usize].get();
        let sum = row.map_or(AS_BEFORE, |row| row[(page % ROW) as usize].load(Relaxed));
        sum != AS_BEFORE && (sum != ZERO || !self.changes)
    }

    /// Notes that the pages from `first` on have `contents` in the image.
    pub(super) fn set(&self, first: u64, contents: &[u8]) -> Result<()> {
        for (page, contents) in (first..).zip(contents.chunks_exact(PAGE_SIZE as usize)) {
            let sum = match self.changes {
                true => change_sum(contents),
                false => page_sum(contents),
            };
            self.row(page)?[(page % ROW) as usize].store(sum, Relaxed);
        }
        Ok(())
    }

    /// Notes that a page is zero in the image.
    pub(super) fn clear(&self, page: u64) -> Result<()> {
        if self.changes {
            self.row(page)?[(page % ROW) as usize].store(ZERO, Relaxed);
        } else if let Some(row) = self.rows[(page / ROW) as usize].get() {
            row[(page % ROW) as usize].store(0, Relaxed);
        }
        Ok(())
    }

    /// Calls `each` with the pieces of the table as they are in the file, in order, and whether the
    /// piece has any checksum.
    pub(super) fn pieces(&self, mut each: impl FnMut(&[u8], bool) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        fallible::reserve(
            &mut bytes,
            PIECE_ROWS * PAGE_SIZE as usize,
            "a table's piece",
        )?;
        for rows in self.rows.chunks(PIECE_ROWS) {
            bytes.clear();
            let mut any = false;
            for row in rows {
                let Some(row) = row.get() else {
                    bytes.resize(bytes.len() + PAGE_SIZE as usize, 0);
                    continue;
                };
                any = true;
                for sum in row {
                    bytes.extend_from_slice(&sum.load(Relaxed).to_le_bytes());
                }
            }
            each(&bytes, any)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::format::{piece_count, table_length};

    #[test]
    fn a_table_is_as_long_as_the_format_says_and_mostly_holes_for_an_empty_guest() {
        for pages in [1, ROW, ROW + 1, PIECE_PAGES, 3 * PIECE_PAGES + 5] {
            let table = Table::new(pages, false).unwrap();
            table.set(pages - 1, &[7; 4096]).unwrap();
            let (mut length, mut pieces, mut full) = (0, 0, 0);
            table
                .pieces(|bytes, any| {
                    length += bytes.len() as u64;
                    pieces += 1;
                    full += u64::from(any);
                    Ok(())
                })
                .unwrap();
            assert_eq!(length, table_length(pages), "{pages}");
            assert_eq!(pieces, piece_count(pages), "{pages}");
            assert_eq!(full, 1);
        }
    }

    #[test]
    fn a_page_is_known_until_it_is_zero_again() {
        let table = Table::new(3000, false).unwrap();
        table.set(1023, &[7; 8192]).unwrap();
        let known = |table: &Table| [1022, 1023, 1024, 1025].map(|page| table.has(page));
        assert_eq!(known(&table), [false, true, true, false]);
        table.clear(1023).unwrap();
        table.clear(2999).unwrap();
        assert_eq!(known(&table), [false, false, true, false]);
    }

    #[test]
    fn a_zero_page_among_changes_is_no_page_that_is_as_before() {
        let table = Table::new(3000, true).unwrap();
        table.set(1, &[7; 4096]).unwrap();
        table.clear(2).unwrap();
        assert_eq!([0, 1, 2].map(|page| table.has(page)), [false, true, false]);
        let mut sums = Vec::new();
        let piece = |bytes: &[u8], _: bool| {
            sums = bytes[..12].to_vec();
            Ok(())
        };
        table.pieces(piece).unwrap();
        let sum = change_sum(&[7; 4096]).to_le_bytes();
        assert_eq!(sums, [[0; 4], sum, [1, 0, 0, 0]].concat());
    }
}
