//! What the destination says to the source: small records, looked for between batches and
//! waited for at the turning points.

use crate::channel::{Channel, Io, PartMut};
use crate::error::{Error, Kind, Result};
use crate::migrate::control::refused;
use crate::runtime::{Deadline, Recall};
use crate::wire::{Header, Record, RecordType, HEADER_LEN};
use std::time::Duration;

/// No record that a destination sends is longer: ABORT with its reason, or a skippable one
/// of a later version.
const LONGEST: usize = 128 << 10;

#[derive(Debug, Default)]
pub(super) struct Replies {
    bytes: Vec<u8>,
    /// It has said ABORT.
    ended: bool,
}

impl Replies {
    /// Whether it has said ABORT.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The next record that is here in full, without waiting.
    pub(super) fn poll(&mut self, channel: &mut Channel) -> Result<Option<Record>> {
        // A few reads, whatever comes: what is skipped gives no record to return with.
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

    /// The next record, waiting for it.
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

    /// The same until `recall` is raised: `None` then.
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

    /// After sending failed because the peer is gone: the reason that it gave, if one is here.
    pub(super) fn reason(&mut self, channel: &mut Channel) -> Option<Error> {
        // It comes last, and a peer that goes on talking has none to give.
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

    /// After the destination was told that it is over: reads what it says, for at most `limit`,
    /// until it ends it too. Closing with unread acknowledgements resets the connection, and
    /// the reason would be lost with it.
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
                    self.ended = true;
                    return Err(refused("the destination", &abort));
                }
                Some(record) => return Ok(Some(record)),
            }
        }
        Ok(None)
    }
}
