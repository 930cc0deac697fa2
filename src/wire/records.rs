//! The payload of every record but page runs: its fields, their order and their limits.
//!
//! The rules of each record are stated once (`problem`) and applied both ways. When encoding, a
//! broken rule is the caller's fault ([`Kind::Invalid`]); when decoding, the peer's
//! ([`Kind::Protocol`]). `migrate` makes and reads these records, and knows the order in which they
//! may come.

use super::body::{Body, Checked};
use super::cursor::Reader;
use super::device::{DeviceLoaded, NamedDevice};
use super::digest::Digest;
use super::header::{Header, HEADER_LEN};
use super::kind::{RecordType, PAYLOAD_MAX};
use super::missing::{Complete, Missing, MissingEnd, Recover, RecoverReply, Request};
use super::text::{check_name, read_u8_text, write_u8_text};
use crate::error::{Error, Kind, Result};
use crate::units::PAGE_SIZE;

/// The session's token: the same on every connection, and repeated in HANDOVER.
pub type Token = [u8; 16];

/// The most connections that one session may have.
pub const CHANNELS_MAX: u16 = 64;
/// The most RAM blocks that one session may announce (KVM has 32,764 slots).
pub const BLOCKS_MAX: u32 = 4096;
/// The most blobs of state, and of early configuration, in one session.
pub const BLOBS_MAX: u32 = 65_536;
/// The longest time limit of a hand-over: an hour.
pub const HANDOVER_MILLIS_MAX: u32 = 3_600_000;
/// The longest prefix of a blob, in bytes; the data follows it.
pub const BLOB_PREFIX_MAX: usize = BLOB_FIXED_LEN + BLOB_NAME_MAX;
/// Block flag bit 0: the guest cannot write to the block, so it is sent once.
pub const BLOCK_FLAG_ROM: u32 = 1;
/// Marker flag bit 0: nothing follows on this channel; on channel 0, no page run and no piece of a
/// device's state.
pub const MARKER_FLAG_FINAL: u32 = 1;
/// Marker flag bit 1, only with the feature "device-streams": no page run follows on this channel,
/// and no piece of a running part. Pieces of stopped parts follow, and then the final marker.
pub const MARKER_FLAG_PAGES_END: u32 = 2;
/// Marker flag bit 2, only with the feature "postcopy": the pages of a guest that ran at the source end
/// here. Pages behind the marker are sent once each, and the first that arrives counts.
pub const MARKER_FLAG_POSTCOPY: u32 = 4;

const SOFTWARE_MAX: usize = 64;
const BLOCK_NAME_MAX: usize = 255;
const BLOB_NAME_MAX: usize = 128;
const REASON_MAX: usize = 1024;
/// Length of name, instance, version, length of data.
const BLOB_FIXED_LEN: usize = 1 + 4 + 4 + 8;
/// [`Hello::role`]: pages in the order of the walk and, on channel 0, everything that steers the
/// session.
pub const ROLE_BULK: u8 = 0;
/// [`Hello::role`]: pages that the destination has asked for and waits for. They must not queue
/// behind others.
pub const ROLE_URGENT: u8 = 1;

/// HELLO: opens a connection. Its layout is the same in every version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version that the source speaks; at least 1.
    pub version_min: u16,
    /// The newest version that the source speaks.
    pub version_max: u16,
    /// Features the source can use, as bits.
    pub features_offered: u64,
    /// Those of them that the source requires.
    pub features_required: u64,
    /// The token of the session to which the connection belongs.
    pub token: Token,
    /// The number of this connection in the session, from 0. The urgent connection has the number
    /// behind the last channel's: `channels`.
    pub channel: u16,
    /// How many channels the session has, 1 to [`CHANNELS_MAX`]. The urgent connection is none of them.
    pub channels: u16,
    /// log2 of the source's tracking page.
    pub page_shift: u8,
    /// The purpose of the connection: [`ROLE_BULK`] or [`ROLE_URGENT`]. Later versions may have
    /// others.
    pub role: u8,
    /// The name of the source's software, for messages only; at most 64 bytes.
    pub software: String,
}

