//! Which connection may open the session, and which ones belong to it: what a connection has to say
//! before it is the source's.
//!
//! A connection that sends a whole, valid HELLO for channel 0 is taken for the source's. A HELLO is
//! no proof of identity. The VMM decides who may connect (by the address, by a directory's
//! permissions), and a proof will be checked here. The session's other channels are recognised by
//! the session's token. Their HELLO may come before that of channel 0: such a connection waits,
//! like any stranger, until the session has begun. A peer that speaks this protocol and says
//! something wrong is told why it is refused. Every other connection is closed without a word.
//!
//! Called by `gather`, which does the waiting. This file knows the first record of a connection and
//! nothing of what follows.

use crate::channel::{Channel, Newcomer};
use crate::error::{Error, Kind, Result};
use crate::migrate::params::Params;
use crate::runtime::Limit;
use crate::wire::{self, Header, Hello, Record, RecordType, HEADER_LEN};
use std::net::IpAddr;
use std::time::Instant;

/// The length of the longest HELLO.
const HELLO_MAX: usize = HEADER_LEN + RecordType::Hello.payload_limits().1 as usize;

/// A connection of the session, and the HELLO that was said on it.
pub(super) struct Arrival {
    pub(super) channel: Channel,
    pub(super) hello: Hello,
}

/// The session that a HELLO of channel 0 has opened, and the connections of it that have come.
pub(super) struct Session {
    opening: Hello,
    /// Of each connection: its channels, and behind them the urgent lane when there is to be one.
    there: Vec<bool>,
    /// Whether a channel may come again: which recovery a connection belongs to shows later, and the
    /// one that is there may be a lost one of an earlier recovery.
    again: bool,
}

/// How many connections the session of `hello` has: one for each channel, and the urgent lane where
/// the source wants postcopy.
pub(super) fn connections(hello: &Hello) -> usize {
    usize::from(hello.channels) + usize::from(wants_urgent(hello))
}

fn wants_urgent(hello: &Hello) -> bool {
    hello.features_required & wire::FEATURE_POSTCOPY != 0
}

/// Whether `hello` was said on the session's urgent lane.
pub(super) fn is_urgent(hello: &Hello) -> bool {
    hello.role == wire::ROLE_URGENT
}

impl Session {
    pub(super) fn new(opening: Hello) -> Self {
        let mut session = Session {
            there: vec![false; connections(&opening)],
            opening,
            again: false,
        };
        session.there[usize::from(session.opening.channel)] = true;
        session
    }

    /// A session that was opened by `opening` and has lost all of its connections. New ones are handed
    /// in, each once.
    pub(super) fn again(opening: Hello) -> Self {
        Session {
            there: vec![false; connections(&opening)],
            opening,
            again: false,
        }
    }

    /// The same at a listener, where a channel's connection may be lost before all are there, and
    /// another one comes.
    pub(super) fn again_at_listener(opening: Hello) -> Self {
        Session {
            again: true,
            ..Self::again(opening)
        }
    }

    /// Admits a connection on which `hello` was said, if the connection belongs to the session.
    ///
    /// # Errors
    /// When the connection does not belong to the session: what was expected, and what was found.
    pub(super) fn admit(&mut self, hello: &Hello) -> Result<()> {
        let opening = &self.opening;
        check_role(hello)?;
        let refused = |what: String| Err(Error::new(Kind::Protocol, format!("HELLO: {what}")));
        if hello.token != opening.token {
            return refused("expected the token of the session that goes on, found another".into());
        }
        if hello.channels != opening.channels {
            return refused(format!(
                "expected a connection of the session's {} channels, found one of {}",
                opening.channels, hello.channels
            ));
        }
        let said = |h: &Hello| {
            let versions = (h.version_min, h.version_max, h.page_shift);
            (versions, h.features_offered, h.features_required)
        };
        if said(hello) != said(opening) {
            return refused(
                "expected the versions and features that channel 0 offers, found others".into(),
            );
        }
        match self.there.get_mut(usize::from(hello.channel)) {
            Some(there) if !*there || self.again => {
                *there = true;
                Ok(())
            }
            _ if is_urgent(hello) => refused("the urgent lane is there already".into()),
            _ => refused(format!("channel {} is there already", hello.channel)),
        }
    }

