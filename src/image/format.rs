//! The header and the index of an image, from values to bytes and back. Pure: no file, no guest.
//!
//! `docs/image.md` describes the format byte by byte. All numbers are little-endian. Nothing in a
//! file is trusted. A checksum is checked before the fields that it covers are used. Each length
//! and offset is checked against the limits here and against the file's length before it is used.

use super::identity::{put_number, ImageId, Parent, HEADER_SUM};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::block::{BLOCKS_MAX, NAME_MAX, PAGES_MAX};
use crate::units::{Bytes, PAGE_SIZE};

pub use super::identity::HEADER_LEN;

/// The first bytes of an image.
pub const MAGIC: [u8; 8] = *b"BRANTIMG";
/// The version of an image that holds all of a guest's memory.
pub const VERSION: u32 = 1;
/// The version of an image that holds what changed since another image, its parent.
pub const VERSION_CHANGES: u32 = 2;
/// In a table of changes: the page is as in the parent.
pub const AS_BEFORE: u32 = 0;
/// In a table of changes: the page is zero.
pub const ZERO: u32 = 1;
/// The most images of a chain: a full one and those that hold changes.
pub const CHAIN_MAX: usize = 64;
/// Each block's pages begin at a multiple of this.
pub const ALIGN: u64 = 2 << 20;
/// Pages whose checksums make one piece of a table: 64 KiB of it, for 64 MiB of the guest.
pub const PIECE_PAGES: u64 = 16 * 1024;
/// The longest index: that of a guest of 1 PiB.
pub const INDEX_MAX: u64 = 64 << 20;
/// The most blobs.
pub const BLOBS_MAX: usize = 65_536;
/// The longest name of a blob, in bytes.
pub const BLOB_NAME_MAX: usize = 128;

/// The header: where the index is, how long the file is, and which image it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHeader {
    /// How long the file is.
    pub file_length: u64,
    /// Where the index begins; it ends with the file.
    pub index_offset: u64,
    /// The index's checksum.
    pub index_sum: u32,
    /// Random, so that two images with the same contents are two images; 0 in an image of older
    /// software.
    pub number: [u8; 16],
    /// Zero pages read as zeros in the file, so that the file may be mapped as memory.
    pub zeros: bool,
    /// The image whose changes this one holds. `None`: it holds all of memory.
    pub parent: Option<Parent>,
}

/// One block, and where it is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Its name.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// Size of the host's pages behind the block when it was saved.
    pub page_size: u64,
    /// Whether the guest cannot write it.
    pub rom: bool,
    /// Whether its table says what changed since the parent: see [`AS_BEFORE`].
    pub changes: bool,
    /// Offset of the block's first page. Page `n` is `n * 4096` bytes further on. The block's table
    /// of checksums follows the last page.
    pub offset: u64,
    /// The checksum of each piece of the block's table.
    pub pieces: Vec<u32>,
}

impl BlockEntry {
    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.length / PAGE_SIZE
    }

    /// Where its table of checksums begins.
    pub fn table(&self) -> u64 {
        self.offset + self.length
    }

    /// Where the table ends.
    pub fn end(&self) -> u64 {
        self.table() + table_length(self.pages())
    }
}

/// When a blob is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobKind {
    /// Before the memory layouts are compared.
    Early = 1,
    /// After all pages have been restored.
    State = 2,
    /// The state of a device, in pieces that follow one another: after all pages, before
    /// [`BlobKind::State`].
    Device = 3,
}

/// One blob of the VMM's, and where it is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// When it is loaded.
    pub kind: BlobKind,
    /// The blob's name.
    pub name: String,
    /// Tells blobs of one name apart.
    pub instance: u32,
    /// The VMM's version of the blob's format.
    pub version: u32,
    /// Where it is.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// Its checksum.
    pub sum: u32,
}

/// The index: the image's blocks and blobs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Index {
    /// The guest's blocks, in the order in which they lie in the file.
    pub blocks: Vec<BlockEntry>,
    /// The VMM's blobs, in the order of saving.
    pub blobs: Vec<BlobEntry>,
}

