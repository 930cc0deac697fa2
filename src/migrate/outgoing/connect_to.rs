//! Where an outgoing migration gets its connections.

use crate::channel::handed_in::handed_in;
use crate::channel::{Channel, Endpoint, Route};
use crate::error::{Error, Kind, Result};
use std::os::fd::OwnedFd;

/// Where an outgoing migration gets its connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectTo {
    /// An endpoint to which brant connects.
    Endpoint(Endpoint),
    /// A connected stream socket that the VMM made, for one channel. The socket is brant's from
    /// here on.
    Connected(OwnedFd),
    /// Connected stream sockets for [`Params::channels`](crate::migrate::Params::channels)
    /// channels: one for each, channel 0 first; with
    /// [`Params::postcopy`](crate::migrate::Params::postcopy) one more behind them. Messages call socket `n` of the list `fds[n]`.
    ConnectedAll(Vec<OwnedFd>),
}

impl ConnectTo {
    /// The way to the destination for `channels` channels, and for an `urgent` lane. Descriptors that
    /// are no connections are refused, and so is another number of them.
    pub(super) fn route(self, channels: u32, urgent: bool) -> Result<Route> {
        let wanted = channels as usize + usize::from(urgent);
        let count = match &self {
            ConnectTo::Endpoint(_) => wanted,
            ConnectTo::Connected(_) => 1,
            ConnectTo::ConnectedAll(sockets) => sockets.len(),
        };
        if count != wanted {
            let more = match urgent {
                true => ", and one more for postcopy",
                false => "",
            };
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "expected a connected socket for each channel, {channels} by the parameters{more}; \
                     found {count}"
                ),
            ));
        }
        Ok(match self {
            ConnectTo::Endpoint(endpoint) => Route::Endpoint(endpoint),
            ConnectTo::Connected(socket) => Route::Connected([Channel::from_fd(socket)?].into()),
            ConnectTo::ConnectedAll(sockets) => Route::Connected(handed_in(sockets)?.into()),
        })
    }
}
