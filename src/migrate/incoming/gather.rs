//! Listening for the source: the connections of a listener are looked at together, and the first
//! one on which a whole HELLO comes is the session's.
//!
//! Port scanners, health checks and silent clients connect too. None of them ends the waiting or
//! delays it. What they cost is bounded by [`crate::channel::listener_limits`]. What a connection
//! has to say before it is the session's, and how one that says something else is refused, is
//! [`super::authenticate`]'s.
//!
//! Called by the destination's driver.

use super::authenticate::{Arrival, Candidate, Said};
use crate::channel::listener::Accepted;
use crate::channel::listener_limits::{
    ACCEPTED_AT_ONCE, LOOKED_AT, SHORTAGE_PAUSE, SILENCE, WARNING_PAUSE,
};
use crate::channel::waiting::wait_for_any;
use crate::channel::Listener;
use crate::error::Result;
use crate::migrate::params::Params;
use crate::runtime::{Cancel, Deadline};
use std::io;
use std::time::{Duration, Instant};

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
type Ready = [bool; LOOKED_AT];

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
                [false; LOOKED_AT]
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
        for _ in 0..ACCEPTED_AT_ONCE {
            let newcomer = match self.listener.accept_now()? {
                Accepted::Connection(newcomer) => newcomer,
                Accepted::Gone => continue,
                Accepted::Nobody => break,
                Accepted::Shortage(error) => {
                    // A connection that has been silent for a while holds one.
                    let old = |c: &Candidate| c.came.elapsed() >= SILENCE;
                    if self.candidates.first().is_some_and(old) {
                        self.candidates.remove(0);
                    } else {
                        self.closed_until = Some(Deadline::after(SHORTAGE_PAUSE));
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
            if self.candidates.len() >= LOOKED_AT {
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
        if self
            .warned
            .is_none_or(|last| last.elapsed() >= WARNING_PAUSE)
        {
            self.warned = Some(Instant::now());
            (self.warn)(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Endpoint;
    use std::net::IpAddr;

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
