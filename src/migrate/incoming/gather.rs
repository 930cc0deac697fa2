//! Listening for the source. The connections of a listener are looked at together. The first
//! connection on which a whole HELLO of channel 0 comes opens the session. Then the connections of
//! the session's other channels are found, in any order, among all others.
//!
//! Port scanners, health checks and silent clients connect too. None of them ends the waiting or
//! delays it. Their cost is bounded by [`crate::channel::listener_limits`], which does not count
//! connections of the session. [`super::authenticate`] says what a connection has to send before it
//! belongs to the session, and how a connection that sends something else is refused.
//!
//! Called by the destination's driver.

use super::authenticate::{check_role, Arrival, Candidate, Said, Session};
use crate::channel::listener::Accepted;
use crate::channel::listener_limits::{
    ACCEPTED_AT_ONCE, LOOKED_AT, SHORTAGE_PAUSE, SILENCE, WARNING_PAUSE,
};
use crate::channel::waiting::wait_for_any;
use crate::channel::Listener;
use crate::error::{Error, Kind, Result};
use crate::migrate::params::Params;
use crate::runtime::{Cancel, Deadline, Limit};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause between two looks at the session's connections while others are waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Takes a warning for the VMM's user.
pub(super) type Warn<'a> = dyn FnMut(String) + 'a;

/// The listening, as the file's description says.
pub(super) struct Gathering {
    listener: Arc<Listener>,
    params: Params,
    /// Connections whose HELLO is not complete or not yet acceptable, oldest first.
    candidates: Vec<Candidate>,
    /// The session, once channel 0 is there.
    session: Option<Session>,
    /// Connections of the session that were not handed out yet.
    arrived: Vec<Arrival>,
    /// No connection is accepted before this moment, because there was no descriptor for one.
    closed_until: Option<Deadline>,
    /// Whether the last attempt to accept found no descriptor.
    short: bool,
    warned: Option<Instant>,
}

/// Which candidates have something to read, by their index.
type Ready = [bool; LOOKED_AT];

impl Gathering {
    pub(super) fn new(listener: Arc<Listener>, params: Params) -> Self {
        Gathering {
            listener,
            params,
            candidates: Vec::new(),
            session: None,
            arrived: Vec::new(),
            closed_until: None,
            short: false,
            warned: None,
        }
    }

    /// Listening for new connections of a session that has lost its connections.
    pub(super) fn again(listener: Arc<Listener>, params: Params, session: Session) -> Self {
        Gathering {
            session: Some(session),
            ..Gathering::new(listener, params)
        }
    }

    /// A channel of the session is gone again, and another connection for it may come.
    pub(super) fn forget(&mut self, channel: u16) {
        self.session.iter_mut().for_each(|s| s.forget(channel));
    }

    /// A channel of the session is there: its connection takes the place of one that was forgotten.
    pub(super) fn note(&mut self, channel: u16) {
        self.session.iter_mut().for_each(|s| s.note(channel));
    }

    /// Waits for the HELLO that opens a session. `warn` gets warnings for the VMM's user, a few a
    /// minute at most.
    ///
    /// # Errors
    /// `Cancelled`; any error of the listener itself.
    pub(super) fn open(&mut self, cancel: &Cancel, warn: &mut Warn<'_>) -> Result<Arrival> {
        loop {
            cancel.check("waiting for a connection")?;
            self.turn(cancel, Deadline::never(), warn)?;
            if let Some(arrival) = self.arrived.pop() {
                // Other connections of this session may have come earlier.
                self.session = Some(Session::new(arrival.hello.clone()));
                self.sort_out(warn);
                return Ok(arrival);
            }
        }
    }

    /// Waits for the session's other channels, until `limit`. `alive` is called now and then, and
    /// fails when a connection that has come is gone again.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout`, which names the missing channels; an error that `alive` returns.
    pub(super) fn others(
        &mut self,
        cancel: &Cancel,
        limit: Limit,
        warn: &mut Warn<'_>,
        alive: &mut dyn FnMut(&mut Vec<Arrival>) -> Result<()>,
    ) -> Result<()> {
        loop {
            alive(&mut self.arrived)?;
            let Some(session) = self.session.as_ref().filter(|s| !s.is_complete()) else {
                return Ok(());
            };
            cancel.check("waiting for the source's other connections")?;
            if limit.expired() {
                return Err(missing(&session.missing(), session.urgent(), &limit));
            }
            let soon = Deadline::after(LOOK).earlier(limit.at());
            self.turn(cancel, soon, warn)?;
        }
    }

