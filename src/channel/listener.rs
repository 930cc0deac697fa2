//! A listening TCP or unix socket, which waits for a peer. The VMM decides who may connect, by the
//! address or by the directory's permissions.

use super::connection::Channel;
use super::endpoint::Endpoint;
use super::listener_limits::BACKLOG;
use super::newcomer::Newcomer;
use crate::error::{Error, Kind, Result};
use crate::runtime::{wait_ready, Cancel, Deadline, Interest, Wake};
use crate::sys::file;
use crate::sys::net::{self, Address};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    local: Endpoint,
    made: Option<Made>,
}

/// A socket file that brant made: its path and identity.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Made {
    fn drop(&mut self) {
        // Another program may have put a file there since.
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = file::remove(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let data = file::look(path)?;
    Ok((data.dev(), data.ino()))
}

impl Listener {
    /// Listens at `endpoint`. TCP: the address may be in `TIME_WAIT`, and an IPv6 address listens
    /// to IPv6 only. Unix: a socket file whose listener is gone is removed first. The file is
    /// removed again when this is dropped.
    ///
    /// # Errors
    /// `Exists` when a program listens there, or the path is another kind of file; `Invalid` when
    /// the address is not one of this machine; `NotFound` when the directory does not exist; `Io`
    /// otherwise.
    pub fn bind(endpoint: &Endpoint) -> Result<Self> {
        let address = endpoint.address();
        let failed = |e: io::Error| bind_error(endpoint, &e);
        let fd = net::stream_socket(&address)
            .map_err(|e| Error::os(format_args!("a socket for {endpoint}"), e))?;
        let mut made = None;
        match endpoint {
            Endpoint::Tcp(at) => {
                net::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
                    .map_err(failed)?;
                if matches!(at, SocketAddr::V6(_)) {
                    // IPv6 only, whatever net.ipv6.bindv6only says.
                    net::set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)
                        .map_err(failed)?;
                }
                net::bind(fd.as_fd(), &address).map_err(failed)?;
            }
            Endpoint::Unix(path) => {
                match net::bind(fd.as_fd(), &address) {
                    Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {
                        remove_stale(endpoint, path)?;
                        net::bind(fd.as_fd(), &address).map_err(failed)?;
                    }
                    other => other.map_err(failed)?,
                }
                made = Some(Made {
                    path: path.clone(),
                    identity: identity(path).map_err(failed)?,
                });
            }
        }
        net::listen(fd.as_fd(), BACKLOG).map_err(failed)?;
        let local = match net::local_address(fd.as_fd()).map_err(failed)? {
            Address::Inet(address) => Endpoint::Tcp(address),
            _ => endpoint.clone(),
        };
        Ok(Listener { fd, local, made })
    }

    /// The endpoint at which it listens, with the real port if 0 was asked for.
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.local
    }

    /// The descriptor to poll.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path of the socket file that it will remove, if there is one.
    pub fn socket_file(&self) -> Option<&Path> {
        self.made.as_ref().map(|m| m.path.as_path())
    }

    /// Accepts a waiting connection, without waiting for one.
    ///
    /// # Errors
    /// `Kernel` when the listener itself has failed.
    #[doc(hidden)]
    pub fn accept_now(&self) -> Result<Accepted> {
        let error = match net::accept(self.fd.as_fd()) {
            Ok(fd) => return Ok(Accepted::Connection(Newcomer::new(fd))),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Accepted::Nobody),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                Ok(Accepted::Shortage(error))
            }
            _ if next_connection(&error) => Ok(Accepted::Gone),
            _ => Err(Error::os(format_args!("accept at {}", self.local), error)),
        }
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// `Cancelled`; `Timeout` when `deadline` passes; `Kernel` when no descriptor can be made.
    #[doc(hidden)]
    pub fn accept(&self, cancel: &Cancel, deadline: Deadline) -> Result<Channel> {
        loop {
            let wake = wait_ready(self.fd.as_fd(), Interest::Read, Some(cancel), deadline)?;
            match wake {
                Wake::Ready => {}
                Wake::Cancelled => {
                    let message = format!("waiting for a connection at {}: cancelled", self.local);
                    return Err(Error::new(Kind::Cancelled, message));
                }
                Wake::TimedOut => {
                    let message = format!("nobody connected to {} in time", self.local);
                    return Err(Error::new(Kind::Timeout, message));
                }
            }
            match self.accept_now()? {
                Accepted::Connection(newcomer) => match newcomer.into_channel() {
                    // The connection was gone before it was looked at. Wait for the next one.
                    Err(e) if e.kind() == Kind::Invalid => {}
                    other => return other,
                },
                Accepted::Nobody | Accepted::Gone => {}
                Accepted::Shortage(error) => {
                    return Err(Error::os(format_args!("accept at {}", self.local), error));
                }
            }
        }
    }
}

/// The result of one accept.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Connection(Newcomer),
    /// A connection that is gone already. There may be others.
    Gone,
    /// No connection waits.
    Nobody,
    /// The process or the machine has no descriptor or memory for the next connection, which goes
    /// on waiting.
    Shortage(io::Error),
}

