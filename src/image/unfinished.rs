//! An image that is not whole yet: a file with a temporary name, in the directory of its final
//! name.
//!
//! The final name leads to the earlier file or to a whole image, never to a part of one. A file
//! that is dropped before it is finished is removed. Only a process that is killed leaves one
//! behind, named `.brant-image-` and 16 hexadecimal digits.

use super::buffer::is_aligned;
use crate::error::{Error, Kind, Result};
use crate::sys::disk::{self, Caching};
use crate::sys::{fd, file, mem};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shorter writes go through the page cache, because each write past the cache waits for the
/// device.
pub(super) const DIRECT_LEAST: usize = 64 << 10;

/// See the file's description.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// The directory of both names. Open from the beginning: once the file has its final name,
    /// nothing but the sync itself may fail.
    directory: File,
    /// The final name.
    path: PathBuf,
    /// The temporary name; empty once the file has its final name.
    temporary: PathBuf,
    cached: File,
    /// The same file, opened past the page cache (`O_DIRECT`), if the file system allows it.
    direct: Option<File>,
    /// A write past the page cache was refused.
    refused: AtomicBool,
}

/// A path as messages show it.
fn named(path: &Path) -> String {
    format!("image `{}`", path.display())
}

impl Unfinished {
    /// Begins an image that will get the name `path`, where nothing or a regular file exists now.
    pub(super) fn begin(path: &Path, caching: Caching) -> Result<Unfinished> {
        let invalid = |what: String| Error::new(Kind::Invalid, format!("{}: {what}", named(path)));
        // `Path::file_name` would pass `new/` and `new/.`, which no file can be renamed to.
        let last = path.as_os_str().as_bytes().rsplit(|byte| *byte == b'/');
        if matches!(last.into_iter().next(), None | Some(b"" | b"." | b"..")) {
            return Err(invalid(
                "expected the path of a file, which ends with a name".to_owned(),
            ));
        }
        match file::look(path) {
            Ok(there) if there.is_file() => {}
            Ok(there) => {
                return Err(invalid(format!(
                    "expected nothing or a regular file there, found {}",
                    fd::kind_of(there.mode())
                )))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::path(named(path), e)),
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let opened = disk::open_directory(&directory).map_err(|e| {
            let what = "opening its directory, which is synced at the end and so must be readable";
            Error::path(format_args!("{}: {what}", named(path)), e)
        })?;
        let mut number = [0; 8];
        mem::random(&mut number)?;
        let number = u64::from_le_bytes(number);
        let temporary = directory.join(format!(".brant-image-{number:016x}"));
        let cached = disk::create(&temporary).map_err(|e| Error::path(named(path), e))?;
        let mut unfinished = Unfinished {
            directory: opened,
            path: path.to_owned(),
            temporary,
            cached,
            direct: None,
            refused: AtomicBool::new(false),
        };
        if caching == Caching::Direct {
            // Some file systems refuse `O_DIRECT` with EINVAL. Then writes go through the page
            // cache.
            unfinished.direct = disk::open_for_writing(&unfinished.temporary, caching).ok();
        }
        Ok(unfinished)
    }

    /// The error for a failed call on the file.
    pub(super) fn failed(&self, doing: &str, error: io::Error) -> Error {
        Error::os(format_args!("{}: {doing}", named(&self.path)), error)
    }

    /// Sets the file's length.
    pub(super) fn set_length(&self, length: u64) -> Result<()> {
        disk::set_length(self.cached.as_fd(), length)
            .map_err(|e| self.failed(&format!("growing it to {length} bytes"), e))
    }

    /// Writes bytes at an offset. May be called on any thread.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            let direct = self.direct.as_ref().filter(|_| {
                rest.len() >= DIRECT_LEAST && is_aligned(rest, at) && !self.refused.load(Relaxed)
            });
            let put = match direct {
                None => disk::write_some(self.cached.as_fd(), rest, at)?,
                Some(direct) => match disk::write_some(direct.as_fd(), rest, at) {
                    // The device's blocks are larger than a page.
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                        self.refused.store(true, Relaxed);
                        continue;
                    }
                    put => put?,
                },
            };
            rest = &rest[put..];
            at += put as u64;
        }
        Ok(())
    }

    /// Makes a part of the file zeros: a hole, where the file system can.
    pub(super) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.punch(offset, length).is_ok() {
            return Ok(());
        }
        let zeros = [0; 4096];
        let mut at = 0;
        while at < length {
            let step = (length - at).min(zeros.len() as u64) as usize;
            self.write(&zeros[..step], offset + at)?;
            at += step as u64;
        }
        Ok(())
    }

    /// Makes a part of the file a hole.
    pub(super) fn punch(&self, offset: u64, length: u64) -> Result<()> {
        mem::punch_hole(self.cached.as_fd(), offset, length)
    }

    /// Syncs the file to its device, gives it its name, and syncs the directory.
    pub(super) fn finish(mut self) -> Result<()> {
        disk::sync(self.cached.as_fd()).map_err(|e| self.failed("syncing it", e))?;
        disk::rename(&self.temporary, &self.path).map_err(|e| self.failed("naming it", e))?;
        self.temporary = PathBuf::new();
        disk::sync(self.directory.as_fd()).map_err(|e| {
            self.failed(
                "it is whole and has its name, which may not last: syncing its directory",
                e,
            )
        })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            let _ = file::remove(&self.temporary);
        }
    }
}