impl Body for Hello {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version_min.to_le_bytes());
        out.extend_from_slice(&self.version_max.to_le_bytes());
        out.extend_from_slice(&self.features_offered.to_le_bytes());
        out.extend_from_slice(&self.features_required.to_le_bytes());
        out.extend_from_slice(&self.token);
        out.extend_from_slice(&self.channel.to_le_bytes());
        out.extend_from_slice(&self.channels.to_le_bytes());
        out.push(self.page_shift);
        out.push(self.role);
        write_u8_text(&self.software, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Hello {
            version_min: reader.u16("version_min")?,
            version_max: reader.u16("version_max")?,
            features_offered: reader.u64("features_offered")?,
            features_required: reader.u64("features_required")?,
            token: reader.array("token")?,
            channel: reader.u16("channel")?,
            channels: reader.u16("channels")?,
            page_shift: reader.u8("page_shift")?,
            role: reader.u8("role")?,
            software: read_u8_text(reader, "software", SOFTWARE_MAX)?,
        })
    }

    fn problem(&self) -> Checked {
        if self.version_min == 0 || self.version_min > self.version_max {
            return Err(format!(
                "expected a version range that begins at 1 or later, found {} to {}",
                self.version_min, self.version_max
            ));
        }
        let unoffered = self.features_required & !self.features_offered;
        if unoffered != 0 {
            return Err(format!(
                "expected every required feature to be offered, found {} required only",
                super::feature_names(unoffered)
            ));
        }
        // The urgent connection is none of the channels: its number is the one behind theirs.
        let beyond = match self.role {
            ROLE_BULK => self.channel >= self.channels,
            _ => self.channel > self.channels,
        };
        if self.channels == 0 || self.channels > CHANNELS_MAX || beyond {
            return Err(format!(
                "expected a channel below 1 to {CHANNELS_MAX} channels, found channel {} of {}",
                self.channel, self.channels
            ));
        }
        if self.channel == 0 && self.role != ROLE_BULK {
            return Err(format!(
                "expected role {ROLE_BULK} (bulk) on channel 0, found {}",
                self.role
            ));
        }
        check_name("software", &self.software, 0, SOFTWARE_MAX)
    }
}

/// HELLO_REPLY: the version and features for this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloReply {
    /// The chosen version.
    pub version: u16,
    /// The chosen features, as bits.
    pub features: u64,
    /// The name of the destination's software, for messages only; at most 64 bytes.
    pub software: String,
}

impl Body for HelloReply {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        write_u8_text(&self.software, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(HelloReply {
            version: reader.u16("version")?,
            features: reader.u64("features")?,
            software: read_u8_text(reader, "software", SOFTWARE_MAX)?,
        })
    }

    fn problem(&self) -> Checked {
        if self.version == 0 {
            return Err("expected a version of 1 or later, found 0".into());
        }
        check_name("software", &self.software, 0, SOFTWARE_MAX)
    }
}

/// BLOCK and BLOCK_ADDED: one RAM block of the source, as it is told to the destination. Not the
/// block itself, which is `memory::Block`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The number of the block in later records. It travels in the header.
    pub id: u32,
    /// Its length in bytes, a multiple of 4096 and not 0.
    pub length: u64,
    /// The size of the pages behind it at the source, in bytes: a power of two, 4096 or more.
    pub page_size: u64,
    /// [`BLOCK_FLAG_ROM`] or nothing.
    pub flags: u32,
    /// Its name, at most 255 bytes.
    pub name: String,
}

