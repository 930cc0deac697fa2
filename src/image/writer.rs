//! The outlet that writes pages into an image and, after the last page, completes the image.

use super::draft::Draft;
use super::format::{
    BlobEntry, BlobKind, BlockEntry, ImageHeader, Index, ALIGN, BLOBS_MAX, BLOB_NAME_MAX,
    HEADER_LEN,
};
use super::identity::{ImageId, Parent};
use super::pool::{span, span_of, Announce, Area, Batch, BatchPart, Pool};
use super::table::Table;
use super::unfinished::Unfinished;
use crate::channel::Pacer;
use crate::dirty::consumer::Content;
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::contents::{Contents, Held};
use crate::memory::{Block, Map, Memory};
use crate::runtime::{Cancel, Recall};
use crate::sys::disk::Caching;
use crate::sys::mem;
use crate::units::{Pages, PAGE_SIZE};
use crate::vmm::{StateBlob, StateSink};
use crate::walk::{Outlet, Put, BATCH_PAGES};
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The most writer threads.
pub const WRITERS_MAX: u32 = 64;

/// The VMM's blobs, kept in memory until they are written.
#[derive(Debug)]
pub struct Blobs {
    list: Vec<(BlobEntry, Vec<u8>)>,
    bytes: u64,
    kind: BlobKind,
}

impl Default for Blobs {
    /// An empty list. Blobs that are added before [`Blobs::state_begins`] are early ones.
    fn default() -> Blobs {
        Blobs {
            list: Vec::new(),
            bytes: 0,
            kind: BlobKind::Early,
        }
    }
}

impl Blobs {
    /// Blobs that are added from now on are state: a restore loads them after memory.
    pub fn state_begins(&mut self) {
        self.kind = BlobKind::State;
    }

    /// Blobs that are added from now on are pieces of devices' state.
    pub fn devices_begin(&mut self) {
        self.kind = BlobKind::Device;
    }

    /// The length of all blobs together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl StateSink for Blobs {
    fn put(&mut self, blob: &StateBlob<'_>) -> Result<()> {
        let name = blob.name;
        let fits = (1..=BLOB_NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        if !fits || self.list.len() >= BLOBS_MAX {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "state {name:?}: a name has 1 to {BLOB_NAME_MAX} bytes and no control \
                     characters, and there are at most {BLOBS_MAX} blobs"
                ),
            ));
        }
        let mut data = Vec::new();
        data.try_reserve_exact(blob.data.len()).map_err(|_| {
            Error::no_memory(format_args!("state `{name}`"), blob.data.len() as u64)
        })?;
        data.extend_from_slice(blob.data);
        let entry = BlobEntry {
            kind: self.kind,
            name: name.to_owned(),
            instance: blob.instance,
            version: blob.version,
            offset: 0,
            length: data.len() as u64,
            sum: crc32fast::hash(&data),
        };
        self.bytes += entry.length;
        fallible::push(&mut self.list, (entry, data), "state")
    }
}

/// What an image's changes refer to.
#[derive(Debug)]
pub struct Base {
    /// The image before.
    pub parent: Parent,
    /// The blocks that were in it, by number. All pages of another block are in the new image.
    pub blocks: Arc<HashSet<u32>>,
}

/// Where an image goes.
#[derive(Debug)]
pub struct Target<'a> {
    /// The name that it will get.
    pub path: &'a Path,
    /// How it is written.
    pub caching: Caching,
    /// The image whose changes it holds.
    pub base: Option<Base>,
}

/// See the file's description.
pub struct Writer {
    pool: Pool,
    contents: Contents,
    areas: HashMap<u32, Arc<Area>>,
    base: Option<Base>,
    /// The offset behind the last area of the file.
    end: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins an image of all blocks that `memory` has and may get. With a base, pages that are not
    /// written are as in that image.
    ///
    /// # Errors
    /// Those of the path and the file system, and when buffers or threads cannot be made.
    pub fn begin(
        target: Target<'_>,
        memory: &Memory,
        writers: u32,
        cancel: &Cancel,
        pacer: &Arc<Pacer>,
        announce: &Announce,
    ) -> Result<Writer> {
        let file = Unfinished::begin(target.path, target.caching)?;
        let mut writer = Writer {
            pool: Pool::start(file, writers, BATCH_PAGES, cancel, pacer, announce)?,
            contents: Contents::new(),
            areas: HashMap::new(),
            base: target.base,
            end: HEADER_LEN as u64,
        };
        for block in memory.map().blocks() {
            writer.area(block)?;
        }
        Ok(writer)
    }

