//! System calls on files by their paths (open, look, remove), and the duplication of any
//! descriptor.

use super::kernel;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Opens a file for reading, closed on exec.
pub(super) fn open(path: impl AsRef<Path>) -> io::Result<File> {
    kernel::open(File::options().read(true), path.as_ref())
}

/// A file that is read from its present position on.
pub(super) struct Reader(pub(super) File);

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        kernel::read_file(&self.0, buffer)
    }
}

/// The metadata of the file at a path; of a symbolic link, those of the link itself.
pub fn look(path: &Path) -> io::Result<Metadata> {
    kernel::lstat(path)
}

/// Removes the file at a path.
pub fn remove(path: &Path) -> io::Result<()> {
    kernel::unlink(path)
}

/// A second descriptor of the same open file, closed on exec.
pub fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    kernel::duplicate(fd)
}