/// Length in bytes of the table of a block of `pages` pages, rounded up to a whole page.
pub fn table_length(pages: u64) -> u64 {
    Bytes(pages * 4).pages_up().bytes().0
}

/// The number of pieces of such a table.
pub fn piece_count(pages: u64) -> u64 {
    pages.div_ceil(PIECE_PAGES)
}

/// The table's checksum of a page with the contents `page`. It is never 0, because 0 in a table
/// means a zero page.
pub fn page_sum(page: &[u8]) -> u32 {
    match crc32fast::hash(page) {
        0 => u32::MAX,
        sum => sum,
    }
}

/// The checksum of a page in a table of changes. It is neither [`AS_BEFORE`] nor [`ZERO`].
pub fn change_sum(page: &[u8]) -> u32 {
    match page_sum(page) {
        ZERO => u32::MAX - 1,
        sum => sum,
    }
}

/// Whether a page with the contents `page` can have the checksum `sum` in a table of either kind.
pub fn sum_fits(sum: u32, page: &[u8]) -> bool {
    let found = page_sum(page);
    found == sum || (found == ZERO && sum == u32::MAX - 1)
}

/// An error about a place in the file.
fn wrong(message: String) -> Error {
    Error::new(Kind::Image, message)
}

impl ImageHeader {
    /// Encodes to bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0u8; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        let version = match self.parent {
            None => VERSION,
            Some(_) => VERSION_CHANGES,
        };
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[12] = u8::from(self.zeros);
        bytes[16..24].copy_from_slice(&self.file_length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.index_sum.to_le_bytes());
        put_number(&self.number, &mut bytes);
        if let Some(parent) = &self.parent {
            parent.encode(&mut bytes);
        }
        let sum = crc32fast::hash(&bytes[..HEADER_SUM]);
        bytes[HEADER_SUM..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Decodes the header from the first bytes of a file of `length` bytes: one page, or fewer if
    /// the file is shorter.
    ///
    /// # Errors
    /// [`Kind::Image`] for a file that is not an image, or not a whole one. [`Kind::Version`] for
    /// an image of another version.
    pub fn decode(bytes: &[u8], length: u64) -> Result<ImageHeader> {
        let magic = bytes.get(..8);
        if magic != Some(&MAGIC) {
            let found = &bytes[..bytes.len().min(8)];
            return Err(wrong(format!(
                "it is no image: expected the bytes {MAGIC:02x?} at its beginning, found {found:02x?}"
            )));
        }
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(wrong(format!(
                "it is cut off: expected a header of {HEADER_LEN} bytes, found {} bytes",
                bytes.len()
            )));
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        // A later version may keep its checksum in another place.
        let version = word(8);
        if version != VERSION && version != VERSION_CHANGES {
            return Err(Error::new(
                Kind::Version,
                format!(
                    "it has version {version} of the format, and this software reads versions \
                     {VERSION} and {VERSION_CHANGES}"
                ),
            ));
        }
        let (found, expected) = (word(HEADER_SUM), crc32fast::hash(&bytes[..HEADER_SUM]));
        if found != expected {
            return Err(wrong(format!(
                "its header is damaged: expected checksum {expected:08x} at offset {HEADER_SUM}, \
                 found {found:08x}"
            )));
        }
        let header = ImageHeader {
            file_length: long(16),
            index_offset: long(24),
            index_sum: word(32),
            number: ImageId::of(bytes).number,
            zeros: word(12) & 1 != 0,
            parent: match version {
                VERSION => None,
                _ => Some(Parent::decode(bytes)?),
            },
        };
        if header.file_length != length {
            return Err(wrong(format!(
                "it has been cut or has grown: expected {} bytes, found {length}",
                header.file_length
            )));
        }
        let index = length.checked_sub(header.index_offset);
        if header.index_offset < HEADER_LEN as u64 || index.is_none_or(|l| l > INDEX_MAX) {
            return Err(wrong(format!(
                "its index begins at {} of {length} bytes; expected {HEADER_LEN} or more, and at \
                 most {INDEX_MAX} bytes before the end",
                header.index_offset
            )));
        }
        Ok(header)
    }
}

