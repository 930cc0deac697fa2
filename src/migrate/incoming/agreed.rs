//! What both sides have agreed on before the first page, and which records may come because of it.

use crate::error::{Error, Kind, Result};
use crate::wire::{Header, RecordType, Token};

/// What both sides have agreed on.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Agreed {
    pub(super) token: Token,
    /// Whether BALLOONED records may come.
    pub(super) ballooned: bool,
    /// Whether COMPRESSED and COMPRESSED_LIST records may come.
    pub(super) zstd: bool,
    /// Whether DELTA records may come.
    pub(super) delta: bool,
    /// Whether all contents come with a checksum behind them. Otherwise none do.
    pub(super) checksums: bool,
    /// Whether the source verifies the migration, and waits for DIGEST records.
    pub(super) verify: bool,
    /// Whether the source has devices whose state is streamed.
    pub(super) devices: bool,
    /// Whether the guest may be handed over before all of its memory is here.
    pub(super) postcopy: bool,
    /// Whether BLOCK_FD records may come on channel 0.
    pub(super) descriptors: bool,
}

impl Agreed {
    /// Refuses a run of pages in a form that was not agreed on.
    pub(super) fn check(&self, kind: RecordType, header: &Header) -> Result<()> {
        let (name, agreed) = match kind {
            RecordType::Ballooned if !self.ballooned => ("ballooned", false),
            RecordType::Compressed | RecordType::CompressedList if !self.zstd => ("zstd", false),
            RecordType::Delta if !self.delta => ("delta", false),
            RecordType::Pages | RecordType::PagesList if header.is_checked() != self.checksums => {
                ("page-checksums", self.checksums)
            }
            _ => return Ok(()),
        };
        let what = match (kind, agreed) {
            (RecordType::Pages | RecordType::PagesList, true) => {
                " with no checksum behind its contents"
            }
            (RecordType::Pages | RecordType::PagesList, false) => {
                " with a checksum behind its contents"
            }
            _ => "",
        };
        let agreed = if agreed { "is" } else { "is not" };
        Err(Error::new(
            Kind::Protocol,
            format!(
                "{}: found one{what}, and the feature \"{name}\" {agreed} agreed on",
                kind.name()
            ),
        ))
    }
}
