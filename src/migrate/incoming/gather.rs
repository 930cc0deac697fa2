//! Who a session is with: a listener's connections are looked at together, and the first one on
//! which a whole HELLO comes is the session.
//!
//! Anybody who reaches the listener can connect to it: port scanners, health checks, somebody who
//! keeps silent. None of them ends the waiting or delays it. What they cost is bounded: so many
//! connections ([`CANDIDATES`]), so many bytes read of each (a HELLO's), so much time (the
//! connect timeout). A HELLO is no proof of identity; who may connect is the VMM's decision.
//!
//! Called by the destination's driver. Knows the first record and nothing of what follows.

use crate::channel::listener::Accepted;
use crate::channel::waiting::{wait_for_any, TOGETHER};
use crate::channel::{Channel, Listener, Newcomer};
use crate::error::{Error, Kind, Result};
use crate::migrate::params::Params;
use crate::runtime::{Cancel, Deadline, Limit};
use crate::wire::{self, Header, Hello, Record, RecordType, HEADER_LEN};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Connections that are looked at together. One more, and the oldest of those from the place
/// that most of them came from is closed.
const CANDIDATES: usize = TOGETHER;
/// Connections that are taken between two looks at those that there are.
const AT_ONCE: usize = 16;
/// The longest HELLO.
const HELLO_MAX: usize = HEADER_LEN + RecordType::Hello.payload_limits().1 as usize;
/// Without descriptors, until the next try.
const SHORTAGE: Duration = Duration::from_millis(50);
/// For how long a connection is left alone when its descriptor is needed for another.
const GRACE: Duration = Duration::from_secs(1);
/// Between two warnings.
const QUIET: Duration = Duration::from_secs(10);

/// The session's connection, and what was said on it.
pub(super) struct Arrival {
    pub(super) channel: Channel,
    pub(super) hello: Hello,
}

/// Waits for a HELLO. `warn` is told what a VMM's user should know of, a few times a minute at
/// the most.
///
/// # Errors
/// `Cancelled`; whatever breaks the listener itself.
pub(super) fn gather(
    listener: &Listener,
    params: &Params,
    cancel: &Cancel,
    warn: &mut dyn FnMut(String),
) -> Result<Arrival> {
    let mut gathering = Gathering {
        listener,
        params,
        candidates: Vec::new(),
        closed_until: None,
        short: false,
        warned: None,
        warn,
    };
    loop {
        cancel.check("waiting for a connection")?;
        let ready = gathering.wait(cancel);
        if let Some(arrival) = gathering.look(&ready) {
            return Ok(arrival);
        }
        if let Some(arrival) = gathering.take_in()? {
            return Ok(arrival);
        }
    }
}

struct Gathering<'a> {
    listener: &'a Listener,
    params: &'a Params,
    /// In the order in which they came.
    candidates: Vec<Candidate>,
    /// Until then no connection is accepted: there was no descriptor for one.
    closed_until: Option<Deadline>,
    /// Whether the last try found no descriptor.
    short: bool,
    warned: Option<Instant>,
    warn: &'a mut dyn FnMut(String),
}

/// Which candidates there is something to read of, by their place.
type Ready = [bool; CANDIDATES];

