//! Reads an image: opens it, checks it, and brings its pages into guest memory on several threads.
//!
//! A page goes into guest memory only after its checksum was found right. Header and index are
//! checked when the image is opened. Tables of checksums and pages are checked when they are read.

use super::buffer::Buffer;
use super::deal::{Deal, Hand, PAGES_AT_ONCE};
use super::format::{BlobEntry, ImageHeader, Index, HEADER_LEN, PIECE_PAGES};
use super::pool::Announce;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::image::format::page_sum;
use crate::memory::access;
use crate::memory::contents::{Contents, Held};
use crate::memory::{Block, BlockPin, Memory};
use crate::runtime::{catch, spawn, Cancel, Role};
use crate::sys::disk::{self, Caching};
use crate::sys::fd;
use crate::units::{Pages, PAGE_SIZE};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of the index or a blob that are read at once. The memory for them grows step by step, so a
/// false length in a file cannot cause a large allocation.
const STEP: u64 = 1 << 20;

/// An open image whose header and index were checked.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    cached: File,
    direct: Option<File>,
    file_bytes: u64,
    index: Index,
}

/// The progress of a fill. May be read on any thread.
#[derive(Debug, Default)]
pub struct Filled {
    data: AtomicU64,
    zero: AtomicU64,
}

impl Filled {
    /// Pages filled with contents.
    pub fn data_pages(&self) -> u64 {
        self.data.load(Relaxed)
    }

    /// Zero pages.
    pub fn zero_pages(&self) -> u64 {
        self.zero.load(Relaxed)
    }

    /// So many pages were filled with contents.
    pub fn add_data(&self, pages: u64) {
        self.data.fetch_add(pages, Relaxed);
    }

    /// So many pages are zero.
    pub fn add_zero(&self, pages: u64) {
        self.zero.fetch_add(pages, Relaxed);
    }
}

impl Image {
    /// Opens an image and checks its header and index.
    ///
    /// # Errors
    /// [`Kind::Image`] and [`Kind::Version`] for a file that is not an image of a version that this
    /// software reads. The message says what was expected and found.
    pub fn open(path: &Path, caching: Caching) -> Result<Image> {
        let named = |e: Error| e.context(format_args!("image `{}`", path.display()));
        let cached = disk::open_for_reading(path, Caching::Cached)
            .map_err(|e| Error::path(format_args!("image `{}`", path.display()), e))?;
        let mut image = Image {
            path: path.to_owned(),
            cached,
            direct: None,
            file_bytes: 0,
            index: Index::default(),
        };
        let length = disk::length(image.cached.as_fd())
            .map_err(|e| Error::os(format_args!("image `{}`", path.display()), e))?
            .ok_or_else(|| {
                let found = fd::what_is(image.cached.as_fd());
                let what = format!("expected a regular file, found {found}");
                Error::new(Kind::Image, what)
            })
            .map_err(named)?;
        let first = image.read_up_to(0, length.min(HEADER_LEN as u64), "its header")?;
        let header = ImageHeader::decode(&first, length).map_err(named)?;
        image.file_bytes = header.file_length;
        let bytes = header.file_length - header.index_offset;
        let bytes = image.read_up_to(header.index_offset, bytes, "its index")?;
        image.index = Index::decode(&bytes, &header).map_err(named)?;
        if caching == Caching::Direct {
            image.direct = disk::open_for_reading(path, caching).ok();
        }
        Ok(image)
    }

    /// How long the file is, by its header, which [`Image::open`] has held against the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The index of the image.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
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
    ///
    /// # Errors
    /// [`Kind::Image`] when the blob's checksum is wrong.
    pub fn blob(&self, blob: &BlobEntry) -> Result<Vec<u8>> {
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

    /// The checksums of the pages of a piece of a block, checked themselves.
    pub(super) fn sums(&self, entry: usize, piece: usize) -> Result<Buffer> {
        let entry = &self.index.blocks[entry];
        let first = piece as u64 * PIECE_PAGES;
        let pages = (entry.pages() - first).min(PIECE_PAGES);
        let mut sums = Buffer::new(super::format::table_length(pages) as usize)?;
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

    /// The pages of a block as they are in the file, not checked.
    pub(super) fn pages(&self, entry: usize, pages: &Range<u64>, bytes: &mut [u8]) -> Result<()> {
        let entry = &self.index.blocks[entry];
        let offset = entry.offset + Pages(pages.start).bytes().0;
        let what = format!("block `{}`: pages from {} on", entry.name, pages.start);
        self.read(bytes, offset, &what)
    }

    /// A page has another checksum than the image says.
    pub(super) fn damaged(&self, entry: usize, page: u64, expected: u32, found: u32) -> Error {
        let entry = &self.index.blocks[entry];
        self.wrong(format_args!(
            "block `{}`, page {page}, at offset {} of the file, is damaged: expected checksum \
             {expected:08x}, found {found:08x}",
            entry.name,
            entry.offset + Pages(page).bytes().0
        ))
    }

    /// Brings all pages into `targets`, the guest's blocks in the order of the index, on `readers`
    /// threads. When this fails, some pages have perhaps been written.
    ///
    /// # Errors
    /// [`Kind::Image`] for the first page that is damaged, [`Kind::Memory`] for memory that cannot
    /// be written, [`Kind::Layout`] when a block was removed, and errors of reading the file.
    pub fn fill(
        self: &Arc<Self>,
        memory: &Arc<Memory>,
        targets: Vec<Arc<Block>>,
        readers: u32,
        cancel: &Cancel,
        announce: &Announce,
        filled: &Arc<Filled>,
    ) -> Result<()> {
        let zeroed = targets.iter().map(|block| block.is_zeroed());
        let zeroed = fallible::collect(zeroed, "blocks")?;
        let fill = Arc::new(Fill {
            image: Arc::clone(self),
            memory: Arc::clone(memory),
            targets,
            zeroed,
            deal: Mutex::default(),
            cancel: cancel.clone(),
            error: Mutex::new(None),
            filled: Arc::clone(filled),
        });
        let mut threads = Vec::new();
        for _ in 0..readers {
            let (ours, announce) = (Arc::clone(&fill), Arc::clone(announce));
            let work = move || {
                let done = catch(|| announce(Role::Image).and_then(|()| ours.run()));
                if let Err(error) = done.and_then(|done| done) {
                    ours.error().get_or_insert(error);
                }
            };
            match spawn(Role::Image, |_| (), work) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    fill.error().get_or_insert(error);
                    break;
                }
            }
        }
        for thread in threads {
            thread.join()?;
        }
        let error = fill.error().take();
        error.map_or(Ok(()), Err)
    }
}

