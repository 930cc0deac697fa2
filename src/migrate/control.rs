//! What both sides do with a connection: send and receive whole control records and blobs, and tell
//! the peer that the migration is over.

use super::outbox::Outbox;
use crate::channel::{Channel, Io, Part, PartMut};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::Deadline;
use crate::vmm::StateBlob;
use crate::wire::{
    Abort, Blob, BlobEnd, Header, Record, RecordType, StateEnd, HEADER_LEN, PAYLOAD_MAX,
};
use std::time::Duration;

/// The name of this software in messages.
pub(super) fn software() -> String {
    format!("brant {}", env!("CARGO_PKG_VERSION"))
}

/// The most time for telling the peer that the migration is over. A cancel has a tenth of a second
/// in all.
pub(super) const TELL: Duration = Duration::from_millis(20);

/// Sends one control record. The record is so short that its bytes get no extra time: a peer that
/// takes one byte now and then has no longer than a peer that takes nothing.
pub(super) fn send(channel: &mut Channel, record: &Record, io: &Io<'_>) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + 128);
    record.encode(&mut bytes)?;
    send_bytes(channel, &bytes, io)
}

/// As [`send`], for a few records that are encoded already. `records` may be empty.
pub(super) fn send_bytes(channel: &mut Channel, records: &[u8], io: &Io<'_>) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let io = io.within(io.idle.from_now());
    send_whole(channel, &[Part::bytes(records)], &io)
}

/// Sends whole records. When a cancel or a limit ends the sending in the middle, the rest is sent
/// if that goes at once, because only at a record's end can the peer be told why.
pub(super) fn send_whole(channel: &mut Channel, parts: &[Part<'_>], io: &Io<'_>) -> Result<()> {
    let sent = channel.send(parts, io);
    if let Err(error) = &sent {
        let _ = finish(channel, parts, u64::MAX, error, TELL);
    }
    sent
}

/// Continues a send of `parts` that failed with `error`, when that was a cancel or a limit. Waits
/// at most `patience` for the peer to take the bytes up to `end`, the end of a record. Returns
/// whether it has taken them.
pub(super) fn finish(
    channel: &mut Channel,
    parts: &[Part<'_>],
    end: u64,
    error: &Error,
    patience: Duration,
) -> bool {
    matches!(error.kind(), Kind::Cancelled | Kind::Timeout)
        && finish_record(channel, parts, end, patience)
}

/// Continues a send of `parts` that ended in the middle, when `parts` are still readable. Waits at
/// most `patience` for the peer to take the bytes up to `end`, the end of a record. Returns whether
/// it has taken them.
pub(super) fn finish_record(
    channel: &mut Channel,
    parts: &[Part<'_>],
    end: u64,
    patience: Duration,
) -> bool {
    let io = Io::patient(patience).within(Deadline::after(patience));
    channel.send_on(parts, end, &io).is_ok()
}

/// A blob that waits to be sent.
#[derive(Debug)]
pub(super) struct StoredBlob {
    pub(super) blob: Blob,
    pub(super) data: Vec<u8>,
    /// CRC-32 of the data.
    checksum: u32,
}

impl StoredBlob {
    /// A blob as the source sent it. Its checksum was compared.
    pub(super) fn received(blob: Blob, data: Vec<u8>) -> Self {
        StoredBlob {
            blob,
            data,
            checksum: 0,
        }
    }
}

/// The blobs of one kind, as the VMM saved them.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    list: Vec<StoredBlob>,
    bytes: u64,
}

impl Blobs {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn end(&self) -> BlobEnd {
        BlobEnd {
            count: self.list.len() as u32,
            bytes: self.bytes,
        }
    }

    /// Sends all blobs as early configuration, and the record that ends it.
    pub(super) fn send_early(&self, channel: &mut Channel, io: &Io<'_>) -> Result<()> {
        self.send_list(channel, RecordType::Early, io)?;
        send(channel, &Record::EarlyEnd(self.end()), io)
    }

    /// Sends all blobs as device state, and the record that ends it. That record also tells how
    /// long a hand-over counts.
    pub(super) fn send_state(
        &self,
        channel: &mut Channel,
        handover: Duration,
        io: &Io<'_>,
    ) -> Result<()> {
        self.send_list(channel, RecordType::State, io)?;
        let end = StateEnd {
            blobs: self.end(),
            handover_millis: handover.as_millis() as u32,
        };
        send(channel, &Record::StateEnd(end), io)
    }

    fn send_list(&self, channel: &mut Channel, kind: RecordType, io: &Io<'_>) -> Result<()> {
        for stored in &self.list {
            let mut head = Vec::with_capacity(HEADER_LEN + 160);
            stored.blob.encode(kind, stored.checksum, &mut head)?;
            let parts = [Part::bytes(&head), Part::bytes(&stored.data)];
            send_whole(channel, &parts, io)?;
        }
        Ok(())
    }
}

impl crate::vmm::StateSink for Blobs {
    fn put(&mut self, blob: &StateBlob<'_>) -> Result<()> {
        let length = blob.data.len() as u64;
        // This leaves room for the header's own fields, so that every accepted blob can be sent.
        if length > u64::from(PAYLOAD_MAX) - 4096 {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "state `{}` has {length} bytes; one blob has at most {}",
                    blob.name,
                    u64::from(PAYLOAD_MAX) - 4096
                ),
            ));
        }
        let described = Blob {
            name: blob.name.to_owned(),
            instance: blob.instance,
            version: blob.version,
            length,
        };
        // A trial encoding checks name and counts while an error can still reach the VMM.
        described.encode(RecordType::State, 0, &mut Vec::new())?;
        let mut data = Vec::new();
        data.try_reserve_exact(blob.data.len())
            .map_err(|_| Error::no_memory(format_args!("state `{}`", blob.name), length))?;
        data.extend_from_slice(blob.data);
        self.bytes += length;
        let stored = StoredBlob {
            blob: described,
            // The checksum is that of the copy, because the VMM may change its buffer later.
            checksum: crc32fast::hash(&data),
            data,
        };
        fallible::push(&mut self.list, stored, "state")?;
        Ok(())
    }
}

