//! The record types: number, name, direction and payload limits of each.
//!
//! They are in one table, so that a receiver can judge a header before it reads on; the header asks
//! it. The layouts are elsewhere: payloads of control records in `records`, runs of pages in
//! `header`, lists of runs in `list`, changed pages in `delta`, checksums of pages in `digest`, devices
//! in `device`.

use crate::units::{PAGE_SIZE, STRETCH_PAGES};

/// The largest payload that any record may announce: 1 GiB.
pub const PAYLOAD_MAX: u32 = 1 << 30;

/// The largest payload of a skippable record of an unknown type: 64 KiB. It is enough for data that
/// a receiver can do without, and too little to keep a receiver busy.
pub const SKIPPED_PAYLOAD_MAX: u32 = 64 << 10;

/// Bytes of the checksum behind the contents of PAGES and PAGES_LIST, where the feature
/// "page-checksums" was agreed on.
pub const CHECKSUM_LEN: usize = 4;

/// The most runs in one PAGES_LIST, ZEROS_LIST or COMPRESSED_LIST.
pub const LIST_RUNS_MAX: u32 = 256;
/// The most pages in one PAGES_LIST, ZEROS_LIST or COMPRESSED_LIST.
pub const LIST_PAGES_MAX: u32 = 512;

/// Bytes of a list of this many runs: 8 for each run, and a checksum.
pub const fn list_len(runs: u32) -> usize {
    runs as usize * 8 + 4
}

/// The most pages in one DELTA.
pub const DELTA_PAGES_MAX: u32 = 512;
/// Bytes for each page in a DELTA's table: 4 for the page, 4 for the checksum of its base, 2 for the
/// length of its encoding.
pub(super) const DELTA_ENTRY: usize = 10;

/// The most checksums in one DIGEST.
pub const DIGEST_SUMS_MAX: usize = 512;

/// The most pages in one MISSING, missing or not, and in one run of a REQUEST: 1 GiB.
pub const MISSING_PAGES_MAX: u32 = 1 << 18;
/// The most bytes of runs or bits in one MISSING: a bit for each page.
pub(super) const MISSING_BYTES_MAX: usize = MISSING_PAGES_MAX as usize / 8;
/// The most runs in one REQUEST.
pub const REQUEST_RUNS_MAX: u32 = 256;

/// Bytes before the encodings in a DELTA of so many pages: a checksum, and the table.
pub const fn delta_table_len(pages: u32) -> usize {
    4 + pages as usize * DELTA_ENTRY
}

/// Which side sends a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The source, to the destination.
    ToDestination,
    /// The destination, to the source.
    ToSource,
    /// Either side.
    Either,
}

macro_rules! record_types {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $direction:ident, $min:expr, $max:expr;)*) => {
        /// The type of a record. The numbers are on the wire and never change meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum RecordType {
            $($(#[$doc])* $variant = $number,)*
        }

        impl RecordType {
            /// Every type, in ascending order of numbers.
            pub const ALL: &'static [RecordType] = &[$(RecordType::$variant,)*];

            /// The type of a number, if this version knows it.
            pub fn from_number(number: u16) -> Option<RecordType> {
                match number {
                    $($number => Some(RecordType::$variant),)*
                    _ => None,
                }
            }

            /// The name in the specification and in error messages.
            pub fn name(self) -> &'static str {
                match self {
                    $(RecordType::$variant => $name,)*
                }
            }

            /// Which side may send it.
            pub fn direction(self) -> Direction {
                match self {
                    $(RecordType::$variant => Direction::$direction,)*
                }
            }

            /// The smallest and the largest payload of this type, in bytes.
            pub const fn payload_limits(self) -> (u32, u32) {
                match self {
                    $(RecordType::$variant => ($min, $max),)*
                }
            }
        }
    };
}

