//! What both sides do with a connection: whole control records and blobs, and telling the
//! peer that it is over.

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

/// How this software calls itself in messages.
pub(super) fn software() -> String {
    format!("brant {}", env!("CARGO_PKG_VERSION"))
}

/// How long telling the peer may take: cancelling has a tenth of a second in all.
pub(super) const TELL: Duration = Duration::from_millis(20);

/// Sends one control record. It is too short to go out in pieces: a peer that takes a byte of it
/// now and then has no longer than one that takes nothing.
pub(super) fn send(channel: &mut Channel, record: &Record, io: &Io<'_>) -> Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + 128);
    record.encode(&mut bytes)?;
    send_bytes(channel, &bytes, io)
}

/// The same for records that were encoded before, a few at once; none is fine.
pub(super) fn send_bytes(channel: &mut Channel, records: &[u8], io: &Io<'_>) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let io = io.within(io.idle.from_now());
    send_whole(channel, &[Part::bytes(records)], &io)
}

/// Sends whole records, and the rest of them too, if that goes at once, when a cancel or a limit ends
/// it in the middle: the peer can only be told why at a record's end.
fn send_whole(channel: &mut Channel, parts: &[Part<'_>], io: &Io<'_>) -> Result<()> {
    let sent = channel.send(parts, io);
    if let Err(error) = &sent {
        let _ = finish(channel, parts, u64::MAX, error, TELL);
    }
    sent
}

/// After a send of `parts` that failed with `error`: where that was a cancel or a limit, has `patience`
/// with the peer until it has taken the bytes up to `end`, a record's. Whether it has.
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

/// After a send of `parts` that ended in the middle and left them readable: has `patience` with the
/// peer until it has taken the bytes up to `end`, a record's. Whether it has.
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
    /// A blob as the source sent it, checked.
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

    /// Sends them all as early configuration, and the record that ends it.
    pub(super) fn send_early(&self, channel: &mut Channel, io: &Io<'_>) -> Result<()> {
        self.send_list(channel, RecordType::Early, io)?;
        send(channel, &Record::EarlyEnd(self.end()), io)
    }

    /// Sends them all as state, and the record that ends it and tells for how long a hand-over
    /// counts.
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
        // Room for the header's own fields, so that what is accepted here can be sent.
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
        // Encodes it once to have name and counts checked while the VMM can still hear of it.
        described.encode(RecordType::State, 0, &mut Vec::new())?;
        let mut data = Vec::new();
        data.try_reserve_exact(blob.data.len())
            .map_err(|_| Error::no_memory(format_args!("state `{}`", blob.name), length))?;
        data.extend_from_slice(blob.data);
        self.bytes += length;
        let stored = StoredBlob {
            blob: described,
            // Of the copy: what the VMM's buffer holds later is its own affair.
            checksum: crc32fast::hash(&data),
            data,
        };
        fallible::push(&mut self.list, stored, "state")?;
        Ok(())
    }
}

/// Tells the peer why it is over, if the stream is at a record's end and the peer takes it
/// at once; first what is left to say. Whether it could be told: else the peer learns it from the
/// end of the connection.
pub(super) fn abort(channel: &mut Channel, outbox: &mut Outbox, error: &Error) -> bool {
    let record = goodbye(error);
    let io = Io::patient(TELL).within(Deadline::after(TELL));
    outbox.send(channel, &record, &io).is_ok()
}

/// The ABORT that says `error`.
pub(super) fn goodbye(error: &Error) -> Record {
    Record::Abort(Abort {
        code: error.kind() as i32,
        reason: error.message().to_owned(),
    })
}

/// What an ABORT of the peer's is as an error here.
pub(super) fn refused(who: &str, abort: &Abort) -> Error {
    let kind = match abort.code {
        c if c == Kind::Cancelled as i32 => Kind::Cancelled,
        c if c == Kind::Layout as i32 => Kind::Layout,
        c if c == Kind::Version as i32 => Kind::Version,
        _ => Kind::Refused,
    };
    // It is the peer's text: no control characters into our messages.
    let reason: String = abort
        .reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Error::new(kind, format!("{who} ended the migration: {reason}"))
}

/// A record in another place than its own.
pub(super) fn unexpected(found: RecordType, expected: &str) -> Error {
    Error::new(
        Kind::Protocol,
        format!("expected {expected}, found {}", found.name()),
    )
}

/// Reads what is left of a record's payload and keeps nothing of it.
pub(super) fn drop_bytes(channel: &mut Channel, mut left: usize, io: &Io<'_>) -> Result<()> {
    let mut scratch = [0u8; 4096];
    while left > 0 {
        let some = left.min(scratch.len());
        channel.recv_exact(&[PartMut::bytes(&mut scratch[..some])], io)?;
        left -= some;
    }
    Ok(())
}

/// Reads what a record's header announced, in steps, so that a peer that announces much has
/// to send much.
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
