//! A peer that sends what the test tells it to, record by record.

use super::time::LONG;
use brant::units::PAGE_SIZE;
use brant::wire::{Block, Header, Hello, Record, RecordType, HEADER_LEN, ROLE_BULK};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// A source's first record; a test changes what should differ.
pub fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features_offered: 1,
        features_required: 1,
        token: [9; 16],
        channel: 0,
        channels: 1,
        page_shift: 12,
        role: ROLE_BULK,
        software: String::new(),
    }
}

/// What a source says of a block of pages of 4 KiB.
pub fn block(id: u32, name: &str, pages: u64) -> Block {
    Block {
        id,
        length: pages * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: name.into(),
    }
}

/// A peer that says what the test tells it to say.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn pair() -> (Raw, OwnedFd) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_read_timeout(Some(LONG)).unwrap();
        a.set_write_timeout(Some(LONG)).unwrap();
        (Raw(a), b.into())
    }
    pub fn say(&mut self, record: &Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        self.0.write_all(&bytes).unwrap();
    }
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }
    /// The next record that is no run of pages; `None` at the stream's end.
    pub fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            let mut head = [0u8; HEADER_LEN];
            self.0.read_exact(&mut head).ok()?;
            let header = Header::decode(&head).unwrap();
            let mut payload = vec![0u8; header.payload as usize];
            self.0.read_exact(&mut payload).ok()?;
            if !matches!(header.record_type(), Ok(Some(k)) if k.is_page_run()) {
                return Some((header, payload));
            }
        }
    }
    pub fn hear_record(&mut self) -> Option<Record> {
        let (header, payload) = self.hear()?;
        Some(Record::decode(&header, &payload).unwrap())
    }
    /// Reads until the end. Returns the reason if there was an ABORT.
    pub fn hear_abort(&mut self) -> Option<String> {
        let mut reason = None;
        while let Some((header, payload)) = self.hear() {
            if header.record_type() == Ok(Some(RecordType::Abort)) {
                let Record::Abort(abort) = Record::decode(&header, &payload).unwrap() else {
                    unreachable!()
                };
                reason = Some(abort.reason);
                break;
            }
        }
        reason
    }
}
