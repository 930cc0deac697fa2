//! Bytes over a unix socket together with one descriptor (`SCM_RIGHTS`, unix(7)), as vhost-user
//! messages are sent, and the descriptors of memory that changes hands on one host.
//!
//! Each function is one call. `device::vhost_user` and `channel` know the messages.

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
    // SAFETY: the bytes are writable.
    let received = unsafe { receive_into(socket, std::slice::from_ref(&part), usize::MAX) }?;
    Ok((received.bytes, received.descriptors))
}

/// What one call received.
#[derive(Debug)]
pub struct Received {
    /// How many bytes. 0: the peer has closed.
    pub bytes: usize,
    /// The descriptors that came with them, closed on exec.
    pub descriptors: Vec<OwnedFd>,
    /// The kernel dropped descriptors: there were more than room, or the process may have no more.
    pub cut: bool,
}

/// Receives what is there now into `parts`, and at most `most` descriptors that came with it. The
/// kernel drops further ones. Never waits.
///
/// Bytes behind those that a descriptor came with are never in the same answer: the kernel ends a
/// read there (unix(7)).
///
/// # Safety
/// The parts are writable memory, as long as they say.
pub unsafe fn receive_into(
    socket: BorrowedFd<'_>,
    parts: &[libc::iovec],
    most: usize,
) -> io::Result<Received> {
    let mut control = Control([0; 128]);
    let mut message = net::message(parts);
    message.msg_control = (&raw mut control).cast();
    let room = most
        .min(size_of::<Control>())
        .saturating_mul(size_of::<RawFd>());
    // SAFETY: CMSG_LEN only computes. Without the padding of CMSG_SPACE there is no room for one
    // descriptor more.
    let wanted = unsafe { libc::CMSG_LEN(room as u32) } as usize;
    message.msg_controllen = wanted.min(size_of::<Control>()) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the parts by the caller's promise; `control` is writable and as long as it says.
    let n = unsafe { kernel::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    let mut received = Received {
        bytes: n,
        descriptors: Vec::new(),
        cut: message.msg_flags & libc::MSG_CTRUNC != 0,
    };
    // SAFETY: the kernel has filled `control` with headers as far as msg_controllen says; each
    // SCM_RIGHTS header is followed by descriptors that are ours from now on.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..length / size_of::<RawFd>() {
                    let fd = OwnedFd::from_raw_fd(data.add(i).read_unaligned());
                    received.descriptors.push(fd);
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok(received)
}

/// What a hostile peer sends, for tests of other files.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Sends `bytes` with two duplicates of `attached`.
    pub(crate) fn send_two(
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        attached: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        let part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut control = Control([0; 128]);
        let mut message = net::message(std::slice::from_ref(&part));
        let length = 2 * size_of::<RawFd>() as u32;
        message.msg_control = (&raw mut control).cast();
        // SAFETY: as in `send`, with room for two descriptors.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(length) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            data.write_unaligned(attached.as_raw_fd());
            data.add(1).write_unaligned(attached.as_raw_fd());
        }
        // SAFETY: the message's parts live on this stack frame and in `bytes`.
        let n = unsafe { kernel::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
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