/// Whether an error of accept is about one connection that is gone already, and not about the
/// listener (accept(2): "treat them like EAGAIN").
fn next_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                // A firewall rule.
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::EOPNOTSUPP
        )
    )
}

fn bind_error(endpoint: &Endpoint, error: &io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => Kind::Exists,
        Some(libc::EADDRNOTAVAIL) => Kind::Invalid,
        Some(libc::ENOENT | libc::ENOTDIR) => Kind::NotFound,
        Some(libc::ENOMEM) => Kind::NoMemory,
        _ => Kind::Io,
    };
    Error::new(kind, format!("listening at {endpoint}: {error}"))
}

/// Removes the socket file at `path` if no program listens there. A program that binds between this
/// question and the removal would lose its file. Comparing the identity keeps that window as short
/// as possible.
fn remove_stale(endpoint: &Endpoint, path: &Path) -> Result<()> {
    let exists = |what: &str| Error::new(Kind::Exists, format!("listening at {endpoint}: {what}"));
    let failed = |e: io::Error| bind_error(endpoint, &e);
    let data = match file::look(path) {
        Ok(data) => data,
        // The file is gone already: bind again.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !data.file_type().is_socket() {
        return Err(exists("the path exists and is not a socket"));
    }
    let address = endpoint.address();
    let probe = net::stream_socket(&address)
        .map_err(|e| Error::os(format_args!("a socket for {endpoint}"), e))?;
    match net::connect(probe.as_fd(), &address) {
        // unix(7): the path is a socket file without a listening socket.
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Connected, a full queue, or another socket type: a program is there.
        _ => return Err(exists("another program listens there")),
    }
    if identity(path).is_ok_and(|now| now == (data.dev(), data.ino())) {
        file::remove(path).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Io;
    use crate::channel::{Part, PartMut};
    use std::time::{Duration, Instant};

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    fn hello(listener: &Listener) {
        let cancel = Cancel::new().unwrap();
        let mut client = Channel::connect(listener.local_endpoint(), &cancel, soon()).unwrap();
        let mut server = listener.accept(&cancel, soon()).unwrap();
        let io = Io::patient(Duration::from_secs(10));
        client.send(&[Part::bytes(b"hello")], &io).unwrap();
        let mut got = [0; 5];
        server.recv_exact(&[PartMut::bytes(&mut got)], &io).unwrap();
        assert_eq!(&got, b"hello");
    }

    #[test]
    fn port_0_becomes_the_port_that_peers_reach() {
        for text in ["tcp:127.0.0.1:0", "tcp:[::1]:0"] {
            let Ok(listener) = Listener::bind(&Endpoint::parse(text).unwrap()) else {
                assert!(text.contains("::1"), "IPv4 is always there");
                continue; // a machine without IPv6
            };
            assert!(!listener.local_endpoint().to_string().ends_with(":0"));
            hello(&listener);
        }
    }

    #[test]
    fn a_taken_address_exists_and_a_foreign_one_is_invalid() {
        let first = Listener::bind(&Endpoint::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
        let error = Listener::bind(first.local_endpoint()).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        let foreign = Endpoint::parse("tcp:192.0.2.1:0").unwrap();
        assert_eq!(Listener::bind(&foreign).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let endpoint = Endpoint::Unix(path.clone());
        // A listener that ended without a cleanup leaves its file.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&endpoint).unwrap();
        hello(&listener);
        let error = Listener::bind(&endpoint).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        assert!(error.message().contains("another program"), "{error}");
        assert!(path.exists());
        // The question itself was a connection. The next connection still comes through.
        let cancel = Cancel::new().unwrap();
        drop(listener.accept(&cancel, soon()).unwrap());
        hello(&listener);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let endpoint = Endpoint::Unix(path.clone());
        std::fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&endpoint).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        assert!(error.message().contains("not a socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        // A file that has taken the place of brant's stays when the listener is dropped.
        let listener = Listener::bind(&endpoint).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(listener);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let nowhere = Endpoint::Unix(dir.path().join("no/s"));
        assert_eq!(Listener::bind(&nowhere).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn accept_ends_at_its_deadline_and_soon_after_a_cancel() {
        let listener = Listener::bind(&Endpoint::parse("tcp:localhost:0").unwrap()).unwrap();
        let cancel = Cancel::new().unwrap();
        let limit = Deadline::after(Duration::from_millis(20));
        let error = listener.accept(&cancel, limit).unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
        std::thread::scope(|s| {
            let waiter = s.spawn(|| listener.accept(&cancel, Deadline::never()).map(|_| ()));
            std::thread::sleep(Duration::from_millis(20));
            let start = Instant::now();
            cancel.cancel();
            let error = waiter.join().unwrap().unwrap_err();
            println!("accept returned {:?} after cancel", start.elapsed());
            assert!(start.elapsed() < Duration::from_secs(2));
            assert_eq!(error.kind(), Kind::Cancelled);
        });
    }
}
