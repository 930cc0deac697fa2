//! DIGEST: what a run of the destination's pages holds, as checksums.
//!
//! A source that verifies a migration compares the checksums with its own memory. A run of pages
//! that are all zero has none, so that a guest of 1 TiB that uses little of it is told of in a
//! thousand short records. The destination makes these records, and the source reads them.

use super::body::{check_end, Body, Checked};
use super::cursor::Reader;
use super::kind::DIGEST_SUMS_MAX;
use crate::error::Result;
use crate::fallible;
use crate::units::Pages;

/// The most pages in one DIGEST: 1 GiB. The source, which may have to read so much memory for one
/// record, reads it within the time limits of a connection.
pub const DIGEST_PAGES_MAX: u32 = 1 << 18;

/// DIGEST: the checksums of a run of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// The source's number of the block. It travels in the header.
    pub block: u32,
    /// The first page.
    pub first_page: Pages,
    /// How many pages: 1 to [`DIGEST_PAGES_MAX`].
    pub pages: u32,
    /// The CRC-32 of each page, at most [`DIGEST_SUMS_MAX`]. Empty when all pages are zero.
    pub sums: Vec<u32>,
}

impl Body for Digest {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first_page.0.to_le_bytes());
        out.extend_from_slice(&self.pages.to_le_bytes());
        out.extend_from_slice(&(self.sums.len() as u32).to_le_bytes());
        for sum in &self.sums {
            out.extend_from_slice(&sum.to_le_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let (first_page, pages) = (reader.u64("first_page")?, reader.u32("pages")?);
        // The payload's limit bounds how many there are.
        let count = reader.u32("count of sums")?;
        let mut sums = Vec::new();
        for _ in 0..count {
            fallible::push(&mut sums, reader.u32("sums")?, "checksums of pages")?;
        }
        Ok(Digest {
            block: 0,
            first_page: Pages(first_page),
            pages,
            sums,
        })
    }

    fn problem(&self) -> Checked {
        if !(1..=DIGEST_PAGES_MAX).contains(&self.pages) {
            return Err(format!(
                "expected 1 to {DIGEST_PAGES_MAX} pages, found {}",
                self.pages
            ));
        }
        check_end(self.first_page, self.pages)?;
        let sums = self.sums.len();
        if sums != 0 && (sums > DIGEST_SUMS_MAX || sums != self.pages as usize) {
            return Err(format!(
                "expected a checksum for each of at most {DIGEST_SUMS_MAX} pages, or none for pages \
                 that are all zero; found {sums} for {} pages",
                self.pages
            ));
        }
        Ok(())
    }
}
