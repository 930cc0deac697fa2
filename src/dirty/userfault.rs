//! Write protection by userfaultfd: finds writes to any memory of this process, without KVM.
//!
//! A block's pages are registered with a userfaultfd in asynchronous mode (Linux 6.7). The kernel
//! write-protects the pages. At the first write to a page the kernel lifts the page's protection by
//! itself; no thread has to serve the fault. So a page without protection is a page that was
//! written. A harvest is a walk over the page tables (`PAGEMAP_SCAN` with `PM_SCAN_WP_MATCHING`)
//! that reports those pages and protects them again in the same step. They are protected before
//! anybody reads them, so no clear follows later.
//!
//! The log finds writes *through the block's own mapping*: by threads of this process, by the
//! kernel for it (`read`, vhost's worker), by a KVM guest, by `process_vm_writev` from another
//! process. It does not find a write to the same shared memory through another mapping, by
//! `pwrite`, or by another process. Nor does it find a hole punched into the memory, or writes of a
//! device or the kernel to pinned pages (DMA, `O_DIRECT` and `io_uring` buffers), which ask no page
//! table. The VMM must mark each such write, after it.
//!
//! A harvest walks the page tables of all memory that the guest has touched, so its cost grows with
//! that memory and not only with the dirty pages. `protected` decides which memory of a block is
//! protected, and finds the writes to the rest. `docs/dirty-tracking.md` has the figures.

use super::protected::Protected;
use super::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::memory::{Block, BlockId, Map};
use crate::sys::pagemap::{PageRegion, Pagemap};
use crate::sys::uffd::Userfault;
use crate::units::Pages;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The regions that one call of the kernel's can report: 48 KiB.
const REGIONS: usize = 2048;

/// The state of a started log. Both descriptors refer to the memory of the process that opened
/// them. They are opened at the start of the log, because a VMM may fork before it.
struct Watch {
    userfault: Userfault,
    pagemap: Pagemap,
    /// The process that started the log. In a child of that process both descriptors still refer to
    /// the parent's memory. A harvest in the child would take the parent's pages, and a stop would
    /// end the parent's log.
    process: u32,
    /// Blocks that are registered.
    blocks: BTreeMap<BlockId, Protected>,
}

/// Write protection by userfaultfd, in asynchronous mode (Linux 6.7): finds writes through a block's
/// own mapping, by threads of this process, by a KVM guest, and by the kernel for either. It does
/// not find writes through another mapping of the same memory, nor by devices (DMA).
///
/// It needs no KVM:
///
/// ```no_run
/// use brant::dirty::tracker::{Clearing, StartWith, Tracker};
/// use brant::dirty::userfault::UserfaultLog;
/// use brant::dirty::When;
/// use brant::memory::Memory;
/// use std::sync::Arc;
///
/// fn written_by(memory: Arc<Memory>, work: impl FnOnce()) -> brant::Result<u64> {
///     let tracker = Tracker::new(memory, Clearing::default())?;
///     tracker.add_log(Box::new(UserfaultLog::new()?))?;
///     let consumer = tracker.consumer();
///     consumer.start(StartWith::Nothing)?;
///     work();
///     Ok(consumer.sync(When::Stopped)?.found.0)
/// }
/// ```
pub struct UserfaultLog {
    watch: Option<Watch>,
    regions: Vec<PageRegion>,
}

impl std::fmt::Debug for UserfaultLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserfaultLog")
            .field("started", &self.watch.is_some())
            .finish_non_exhaustive()
    }
}

/// Read-only blocks are not watched, as by every log. Marks of them count.
fn is_watched(block: &Block) -> bool {
    !block.flags().rom
}

fn watched(map: &Map) -> impl Iterator<Item = &Arc<Block>> {
    map.blocks().iter().filter(|block| is_watched(block))
}

fn range_of(block: &Block) -> Range<u64> {
    let start = block.host() as u64;
    start..start + block.length().0
}

impl UserfaultLog {
    /// A log of all blocks that are not read-only. [`Kind::Unsupported`] says what this kernel or
    /// this process lacks.
    pub fn new() -> Result<Self> {
        // Only tests whether the descriptors can be opened; see [`Watch`].
        Userfault::write_protect_async()?;
        Pagemap::open()?;
        let mut regions = Vec::new();
        regions.try_reserve_exact(REGIONS).map_err(|_| {
            let bytes = REGIONS * std::mem::size_of::<PageRegion>();
            Error::no_memory("userfaultfd's list of written regions", bytes as u64)
        })?;
        regions.resize(REGIONS, PageRegion::default());
        Ok(UserfaultLog {
            watch: None,
            regions,
        })
    }
}

