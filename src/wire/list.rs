//! PAGES_LIST, ZEROS_LIST and COMPRESSED_LIST: short runs of pages that lie apart, in one record.
//!
//! A guest that writes here and there leaves single dirty pages. With one record for each page, the
//! destination would make one read for each. So the record begins with a list of runs. In a
//! PAGES_LIST the contents of all runs follow in the same order, in a COMPRESSED_LIST one frame of
//! them; the pages of a ZEROS_LIST are zero.
//! The list has a checksum of its own, because it decides where contents go. The contents have one
//! if the sides agreed on it, as in PAGES. The encoder and the page sink use this file.

use super::header::{Header, HEADER_LEN};
use super::kind::{list_len, RecordType, CHECKSUM_LEN, LIST_PAGES_MAX};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::{Pages, PAGE_SIZE, STRETCH_PAGES};

const ENTRY: usize = 8;
const CHECKSUM: usize = 4;

impl Header {
    /// How many pages' contents this record carries: 0 unless it is a PAGES, PAGES_LIST, COMPRESSED or
    /// DELTA. Also 0 for a COMPRESSED_LIST: only its list tells ([`listed_pages`]).
    pub fn data_pages(&self) -> u64 {
        let list = match RecordType::from_number(self.kind) {
            Some(RecordType::CompressedList) => return 0,
            Some(RecordType::Compressed | RecordType::Delta) => return u64::from(self.count),
            Some(kind) if kind.is_list() => list_len(self.count) as u64,
            _ => 0,
        };
        u64::from(self.payload).saturating_sub(list) / PAGE_SIZE
    }
}

/// Appends header and list of a PAGES_LIST record to `out`. The caller sends the contents of `runs`
/// behind them, in the same order. The runs ascend. Each lies inside one stretch, and none is
/// further than 2^32 pages from the first. There are 1 to [`super::LIST_RUNS_MAX`] runs, of at most
/// [`super::LIST_PAGES_MAX`] pages together. Every receiver refuses a list that breaks a rule. On
/// an error `out` is unchanged.
///
/// # Errors
/// [`Kind::NoMemory`].
pub fn encode_list(
    block: u32,
    runs: impl ExactSizeIterator<Item = (Pages, u32)>,
    out: &mut Vec<u8>,
) -> Result<()> {
    encode(RecordType::PagesList, block, runs, 0, out)
}

/// The same where a checksum comes behind the contents, [`CHECKSUM_LEN`] bytes: their CRC-32.
///
/// # Errors
/// [`Kind::NoMemory`].
pub fn encode_checked_list(
    block: u32,
    runs: impl ExactSizeIterator<Item = (Pages, u32)>,
    out: &mut Vec<u8>,
) -> Result<()> {
    encode(RecordType::PagesList, block, runs, CHECKSUM_LEN as u32, out)
}

/// Appends a whole ZEROS_LIST record of `runs`, which keep to the rules of [`encode_list`].
///
/// # Errors
/// [`Kind::NoMemory`].
pub fn encode_zeros_list(
    block: u32,
    runs: impl ExactSizeIterator<Item = (Pages, u32)>,
    out: &mut Vec<u8>,
) -> Result<()> {
    encode(RecordType::ZerosList, block, runs, 0, out)
}

/// Appends header and list of a COMPRESSED_LIST record to `out`. The caller sends the CRC-32 of the
/// contents of all runs behind them, and then the zstd frame of these contents, `frame` bytes, fewer
/// than the pages have. The runs keep to the rules of [`encode_list`].
///
/// # Errors
/// [`Kind::NoMemory`].
pub fn encode_compressed_list(
    block: u32,
    runs: impl ExactSizeIterator<Item = (Pages, u32)>,
    frame: u32,
    out: &mut Vec<u8>,
) -> Result<()> {
    let behind = frame.saturating_add(CHECKSUM_LEN as u32);
    encode(RecordType::CompressedList, block, runs, behind, out)
}