impl Body for Block {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.page_size.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Block {
            id: 0,
            length: reader.u64("length")?,
            page_size: reader.u64("page_size")?,
            flags: reader.u32("flags")?,
            name: {
                let length = reader.u16("name")?;
                reader.text("name", usize::from(length), BLOCK_NAME_MAX)?
            },
        })
    }

    fn problem(&self) -> Checked {
        check_name("name", &self.name, 0, BLOCK_NAME_MAX)?;
        // No address space could hold a block above i64::MAX, and later sums of lengths and offsets
        // in files would overflow.
        if self.length == 0
            || !self.length.is_multiple_of(PAGE_SIZE)
            || self.length > i64::MAX as u64
        {
            return Err(format!(
                "block {} \"{}\": expected a length in whole pages of {PAGE_SIZE} bytes, found {}",
                self.id, self.name, self.length
            ));
        }
        if !self.page_size.is_power_of_two() || self.page_size < PAGE_SIZE {
            return Err(format!(
                "block {} \"{}\": expected a page size that is a power of two from {PAGE_SIZE}, found {}",
                self.id, self.name, self.page_size
            ));
        }
        if self.flags & !BLOCK_FLAG_ROM != 0 {
            return Err(format!(
                "block {} \"{}\": expected no flags but {BLOCK_FLAG_ROM:#x} (ROM), found {:#x}",
                self.id, self.name, self.flags
            ));
        }
        Ok(())
    }
}

/// LAYOUT_END: the sums over the blocks before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayoutEnd {
    /// BLOCK records sent, at most [`BLOCKS_MAX`].
    pub blocks: u32,
    /// The sum of their lengths in bytes.
    pub bytes: u64,
}

impl Body for LayoutEnd {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(LayoutEnd {
            blocks: reader.u32("blocks")?,
            bytes: reader.u64("bytes")?,
        })
    }

    fn problem(&self) -> Checked {
        if self.blocks > BLOCKS_MAX {
            return Err(format!(
                "expected at most {BLOCKS_MAX} blocks, found {}",
                self.blocks
            ));
        }
        Ok(())
    }
}

/// MARKER: a point in a channel's stream, with the sums of what was sent before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// The marker's number: 1, 2, 3 and so on, counted on each channel.
    pub number: u64,
    /// The pass that the source is in.
    pub pass: u32,
    /// [`MARKER_FLAG_FINAL`], [`MARKER_FLAG_PAGES_END`], [`MARKER_FLAG_POSTCOPY`] or nothing.
    pub flags: u32,
    /// PAGES, ZEROS and BALLOONED records sent on this channel since it was opened.
    pub records: u64,
    /// Pages sent in PAGES records on this channel since it was opened.
    pub data_pages: u64,
    /// Pages sent in ZEROS and BALLOONED records on this channel since it was opened.
    pub zero_pages: u64,
}

impl Marker {
    /// Whether it ends the channel's pages, and pieces of stopped devices follow.
    pub fn ends_pages(&self) -> bool {
        self.flags & MARKER_FLAG_PAGES_END != 0
    }

    /// Whether it ends the pages of a guest that ran at the source.
    pub fn begins_postcopy(&self) -> bool {
        self.flags & MARKER_FLAG_POSTCOPY != 0
    }

    /// Whether it is the last of its channel.
    pub fn is_final(&self) -> bool {
        self.flags & MARKER_FLAG_FINAL != 0
    }
}

impl Body for Marker {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.pass.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.data_pages.to_le_bytes());
        out.extend_from_slice(&self.zero_pages.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Marker {
            number: reader.u64("number")?,
            pass: reader.u32("pass")?,
            flags: reader.u32("flags")?,
            records: reader.u64("records")?,
            data_pages: reader.u64("data_pages")?,
            zero_pages: reader.u64("zero_pages")?,
        })
    }

    fn problem(&self) -> Checked {
        if self.number == 0 {
            return Err("expected markers to be numbered from 1, found 0".into());
        }
        let flags = [
            0,
            MARKER_FLAG_FINAL,
            MARKER_FLAG_PAGES_END,
            MARKER_FLAG_POSTCOPY,
        ];
        if !flags.contains(&self.flags) {
            return Err(format!(
                "expected no flags, or one of {MARKER_FLAG_FINAL:#x} (final), \
                 {MARKER_FLAG_PAGES_END:#x} (end of the pages) and {MARKER_FLAG_POSTCOPY:#x} \
                 (postcopy begins), found {:#x}",
                self.flags
            ));
        }
        Ok(())
    }
}

