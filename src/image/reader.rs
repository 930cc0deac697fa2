//! Reads an image: opens it and the images before it, checks them, and brings its pages into guest
//! memory on several threads.
//!
//! An image that holds what changed is the first *layer* of a chain, its parent the second, and so on
//! to an image that holds all of memory. A page comes from the first layer that has it.
//!
//! A page goes into guest memory only after its checksum was found right. Headers and indexes are
//! checked when the image is opened. Tables of checksums and pages are checked when they are read.

use super::buffer::Buffer;
use super::deal::{Deal, Hand, Sums, PAGES_AT_ONCE};
use super::format::{
    page_sum, sum_fits, BlobEntry, BlockEntry, Index, AS_BEFORE, CHAIN_MAX, PIECE_PAGES, ZERO,
};
use super::identity::ImageId;
use super::layer::Layer;
use super::pool::Announce;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::access;
use crate::memory::contents::{Contents, Held};
use crate::memory::{Block, BlockPin, Memory};
use crate::runtime::{catch, spawn, Cancel, Role};
use crate::sys::disk::Caching;
use crate::units::{Pages, PAGE_SIZE};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// A page whose layer is not known yet. No chain is as long.
const NOWHERE: u8 = u8::MAX;

/// A block of the image, and the layer that has some of its pages.
pub(super) type Place = (usize, usize);

/// An open image whose header and index were checked, and those of the images before it.
#[derive(Debug)]
pub struct Image {
    /// This image, its parent, and so on.
    layers: Vec<Layer>,
    /// For each block of this image its place in the index of each layer that has pages of it.
    places: Vec<Vec<usize>>,
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
    /// Opens an image, and the images before it, and checks their headers and indexes.
    ///
    /// # Errors
    /// [`Kind::Image`] and [`Kind::Version`] for a file that is not an image of a version that this
    /// software reads, and for a chain that does not fit together; [`Kind::NotFound`]. The message
    /// says what was expected and found.
    pub fn open(path: &Path, caching: Caching) -> Result<Image> {
        let mut layers = Vec::new();
        fallible::push(&mut layers, Layer::open(path, caching)?, "images")?;
        while let Some(parent) = next_layer(&layers, caching)? {
            fallible::push(&mut layers, parent, "images")?;
        }
        Image::of(layers)
    }

    /// The image of these layers: an image, its parent, and so on to one that holds all of memory.
    ///
    /// # Errors
    /// [`Kind::Image`] when a block does not go on in the image before.
    pub(super) fn of(layers: Vec<Layer>) -> Result<Image> {
        let places = (0..layers[0].index.blocks.len()).map(|entry| places(&layers, entry));
        let places = fallible::collect(places, "blocks")?;
        let places = places.into_iter().collect::<Result<_>>()?;
        Ok(Image { layers, places })
    }

    /// How long the file is, by its header, which [`Image::open`] has held against the file.
    pub fn file_bytes(&self) -> u64 {
        self.id().length
    }

    /// Which image it is.
    pub fn id(&self) -> ImageId {
        self.layers[0].id
    }

    /// How many images it consists of: more than one for an image of changes.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The file of an image that may be mapped as memory: of an image that holds all of memory, with
    /// zeros for zero pages.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another image.
    pub(super) fn mappable(&self) -> Result<&Layer> {
        let layer = &self.layers[0];
        let refused = |what: &str| {
            let path = layer.path.display();
            let what = format!("image `{path}` cannot be mapped as memory: {what}");
            Err(Error::new(Kind::Unsupported, what))
        };
        if self.layers.len() > 1 {
            return refused(
                "it holds what changed since another image; merge them into a full one",
            );
        }
        if !layer.zeros {
            return refused(
                "it was made by older software, whose zero pages need not be zeros in the file",
            );
        }
        Ok(layer)
    }

