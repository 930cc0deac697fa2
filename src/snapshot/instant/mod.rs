//! A save whose instant is its start: the guest is paused once and briefly, runs on at once, and the
//! image holds it as it was at that pause.
//!
//! All of guest memory is protected from writes in the pause. A page that the guest writes before
//! the walk has come to it is copied first, and the guest's thread goes on. `save` has the other
//! kind, whose instant is its end. One save uses one kind for all of memory: an image of two
//! instants is of no guest.
//!
//! An image of a chain that holds what changed protects only the parts of memory in which something
//! changed. Its pages are taken from the chain's consumer in the pause, so that writes from then on
//! are found for the next image.
//!
//! | file | what |
//! |---|---|
//! | here | what is refused before the pause; the order of things |
//! | `watch` | registration, protection, the fault thread |
//! | `ledger` | what has become of each part of memory, and the answer to each fault; pure |
//! | `copies` | memory for copies of pages, up to a limit |
//! | `unit` | one part of memory read into the image |

mod copies;
mod ledger;
mod unit;
mod watch;

use super::chain::Source;
use super::report::{SaveInstant, State};
use super::saving::Saving;
use crate::dirty::tracker::Tracker;
use crate::dirty::LogKind;
use crate::error::{Error, Kind, Result};
use crate::image::{Blobs, Writer};
use crate::memory::contents::Contents;
use crate::memory::ownership::Stage;
use crate::memory::Map;
use crate::runtime::{Cancel, Role};
use crate::vmm::device::Registered;
use std::sync::Arc;
use std::time::Instant;
use watch::Watch;

/// Refuses guests with writers whose writes page tables of this process do not see.
fn check_writers(tracker: &Tracker, devices: &[Arc<Registered>]) -> Result<()> {
    let refused = |who: String, how: &str| {
        Err(Error::new(
            Kind::Unsupported,
            format!(
                "a save of the guest as it is at the start protects memory from writes, and {who} \
                 writes {how}; save the guest as it is at the end"
            ),
        ))
    };
    for kind in tracker.kinds() {
        let how = match kind {
            LogKind::Vhost => "through mappings of another process",
            LogKind::Vfio | LogKind::Iommufd => "by DMA",
            _ => continue,
        };
        return refused(format!("what the tracker's {} log logs", kind.name()), how);
    }
    match devices.iter().find(|d| d.device.writes_unseen()) {
        Some(device) => refused(device.to_string(), "where page tables do not see it"),
        None => Ok(()),
    }
}

impl Saving {
    /// Saves the guest as it is at the start.
    pub(super) fn save_start(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let params = &shared.params;
        // Ends the writer's waits also when the fault thread fails.
        let cancel = &Cancel::under(&shared.task.cancel)?;
        self.vmm.thread_start(Role::Snapshot)?;
        let memory = shared.tracker.memory();
        check_writers(&shared.tracker, &shared.devices.list())?;
        let mut source = match &shared.chain {
            None => None,
            chain => Some(Source::begin(&shared.tracker, chain.clone())?),
        };
        let (mut writer, mut blobs, announce) = self.begin_image(source.as_ref(), cancel)?;
        if let Some(source) = &source {
            // Whatever costs the more the larger the guest is comes before the pause.
            source.start(SaveInstant::Start)?;
        }
        let mut watch = Watch::begin(memory, params.max_copy_bytes, cancel, &announce)?;
        let read = self
            .come_to_the_instant(&mut watch, source.as_mut(), &mut blobs)
            .and_then(|map| {
                self.read_all(&watch, source.as_ref(), &mut writer)?;
                Ok(map)
            });
        self.tell(&watch);
        // The fault thread's error is why a wait of the writer's was cancelled.
        let failed = watch.check();
        // All of memory is in the image or on its way there.
        drop(watch);
        failed?;
        let map = read?;
        writer.seal(&map)?;
        self.finish(writer, blobs, source, &map, cancel)
    }

    /// Pauses the guest, saves its state, protects its memory, and resumes the guest. Returns the map
    /// of the instant.
    fn come_to_the_instant(
        &mut self,
        watch: &mut Watch,
        source: Option<&mut Source>,
        blobs: &mut Blobs,
    ) -> Result<Arc<Map>> {
        let shared = Arc::clone(&self.shared);
        self.begin_devices()?;
        self.pause()?;
        self.save_state(blobs)?;
        // Saving state writes guest memory. From here on nobody does until `resume`.
        let begun = Instant::now();
        let map = shared.tracker.memory().map();
        let mut changed = None;
        if let Some(source) = source {
            source.harvest(&map)?;
            source.take_all()?;
            changed = source.continues().then_some(&*source);
        }
        watch.arm(&map, changed)?;
        self.stats.protecting = Some(begun.elapsed());
        self.resume_to(Stage::SavedRunning)?;
        self.enter(State::Copying);
        Ok(map)
    }

    /// Reads all of memory, or what changed of it, into the image, while the guest runs.
    fn read_all(
        &mut self,
        watch: &Watch,
        source: Option<&Source>,
        writer: &mut Writer,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut contents = Contents::of_watched();
        self.stats.pass = 1;
        watch.walk();
        loop {
            shared.task.cancel.check("the save")?;
            watch.check()?;
            let Some(unit) = watch.next() else {
                return Ok(());
            };
            let put = unit::save(watch, source, unit, &mut contents, writer)?;
            if self.count(&put) {
                self.tell(watch);
                self.renew();
            }
        }
    }

    /// Brings the figures up to date.
    fn tell(&mut self, watch: &Watch) {
        let tally = watch.tally();
        self.stats.remaining_bytes = watch.left().0;
        self.stats.faults = tally.faults;
        self.stats.copied_pages = tally.copied;
        self.stats.held_faults = tally.held;
    }
}