impl Watch {
    /// Registers a block and protects its pages.
    fn begin(&mut self, block: &Arc<Block>) -> Result<()> {
        let range = range_of(block);
        if let Some(before) = self.blocks.remove(&block.id()) {
            before.end();
        }
        let begun = self.userfault.register(range.clone()).and_then(|()| {
            let protected = Protected::new(block, &self.pagemap).inspect_err(|_| {
                // Best effort: the memory may be unmapped already.
                let _ = self.userfault.unregister(range);
            })?;
            self.blocks.insert(block.id(), protected);
            Ok(())
        });
        begun.map_err(|e| e.context(format_args!("watching block `{}`", block.name())))
    }

    /// Whether the memory watched is that of this process.
    fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// Ends the watch over a block. If unregistering fails, the VMM has unmapped the memory
    /// already.
    fn end(&mut self, block: BlockId) {
        if let Some(protected) = self.blocks.remove(&block) {
            protected.end();
            let _ = self.userfault.unregister(protected.range());
        }
    }

    fn end_all(&mut self) {
        if !self.is_ours() {
            return;
        }
        while let Some((id, _)) = self.blocks.first_key_value() {
            self.end(*id);
        }
    }

    /// Merges the written pages of a block into `pending`, and protects them again.
    fn collect(
        &mut self,
        block: &Block,
        regions: &mut [PageRegion],
        pending: &mut Bitmap,
    ) -> Result<u64> {
        match self.blocks.get_mut(&block.id()) {
            Some(protected) => protected.collect(&self.pagemap, regions, pending),
            // After an error the block could not be watched anew.
            None => Err(Error::new(Kind::State, "it is not watched any more")),
        }
    }
}

impl DirtyLog for UserfaultLog {
    fn kind(&self) -> LogKind {
        LogKind::Userfault
    }

    fn covered(&self, map: &Map, each: &mut dyn FnMut(Extent)) {
        for block in watched(map) {
            each(Extent::all_of(block));
        }
    }

    fn start(&mut self, map: &Map) -> Result<Initial> {
        if self.watch.is_some() {
            return Err(Error::new(
                Kind::State,
                "this userfaultfd log is started already",
            ));
        }
        let mut watch = Watch {
            userfault: Userfault::write_protect_async()?,
            pagemap: Pagemap::open()?,
            process: std::process::id(),
            blocks: BTreeMap::new(),
        };
        for block in watched(map) {
            if let Err(e) = watch.begin(block) {
                watch.end_all();
                return Err(e);
            }
        }
        self.watch = Some(watch);
        Ok(Initial::Clean)
    }

    fn stop(&mut self, _map: &Map) -> Result<()> {
        if let Some(mut watch) = self.watch.take() {
            watch.end_all();
        }
        Ok(())
    }

    fn harvest(&mut self, map: &Map, _when: When, sink: &mut dyn Sink) -> Result<Harvested> {
        let UserfaultLog { watch, regions } = self;
        let Some(watch) = watch else {
            return Ok(Harvested::Complete);
        };
        if !watch.is_ours() {
            return Err(Error::new(
                Kind::State,
                format!(
                    "tracking was started by process {}, and this is process {}, whose copy of the \
                     memory nobody watches: stop tracking here and start it anew",
                    watch.process,
                    std::process::id()
                ),
            ));
        }
        let mut first_error = None;
        for block in watched(map) {
            let done = sink.block(block.id(), &mut |pending| {
                watch.collect(block, regions, pending)
            });
            if let Err(e) = done {
                // Part of the block was protected again without a report of its pages. The error
                // makes every page dirty. If new memory was mapped there, it is watched from now
                // on, and the next harvest succeeds.
                let _ = watch.begin(block);
                let e = e.context(format_args!("block `{}`", block.name()));
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(Harvested::Complete), Err)
    }

    fn heap_bytes(&self) -> u64 {
        let watched = self.watch.iter().flat_map(|watch| watch.blocks.values());
        watched.map(Protected::heap_bytes).sum::<u64>()
            + (self.regions.capacity() * std::mem::size_of::<PageRegion>()) as u64
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        let UserfaultLog { watch, regions } = self;
        let Some(watch) = watch else {
            return Ok(());
        };
        if !watch.is_ours() {
            // Every harvest reports an error, which makes every page dirty.
            return Ok(());
        }
        let (gone, fresh) = (old.blocks_not_in(new)?, new.blocks_not_in(old)?);
        for block in fresh.iter().filter(|block| is_watched(block)) {
            if let Err(e) = watch.begin(block) {
                for block in &fresh {
                    watch.end(block.id());
                }
                return Err(e);
            }
        }
        for block in gone.iter().filter(|block| is_watched(block)) {
            let done = sink.block(block.id(), &mut |pending| {
                watch.collect(block, regions, pending)
            });
            if done.is_err() {
                sink.everything(
                    Origin::Block {
                        block: block.id(),
                        page: Pages(0),
                    },
                    block.pages(),
                );
            }
            watch.end(block.id());
        }
        Ok(())
    }
}

impl Drop for UserfaultLog {
    /// Unregisters explicitly: a child of fork() may hold the descriptor too, and then closing this
    /// one ends nothing.
    fn drop(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            watch.end_all();
        }
    }
}