    /// Whether another image can hold what changed since this one.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when there are as many images as a chain has at most.
    pub fn check_for_one_more(&self) -> Result<()> {
        if self.layers() < CHAIN_MAX {
            return Ok(());
        }
        let what = format!("a chain has at most {CHAIN_MAX} images, and this one has as many");
        Err(Error::new(Kind::Invalid, what))
    }

    /// Whether the file with this device and number is this image's or that of an image before it,
    /// and which: 0 is this image.
    pub fn layer_in_file(&self, file: (u64, u64)) -> Result<Option<usize>> {
        for (number, layer) in self.layers.iter().enumerate() {
            if layer.inode()? == file {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// The index of the image.
    pub fn index(&self) -> &Index {
        &self.layers[0].index
    }

    /// The bytes of a blob. The caller has checked the blob's length against its limit.
    ///
    /// # Errors
    /// [`Kind::Image`] when the blob's checksum is wrong.
    pub fn blob(&self, blob: &BlobEntry) -> Result<Vec<u8>> {
        self.layers[0].blob(blob)
    }

    fn place(&self, (entry, layer): Place) -> (&Layer, &BlockEntry) {
        let layer_of = &self.layers[layer];
        (layer_of, &layer_of.index.blocks[self.places[entry][layer]])
    }

    /// The checksums of the pages of a piece of a block, checked themselves.
    pub(super) fn sums(&self, entry: usize, piece: usize) -> Result<Sums> {
        let first = piece as u64 * PIECE_PAGES;
        let (layer, block) = self.place((entry, 0));
        let mut sums = layer.table(block, piece)?;
        if !block.changes {
            return Ok(Sums::new(sums, Vec::new(), first));
        }
        let count = (block.pages() - first).min(PIECE_PAGES) as usize;
        let mut layers = Vec::new();
        fallible::reserve(&mut layers, count, "pages of images")?;
        layers.resize(count, NOWHERE);
        let mut left = resolve(&mut sums, None, &mut layers, 0, true);
        for layer in 1..self.places[entry].len() {
            if left == 0 {
                break;
            }
            let (of, block) = self.place((entry, layer));
            let theirs = of.table(block, piece)?;
            left = resolve(&mut sums, Some(&theirs), &mut layers, layer, block.changes);
        }
        Ok(Sums::new(sums, layers, first))
    }

    /// The file of a layer, past the page cache, and where in it a page of a block lies, if the page can
    /// be read that way.
    pub(super) fn in_file(&self, place: Place, page: u64) -> Option<(BorrowedFd<'_>, u64)> {
        let (layer, block) = self.place(place);
        layer.direct(block, page)
    }

    /// Pages of a block as they are in a layer's file, not checked.
    pub(super) fn pages(&self, place: Place, pages: &Range<u64>, bytes: &mut [u8]) -> Result<()> {
        let (layer, block) = self.place(place);
        layer.pages(block, pages, bytes)
    }

    /// Fills `bytes` with the pages of a hand, which a layer has, and checks them.
    pub(super) fn checked(&self, hand: &Hand, layer: usize, bytes: &mut [u8]) -> Result<()> {
        let place = (hand.entry, layer);
        self.pages(place, &hand.pages, bytes)?;
        let pages = bytes.chunks_exact(PAGE_SIZE as usize);
        for (page, contents) in hand.pages.clone().zip(pages) {
            let expected = hand.sum(page);
            if !sum_fits(expected, contents) {
                return Err(self.damaged(place, page, expected, page_sum(contents)));
            }
        }
        Ok(())
    }

    /// A page has another checksum than its table says.
    pub(super) fn damaged(&self, place: Place, page: u64, expected: u32, found: u32) -> Error {
        let (layer, block) = self.place(place);
        layer.damaged(block, page, expected, found)
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
            match hand.source {
                None => {
                    contents.refresh();
                    self.zeros(&hand, &mut contents)?;
                }
                Some(layer) => self.data(&hand, layer, &mut buffer)?,
            }
        }
    }

    /// The next pages for this thread. The other threads wait while it reads checksums, which takes
    /// no longer than a read of pages.
    fn next(&self) -> Result<Option<Hand>> {
        let mut deal = self.deal.lock().unwrap_or_else(|e| e.into_inner());
        deal.next(&self.image.index().blocks, |entry, piece| {
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

    fn data(&self, hand: &Hand, layer: usize, buffer: &mut Buffer) -> Result<()> {
        let range = hand.pages.clone();
        let length = Pages(range.end - range.start).bytes().0 as usize;
        let bytes = &mut buffer.bytes_mut()[..length];
        self.image.checked(hand, layer, bytes)?;
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

/// Opens the image before the last of `layers`; `None` when that one holds all of memory.
///
/// # Errors
/// As for [`Image::open`].
pub(super) fn next_layer(layers: &[Layer], caching: Caching) -> Result<Option<Layer>> {
    let Some(last) = layers.last().filter(|last| last.parent.is_some()) else {
        return Ok(None);
    };
    if layers.len() >= CHAIN_MAX {
        return Err(last.wrong(format_args!(
            "expected at most {CHAIN_MAX} images that belong together, and it is not the last of them"
        )));
    }
    before(last, caching).map(Some)
}

/// Opens the image before `last`, which holds what changed since.
fn before(last: &Layer, caching: Caching) -> Result<Layer> {
    let Some(parent) = &last.parent else {
        return Err(last.wrong("it has no parent"));
    };
    let path = last.path.with_file_name(&parent.name);
    let expected = |e: Error| {
        e.context(format_args!(
            "image `{}` holds what changed since image {}, expected as `{}`",
            last.path.display(),
            parent.id,
            path.display()
        ))
    };
    let layer = Layer::open(&path, caching).map_err(expected)?;
    if layer.id != parent.id {
        let found = format!("found image {} there", layer.id);
        return Err(expected(Error::new(Kind::Image, found)));
    }
    Ok(layer)
}

/// The places of a block of the first layer in the index of each layer that has pages of it.
fn places(layers: &[Layer], entry: usize) -> Result<Vec<usize>> {
    let mut places = Vec::new();
    fallible::push(&mut places, entry, "blocks")?;
    let mut at = entry;
    for pair in layers.windows(2) {
        let block = &pair[0].index.blocks[at];
        if !block.changes {
            break;
        }
        let is_same = |other: &BlockEntry| {
            (&other.name, other.length, other.page_size)
                == (&block.name, block.length, block.page_size)
        };
        let Some(place) = pair[1].index.blocks.iter().position(is_same) else {
            return Err(pair[0].wrong(format_args!(
                "it holds what changed in block `{}` of {} bytes in pages of {}, and the image before \
                 it, `{}`, has no such block",
                block.name,
                block.length,
                block.page_size,
                pair[1].path.display()
            )));
        };
        at = place;
        fallible::push(&mut places, at, "blocks")?;
    }
    Ok(places)
}

/// Fills in the checksums of those pages that no layer so far has, from `theirs`, the table of layer
/// number `layer`; `None` says that `sums` is that table. Returns how many pages are left.
fn resolve(
    sums: &mut Buffer,
    theirs: Option<&Buffer>,
    layers: &mut [u8],
    layer: usize,
    changes: bool,
) -> usize {
    let mut left = 0;
    let word =
        |bytes: &[u8], at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at * 4 + i]));
    for (page, of) in layers.iter_mut().enumerate() {
        if *of != NOWHERE {
            continue;
        }
        let found = word(theirs.unwrap_or(sums).bytes(), page);
        let sum = match found {
            AS_BEFORE if changes => {
                left += 1;
                continue;
            }
            ZERO if changes => 0,
            sum => sum,
        };
        *of = layer as u8;
        sums.bytes_mut()[page * 4..page * 4 + 4].copy_from_slice(&sum.to_le_bytes());
    }
    left
}