const LIST_LEAST: u32 = list_len(1) as u32 + PAGE;
const LIST_MOST: u32 = list_len(LIST_RUNS_MAX) as u32 + LIST_PAGES_MAX * PAGE + CHECKSUM;
const ZEROS_LIST_LEAST: u32 = list_len(1) as u32;
const ZEROS_LIST_MOST: u32 = list_len(LIST_RUNS_MAX) as u32;
const DELTA_LEAST: u32 = delta_table_len(1) as u32;
const DELTA_MOST: u32 = delta_table_len(DELTA_PAGES_MAX) as u32 + DELTA_PAGES_MAX * PAGE;
/// First page, pages, count of sums.
const DIGEST_LEAST: u32 = 16;
const DIGEST_MOST: u32 = DIGEST_LEAST + DIGEST_SUMS_MAX as u32 * CHECKSUM;
const PAGE: u32 = PAGE_SIZE as u32;
const CHECKSUM: u32 = CHECKSUM_LEN as u32;
/// A checksum, and at least a byte of a frame, which is shorter than its pages.
const PACKED_LEAST: u32 = CHECKSUM + 1;
const PACKED_MOST: u32 = CHECKSUM + PAGE * STRETCH_PAGES as u32 - 1;
const PACKED_LIST_LEAST: u32 = list_len(1) as u32 + PACKED_LEAST;
const PACKED_LIST_MOST: u32 = list_len(LIST_RUNS_MAX) as u32 + CHECKSUM + LIST_PAGES_MAX * PAGE - 1;
/// Device, flags, offset; and a mebibyte of state.
const PIECE_LEAST: u32 = 16;
pub(super) const PIECE_MOST: u32 = PIECE_LEAST + (1 << 20);
/// First page, pages, missing, form; and at least one byte.
const MISSING_LEAST: u32 = 18;
const MISSING_MOST: u32 = MISSING_LEAST - 1 + MISSING_BYTES_MAX as u32;
/// First page, pages.
const REQUEST_RUN: u32 = 12;
const RUN_MOST: u32 = PAGE * STRETCH_PAGES as u32 + CHECKSUM;

