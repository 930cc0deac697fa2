//! What can go wrong, as one type: a stable kind (which the C face turns into
//! a `BRANT_E_*` code) and a sentence for the person who has to act on it.
//!
//! This file knows nothing of what any room does. Everyone above uses it.

use std::fmt;

/// The kind of an error. The numbers are part of the C ABI
/// (`BRANT_E_INVALID` is -1, and so on): they never change meaning, and new
/// ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Kind {
    /// An argument is outside its stated limits.
    Invalid = -1,
    /// The call is not allowed in the state the object is in.
    State = -2,
    /// The object is in use by something else; try again when that has ended.
    Busy = -3,
    /// No such block, slot, or file.
    NotFound = -4,
    /// Something of that name or in that place is there already.
    Exists = -5,
    /// Memory could not be had.
    NoMemory = -6,
    /// The kernel, the machine or the peer cannot do this.
    Unsupported = -7,
    /// A system call failed for a reason that is not the caller's.
    Kernel = -8,
    /// The connection could not be made, or failed.
    Io = -9,
    /// The peer closed the connection.
    PeerGone = -10,
    /// A time limit passed.
    Timeout = -11,
    /// The operation was cancelled, here or by the peer; the message says who.
    Cancelled = -12,
    /// The peer sent what the protocol does not allow.
    Protocol = -13,
    /// The two sides' memory blocks differ.
    Layout = -14,
    /// No protocol version or required feature in common.
    Version = -15,
    /// The peer refused, and said why.
    Refused = -16,
    /// A callback of the VMM failed.
    Vmm = -17,
    /// The guest dirties memory faster than the link carries it away.
    NotConverged = -18,
    /// Migration is blocked by a reason the VMM gave.
    Blocked = -19,
    /// Handed over, but the destination never said that it runs.
    Unanswered = -20,
    /// Called from inside a callback of the same object, where it would wait for itself.
    Callback = -21,
    /// A defect in brant itself, caught at a boundary.
    Internal = -22,
    /// Not over yet: the wait ended before what was waited for.
    Pending = -23,
    /// Guest memory could not be read or written: poisoned, without permission, cut off
    /// the end of its file, or without room to be allocated.
    Memory = -24,
}

impl Kind {
    /// A short name in plain words, for logs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Invalid => "invalid argument",
            Kind::State => "wrong state",
            Kind::Busy => "busy",
            Kind::NotFound => "not found",
            Kind::Exists => "already exists",
            Kind::NoMemory => "out of memory",
            Kind::Unsupported => "not supported",
            Kind::Kernel => "system call failed",
            Kind::Io => "connection error",
            Kind::PeerGone => "peer gone",
            Kind::Timeout => "timed out",
            Kind::Cancelled => "cancelled",
            Kind::Protocol => "protocol error",
            Kind::Layout => "memory layouts differ",
            Kind::Version => "no common version",
            Kind::Refused => "refused by the peer",
            Kind::Vmm => "VMM callback failed",
            Kind::NotConverged => "did not converge",
            Kind::Blocked => "migration blocked",
            Kind::Unanswered => "handed over, not answered",
            Kind::Callback => "called from its own callback",
            Kind::Internal => "internal error",
            Kind::Pending => "not over yet",
            Kind::Memory => "guest memory not accessible",
        }
    }
}

/// An error: its kind, and a message that says what was expected, what was
/// found, and which block, slot or peer it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// What fallible functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
        }
    }

    /// [`Kind::Kernel`] (or [`Kind::NoMemory`] for `ENOMEM`) from what the
    /// operating system said about `what`.
    pub fn os(what: impl fmt::Display, error: std::io::Error) -> Self {
        let kind = match error.raw_os_error() {
            Some(libc::ENOMEM) => Kind::NoMemory,
            _ => Kind::Kernel,
        };
        Error::new(kind, format!("{what}: {error}"))
    }

    /// [`Error::os`] with the calling thread's last `errno`.
    pub fn last_os(what: impl fmt::Display) -> Self {
        Error::os(what, std::io::Error::last_os_error())
    }

    /// Memory of `bytes` for `what` could not be had.
    pub fn no_memory(what: impl fmt::Display, bytes: u64) -> Self {
        Error::new(
            Kind::NoMemory,
            format!("{what}: {bytes} bytes could not be allocated"),
        )
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `context` and a colon before its message.
    pub fn context(self, context: impl fmt::Display) -> Self {
        Error {
            kind: self.kind,
            message: format!("{context}: {}", self.message),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
