//! [`Faults`]: faults for which a thread waits. The kernel tells of them here, and whoever serves
//! them fills the page or lifts its protection, and wakes the thread.
//!
//! A page is filled by one of three calls: `UFFDIO_COPY` (contents), `UFFDIO_ZEROPAGE`, and
//! `UFFDIO_CONTINUE` (a page that the file has already and the mapping has not). They fill page
//! after page and stop at the first that they cannot fill. [`Filled`] says how far a call came and
//! why it stopped.
//!
//! What a reader has to expect:
//! - a fault may be told of twice. A signal interrupts a thread that waits, and it faults again
//!   after its handler;
//! - a fault may never be told of, although its thread waited: a signal took the thread away before
//!   the message was read;
//! - a page that is there already wakes nobody ([`Stopped::Present`]). Whoever meets that has to
//!   wake the page's threads by [`Faults::wake`], in every userfaultfd that watches it.

use super::{
    api, kernel, new_fd, refused, register, unregister, Copy, Span, FEATURE_WP_HUGETLBFS_SHMEM,
    REGISTER_MODE_MINOR, REGISTER_MODE_MISSING, REGISTER_MODE_WP, UFFDIO_COPY,
};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const UFFDIO_CONTINUE: u64 = 0xc020_aa07;
const UFFDIO_POISON: u64 = 0xc020_aa08;

/// Bits of the ioctls that a registered range takes: the low byte of each number.
const CAN_ZEROPAGE: u64 = 1 << 0x04;
const CAN_WRITEPROTECT: u64 = 1 << 0x06;
const CAN_CONTINUE: u64 = 1 << 0x07;
const CAN_POISON: u64 = 1 << 0x08;

/// Write-protect faults of anonymous memory (5.7); missing faults of huge pages and of shared memory
/// (4.11); the thread's number in a message (4.14); minor faults of huge pages (5.13) and of shared
/// memory (5.14); write protection of both (5.19); poison (6.6).
const WANTED: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 14;
/// Without these two a guest in shared memory or huge pages cannot be served.
const NEEDED: u64 = 1 << 4 | 1 << 5;

/// Of COPY, ZEROPAGE and CONTINUE: do not wake the threads that wait.
const DONTWAKE: u64 = 1;
/// Of COPY: protect the page from writes.
const COPY_WP: u64 = 2;
/// Of WRITEPROTECT: protect. Without it the protection is lifted.
const WRITEPROTECT_WP: u64 = 1;
/// Of WRITEPROTECT: do not wake.
const WRITEPROTECT_DONTWAKE: u64 = 2;

/// Write-protect faults of anonymous memory (5.7), and messages about memory that the process gives
/// back (4.11).
const NEEDED_TO_PROTECT: u64 = 1 | EVENT_REMOVE_FEATURE;
const EVENT_REMOVE_FEATURE: u64 = 1 << 3;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
const FLAG_WRITE: u64 = 1;
const FLAG_WP: u64 = 2;
const FLAG_MINOR: u64 = 4;

/// Faults that one read(2) takes.
const AT_ONCE: usize = 32;
/// Faults that one [`Faults::read`] returns at most. The rest wait in the kernel.
const MOST: usize = 4096;

/// `struct uffd_msg`, as a page fault fills it. A removal has its first address in place of the
/// flags, and its end in place of the address.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    unused: u32,
}

/// The argument of ZEROPAGE, CONTINUE and POISON.
#[repr(C)]
struct Pages {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// Which faults of a range are told of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// Pages that are nowhere.
    pub missing: bool,
    /// Writes to pages that [`Faults::protect`] has protected.
    pub protect: bool,
    /// Pages that the file has and the mapping has not. Shared memory and huge pages only.
    pub minor: bool,
}

/// Which calls a registered range takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Can {
    /// [`Faults::zero`]. Not in huge pages.
    pub zero: bool,
    /// [`Faults::resume`].
    pub resume: bool,
    /// [`Faults::protect`].
    pub protect: bool,
    /// [`Faults::poison`].
    pub poison: bool,
}

/// A thread that waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The first byte of the page that it touched, of the mapping's page size.
    pub address: u64,
    /// It writes.
    pub write: bool,
    /// The page is there and protected from writes.
    pub protected: bool,
    /// The file has the page.
    pub minor: bool,
    /// The number of the thread, or 0 where the kernel does not say.
    pub thread: u32,
}