record_types! {
    /// Opens a connection: versions, features, token, channel.
    Hello = 1, "HELLO", ToDestination, 43, 107;
    /// The version and the features that both sides use from here on.
    HelloReply = 2, "HELLO_REPLY", ToSource, 11, 75;
    /// Announces one RAM block of the source.
    Block = 3, "BLOCK", ToDestination, 22, 277;
    /// Closes the list of blocks.
    LayoutEnd = 4, "LAYOUT_END", ToDestination, 12, 12;
    /// The destination has the same blocks.
    LayoutOk = 5, "LAYOUT_OK", ToSource, 0, 0;
    /// A run of pages with their bytes.
    Pages = 6, "PAGES", ToDestination, PAGE, RUN_MOST;
    /// A run of pages that are all zero.
    Zeros = 7, "ZEROS", ToDestination, 0, 0;
    /// A numbered point in a channel's stream of page runs.
    Marker = 8, "MARKER", ToDestination, 40, 40;
    /// Everything before a marker is in guest memory.
    Ack = 9, "ACK", ToSource, 8, 8;
    /// One blob of device or vCPU state.
    State = 10, "STATE", ToDestination, 18, PAYLOAD_MAX;
    /// Closes the list of state blobs.
    StateEnd = 11, "STATE_END", ToDestination, 16, 16;
    /// One configuration blob, before any RAM.
    Early = 12, "EARLY", ToDestination, 18, PAYLOAD_MAX;
    /// Closes the list of configuration blobs.
    EarlyEnd = 13, "EARLY_END", ToDestination, 12, 12;
    /// The destination has built itself from the configuration.
    EarlyOk = 14, "EARLY_OK", ToSource, 0, 0;
    /// Memory is complete and the state is loaded.
    Ready = 15, "READY", ToSource, 16, 16;
    /// The guest is the destination's now.
    Handover = 16, "HANDOVER", ToDestination, 16, 16;
    /// The guest runs on the destination.
    Running = 17, "RUNNING", ToSource, 8, 8;
    /// The sender gives up, and says why.
    Abort = 18, "ABORT", Either, 6, 1030;
    /// Nothing but a sign of life.
    Keepalive = 19, "KEEPALIVE", Either, 0, 0;
    /// A RAM block was plugged in during the migration.
    BlockAdded = 20, "BLOCK_ADDED", ToDestination, 22, 277;
    /// A RAM block was unplugged during the migration.
    BlockRemoved = 21, "BLOCK_REMOVED", ToDestination, 0, 0;
    /// A run of ballooned pages.
    Ballooned = 22, "BALLOONED", ToDestination, 0, 0;
    /// Short runs of pages that lie apart, with their bytes.
    PagesList = 23, "PAGES_LIST", ToDestination, LIST_LEAST, LIST_MOST;
    /// Runs of zero pages that lie apart.
    ZerosList = 24, "ZEROS_LIST", ToDestination, ZEROS_LIST_LEAST, ZEROS_LIST_MOST;
    /// A run of pages whose bytes are compressed.
    Compressed = 25, "COMPRESSED", ToDestination, PACKED_LEAST, PACKED_MOST;
    /// Pages as what has changed in them since they were sent last.
    Delta = 26, "DELTA", ToDestination, DELTA_LEAST, DELTA_MOST;
    /// Checksums of pages at the destination, as they were before it loaded the state.
    Digest = 27, "DIGEST", ToSource, DIGEST_LEAST, DIGEST_MOST;
    /// Short runs of pages that lie apart, whose bytes are compressed together.
    CompressedList = 28, "COMPRESSED_LIST", ToDestination, PACKED_LIST_LEAST, PACKED_LIST_MOST;
    /// A piece of a device's state.
    Device = 29, "DEVICE", ToDestination, PIECE_LEAST, PIECE_MOST;
    /// The destination has loaded what a device needs there before the pause.
    DeviceLoaded = 30, "DEVICE_LOADED", ToSource, 12, 12;
    /// Announces one device of the source whose state is streamed.
    DeviceNamed = 31, "DEVICE_NAMED", ToDestination, 14, 141;
    /// Pages of a piece of a block that the destination does not have.
    Missing = 32, "MISSING", Either, MISSING_LEAST, MISSING_MOST;
    /// Closes a description of missing pages.
    MissingEnd = 33, "MISSING_END", Either, 12, 12;
    /// Pages that the destination waits for.
    Request = 34, "REQUEST", ToSource, REQUEST_RUN, REQUEST_RUN * REQUEST_RUNS_MAX;
    /// The destination has every page.
    Complete = 35, "COMPLETE", ToSource, 12, 12;
    /// A new connection of a session that was interrupted after the hand-over.
    Recover = 36, "RECOVER", ToDestination, 4, 4;
    /// The destination takes the recovery.
    RecoverReply = 37, "RECOVER_REPLY", ToSource, 12, 12;
    /// The file of the block that was announced last comes with this record as a descriptor.
    BlockFd = 38, "BLOCK_FD", ToDestination, 16, 16;
}

impl RecordType {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Whether a receiver that does not know the type may skip it. This is fixed for each type, so
    /// that a header has only one valid form.
    pub fn is_skippable(self) -> bool {
        self == RecordType::Keepalive
    }

    /// Whether this is a run of pages, a list of runs, or changed pages: no control record and no
    /// blob.
    pub fn is_page_run(self) -> bool {
        self.is_list()
            || matches!(
                self,
                RecordType::Pages
                    | RecordType::Zeros
                    | RecordType::Ballooned
                    | RecordType::Compressed
                    | RecordType::Delta
            )
    }

    /// Whether this is a list of runs of pages ([`super::decode_list`]).
    pub fn is_list(self) -> bool {
        matches!(
            self,
            RecordType::PagesList | RecordType::ZerosList | RecordType::CompressedList
        )
    }

    /// Whether this is a blob: a prefix ([`super::Blob`]), then data.
    pub fn is_blob(self) -> bool {
        matches!(self, RecordType::State | RecordType::Early)
    }

    /// Whether this is a piece of a device's state ([`super::Piece`]).
    pub fn is_piece(self) -> bool {
        self == RecordType::Device
    }

    /// Whether the header's block field is used. In other types it is zero.
    pub fn uses_block(self) -> bool {
        self.is_page_run()
            || matches!(
                self,
                RecordType::Block
                    | RecordType::BlockFd
                    | RecordType::BlockAdded
                    | RecordType::BlockRemoved
                    | RecordType::Digest
                    | RecordType::Missing
                    | RecordType::Request
            )
    }
}
