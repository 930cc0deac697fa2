//! A save whose instant is its end: passes over what the guest has written, a pause, and the last
//! pages.

use super::chain::Source;
use super::converge::{pause_now, Facts};
use super::report::{SaveInstant, State};
use super::saving::Saving;
use crate::dirty::When;
use crate::error::Result;
use crate::image::Writer;
use crate::memory::ownership::Stage;
use crate::memory::Map;
use crate::runtime::Role;
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::walk::{Outlet, Walk, BATCH_PAGES};
use std::sync::Arc;
use std::time::Instant;

/// Looks in the pause after which pages of a chain that other consumers' syncs find are left to the
/// next image.
const LOOKS: u32 = 3;

impl Saving {
    /// Saves the guest as it is at the end.
    pub(super) fn save_end(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (params, cancel) = (&shared.params, &shared.task.cancel);
        self.vmm.thread_start(Role::Snapshot)?;
        let memory = shared.tracker.memory();
        let mut source = Source::begin(&shared.tracker, shared.chain.clone())?;
        let (mut writer, mut blobs, _) = self.begin_image(Some(&source), cancel)?;
        let mut walk = Walk::over(memory)?;
        if params.already_paused {
            self.claim.comes_to(Stage::SavePaused);
        }
        source.start(SaveInstant::End)?;
        if let Some(warning) = shared.tracker.warning() {
            self.vmm.event(EventKind::Warning, warning.to_owned());
        }
        self.begin_devices()?;
        if !params.already_paused {
            self.passes(&mut source, &mut walk, &mut writer)?;
            self.pause()?;
        }
        self.save_state(&mut blobs)?;
        source.harvest(&memory.map())?;
        if !source.is_chained() {
            // The guest is paused: it has written none of the pages that syncs of other consumers
            // find from here on.
            source.freeze();
        }
        let map = self.pass(&mut source, &mut walk, &mut writer)?;
        writer.seal(&map)?;
        // The guest's writes from here on belong to the next image, or to none.
        let source = match source.is_chained() {
            true => {
                source.thaw();
                Some(source)
            }
            false => None,
        };
        if self.paused_at.is_some() && !params.stay_paused {
            self.resume()?;
        }
        self.finish(writer, blobs, source, &map, cancel)
    }

    /// Writes memory while the guest runs, until another pass would not shorten the pause.
    fn passes(&mut self, source: &mut Source, walk: &mut Walk, writer: &mut Writer) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let params = &shared.params;
        let mut before = None;
        self.enter(State::Copying);
        loop {
            let (begun, data) = (Instant::now(), self.stats.data_pages);
            self.pass(source, walk, writer)?;
            let took = begun.elapsed();
            let consumer = source.consumer();
            let report = consumer.sync(When::Running)?;
            for warning in report.warnings {
                self.vmm.event(EventKind::Warning, warning);
            }
            shared.blockers.check()?;
            let remaining = consumer.to_read().bytes();
            self.vmm.event(
                EventKind::Pass,
                format!(
                    "pass {} done: {} pages to write",
                    self.stats.pass,
                    remaining.pages_up()
                ),
            );
            let facts = Facts {
                pass: self.stats.pass,
                remaining,
                before,
                written: Pages(self.stats.data_pages - data).bytes(),
                took,
            };
            if pause_now(&facts, params.downtime_limit, params.max_passes) {
                return Ok(());
            }
            before = Some(remaining);
        }
    }

    /// Writes all pending pages, and waits until they are in the file. Returns the map whose pages
    /// these are: with a paused guest, no page of its blocks is pending.
    ///
    /// Example: another thread of the VMM's adds a block while the guest is paused. If the map were
    /// taken after the last look at the pending pages, a block added between the two would be in the
    /// map, and none of its pages in the file. So the map is taken first. The tracker makes a new
    /// block's pages pending before the map has the block, so the look that follows finds them. A
    /// block that is removed in between is not in the next map, and the pass goes on with that one.
    ///
    /// Another example: a block is being removed, which sets its pages aside, and a log then refuses.
    /// Its pages are pending again after the look. So the look counts pages that are set aside, and
    /// the pass goes on until the block is gone or its pages are taken.
    fn pass(
        &mut self,
        source: &mut Source,
        walk: &mut Walk,
        writer: &mut Writer,
    ) -> Result<Arc<Map>> {
        let shared = Arc::clone(&self.shared);
        self.stats.pass += 1;
        walk.restart();
        let mut looks = 0;
        loop {
            shared.task.cancel.check("the save")?;
            writer.progress()?;
            let (consumer, mut outlet) = source.noting(writer);
            match walk.step(&consumer, BATCH_PAGES, &mut outlet)? {
                Some(put) => {
                    if self.count(&put) {
                        self.stats.remaining_bytes = consumer.pending().bytes().0;
                        self.renew();
                    }
                }
                None => {
                    writer.barrier()?;
                    // Pages whose pins a removal wanted back are pending again. While the guest
                    // runs, the next pass takes them.
                    let map = shared.tracker.memory().map();
                    let whole = consumer.pending_in(&map) == Some(Pages(0))
                        && shared.tracker.memory().map().generation() == map.generation();
                    #[cfg(test)]
                    super::testing::looked_at_pending();
                    if whole || self.stats.state != State::Paused {
                        return Ok(map);
                    }
                    looks += 1;
                    if looks >= LOOKS {
                        source.freeze();
                    }
                    std::thread::yield_now();
                }
            }
        }
    }
}
