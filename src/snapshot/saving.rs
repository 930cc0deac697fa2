//! [`Saving`]: a save in progress, as its thread owns it. Figures, events, pause and resume are the same
//! for a save whose instant is its end (`passes`) and one whose instant is its start (`instant`).

use super::chain::{Linked, Source};
use super::devices;
use super::report::{SaveInstant, SaveParams, State, Stats};
use super::task::Task;
use crate::channel::Pacer;
use crate::dirty::tracker::Tracker;
use crate::error::Result;
use crate::image::{Announce, Blobs, Target, Writer};
use crate::memory::blockers::Blockers;
use crate::memory::ownership::{Claim, Stage};
use crate::memory::Map;
use crate::runtime::{Cancel, Role};
use crate::sys::disk::Caching;
use crate::vmm::callbacks::Callbacks;
use crate::vmm::held::Held;
use crate::vmm::{EventKind, Vmm};
use crate::walk::Put;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the figures are renewed.
pub(super) const RENEW: Duration = Duration::from_millis(100);

/// What a save's thread shares with the VMM's object.
pub(super) struct Shared {
    pub(super) tracker: Arc<Tracker>,
    /// The chain that the image becomes one of.
    pub(super) chain: Option<Arc<Linked>>,
    pub(super) blockers: Blockers,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) params: SaveParams,
    /// Holds all writers together to the stated bandwidth.
    pub(super) pacer: Arc<Pacer>,
    pub(super) task: Task,
    /// The guest's devices whose state is streamed.
    pub(super) devices: Held,
}

/// The values that the save's thread owns.
pub(super) struct Saving {
    pub(super) shared: Arc<Shared>,
    pub(super) vmm: Callbacks,
    pub(super) claim: Claim,
    pub(super) path: PathBuf,
    pub(super) begun: Instant,
    pub(super) renewed: Instant,
    /// When the guest was paused, if the save paused it and has to resume it.
    pub(super) paused_at: Option<Instant>,
    /// The guest was paused and resumed, and the save went on.
    pub(super) runs_again: bool,
    pub(super) stats: Stats,
}

impl Saving {
    /// Begins the image, whose writer's waits `cancel` ends. Returns it with the VMM's early blobs, and
    /// what tells the VMM of threads.
    pub(super) fn begin_image(
        &mut self,
        source: Option<&Source>,
        cancel: &Cancel,
    ) -> Result<(Writer, Blobs, Announce)> {
        let shared = Arc::clone(&self.shared);
        let (params, memory) = (&shared.params, shared.tracker.memory());
        let caching = Caching::new(params.direct);
        let base = source.map(|source| source.base(&self.path, caching));
        let base = base.transpose()?.flatten();
        self.stats.total_bytes = memory.with_map(|map| map.total()).0;
        self.stats.remaining_bytes = self.stats.total_bytes;
        let mut blobs = Blobs::default();
        self.vmm
            .call("early_save", |vmm| vmm.early_save(&mut blobs))?;
        let callbacks = self.vmm.clone();
        let announce: Announce = Arc::new(move |role: Role| callbacks.thread_start(role));
        let target = Target {
            path: &self.path,
            caching,
            base,
        };
        let (writers, pacer) = (params.writers, &shared.pacer);
        let writer = Writer::begin(target, memory, writers, cancel, pacer, &announce)?;
        Ok((writer, blobs, announce))
    }

    /// Devices begin to be saved. The guest runs.
    pub(super) fn begin_devices(&mut self) -> Result<()> {
        let begun = self.shared.devices.begin(&self.vmm);
        begun.map_err(|e| self.shared.task.cancel.or("the save", e))
    }

    /// Saves the state of devices and the VMM's. The guest stands still.
    pub(super) fn save_state(&mut self, blobs: &mut Blobs) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let cancel = &shared.task.cancel;
        self.enter(State::Paused);
        cancel.check("the save")?;
        // A call that the cancel has ended is no failure of the device's.
        let stopped = shared.devices.stop(&self.vmm);
        stopped.map_err(|e| cancel.or("the save", e))?;
        devices::save(&shared.devices, &self.vmm, blobs, cancel)?;
        blobs.state_begins();
        self.vmm.call("save", |vmm| vmm.save(blobs))?;
        self.stats.state_bytes = blobs.bytes();
        cancel.check("the save")
    }

    /// Makes the file whole, with the guest as it was when `map` was its map. The image is then the
    /// newest of its chain.
    pub(super) fn finish(
        &mut self,
        writer: Writer,
        blobs: Blobs,
        source: Option<Source>,
        map: &Map,
        cancel: &Cancel,
    ) -> Result<()> {
        self.enter(State::Finishing);
        let id = writer.finish_image(blobs, cancel)?;
        self.stats.file_bytes = id.length;
        source.map_or(Ok(()), |mut source| source.settle(&self.path, id, map))
    }

    /// Adds to the figures. Returns whether it is time to renew them.
    pub(super) fn count(&mut self, put: &Put) -> bool {
        self.stats.data_pages += put.data_pages;
        self.stats.zero_pages += put.zero_pages;
        self.stats.ballooned_pages += put.ballooned_pages;
        self.stats.poisoned_pages += put.poisoned_pages;
        self.renewed.elapsed() >= RENEW
    }

    pub(super) fn renew(&mut self) {
        self.renewed = Instant::now();
        self.stats.elapsed = self.begun.elapsed();
        self.stats.advance();
        self.shared.task.publish(&self.stats);
    }

    pub(super) fn enter(&mut self, state: State) {
        self.stats.state = state;
        self.renew();
        self.vmm.event(EventKind::State, state.name().to_owned());
    }

    pub(super) fn pause(&mut self) -> Result<()> {
        self.shared.task.cancel.check("the save")?;
        self.shared.blockers.check()?;
        self.claim.comes_to(Stage::SavePaused);
        // From here on `resume` is due, whether `pause` succeeds or not.
        self.paused_at = Some(Instant::now());
        if self.shared.params.instant == SaveInstant::End {
            // The guest stands still: its last pages are not held back.
            self.shared.pacer.override_rate(None);
        }
        self.vmm.call("pause", |vmm| vmm.pause())
    }

    pub(super) fn resume(&mut self) -> Result<()> {
        self.resume_to(Stage::Kept)
    }

    /// Resumes the guest, which has come to `stage` when it runs.
    pub(super) fn resume_to(&mut self, stage: Stage) -> Result<()> {
        let Some(paused_at) = self.paused_at.take() else {
            return Ok(());
        };
        let resumed = self.shared.devices.resume(&self.vmm);
        let resumed = resumed.and_then(|()| {
            self.vmm
                .call_that_makes_threads("resume", |vmm| vmm.resume())
        });
        self.stats.downtime = Some(paused_at.elapsed());
        self.claim.comes_to(match resumed {
            Ok(()) => stage,
            Err(_) => Stage::Stands,
        });
        self.runs_again = resumed.is_ok() && stage == Stage::SavedRunning;
        resumed
    }
}
