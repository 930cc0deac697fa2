//! The threads that write an image's pages, and their buffers.
//!
//! A batch's pages are copied before they are written. Example of what goes wrong without a copy:
//! the guest writes a page while the device reads it. The file then holds a mixture of two
//! versions, and the checksum fits neither. A file system with checksums of its own calls the
//! mixture damaged. The copy also ends the pins of the batch, so the removal of a block never waits
//! for a disk.
//!
//! **The newest version wins.** Batches are written at the same time and in any order. So a batch
//! waits as long as another batch with pages of the same stretch is on its way ([`Pool::room`]).

use super::buffer::Buffer;
use super::table::Table;
use super::unfinished::Unfinished;
use crate::channel::pacing::{burst_bytes, Pacer};
use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::runtime::{catch, spawn, Cancel, Join, Recall, Role};
use crate::units::{Bytes, Pages, PAGE_SIZE, STRETCH_PAGES};
use crate::walk::BATCH_PAGES;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How often a wait checks for a cancel.
const LOOK: Duration = Duration::from_millis(10);
/// Batches for each writer thread: one that the thread writes, and one that is filled meanwhile.
const BATCHES: usize = 2;

/// Called first on each thread that an image starts; see [`crate::vmm::Vmm::thread_start`].
pub type Announce = Arc<dyn Fn(Role) -> Result<()> + Send + Sync>;

/// A block's area in the file, and its table.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) name: String,
    pub(super) length: u64,
    pub(super) page_size: u64,
    pub(super) rom: bool,
    pub(super) offset: u64,
    pub(super) table: Table,
}

/// Pages of one block, and the contents that the image gets for them.
#[derive(Debug)]
pub(super) struct BatchPart {
    pub(super) area: Arc<Area>,
    pub(super) first: u64,
    pub(super) count: u64,
    /// Position of the contents in the batch's buffer, in pages. `None` for zero pages.
    pub(super) at: Option<usize>,
}

/// The range from a batch's first page to its last, by block and page.
pub(super) type Span = Range<(u32, u64)>;

/// The span of taken pages, rounded to whole stretches. A file system may keep 2 MiB of a file in
/// one piece of its cache. Two writes to neighbouring pages at once, one through the cache and one
/// past it, then make a later sync fail.
pub(super) fn span(taken: &Taken) -> Span {
    let mut runs = taken.runs();
    let Some(first) = runs.next() else {
        return (0, 0)..(0, 0);
    };
    let last = runs.last().unwrap_or(first);
    let start = first.pages.first().0 / STRETCH_PAGES * STRETCH_PAGES;
    let end = last.pages.end().0.next_multiple_of(STRETCH_PAGES);
    (first.block.id().0, start)..(last.block.id().0, end)
}

/// The span of some pages of one block.
pub(super) fn span_of(block: u32, pages: &Range<Pages>) -> Span {
    let start = pages.start.0 / STRETCH_PAGES * STRETCH_PAGES;
    (block, start)..(block, pages.end.0.next_multiple_of(STRETCH_PAGES))
}

/// Pages on their way into the file.
pub(super) struct Batch {
    /// Pages that a walk has taken; `None` for those of a [`super::draft`].
    pub(super) taken: Option<Taken>,
    pub(super) span: Span,
    pub(super) buffer: Buffer,
    pub(super) pieces: Vec<BatchPart>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Batch>,
    free: Vec<Buffer>,
    /// The spans of all batches in the queue or being written.
    spans: Vec<Span>,
    /// The first error of any writer thread.
    error: Option<Error>,
    closing: bool,
    /// The number of writer threads that still run.
    writers: usize,
}

struct Shared {
    file: Unfinished,
    cancel: Cancel,
    pacer: Arc<Pacer>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// See the file's description. A dropped pool ends its threads and removes the file.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<Join<()>>,
}

/// Whether two spans have a page in common.
fn overlap(a: &Span, b: &Span) -> bool {
    a.start < b.end && b.start < a.end
}

