//! An incoming migration as its recording sees it: figures and channels of one moment.

use super::arriving::Arriving;
use crate::fallible;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::common::Migration;
use crate::migrate::handle::Handle;
use crate::migrate::record::{Frame, Record, Recordable};
use crate::migrate::report::{LaneState, LaneStats};
use crate::migrate::switchover::destination::State;

impl Migration<Arriving, State> {
    /// The figures of a channel; all zero before the source has it.
    pub(super) fn lane(&self, channel: u32) -> LaneStats {
        let figures = self.guest.figures();
        let stats = figures.get(channel as usize).map(|figures| figures.stats());
        let mut stats = stats.unwrap_or_default();
        if self.handle.is_over() {
            stats.state = LaneState::Closed;
        }
        stats
    }
}

impl Recordable for Migration<Arriving, State> {
    type State = State;

    fn handle(&self) -> &Handle<State> {
        &self.handle
    }

    fn callbacks(&self) -> Callbacks {
        Migration::callbacks(self)
    }

    fn record(&self) -> &Record {
        &self.record
    }

    fn frame(&self) -> Frame {
        let channels = 0..self.guest.figures().len() as u32;
        let lanes = channels.map(|channel| self.lane(channel));
        Frame {
            stats: self.handle.stats(None),
            forecast: None,
            lanes: fallible::collect(lanes, "figures").unwrap_or_default(),
        }
    }
}
