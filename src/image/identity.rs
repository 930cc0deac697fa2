//! Which image this is, and of which image it holds the changes. Pure: no file.
//!
//! An image is named by its header's checksum, which covers the length and the index, whose checksums
//! cover the tables, which have the checksums of all pages. So an image that was changed anywhere is
//! another image. A random number tells apart two images with the same contents.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::units::PAGE_SIZE;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The header is one page.
pub const HEADER_LEN: usize = PAGE_SIZE as usize;
/// Where the header's own checksum is.
pub(super) const HEADER_SUM: usize = HEADER_LEN - 4;
/// The longest name of a file, in bytes.
pub const FILE_NAME_MAX: usize = 255;

/// Where a header has its own number, and its parent's number, checksum, length, and name.
const OWN_NUMBER: Range<usize> = 36..52;
const PARENT_NUMBER: Range<usize> = 52..68;
const PARENT_SUM: Range<usize> = 68..72;
const PARENT_LENGTH: Range<usize> = 72..80;
const NAME_LENGTH: Range<usize> = 80..82;
const NAME: usize = 82;

/// Tells an image from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageId {
    /// Random; 0 in an image of older software.
    pub number: [u8; 16],
    /// The header's checksum.
    pub sum: u32,
    /// How long the file is.
    pub length: u64,
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u128::from_be_bytes(self.number);
        let (sum, length) = (self.sum, self.length);
        write!(f, "{number:032x}-{sum:08x} of {length} bytes")
    }
}

/// The image before an image that holds what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Which image it is.
    pub id: ImageId,
    /// Its file's name, in the same directory.
    pub name: OsString,
}

fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: Range<usize>) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at]);
    array
}

impl ImageId {
    /// Of an image with this header.
    pub fn of(header: &[u8; HEADER_LEN]) -> ImageId {
        ImageId {
            number: array(header, OWN_NUMBER),
            sum: u32::from_le_bytes(array(header, HEADER_SUM..HEADER_LEN)),
            length: u64::from_le_bytes(array(header, 16..24)),
        }
    }
}

/// Puts an image's number into its header.
pub(super) fn put_number(number: &[u8; 16], header: &mut [u8; HEADER_LEN]) {
    header[OWN_NUMBER].copy_from_slice(number);
}

/// Whether a file of the same directory can have this name.
fn is_file_name(name: &[u8]) -> bool {
    (1..=FILE_NAME_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

impl Parent {
    /// The parent `id` with a file's name.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a name that is none.
    pub fn new(id: ImageId, name: &OsStr) -> Result<Parent> {
        if !is_file_name(name.as_bytes()) {
            let what = format!("expected the name of an image's file, found {name:?}");
            return Err(Error::new(Kind::Invalid, what));
        }
        let name = name.to_owned();
        Ok(Parent { id, name })
    }

    /// Puts it into the header of the image that holds the changes.
    pub(super) fn encode(&self, header: &mut [u8; HEADER_LEN]) {
        let name = self.name.as_bytes();
        header[PARENT_NUMBER].copy_from_slice(&self.id.number);
        header[PARENT_SUM].copy_from_slice(&self.id.sum.to_le_bytes());
        header[PARENT_LENGTH].copy_from_slice(&self.id.length.to_le_bytes());
        header[NAME_LENGTH].copy_from_slice(&(name.len() as u16).to_le_bytes());
        header[NAME..NAME + name.len()].copy_from_slice(name);
    }

    /// Reads it from a header whose checksum was right.
    pub(super) fn decode(header: &[u8; HEADER_LEN]) -> Result<Parent> {
        let length = usize::from(u16::from_le_bytes(array(header, NAME_LENGTH)));
        let name = header.get(NAME..NAME + length.min(FILE_NAME_MAX + 1));
        let Some(name) = name.filter(|name| is_file_name(name)) else {
            return Err(Error::new(
                Kind::Image,
                format!(
                    "its header has no name of the image before it: expected 1 to {FILE_NAME_MAX} \
                     bytes of a file's name at offset {NAME}, found {length} bytes"
                ),
            ));
        };
        let mut owned = Vec::new();
        fallible::reserve(&mut owned, name.len(), "a file's name")?;
        owned.extend_from_slice(name);
        Ok(Parent {
            id: ImageId {
                number: array(header, PARENT_NUMBER),
                sum: u32::from_le_bytes(array(header, PARENT_SUM)),
                length: u64::from_le_bytes(array(header, PARENT_LENGTH)),
            },
            name: OsString::from_vec(owned),
        })
    }
}
