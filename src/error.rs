//! The error type of the crate: a stable kind, and a sentence for the person who has to act on it.
//! The C interface turns the kind into a `BRANT_E_*` code.
//!
//! All modules use this one; it depends on none of them.

use std::error::Error as Cause;
use std::fmt;
use std::io;
use std::sync::Arc;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{GuestMemoryError, GuestRegionCollectionError, VolatileMemoryError};

/// The kind of an error. The numbers are part of the C ABI: `BRANT_E_INVALID` is -1, and so on. A
/// number never changes its meaning; new ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Kind {
    /// An argument is outside its stated limits.
    Invalid = -1,
    /// The call is not allowed in the state the object is in.
    State = -2,
    /// The object is in use elsewhere. Try again when that use has ended.
    Busy = -3,
    /// No such block, slot, or file.
    NotFound = -4,
    /// A block, slot or file of that name or in that place exists already.
    Exists = -5,
    /// There is not enough memory.
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
    /// The operation was cancelled, here or by the peer. If by the peer, the message says so.
    Cancelled = -12,
    /// The peer sent what the protocol does not allow.
    Protocol = -13,
    /// The two sides' memory blocks differ.
    Layout = -14,
    /// The two sides have no protocol version in common, or one lacks a feature that the other
    /// requires.
    Version = -15,
    /// The peer refused, and said why.
    Refused = -16,
    /// An operation of the VMM failed.
    Vmm = -17,
    /// The rest to be sent did not get small enough in time. The guest writes too fast, or the link
    /// or its cap is too slow.
    NotConverged = -18,
    /// The guest can be neither migrated nor saved, for a reason that the VMM gave.
    Blocked = -19,
    /// The source handed the guest over, and the destination did not say that the guest runs: it
    /// said nothing, or that it failed. The guest stays paused at the source until the VMM resolves
    /// the migration.
    Unanswered = -20,
    /// The call came from inside an operation that the same object called, and would wait for
    /// itself.
    Callback = -21,
    /// A defect in brant itself, caught at a boundary.
    Internal = -22,
    /// The wait ended before the work that it waited for.
    Pending = -23,
    /// Guest memory could not be read or written. The page is poisoned, has no permission, was cut
    /// off the end of its file, or finds no room to be allocated.
    Memory = -24,
    /// A file is not a whole image of a guest: it is damaged, too short, or of another kind.
    Image = -25,
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
            Kind::Blocked => "blocked by the VMM",
            Kind::Unanswered => "handed over, not answered",
            Kind::Callback => "called from its own callback",
            Kind::Internal => "internal error",
            Kind::Pending => "not over yet",
            Kind::Memory => "guest memory not accessible",
            Kind::Image => "no whole image",
        }
    }
}

/// An error: its kind, and a message that says what was expected, what was
/// found, and which block, slot or peer it is about.
///
/// `?` converts errors of the standard library's I/O, of kvm-ioctls and of vm-memory, so the
/// operations of a [`Vmm`](crate::vmm::Vmm) need no conversions. The converted error remains the
/// [source](std::error::Error::source):
///
/// ```
/// use brant::error::Kind;
/// use std::error::Error as _;
///
/// fn lock_disk() -> brant::Result<()> {
///     let nothing: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(16));
///     nothing?;
///     Ok(())
/// }
///
/// let error = lock_disk().unwrap_err().context("locking the disk");
/// assert_eq!(error.kind(), Kind::Kernel);
/// assert!(error.message().starts_with("locking the disk: "));
/// let cause = error.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
/// assert_eq!(cause.raw_os_error(), Some(16));
/// ```
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    /// Shared, because each wait for a migration returns a copy of the migration's error.
    source: Option<Arc<dyn Cause + Send + Sync>>,
}

/// Errors are equal when kind and message are; their sources do not count.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.message) == (other.kind, &other.message)
    }
}

impl Eq for Error {}

/// The result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error of `kind` with the message of `source`, which it keeps.
    pub fn from_source(kind: Kind, source: impl Cause + Send + Sync + 'static) -> Self {
        Error {
            kind,
            message: source.to_string(),
            source: Some(Arc::new(source)),
        }
    }

    /// The operating system's `error` about `what`: [`Kind::NoMemory`] for `ENOMEM`, else
    /// [`Kind::Kernel`].
    pub fn os(what: impl fmt::Display, error: io::Error) -> Self {
        Error::from_source(os_kind(error.raw_os_error()), error).context(what)
    }

    /// The operating system's `error` about a path, `what`: [`Kind::NotFound`] if the path leads
    /// nowhere, [`Kind::Invalid`] if it is too long, else as [`Error::os`].
    pub(crate) fn path(what: impl fmt::Display, error: io::Error) -> Self {
        let kind = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Some(Kind::NotFound),
            Some(libc::ENAMETOOLONG | libc::ELOOP) => Some(Kind::Invalid),
            _ => None,
        };
        let error = Error::os(what, error);
        match kind {
            Some(kind) => error.into_kind(kind),
            None => error,
        }
    }

    /// [`Error::os`] with the calling thread's last `errno`.
    pub fn last_os(what: impl fmt::Display) -> Self {
        Error::os(what, io::Error::last_os_error())
    }

    /// [`Kind::NoMemory`]: `bytes` for `what` could not be allocated.
    pub fn no_memory(what: impl fmt::Display, bytes: u64) -> Self {
        Error::new(
            Kind::NoMemory,
            format!("{what}: {bytes} bytes could not be allocated"),
        )
    }

    /// The kind, for a program to decide by.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message, for a person to read.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `context` and a colon before its message.
    pub fn context(self, context: impl fmt::Display) -> Self {
        Error {
            message: format!("{context}: {}", self.message),
            ..self
        }
    }

    /// The same error as one of `kind`.
    pub(crate) fn into_kind(self, kind: Kind) -> Self {
        Error { kind, ..self }
    }
}