impl Gathering<'_> {
    /// Waits until there is something to do, and closes who has had their time.
    fn wait(&mut self, cancel: &Cancel) -> Ready {
        if self.closed_until.is_none_or(Deadline::expired) {
            self.closed_until = None;
        }
        let listener = self.closed_until.is_none().then_some(self.listener);
        let mut until = self.closed_until.unwrap_or(Deadline::never());
        for candidate in &self.candidates {
            until = until.earlier(candidate.limit.at());
        }
        let newcomers = self.candidates.iter().map(|candidate| &candidate.newcomer);
        match wait_for_any(listener, newcomers, cancel, until) {
            Ok(ready) => ready,
            // More descriptors than the process may have, since somebody lowered the limit; or
            // the kernel is short of memory.
            Err(e) => {
                if !self.candidates.is_empty() {
                    self.candidates.remove(0);
                }
                self.shortage(&e);
                std::thread::sleep(Duration::from_millis(1));
                [false; CANDIDATES]
            }
        }
    }

    /// Reads on where there is something, and closes who is gone, wrong or late.
    fn look(&mut self, ready: &Ready) -> Option<Arrival> {
        let mut ready = ready.iter();
        let mut arrival = None;
        let mut wrong = None;
        self.candidates.retain_mut(|candidate| {
            let ready = ready.next().is_some_and(|ready| *ready);
            if arrival.is_some() {
                return true;
            }
            match candidate.read(ready) {
                Said::NotAll => !candidate.limit.expired(),
                Said::Hello(hello) => {
                    arrival = Some(hello);
                    true
                }
                Said::Wrong(error) => {
                    wrong = Some(error);
                    false
                }
                Said::Nothing => false,
            }
        });
        if let Some(error) = wrong {
            self.warning(error);
        }
        let hello = arrival?;
        let at = self.candidates.iter().position(|c| c.done)?;
        self.candidates.swap_remove(at).arrived(hello)
    }

    /// Accepts who waits, a few at a time. Most say HELLO at once.
    fn take_in(&mut self) -> Result<Option<Arrival>> {
        if self.closed_until.is_some() {
            return Ok(None);
        }
        for _ in 0..AT_ONCE {
            let newcomer = match self.listener.accept_now()? {
                Accepted::Connection(newcomer) => newcomer,
                Accepted::Gone => continue,
                Accepted::Nobody => break,
                Accepted::Shortage(error) => {
                    // A connection that has been silent for a while holds one.
                    let old = |c: &Candidate| c.came.elapsed() >= GRACE;
                    if self.candidates.first().is_some_and(old) {
                        self.candidates.remove(0);
                    } else {
                        self.closed_until = Some(Deadline::after(SHORTAGE));
                    }
                    self.shortage(&error);
                    return Ok(None);
                }
            };
            self.short = false;
            let mut candidate = Candidate::new(newcomer, self.params);
            match candidate.read(true) {
                Said::Nothing => continue,
                Said::Wrong(error) => {
                    self.warning(error);
                    continue;
                }
                Said::Hello(hello) => match candidate.arrived(hello) {
                    None => continue,
                    arrival => return Ok(arrival),
                },
                Said::NotAll => {}
            }
            candidate.place = candidate.newcomer.peer_network();
            if self.candidates.len() >= CANDIDATES {
                self.make_room();
            }
            self.candidates.push(candidate);
        }
        Ok(None)
    }

    /// Closes one: the oldest from where most come from. So a place that opens many closes its
    /// own.
    fn make_room(&mut self) {
        let from_there = |place| {
            let same = |c: &&Candidate| c.place == place;
            self.candidates.iter().filter(same).count()
        };
        let counts = self.candidates.iter().map(|c| from_there(c.place));
        let most = counts.enumerate().rev().max_by_key(|(_, count)| *count);
        if let Some((oldest, _)) = most {
            self.candidates.remove(oldest);
        }
    }

    fn shortage(&mut self, error: &io::Error) {
        if !self.short {
            self.short = true;
            let at = self.listener.local_endpoint();
            self.warning(format!(
                "a connection at {at} has to wait: the process has no descriptor for it ({error})"
            ));
        }
    }

    fn warning(&mut self, message: String) {
        if self.warned.is_none_or(|last| last.elapsed() >= QUIET) {
            self.warned = Some(Instant::now());
            (self.warn)(message);
        }
    }
}

/// A connection on which a HELLO may come.
struct Candidate {
    newcomer: Newcomer,
    /// From where, roughly.
    place: Option<IpAddr>,
    came: Instant,
    limit: Limit,
    bytes: [u8; HELLO_MAX],
    got: usize,
    /// All of it is here.
    done: bool,
}

/// What was said so far.
enum Said {
    /// A part of a HELLO, perhaps nothing of it.
    NotAll,
    Hello(Hello),
    /// Something else, in our language: why it is no HELLO.
    Wrong(String),
    /// It is closed, or speaks another language.
    Nothing,
}

impl Candidate {
    fn new(newcomer: Newcomer, params: &Params) -> Self {
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
    fn read(&mut self, ready: bool) -> Said {
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
    fn arrived(self, hello: Hello) -> Option<Arrival> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Endpoint;

    #[test]
    fn a_place_that_opens_many_connections_closes_its_own_oldest() {
        let endpoint = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
        let listener = Listener::bind(&endpoint).unwrap();
        let params = Params::default();
        let mut gathering = Gathering {
            listener: &listener,
            params: &params,
            candidates: Vec::new(),
            closed_until: None,
            short: false,
            warned: None,
            warn: &mut |_| {},
        };
        let at = match listener.local_endpoint() {
            Endpoint::Tcp(at) => *at,
            Endpoint::Unix(_) => unreachable!(),
        };
        // Four places, and what was received stands for the order.
        let order = [(1, 0), (2, 1), (2, 2), (3, 3), (2, 4), (1, 5)];
        for (place, number) in order {
            let _caller = std::net::TcpStream::connect(at).unwrap();
            let newcomer = loop {
                match listener.accept_now().unwrap() {
                    Accepted::Connection(newcomer) => break newcomer,
                    _ => std::thread::yield_now(),
                }
            };
            let mut candidate = Candidate::new(newcomer, &params);
            candidate.place = Some(IpAddr::from([10, 0, 0, place]));
            candidate.got = number;
            gathering.candidates.push(candidate);
        }
        let mut closed: Vec<usize> = Vec::new();
        for _ in order {
            let before: Vec<usize> = gathering.candidates.iter().map(|c| c.got).collect();
            gathering.make_room();
            let left: Vec<usize> = gathering.candidates.iter().map(|c| c.got).collect();
            closed.extend(before.into_iter().filter(|n| !left.contains(n)));
        }
        // The second place's until the first has as many; then the oldest of all.
        assert_eq!(closed, [1, 0, 2, 3, 4, 5]);
    }
}
