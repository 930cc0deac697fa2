//! How connections to a peer are made, as many as are needed: one for each lane of a migration, and
//! another in place of a connection that broke.

use super::connect::{Attempt, Wait};
use super::connection::Channel;
use super::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Cancel, Limit};
use std::collections::VecDeque;

/// A way to make connections to one peer.
#[derive(Debug)]
pub enum Route {
    /// Each connection is made anew. An endpoint may be used any number of times.
    Endpoint(Endpoint),
    /// Connections that somebody else made. Each is used once.
    Connected(VecDeque<Channel>),
}

impl Route {
    /// Whether connections can be made anew, so that another try may succeed.
    pub fn can_be_used_again(&self) -> bool {
        matches!(self, Route::Endpoint(_))
    }

    /// Returns `count` connections that exist already. `None` when there are fewer, or when they
    /// have to be made.
    pub fn ready(&mut self, count: usize) -> Option<Vec<Channel>> {
        match self {
            Route::Endpoint(_) => None,
            Route::Connected(channels) if channels.len() < count => None,
            Route::Connected(channels) => Some(channels.drain(..count).collect()),
        }
    }

    /// Returns `count` connections. All are begun before the first is waited for, so together they
    /// take the time of one. When one of them cannot be made, the others are closed.
    ///
    /// # Errors
    /// Those of [`Channel::connect`], with the number of the connection when there are several.
    /// `State` when too few of the connections that were handed in are left.
    pub fn connect(
        &mut self,
        count: usize,
        cancel: &Cancel,
        limit: impl Into<Limit>,
    ) -> Result<Vec<Channel>> {
        let endpoint = match self {
            Route::Endpoint(endpoint) => endpoint,
            Route::Connected(_) => {
                return self.ready(count).ok_or_else(|| {
                    let message = "every connection that was handed in is used, and no endpoint \
                                   is known at which to make another";
                    Error::new(Kind::State, message)
                })
            }
        };
        let wait = Wait {
            cancel,
            limit: limit.into(),
        };
        let numbered = |at: usize, e: Error| match count {
            1 => e,
            _ => e.context(format_args!("channel {at} of {count}")),
        };
        let mut attempts = Vec::with_capacity(count);
        for at in 0..count {
            attempts.push(Attempt::begin(endpoint, wait).map_err(|e| numbered(at, e))?);
        }
        let finished = attempts.into_iter().enumerate();
        finished
            .map(|(at, attempt)| attempt.finish().map_err(|e| numbered(at, e)))
            .collect()
    }
}
