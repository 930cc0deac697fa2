//! The header at the beginning of every record: 32 bytes with a checksum.
//!
//! It says which record follows, and how long it is. Everything that can be refused by the header
//! alone is refused here. Payload layouts are not known here. Senders and receivers of every
//! channel use this file.

use super::kind::{
    delta_table_len, list_len, RecordType, CHECKSUM_LEN, DELTA_PAGES_MAX, LIST_PAGES_MAX,
    LIST_RUNS_MAX, SKIPPED_PAYLOAD_MAX,
};
use crate::error::{Error, Kind, Result};
use crate::units::{Pages, PAGE_SIZE, STRETCH_PAGES};

/// Bytes in an encoded header.
pub const HEADER_LEN: usize = 32;
/// The first four bytes of every record: "BRNT".
pub const MAGIC: u32 = u32::from_le_bytes(*b"BRNT");
/// Flag bit 0: a receiver that does not know the type skips the record.
pub const FLAG_SKIPPABLE: u16 = 1;

/// The bytes that the checksum covers: all before it.
const CHECKED_LEN: usize = 28;

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// The type's number, which this version may not know.
    pub kind: u16,
    /// [`FLAG_SKIPPABLE`] or nothing.
    pub flags: u16,
    /// The block's id, if the type is about a block; else 0.
    pub block: u32,
    /// For a page run and for DELTA, the pages. For a list of runs, the number of runs. For every
    /// other record, the CRC-32 of its payload (0 without one).
    pub count: u32,
    /// The run's first page, counted from the block's beginning; 0 for all records but page runs.
    pub first_page: u64,
    /// How many bytes follow the header.
    pub payload: u32,
}

fn protocol(message: String) -> Error {
    Error::new(Kind::Protocol, message)
}

impl Header {
    /// The header of a control record or blob. `payload` bytes follow, and the caller puts their
    /// checksum into [`Header::count`].
    pub fn control(kind: RecordType, block: u32, payload: u32) -> Header {
        Header {
            kind: kind.number(),
            flags: if kind.is_skippable() {
                FLAG_SKIPPABLE
            } else {
                0
            },
            block,
            count: 0,
            first_page: 0,
            payload,
        }
    }

    /// The header of a PAGES record; `count` times 4096 raw bytes follow.
    ///
    /// The caller keeps the rules of [`Header::check_run`]. Every receiver refuses a header whose
    /// count goes beyond a stretch.
    pub fn pages(block: u32, first_page: Pages, count: u32) -> Header {
        Header {
            kind: RecordType::Pages.number(),
            flags: 0,
            block,
            count,
            first_page: first_page.0,
            payload: count.saturating_mul(PAGE_SIZE as u32),
        }
    }

    /// The header of a PAGES record whose contents have a checksum behind them, [`CHECKSUM_LEN`]
    /// bytes: their CRC-32.
    pub fn checked_pages(block: u32, first_page: Pages, count: u32) -> Header {
        let pages = Header::pages(block, first_page, count);
        Header {
            payload: pages.payload.saturating_add(CHECKSUM_LEN as u32),
            ..pages
        }
    }

    /// The header of a COMPRESSED record: the CRC-32 of the pages' contents follows it, and a zstd
    /// frame of them, `frame` bytes, fewer than the pages have.
    pub fn compressed(block: u32, first_page: Pages, count: u32, frame: u32) -> Header {
        Header {
            kind: RecordType::Compressed.number(),
            payload: frame.saturating_add(CHECKSUM_LEN as u32),
            ..Header::zeros(block, first_page, count)
        }
    }

    /// The header of a ZEROS record, which has no payload.
    pub fn zeros(block: u32, first_page: Pages, count: u32) -> Header {
        Header {
            kind: RecordType::Zeros.number(),
            flags: 0,
            block,
            count,
            first_page: first_page.0,
            payload: 0,
        }
    }

