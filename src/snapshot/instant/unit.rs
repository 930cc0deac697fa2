//! Reads one unit of guest memory into the image: from memory, or from the copies of pages that the
//! guest has written since the instant.

use super::super::chain::Source;
use super::ledger::{Kept, Unit};
use super::watch::Watch;
use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::image::{Draft, Writer};
use crate::memory::contents::{Contents, Held};
use crate::memory::Block;
use crate::page::zero;
use crate::units::Pages;
use crate::walk::{Put, BATCH_PAGES};
use std::ops::Range;

/// Reads `unit`, passes it to the writer, and lets the guest write it. Of an image that holds what
/// changed, only the pages that `source` took.
pub(super) fn save(
    watch: &Watch,
    source: Option<&Source>,
    unit: Unit,
    contents: &mut Contents,
    writer: &mut Writer,
) -> Result<Put> {
    let (block, pages) = watch.pages(unit);
    let taken = source.filter(|source| source.continues());
    let taken = taken.map(|source| source.taken(block.id()));
    // A guest has run here.
    block.zeroed_no_more();
    let mut put = Put::default();
    let mut kept: Option<Vec<Kept>> = None;
    let mut at = pages.start;
    while at < pages.end {
        let part = at..Pages(pages.end.0.min(at.0 + BATCH_PAGES.0));
        // As long as this waits for a buffer, pages of the unit are still copied for the guest.
        let mut draft = writer.draft(&block, part.clone())?;
        let kept = kept.get_or_insert_with(|| watch.read_begins(unit));
        contents.refresh();
        let mut next = part.start;
        while next < part.end {
            let run = match taken {
                None => part.clone(),
                Some(taken) => taken_run(taken, next..part.end),
            };
            draft.skip(run.start - next)?;
            read(watch, &block, &run, kept, contents, &mut draft, &mut put)?;
            next = run.end;
        }
        writer.submit(draft);
        at = part.end;
    }
    watch.read_ends(unit, kept.as_deref().unwrap_or_default())?;
    Ok(put)
}

/// The first run of taken pages in `within`; empty at its end when there is none.
fn taken_run(taken: Option<&Bitmap>, within: Range<Pages>) -> Range<Pages> {
    let (from, end) = (within.start.index(), within.end.index());
    let run = taken.and_then(|taken| taken.next_run_before(from, end));
    run.map_or(within.end..within.end, |run| {
        Pages(run.start as u64)..Pages(run.end as u64)
    })
}

/// Reads pages into a draft. `kept` are the unit's, in order.
fn read(
    watch: &Watch,
    block: &Block,
    pages: &Range<Pages>,
    kept: &[Kept],
    contents: &mut Contents,
    draft: &mut Draft,
    put: &mut Put,
) -> Result<()> {
    let mut at = pages.start;
    for kept in kept.iter().filter(|kept| pages.contains(&kept.page)) {
        from_memory(block, at..kept.page, contents, draft, put)?;
        at = kept.page + Pages(1);
        let Some(copy) = kept.copy else {
            put.zero_pages += 1;
            put.hole_pages += 1;
            draft.zeros(Pages(1))?;
            continue;
        };
        watch.with_copy(copy, |bytes| {
            // SAFETY: a copy is a page.
            if unsafe { zero::is_zero(bytes.as_ptr()) } {
                put.zero_pages += 1;
                return draft.zeros(Pages(1));
            }
            put.data_pages += 1;
            put.copied_pages += 1;
            draft.data(Pages(1), |room| {
                room.copy_from_slice(bytes);
                Ok(())
            })
        })?;
    }
    from_memory(block, at..pages.end, contents, draft, put)
}

/// Reads pages that nobody has written since the instant.
fn from_memory(
    block: &Block,
    pages: Range<Pages>,
    contents: &mut Contents,
    draft: &mut Draft,
    put: &mut Put,
) -> Result<()> {
    if pages.start >= pages.end {
        return Ok(());
    }
    block.poisoned().split(pages, |range, lost| {
        if lost {
            let count = range.end - range.start;
            put.poisoned_pages += count.0;
            put.zero_pages += count.0;
            return draft.zeros(count);
        }
        let mut result = Ok(());
        contents.split(block, range, |range, held| {
            if result.is_err() {
                return;
            }
            let count = range.end - range.start;
            result = match held {
                Held::Data => {
                    put.data_pages += count.0;
                    draft.data(count, |room| {
                        block.slice(range.start, count)?.copy_to(room);
                        Ok(())
                    })
                }
                held => {
                    put.hole_pages += u64::from(held == Held::Hole) * count.0;
                    put.zero_pages += count.0;
                    draft.zeros(count)
                }
            };
        })?;
        result
    })
}
