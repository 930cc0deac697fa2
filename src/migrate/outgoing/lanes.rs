//! The lanes of a migration as the walk's outlet.
//!
//! There is one lane, driven on the migration's thread. Which stretch goes to which lane, and
//! lanes with threads of their own, are this file's to know.

use super::announced::Announced;
use super::lane::Lane;
use crate::channel::Io;
use crate::dirty::taken::Taken;
use crate::error::Result;
use crate::memory::Memory;
use crate::migrate::params::Params;
use crate::runtime::Recall;
use crate::walk::{Outlet, Put};

/// The most markers that may wait for their acknowledgement: 16 GiB of pages, or a million runs.
const MARKERS_WAITING: usize = 256;

/// Lanes for the time of some steps, with the limits of those.
pub(super) struct Sending<'a, 'io> {
    pub(super) lane: &'a mut Lane,
    pub(super) announced: &'a mut Announced,
    pub(super) memory: &'a Memory,
    pub(super) params: &'a Params,
    /// The pass, which markers say.
    pub(super) pass: u32,
    pub(super) io: &'a Io<'io>,
}

impl Outlet for Sending<'_, '_> {
    fn put(&mut self, taken: Taken, recall: &Recall) -> Result<Put> {
        let news = self.announced.news(self.memory, Some(&taken))?;
        let put = self.lane.send(&news, taken, recall, self.io)?;
        if self.lane.marker_is_due() {
            self.lane.send_marker(self.pass, false, self.io)?;
            let (params, io) = (self.params, self.io);
            self.lane
                .await_acknowledgements(MARKERS_WAITING, params, io)?;
        }
        Ok(put)
    }

    fn progress(&mut self) -> Result<()> {
        self.lane.listen()
    }

    /// What is on its way, or in a socket's buffer, costs the destination time: a header of 32
    /// bytes that says that 2 MiB are zero, as long as 2 MiB of pages. None of it may be left
    /// when the guest is paused.
    fn barrier(&mut self) -> Result<()> {
        self.lane.send_marker(self.pass, false, self.io)?;
        self.lane.await_acknowledgements(0, self.params, self.io)
    }

    fn finish(&mut self) -> Result<()> {
        let news = self.announced.news(self.memory, None)?;
        self.lane.say_encoded(&news, self.io)?;
        self.lane.send_marker(self.pass, true, self.io)
    }
}
