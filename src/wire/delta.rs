//! DELTA: pages as what has changed in them since their last version, many of them in one record.
//!
//! A sparse change of a page is a few bytes, so a record for each page would be mostly header. The
//! payload begins with a table of pages, and their encodings follow it in the same order. The
//! encoding is [`crate::page::delta`]'s; this file only carries it. One checksum covers all of the
//! payload, and each page has the checksum of the version that it was encoded against: a delta on
//! any other version would give a page that never was. Encoder and page sink call it.

use super::header::{Header, HEADER_LEN};
use super::kind::{delta_table_len, RecordType, DELTA_PAGES_MAX};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::{Pages, PAGE_SIZE};

const CHECKSUM: usize = 4;
const ENTRY: usize = super::kind::DELTA_ENTRY;

/// One page of a DELTA record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// Its number in the block.
    pub page: Pages,
    /// The CRC-32 of the version that the encoding is a change of.
    pub base: u32,
    /// At most 4,096 bytes.
    pub encoding: &'a [u8],
}

/// Appends a whole DELTA record to `out`. Its pages ascend, and none is further than 2^32 pages from
/// the first; there are 1 to [`DELTA_PAGES_MAX`] of them. What breaks a rule, every receiver refuses.
/// On an error `out` is as it was.
///
/// # Errors
/// [`Kind::NoMemory`].
pub fn encode_delta<'a>(
    block: u32,
    pages: impl ExactSizeIterator<Item = Delta<'a>> + Clone,
    out: &mut Vec<u8>,
) -> Result<()> {
    let count = pages.len() as u32;
    let encodings: usize = pages.clone().map(|page| page.encoding.len()).sum();
    let payload = delta_table_len(count) + encodings;
    fallible::reserve(out, HEADER_LEN + payload, "changed pages")?;
    let first = pages.clone().next().map_or(Pages(0), |page| page.page);
    let header = Header {
        kind: RecordType::Delta.number(),
        flags: 0,
        block,
        count,
        first_page: first.0,
        payload: payload as u32,
    };
    out.extend_from_slice(&header.encode());
    let checksum = out.len();
    out.extend_from_slice(&[0; CHECKSUM]);
    for page in pages.clone() {
        out.extend_from_slice(&((page.page.0 - first.0) as u32).to_le_bytes());
        out.extend_from_slice(&page.base.to_le_bytes());
        out.extend_from_slice(&(page.encoding.len() as u16).to_le_bytes());
    }
    for page in pages {
        out.extend_from_slice(page.encoding);
    }
    let sum = crc32fast::hash(&out[checksum + CHECKSUM..]);
    out[checksum..checksum + CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// The pages of a DELTA record whose payload is `payload`, for a block of `block_pages`, in order. All
/// of the record is checked before the first is returned, but not whether an encoding is one.
///
/// # Errors
/// [`Kind::Protocol`] for a record that is damaged, or that breaks a rule of [`encode_delta`].
pub fn decode_delta<'a>(
    header: &Header,
    payload: &'a [u8],
    block_pages: Pages,
) -> Result<impl Iterator<Item = Delta<'a>>> {
    let refuse = |what: String| {
        Error::new(
            Kind::Protocol,
            format!("DELTA: block {}: {what}", header.block),
        )
    };
    match header.classify()? {
        Some(RecordType::Delta) => {}
        _ => return Err(refuse(format!("found type {}", header.kind))),
    }
    let table_len = delta_table_len(header.count);
    // The header's check left room for the table.
    if payload.len() != header.payload as usize || payload.len() < table_len {
        return Err(refuse(format!(
            "expected a payload of {} bytes, found {}",
            header.payload,
            payload.len()
        )));
    }
    let (sum, rest) = payload.split_at(CHECKSUM);
    let expected = sum.iter().rev().fold(0, |sum, b| sum << 8 | u32::from(*b));
    let found = crc32fast::hash(rest);
    if expected != found {
        return Err(refuse(format!(
            "expected a payload with the checksum {expected:#010x}, found {found:#010x}: it was \
             damaged on its way"
        )));
    }
    let (table, encodings) = rest.split_at(table_len - CHECKSUM);
    let mut after = 0;
    let mut bytes = 0;
    for (i, entry) in table.chunks_exact(ENTRY).enumerate() {
        let (offset, _, length) = entry_of(entry);
        let page = header.first_page.checked_add(u64::from(offset));
        let what = match page {
            None => "pages below 2^64".to_owned(),
            Some(page) if page >= block_pages.0 => {
                format!("a page inside the block's {block_pages} pages")
            }
            Some(page) if page < after || (i == 0 && offset != 0) => {
                format!("pages that ascend from page {} on", header.first_page)
            }
            Some(_) if length as u64 > PAGE_SIZE => {
                format!("an encoding of at most {PAGE_SIZE} bytes")
            }
            Some(page) => {
                after = page + 1;
                bytes += length;
                continue;
            }
        };
        return Err(refuse(format!(
            "page {i}: expected {what}, found {length} bytes for page {} + {offset}",
            header.first_page
        )));
    }
    if bytes != encodings.len() {
        return Err(refuse(format!(
            "expected encodings of {bytes} bytes, as the table says, found {}",
            encodings.len()
        )));
    }
    let first = header.first_page;
    let mut left = encodings;
    Ok(table.chunks_exact(ENTRY).map(move |entry| {
        let (offset, base, length) = entry_of(entry);
        let (encoding, rest) = left.split_at(length);
        left = rest;
        Delta {
            page: Pages(first + u64::from(offset)),
            base,
            encoding,
        }
    }))
}

/// Offset, checksum of the base, and length of an entry.
fn entry_of(entry: &[u8]) -> (u32, u32, usize) {
    let u32_at =
        |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    let length = u16::from_le_bytes([entry[8], entry[9]]);
    (u32_at(0), u32_at(4), usize::from(length))
}

const _: () = assert!(DELTA_PAGES_MAX as u64 * (PAGE_SIZE + ENTRY as u64) < 1 << 22);
