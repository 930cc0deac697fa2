//! The records that the destination sends to the source. They are small. The source looks for them
//! between batches, and waits for them at the turning points.

use crate::channel::{Channel, Io, PartMut};
use crate::error::{Error, Kind, Result};
use crate::migrate::control::refused;
use crate::runtime::{Deadline, Recall};
use crate::wire::{Header, Record, RecordType, HEADER_LEN};
use std::time::Duration;

/// The longest record that a destination sends: ABORT with its reason, or a skippable record of a
/// later version.
const LONGEST: usize = 128 << 10;

#[derive(Debug, Default)]
pub(super) struct Replies {
    bytes: Vec<u8>,
    /// The code of the destination's ABORT, when one has come.
    abort: Option<i32>,
}

impl Replies {
    /// Whether the destination has sent ABORT.
    pub(super) fn ended(&self) -> bool {
        self.abort.is_some()
    }

    /// The code of the destination's ABORT, when one has come.
    pub(super) fn abort_code(&self) -> Option<i32> {
        self.abort
    }

    /// The next record that has arrived in full. Does not wait.
    pub(super) fn poll(&mut self, channel: &mut Channel) -> Result<Option<Record>> {
        // The number of reads is bounded, because skipped records end no read.
        for _ in 0..4 {
            if let Some(record) = self.parse()? {
                return Ok(Some(record));
            }
            let mut buffer = [0u8; 4096];
            let got = channel.try_recv(&[PartMut::bytes(&mut buffer)])?;
            if got == 0 {
                return Ok(None);
            }
            self.take(&buffer[..got])?;
        }
        Ok(None)
    }

    /// Waits for the next record.
    pub(super) fn wait(&mut self, channel: &mut Channel, io: &Io<'_>) -> Result<Record> {
        loop {
            if let Some(record) = self.parse()? {
                return Ok(record);
            }
            let mut buffer = [0u8; 4096];
            let got = channel.recv_some(&[PartMut::bytes(&mut buffer)], io)?;
            self.take(&buffer[..got])?;
        }
    }

    /// As [`Replies::wait`]. `None` when `recall` is raised.
    pub(super) fn wait_unless(
        &mut self,
        channel: &mut Channel,
        recall: &Recall,
        io: &Io<'_>,
    ) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.parse()? {
                return Ok(Some(record));
            }
            let mut buffer = [0u8; 4096];
            let got = channel.recv_some_unless(&[PartMut::bytes(&mut buffer)], recall, io)?;
            if got == 0 {
                return Ok(None);
            }
            self.take(&buffer[..got])?;
        }
    }

    /// The peer's reason for going away, if it has arrived. For a send that failed because the peer
    /// is gone.
    pub(super) fn reason(&mut self, channel: &mut Channel) -> Option<Error> {
        // The reason is the peer's last record. A peer that sends more records than this gives
        // none.
        for _ in 0..4096 {
            match self.poll(channel) {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(e) if e.kind() == Kind::PeerGone || e.kind() == Kind::Io => return None,
                Err(e) => return Some(e),
            }
        }
        None
    }

    /// Reads what the destination still says, for at most `limit`, until it closes the connection.
    /// This follows the message that the migration is over. Closing a connection with unread
    /// acknowledgements would reset it, and the destination would lose the reason.
    pub(super) fn drain(&mut self, channel: &mut Channel, limit: Duration) {
        let io = Io::patient(limit).within(Deadline::after(limit));
        while self.wait(channel, &io).is_ok() {}
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes
            .try_reserve(bytes.len())
            .map_err(|_| Error::no_memory("the destination's records", bytes.len() as u64))?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn parse(&mut self) -> Result<Option<Record>> {
        while let Some(head) = self.bytes.first_chunk::<HEADER_LEN>() {
            let header = Header::decode(head)?;
            let kind = header.classify()?;
            let length = HEADER_LEN + header.payload as usize;
            if length > LONGEST {
                return Err(Error::new(
                    Kind::Protocol,
                    format!("a destination's record has at most {LONGEST} bytes, found {length}"),
                ));
            }
            if self.bytes.len() < length {
                return Ok(None);
            }
            let record = match kind {
                None | Some(RecordType::Keepalive) => None,
                Some(_) => Some(Record::decode(&header, &self.bytes[HEADER_LEN..length])?),
            };
            self.bytes.drain(..length);
            match record {
                None => {}
                Some(Record::Abort(abort)) => {
                    self.abort = Some(abort.code);
                    return Err(refused("the destination", &abort));
                }
                Some(record) => return Ok(Some(record)),
            }
        }
        Ok(None)
    }
}