/// ACK: everything before a marker has been written to guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The marker's number on this channel.
    pub number: u64,
}

impl Body for Ack {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Ack {
            number: reader.u64("number")?,
        })
    }

    fn problem(&self) -> Checked {
        if self.number == 0 {
            return Err("expected markers to be numbered from 1, found 0".into());
        }
        Ok(())
    }
}

/// EARLY_END, and the beginning of STATE_END: the sums over the blobs before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobEnd {
    /// Blobs sent, at most [`BLOBS_MAX`].
    pub count: u32,
    /// The sum of their data in bytes, without prefixes.
    pub bytes: u64,
}

impl Body for BlobEnd {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(BlobEnd {
            count: reader.u32("count")?,
            bytes: reader.u64("bytes")?,
        })
    }

    fn problem(&self) -> Checked {
        if self.count > BLOBS_MAX {
            return Err(format!(
                "expected at most {BLOBS_MAX} blobs, found {}",
                self.count
            ));
        }
        Ok(())
    }
}

/// STATE_END: the sums over the state, and the time limit of a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateEnd {
    /// The sums over the blobs of state.
    pub blobs: BlobEnd,
    /// For how many milliseconds after READY a hand-over counts: 1 to [`HANDOVER_MILLIS_MAX`].
    pub handover_millis: u32,
}

impl Body for StateEnd {
    fn write(&self, out: &mut Vec<u8>) {
        self.blobs.write(out);
        out.extend_from_slice(&self.handover_millis.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(StateEnd {
            blobs: BlobEnd::read(reader)?,
            handover_millis: reader.u32("handover_millis")?,
        })
    }

    fn problem(&self) -> Checked {
        self.blobs.problem()?;
        if !(1..=HANDOVER_MILLIS_MAX).contains(&self.handover_millis) {
            return Err(format!(
                "handover_millis: expected 1 to {HANDOVER_MILLIS_MAX}, found {}",
                self.handover_millis
            ));
        }
        Ok(())
    }
}

/// READY: the destination could run the guest now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// How long loading the state took, in microseconds.
    pub load_micros: u64,
    /// How long computing checksums of memory took, in microseconds; 0 unless the migration is
    /// verified.
    pub digest_micros: u64,
}

impl Body for Ready {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.load_micros.to_le_bytes());
        out.extend_from_slice(&self.digest_micros.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Ready {
            load_micros: reader.u64("load_micros")?,
            digest_micros: reader.u64("digest_micros")?,
        })
    }
}

/// HANDOVER: the guest belongs to the destination from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handover {
    /// The session's token again.
    pub token: Token,
}

impl Body for Handover {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.token);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Handover {
            token: reader.array("token")?,
        })
    }
}

/// RUNNING: the guest runs on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// How long starting the guest took, in microseconds.
    pub run_micros: u64,
}

impl Body for Running {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.run_micros.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Running {
            run_micros: reader.u64("run_micros")?,
        })
    }
}

/// ABORT: the sender gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abort {
    /// A `BRANT_E_*` code.
    pub code: i32,
    /// The reason, for people. When encoded, it is cut between two characters beyond 1024 bytes. It
    /// is free text: code that shows it has to mind control characters. U+FFFD replaces bytes of a
    /// peer that are not UTF-8, so that the code counts whatever the text is.
    pub reason: String,
}

impl Body for Abort {
    fn write(&self, out: &mut Vec<u8>) {
        let mut length = self.reason.len().min(REASON_MAX);
        while !self.reason.is_char_boundary(length) {
            length -= 1;
        }
        out.extend_from_slice(&self.code.to_le_bytes());
        out.extend_from_slice(&(length as u16).to_le_bytes());
        out.extend_from_slice(&self.reason.as_bytes()[..length]);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Abort {
            code: reader.i32("code")?,
            reason: {
                let length = reader.u16("reason")?;
                reader.text_lossy("reason", usize::from(length), REASON_MAX)?
            },
        })
    }
}

