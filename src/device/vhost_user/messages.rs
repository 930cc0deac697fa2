//! The two vhost-user messages about a back end's state, as calls on a connection. The VMM lends the
//! connection for the length of a call: no other thread sends on it or reads from it meanwhile, and
//! no reply is outstanding. Numbers and layouts are those of the vhost-user specification.

use crate::device::patience::{again, check_inside, SLICE};
use crate::error::{Error, Kind, Result};
use crate::runtime::cancel::{wait_ready, Interest, Wake};
use crate::runtime::Deadline;
use crate::sys::passing;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// The bit of the protocol features that a back end and its front end negotiate before either
/// message is sent: `VHOST_USER_PROTOCOL_F_DEVICE_STATE`.
pub const PROTOCOL_F_DEVICE_STATE: u32 = 19;

/// `VHOST_USER_SET_DEVICE_STATE_FD`.
const SET_DEVICE_STATE_FD: u32 = 42;
/// `VHOST_USER_CHECK_DEVICE_STATE`.
const CHECK_DEVICE_STATE: u32 = 43;

/// In a message's flags: version 1; a reply.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
/// In the reply to SET_DEVICE_STATE_FD: no descriptor came with it. The lower 8 bits are the error.
const NO_FD: u64 = 1 << 8;
const ERROR: u64 = 0xff;
/// The only phase there is: all rings have stopped.
const PHASE_STOPPED: u32 = 0;

/// Request, flags and the length of the payload, 4 bytes each.
const HEAD: usize = 12;

/// Where a back end's state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// From the back end.
    Save = 0,
    /// To the back end.
    Load = 1,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Save => "save",
            Direction::Load => "load",
        }
    }
}

fn protocol(what: &str, found: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Protocol,
        format!("{what}: the vhost-user back end {found}"),
    )
}

/// Sends a request and receives its reply, a number, and the descriptors that came with it.
fn ask(
    socket: BorrowedFd<'_>,
    what: &str,
    request: u32,
    payload: &[u32],
    attached: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<(u64, Vec<OwnedFd>)> {
    let until = Deadline::after(patience);
    let wait = |interest| loop {
        check_inside(what)?;
        let slice = until.earlier(Deadline::after(SLICE));
        if wait_ready(socket, interest, None, slice)? == Wake::Ready {
            return Ok(());
        }
        if until.expired() {
            return Err(Error::new(
                Kind::Timeout,
                format!("{what}: no answer of the vhost-user back end for {patience:?}"),
            ));
        }
    };
    let lost = |e: std::io::Error| Error::os(format_args!("{what}: the vhost-user connection"), e);

    let length = size_of_val(payload) as u32;
    let words = [request, VERSION, length].into_iter();
    let bytes: Vec<u8> = words
        .chain(payload.iter().copied())
        .flat_map(u32::to_ne_bytes)
        .collect();
    let mut sent = 0;
    while sent < bytes.len() {
        // The descriptor goes with the first byte, and only once.
        let with = attached.filter(|_| sent == 0);
        match passing::send(socket, &bytes[sent..], with) {
            Ok(n) => sent += n,
            Err(e) if again(&e) => wait(Interest::Write)?,
            Err(e) => return Err(lost(e)),
        }
    }

    let mut reply = [0; HEAD + 8];
    let (mut have, mut fds) = (0, Vec::new());
    while have < reply.len() {
        // Not a byte more than this reply, because what follows is the VMM's.
        match passing::receive(socket, &mut reply[have..]) {
            Ok((0, _)) => return Err(protocol(what, "closed the connection")),
            Ok((n, more)) => {
                have += n;
                fds.extend(more);
            }
            Err(e) if again(&e) => wait(Interest::Read)?,
            Err(e) => return Err(lost(e)),
        }
        if have >= HEAD {
            let word = |at: usize| {
                let bytes = [reply[at], reply[at + 1], reply[at + 2], reply[at + 3]];
                u32::from_ne_bytes(bytes)
            };
            let (number, flags, length) = (word(0), word(4), word(8));
            if (number, flags & (VERSION_MASK | REPLY), length) != (request, VERSION | REPLY, 8) {
                return Err(protocol(
                    what,
                    format_args!(
                        "answered request {number} with flags {flags:#x} and {length} bytes; \
                         expected a reply to {request} of 8 bytes"
                    ),
                ));
            }
        }
    }
    let mut value = [0; 8];
    value.copy_from_slice(&reply[HEAD..]);
    Ok((u64::from_ne_bytes(value), fds))
}

/// SET_DEVICE_STATE_FD: gives the back end a duplicate of `fd`, the end of a pipe that it writes its
/// state to ([`Direction::Save`]) or reads it from. Returns the descriptor that the back end gave
/// instead of using `fd`, if it gave one. Waits for the reply for `patience` at most. Called inside of
/// [`Front`](super::Front) on the thread that calls that, it ends with a cancel of the device too.
/// After any error but `Refused`, the connection is of no more use.
///
/// # Errors
/// `Refused` when the back end refuses; `Protocol` for another reply than the specification allows;
/// `Timeout`; `Cancelled`; errors of the socket.
pub fn set_device_state_fd(
    socket: BorrowedFd<'_>,
    direction: Direction,
    fd: BorrowedFd<'_>,
    patience: Duration,
) -> Result<Option<OwnedFd>> {
    let what = match direction {
        Direction::Save => "SET_DEVICE_STATE_FD (save)",
        Direction::Load => "SET_DEVICE_STATE_FD (load)",
    };
    let payload = [direction as u32, PHASE_STOPPED];
    let (value, mut fds) = ask(
        socket,
        what,
        SET_DEVICE_STATE_FD,
        &payload,
        Some(fd),
        patience,
    )?;
    if value & ERROR != 0 {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "{what}: the vhost-user back end refuses to {} its state (error {})",
                direction.name(),
                value & ERROR
            ),
        ));
    }
    let said = match value & NO_FD {
        0 => 1,
        _ => 0,
    };
    if fds.len() != said {
        return Err(protocol(
            what,
            format_args!(
                "sent {} descriptors with the reply {value:#x}; expected {said}",
                fds.len()
            ),
        ));
    }
    Ok(fds.pop())
}

/// CHECK_DEVICE_STATE: asks whether the transfer that SET_DEVICE_STATE_FD began succeeded. Sent after
/// the end of the state was read, or the channel closed behind the last byte written.
///
/// # Errors
/// `Refused` when the transfer failed; otherwise as for [`set_device_state_fd`].
pub fn check_device_state(socket: BorrowedFd<'_>, patience: Duration) -> Result<()> {
    let what = "CHECK_DEVICE_STATE";
    match ask(socket, what, CHECK_DEVICE_STATE, &[], None, patience)? {
        (0, _) => Ok(()),
        (error, _) => Err(Error::new(
            Kind::Refused,
            format!(
                "{what}: the vhost-user back end says that the transfer of its state failed \
                 (error {error:#x})"
            ),
        )),
    }
}
