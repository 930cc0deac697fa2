//! Making one connection to an endpoint. The caller decides whether to try again.
//!
//! An [`Attempt`] is begun without waiting and finished later, so that connecting many channels
//! takes the time of one.

use super::connection::Channel;
use super::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::runtime::{wait_ready, Cancel, Interest, Limit, Wake};
use crate::sys::net::{self, Address};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The pause between two tries to connect to a unix listener whose queue is full: the kernel has
/// nothing to poll for.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

impl Channel {
    /// Connects to `endpoint`. A refused connection is an error; the caller decides whether to try
    /// again. (If a unix listener's queue is full, this waits for it.)
    ///
    /// # Errors
    /// `Io` with the address when the connection cannot be made, `Timeout`, `Cancelled`, `Invalid`
    /// for port 0.
    pub fn connect(endpoint: &Endpoint, cancel: &Cancel, limit: impl Into<Limit>) -> Result<Self> {
        let wait = Wait {
            cancel,
            limit: limit.into(),
        };
        Attempt::begin(endpoint, wait)?.finish()
    }
}

/// Until what a connection may take.
#[derive(Clone, Copy)]
pub(super) struct Wait<'a> {
    pub(super) cancel: &'a Cancel,
    pub(super) limit: Limit,
}

/// How far a connection is.
enum Stage {
    /// The kernel has been asked nothing yet, or has no room in a unix listener's queue.
    Untried,
    /// The kernel connects.
    Begun,
    Connected,
}

/// A connection in the making.
pub(super) struct Attempt<'a> {
    endpoint: &'a Endpoint,
    address: Address,
    fd: OwnedFd,
    stage: Stage,
    wait: Wait<'a>,
}

impl<'a> Attempt<'a> {
    /// Begins to connect, and does not wait. Errors as those of [`Channel::connect`].
    pub(super) fn begin(endpoint: &'a Endpoint, wait: Wait<'a>) -> Result<Self> {
        if matches!(endpoint, Endpoint::Tcp(at) if at.port() == 0) {
            let message = format!("connecting to {endpoint}: port 0 cannot be connected to");
            return Err(Error::new(Kind::Invalid, message));
        }
        let address = endpoint.address();
        let fd = net::stream_socket(&address)
            .map_err(|e| Error::os(format_args!("a socket for {endpoint}"), e))?;
        let mut attempt = Attempt {
            endpoint,
            address,
            fd,
            stage: Stage::Untried,
            wait,
        };
        attempt.check()?;
        attempt.try_once()?;
        Ok(attempt)
    }

    fn check(&self) -> Result<()> {
        if self.wait.cancel.is_cancelled() {
            return Err(self.cancelled());
        }
        if self.wait.limit.expired() {
            return Err(self.late());
        }
        Ok(())
    }

    fn cancelled(&self) -> Error {
        let message = format!("connecting to {}: cancelled", self.endpoint);
        Error::new(Kind::Cancelled, message)
    }

    fn late(&self) -> Error {
        let message = format!(
            "connecting to {}: {} ran out",
            self.endpoint, self.wait.limit
        );
        Error::new(Kind::Timeout, message)
    }

    fn failed(&self, e: io::Error) -> Error {
        let kind = match e.raw_os_error() {
            Some(libc::ENOMEM) => Kind::NoMemory,
            _ => Kind::Io,
        };
        Error::new(kind, format!("connecting to {}: {e}", self.endpoint))
    }

    fn try_once(&mut self) -> Result<()> {
        self.stage = match net::connect(self.fd.as_fd(), &self.address) {
            Ok(()) => Stage::Connected,
            Err(e) => match e.raw_os_error() {
                // A signal does not stop it: connect(2), EINTR is EINPROGRESS.
                Some(libc::EINPROGRESS | libc::EINTR) => Stage::Begun,
                Some(libc::EAGAIN) if matches!(self.address, Address::Unix(_)) => Stage::Untried,
                _ => return Err(self.failed(e)),
            },
        };
        Ok(())
    }

    /// Waits until the connection is made. The errors are those of [`Channel::connect`].
    pub(super) fn finish(mut self) -> Result<Channel> {
        loop {
            let Wait { cancel, limit } = self.wait;
            match self.stage {
                Stage::Connected => break,
                Stage::Begun => {
                    match wait_ready(self.fd.as_fd(), Interest::Write, Some(cancel), limit.at())? {
                        Wake::Ready => {}
                        Wake::Cancelled => return Err(self.cancelled()),
                        Wake::TimedOut => return Err(self.late()),
                    }
                    match net::take_error(self.fd.as_fd()).map_err(|e| self.failed(e))? {
                        Some(e) => return Err(self.failed(e)),
                        None => break,
                    }
                }
                Stage::Untried => {
                    let left = limit.at().remaining().unwrap_or(CONNECT_RETRY);
                    cancel.wait(left.min(CONNECT_RETRY));
                    self.check()?;
                    self.try_once()?;
                }
            }
        }
        // A TCP socket can connect to itself, if by chance it gets the port that it calls and no
        // program listens there.
        if let Address::Inet(_) = self.address {
            let failed = |e| self.failed(e);
            let local = net::local_address(self.fd.as_fd()).map_err(failed)?;
            let peer = net::peer_address(self.fd.as_fd()).map_err(failed)?;
            if local == peer {
                return Err(failed(io::Error::from_raw_os_error(libc::ECONNREFUSED)));
            }
        }
        let endpoint = self.endpoint;
        Channel::from_fd(self.fd).map_err(|e| e.context(format_args!("connecting to {endpoint}")))
    }
}
