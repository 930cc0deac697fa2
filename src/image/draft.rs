//! A draft: pages of one stretch for an image, whose contents the caller puts in page by page.
//!
//! A walk's pages come as [`crate::dirty::taken::Taken`], and the writer reads them from guest memory
//! itself. A draft is for a caller who knows better where the contents are: in guest memory, or in a
//! copy that was made before the guest wrote the page ([`crate::snapshot`]).

use super::buffer::Buffer;
use super::pool::{Area, Batch, BatchPart, Span};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::sync::Arc;

/// See the file's description. Dropping a draft writes nothing, and its buffer is lost to the
/// writer: do so only when the image is given up.
#[derive(Debug)]
pub struct Draft {
    area: Arc<Area>,
    /// The pages that are still to come.
    rest: Range<Pages>,
    span: Span,
    buffer: Buffer,
    pieces: Vec<BatchPart>,
    /// Pages of the buffer that are filled.
    used: usize,
}

impl Draft {
    pub(super) fn new(area: Arc<Area>, pages: Range<Pages>, span: Span, buffer: Buffer) -> Draft {
        Draft {
            area,
            rest: pages,
            span,
            buffer,
            pieces: Vec::new(),
            used: 0,
        }
    }

    /// The next `count` pages have contents, which `fill` puts into its argument.
    ///
    /// # Errors
    /// Those of `fill`. [`Kind::Internal`] for more pages than the draft is for.
    pub fn data(&mut self, count: Pages, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let at = self.used;
        let bytes = at * PAGE_SIZE as usize..(at + count.index()) * PAGE_SIZE as usize;
        let Some(room) = self.buffer.bytes_mut().get_mut(bytes) else {
            return Err(too_many());
        };
        fill(room)?;
        self.used += count.index();
        self.next(count, Some(at))
    }

    /// The next `count` pages are zero.
    ///
    /// # Errors
    /// [`Kind::Internal`] for more pages than the draft is for.
    pub fn zeros(&mut self, count: Pages) -> Result<()> {
        self.next(count, None)
    }

    /// The next `count` pages are not in this image: they are as in the image before.
    ///
    /// # Errors
    /// [`Kind::Internal`] for more pages than the draft is for.
    pub fn skip(&mut self, count: Pages) -> Result<()> {
        if count > self.rest.end - self.rest.start {
            return Err(too_many());
        }
        self.rest.start += count;
        Ok(())
    }

    fn next(&mut self, count: Pages, at: Option<usize>) -> Result<()> {
        let first = self.rest.start;
        if count > self.rest.end - first {
            return Err(too_many());
        }
        self.rest.start = first + count;
        if let Some(last) = self.pieces.last_mut() {
            // Contents lie in the buffer in the order of pages, so that neighbours become one write.
            let is_next = last.first + last.count == first.0;
            if is_next && last.at.is_some() == at.is_some() {
                last.count += count.0;
                return Ok(());
            }
        }
        let piece = BatchPart {
            area: Arc::clone(&self.area),
            first: first.0,
            count: count.0,
            at,
        };
        fallible::push(&mut self.pieces, piece, "a batch of pages")
    }

    pub(super) fn into_batch(self) -> Batch {
        Batch {
            taken: None,
            span: self.span,
            buffer: self.buffer,
            pieces: self.pieces,
        }
    }
}

fn too_many() -> Error {
    Error::new(
        Kind::Internal,
        "a draft of an image was given more pages than it is for",
    )
}
