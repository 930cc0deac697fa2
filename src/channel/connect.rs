//! Making a connection to an endpoint. Once: whether to try again is the caller's to decide.

use super::connection::Channel;
use super::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::runtime::{wait_ready, Cancel, Interest, Limit, Wake};
use crate::sys::net::{self, Address};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Between two tries to connect to a unix listener whose queue is full: the
/// kernel offers nothing to poll for.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

impl Channel {
    /// Connects to `endpoint`. Refused is refused: whether to try again is the
    /// caller's to decide. (A unix listener with a full queue is waited for.)
    ///
    /// # Errors
    /// `Io` with the address when the connection cannot be made, `Timeout`,
    /// `Cancelled`, `Invalid` for port 0.
    pub fn connect(endpoint: &Endpoint, cancel: &Cancel, limit: impl Into<Limit>) -> Result<Self> {
        connect(endpoint, cancel, limit.into())
    }
}

fn connect(endpoint: &Endpoint, cancel: &Cancel, limit: Limit) -> Result<Channel> {
    if matches!(endpoint, Endpoint::Tcp(at) if at.port() == 0) {
        let message = format!("connecting to {endpoint}: port 0 cannot be connected to");
        return Err(Error::new(Kind::Invalid, message));
    }
    let address = endpoint.address();
    let fd = net::stream_socket(&address)
        .map_err(|e| Error::os(format_args!("a socket for {endpoint}"), e))?;
    let failed = |e: io::Error| {
        let kind = match e.raw_os_error() {
            Some(libc::ENOMEM) => Kind::NoMemory,
            _ => Kind::Io,
        };
        Error::new(kind, format!("connecting to {endpoint}: {e}"))
    };
    let cancelled = || {
        let message = format!("connecting to {endpoint}: cancelled");
        Error::new(Kind::Cancelled, message)
    };
    let late = || {
        let message = format!("connecting to {endpoint}: {limit} ran out");
        Error::new(Kind::Timeout, message)
    };
    loop {
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        if limit.expired() {
            return Err(late());
        }
        let Err(e) = net::connect(fd.as_fd(), &address) else {
            break;
        };
        match e.raw_os_error() {
            // A signal does not stop it: connect(2), EINTR is EINPROGRESS.
            Some(libc::EINPROGRESS | libc::EINTR) => {
                match wait_ready(fd.as_fd(), Interest::Write, Some(cancel), limit.at())? {
                    Wake::Ready => {}
                    Wake::Cancelled => return Err(cancelled()),
                    Wake::TimedOut => return Err(late()),
                }
                match net::take_error(fd.as_fd()).map_err(failed)? {
                    Some(e) => return Err(failed(e)),
                    None => break,
                }
            }
            Some(libc::EAGAIN) if matches!(address, Address::Unix(_)) => {
                let left = limit.at().remaining().unwrap_or(CONNECT_RETRY);
                cancel.wait(left.min(CONNECT_RETRY));
            }
            _ => return Err(failed(e)),
        }
    }
    // TCP lets a socket connect to itself when it is given, by chance, the
    // very port it calls and nobody listens there.
    if let Address::Inet(_) = address {
        let local = net::local_address(fd.as_fd()).map_err(failed)?;
        let peer = net::peer_address(fd.as_fd()).map_err(failed)?;
        if local == peer {
            return Err(failed(io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        }
    }
    Channel::from_fd(fd).map_err(|e| e.context(format_args!("connecting to {endpoint}")))
}
