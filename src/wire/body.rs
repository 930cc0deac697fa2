//! [`Body`]: the payload of a control record, with its fields in a fixed order and its rules.
//!
//! Each record has one, next to its fields. `records` calls them to encode and to decode.

use super::cursor::Reader;
use crate::error::Result;
use crate::units::Pages;

/// The broken rule of a record, or `Ok`.
pub(super) type Checked = std::result::Result<(), String>;

/// A payload with a fixed order of fields.
pub(super) trait Body: Sized {
    /// Appends the payload to `out`.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads the fields. [`Body::problem`] judges them.
    fn read(reader: &mut Reader<'_>) -> Result<Self>;
    /// The rule that the fields break, if they break one.
    fn problem(&self) -> Checked {
        Ok(())
    }
}

/// The rule for `pages` pages from `first_page` on: all of them have a number.
pub(super) fn check_end(first_page: Pages, pages: u32) -> Checked {
    match first_page.0.checked_add(u64::from(pages)) {
        Some(_) => Ok(()),
        None => Err(format!(
            "expected pages below 2^64, found {pages} from page {first_page}"
        )),
    }
}
