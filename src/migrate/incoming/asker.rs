//! The urgent lane's way to the source, for the thread that serves faults: it asks for a page itself,
//! without waking the lane's thread first. Each wake-up of a thread costs as much as all else that is
//! done for a fault.
//!
//! The lane's thread sends acknowledgements on the same connection. Both threads put whole records into
//! one [`Outbox`], and send under its lock what the socket takes at once. So no record ends up in the
//! middle of another one, and nobody waits for the connection while it holds the lock.

use crate::channel::Channel;
use crate::error::Result;
use crate::migrate::outbox::Outbox;
use crate::wire::Record;
use std::sync::{Arc, Mutex, PoisonError};

/// See the file's description.
pub(super) struct Asker {
    /// The lane's connection, by a descriptor of its own.
    channel: Mutex<Channel>,
    outbox: Arc<Mutex<Outbox>>,
}

impl Asker {
    /// A second sender on a lane's connection: `twin` is that connection, and `outbox` the lane's.
    pub(super) fn new(twin: Channel, outbox: &Arc<Mutex<Outbox>>) -> Asker {
        Asker {
            channel: Mutex::new(twin),
            outbox: Arc::clone(outbox),
        }
    }

    /// Sends records as far as there is room for them now. Returns whether all went; if not, the rest is
    /// for the lane's thread, when there is room.
    pub(super) fn say(&self, records: &[Record]) -> Result<bool> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            outbox.say(record)?;
        }
        outbox.flush(&mut channel)?;
        Ok(outbox.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Pages;
    use crate::wire::{Header, Request, HEADER_LEN};
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Requests of one thread and acknowledgements of another, on a connection that is full most of the
    /// time: every record comes whole, and no request is lost.
    #[test]
    fn records_of_two_threads_never_end_up_in_each_other() {
        const ALL: u64 = 20_000;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut lane = Channel::from_fd(ours.into()).unwrap();
        let outbox = Arc::<Mutex<Outbox>>::default();
        let asker = Asker::new(lane.twin().unwrap(), &outbox);
        let request = |page| {
            Record::Request(Request {
                block: 1,
                runs: vec![(Pages(page), 1)],
            })
        };
        let all_said = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for page in 0..ALL {
                    asker.say(&[request(page)]).unwrap();
                }
                all_said.store(true, Ordering::Release);
            });
            scope.spawn(|| {
                for number in 1..=ALL {
                    let mut outbox = outbox.lock().unwrap();
                    outbox.acknowledge(number);
                    outbox.flush(&mut lane).unwrap();
                }
                loop {
                    let last = all_said.load(Ordering::Acquire);
                    let mut outbox = outbox.lock().unwrap();
                    outbox.flush(&mut lane).unwrap();
                    if last && outbox.is_empty() {
                        return;
                    }
                    drop(outbox);
                    std::thread::yield_now();
                }
            });
            let (mut asked, mut acknowledged) = (0, 0);
            while (asked, acknowledged) != (ALL, ALL) {
                let mut head = [0; HEADER_LEN];
                theirs.read_exact(&mut head).unwrap();
                let header = Header::decode(&head).unwrap();
                let mut payload = vec![0; header.payload as usize];
                theirs.read_exact(&mut payload).unwrap();
                match Record::decode(&header, &payload).unwrap() {
                    Record::Ack(ack) => {
                        assert!(ack.number > acknowledged);
                        acknowledged = ack.number;
                    }
                    record => {
                        let mut expected = Vec::new();
                        request(asked).encode(&mut expected).unwrap();
                        let mut found = Vec::new();
                        record.encode(&mut found).unwrap();
                        assert_eq!(found, expected);
                        asked += 1;
                    }
                }
            }
        });
    }
}