/// The kind of a failed system call's `errno`.
fn os_kind(errno: Option<i32>) -> Kind {
    match errno {
        Some(libc::ENOMEM) => Kind::NoMemory,
        _ => Kind::Kernel,
    }
}

/// The kind of an I/O error whose circumstances are unknown.
fn io_kind(error: &io::Error) -> Kind {
    match (error.raw_os_error(), error.kind()) {
        (None, io::ErrorKind::OutOfMemory) => Kind::NoMemory,
        (None, _) => Kind::Io,
        (errno, _) => os_kind(errno),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Cause for Error {
    fn source(&self) -> Option<&(dyn Cause + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Cause + 'static))
    }
}

/// [`Kind::Kernel`], or [`Kind::NoMemory`], where a system call failed; else [`Kind::Io`].
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::from_source(io_kind(&error), error)
    }
}

/// [`Kind::Kernel`], or [`Kind::NoMemory`].
impl From<kvm_ioctls::Error> for Error {
    fn from(error: kvm_ioctls::Error) -> Self {
        Error::from_source(os_kind(Some(error.errno())), error)
    }
}

/// [`Kind::Invalid`], unless the system failed.
impl From<GuestMemoryError> for Error {
    fn from(error: GuestMemoryError) -> Self {
        let kind = match &error {
            GuestMemoryError::IOError(e) => io_kind(e),
            _ => Kind::Invalid,
        };
        Error::from_source(kind, error)
    }
}

/// [`Kind::Invalid`], unless the system failed.
impl From<VolatileMemoryError> for Error {
    fn from(error: VolatileMemoryError) -> Self {
        let kind = match &error {
            VolatileMemoryError::IOError(e) => io_kind(e),
            _ => Kind::Invalid,
        };
        Error::from_source(kind, error)
    }
}

fn mapping_kind(error: &MmapRegionError) -> Kind {
    match error {
        MmapRegionError::Mmap(e) => io_kind(e),
        _ => Kind::Invalid,
    }
}

/// [`Kind::Invalid`], unless the system failed.
impl From<MmapRegionError> for Error {
    fn from(error: MmapRegionError) -> Self {
        Error::from_source(mapping_kind(&error), error)
    }
}

/// [`Kind::Invalid`], unless the system failed.
impl From<FromRangesError> for Error {
    fn from(error: FromRangesError) -> Self {
        let kind = match &error {
            FromRangesError::MmapRegion(e) => mapping_kind(e),
            _ => Kind::Invalid,
        };
        Error::from_source(kind, error)
    }
}

/// [`Kind::Invalid`].
impl From<GuestRegionCollectionError> for Error {
    fn from(error: GuestRegionCollectionError) -> Self {
        Error::from_source(Kind::Invalid, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn errno(error: &Error) -> Option<i32> {
        error.source()?.downcast_ref::<io::Error>()?.raw_os_error()
    }

    #[test]
    fn what_the_system_said_stays_the_source_under_every_context() {
        let error = Error::os("opening", io::Error::from_raw_os_error(libc::EACCES));
        let error = error.context("the disk").into_kind(Kind::Vmm);
        assert_eq!(error.kind(), Kind::Vmm);
        assert!(
            error.message().starts_with("the disk: opening: "),
            "{error}"
        );
        assert_eq!(errno(&error), Some(libc::EACCES));
        assert_eq!(errno(&error.clone()), Some(libc::EACCES));
        assert!(Error::new(Kind::Busy, "no cause").source().is_none());
    }

    #[test]
    fn errors_of_others_have_the_kind_of_what_happened() {
        let io = |errno| io::Error::from_raw_os_error(errno);
        let table = [
            (Error::from(io(libc::EIO)), Kind::Kernel),
            (Error::from(io(libc::ENOMEM)), Kind::NoMemory),
            (Error::from(io::Error::other("said the VMM")), Kind::Io),
            (kvm_ioctls::Error::new(libc::EBADF).into(), Kind::Kernel),
            (kvm_ioctls::Error::new(libc::ENOMEM).into(), Kind::NoMemory),
            (
                GuestMemoryError::IOError(io(libc::EIO)).into(),
                Kind::Kernel,
            ),
            (
                GuestMemoryError::InvalidGuestAddress(GuestAddress(7)).into(),
                Kind::Invalid,
            ),
            (
                VolatileMemoryError::OutOfBounds { addr: 7 }.into(),
                Kind::Invalid,
            ),
            (
                MmapRegionError::Mmap(io(libc::ENOMEM)).into(),
                Kind::NoMemory,
            ),
            (MmapRegionError::InvalidPointer.into(), Kind::Invalid),
            (
                FromRangesError::MmapRegion(MmapRegionError::Mmap(io(libc::ENODEV))).into(),
                Kind::Kernel,
            ),
            (
                GuestRegionCollectionError::NoMemoryRegion.into(),
                Kind::Invalid,
            ),
        ];
        for (error, kind) in table {
            assert_eq!(error.kind(), kind, "{error}");
            let source = error.source().expect("it was made of something");
            assert_eq!(source.to_string(), error.message());
        }
    }

    #[test]
    fn a_function_that_makes_guest_memory_needs_no_conversions() {
        fn make() -> Result<GuestMemoryMmap> {
            let twice = [(GuestAddress(0), 4096), (GuestAddress(0), 4096)];
            Ok(GuestMemoryMmap::from_ranges(&twice)?)
        }
        assert_eq!(make().unwrap_err().kind(), Kind::Invalid);
    }
}
