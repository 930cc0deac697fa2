//! [`Body`]: the payload of a control record, with its fields in a fixed order and its rules.
//!
//! Each record has one, next to its fields. `records` calls them to encode and to decode.

use super::cursor::Reader;
use crate::error::Result;

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
