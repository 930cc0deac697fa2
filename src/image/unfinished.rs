//! An image that is not whole yet: a file under a name of its own, beside the one that it will have.
//!
//! Whoever looks at the final name finds what was there before, or a whole image, never half of one.
//! Dropped before it is finished, the file is removed. Only a process that is killed leaves one,
//! named `.brant-image-` and 16 hexadecimal digits.

use super::buffer::is_aligned;
use crate::error::{Error, Kind, Result};
use crate::sys::disk::{self, Way};
use crate::sys::{file, mem};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shorter writes go through the page cache: each one past it waits for the device.
pub(super) const DIRECT_LEAST: usize = 64 << 10;

/// See the file's description.
#[derive(Debug)]
pub(super) struct Unfinished {
    directory: PathBuf,
    /// The name that it will have.
    path: PathBuf,
    /// The name that it has; empty when it has been given the other.
    temporary: PathBuf,
    cached: File,
    /// The same file, past the page cache, where the file system lets it be reached so.
    direct: Option<File>,
    /// A write past the page cache was refused.
    refused: AtomicBool,
}

/// What is said of a path in messages.
fn named(path: &Path) -> String {
    format!("image `{}`", path.display())
}

impl Unfinished {
    /// Begins an image that is to be at `path`; nothing, or a regular file, is there now.
    pub(super) fn begin(path: &Path, way: Way) -> Result<Unfinished> {
        let invalid = |what: String| Error::new(Kind::Invalid, format!("{}: {what}", named(path)));
        if path.file_name().is_none() {
            return Err(invalid("expected the path of a file".to_owned()));
        }
        match file::look(path) {
            Ok(there) if there.is_file() => {}
            Ok(there) => {
                return Err(invalid(format!(
                    "expected nothing or a regular file there, found {:?}",
                    there.file_type()
                )))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::os(named(path), e)),
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut number = [0; 8];
        mem::random(&mut number)?;
        let number = u64::from_le_bytes(number);
        let temporary = directory.join(format!(".brant-image-{number:016x}"));
        let cached = disk::create(&temporary).map_err(|e| Error::os(named(path), e))?;
        let mut unfinished = Unfinished {
            directory,
            path: path.to_owned(),
            temporary,
            cached,
            direct: None,
            refused: AtomicBool::new(false),
        };
        if way == Way::Direct {
            // Where it cannot be had (EINVAL of some file systems), the page cache does as well.
            unfinished.direct = disk::open_for_writing(&unfinished.temporary, way).ok();
        }
        Ok(unfinished)
    }

    /// What a failure of a call on it is as an error.
    pub(super) fn failed(&self, doing: &str, error: io::Error) -> Error {
        Error::os(format_args!("{}: {doing}", named(&self.path)), error)
    }

    /// Has it end at `length`.
    pub(super) fn set_length(&self, length: u64) -> Result<()> {
        disk::set_length(self.cached.as_fd(), length)
            .map_err(|e| self.failed(&format!("growing it to {length} bytes"), e))
    }

    /// Writes bytes at a place. Any thread.
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

    /// Makes a part of it a hole, if the file system can; else it keeps what it has.
    pub(super) fn punch(&self, offset: u64, length: u64) {
        let _ = mem::punch_hole(self.cached.as_fd(), offset, length);
    }

    /// Gives it its name, and has file and name last.
    pub(super) fn finish(mut self) -> Result<()> {
        disk::sync(self.cached.as_fd()).map_err(|e| self.failed("syncing it", e))?;
        disk::rename(&self.temporary, &self.path).map_err(|e| self.failed("naming it", e))?;
        self.temporary = PathBuf::new();
        disk::sync_directory(&self.directory).map_err(|e| {
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
