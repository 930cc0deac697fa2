//! Bytes over a unix socket together with one descriptor (`SCM_RIGHTS`, unix(7)), as vhost-user
//! messages are sent.
//!
//! Each function is one call. `device::vhost_user`, the only caller, knows the messages.

use super::{kernel, net};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for the control message of at most 28 descriptors, aligned as `cmsghdr`. The kernel drops
/// what finds no room.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// Sends as much of `bytes` as the socket takes now, and with the first byte a duplicate of
/// `attached`. Never waits and never raises SIGPIPE.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    attached: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 128]);
    let mut message = net::message(std::slice::from_ref(&part));
    if let Some(fd) = attached {
        message.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the first header lies in `control`, which has
        // room for it and one descriptor.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header)
                .cast::<RawFd>()
                .write_unaligned(fd.as_raw_fd());
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the message's parts live on this stack frame and in `bytes`, which is only read.
    let n = unsafe { kernel::sendmsg(socket.as_raw_fd(), &message, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there now into `bytes`, and the descriptors that came with it, closed on exec. 0
/// bytes: the peer has closed. Never waits.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 128]);
    let mut message = net::message(std::slice::from_ref(&part));
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the bytes and `control` are writable and as long as they say.
    let n = unsafe { kernel::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    let mut received = Vec::new();
    // SAFETY: the kernel has filled `control` with headers as far as msg_controllen says; each
    // SCM_RIGHTS header is followed by descriptors that are ours from now on.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..length / size_of::<RawFd>() {
                    received.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok((n, received))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_with_the_first_byte_and_is_closed_on_exec() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        assert_eq!(send(a.as_fd(), b"with", Some(file.as_fd())).unwrap(), 4);
        assert_eq!(send(a.as_fd(), b"out", None).unwrap(), 3);
        let mut bytes = [0; 4];
        let (n, mut fds) = receive(b.as_fd(), &mut bytes).unwrap();
        assert_eq!((n, &bytes, fds.len()), (4, b"with", 1));
        let fd = fds.pop().unwrap();
        // SAFETY: F_GETFD takes no pointer.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        let mut same = std::fs::File::from(fd);
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        let (n, fds) = receive(b.as_fd(), &mut bytes).unwrap();
        assert_eq!((n, fds.len()), (3, 0));
        let empty = receive(b.as_fd(), &mut bytes).unwrap_err();
        assert_eq!(empty.raw_os_error(), Some(libc::EAGAIN));
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut bytes).unwrap().0, 0);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        let gone = send(a.as_fd(), b"x", None).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::EPIPE));
    }
}