impl Pool {
    /// Starts `writers` threads that write to `file`, with buffers of `pages` pages.
    pub(super) fn start(
        file: Unfinished,
        writers: u32,
        pages: Pages,
        cancel: &Cancel,
        pacer: &Arc<Pacer>,
        announce: &Announce,
    ) -> Result<Pool> {
        let mut state = State::default();
        for _ in 0..BATCHES * writers as usize {
            state.free.push(Buffer::new(pages.bytes().0 as usize)?);
        }
        state.writers = writers as usize;
        let mut pool = Pool {
            shared: Arc::new(Shared {
                file,
                cancel: cancel.clone(),
                pacer: Arc::clone(pacer),
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
            threads: Vec::new(),
        };
        for _ in 0..writers {
            let (shared, announce) = (Arc::clone(&pool.shared), Arc::clone(announce));
            let thread = spawn(Role::Image, |_| (), move || run(&shared, &announce))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// The file that the pool writes.
    pub(super) fn file(&self) -> &Unfinished {
        &self.shared.file
    }

    /// Returns the first error of a writer thread, if there was one.
    pub(super) fn check(&self) -> Result<()> {
        self.shared.lock().error.clone().map_or(Ok(()), Err)
    }

    /// Waits until `ready` gives a value, or until a removal wants pins back (`None`).
    fn wait<R>(
        &self,
        recall: Option<&Recall>,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> Result<Option<R>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(error) = &state.error {
                return Err(error.clone());
            }
            self.shared.cancel.check("writing an image")?;
            if let Some(ready) = ready(&mut state) {
                return Ok(Some(ready));
            }
            if recall.is_some_and(Recall::is_raised) {
                return Ok(None);
            }
            let waited = self.shared.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// A buffer for a batch with this span, when no page of the span is on its way any more. `None`
    /// when a removal wants the pins back.
    pub(super) fn room(&self, span: &Span, recall: Option<&Recall>) -> Result<Option<Buffer>> {
        self.wait(recall, |state| {
            let waits = state.spans.iter().any(|other| overlap(span, other));
            match waits {
                true => None,
                false => state.free.pop(),
            }
        })
    }

    /// Queues a batch for the writer threads.
    pub(super) fn submit(&self, batch: Batch) {
        let mut state = self.shared.lock();
        state.spans.push(batch.span.clone());
        state.queue.push_back(batch);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until all batches are written.
    pub(super) fn barrier(&self) -> Result<()> {
        self.wait(None, |state| state.spans.is_empty().then_some(()))
            .map(drop)
    }

    fn end(&mut self) {
        let left = {
            let mut state = self.shared.lock();
            state.closing = true;
            std::mem::take(&mut state.queue)
        };
        self.shared.changed.notify_all();
        // Dropping the batches puts their pages back, which takes a lock of the tracker's.
        drop(left);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// Ends the threads and returns the file with all batches written.
    pub(super) fn into_file(mut self) -> Result<Unfinished> {
        self.barrier()?;
        self.end();
        let shared = Arc::clone(&self.shared);
        drop(self);
        let shared = Arc::try_unwrap(shared)
            .map_err(|_| Error::new(Kind::Internal, "a writer of the image is left"))?;
        Ok(shared.file)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
    }
}

/// The body of a writer thread.
fn run(shared: &Shared, announce: &Announce) {
    let failed = |error: Error| {
        shared.lock().error.get_or_insert(error);
        shared.changed.notify_all();
    };
    if let Err(error) = announce(Role::Image) {
        return failed(error);
    }
    loop {
        let mut state = shared.lock();
        let batch = loop {
            if state.closing {
                return;
            }
            match state.queue.pop_front() {
                Some(batch) => break batch,
                None => {
                    state = shared
                        .changed
                        .wait(state)
                        .unwrap_or_else(|e| e.into_inner())
                }
            }
        };
        drop(state);
        let Batch {
            taken,
            span,
            buffer,
            pieces,
        } = batch;
        let written = catch(|| {
            shared.cancel.check("writing an image")?;
            write(shared, &buffer, &pieces)
        });
        match written.and_then(|written| written) {
            Ok(()) => {
                if let Some(taken) = taken {
                    taken.delivered();
                }
            }
            // The pages are pending again before the error is published.
            Err(error) => {
                drop(taken);
                failed(error);
            }
        }
        let mut state = shared.lock();
        if let Some(at) = state.spans.iter().position(|other| *other == span) {
            state.spans.swap_remove(at);
        }
        state.free.push(buffer);
        drop(state);
        shared.changed.notify_all();
    }
}

/// Writes a batch to the file.
fn write(shared: &Shared, buffer: &Buffer, pieces: &[BatchPart]) -> Result<()> {
    let file = &shared.file;
    // Under a cap the writes are small, so that they are even.
    let most = match shared.pacer.stated() {
        Some(cap) => Bytes(burst_bytes(cap)).pages_down().0.max(1) * PAGE_SIZE,
        None => BATCH_PAGES.bytes().0,
    };
    for piece in pieces {
        let area = &piece.area;
        let (first, end) = (piece.first, piece.first + piece.count);
        let Some(at) = piece.at else {
            zero(file, area, first..end)?;
            continue;
        };
        let from = at * PAGE_SIZE as usize;
        let contents = &buffer.bytes()[from..from + Pages(piece.count).bytes().0 as usize];
        let offset = area.offset + Pages(first).bytes().0;
        area.table.set(first, contents)?;
        for (number, contents) in (0..).zip(contents.chunks(most as usize)) {
            if !shared.pacer.take(contents.len() as u64, &shared.cancel) {
                shared.cancel.check("writing an image")?;
            }
            let (at, page) = (offset + number * most, first + number * (most / PAGE_SIZE));
            file.write(contents, at).map_err(|e| {
                let doing = format!(
                    "block `{}`: writing {} bytes at {at}, page {page} of the block",
                    area.name,
                    contents.len()
                );
                file.failed(&doing, e)
            })?;
        }
    }
    Ok(())
}

/// Makes pages zero in the file: those that had contents become holes.
fn zero(file: &Unfinished, area: &Area, pages: Range<u64>) -> Result<()> {
    let mut at = pages.start;
    while at < pages.end {
        let first = at;
        while at < pages.end && area.table.has(at) {
            area.table.clear(at)?;
            at += 1;
        }
        if first < at {
            let (offset, length) = (Pages(first).bytes().0, Pages(at - first).bytes().0);
            file.zero(area.offset + offset, length).map_err(|e| {
                let doing = format!("block `{}`: writing zeros, page {first}", area.name);
                file.failed(&doing, e)
            })?;
        } else {
            area.table.clear(at)?;
            at += 1;
        }
    }
    Ok(())
}
