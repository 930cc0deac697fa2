//! A sync: all logs are harvested into what is pending for each consumer that follows. Pages that
//! became ballooned, and ballooned pages that were written, are brought up to date. Part of what is
//! done under the tracker's lock.

use super::merge::PendingSink;
use super::pending::{BlockState, Phase, Seat};
use super::report::{LogReport, SyncReport};
use super::state::Inner;
use super::{Harvested, When};
use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::runtime::Cancel;
use crate::units::Pages;
use std::sync::Arc;
use std::time::Instant;

impl Inner {
    /// Harvests all logs into every consumer that follows, and reports what that was for `whose`.
    pub(super) fn sync(&mut self, when: When, whose: Option<Seat>) -> Result<SyncReport> {
        self.sync_unless(when, whose, None)
    }

    /// [`Inner::sync`], which waits for no thread of the VMM's any more once `cancel` is cancelled.
    pub(super) fn sync_unless(
        &mut self,
        when: When,
        whose: Option<Seat>,
        cancel: Option<&Cancel>,
    ) -> Result<SyncReport> {
        let begun = Instant::now();
        let mut others = self.seats(Phase::Following);
        others.retain(|seat| Some(*seat) != whose);
        let before: Vec<Pages> = others.iter().map(|seat| self.pending(*seat)).collect();
        // A hint given before what is found now must not undo it.
        self.hints.close();
        // Before the harvest: what is found below may have been written before the page was
        // ballooned, what is found later was not.
        let mut report = SyncReport {
            newly_ballooned: self.harvest_news(whose),
            ..SyncReport::default()
        };
        let map = Arc::clone(&self.map);
        let mut unobserved = 0;
        let Inner { logs, blocks, .. } = self;
        for log in logs {
            let log_begun = Instant::now();
            let mut sink = PendingSink::new(&map, blocks, log.rearms(), whose);
            sink.given_up = cancel.cloned();
            let outcome = match log.find_the_way(&map, &mut sink) {
                Ok(was_astray) => {
                    if was_astray {
                        report.failed = true;
                        report.warnings.push(format!(
                            "{} had not followed the memory map since a refused change, so all \
                             memory counts as dirty; now it has",
                            log.name()
                        ));
                    }
                    log.harvest(&map, when, &mut sink)
                }
                Err(e) => Err(e),
            };
            match outcome {
                Ok(Harvested::Complete) => {}
                Ok(Harvested::Told(told)) => {
                    let named = told.into_iter().map(|t| format!("{}: {t}", log.name()));
                    report.warnings.extend(named);
                }
                Ok(Harvested::Postponed(e)) => {
                    if when == When::Stopped {
                        return Err(e.context(format_args!("the last harvest of {}", log.name())));
                    }
                    report.postponed = true;
                    report.warnings.push(format!("{}: {e}", log.name()));
                }
                Err(e) => {
                    log.covered(&map, &mut |extent| extent.everything(&mut sink));
                    if when == When::Stopped {
                        return Err(e.context(format_args!("the last harvest of {}", log.name())));
                    }
                    report.failed = true;
                    report.warnings.push(format!(
                        "{} failed, so all that it covers counts as dirty: {e}",
                        log.name()
                    ));
                }
            }
            let found = Pages(sink.found);
            let written = Pages(sink.reported.saturating_sub(sink.known));
            report.found += found;
            report.written += written;
            unobserved += sink.known;
            report.logs.push(LogReport {
                kind: log.kind(),
                name: log.name(),
                time: log_begun.elapsed(),
                found,
                written,
            });
        }
        report.observed = Pages(map.total().pages_down().0.saturating_sub(unobserved));
        report.found += self.clear_written(whose);
        self.count_ballooned();
        if let Some(seat) = whose {
            report.pending = self.pending(seat);
            if let Some(member) = self.member(seat) {
                report.ballooned = Pages(member.ballooned);
                member.stats.found += report.found;
            }
        }
        for (seat, before) in others.into_iter().zip(before) {
            let now = self.pending(seat);
            if let Some(member) = self.member(seat) {
                member.stats.found += now - before;
            }
        }
        self.count_slowly();
        self.stats.syncs += 1;
        let members = self.members.iter_mut().flatten();
        for member in members.filter(|m| m.phase == Phase::Following) {
            member.stats.syncs += 1;
            member.stats.written += report.written;
            member.stats.failed_syncs += u64::from(report.failed);
        }
        report.time = begun.elapsed();
        Ok(report)
    }
}

