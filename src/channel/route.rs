//! How connections to a peer are made, as many as are needed: one for each lane of a migration,
//! another in place of one that broke.

use super::connection::Channel;
use super::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Cancel, Limit};
use std::collections::VecDeque;

/// See the file's description. No use of it uses it up.
#[derive(Debug)]
pub enum Route {
    /// A new connection each time.
    Endpoint(Endpoint),
    /// Connections that somebody else made, each for one use.
    Connected(VecDeque<Channel>),
}

impl Route {
    /// A connection that need not be made first, if there is one.
    pub fn ready(&mut self) -> Option<Channel> {
        match self {
            Route::Endpoint(_) => None,
            Route::Connected(channels) => channels.pop_front(),
        }
    }

    /// A connection.
    ///
    /// # Errors
    /// As for [`Channel::connect`]; `State` when every connection that was handed in is used.
    pub fn connect(&mut self, cancel: &Cancel, limit: impl Into<Limit>) -> Result<Channel> {
        match self {
            Route::Endpoint(endpoint) => Channel::connect(endpoint, cancel, limit),
            Route::Connected(channels) => channels.pop_front().ok_or_else(|| {
                let message = "every connection that was handed in is used, and no endpoint is \
                               known at which to make another";
                Error::new(Kind::State, message)
            }),
        }
    }
}