/// Tells the peer why the migration is over, after what is still to be said in `outbox`. That works
/// when the stream is at a record's end and the peer takes the bytes at once. Returns whether it
/// worked. Otherwise the peer learns the end from the end of the connection.
pub(super) fn abort(channel: &mut Channel, outbox: &mut Outbox, error: &Error) -> bool {
    outbox.send_last(channel, &goodbye(error), TELL).is_ok()
}

/// The ABORT that says `error`.
pub(super) fn goodbye(error: &Error) -> Record {
    Record::Abort(Abort {
        code: error.kind() as i32,
        reason: error.message().to_owned(),
    })
}

/// The error on this side for the peer's ABORT.
pub(super) fn refused(who: &str, abort: &Abort) -> Error {
    let kind = match abort.code {
        c if c == Kind::Cancelled as i32 => Kind::Cancelled,
        c if c == Kind::Layout as i32 => Kind::Layout,
        c if c == Kind::Version as i32 => Kind::Version,
        _ => Kind::Refused,
    };
    // The reason is the peer's text, so control characters are kept out of brant's messages.
    let reason: String = abort
        .reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Error::new(kind, format!("{who} ended the migration: {reason}"))
}

/// The error for a record that came where another was expected.
pub(super) fn unexpected(found: RecordType, expected: &str) -> Error {
    Error::new(
        Kind::Protocol,
        format!("expected {expected}, found {}", found.name()),
    )
}

/// Reads the rest of a record's payload and drops it.
pub(super) fn drop_bytes(channel: &mut Channel, mut left: usize, io: &Io<'_>) -> Result<()> {
    let mut scratch = [0u8; 4096];
    while left > 0 {
        let some = left.min(scratch.len());
        channel.recv_exact(&[PartMut::bytes(&mut scratch[..some])], io)?;
        left -= some;
    }
    Ok(())
}

/// Reads a payload of the length that the header announced, in steps. So memory is taken only for
/// what has really arrived.
pub(super) fn read_payload(channel: &mut Channel, header: &Header, io: &Io<'_>) -> Result<Vec<u8>> {
    const STEP: usize = 1 << 20;
    let length = header.payload as usize;
    let mut payload = Vec::new();
    while payload.len() < length {
        let step = (length - payload.len()).min(STEP);
        let from = payload.len();
        payload
            .try_reserve(step)
            .map_err(|_| Error::no_memory("a record's payload", length as u64))?;
        payload.resize(from + step, 0);
        channel.recv_exact(&[PartMut::bytes(&mut payload[from..])], io)?;
    }
    Ok(payload)
}
