//! What the two sides say to each other, as bytes.
//!
//! Pure: bytes in, bytes out. No socket, clock or thread, and no knowledge of
//! the order in which records may arrive (that is the state machines' in
//! `migrate`). `docs/wire.md` is the specification this room implements; a
//! number in there and a number in here are the same number for ever.
//!
//! A receiver reads [`HEADER_LEN`] bytes, calls [`Header::decode`] and then
//! [`Header::classify`], which refuses a payload that is too large for its
//! type before a byte of it is read or a buffer for it exists. Then, by type:
//!
//! - page runs ([`RecordType::Pages`], [`RecordType::Zeros`], [`RecordType::Ballooned`]) are a header and
//!   raw bytes: [`Header::check_run`], then straight into guest memory;
//! - a list of page runs ([`RecordType::PagesList`]) is a header, the list ([`decode_list`]), and raw
//!   bytes for all of them;
//! - blobs ([`RecordType::State`], [`RecordType::Early`]) begin with a short
//!   prefix, [`Blob`], so that the data can be read piecewise;
//! - everything else is a [`Record`].

mod cursor;
mod header;
mod kind;
mod list;
mod negotiate;
mod records;
#[cfg(test)]
mod tests;

pub use header::{Header, FLAG_SKIPPABLE, HEADER_LEN, MAGIC};
pub use kind::{
    list_len, Direction, RecordType, CHECKSUM_LEN, LIST_PAGES_MAX, LIST_RUNS_MAX, PAYLOAD_MAX,
    SKIPPED_PAYLOAD_MAX,
};
pub use list::{decode_list, encode_checked_list, encode_list};
pub use negotiate::{
    check_reply, feature_names, negotiate, Feature, Ours, FEATURES, FEATURE_BALLOONED,
    FEATURE_PAGE_CHECKSUMS, FEATURE_ZERO_RUNS, VERSION_MAX, VERSION_MIN,
};
pub use records::{
    Abort, Ack, Blob, BlobEnd, Block, Handover, Hello, HelloReply, LayoutEnd, Marker, Ready,
    Record, Running, StateEnd, Token, BLOBS_MAX, BLOB_PREFIX_MAX, BLOCKS_MAX, BLOCK_FLAG_ROM,
    CHANNELS_MAX, HANDOVER_MILLIS_MAX, MARKER_FLAG_FINAL, ROLE_BULK, ROLE_URGENT,
};