/// BLOCK_FD: where in the file that came as a descriptor a block begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFd {
    /// The block's number. It travels in the header.
    pub id: u32,
    /// Where the block begins in the file, in bytes; a multiple of 4096.
    pub offset: u64,
    /// The block's length in bytes, as in its BLOCK.
    pub length: u64,
}

impl Body for BlockFd {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(BlockFd {
            id: 0,
            offset: reader.u64("offset")?,
            length: reader.u64("length")?,
        })
    }

    fn problem(&self) -> Checked {
        let whole = |bytes: u64| bytes.is_multiple_of(PAGE_SIZE);
        let end = self.offset.checked_add(self.length);
        let fits = end.is_some_and(|end| end <= i64::MAX as u64);
        if self.length == 0 || !whole(self.length) || !whole(self.offset) || !fits {
            return Err(format!(
                "block {}: expected an offset and a length in whole pages of {PAGE_SIZE} bytes that \
                 end before 2^63, found offset {} and length {}",
                self.id, self.offset, self.length
            ));
        }
        Ok(())
    }
}

/// A control record: every record but page runs, blobs and pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// HELLO.
    Hello(Hello),
    /// HELLO_REPLY.
    HelloReply(HelloReply),
    /// BLOCK.
    Block(Block),
    /// LAYOUT_END.
    LayoutEnd(LayoutEnd),
    /// LAYOUT_OK.
    LayoutOk,
    /// MARKER.
    Marker(Marker),
    /// ACK.
    Ack(Ack),
    /// STATE_END.
    StateEnd(StateEnd),
    /// EARLY_END.
    EarlyEnd(BlobEnd),
    /// EARLY_OK.
    EarlyOk,
    /// READY.
    Ready(Ready),
    /// HANDOVER.
    Handover(Handover),
    /// RUNNING.
    Running(Running),
    /// ABORT.
    Abort(Abort),
    /// KEEPALIVE.
    Keepalive,
    /// BLOCK_ADDED.
    BlockAdded(Block),
    /// BLOCK_REMOVED.
    BlockRemoved {
        /// The block's id, which travels in the header.
        id: u32,
    },
    /// DIGEST.
    Digest(Digest),
    /// DEVICE_LOADED.
    DeviceLoaded(DeviceLoaded),
    /// DEVICE_NAMED.
    DeviceNamed(NamedDevice),
    /// MISSING.
    Missing(Missing),
    /// MISSING_END.
    MissingEnd(MissingEnd),
    /// REQUEST.
    Request(Request),
    /// COMPLETE.
    Complete(Complete),
    /// RECOVER.
    Recover(Recover),
    /// RECOVER_REPLY.
    RecoverReply(RecoverReply),
    /// BLOCK_FD.
    BlockFd(BlockFd),
}

impl Record {
    /// The record's type.
    pub fn record_type(&self) -> RecordType {
        match self {
            Record::Hello(_) => RecordType::Hello,
            Record::HelloReply(_) => RecordType::HelloReply,
            Record::Block(_) => RecordType::Block,
            Record::LayoutEnd(_) => RecordType::LayoutEnd,
            Record::LayoutOk => RecordType::LayoutOk,
            Record::Marker(_) => RecordType::Marker,
            Record::Ack(_) => RecordType::Ack,
            Record::StateEnd(_) => RecordType::StateEnd,
            Record::EarlyEnd(_) => RecordType::EarlyEnd,
            Record::EarlyOk => RecordType::EarlyOk,
            Record::Ready(_) => RecordType::Ready,
            Record::Handover(_) => RecordType::Handover,
            Record::Running(_) => RecordType::Running,
            Record::Abort(_) => RecordType::Abort,
            Record::Keepalive => RecordType::Keepalive,
            Record::BlockAdded(_) => RecordType::BlockAdded,
            Record::BlockRemoved { .. } => RecordType::BlockRemoved,
            Record::Digest(_) => RecordType::Digest,
            Record::DeviceLoaded(_) => RecordType::DeviceLoaded,
            Record::DeviceNamed(_) => RecordType::DeviceNamed,
            Record::Missing(_) => RecordType::Missing,
            Record::MissingEnd(_) => RecordType::MissingEnd,
            Record::Request(_) => RecordType::Request,
            Record::Complete(_) => RecordType::Complete,
            Record::Recover(_) => RecordType::Recover,
            Record::RecoverReply(_) => RecordType::RecoverReply,
            Record::BlockFd(_) => RecordType::BlockFd,
        }
    }