    /// The header of a BALLOONED record, which has no payload.
    pub fn ballooned(block: u32, first_page: Pages, count: u32) -> Header {
        Header {
            kind: RecordType::Ballooned.number(),
            ..Header::zeros(block, first_page, count)
        }
    }

    /// The header's bytes on the wire, with the checksum.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0u8; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.block.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_page.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..CHECKED_LEN]);
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header, of a known type or not.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for a wrong magic, a wrong checksum, or a flag without a meaning.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let magic = u32_at(0);
        if magic != MAGIC {
            return Err(protocol(format!(
                "record header: expected the magic \"BRNT\" ({MAGIC:#010x}), found {magic:#010x}: \
                 the peer does not speak this protocol, or the stream is out of step"
            )));
        }
        let expected = crc32fast::hash(&bytes[..CHECKED_LEN]);
        let found = u32_at(28);
        if found != expected {
            return Err(protocol(format!(
                "record header: expected the checksum {expected:#010x}, found {found:#010x}"
            )));
        }
        let header = Header {
            kind: u16_at(4),
            flags: u16_at(6),
            block: u32_at(8),
            count: u32_at(12),
            first_page: u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32,
            payload: u32_at(24),
        };
        if header.flags & !FLAG_SKIPPABLE != 0 {
            return Err(protocol(format!(
                "{}: expected no header flags but {FLAG_SKIPPABLE:#x} (skippable), found {:#x}",
                header.name(),
                header.flags
            )));
        }
        Ok(header)
    }

    /// The type, or `None` for a record to skip, whose payload is read and dropped.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for an unknown type without the skippable flag, and for a known type
    /// whose flag differs from its type's.
    pub fn record_type(&self) -> Result<Option<RecordType>> {
        let skippable = self.flags & FLAG_SKIPPABLE != 0;
        match RecordType::from_number(self.kind) {
            Some(kind) if kind.is_skippable() == skippable => Ok(Some(kind)),
            Some(kind) => Err(protocol(format!(
                "{}: expected the skippable flag to be {}, found {}",
                kind.name(),
                u8::from(kind.is_skippable()),
                u8::from(skippable)
            ))),
            None if skippable => Ok(None),
            None => Err(protocol(format!(
                "expected a record type this version knows (1 to {}) or one that may be skipped, \
                 found type {}",
                RecordType::ALL.last().map_or(0, |last| last.number()),
                self.kind
            ))),
        }
    }

    /// Whether a record of this type can have the announced payload. Check this before anything is
    /// read or allocated for it.
    ///
    /// # Errors
    /// [`Kind::Protocol`] with the limits and the announced length; and the errors of
    /// [`Header::record_type`].
    pub fn check_payload_limit(&self) -> Result<()> {
        let kind = self.record_type()?;
        let (least, most) = match kind {
            // The run's own length decides, and its limits follow.
            Some(RecordType::Pages) => {
                if !(1..=STRETCH_PAGES).contains(&u64::from(self.count)) {
                    return Err(protocol(format!(
                        "PAGES: expected 1 to {STRETCH_PAGES} pages, found {}",
                        self.count
                    )));
                }
                let exact = self.count * PAGE_SIZE as u32 + self.checksum_len();
                (exact, exact)
            }
            // A frame is shorter than its pages, else they come as they are.
            Some(kind @ RecordType::Compressed) => {
                if !(1..=STRETCH_PAGES).contains(&u64::from(self.count)) {
                    return Err(protocol(format!(
                        "COMPRESSED: expected 1 to {STRETCH_PAGES} pages, found {}",
                        self.count
                    )));
                }
                let (least, _) = kind.payload_limits();
                (
                    least,
                    CHECKSUM_LEN as u32 + self.count * PAGE_SIZE as u32 - 1,
                )
            }
            Some(kind) if kind.is_list() => {
                if !(1..=LIST_RUNS_MAX).contains(&self.count) {
                    return Err(protocol(format!(
                        "{}: expected 1 to {LIST_RUNS_MAX} runs, found {}",
                        kind.name(),
                        self.count
                    )));
                }
                let list = list_len(self.count) as u32;
                if kind == RecordType::ZerosList {
                    (list, list)
                } else if kind == RecordType::CompressedList {
                    // The list says how many pages the frame stands for.
                    let pages = LIST_PAGES_MAX * PAGE_SIZE as u32;
                    (
                        list + CHECKSUM_LEN as u32 + 1,
                        list + CHECKSUM_LEN as u32 + pages - 1,
                    )
                } else {
                    // Whole pages, at least one for each run. A payload of no such length is refused
                    // by both limits.
                    let pages = self.payload.wrapping_sub(list) / PAGE_SIZE as u32;
                    let pages = pages.clamp(self.count, LIST_PAGES_MAX);
                    let exact = list + pages * PAGE_SIZE as u32 + self.checksum_len();
                    (exact, exact)
                }
            }
            Some(RecordType::Delta) => {
                if !(1..=DELTA_PAGES_MAX).contains(&self.count) {
                    return Err(protocol(format!(
                        "DELTA: expected 1 to {DELTA_PAGES_MAX} pages, found {}",
                        self.count
                    )));
                }
                let table = delta_table_len(self.count) as u32;
                (table, table + self.count * PAGE_SIZE as u32)
            }
            Some(kind) => kind.payload_limits(),
            None => (0, SKIPPED_PAYLOAD_MAX),
        };
        if self.payload < least || self.payload > most {
            let expected = if least == most {
                format!("{least}")
            } else {
                format!("{least} to {most}")
            };
            return Err(protocol(format!(
                "{}: expected a payload of {expected} bytes, found {}",
                self.name(),
                self.payload
            )));
        }
        Ok(())
    }

    /// [`Header::record_type`], after [`Header::check_payload_limit`] and the check that fields
    /// without a use in the type are zero. These are all checks of a header alone. `None` means
    /// skip.
    ///
    /// # Errors
    /// [`Kind::Protocol`].
    pub fn classify(&self) -> Result<Option<RecordType>> {
        self.check_payload_limit()?;
        let kind = self.record_type()?;
        if let Some(kind) = kind {
            let run_fields = kind.is_page_run() || self.first_page == 0;
            let block_field = kind.uses_block() || self.block == 0;
            if !run_fields || !block_field {
                return Err(protocol(format!(
                    "{}: expected zero in the header fields it does not use, found block {}, first \
                     page {}",
                    kind.name(),
                    self.block,
                    self.first_page
                )));
            }
        }
        Ok(kind)
    }

    /// Whether `payload` is what was sent: all bytes behind the header of a control record, of a blob
    /// or of a piece of a device's state. A flipped bit in device state is as dangerous as one in a
    /// guest page, and is noticed more rarely, because no other check covers it.
    ///
    /// # Errors
    /// [`Kind::Protocol`] with both checksums.
    pub fn check_payload(&self, payload: &[u8]) -> Result<()> {
        let found = crc32fast::hash(payload);
        if found == self.count {
            return Ok(());
        }
        Err(protocol(format!(
            "{}: expected a payload with the checksum {:#010x}, found {found:#010x}: it was damaged \
             on its way",
            self.name(),
            self.count
        )))
    }

    /// The contents in `payload`, if they are what was sent. `payload` is all that follows the
    /// header of a PAGES with a checksum, or the list of a PAGES_LIST with one.
    ///
    /// # Errors
    /// [`Kind::Protocol`] with the pages and both checksums.
    pub fn check_contents<'p>(&self, payload: &'p [u8]) -> Result<&'p [u8]> {
        let Some((contents, sum)) = payload.split_last_chunk::<CHECKSUM_LEN>() else {
            return Err(protocol(format!("{}: no checksum", self.name())));
        };
        let (expected, found) = (u32::from_le_bytes(*sum), crc32fast::hash(contents));
        if expected == found {
            return Ok(contents);
        }
        Err(self.damaged(expected, found))
    }

    /// The error for contents with the checksum `found` where `expected` was said.
    pub fn damaged(&self, expected: u32, found: u32) -> Error {
        protocol(format!(
            "{}: {}: expected contents with the checksum {expected:#010x}, found {found:#010x}: they \
             were damaged on their way",
            self.name(),
            self.pages_in_words()
        ))
    }

    /// The pages of a run, or of a list of runs, for a message.
    pub fn pages_in_words(&self) -> String {
        let (first, count) = (self.first_page, u64::from(self.count));
        match RecordType::from_number(self.kind) {
            Some(RecordType::PagesList) => {
                format!("{} pages from page {first} on", self.data_pages())
            }
            Some(RecordType::CompressedList) => {
                format!("{count} runs of pages from page {first} on")
            }
            _ => format!(
                "pages {first} to {}",
                first.saturating_add(count.saturating_sub(1))
            ),
        }
    }

    /// Whether this page run lies inside a block of `block_pages` and inside one stretch, with the
    /// payload of its type. After this check, the pages `first_page .. first_page + count` may be
    /// used as indexes.
    ///
    /// A run never crosses a stretch, because each stretch belongs to one channel. So an older
    /// version of a page never arrives last.
    ///
    /// # Errors
    /// [`Kind::Protocol`], with the block, what was expected and what was found.
    pub fn check_run(&self, block_pages: Pages) -> Result<()> {
        let refuse = |expected: String| {
            protocol(format!(
                "{}: block {}: expected {expected}, found {} pages from page {} with a payload of {} bytes",
                self.name(),
                self.block,
                self.count,
                self.first_page,
                self.payload
            ))
        };
        let payload = match self.record_type()? {
            Some(RecordType::Pages) => {
                u64::from(self.count) * PAGE_SIZE + u64::from(self.checksum_len())
            }
            Some(RecordType::Zeros | RecordType::Ballooned) => 0,
            Some(RecordType::Compressed) => {
                self.check_payload_limit()?;
                u64::from(self.payload)
            }
            _ => return Err(refuse("PAGES, ZEROS, BALLOONED or COMPRESSED".into())),
        };
        if self.count == 0 {
            return Err(refuse("at least one page".into()));
        }
        let end = match self.first_page.checked_add(u64::from(self.count)) {
            Some(end) if end <= block_pages.0 => end,
            _ => {
                return Err(refuse(format!(
                    "a run inside the block's {block_pages} pages"
                )))
            }
        };
        if self.first_page / STRETCH_PAGES != (end - 1) / STRETCH_PAGES {
            return Err(refuse(format!(
                "a run inside one aligned stretch of {STRETCH_PAGES} pages"
            )));
        }
        if u64::from(self.payload) != payload {
            return Err(refuse(format!("a payload of {payload} bytes")));
        }
        Ok(())
    }

    /// Whether this is a PAGES or PAGES_LIST with a checksum behind its contents. Then its payload
    /// is longer by the checksum than whole pages, and the list, take.
    pub fn is_checked(&self) -> bool {
        self.checksum_len() != 0
    }

    fn checksum_len(&self) -> u32 {
        let before = match RecordType::from_number(self.kind) {
            Some(RecordType::Pages) => 0,
            Some(RecordType::PagesList) if self.count <= LIST_RUNS_MAX => {
                list_len(self.count) as u32
            }
            _ => return 0,
        };
        match self.payload.wrapping_sub(before) % PAGE_SIZE as u32 {
            over if over == CHECKSUM_LEN as u32 => over,
            _ => 0,
        }
    }

    /// The record's name in messages.
    fn name(&self) -> String {
        match RecordType::from_number(self.kind) {
            Some(kind) => kind.name().into(),
            None => format!("record of type {}", self.kind),
        }
    }
}
