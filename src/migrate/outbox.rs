//! The destination's acknowledgements, which it sends without ever waiting.
//!
//! Both sides send on one connection. Example of a deadlock: the destination waits for room to send
//! an acknowledgement, and does not read meanwhile. The source waits for room to send pages, and
//! does not read the acknowledgements. Neither ever goes on. So an acknowledgement is sent when
//! there is room for it. When there is no room, a later acknowledgement takes its place, because it
//! includes the earlier one.

use crate::channel::{Channel, Io, Part};
use crate::error::{Kind, Result};
use crate::wire::{Ack, Record};
use std::time::Duration;

/// What is to be sent when there is room.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The rest of a record whose beginning is sent.
    rest: Vec<u8>,
    /// The newest marker that is not acknowledged.
    due: Option<u64>,
    /// Whole records to be sent before the next acknowledgement: one for each device at most.
    before: Vec<u8>,
}

impl Outbox {
    /// Whether nothing is left to send.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.due.is_none() && self.before.is_empty()
    }

    /// Records that marker `number` has been reached.
    pub(super) fn acknowledge(&mut self, number: u64) {
        self.due = Some(number);
    }

    /// Records that `record` is to be sent. The caller bounds how many there are.
    pub(super) fn say(&mut self, record: &Record) -> Result<()> {
        record.encode(&mut self.before)
    }

    /// Sends as much as there is room for, without waiting.
    pub(super) fn flush(&mut self, channel: &mut Channel) -> Result<()> {
        loop {
            if self.rest.is_empty() && !self.before.is_empty() {
                self.rest = std::mem::take(&mut self.before);
            } else if self.rest.is_empty() {
                let Some(number) = self.due.take() else {
                    return Ok(());
                };
                Record::Ack(Ack { number }).encode(&mut self.rest)?;
            }
            let sent = match channel.try_send(&self.rest) {
                // A source that has closed the connection gave its reason before. Reading on finds
                // that reason. The source takes nothing any more, so a wait for room would never
                // end.
                Err(e) if matches!(e.kind(), Kind::PeerGone | Kind::Io) => {
                    self.rest.clear();
                    self.before.clear();
                    self.due = None;
                    return Ok(());
                }
                sent => sent?,
            };
            self.rest.drain(..sent);
            if !self.rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends everything and then `record`, waiting for room. To be used when the source is known to
    /// read.
    pub(super) fn send(
        &mut self,
        channel: &mut Channel,
        record: &Record,
        io: &Io<'_>,
    ) -> Result<()> {
        let bytes = self.all_and(record)?;
        channel.send(&[Part::bytes(&bytes)], io)
    }

    /// The bytes of all that is left to send, and of `record` after it.
    fn all_and(&mut self, record: &Record) -> Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.append(&mut self.before);
        if let Some(number) = self.due.take() {
            Record::Ack(Ack { number }).encode(&mut bytes)?;
        }
        record.encode(&mut bytes)?;
        Ok(bytes)
    }
}

impl Outbox {
    /// Sends everything and then `record`, after which nothing follows: at once as far as there is
    /// room, and the rest within `patience`.
    pub(super) fn send_last(
        &mut self,
        channel: &mut Channel,
        record: &Record,
        patience: Duration,
    ) -> Result<()> {
        let bytes = self.all_and(record)?;
        channel.send_last(&bytes, patience)
    }

    /// Sends the rest of a record, and `record`, as far as there is room now. Nothing follows.
    pub(super) fn last_at_once(&mut self, channel: &mut Channel, record: &Record) {
        let mut bytes = std::mem::take(&mut self.rest);
        if record.encode(&mut bytes).is_ok() {
            // When the record does not go out, the source learns the end from the end of the
            // connection.
            let _ = channel.try_send(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Header, HEADER_LEN};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn acknowledging_never_waits_for_room_and_the_newest_is_said() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::from_fd(ours.into()).unwrap();
        let mut outbox = Outbox::default();
        // Far more than the socket holds, because nobody reads.
        for number in 1..=100_000 {
            outbox.acknowledge(number);
            outbox.flush(&mut channel).unwrap();
        }
        let reader = std::thread::spawn(move || {
            let (mut last, mut heard) = (0, 0);
            loop {
                let mut head = [0; HEADER_LEN];
                theirs.read_exact(&mut head).unwrap();
                let header = Header::decode(&head).unwrap();
                let mut payload = vec![0; header.payload as usize];
                theirs.read_exact(&mut payload).unwrap();
                match Record::decode(&header, &payload).unwrap() {
                    Record::Ack(ack) => {
                        assert!(ack.number > last, "{} after {last}", ack.number);
                        last = ack.number;
                        heard += 1;
                    }
                    _ => return (last, heard),
                }
            }
        });
        let io = Io::patient(Duration::from_secs(10));
        outbox.send(&mut channel, &Record::LayoutOk, &io).unwrap();
        let (last, heard) = reader.join().unwrap();
        assert_eq!(last, 100_000);
        assert!(heard < 100_000);
    }
}
