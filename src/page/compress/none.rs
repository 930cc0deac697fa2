//! No codec: what a build without the feature `compression` has in place of `zstd.rs`.
//!
//! No side offers compression in such a build, and parameters that ask for it are refused. So nobody
//! ever holds one of these.

use super::available;
use crate::error::Result;
use std::convert::Infallible;

/// Never made.
#[derive(Debug)]
pub struct Compressor(Infallible);

impl Compressor {
    /// # Errors
    /// Always: [`Kind::Unsupported`](crate::error::Kind::Unsupported).
    pub fn new(_level: i32) -> Result<Self> {
        match available() {
            Err(why) => Err(why),
            Ok(()) => unreachable!("this build has no codec"),
        }
    }

    /// See `zstd.rs`.
    pub fn compress(&mut self, _contents: &[u8], _room: &mut [u8]) -> Option<usize> {
        match self.0 {}
    }
}

/// Never made.
#[derive(Debug)]
pub struct Decompressor(Infallible);

impl Decompressor {
    /// # Errors
    /// Always: [`Kind::Unsupported`](crate::error::Kind::Unsupported).
    pub fn new() -> Result<Self> {
        match available() {
            Err(why) => Err(why),
            Ok(()) => unreachable!("this build has no codec"),
        }
    }

    /// See `zstd.rs`.
    pub fn decompress(&mut self, _frame: &[u8], _contents: &mut [u8]) -> Result<()> {
        match self.0 {}
    }
}
