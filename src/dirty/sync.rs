//! A sync: all logs are harvested into the pending pages of each consumer that follows. It also
//! brings up to date which pages became ballooned, and which ballooned pages were written. This
//! runs under the tracker's lock.

use super::merge::PendingSink;
use super::pending::{BlockState, Phase, Seat};
use super::report::{LogReport, SyncReport};
use super::state::Inner;
use super::{Harvested, When};
use crate::bits::summary::Bitmap;
use crate::error::Result;
use crate::runtime::{probes, Cancel};
use crate::units::Pages;
use std::sync::Arc;
use std::time::Instant;

impl Inner {
    /// Harvests all logs for every consumer that follows, and reports the figures of `whose`.
    pub(super) fn sync(&mut self, when: When, whose: Option<Seat>) -> Result<SyncReport> {
        self.sync_unless(when, whose, None)
    }

    /// [`Inner::sync`]. Once `cancel` is cancelled it no longer waits for threads of the VMM.
    pub(super) fn sync_unless(
        &mut self,
        when: When,
        whose: Option<Seat>,
        cancel: Option<&Cancel>,
    ) -> Result<SyncReport> {
        let begun = Instant::now();
        probes::sync_begin(when == When::Stopped);
        let mut others = self.seats(Phase::Following);
        others.retain(|seat| Some(*seat) != whose);
        let before: Vec<Pages> = others.iter().map(|seat| self.pending(*seat)).collect();
        // A free-page hint from before this harvest must not undo a page that it finds.
        self.hints.close();
        // Before the harvest: a page found below may have been written before it was ballooned. Of
        // a page that a later harvest finds, this is certain not to be so.
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
            let time = log_begun.elapsed();
            probes::log_end(log.kind().name(), found.0, time);
            report.logs.push(LogReport {
                kind: log.kind(),
                name: log.name(),
                time,
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
        probes::sync_end(
            when == When::Stopped,
            report.found.0,
            report.pending.0,
            report.time,
        );
        Ok(report)
    }
}

impl Inner {
    /// The consumers that follow and skip ballooned pages.
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

    /// Ends the ballooning of pages that were found written since they were named. Returns how many
    /// pages became pending with that for `whose`. This runs right after the harvest, and not only
    /// in the walk, because the decision on the downtime needs the true number of pages to send.
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

    /// From now on a consumer reads ballooned and free pages too. Pages that were to be handed out
    /// as free become pending again.
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

    /// Counts the ballooned pages in pending, for each consumer that skips them.
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

    /// Drops the news of pages that were ballooned before, for a consumer that starts with all
    /// pages and starts the logs.
    pub(super) fn forget_news(&mut self, seat: Seat) {
        if self.member(seat).is_some_and(|m| m.skip_ballooned) {
            for block in self.map.blocks() {
                block.ballooned().take_news(|_, _, _| {});
            }
        }
    }

    /// Makes pages pending that became ballooned since the last sync, for each consumer that skips
    /// ballooned pages, so that it is told of them. Returns how many they were for `whose`.
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

/// Clears the bits that `words` has set, from bit `at` on, a multiple of 64.
fn clear_words(bits: &mut Bitmap, at: usize, words: &[u64], pages: usize) {
    if bits.is_empty() {
        return;
    }
    for (i, word) in words.iter().take(pages.div_ceil(64)).enumerate() {
        // Words without a common bit cost one look.
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
