//! A bounds-checked reader over one payload.
//!
//! Each step names the field that it reads, so that the error on a short payload names what is
//! missing. Only `records` uses this.

use crate::error::{Error, Kind, Result};

/// Reads fields from the front of a payload.
pub(super) struct Reader<'a> {
    record: &'static str,
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`, the payload (or its prefix) of a record called `record`.
    pub(super) fn new(record: &'static str, bytes: &'a [u8]) -> Self {
        Reader {
            record,
            rest: bytes,
            total: bytes.len(),
        }
    }

    /// A [`Kind::Protocol`] error about this record.
    pub(super) fn refuse(&self, message: impl std::fmt::Display) -> Error {
        Error::new(Kind::Protocol, format!("{}: {message}", self.record))
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.total - self.rest.len()
    }

    fn short(&self, field: &str, wanted: usize) -> Error {
        self.refuse(format_args!(
            "{field}: expected {wanted} bytes at offset {}, found {}",
            self.position(),
            self.rest.len()
        ))
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(self.short(field, N)),
        }
    }

    pub(super) fn u8(&mut self, field: &str) -> Result<u8> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &str) -> Result<u16> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self, field: &str) -> Result<i32> {
        self.array(field).map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// `length` bytes of UTF-8, at most `limit`. Nothing is allocated before the limit has been
    /// checked and the bytes are known to be there.
    pub(super) fn text(&mut self, field: &str, length: usize, limit: usize) -> Result<String> {
        let head = self.bytes(field, length, limit)?;
        let text = std::str::from_utf8(head)
            .map_err(|e| self.refuse(format_args!("{field}: expected UTF-8, found {e}")))?;
        let mut owned = String::new();
        owned.try_reserve_exact(length).map_err(|_| {
            Error::no_memory(format_args!("{}: {field}", self.record), length as u64)
        })?;
        owned.push_str(text);
        Ok(owned)
    }

    /// [`Reader::text`] for text that only people read: U+FFFD replaces what is not UTF-8.
    pub(super) fn text_lossy(
        &mut self,
        field: &str,
        length: usize,
        limit: usize,
    ) -> Result<String> {
        let head = self.bytes(field, length, limit)?;
        Ok(String::from_utf8_lossy(head).into_owned())
    }

    /// All that is left, at most `limit` bytes.
    pub(super) fn rest(&mut self, field: &str, limit: usize) -> Result<Vec<u8>> {
        let rest = self.bytes(field, self.rest.len(), limit)?;
        let mut owned = Vec::new();
        owned.try_reserve_exact(rest.len()).map_err(|_| {
            Error::no_memory(format_args!("{}: {field}", self.record), rest.len() as u64)
        })?;
        owned.extend_from_slice(rest);
        Ok(owned)
    }

    /// Whether all of the payload was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn bytes(&mut self, field: &str, length: usize, limit: usize) -> Result<&'a [u8]> {
        if length > limit {
            return Err(self.refuse(format_args!(
                "{field}: expected at most {limit} bytes, found {length}"
            )));
        }
        let Some((head, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.short(field, length));
        };
        self.rest = rest;
        Ok(head)
    }

    /// The end of the payload. An error if bytes are left.
    pub(super) fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.refuse(format_args!(
            "expected the payload to end after {} bytes, found {} more",
            self.position(),
            self.rest.len()
        )))
    }
}