    /// Appends the record, header and payload, to `out`. On an error `out` is unchanged.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a field outside its limits; [`Kind::NoMemory`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Record::Hello(body) => self.put(body, 0, out),
            Record::HelloReply(body) => self.put(body, 0, out),
            Record::Block(body) | Record::BlockAdded(body) => self.put(body, body.id, out),
            Record::LayoutEnd(body) => self.put(body, 0, out),
            Record::Marker(body) => self.put(body, 0, out),
            Record::Ack(body) => self.put(body, 0, out),
            Record::StateEnd(body) => self.put(body, 0, out),
            Record::EarlyEnd(body) => self.put(body, 0, out),
            Record::Ready(body) => self.put(body, 0, out),
            Record::Handover(body) => self.put(body, 0, out),
            Record::Running(body) => self.put(body, 0, out),
            Record::Abort(body) => self.put(body, 0, out),
            Record::Digest(body) => self.put(body, body.block, out),
            Record::DeviceLoaded(body) => self.put(body, 0, out),
            Record::DeviceNamed(body) => self.put(body, 0, out),
            Record::Missing(body) => self.put(body, body.block, out),
            Record::MissingEnd(body) => self.put(body, 0, out),
            Record::Request(body) => self.put(body, body.block, out),
            Record::Complete(body) => self.put(body, 0, out),
            Record::Recover(body) => self.put(body, 0, out),
            Record::RecoverReply(body) => self.put(body, 0, out),
            Record::BlockFd(body) => self.put(body, body.id, out),
            Record::BlockRemoved { id } => append(out, self.record_type(), *id, |_| None),
            Record::LayoutOk | Record::EarlyOk | Record::Keepalive => {
                append(out, self.record_type(), 0, |_| None)
            }
        }
    }

    fn put<B: Body>(&self, body: &B, block: u32, out: &mut Vec<u8>) -> Result<()> {
        let kind = self.record_type();
        body.problem().map_err(|what| invalid(kind, what))?;
        append(out, kind, block, |out| {
            body.write(out);
            None
        })
    }

    /// Decodes a control record. `payload` has all `header.payload` bytes. Allocates no more than
    /// the length of `payload`.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for a header or payload that is not exactly what its type prescribes, and
    /// for page runs, blobs, pieces and unknown types, which are no control records; [`Kind::NoMemory`].
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Record> {
        let Some(kind) = header.classify()? else {
            return Err(Error::new(
                Kind::Protocol,
                format!("expected a control record, found type {}", header.kind),
            ));
        };
        if payload.len() != header.payload as usize {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "{}: expected the {} bytes its header announces, found {}",
                    kind.name(),
                    header.payload,
                    payload.len()
                ),
            ));
        }
        if !kind.is_page_run() && !kind.is_blob() && !kind.is_piece() {
            header.check_payload(payload)?;
        }
        let block = |payload| {
            read::<Block>(kind, payload).map(|block| Block {
                id: header.block,
                ..block
            })
        };
        Ok(match kind {
            RecordType::Hello => Record::Hello(read(kind, payload)?),
            RecordType::HelloReply => Record::HelloReply(read(kind, payload)?),
            RecordType::Block => Record::Block(block(payload)?),
            RecordType::LayoutEnd => Record::LayoutEnd(read(kind, payload)?),
            RecordType::LayoutOk => Record::LayoutOk,
            RecordType::Marker => Record::Marker(read(kind, payload)?),
            RecordType::Ack => Record::Ack(read(kind, payload)?),
            RecordType::StateEnd => Record::StateEnd(read(kind, payload)?),
            RecordType::EarlyEnd => Record::EarlyEnd(read(kind, payload)?),
            RecordType::EarlyOk => Record::EarlyOk,
            RecordType::Ready => Record::Ready(read(kind, payload)?),
            RecordType::Handover => Record::Handover(read(kind, payload)?),
            RecordType::Running => Record::Running(read(kind, payload)?),
            RecordType::Abort => Record::Abort(read(kind, payload)?),
            RecordType::Keepalive => Record::Keepalive,
            RecordType::BlockAdded => Record::BlockAdded(block(payload)?),
            RecordType::BlockRemoved => Record::BlockRemoved { id: header.block },
            RecordType::Digest => Record::Digest(Digest {
                block: header.block,
                ..read(kind, payload)?
            }),
            RecordType::DeviceLoaded => Record::DeviceLoaded(read(kind, payload)?),
            RecordType::DeviceNamed => Record::DeviceNamed(read(kind, payload)?),
            RecordType::Missing => {
                let mut missing: Missing = read(kind, payload)?;
                missing.block = header.block;
                Record::Missing(missing)
            }
            RecordType::MissingEnd => Record::MissingEnd(read(kind, payload)?),
            RecordType::Request => Record::Request(Request {
                block: header.block,
                ..read(kind, payload)?
            }),
            RecordType::Complete => Record::Complete(read(kind, payload)?),
            RecordType::Recover => Record::Recover(read(kind, payload)?),
            RecordType::RecoverReply => Record::RecoverReply(read(kind, payload)?),
            RecordType::BlockFd => Record::BlockFd(BlockFd {
                id: header.block,
                ..read(kind, payload)?
            }),
            RecordType::Pages
            | RecordType::Zeros
            | RecordType::Ballooned
            | RecordType::PagesList
            | RecordType::ZerosList
            | RecordType::Delta
            | RecordType::Compressed
            | RecordType::CompressedList
            | RecordType::State
            | RecordType::Early
            | RecordType::Device => {
                return Err(Error::new(
                    Kind::Protocol,
                    format!("expected a control record, found {}", kind.name()),
                ))
            }
        })
    }
}

