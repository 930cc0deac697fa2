//! Compressing contents of pages to one zstd frame, and back. This file knows no records.
//!
//! `compress/zstd.rs` has the codec; `compress/none.rs` takes its place in a build without the
//! feature `compression`, and says so to whoever asks for a codec.

#[cfg(not(feature = "compression"))]
mod none;
#[cfg(feature = "compression")]
mod zstd;

#[cfg(not(feature = "compression"))]
pub use none::{Compressor, Decompressor};
#[cfg(feature = "compression")]
pub use zstd::{Compressor, Decompressor};

use crate::error::{Error, Kind, Result};

/// The lowest compression level, which is the fastest.
pub const LEVEL_MIN: i32 = 1;
/// The highest compression level.
pub const LEVEL_MAX: i32 = 19;

/// Whether this build has the codec.
pub const AVAILABLE: bool = cfg!(feature = "compression");

/// # Errors
/// [`Kind::Unsupported`] where this build has no codec.
pub fn available() -> Result<()> {
    if AVAILABLE {
        return Ok(());
    }
    let why =
        "compression was asked for, and this brant was built without it (feature `compression`)";
    Err(Error::new(Kind::Unsupported, why))
}