    /// The area of a block in the file. A new block gets an area behind all others.
    fn area(&mut self, block: &Block) -> Result<Arc<Area>> {
        if let Some(area) = self.areas.get(&block.id().0) {
            return Ok(Arc::clone(area));
        }
        let pages = block.pages().0;
        let offset = self.end.next_multiple_of(ALIGN);
        let end = offset + block.length().0 + super::format::table_length(pages);
        // A limit on the length of files fails here, before anything is written.
        self.pool.file().set_length(end)?;
        let changes = (self.base.as_ref()).is_some_and(|base| base.blocks.contains(&block.id().0));
        let area = Arc::new(Area {
            name: block.name().to_owned(),
            length: block.length().0,
            page_size: block.page_size().0,
            rom: block.flags().rom,
            offset,
            table: Table::new(pages, changes)?,
        });
        let copy = Arc::clone(&area);
        fallible::insert(&mut self.areas, block.id().0, copy, "an image's blocks")?;
        self.end = end;
        Ok(area)
    }

    /// A draft for pages of `block`, at most [`BATCH_PAGES`] and all of one stretch. Waits until a
    /// buffer is free and no earlier page of the stretch is on its way.
    ///
    /// # Errors
    /// Those of writing earlier pages, and when the cancel ends the wait.
    pub fn draft(&mut self, block: &Block, pages: Range<Pages>) -> Result<Draft> {
        let span = span_of(block.id().0, &pages);
        let area = self.area(block)?;
        match self.pool.room(&span, None)? {
            Some(buffer) => Ok(Draft::new(area, pages, span, buffer)),
            None => Err(Error::new(Kind::Internal, "a recall of nobody's")),
        }
    }

    /// Passes a draft on to the threads that write.
    pub fn submit(&self, draft: Draft) {
        self.pool.submit(draft.into_batch());
    }

    /// Fixes the image's blocks: those of `map`, the map when the guest was paused.
    ///
    /// # Errors
    /// When there is no room for a block of which no page was written yet.
    pub fn seal(&mut self, map: &Map) -> Result<()> {
        for block in map.blocks() {
            self.area(block)?;
        }
        let ids: HashSet<u32> = map.blocks().iter().map(|block| block.id().0).collect();
        self.areas.retain(|id, area| {
            let stays = ids.contains(id);
            if !stays {
                // Nobody reads it. If the file system cannot, the file takes more room.
                let _ = self.pool.file().punch(area.offset, area.length);
            }
            stays
        });
        Ok(())
    }

    /// Writes the VMM's blobs, the tables, the index and the header, and gives the file its name.
    /// Returns which image it is.
    ///
    /// # Errors
    /// Those of writing. The file is removed then.
    pub fn finish_image(mut self, blobs: Blobs, cancel: &Cancel) -> Result<ImageId> {
        self.barrier()?;
        let mut areas: Vec<_> = self.areas.drain().map(|(_, area)| area).collect();
        areas.sort_by_key(|area| area.offset);
        let file = self.pool.into_file()?;
        let mut index = Index::default();
        for area in areas {
            cancel.check("writing an image")?;
            index.blocks.push(table(&file, &area)?);
        }
        let mut at = self.end;
        for (mut entry, data) in blobs.list {
            cancel.check("writing an image")?;
            entry.offset = at;
            file.write(&data, at)
                .map_err(|e| file.failed(&format!("writing state `{}`", entry.name), e))?;
            at += entry.length;
            index.blobs.push(entry);
        }
        let parent = self.base.map(|base| base.parent);
        end(file, &index, at, parent, cancel)
    }
}

/// Writes the index at `at`, and the header, and gives the file its name.
pub(super) fn end(
    file: Unfinished,
    index: &Index,
    at: u64,
    parent: Option<Parent>,
    cancel: &Cancel,
) -> Result<ImageId> {
    let bytes = index.encode()?;
    let mut number = [0; 16];
    mem::random(&mut number)?;
    let header = ImageHeader {
        file_length: at + bytes.len() as u64,
        index_offset: at,
        index_sum: crc32fast::hash(&bytes),
        number,
        zeros: true,
        parent,
    };
    let index = |e: io::Error| file.failed("writing its index", e);
    file.write(&bytes, at).map_err(index)?;
    let header = header.encode();
    file.write(&header, 0).map_err(index)?;
    cancel.check("writing an image")?;
    file.finish()?;
    Ok(ImageId::of(&header))
}

