//! Where the destination's connections come from: a listener, or sockets that the VMM made. The
//! migration's object checks them, and the driver uses them once.

use crate::channel::handed_in::handed_in;
use crate::channel::{Channel, Listener};
use crate::error::{Error, Kind, Result};
use crate::migrate::params::Params;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Where an incoming migration gets its connections.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcceptFrom {
    /// The first connection that says HELLO at this listener, and the other connections of the same
    /// source. The listener stays the VMM's too, and the VMM can use it for the next migration.
    /// When the VMM drops the listener, its address is free again as soon as a source has come.
    Listener(Arc<Listener>),
    /// A connected stream socket that the VMM made, for a source with one channel. brant owns it
    /// from here on.
    Connected(OwnedFd),
    /// Connected stream sockets that the VMM made, in any order, for a source with as many
    /// channels. Messages call socket `n` of the list `fds[n]`.
    ConnectedAll(Vec<OwnedFd>),
}

/// An [`AcceptFrom`] that was checked, until it has been used.
pub(super) enum Accepting {
    Listener(Arc<Listener>),
    Connected(Vec<Channel>),
}

impl Accepting {
    /// Refuses a descriptor that is no connected socket.
    pub(super) fn new(from: AcceptFrom, params: &Params) -> Result<Accepting> {
        Ok(match from {
            AcceptFrom::Listener(listener) => Accepting::Listener(listener),
            AcceptFrom::Connected(fd) => Accepting::Connected(vec![Channel::from_fd(fd)?]),
            AcceptFrom::ConnectedAll(fds) => Accepting::Connected(all(fds, params)?),
        })
    }
}

/// Makes channels of the connections that a VMM has handed in.
fn all(sockets: Vec<OwnedFd>, params: &Params) -> Result<Vec<Channel>> {
    // One more for the urgent lane of a source that wants postcopy.
    let most = params.incoming_channels as usize;
    if !(1..=most + 1).contains(&sockets.len()) {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "expected at least one connected socket and at most {most}, the number of channels \
                 in this side's parameters, and one for an urgent lane; found {}",
                sockets.len()
            ),
        ));
    }
    handed_in(sockets)
}
