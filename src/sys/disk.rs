//! Files that are written and read by position, through the page cache or past it, and what makes
//! them durable: a sync of the file, a rename, and a sync of the directory.

use super::{file, kernel};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The way in which a file is accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Through the page cache.
    Cached,
    /// Past the page cache (`O_DIRECT`). Memory, position and length must be multiples of the
    /// device's block.
    Direct,
}

impl Caching {
    /// Past the page cache if `direct`, else through it.
    pub fn new(direct: bool) -> Caching {
        match direct {
            true => Caching::Direct,
            false => Caching::Cached,
        }
    }

    fn flags(self) -> i32 {
        match self {
            Caching::Cached => 0,
            Caching::Direct => libc::O_DIRECT,
        }
    }
}

/// Makes a file that only its owner may read and write. An error if the name exists.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    kernel::open(&options, path)
}

/// Opens an existing file for writing and reading.
pub fn open_for_writing(path: &Path, caching: Caching) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(caching.flags());
    kernel::open(&options, path)
}

/// Opens a file for reading. Does not wait for the other end of a named pipe.
pub fn open_for_reading(path: &Path, caching: Caching) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(caching.flags() | libc::O_NONBLOCK);
    kernel::open(&options, path)
}

/// The length of a regular file; `None` for any other kind of file.
pub fn length(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { kernel::fstat(fd.as_raw_fd(), &mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(regular.then_some(stat.st_size as u64))
}

/// An offset as the kernel takes it.
fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Sets the length of a file: cuts it, or lets it end with a hole.
pub fn set_length(fd: BorrowedFd<'_>, length: u64) -> io::Result<()> {
    let length = position(length)?;
    loop {
        // SAFETY: changes the file and touches no memory.
        if unsafe { kernel::ftruncate(fd.as_raw_fd(), length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Writes some of `bytes` at `offset`, and returns how many.
pub fn write_some(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let at = position(offset)?;
    loop {
        // SAFETY: the kernel reads the slice, which outlives the call.
        let put = unsafe { kernel::pwrite(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at) };
        match usize::try_from(put) {
            Ok(0) if !bytes.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
            Ok(put) => return Ok(put),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Reads some bytes from `offset` on; 0 at the end of the file.
pub fn read_some(fd: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let at = position(offset)?;
    loop {
        // SAFETY: the kernel fills the slice, which outlives the call.
        let got =
            unsafe { kernel::pread(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), at) };
        match usize::try_from(got) {
            Ok(got) => return Ok(got),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Waits until a file, with all writes to it, is on its device.
pub fn sync(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: touches no memory.
    match unsafe { kernel::fsync(fd.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Renames a file. A file that has the new name is replaced.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    kernel::rename(from, to)
}

/// Opens a directory for [`sync`], after which its names are on its device.
pub fn open_directory(path: &Path) -> io::Result<File> {
    file::open(path)
}
