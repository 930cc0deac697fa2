//! Who may open the session: what a connection of a listener has to say before it is the source's.
//!
//! Whoever sends a whole, valid HELLO for channel 0 is taken for the source. A HELLO is no proof of
//! identity: who may connect is the VMM's decision (the address, a directory's permissions), and a
//! proof will be checked here. Somebody who speaks this protocol and says something else is told
//! why it is refused; everybody else is closed without a word.
//!
//! Called by `gather`, which waits. Knows the first record and nothing of what follows it.

use crate::channel::{Channel, Newcomer};
use crate::error::{Error, Kind, Result};
use crate::migrate::params::Params;
use crate::runtime::Limit;
use crate::wire::{self, Header, Hello, Record, RecordType, HEADER_LEN};
use std::net::IpAddr;
use std::time::Instant;

/// The longest HELLO.
const HELLO_MAX: usize = HEADER_LEN + RecordType::Hello.payload_limits().1 as usize;

/// The session's connection, and what was said on it.
pub(super) struct Arrival {
    pub(super) channel: Channel,
    pub(super) hello: Hello,
}

/// A connection on which a HELLO may come.
pub(super) struct Candidate {
    pub(super) newcomer: Newcomer,
    /// From where, roughly.
    pub(super) place: Option<IpAddr>,
    pub(super) came: Instant,
    /// For the HELLO.
    pub(super) limit: Limit,
    bytes: [u8; HELLO_MAX],
    pub(super) got: usize,
    /// All of it is here.
    pub(super) done: bool,
}

/// What was said so far.
pub(super) enum Said {
    /// A part of a HELLO, perhaps nothing of it.
    NotAll,
    Hello(Hello),
    /// Something else, in our language: why it is no HELLO.
    Wrong(String),
    /// It is closed, or speaks another language.
    Nothing,
}

impl Candidate {
    pub(super) fn new(newcomer: Newcomer, params: &Params) -> Self {
        Candidate {
            newcomer,
            place: None,
            came: Instant::now(),
            limit: params.connect().from_now(),
            bytes: [0; HELLO_MAX],
            got: 0,
            done: false,
        }
    }

    /// Reads what there is, no further than to the end of HELLO.
    pub(super) fn read(&mut self, ready: bool) -> Said {
        if !ready {
            return Said::NotAll;
        }
        loop {
            let want = match self.header() {
                None => HEADER_LEN,
                Some(Ok(header)) => HEADER_LEN + header.payload as usize,
                Some(Err(error)) => return self.refuse(&error),
            };
            if self.got == want {
                return self.hello();
            }
            let room = &mut self.bytes[self.got..want];
            match self.newcomer.recv(room) {
                Ok(0) => return Said::Nothing,
                Ok(n) => self.got += n,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Said::NotAll,
                    Some(libc::EINTR) => {}
                    _ => return Said::Nothing,
                },
            }
        }
    }

    /// The first record's header, once it is here.
    fn header(&self) -> Option<Result<Header>> {
        let head = self.bytes[..self.got].first_chunk()?;
        let header = Header::decode(head).and_then(|header| match header.classify()? {
            Some(RecordType::Hello) => Ok(header),
            other => Err(Error::new(
                Kind::Protocol,
                format!(
                    "expected HELLO, found {}",
                    other.map_or("a record of a later version", RecordType::name)
                ),
            )),
        });
        Some(header)
    }

    /// The session; nothing if the connection broke just now.
    pub(super) fn arrived(self, hello: Hello) -> Option<Arrival> {
        let channel = self.newcomer.into_channel().ok()?;
        Some(Arrival { channel, hello })
    }

    fn hello(&mut self) -> Said {
        let payload = &self.bytes[HEADER_LEN..self.got];
        let record = match self.header() {
            Some(Ok(header)) => Record::decode(&header, payload),
            _ => return Said::Nothing,
        };
        match record {
            // Channel 0 opens the session. Whoever says otherwise is no source that could begin one.
            Ok(Record::Hello(hello)) if hello.channel != 0 => self.refuse(&Error::new(
                Kind::Unsupported,
                format!(
                    "HELLO: expected channel 0, which opens a session, found channel {} of {} (role {})",
                    hello.channel, hello.channels, hello.role
                ),
            )),
            Ok(Record::Hello(hello)) => {
                self.done = true;
                Said::Hello(hello)
            }
            Ok(_) => Said::Nothing,
            Err(error) => self.refuse(&error),
        }
    }

    /// Somebody who speaks this protocol is told what was wrong, without waiting for room.
    fn refuse(&mut self, error: &Error) -> Said {
        if self.bytes[..4] != wire::MAGIC.to_le_bytes() {
            return Said::Nothing;
        }
        let abort = Record::Abort(wire::Abort {
            code: error.kind() as i32,
            reason: error.message().to_owned(),
        });
        let mut bytes = Vec::new();
        if abort.encode(&mut bytes).is_ok() {
            self.newcomer.dismiss(&bytes);
        }
        // Whoever has a path has the same as all who come there.
        let from = match self.newcomer.peer_network() {
            Some(_) => self.newcomer.peer().unwrap_or_default(),
            None => String::new(),
        };
        let from = match from.strip_prefix("tcp:") {
            Some(address) => format!(" from {address}"),
            None => String::new(),
        };
        Said::Wrong(format!("a connection{from} was closed: {error}"))
    }
}