/// How [`Faults::copy`] fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The page is protected from writes from the beginning.
    pub protect: bool,
    /// The threads that wait for it are woken.
    pub wake: bool,
}

/// Why a call came no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The next page is there already. Nobody was woken for it.
    Present,
    /// The process changes its mappings, and the event about it is still unread.
    Changing,
    /// No userfaultfd of this kind watches the next page any more, or nothing is mapped there.
    Unwatched,
    /// The process has ended.
    Gone,
    /// The next page cannot be filled: a call that begins with it says why.
    Failed,
}

/// How far a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Bytes from the beginning that this call has filled: whole pages.
    pub bytes: u64,
    /// Why it came no further; `None` when all is filled.
    pub stopped: Option<Stopped>,
}

/// A userfaultfd whose faults somebody serves. All methods may be called from any thread.
///
/// Ranges are whole pages of the memory behind them.
#[derive(Debug)]
pub struct Faults(OwnedFd);

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Faults {
    /// A userfaultfd of this process, for the faults of user code and of the kernel: those of vCPUs,
    /// of vhost, of `read()` into the memory.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] says what is missing: the system call, the permission, or a feature.
    pub fn open() -> Result<Faults> {
        let asked = new_fd(true)?;
        let has = api(&asked, 0).map_err(|e| Error::os("UFFDIO_API", e))?;
        if has & NEEDED != NEEDED {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "this kernel's userfaultfd serves no missing pages of shared memory and huge \
                     pages (features {NEEDED:#x}; Linux 4.11 has them): its features are {has:#x}"
                ),
            ));
        }
        // A descriptor takes one successful UFFDIO_API.
        let fd = new_fd(true)?;
        api(&fd, has & WANTED).map_err(|e| Error::os("UFFDIO_API", e))?;
        Ok(Faults(fd))
    }

    /// A userfaultfd of this process for write protection. It also tells of memory that this process
    /// discards by `madvise` (`MADV_DONTNEED`, `MADV_REMOVE`, `MADV_FREE`): the calling thread waits
    /// until [`Faults::read_all`] has read the message, and the memory is discarded afterwards.
    /// With `shared` it also protects memory of files and huge pages.
    ///
    /// While such a message is unread, no page can be filled ([`Stopped::Changing`]), and no
    /// protection changed ([`Faults::try_unprotect`]).
    ///
    /// # Errors
    /// [`Kind::Unsupported`] says what is missing: the system call, the permission, or a feature.
    pub fn open_protecting(shared: bool) -> Result<Faults> {
        let asked = new_fd(true)?;
        let has = api(&asked, 0).map_err(|e| Error::os("UFFDIO_API", e))?;
        let needed = NEEDED_TO_PROTECT
            | if shared {
                FEATURE_WP_HUGETLBFS_SHMEM
            } else {
                0
            };
        if has & needed != needed {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "this kernel's userfaultfd cannot protect all of the guest's memory from writes \
                     (features {needed:#x}; Linux 5.19 has them): its features are {has:#x}"
                ),
            ));
        }
        let fd = new_fd(true)?;
        let asked = has & (WANTED | EVENT_REMOVE_FEATURE);
        api(&fd, asked).map_err(|e| Error::os("UFFDIO_API", e))?;
        Ok(Faults(fd))
    }

    /// The userfaultfd of another process, which has called UFFDIO_API on it and registers its
    /// ranges itself. Addresses are those of that process.
    ///
    /// # Errors
    /// When `fd` cannot be made non-blocking.
    pub fn adopt(fd: OwnedFd) -> Result<Faults> {
        crate::sys::pipe::set_nonblocking(fd.as_fd()).map_err(|e| Error::os("a userfaultfd", e))?;
        Ok(Faults(fd))
    }

    /// Has `range` watched. Replaces the modes of pages that are watched by this userfaultfd
    /// already.
    ///
    /// # Errors
    /// [`Kind::Exists`] when another userfaultfd watches some of it. [`Kind::Invalid`] for memory
    /// that cannot be watched in these modes.
    pub fn register(&self, range: Range<u64>, modes: Modes) -> Result<Can> {
        let mut bits = 0;
        for (on, bit) in [
            (modes.missing, REGISTER_MODE_MISSING),
            (modes.protect, REGISTER_MODE_WP),
            (modes.minor, REGISTER_MODE_MINOR),
        ] {
            bits |= if on { bit } else { 0 };
        }
        let can = register(&self.0, &range, bits).map_err(|error| refused(&range, error))?;
        Ok(Can {
            zero: can & CAN_ZEROPAGE != 0,
            resume: can & CAN_CONTINUE != 0,
            protect: can & CAN_WRITEPROTECT != 0,
            poison: can & CAN_POISON != 0,
        })
    }

    /// Ends the watch of `range`, and wakes the threads that wait there.
    pub fn unregister(&self, range: Range<u64>) -> Result<()> {
        unregister(&self.0, &range)
    }

    /// Appends the faults that there are to `into`, without waiting, up to some thousands. The
    /// descriptor is readable as long as there are more.
    ///
    /// # Errors
    /// When there is no memory for them, or the read fails.
    pub fn read(&self, into: &mut Vec<Fault>) -> Result<()> {
        self.read_all(into, |_| {})
    }

    /// [`Faults::read`] that calls `removed` with each range of memory that is about to be
    /// discarded. Of one batch of messages these come first, before its faults are in `into`.
    ///
    /// # Errors
    /// Those of [`Faults::read`].
    pub fn read_all(
        &self,
        into: &mut Vec<Fault>,
        mut removed: impl FnMut(Range<u64>),
    ) -> Result<()> {
        let mut messages = [Message::default(); AT_ONCE];
        let most = into.len() + MOST;
        while into.len() + AT_ONCE <= most {
            fallible::reserve(into, AT_ONCE, "page faults")?;
            // SAFETY: the kernel fills whole messages of plain integers, which are alive.
            let got = unsafe {
                kernel::read(
                    self.0.as_raw_fd(),
                    messages.as_mut_ptr().cast(),
                    size_of_val(&messages),
                )
            };
            if got < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    Some(libc::EINTR) => continue,
                    _ => return Err(Error::os("reading page faults", error)),
                }
            }
            let got = got as usize / size_of::<Message>();
            let removals = messages[..got].iter();
            for it in removals.filter(|it| it.event == EVENT_REMOVE) {
                removed(it.flags..it.address);
            }
            let faults = messages[..got]
                .iter()
                .filter(|it| it.event == EVENT_PAGEFAULT);
            into.extend(faults.map(|it| Fault {
                address: it.address,
                write: it.flags & FLAG_WRITE != 0,
                protected: it.flags & FLAG_WP != 0,
                minor: it.flags & FLAG_MINOR != 0,
                thread: it.thread,
            }));
            if got < AT_ONCE {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Fills pages from `to` on with `from`.
    pub fn copy(&self, to: u64, from: &[u8], how: Fill) -> Result<Filled> {
        let mode = if how.wake { 0 } else { DONTWAKE } | if how.protect { COPY_WP } else { 0 };
        fill(from.len() as u64, |at| {
            let mut arg = Copy {
                dst: to + at,
                src: from[at as usize..].as_ptr() as u64,
                len: from.len() as u64 - at,
                mode,
                copy: 0,
            };
            // SAFETY: the kernel reads and writes the structure, and reads `from`; both outlive the
            // call. The memory at `to` belongs to whoever registered it, and no Rust reference is
            // to it: it had no contents until now.
            let done = unsafe { kernel::ioctl(self.0.as_raw_fd(), UFFDIO_COPY as _, &mut arg) };
            (done, arg.copy)
        })
        .map_err(|e| failed("UFFDIO_COPY", &(to..to + from.len() as u64), e))
    }

    /// Fills `range` with zeros.
    pub fn zero(&self, range: Range<u64>, wake: bool) -> Result<Filled> {
        self.pages("UFFDIO_ZEROPAGE", UFFDIO_ZEROPAGE, range, wake)
    }

    /// Maps the pages that the file has for `range`. An error where it has none.
    pub fn resume(&self, range: Range<u64>, wake: bool) -> Result<Filled> {
        self.pages("UFFDIO_CONTINUE", UFFDIO_CONTINUE, range, wake)
    }

    /// Has accesses of `range` raise SIGBUS, as those of memory that the hardware has lost.
    pub fn poison(&self, range: Range<u64>) -> Result<Filled> {
        self.pages("UFFDIO_POISON", UFFDIO_POISON, range, true)
    }

    /// Wakes the threads that wait for `range`.
    pub fn wake(&self, range: Range<u64>) -> Result<()> {
        let mut arg = Span::from(&range);
        // SAFETY: the kernel reads the structure, which outlives the call.
        match unsafe { kernel::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE as _, &mut arg) } {
            0 => Ok(()),
            _ => Err(failed("UFFDIO_WAKE", &range, io::Error::last_os_error())),
        }
    }

    /// Protects the pages of `range` from writes: private pages that are there, and all pages of
    /// files and huge pages.
    pub fn protect(&self, range: Range<u64>) -> Result<()> {
        self.write_protect(&range, WRITEPROTECT_WP)
            .map_err(|e| failed("UFFDIO_WRITEPROTECT", &range, e))
    }

    /// Lifts the protection of `range`.
    pub fn unprotect(&self, range: Range<u64>, wake: bool) -> Result<()> {
        self.write_protect(&range, if wake { 0 } else { WRITEPROTECT_DONTWAKE })
            .map_err(|e| failed("UFFDIO_WRITEPROTECT", &range, e))
    }

    /// Lifts the protection of `range` and wakes its threads. `false` when a message about a removal
    /// is unread: read first, then try again.
    pub fn try_unprotect(&self, range: Range<u64>) -> Result<bool> {
        match self.write_protect(&range, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(error) => Err(failed("UFFDIO_WRITEPROTECT", &range, error)),
        }
    }

    fn write_protect(&self, range: &Range<u64>, mode: u64) -> io::Result<()> {
        let Span { start, len } = range.into();
        loop {
            let mut arg = WriteProtect { start, len, mode };
            // SAFETY: the kernel reads the structure, which outlives the call. Contents stay.
            let done =
                unsafe { kernel::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT as _, &mut arg) };
            if done == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // A signal that is pending ends a long call; no change is lost by doing it again.
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }

    fn pages(&self, name: &str, request: u64, range: Range<u64>, wake: bool) -> Result<Filled> {
        let mode = if wake { 0 } else { DONTWAKE };
        fill(range.end.saturating_sub(range.start), |at| {
            let mut arg = Pages {
                start: range.start + at,
                len: range.end - range.start - at,
                mode,
                done: 0,
            };
            // SAFETY: the kernel reads and writes the structure, which outlives the call. The pages
            // had no contents in this mapping until now.
            let done = unsafe { kernel::ioctl(self.0.as_raw_fd(), request as _, &mut arg) };
            (done, arg.done)
        })
        .map_err(|e| failed(name, &range, e))
    }
}

