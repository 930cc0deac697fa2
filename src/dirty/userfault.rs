//! Write protection by userfaultfd: any memory of this process is a guest, with no KVM.
//!
//! A block's pages are registered with a userfaultfd in asynchronous mode (Linux 6.7). The
//! kernel write-protects them; the first write to each faults, and the kernel lifts that
//! page's protection itself and goes on: nobody has to serve the fault. A page without
//! protection is a page that was written. A harvest is a walk over the page tables
//! (`PAGEMAP_SCAN` with `PM_SCAN_WP_MATCHING`) that reports those pages and protects them again
//! in the same step, before it returns and so before anybody reads them: there is nothing
//! to clear later.
//!
//! What it sees is what is written *through the block's own mapping*: by threads of this
//! process, by the kernel for it (`read`, vhost's worker), by a KVM guest, by
//! `process_vm_writev` from elsewhere. It does not see a write to the same shared memory
//! through another mapping, by `pwrite`, or by another process; nor a hole punched into it;
//! nor what a device or the kernel writes to pages that it has pinned (DMA, `O_DIRECT` and
//! `io_uring` buffers), for no page table is asked then. Whoever does such a thing marks it, after
//! the write.
//!
//! What it costs grows with what the guest has touched and not with what is dirty alone: the page
//! tables of that are walked in each harvest. Which memory of a block is protected, and how what was
//! written to the rest is found, is in `protected`. `docs/dirty-tracking.md` has the figures.

use super::protected::Protected;
use super::{DirtyLog, Extent, Harvested, Initial, LogKind, Origin, Sink, When};
use crate::bits::summary::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::memory::{Block, BlockId, Map};
use crate::sys::pagemap::{Pagemap, Region};
use crate::sys::uffd::Userfault;
use crate::units::Pages;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The regions that one call of the kernel's can report: 48 KiB.
const REGIONS: usize = 2048;

/// What exists while the log is started. Both descriptors are about the memory of the process
/// that opened them, so they are opened at the start: a VMM may fork before it.
struct Watch {
    userfault: Userfault,
    pagemap: Pagemap,
    /// Who started it. In a child of that process both descriptors reach the parent's memory: a
    /// harvest would take the parent's pages, and the end of it would end the parent's.
    process: u32,
    /// Blocks that are registered.
    blocks: BTreeMap<BlockId, Protected>,
}

/// See the file's description.
///
/// Any memory of this process, no KVM: who wrote to it is found all the same.
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
    regions: Vec<Region>,
}

impl std::fmt::Debug for UserfaultLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserfaultLog")
            .field("started", &self.watch.is_some())
            .finish_non_exhaustive()
    }
}

/// Read-only blocks are not watched, as no log does; marks of them count.
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
    /// A log of all blocks that are not read-only. [`Kind::Unsupported`] says what this kernel or this
    /// process lacks.
    pub fn new() -> Result<Self> {
        // Only to see whether they can be had; see [`Watch`].
        Userfault::write_protect_async()?;
        Pagemap::open()?;
        let mut regions = Vec::new();
        regions.try_reserve_exact(REGIONS).map_err(|_| {
            let bytes = REGIONS * std::mem::size_of::<Region>();
            Error::no_memory("userfaultfd's list of written regions", bytes as u64)
        })?;
        regions.resize(REGIONS, Region::default());
        Ok(UserfaultLog {
            watch: None,
            regions,
        })
    }
}

impl Watch {
    /// Registers a block and protects what is in it.
    fn begin(&mut self, block: &Arc<Block>) -> Result<()> {
        let range = range_of(block);
        if let Some(before) = self.blocks.remove(&block.id()) {
            before.end();
        }
        let begun = self.userfault.register(range.clone()).and_then(|()| {
            let protected = Protected::new(block, &self.pagemap).inspect_err(|_| {
                // It is not there any more, or is discarded.
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

    /// Ends the watch over a block. What cannot be unregistered is not there any more: the VMM has
    /// unmapped it.
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

    /// Merges what was written of a block into `pending`, and protects it again.
    fn collect(
        &mut self,
        block: &Block,
        regions: &mut [Region],
        pending: &mut Bitmap,
    ) -> Result<u64> {
        match self.blocks.get_mut(&block.id()) {
            Some(protected) => protected.collect(&self.pagemap, regions, pending),
            // It could not be watched anew after an error, which is still so.
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
                // Part of the block was protected again and its pages are known to nobody:
                // the error makes everything dirty. New memory may have been mapped there;
                // then it is watched from now on, and the next harvest is a good one.
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
            + (self.regions.capacity() * std::mem::size_of::<Region>()) as u64
    }

    fn map_changes(&mut self, old: &Map, new: &Map, sink: &mut dyn Sink) -> Result<()> {
        let UserfaultLog { watch, regions } = self;
        let Some(watch) = watch else {
            return Ok(());
        };
        if !watch.is_ours() {
            // Every harvest says that nothing is known.
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
    /// A child of fork() may hold the descriptor, and then closing ours ends nothing.
    fn drop(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            watch.end_all();
        }
    }
}
