//! An outgoing migration as its recording sees it: figures, forecast and channels of one moment.

use super::leaving::Leaving;
use crate::fallible;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::common::Migration;
use crate::migrate::handle::Handle;
use crate::migrate::record::{Frame, Record, Recordable};
use crate::migrate::steering::forecast::Forecast;
use crate::migrate::steering::stall::Cause;
use crate::migrate::switchover::source::State;
use std::time::Instant;

impl Migration<Leaving, State> {
    /// Why nothing moves in the middle of a pass.
    pub(super) fn standing(&self) -> Option<Cause> {
        self.guest.standstill().cause(self.guest.pacer.moved_at())
    }

    /// The forecast of this moment.
    pub(super) fn forecast(&self) -> Option<Forecast> {
        let sent = self.guest.pacer.sent();
        self.guest.foresight.forecast(Instant::now(), sent)
    }
}

impl Recordable for Migration<Leaving, State> {
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
        let channels = self.params.channels;
        let lanes = (0..channels).filter_map(|n| self.handle.lane_stats(channels, n).ok());
        Frame {
            stats: self.handle.stats(self.standing()),
            forecast: self.forecast(),
            lanes: fallible::collect(lanes, "figures").unwrap_or_default(),
        }
    }
}