/// Calls `call` with how many bytes are filled, until all `length` are, or it comes no further.
/// `call` returns the ioctl's result and the count in its structure, which is an error number where
/// it is negative. Kernels before 6.15 leave the count alone when the mappings are changing.
fn fill(length: u64, mut call: impl FnMut(u64) -> (libc::c_int, i64)) -> io::Result<Filled> {
    let mut bytes = 0;
    while bytes < length {
        let (done, count) = call(bytes);
        match (done, count) {
            // Some pages were filled. The next call begins behind them, and says why it stops there.
            (_, 1..) => {
                bytes += (count as u64).min(length - bytes);
                continue;
            }
            // Never seen; but nobody must go round for ever here.
            (0, _) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => {}
        }
        let error = io::Error::last_os_error();
        let stopped = match error.raw_os_error() {
            Some(libc::EEXIST) => Stopped::Present,
            Some(libc::EAGAIN) => Stopped::Changing,
            Some(libc::ENOENT) => Stopped::Unwatched,
            Some(libc::ESRCH) => Stopped::Gone,
            Some(libc::EINTR) => continue,
            // What was filled must be known: its threads may have written to it already.
            _ if bytes > 0 => Stopped::Failed,
            _ => return Err(error),
        };
        return Ok(Filled {
            bytes,
            stopped: Some(stopped),
        });
    }
    Ok(Filled {
        bytes,
        stopped: None,
    })
}

fn failed(name: &str, range: &Range<u64>, error: io::Error) -> Error {
    let (start, end) = (range.start, range.end);
    Error::os(format_args!("{name} of {start:#x}..{end:#x}"), error)
}

#[cfg(test)]
mod tests;
