//! The lanes of a migration, and the walk's outlet that they are together.
//!
//! Lane 0 is the migration thread's. It carries the pages, and every record that is not about
//! pages. The further lanes carry their final markers.

use super::announced::Announced;
use super::lane::Lane;
use crate::channel::{Channel, Io};
use crate::dirty::taken::Taken;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::migrate::params::Params;
use crate::runtime::Recall;
use crate::walk::{Outlet, Put};
use std::time::Duration;

/// The most markers that may wait for their acknowledgement: 16 GiB of pages, or a million runs.
const MARKERS_WAITING: usize = 256;

/// See the file's description.
#[derive(Debug)]
pub(super) struct Lanes {
    first: Lane,
    /// Those of the channels 1, 2 and so on.
    further: Vec<Lane>,
}

impl Lanes {
    /// A lane over each channel, channel 0 first; `None` without a channel.
    pub(super) fn over(channels: Vec<Channel>) -> Option<Lanes> {
        let mut lanes = channels.into_iter().map(Lane::new);
        Some(Lanes {
            first: lanes.next()?,
            further: lanes.collect(),
        })
    }

    /// Lane 0.
    pub(super) fn first(&mut self) -> &mut Lane {
        &mut self.first
    }

    /// All lanes, in the order of their channels.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Lane> {
        std::iter::once(&mut self.first).chain(&mut self.further)
    }

    fn each(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.first).chain(&self.further)
    }

    /// What became of all pages that were sent.
    pub(super) fn put(&self) -> Put {
        let mut put = Put::default();
        self.each().for_each(|lane| put += lane.put());
        put
    }

    /// Bytes that went over the connections.
    pub(super) fn sent(&self) -> u64 {
        self.each().map(Lane::sent).sum()
    }

    /// Pages sent and not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.each().map(Lane::unacknowledged).sum()
    }

    /// The longest [`Lane::silence`].
    pub(super) fn silence(&self) -> Option<Duration> {
        self.each().filter_map(Lane::silence).max()
    }

    /// What the destination said meanwhile on any of them.
    pub(super) fn listen(&mut self) -> Result<()> {
        self.all().try_for_each(Lane::listen)
    }

    /// Waits until the further lanes have every acknowledgement, after their final markers.
    pub(super) fn await_further(&mut self, params: &Params, io: &Io<'_>) -> Result<()> {
        let mut further = self.further.iter_mut();
        further.try_for_each(|lane| lane.await_acknowledgements(0, params, io))
    }

    /// If sending failed because the peer went away, its own word for why is better.
    pub(super) fn explain(&mut self, error: Error) -> Error {
        self.all().fold(error, |error, lane| lane.explain(error))
    }

    /// Gives everything that was not acknowledged back.
    pub(super) fn give_up(&mut self) {
        self.all().for_each(Lane::give_up);
    }

    /// Tells the destination why it is over, and closes.
    pub(super) fn abort(&mut self, error: &Error) {
        self.first.abort(error);
        self.further.iter().for_each(Lane::close);
    }
}

/// Lanes for the time of some steps, with the limits of those.
pub(super) struct Sending<'a, 'io> {
    pub(super) lanes: &'a mut Lanes,
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
        let lane = &mut self.lanes.first;
        let put = lane.send(&news, taken, recall, self.io)?;
        if lane.marker_is_due() {
            lane.send_marker(self.pass, false, self.io)?;
            lane.await_acknowledgements(MARKERS_WAITING, self.params, self.io)?;
        }
        Ok(put)
    }

    fn progress(&mut self) -> Result<()> {
        self.lanes.listen()
    }

    /// What is on its way, or in a socket's buffer, costs the destination time: a header of 32
    /// bytes that says that 2 MiB are zero, as long as 2 MiB of pages. None of it may be left
    /// when the guest is paused.
    fn barrier(&mut self) -> Result<()> {
        self.lanes.first.send_marker(self.pass, false, self.io)?;
        self.lanes
            .first
            .await_acknowledgements(0, self.params, self.io)
    }

    fn finish(&mut self) -> Result<()> {
        let news = self.announced.news(self.memory, None)?;
        self.lanes.first.say_encoded(&news, self.io)?;
        let pass = self.pass;
        self.lanes
            .all()
            .try_for_each(|lane| lane.send_marker(pass, true, self.io))
    }
}