    /// Waits for more of the session's connections, until `limit`. None: all of them have been handed
    /// out.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout`, which names the missing channels.
    pub(super) fn some(
        &mut self,
        cancel: &Cancel,
        limit: Limit,
        warn: &mut Warn<'_>,
    ) -> Result<Vec<Arrival>> {
        loop {
            if !self.arrived.is_empty() {
                return Ok(std::mem::take(&mut self.arrived));
            }
            let Some(session) = self.session.as_ref().filter(|s| !s.is_complete()) else {
                return Ok(Vec::new());
            };
            cancel.check("waiting for the source's connections")?;
            if limit.expired() {
                return Err(missing(&session.missing(), session.urgent(), &limit));
            }
            self.turn(cancel, limit.at(), warn)?;
        }
    }

    /// Waits once and handles what has come.
    fn turn(&mut self, cancel: &Cancel, until: Deadline, warn: &mut Warn<'_>) -> Result<()> {
        let ready = self.wait(cancel, until, warn);
        self.look(&ready, warn);
        if self.session.is_none() && !self.arrived.is_empty() {
            return Ok(());
        }
        self.take_in(warn)
    }

    /// Waits until a connection can be accepted, or a candidate has something to read.
    fn wait(&mut self, cancel: &Cancel, until: Deadline, warn: &mut Warn<'_>) -> Ready {
        if self.closed_until.is_none_or(Deadline::expired) {
            self.closed_until = None;
        }
        let listener = self.closed_until.is_none().then_some(&*self.listener);
        let mut until = self
            .closed_until
            .unwrap_or(Deadline::never())
            .earlier(until);
        for candidate in &self.candidates {
            until = until.earlier(candidate.limit.at());
        }
        let newcomers = self.candidates.iter().map(|candidate| &candidate.newcomer);
        match wait_for_any(listener, newcomers, cancel, until) {
            Ok(ready) => ready,
            // poll(2) got more descriptors than the process may have, since somebody lowered the
            // limit; or the kernel is short of memory.
            Err(e) => {
                if !self.candidates.is_empty() {
                    self.candidates.remove(0);
                }
                self.shortage(&e, warn);
                std::thread::sleep(Duration::from_millis(1));
                [false; LOOKED_AT]
            }
        }
    }

    /// Reads from the candidates that are ready, and closes those that are gone, wrong or late.
    fn look(&mut self, ready: &Ready, warn: &mut Warn<'_>) {
        let mut ready = ready.iter();
        for mut candidate in std::mem::take(&mut self.candidates) {
            let ready = ready.next().is_some_and(|ready| *ready);
            if self.is_open() {
                // The session is open, and no other connection can open it.
                self.candidates.push(candidate);
                continue;
            }
            let said = candidate.read(ready);
            let late = candidate.limit.expired();
            match self.judge(candidate, said, warn) {
                Some(candidate) if !late => self.candidates.push(candidate),
                Some(candidate) => self.dismiss(candidate, warn),
                None => {}
            }
        }
    }

    /// Whether the session's first connection has come and was not handed out yet.
    fn is_open(&self) -> bool {
        self.session.is_none() && !self.arrived.is_empty()
    }

    /// Handles what `candidate` has `said`. Returns the connection when it is still a candidate.
    fn judge(
        &mut self,
        mut candidate: Candidate,
        said: Said,
        warn: &mut Warn<'_>,
    ) -> Option<Candidate> {
        let hello = match said {
            Said::NotAll => return Some(candidate),
            Said::Nothing => return None,
            Said::Wrong(message) => {
                self.warning(message, warn);
                return None;
            }
            Said::Hello(hello) => hello,
        };
        let admitted = match &mut self.session {
            Some(session) => session.admit(&hello),
            None => match check_role(&hello) {
                // The session of this connection may begin later.
                Ok(()) if hello.channel != 0 => {
                    candidate.hello = Some(hello);
                    return Some(candidate);
                }
                role => role,
            },
        };
        match admitted {
            Ok(()) => {
                let channel = hello.channel;
                match candidate.arrived(hello) {
                    Some(arrival) => self.arrived.push(arrival),
                    // The connection broke just now.
                    None => self.session.iter_mut().for_each(|s| s.forget(channel)),
                }
            }
            Err(error) => {
                if let Said::Wrong(message) = candidate.refuse(&error) {
                    self.warning(message, warn);
                }
            }
        }
        None
    }

