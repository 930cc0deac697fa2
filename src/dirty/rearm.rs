//! Restoring protection chunk by chunk: before pages are handed out, for a round of hints, and
//! before a consumer starts clean. This runs under the tracker's lock.

use super::state::Inner;
use super::Rearmed;
use crate::error::Result;
use crate::memory::BlockId;
use std::time::Instant;

impl Inner {
    /// Clears the armed chunks of these pages.
    pub(super) fn rearm(&mut self, id: BlockId, pages: std::ops::Range<u64>) -> Result<()> {
        let Inner {
            logs,
            blocks,
            members,
            map,
            stats,
            ..
        } = self;
        let Some(state) = blocks.get_mut(id) else {
            return Ok(());
        };
        let Some(chunks) = &mut state.chunks else {
            return Ok(());
        };
        let last = chunks.chunk_of(pages.end as usize - 1);
        for chunk in chunks.chunk_of(pages.start as usize)..=last {
            if !chunks.is_armed(chunk) {
                continue;
            }
            let range = chunks.pages_of(chunk);
            let begun = Instant::now();
            let mut done = Rearmed::default();
            // A log that is astray is not asked. Every page counts as dirty before that log watches
            // again.
            let there = logs.iter_mut().filter(|log| !log.is_astray());
            for log in there.filter(|log| log.rearms()) {
                let this = log
                    .rearm(map, id, range.start as u64..range.end as u64)
                    .map_err(|e| {
                        e.context(format_args!(
                            "restoring the protection of pages {} to {} of block `{}`",
                            range.start,
                            range.end,
                            state.pin_source.name()
                        ))
                    })?;
                done.calls += this.calls;
                done.bits += this.bits;
            }
            // Disarmed only after the clears: after an error the chunk is still to be cleared.
            chunks.disarm(chunk);
            let time = begun.elapsed();
            stats.clear_calls += done.calls;
            stats.clear_bits += done.bits;
            stats.longest_clear = stats.longest_clear.max(time);
            for member in members.iter_mut().flatten() {
                member.stats.clear_calls += done.calls;
                member.stats.clear_bits += done.bits;
                member.stats.longest_clear = member.stats.longest_clear.max(time);
            }
        }
        Ok(())
    }

    /// Restores the protection of the next armed chunk from `at` on, a block and a chunk of it.
    /// Returns where to go on; `None` if there was no armed chunk.
    pub(super) fn rearm_next(&mut self, at: (BlockId, usize)) -> Result<Option<(BlockId, usize)>> {
        let (mut block, mut chunk) = at;
        while let Some((id, state)) = self.blocks.at_or_after(block) {
            if id != block {
                chunk = 0;
            }
            let armed = state
                .chunks
                .as_ref()
                .and_then(|c| c.next_armed(chunk).map(|n| (n, c.pages_of(n))));
            if let Some((n, pages)) = armed {
                self.rearm(id, pages.start as u64..pages.end as u64)?;
                return Ok(Some((id, n + 1)));
            }
            (block, chunk) = (BlockId(id.0 + 1), 0);
        }
        Ok(None)
    }

    /// Restores the protection of every armed chunk.
    pub(super) fn rearm_all(&mut self) -> Result<()> {
        let mut at = (BlockId(0), 0);
        while let Some(next) = self.rearm_next(at)? {
            at = next;
        }
        Ok(())
    }
}