/// The prefix of a STATE or EARLY record. `length` bytes of data follow it in the same payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The name of the part whose state it is, 1 to 128 bytes.
    pub name: String,
    /// Tells blobs of one name apart.
    pub instance: u32,
    /// The VMM's version of the data's format.
    pub version: u32,
    /// The length of the data in bytes.
    pub length: u64,
}

impl Blob {
    /// The length of the prefix in bytes.
    pub fn prefix_len(&self) -> usize {
        BLOB_FIXED_LEN + self.name.len()
    }

    /// The length of a prefix that begins with the byte `first`: how much a receiver that reads in
    /// parts has to read before [`Blob::decode`].
    ///
    /// # Errors
    /// [`Kind::Protocol`] for a name outside 1 to 128 bytes.
    pub fn prefix_len_from(first: u8) -> Result<usize> {
        let name = usize::from(first);
        if !(1..=BLOB_NAME_MAX).contains(&name) {
            return Err(Error::new(
                Kind::Protocol,
                format!("blob name: expected 1 to {BLOB_NAME_MAX} bytes, found {name}"),
            ));
        }
        Ok(BLOB_FIXED_LEN + name)
    }

    /// Appends header and prefix to `out`. The caller sends `length` bytes of data right behind
    /// them. `checksum` is the CRC-32 of these data. `kind` is [`RecordType::State`] or
    /// [`RecordType::Early`]. On an error `out` is unchanged.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for another type, for a name outside its limits, and if data and prefix
    /// together exceed [`PAYLOAD_MAX`]; [`Kind::NoMemory`].
    pub fn encode(&self, kind: RecordType, checksum: u32, out: &mut Vec<u8>) -> Result<()> {
        if !kind.is_blob() {
            return Err(invalid(kind, "expected STATE or EARLY".into()));
        }
        check_name("name", &self.name, 1, BLOB_NAME_MAX).map_err(|what| invalid(kind, what))?;
        let most = u64::from(PAYLOAD_MAX) - self.prefix_len() as u64;
        if self.length > most {
            return Err(invalid(
                kind,
                format!(
                    "\"{}\": expected at most {most} bytes of data, found {}",
                    self.name, self.length
                ),
            ));
        }
        append(out, kind, 0, |out| {
            write_u8_text(&self.name, out);
            out.extend_from_slice(&self.instance.to_le_bytes());
            out.extend_from_slice(&self.version.to_le_bytes());
            out.extend_from_slice(&self.length.to_le_bytes());
            Some((self.length, checksum))
        })
    }