    /// Notes that a channel that was admitted is gone again.
    pub(super) fn forget(&mut self, channel: u16) {
        if let Some(there) = self.there.get_mut(usize::from(channel)) {
            *there = false;
        }
    }

    /// Notes that a channel is there after all.
    pub(super) fn note(&mut self, channel: u16) {
        if let Some(there) = self.there.get_mut(usize::from(channel)) {
            *there = true;
        }
    }

    /// The channels that are missing. When there is none, the session is complete.
    pub(super) fn missing(&self) -> Vec<usize> {
        let all = self.there.iter().enumerate();
        all.filter(|(_, there)| !**there).map(|(n, _)| n).collect()
    }

    /// The urgent lane's number, when the session is to have one.
    pub(super) fn urgent(&self) -> Option<usize> {
        wants_urgent(&self.opening).then_some(usize::from(self.opening.channels))
    }

    pub(super) fn is_complete(&self) -> bool {
        self.there.iter().all(|there| *there)
    }
}

/// Refuses a connection of a role that this version does not know, and an urgent lane without
/// postcopy. An urgent lane's number is the one behind the last channel's.
pub(super) fn check_role(hello: &Hello) -> Result<()> {
    let what = match hello.role {
        wire::ROLE_BULK if hello.channel < hello.channels => return Ok(()),
        wire::ROLE_URGENT if !wants_urgent(hello) => {
            "a connection of role 1 (urgent), and does not require the feature \"postcopy\""
                .to_owned()
        }
        wire::ROLE_URGENT if hello.channel == hello.channels => return Ok(()),
        wire::ROLE_BULK | wire::ROLE_URGENT => {
            format!(
                "a connection of role {} as channel {} of {}",
                hello.role, hello.channel, hello.channels
            )
        }
        role => format!(
            "a connection of role {role}; this version takes bulk ones, {}, and urgent ones, {}",
            wire::ROLE_BULK,
            wire::ROLE_URGENT
        ),
    };
    Err(Error::new(
        Kind::Unsupported,
        format!("the source opened {what}"),
    ))
}

/// A connection on which a HELLO may come.
pub(super) struct Candidate {
    pub(super) newcomer: Newcomer,
    /// The network that the connection comes from.
    pub(super) place: Option<IpAddr>,
    pub(super) came: Instant,
    /// The limit for the HELLO.
    pub(super) limit: Limit,
    bytes: [u8; HELLO_MAX],
    pub(super) got: usize,
    /// The HELLO, when all of it has come. Such a connection waits for the session that it belongs
    /// to.
    pub(super) hello: Option<Hello>,
}

/// What a connection has said so far.
pub(super) enum Said {
    /// A part of a HELLO, or nothing yet.
    NotAll,
    Hello(Hello),
    /// Something else in our protocol, with the reason why it is no HELLO.
    Wrong(String),
    /// Nothing of use: the connection is closed, or speaks another protocol.
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
            hello: None,
        }
    }

    /// Reads what has come, but nothing after the end of HELLO.
    pub(super) fn read(&mut self, ready: bool) -> Said {
        if !ready {
            return Said::NotAll;
        }
        if self.hello.is_some() {
            // A connection that waits for an answer has nothing to say meanwhile, but it may be
            // gone.
            return match self.newcomer.recv(&mut [0]) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Said::NotAll,
                _ => Said::Nothing,
            };
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

    /// The first record's header, when it has come.
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

    /// Makes an arrival of the connection. `None` when the connection broke just now.
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
            Ok(Record::Hello(hello)) => Said::Hello(hello),
            Ok(_) => Said::Nothing,
            Err(error) => self.refuse(&error),
        }
    }

    /// Refuses the connection. A peer that speaks this protocol is told the reason, as far as the
    /// socket takes it without waiting.
    pub(super) fn refuse(&mut self, error: &Error) -> Said {
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
        // All connections to a unix socket have the same path, which names no peer.
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