/// A byte vector that grows fallibly.
#[derive(Default)]
struct Bytewise(Vec<u8>);

impl Bytewise {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        fallible::reserve(&mut self.0, bytes.len(), "an image's index")?;
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn name(&mut self, name: &str) -> Result<()> {
        self.put(&(name.len() as u16).to_le_bytes())?;
        self.put(name.as_bytes())
    }
}

/// Reads an index from its front.
struct Fields<'a> {
    rest: &'a [u8],
    /// The offset in the file of the next byte.
    at: u64,
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(wrong(format!(
                "its index ends too soon: expected {what} ({count} bytes) at offset {}, found {} bytes",
                self.at,
                self.rest.len()
            )));
        };
        self.rest = rest;
        self.at += count as u64;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn u16(&mut self, what: &str) -> Result<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count of entries that take `least` bytes or more each. A count that the rest of the
    /// index cannot hold is refused, before memory for it is allocated.
    fn count(&mut self, what: &str, most: usize, least: usize) -> Result<usize> {
        let at = self.at;
        let count = self.u32(what)? as usize;
        let most = most.min(self.rest.len() / least);
        if count > most {
            return Err(wrong(format!(
                "its index says at offset {at} that there are {count} {what}; expected {most} at most"
            )));
        }
        Ok(count)
    }

    fn name(&mut self, what: &str, most: usize) -> Result<String> {
        let at = self.at;
        let length = usize::from(self.u16(what)?);
        if length == 0 || length > most {
            return Err(wrong(format!(
                "{what} at offset {at} of its index: expected 1 to {most} bytes, found {length}"
            )));
        }
        let name = std::str::from_utf8(self.take(length, what)?).ok();
        name.filter(|name| !name.chars().any(char::is_control))
            .map(str::to_owned)
            .ok_or_else(|| {
                wrong(format!(
                    "{what} at offset {at} of its index: expected UTF-8 without control characters"
                ))
            })
    }
}

/// The fewest bytes that a block, and a blob, takes in an index.
const BLOCK_LEAST: usize = 8 * 3 + 4 + 2 + 1 + 4;
const BLOB_LEAST: usize = 4 * 3 + 8 * 2 + 4 + 2 + 1;

impl Index {
    /// Encodes to bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an index that is too long; [`Kind::NoMemory`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut to = Bytewise::default();
        to.put(&(self.blocks.len() as u32).to_le_bytes())?;
        for block in &self.blocks {
            to.put(&block.length.to_le_bytes())?;
            to.put(&block.page_size.to_le_bytes())?;
            to.put(&block.offset.to_le_bytes())?;
            let flags = u32::from(block.rom) | u32::from(block.changes) << 1;
            to.put(&flags.to_le_bytes())?;
            to.name(&block.name)?;
            for piece in &block.pieces {
                to.put(&piece.to_le_bytes())?;
            }
        }
        to.put(&(self.blobs.len() as u32).to_le_bytes())?;
        for blob in &self.blobs {
            to.put(&(blob.kind as u32).to_le_bytes())?;
            to.put(&blob.instance.to_le_bytes())?;
            to.put(&blob.version.to_le_bytes())?;
            to.put(&blob.offset.to_le_bytes())?;
            to.put(&blob.length.to_le_bytes())?;
            to.put(&blob.sum.to_le_bytes())?;
            to.name(&blob.name)?;
        }
        if to.0.len() as u64 > INDEX_MAX {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "the index of an image has at most {INDEX_MAX} bytes, that of this guest has {}",
                    to.0.len()
                ),
            ));
        }
        Ok(to.0)
    }

    /// Decodes the index from the bytes at `header.index_offset` up to the end of the file.
    ///
    /// # Errors
    /// [`Kind::Image`] for an index that contradicts itself or the header.
    pub fn decode(bytes: &[u8], header: &ImageHeader) -> Result<Index> {
        let found = crc32fast::hash(bytes);
        if found != header.index_sum {
            return Err(wrong(format!(
                "its index at offset {} is damaged: expected checksum {:08x}, found {found:08x}",
                header.index_offset, header.index_sum
            )));
        }
        let mut from = Fields {
            rest: bytes,
            at: header.index_offset,
        };
        let mut index = Index::default();
        // Each area must begin behind the area before it, and end before the index.
        let mut free = HEADER_LEN as u64;
        let count = from.count("blocks", BLOCKS_MAX, BLOCK_LEAST)?;
        fallible::reserve(&mut index.blocks, count, "an image's blocks")?;
        for _ in 0..count {
            let block = block(&mut from, header.parent.is_some())?;
            if block.offset % ALIGN != 0 || block.offset < free || block.end() > header.index_offset
            {
                return Err(wrong(format!(
                    "block `{}`: expected its {} bytes and their checksums at a multiple of {ALIGN} \
                     from {free} on and before {}, found them at {}",
                    block.name, block.length, header.index_offset, block.offset
                )));
            }
            if index.blocks.iter().any(|b| b.name == block.name) {
                return Err(wrong(format!("it has two blocks `{}`", block.name)));
            }
            free = block.end();
            index.blocks.push(block);
        }
        let count = from.count("blobs", BLOBS_MAX, BLOB_LEAST)?;
        fallible::reserve(&mut index.blobs, count, "an image's blobs")?;
        for _ in 0..count {
            let blob = blob(&mut from)?;
            let end = blob.offset.checked_add(blob.length);
            if blob.offset < free || end.is_none_or(|end| end > header.index_offset) {
                return Err(wrong(format!(
                    "blob `{}`: expected its {} bytes from {free} on and before {}, found them at {}",
                    blob.name, blob.length, header.index_offset, blob.offset
                )));
            }
            free = blob.offset + blob.length;
            index.blobs.push(blob);
        }
        if !from.rest.is_empty() {
            return Err(wrong(format!(
                "{} bytes of its index are left over at offset {}",
                from.rest.len(),
                from.at
            )));
        }
        Ok(index)
    }
}

