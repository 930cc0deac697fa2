//! Names and short texts of records: one byte of length, then UTF-8.

use super::body::Checked;
use super::cursor::Reader;
use crate::error::Result;

/// Names are used in C strings, logs and file names on both sides.
pub(super) fn check_name(field: &str, name: &str, least: usize, most: usize) -> Checked {
    if !(least..=most).contains(&name.len()) {
        return Err(format!(
            "{field}: expected {least} to {most} bytes, found {}",
            name.len()
        ));
    }
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return Err(format!(
            "{field}: expected no control characters, found {c:?}"
        ));
    }
    Ok(())
}

pub(super) fn write_u8_text(text: &str, out: &mut Vec<u8>) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn read_u8_text(reader: &mut Reader<'_>, field: &str, limit: usize) -> Result<String> {
    let length = reader.u8(field)?;
    reader.text(field, usize::from(length), limit)
}