    /// Whether `payload`, all of it, is what was sent with this prefix.
    ///
    /// # Errors
    /// [`Kind::Protocol`] that names the blob.
    pub fn check(&self, header: &Header, payload: &[u8]) -> Result<()> {
        header
            .check_payload(payload)
            .map_err(|e| e.context(format_args!("blob `{}` ({})", self.name, self.instance)))
    }

    /// Reads the prefix at the front of `bytes`, the payload or a beginning of it that has the
    /// whole prefix. Returns it with its length in bytes, where the data begins. The data's length
    /// is then known to be exactly the rest of the payload.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for a record that is no blob, a prefix that is cut short, a name outside
    /// its limits, or a length other than the header allows; [`Kind::NoMemory`].
    pub fn decode(header: &Header, bytes: &[u8]) -> Result<(Blob, usize)> {
        let kind = match header.classify()? {
            Some(kind) if kind.is_blob() => kind,
            _ => {
                return Err(Error::new(
                    Kind::Protocol,
                    format!("expected STATE or EARLY, found type {}", header.kind),
                ))
            }
        };
        let payload = header.payload as usize;
        let mut reader = Reader::new(kind.name(), &bytes[..bytes.len().min(payload)]);
        let blob = Blob {
            name: read_u8_text(&mut reader, "name", BLOB_NAME_MAX)?,
            instance: reader.u32("instance")?,
            version: reader.u32("version")?,
            length: reader.u64("length")?,
        };
        check_name("name", &blob.name, 1, BLOB_NAME_MAX).map_err(|what| reader.refuse(what))?;
        let prefix = reader.position();
        // The reader stopped inside the payload, so this does not underflow.
        let left = (payload - prefix) as u64;
        if blob.length != left {
            return Err(reader.refuse(format_args!(
                "\"{}\": expected {left} bytes of data, which is what the header leaves room for, found {}",
                blob.name, blob.length
            )));
        }
        Ok((blob, prefix))
    }
}

fn invalid(kind: RecordType, what: String) -> Error {
    Error::new(Kind::Invalid, format!("{}: {what}", kind.name()))
}

fn read<B: Body>(kind: RecordType, payload: &[u8]) -> Result<B> {
    let mut reader = Reader::new(kind.name(), payload);
    let body = B::read(&mut reader)?;
    body.problem().map_err(|what| reader.refuse(what))?;
    reader.finish()?;
    Ok(body)
}

/// Appends a header and the bytes that `write` writes. `write` returns how many bytes of payload
/// the caller adds later, and their CRC-32. Together with the written bytes they are at most
/// [`PAYLOAD_MAX`].
fn append(
    out: &mut Vec<u8>,
    kind: RecordType,
    block: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Option<(u64, u32)>,
) -> Result<()> {
    // No record is longer than its type's limit, and of a blob only the prefix is written here: so no
    // step below allocates.
    let most = match kind.is_blob() {
        true => BLOB_PREFIX_MAX,
        false => kind.payload_limits().1 as usize,
    };
    let room = HEADER_LEN + most;
    out.try_reserve(room)
        .map_err(|_| Error::no_memory(kind.name(), room as u64))?;
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let later = write(out);
    let written = &out[start + HEADER_LEN..];
    let mut payload = crc32fast::Hasher::new();
    payload.update(written);
    let mut length = written.len() as u64;
    if let Some((bytes, checksum)) = later {
        payload.combine(&crc32fast::Hasher::new_with_initial_len(checksum, bytes));
        length += bytes;
    }
    let header = Header {
        count: payload.finalize(),
        ..Header::control(kind, block, length as u32)
    };
    out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
    Ok(())
}