fn encode(
    kind: RecordType,
    block: u32,
    runs: impl ExactSizeIterator<Item = (Pages, u32)>,
    behind: u32,
    out: &mut Vec<u8>,
) -> Result<()> {
    let count = runs.len() as u32;
    fallible::reserve(out, HEADER_LEN + list_len(count), "a list of pages")?;
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let (mut base, mut pages) = (None, 0u32);
    for (first, length) in runs {
        let base = *base.get_or_insert(first.0);
        out.extend_from_slice(&((first.0 - base) as u32).to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        pages += length;
    }
    let sum = crc32fast::hash(&out[start + HEADER_LEN..]);
    out.extend_from_slice(&sum.to_le_bytes());
    let contents = match kind {
        RecordType::PagesList => pages * PAGE_SIZE as u32 + behind,
        _ => behind,
    };
    let header = Header {
        kind: kind.number(),
        flags: 0,
        block,
        count,
        first_page: base.unwrap_or(0),
        payload: (list_len(count) as u32).saturating_add(contents),
    };
    out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
    Ok(())
}

/// How many pages a list has that [`decode_list`] has accepted.
pub fn listed_pages(list: &[u8]) -> u64 {
    let entries = list.chunks_exact(ENTRY);
    let length = |entry: &[u8]| {
        entry
            .last_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    entries.map(|entry| u64::from(length(entry))).sum()
}

/// Calls `run` with the first page and the length of each run of `list`, in a block of
/// `block_pages`. [`list_len`] tells the length of the list.
///
/// # Errors
/// [`Kind::Protocol`] for a list that is damaged, breaks a rule of [`encode_list`], or differs from
/// the header; and the errors of `run`.
pub fn decode_list(
    header: &Header,
    list: &[u8],
    block_pages: Pages,
    mut run: impl FnMut(Pages, u32) -> Result<()>,
) -> Result<()> {
    let kind = header.classify()?.filter(|kind| kind.is_list());
    let refuse = |what: String| {
        let name = kind.map_or("a list of pages", RecordType::name);
        Error::new(
            Kind::Protocol,
            format!("{name}: block {}: {what}", header.block),
        )
    };
    if kind.is_none() {
        return Err(refuse(format!("found type {}", header.kind)));
    }
    let runs = header.count as usize;
    let whole = list.split_last_chunk::<CHECKSUM>();
    let Some((entries, sum)) = whole.filter(|(entries, _)| entries.len() == runs * ENTRY) else {
        return Err(refuse(format!(
            "expected a list of {} bytes, found {}",
            list_len(header.count),
            list.len()
        )));
    };
    let (expected, found) = (u32::from_le_bytes(*sum), crc32fast::hash(entries));
    if expected != found {
        return Err(refuse(format!(
            "expected a list with the checksum {expected:#010x}, found {found:#010x}: it was damaged \
             on its way"
        )));
    }
    let mut after = header.first_page;
    let mut pages = 0u64;
    for (i, entry) in entries.chunks_exact(ENTRY).enumerate() {
        let field = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let (offset, length) = (field(0), field(4));
        let first = header.first_page.checked_add(u64::from(offset));
        let end = first.and_then(|first| first.checked_add(u64::from(length)));
        let (Some(first), Some(end)) = (first, end) else {
            return Err(refuse(format!("run {i}: expected pages below 2^64")));
        };
        let what = if length == 0 {
            "at least one page".to_owned()
        } else if end > block_pages.0 {
            format!("a run inside the block's {block_pages} pages")
        } else if first / STRETCH_PAGES != (end - 1) / STRETCH_PAGES {
            format!("a run inside one aligned stretch of {STRETCH_PAGES} pages")
        } else if first < after || (i == 0 && offset != 0) {
            format!("runs that ascend from page {} on", header.first_page)
        } else {
            pages += u64::from(length);
            after = end;
            run(Pages(first), length)?;
            continue;
        };
        return Err(refuse(format!(
            "run {i}: expected {what}, found {length} pages from page {first}"
        )));
    }
    if kind == Some(RecordType::PagesList) {
        return match pages == header.data_pages() {
            true => Ok(()),
            false => Err(refuse(format!(
                "expected runs of {} pages, as many as the payload has, found {pages}",
                header.data_pages()
            ))),
        };
    }
    if pages > u64::from(LIST_PAGES_MAX) {
        return Err(refuse(format!(
            "expected runs of at most {LIST_PAGES_MAX} pages, found {pages}"
        )));
    }
    // The header's check left room for list and checksum.
    let frame = (header.payload as usize).saturating_sub(list.len() + CHECKSUM_LEN) as u64;
    if kind == Some(RecordType::CompressedList) && frame >= pages * PAGE_SIZE {
        return Err(refuse(format!(
            "expected a frame that is shorter than the list's {pages} pages, found one of {frame} \
             bytes"
        )));
    }
    Ok(())
}
