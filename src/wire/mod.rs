//! The messages between the two sides, as bytes.
//!
//! Pure: bytes in, bytes out. No socket, clock or thread is used here. The state machines in
//! `migrate` know in which order records may arrive. `docs/wire.md` is the specification of this
//! module. A number there and the same number here never change.
//!
//! A receiver reads [`HEADER_LEN`] bytes, and calls [`Header::decode`] and then
//! [`Header::classify`]. This refuses a payload that is too large for its type, before a byte of it
//! is read or a buffer for it is allocated. The type decides what follows:
//!
//! - page runs ([`RecordType::Pages`], [`RecordType::Zeros`], [`RecordType::Ballooned`]) are a
//!   header and raw bytes. They are checked by [`Header::check_run`], and go straight into guest
//!   memory;
//! - a run of compressed pages ([`RecordType::Compressed`]) is a header, a checksum and a frame, which
//!   is decoded first;
//! - a list of page runs ([`RecordType::PagesList`], [`RecordType::ZerosList`],
//!   [`RecordType::CompressedList`]) is a header, the list ([`decode_list`]), and in a PAGES_LIST raw
//!   bytes for all runs, in a COMPRESSED_LIST a checksum and a frame of them;
//! - changed pages ([`RecordType::Delta`]) are a header, a table and encodings ([`decode_delta`]);
//! - blobs ([`RecordType::State`], [`RecordType::Early`]) begin with a short prefix, [`Blob`], so
//!   that the data can be read in parts;
//! - a piece of a device's state ([`RecordType::Device`]) is a header, a short prefix, [`Piece`], and
//!   the state;
//! - every other record is a [`Record`].

mod body;
mod cursor;
mod delta;
mod device;
mod digest;
mod header;
mod kind;
mod list;
mod missing;
mod negotiate;
mod records;
#[cfg(test)]
mod tests;
mod text;

pub use delta::{decode_delta, encode_delta, Delta};
pub use device::{
    DeviceLoaded, NamedDevice, Piece, DEVICES_MAX, PIECE_BYTES_MAX, PIECE_INITIAL, PIECE_LAST,
    PIECE_PREFIX, PIECE_STOPPED,
};
pub use digest::{Digest, DIGEST_PAGES_MAX};
pub use header::{Header, FLAG_SKIPPABLE, HEADER_LEN, MAGIC};
pub use kind::{
    delta_table_len, list_len, Direction, RecordType, CHECKSUM_LEN, DELTA_PAGES_MAX,
    DIGEST_SUMS_MAX, LIST_PAGES_MAX, LIST_RUNS_MAX, MISSING_PAGES_MAX, PAYLOAD_MAX,
    REQUEST_RUNS_MAX, SKIPPED_PAYLOAD_MAX,
};
pub use list::{
    decode_list, encode_checked_list, encode_compressed_list, encode_list, encode_zeros_list,
    listed_pages,
};
pub use missing::{
    describe, Complete, Described, Missing, MissingEnd, MissingRuns, Recover, RecoverReply, Request,
};
pub use negotiate::{
    check_reply, feature_names, negotiate, Feature, Ours, FEATURES, FEATURE_BALLOONED,
    FEATURE_DELTA, FEATURE_DESCRIPTORS, FEATURE_DEVICE_STREAMS, FEATURE_PAGE_CHECKSUMS,
    FEATURE_POSTCOPY, FEATURE_VERIFY, FEATURE_ZERO_RUNS, FEATURE_ZSTD, VERSION_MAX, VERSION_MIN,
};
pub use records::{
    Abort, Ack, Blob, BlobEnd, Block, BlockFd, Handover, Hello, HelloReply, LayoutEnd, Marker,
    Ready, Record, Running, StateEnd, Token, BLOBS_MAX, BLOB_PREFIX_MAX, BLOCKS_MAX,
    BLOCK_FLAG_ROM, CHANNELS_MAX, HANDOVER_MILLIS_MAX, MARKER_FLAG_FINAL, MARKER_FLAG_PAGES_END,
    MARKER_FLAG_POSTCOPY, ROLE_BULK, ROLE_URGENT,
};
