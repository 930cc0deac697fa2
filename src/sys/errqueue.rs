//! The error queue of a socket, where the kernel says which sends without a copy are complete
//! (the kernel's `Documentation/networking/msg_zerocopy.rst`).
//!
//! Thin: each function is one call. Which sends are on their way, and what follows from a
//! completion, are `channel`'s.

use super::kernel;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One message of the kernel's: the sends `first` to `last`, both included, are complete. Their
/// numbers count the calls of one socket that were made with [`MSG_ZEROCOPY`](libc::MSG_ZEROCOPY)
/// and took bytes, from 0, and begin again after `u32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub first: u32,
    pub last: u32,
    /// The kernel has copied after all.
    pub copied: bool,
}

/// `SO_EE_ORIGIN_ZEROCOPY` and `SO_EE_CODE_ZEROCOPY_COPIED` (linux/errqueue.h).
const ORIGIN_ZEROCOPY: u8 = 5;
const CODE_COPIED: u8 = 1;
/// `SOL_VSOCK` and `VSOCK_RECVERR` (linux/vm_sockets.h).
const SOL_VSOCK: i32 = 287;
const VSOCK_RECVERR: i32 = 1;

/// `struct sock_extended_err` (linux/errqueue.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct ExtendedError {
    errno: u32,
    origin: u8,
    kind: u8,
    code: u8,
    pad: u8,
    info: u32,
    data: u32,
}

impl ExtendedError {
    fn completion(self) -> Option<Completion> {
        (self.origin == ORIGIN_ZEROCOPY && self.errno == 0).then_some(Completion {
            first: self.info,
            last: self.data,
            copied: self.code == CODE_COPIED,
        })
    }
}

/// Room for one control message with the longest address behind it.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// What the queue says next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Sends are complete.
    Complete(Completion),
    /// Something else, which nobody asked for: an ICMP error, say.
    Other,
    /// Nothing: the queue is empty.
    Nothing,
}

/// Takes the next message from the queue, without waiting.
pub fn next(fd: BorrowedFd<'_>) -> io::Result<Said> {
    let mut control = Control([0; 256]);
    // SAFETY: msghdr is plain integers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: no room for bytes; `control` is writable and as long as it says.
    let n = unsafe { kernel::recvmsg(fd.as_raw_fd(), &mut message, flags) };
    if n < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Said::Nothing),
            _ => Err(error),
        };
    }
    // SAFETY: the kernel has written the control messages and their length.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !at.is_null() {
        // SAFETY: inside `control`, as CMSG_FIRSTHDR and CMSG_NXTHDR promise.
        let head = unsafe { &*at };
        let is_error = matches!(
            (head.cmsg_level, head.cmsg_type),
            (libc::SOL_IP, libc::IP_RECVERR)
                | (libc::SOL_IPV6, libc::IPV6_RECVERR)
                | (SOL_VSOCK, VSOCK_RECVERR)
        );
        // SAFETY: integers only.
        let enough = unsafe { libc::CMSG_LEN(size_of::<ExtendedError>() as u32) };
        if is_error && head.cmsg_len as usize >= enough as usize {
            // SAFETY: so many bytes follow the head; they need not be aligned.
            let error = unsafe { libc::CMSG_DATA(at).cast::<ExtendedError>().read_unaligned() };
            if let Some(completion) = error.completion() {
                return Ok(Said::Complete(completion));
            }
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&message, at) };
    }
    Ok(Said::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(origin: u8, errno: u32, code: u8) -> Option<Completion> {
        let error = ExtendedError {
            errno,
            origin,
            kind: 0,
            code,
            pad: 0,
            info: u32::MAX,
            data: 1,
        };
        error.completion()
    }

    #[test]
    fn only_a_completion_is_one_and_whether_the_kernel_copied_is_told() {
        let whole = |copied| Completion {
            first: u32::MAX,
            last: 1,
            copied,
        };
        assert_eq!(said(ORIGIN_ZEROCOPY, 0, 0), Some(whole(false)));
        assert_eq!(said(ORIGIN_ZEROCOPY, 0, CODE_COPIED), Some(whole(true)));
        // An ICMP error, and a failure.
        assert_eq!(said(2, 0, 0), None);
        assert_eq!(said(ORIGIN_ZEROCOPY, libc::ECONNREFUSED as u32, 0), None);
    }
}