/// State that the reader threads share.
struct Fill {
    image: Arc<Image>,
    memory: Arc<Memory>,
    targets: Vec<Arc<Block>>,
    /// Which blocks were known to read as zero before the first page was brought in.
    zeroed: Vec<bool>,
    deal: Mutex<Deal>,
    cancel: Cancel,
    /// The first error of any thread.
    error: Mutex<Option<Error>>,
    filled: Arc<Filled>,
}

impl Fill {
    fn error(&self) -> MutexGuard<'_, Option<Error>> {
        self.error.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether to stop: cancelled, or another thread has failed.
    fn check(&self) -> Result<()> {
        self.cancel.check("reading an image")?;
        self.error().clone().map_or(Ok(()), Err)
    }

    fn run(&self) -> Result<()> {
        let mut buffer = Buffer::new(Pages(PAGES_AT_ONCE).bytes().0 as usize)?;
        let mut contents = Contents::new();
        loop {
            self.check()?;
            let Some(hand) = self.next()? else {
                return Ok(());
            };
            match hand.zero {
                true => {
                    contents.refresh();
                    self.zeros(&hand, &mut contents)?;
                }
                false => self.data(&hand, &mut buffer)?,
            }
        }
    }

    /// The next pages for this thread. The other threads wait while it reads checksums, which takes
    /// no longer than a read of pages.
    fn next(&self) -> Result<Option<Hand>> {
        let mut deal = self.deal.lock().unwrap_or_else(|e| e.into_inner());
        deal.next(&self.image.index.blocks, |entry, piece| {
            self.image.sums(entry, piece)
        })
    }

    /// Pins the block, if it is still in the map.
    fn pin(&self, block: &Arc<Block>) -> Result<BlockPin> {
        self.memory.pin(block).ok_or_else(|| {
            let name = block.name();
            let what = format!("block `{name}` was removed while an image was restored into it");
            Error::new(Kind::Layout, what)
        })
    }

    /// Notes that pages hold the image's contents now.
    fn arrived(&self, block: &Block, range: &Range<u64>) {
        block.ballooned().arrived(range.clone());
        block.poisoned().arrived(range.clone());
    }

    fn data(&self, hand: &Hand, buffer: &mut Buffer) -> Result<()> {
        let range = hand.pages.clone();
        let length = Pages(range.end - range.start).bytes().0 as usize;
        let bytes = &mut buffer.bytes_mut()[..length];
        self.image.pages(hand.entry, &range, bytes)?;
        for (page, contents) in range.clone().zip(bytes.chunks_exact(PAGE_SIZE as usize)) {
            let (found, expected) = (page_sum(contents), hand.sum(page));
            if found != expected {
                return Err(self.image.damaged(hand.entry, page, expected, found));
            }
        }
        let pinned = self.pin(&self.targets[hand.entry])?;
        let pages = Pages(range.start)..Pages(range.end);
        self.arrived(&pinned, &range);
        pinned.zeroed_no_more();
        access::writable(&pinned, pages.clone())?;
        pinned
            .slice(pages.start, pages.end - pages.start)?
            .copy_from(bytes);
        self.memory.tell_written(pinned.id(), range.clone());
        self.filled.data.fetch_add(range.end - range.start, Relaxed);
        Ok(())
    }

    fn zeros(&self, hand: &Hand, contents: &mut Contents) -> Result<()> {
        let range = hand.pages.clone();
        let pinned = self.pin(&self.targets[hand.entry])?;
        self.arrived(&pinned, &range);
        if !self.zeroed[hand.entry] {
            let mut to_write = Vec::new();
            let pages = Pages(range.start)..Pages(range.end);
            contents.split(&pinned, pages, |run, held| {
                if held == Held::Data {
                    to_write.push(run);
                }
            })?;
            for run in to_write {
                pinned.write_zeros(run)?;
            }
        }
        self.memory.tell_written(pinned.id(), range.clone());
        self.filled.zero.fetch_add(range.end - range.start, Relaxed);
        Ok(())
    }
}