    /// Closes a candidate whose time is over.
    fn dismiss(&mut self, mut candidate: Candidate, warn: &mut Warn<'_>) {
        // A candidate that sent no whole HELLO is closed without a word.
        let Some(hello) = candidate.hello.take() else {
            return;
        };
        let error = Error::new(
            Kind::Protocol,
            format!(
                "HELLO: expected channel 0 within {}, which opens a session, found channel {} of {}",
                self.params.connect(),
                hello.channel,
                hello.channels
            ),
        );
        if let Said::Wrong(message) = candidate.refuse(&error) {
            self.warning(message, warn);
        }
    }

    /// Called when a session has begun: each candidate whose HELLO is for another channel either
    /// belongs to this session or is refused.
    fn sort_out(&mut self, warn: &mut Warn<'_>) {
        for mut candidate in std::mem::take(&mut self.candidates) {
            let said = candidate.hello.take().map_or(Said::NotAll, Said::Hello);
            let stays = self.judge(candidate, said, warn);
            self.candidates.extend(stays);
        }
    }

    /// Accepts a few of the connections that wait. Most of them send HELLO at once.
    fn take_in(&mut self, warn: &mut Warn<'_>) -> Result<()> {
        if self.closed_until.is_some() {
            return Ok(());
        }
        for _ in 0..ACCEPTED_AT_ONCE {
            let newcomer = match self.listener.accept_now()? {
                Accepted::Connection(newcomer) => newcomer,
                Accepted::Gone => continue,
                Accepted::Nobody => break,
                Accepted::Shortage(error) => {
                    // A connection that has been silent for a while occupies a descriptor.
                    let old = |c: &Candidate| c.came.elapsed() >= SILENCE;
                    if self.candidates.first().is_some_and(old) {
                        self.candidates.remove(0);
                    } else {
                        self.closed_until = Some(Deadline::after(SHORTAGE_PAUSE));
                    }
                    self.shortage(&error, warn);
                    return Ok(());
                }
            };
            self.short = false;
            let mut candidate = Candidate::new(newcomer, &self.params);
            let said = candidate.read(true);
            let Some(mut candidate) = self.judge(candidate, said, warn) else {
                if self.is_open() {
                    return Ok(());
                }
                continue;
            };
            candidate.place = candidate.newcomer.peer_network();
            if self.candidates.len() >= LOOKED_AT {
                self.make_room();
            }
            self.candidates.push(candidate);
        }
        Ok(())
    }

    /// Makes room by closing one candidate: the oldest one of the network that has most candidates.
    /// So a network that opens many connections closes its own.
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

    fn shortage(&mut self, error: &io::Error, warn: &mut Warn<'_>) {
        if !self.short {
            self.short = true;
            let at = self.listener.local_endpoint();
            let message = format!(
                "a connection at {at} has to wait: the process has no descriptor for it ({error})"
            );
            self.warning(message, warn);
        }
    }

    fn warning(&mut self, message: String, warn: &mut Warn<'_>) {
        if self
            .warned
            .is_none_or(|last| last.elapsed() >= WARNING_PAUSE)
        {
            self.warned = Some(Instant::now());
            warn(message);
        }
    }
}

/// The error that names channels whose connections did not come. `urgent` is the number of the urgent
/// lane.
pub(super) fn missing(channels: &[usize], urgent: Option<usize>, limit: &Limit) -> Error {
    let bulk = channels.iter().filter(|channel| Some(**channel) != urgent);
    let names: Vec<String> = bulk.map(usize::to_string).collect();
    let s = if names.len() == 1 { "" } else { "s" };
    let mut which = match names.is_empty() {
        true => String::new(),
        false => format!("channel{s} {}", names.join(", ")),
    };
    if names.len() < channels.len() {
        let and = if names.is_empty() { "" } else { " and " };
        which.push_str(and);
        which.push_str("the urgent lane");
    }
    Error::new(
        Kind::Timeout,
        format!("waiting for HELLO on {which}: {limit} ran out"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Endpoint;
    use std::net::IpAddr;

    #[test]
    fn a_place_that_opens_many_connections_closes_its_own_oldest() {
        let endpoint = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
        let listener = Arc::new(Listener::bind(&endpoint).unwrap());
        let params = Params::default();
        let mut gathering = Gathering::new(Arc::clone(&listener), params.clone());
        let at = match listener.local_endpoint() {
            Endpoint::Tcp(at) => *at,
            Endpoint::Unix(_) => unreachable!(),
        };
        // Three networks, each with some connections. `got` serves as the number of the connection.
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
        // The second network has most connections, so its oldest is closed. The next ones are the
        // oldest of the networks that have most.
        assert_eq!(closed, [1, 0, 2, 3, 4, 5]);
    }
}