/// Writes a block's table, and makes the block's entry of the index.
pub(super) fn table(file: &Unfinished, area: &Area) -> Result<BlockEntry> {
    let mut entry = BlockEntry {
        name: area.name.clone(),
        length: area.length,
        page_size: area.page_size,
        rom: area.rom,
        changes: area.table.is_of_changes(),
        offset: area.offset,
        pieces: Vec::new(),
    };
    let mut at = entry.table();
    area.table.pieces(|bytes, any| {
        if any {
            file.write(bytes, at).map_err(|e| {
                file.failed(&format!("block `{}`: writing its checksums", area.name), e)
            })?;
        }
        at += bytes.len() as u64;
        fallible::push(&mut entry.pieces, crc32fast::hash(bytes), "checksums")
    })?;
    Ok(entry)
}

impl Outlet for Writer {
    fn put(&mut self, mut taken: Taken, recall: &Recall) -> Result<Put> {
        let begun = Instant::now();
        let span = span(&taken);
        let Some(mut buffer) = self.pool.room(&span, Some(recall))? else {
            // The pages are pending again, so a removal need not wait for this batch.
            return Ok(Put::default());
        };
        let mut put = Put::default();
        let mut pieces = Vec::new();
        let mut used = 0;
        // The runs' protection has been restored, so what is found out from here on stays true or
        // is logged.
        self.contents.refresh();
        for run in taken.runs() {
            // A guest has run here.
            run.block.zeroed_no_more();
            let area = self.area(run.block)?;
            let mut hold = |range: std::ops::Range<Pages>, at| {
                let piece = BatchPart {
                    area: Arc::clone(&area),
                    first: range.start.0,
                    count: (range.end - range.start).0,
                    at,
                };
                fallible::push(&mut pieces, piece, "a batch of pages")
            };
            let count = run.pages.count().0;
            if run.content != Content::Used {
                match run.content {
                    Content::Ballooned => put.ballooned_pages += count,
                    _ => put.free_pages += count,
                }
                put.zero_pages += count;
                hold(run.pages.range(), None)?;
                continue;
            }
            let contents = &mut self.contents;
            let (block, room) = (run.block, buffer.bytes_mut());
            let poisoned = block.poisoned();
            poisoned.split(run.pages.range(), |range, lost| {
                if lost {
                    let count = (range.end - range.start).0;
                    put.poisoned_pages += count;
                    put.zero_pages += count;
                    return hold(range, None);
                }
                let mut failed = Ok(());
                contents.split(block, range, |range, held| {
                    if failed.is_err() {
                        return;
                    }
                    let count = range.end - range.start;
                    failed = match held {
                        Held::Data => copy(block, &range, room, used).and_then(|()| {
                            put.data_pages += count.0;
                            used += count.index();
                            hold(range, Some(used - count.index()))
                        }),
                        held => {
                            put.hole_pages += u64::from(held == Held::Hole) * count.0;
                            put.zero_pages += count.0;
                            hold(range, None)
                        }
                    };
                })?;
                failed
            })?;
        }
        put.bytes = put.data_pages * PAGE_SIZE;
        put.time = begun.elapsed();
        taken.unpin();
        self.pool.submit(Batch {
            taken: Some(taken),
            span,
            buffer,
            pieces,
        });
        Ok(put)
    }

    fn progress(&mut self) -> Result<()> {
        self.pool.check()
    }

    fn barrier(&mut self) -> Result<()> {
        self.pool.barrier()
    }

    fn finish(&mut self) -> Result<()> {
        self.pool.check()
    }
}

/// Copies pages of a block to page `at` of `room`.
fn copy(block: &Block, range: &std::ops::Range<Pages>, room: &mut [u8], at: usize) -> Result<()> {
    let slice = block.slice(range.start, range.end - range.start)?;
    let from = at * PAGE_SIZE as usize;
    let Some(room) = room.get_mut(from..from + slice.len()) else {
        let what = format!("a batch has more than {BATCH_PAGES} pages");
        return Err(Error::new(Kind::Internal, what));
    };
    slice.copy_to(room);
    Ok(())
}