fn block(from: &mut Fields<'_>, has_parent: bool) -> Result<BlockEntry> {
    let flags_max = if has_parent { 3 } else { 1 };
    let at = from.at;
    let (length, page_size) = (from.u64("a length")?, from.u64("a page size")?);
    let (offset, flags) = (from.u64("a place")?, from.u32("flags")?);
    let name = from.name("a block's name", NAME_MAX)?;
    let pages = Bytes(length).pages_down().0;
    let fits = page_size.is_power_of_two()
        && (PAGE_SIZE..=1 << 30).contains(&page_size)
        && length != 0
        && length % page_size == 0
        && pages <= PAGES_MAX
        && offset <= i64::MAX as u64 / 2;
    if !fits || flags > flags_max {
        return Err(wrong(format!(
            "block `{name}` at offset {at} of its index: expected a length that is a multiple of the \
             page size, 4 KiB to 1 GiB, and flags of at most {flags_max}; found {length} bytes in pages of \
             {page_size}, at {offset}, flags {flags}"
        )));
    }
    let count = piece_count(pages) as usize;
    let bytes = from.take(count.saturating_mul(4), "checksums of a table")?;
    let words = bytes.chunks_exact(4);
    let pieces = words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    Ok(BlockEntry {
        name,
        length,
        page_size,
        rom: flags & 1 != 0,
        changes: flags & 2 != 0,
        offset,
        pieces: fallible::collect(pieces, "an image's checksums")?,
    })
}

fn blob(from: &mut Fields<'_>) -> Result<BlobEntry> {
    let at = from.at;
    let kind = match from.u32("a blob's kind")? {
        1 => BlobKind::Early,
        2 => BlobKind::State,
        3 => BlobKind::Device,
        other => {
            return Err(wrong(format!(
                "a blob at offset {at} of its index: expected kind 1, 2 or 3, found {other}"
            )))
        }
    };
    Ok(BlobEntry {
        kind,
        instance: from.u32("a blob's instance")?,
        version: from.u32("a blob's version")?,
        offset: from.u64("a place")?,
        length: from.u64("a length")?,
        sum: from.u32("a checksum")?,
        name: from.name("a blob's name", BLOB_NAME_MAX)?,
    })
}

#[cfg(test)]
mod tests;
