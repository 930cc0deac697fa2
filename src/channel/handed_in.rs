//! Channels of connected sockets that the VMM made and hands in, one for each channel, and which
//! sockets cannot carry one.

use super::connection::Channel;
use super::socket::Identity;
use super::socket_name::SocketName;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use std::os::fd::{AsRawFd, OwnedFd};

/// Channels of sockets, in their order. After an error all of them are closed.
///
/// # Errors
/// `Invalid` when one of them is no connected stream socket, and when two are the same socket under
/// two numbers, or the two ends of one TCP connection. The message names them.
pub fn handed_in(sockets: Vec<OwnedFd>) -> Result<Vec<Channel>> {
    let mut channels: Vec<Channel> = Vec::new();
    fallible::reserve(&mut channels, sockets.len(), "channels")?;
    let mut known: Vec<(SocketName, Identity)> = Vec::new();
    fallible::reserve(&mut known, sockets.len(), "channels")?;
    for (at, socket) in sockets.into_iter().enumerate() {
        let name = SocketName {
            at,
            descriptor: socket.as_raw_fd(),
        };
        let mut channel = Channel::from_fd(socket).map_err(|e| e.context(name))?;
        let identity = channel.kind.identity();
        for (before, other) in &known {
            let what = match identity.is_other_end_of(other) {
                _ if identity.is_same_as(other) => "the same socket",
                true => "the two ends of one connection",
                false => continue,
            };
            return Err(Error::new(
                Kind::Invalid,
                format!("{before} and {name} are {what}: each channel has a connection of its own"),
            ));
        }
        channel.handed_in = Some(name);
        known.push((name, identity));
        channels.push(channel);
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixListener;

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    /// The refusal of a list that has `wrong` behind one good socket.
    fn refusal(wrong: OwnedFd) -> (String, RawFd) {
        let (good, _peer) = tcp();
        let number = wrong.as_raw_fd();
        let error = handed_in(vec![good.into(), wrong]).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        (error.message().to_owned(), number)
    }

    #[test]
    fn a_socket_that_can_carry_no_channel_is_named_by_place_and_descriptor() {
        let path = tempfile::tempdir().unwrap();
        let listening = UnixListener::bind(path.path().join("s")).unwrap();
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        let table: [(OwnedFd, &str); 4] = [
            (listening.into(), "a socket that listens"),
            (unconnected.into(), "a datagram socket"),
            (
                std::fs::File::open("/dev/null").unwrap().into(),
                "a character device",
            ),
            (std::io::pipe().unwrap().0.into(), "a pipe"),
        ];
        for (wrong, found) in table {
            let (message, number) = refusal(wrong);
            assert_eq!(
                message,
                format!(
                    "fds[1] (descriptor {number}): expected a connected stream socket, found {found}"
                )
            );
        }
    }

    #[test]
    fn one_socket_under_two_numbers_is_refused_and_so_are_both_ends_of_one_connection() {
        let (ours, theirs) = tcp();
        let (other, _peer) = tcp();
        let again = ours.try_clone().unwrap();
        let (first, second) = (ours.as_raw_fd(), again.as_raw_fd());
        let error = handed_in(vec![ours.into(), other.into(), again.into()]).unwrap_err();
        assert_eq!(
            error.message(),
            format!(
                "fds[0] (descriptor {first}) and fds[2] (descriptor {second}) are the same socket: \
                 each channel has a connection of its own"
            )
        );
        drop(theirs);
        let (ours, theirs) = tcp();
        let error = handed_in(vec![theirs.into(), ours.into()]).unwrap_err();
        let message = error.message();
        assert!(
            message.contains("are the two ends of one connection"),
            "{message}"
        );
        // Connections to one listener are different connections.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let some: Vec<OwnedFd> = (0..4)
            .map(|_| TcpStream::connect(at).unwrap().into())
            .collect();
        assert_eq!(handed_in(some).unwrap().len(), 4);
        let some: Vec<OwnedFd> = (0..4)
            .map(|_| listener.accept().unwrap().0.into())
            .collect();
        assert_eq!(handed_in(some).unwrap().len(), 4);
    }
}