impl Inner {
    /// The consumers that follow and have ballooned pages told apart.
    pub(super) fn seats_that_skip_ballooned(&self) -> Vec<Seat> {
        let mut seats = self.seats(Phase::Following);
        seats.retain(|seat| {
            self.members[*seat]
                .as_ref()
                .is_some_and(|m| m.skip_ballooned)
        });
        seats
    }

    pub(super) fn count_broken(&mut self, seat: Seat, pages: Pages) {
        self.stats.ballooned_written += pages;
        if let Some(member) = self.member(seat) {
            member.stats.ballooned_written += pages;
        }
    }

    /// Ends the ballooning of pages found written since they were told, and returns how many became
    /// pending with that for `whose`. Right after the harvest and not in the walk alone: what is to
    /// be sent must not look as if it were not, least of all to whoever decides on the downtime.
    pub(super) fn clear_written(&mut self, whose: Option<Seat>) -> Pages {
        let mut found = 0;
        for seat in self.seats_that_skip_ballooned() {
            let mut all = 0;
            for state in self.blocks.iter_mut() {
                let (broken, new) = state.clear_written(seat);
                all += broken;
                if Some(seat) == whose {
                    found += new;
                }
            }
            self.count_broken(seat, Pages(all));
        }
        Pages(found)
    }

    /// A consumer reads ballooned and free pages from here on: what was to be handed out as free is
    /// pending again.
    pub(super) fn read_ballooned_too(&mut self, seat: Seat) {
        if let Some(member) = self.member(seat) {
            member.skip_ballooned = false;
            member.ballooned = 0;
        }
        for set in self.all_sets(seat) {
            if let Some(mut free) = set.beside.free.take() {
                set.pending.with(|pending| free.take_all_into(pending));
            }
            set.beside.passed = None;
        }
    }

    /// Counts what of pending is ballooned, for each consumer that has it told apart.
    pub(super) fn count_ballooned(&mut self) {
        for seat in self.seats_that_skip_ballooned() {
            let blocks = self.blocks.iter();
            let ballooned = blocks.filter_map(|b| {
                let set = b.set(seat)?;
                Some(b.pin_source.ballooned().count_both(&set.pending))
            });
            let ballooned = ballooned.sum();
            if let Some(member) = self.member(seat) {
                member.ballooned = ballooned;
            }
        }
    }

    /// A consumer that starts with all pages, and starts the logs, is not told of pages that
    /// were ballooned before.
    pub(super) fn forget_news(&mut self, seat: Seat) {
        if self.member(seat).is_some_and(|m| m.skip_ballooned) {
            for block in self.map.blocks() {
                block.ballooned().take_news(|_, _, _| {});
            }
        }
    }

    /// Makes pending what became ballooned since the last sync, for each consumer that has it told apart, so
    /// that it is told; how many pages that were for `whose`.
    pub(super) fn harvest_news(&mut self, whose: Option<Seat>) -> Pages {
        let mut found = 0;
        let seats = self.seats_that_skip_ballooned();
        if seats.is_empty() {
            return Pages(0);
        }
        for state in self.blocks.iter_mut() {
            let BlockState {
                pin_source, sets, ..
            } = state;
            pin_source.ballooned().take_news(|at, words, pages| {
                for &seat in &seats {
                    let Some(Some(set)) = sets.get_mut(seat) else {
                        continue;
                    };
                    let new = set.pending.merge_words(at, words, pages).new;
                    if Some(seat) == whose {
                        found += new;
                    }
                    if let Some(passed) = &mut set.beside.passed {
                        clear_words(passed, at, words, pages);
                    }
                }
            });
        }
        Pages(found)
    }
}

/// Clears in `bits` what `words` has set, from bit `at` on, a multiple of 64.
fn clear_words(bits: &mut Bitmap, at: usize, words: &[u64], pages: usize) {
    if bits.is_empty() {
        return;
    }
    for (i, word) in words.iter().take(pages.div_ceil(64)).enumerate() {
        // Only what is set in both costs more than a look.
        let mut left = word & bits.words().get(at / 64 + i).copied().unwrap_or(0);
        while left != 0 {
            let from = left.trailing_zeros();
            let len = (left >> from).trailing_ones();
            bits.clear_range(at + i * 64 + from as usize, len as usize);
            left &= !((u64::MAX >> (64 - len)) << from);
        }
    }
}

#[cfg(test)]
mod tests;
