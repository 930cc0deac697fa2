//! One image's file: its header and index checked, and its bytes read.
//!
//! Header and index are checked when the file is opened. Tables of checksums are checked when they are
//! read. Pages are not checked here: their checksums may be in the table of another image, which holds
//! what changed since this one.

use super::buffer::Buffer;
use super::format::{
    table_length, BlobEntry, BlockEntry, ImageHeader, Index, HEADER_LEN, PIECE_PAGES,
};
use super::identity::{ImageId, Parent};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::sys::disk::{self, Caching};
use crate::sys::{fd, mem};
use crate::units::{Pages, PAGE_SIZE};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Bytes of the index or a blob that are read at once. The memory for them grows step by step, so a
/// false length in a file cannot cause a large allocation.
const STEP: u64 = 1 << 20;

/// See the file's description. Any thread.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) path: PathBuf,
    cached: File,
    direct: Option<File>,
    pub(super) id: ImageId,
    /// Zero pages read as zeros in the file.
    pub(super) zeros: bool,
    pub(super) parent: Option<Parent>,
    pub(super) index: Index,
}

impl Layer {
    /// Opens an image's file and checks its header and index.
    pub(super) fn open(path: &Path, caching: Caching) -> Result<Layer> {
        let named = |e: Error| e.context(format_args!("image `{}`", path.display()));
        let cached = disk::open_for_reading(path, Caching::Cached)
            .map_err(|e| Error::path(format_args!("image `{}`", path.display()), e))?;
        let length = disk::length(cached.as_fd())
            .map_err(|e| Error::os(format_args!("image `{}`", path.display()), e))?
            .ok_or_else(|| {
                let found = fd::what_is(cached.as_fd());
                let what = format!("expected a regular file, found {found}");
                Error::new(Kind::Image, what)
            })
            .map_err(named)?;
        let mut layer = Layer {
            path: path.to_owned(),
            cached,
            direct: None,
            id: ImageId {
                number: [0; 16],
                sum: 0,
                length,
            },
            zeros: false,
            parent: None,
            index: Index::default(),
        };
        let first = layer.read_up_to(0, length.min(HEADER_LEN as u64), "its header")?;
        let header = ImageHeader::decode(&first, length).map_err(named)?;
        if let Some(first) = first.first_chunk::<HEADER_LEN>() {
            layer.id = ImageId::of(first);
        }
        let bytes = header.file_length - header.index_offset;
        let bytes = layer.read_up_to(header.index_offset, bytes, "its index")?;
        layer.index = Index::decode(&bytes, &header).map_err(named)?;
        layer.zeros = header.zeros;
        layer.parent = header.parent;
        if caching == Caching::Direct {
            layer.direct = disk::open_for_reading(path, caching).ok();
        }
        Ok(layer)
    }

    /// The file, for reading through the page cache.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.cached.as_fd()
    }

    /// The file's device and number.
    pub(super) fn inode(&self) -> Result<(u64, u64)> {
        mem::inode_of(self.cached.as_fd()).map(|(device, number, _)| (device, number))
    }

    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        let path = self.path.display();
        Error::new(Kind::Image, format!("image `{path}`: {what}"))
    }

    fn failed(&self, what: &str, offset: u64, error: io::Error) -> Error {
        let path = self.path.display();
        let doing = format!("image `{path}`: reading {what} at offset {offset}");
        Error::os(doing, error)
    }

    /// Fills `bytes` from `offset` on.
    fn read(&self, bytes: &mut [u8], offset: u64, what: &str) -> Result<()> {
        let direct = self.direct.as_ref();
        let mut direct = direct.filter(|_| super::buffer::is_aligned(bytes, offset));
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            let got = match direct {
                None => disk::read_some(self.cached.as_fd(), rest, at),
                Some(fd) => match disk::read_some(fd.as_fd(), rest, at) {
                    // The device's blocks are larger than a page, or a read came back short.
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                        direct = None;
                        continue;
                    }
                    got => got,
                },
            };
            let got = got.map_err(|e| self.failed(what, at, e))?;
            if got == 0 {
                return Err(self.wrong(format_args!(
                    "{what}: the file ends at {at}; expected {} bytes more",
                    rest.len()
                )));
            }
            rest = &mut rest[got..];
            at += got as u64;
        }
        Ok(())
    }

    /// The file, past the page cache, and where in it a page of a block lies. `None`: it has to be read
    /// through the page cache.
    pub(super) fn direct(&self, block: &BlockEntry, page: u64) -> Option<(BorrowedFd<'_>, u64)> {
        let offset = block.offset + Pages(page).bytes().0;
        let file = self.direct.as_ref()?;
        offset
            .is_multiple_of(PAGE_SIZE)
            .then(|| (file.as_fd(), offset))
    }

    /// Reads `length` bytes into memory that grows only as bytes arrive.
    fn read_up_to(&self, offset: u64, length: u64, what: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let from = bytes.len();
            let step = (length - from as u64).min(STEP) as usize;
            fallible::reserve(&mut bytes, step, what)?;
            bytes.resize(from + step, 0);
            self.read(&mut bytes[from..], offset + from as u64, what)?;
        }
        Ok(bytes)
    }

    /// The bytes of a blob. The caller has checked the blob's length against its limit.
    pub(super) fn blob(&self, blob: &BlobEntry) -> Result<Vec<u8>> {
        let what = format!("state `{}`", blob.name);
        let bytes = self.read_up_to(blob.offset, blob.length, &what)?;
        let found = crc32fast::hash(&bytes);
        if found != blob.sum {
            return Err(self.wrong(format_args!(
                "{what}, {} bytes at offset {}, is damaged: expected checksum {:08x}, found {found:08x}",
                blob.length, blob.offset, blob.sum
            )));
        }
        Ok(bytes)
    }

    /// A piece of a block's table, checked.
    pub(super) fn table(&self, entry: &BlockEntry, piece: usize) -> Result<Buffer> {
        let first = piece as u64 * PIECE_PAGES;
        let pages = (entry.pages() - first).min(PIECE_PAGES);
        let mut sums = Buffer::new(table_length(pages) as usize)?;
        let offset = entry.table() + first * 4;
        let what = format!("block `{}`: checksums", entry.name);
        self.read(sums.bytes_mut(), offset, &what)?;
        let (found, expected) = (crc32fast::hash(sums.bytes()), entry.pieces[piece]);
        if found != expected {
            return Err(self.wrong(format_args!(
                "{what} at offset {offset} are damaged: expected checksum {expected:08x}, found {found:08x}"
            )));
        }
        Ok(sums)
    }

    /// Pages of a block as they are in the file, not checked.
    pub(super) fn pages(
        &self,
        entry: &BlockEntry,
        pages: &Range<u64>,
        bytes: &mut [u8],
    ) -> Result<()> {
        let offset = entry.offset + Pages(pages.start).bytes().0;
        let what = format!("block `{}`: pages from {} on", entry.name, pages.start);
        self.read(bytes, offset, &what)
    }

    /// A page has another checksum than its table says.
    pub(super) fn damaged(
        &self,
        entry: &BlockEntry,
        page: u64,
        expected: u32,
        found: u32,
    ) -> Error {
        self.wrong(format_args!(
            "block `{}`, page {page}, at offset {} of the file, is damaged: expected checksum \
             {expected:08x}, found {found:08x}",
            entry.name,
            entry.offset + Pages(page).bytes().0
        ))
    }
}
