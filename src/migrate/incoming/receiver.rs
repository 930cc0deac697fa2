//! One lane of the destination as a value: a connection, and the steps of its page runs on their
//! way into guest memory. The thread that owns the value drives it: the migration's thread, or a
//! thread of the lane's own.
//!
//! A receiver takes page runs and markers, which come on every channel. Other records go to its
//! driver.

use super::account::Account;
use super::agreed::Agreed;
use super::figures::Figures;
use super::lane::{Incomer, Lane, Waits};
use super::lane_account::LaneAccount;
use super::placement::Placement;
use crate::channel::Channel;
use crate::error::Result;
use crate::memory::{Memory, PageRun, PinRecall};
use crate::migrate::lane_name::LaneName;
use crate::runtime::Limit;
use crate::wire::{self, list_len, Header, Marker, Record, RecordType, LIST_RUNS_MAX};
use std::sync::Arc;

/// One lane, as the file's description says.
pub(super) struct Receiver {
    /// The channel's number in the session.
    pub(super) channel: u16,
    pub(super) lane: Lane,
    pub(super) figures: Arc<Figures>,
    account: LaneAccount,
    placement: Placement,
    /// A buffer for the runs of one record that has a list of them.
    listed: Vec<PageRun>,
    /// Raised when a block is being removed.
    recall: Arc<PinRecall>,
    agreed: Agreed,
}

/// What the next record was, and what was done with it.
pub(super) enum Came {
    /// A run of pages, which is in memory now.
    Pages,
    /// A marker whose counts are right. Its acknowledgement is sent, or will be when there is room.
    Marker(Marker),
    /// Another record, with which nothing was done yet.
    Other(Incomer),
}

impl Receiver {
    /// A receiver for pages that come on `channel` for the blocks of `account`. `name` is its name in
    /// errors.
    ///
    /// # Errors
    /// `Kernel` when no descriptor can be had.
    pub(super) fn new(
        number: u16,
        name: LaneName,
        channel: Channel,
        memory: &Memory,
        account: &Account,
        placement: Placement,
    ) -> Result<Self> {
        Ok(Receiver {
            channel: number,
            lane: Lane::new(channel, name),
            figures: Arc::default(),
            account: account.of_lane(),
            placement,
            listed: Vec::new(),
            recall: PinRecall::of(memory)?,
            agreed: Agreed::default(),
        })
    }

    /// Sets what both sides have agreed on. Called before the first run of pages.
    pub(super) fn agreed(&mut self, agreed: Agreed) {
        self.agreed = agreed;
    }

    /// The HELLO has said which channel of several this is.
    pub(super) fn is_channel(&mut self, number: u16) {
        self.channel = number;
        self.lane.is_channel(number);
    }

    /// Takes the next record, whose header has to come by `begins`.
    pub(super) fn take(&mut self, waits: &Waits<'_>, begins: Limit) -> Result<Came> {
        let taken = self.take_one(waits, begins);
        self.lane.named(taken)
    }

    fn take_one(&mut self, waits: &Waits<'_>, begins: Limit) -> Result<Came> {
        let came = self.lane.next_by(waits, begins, "pages or a marker")?;
        match came {
            Incomer::Pages(kind, header) => {
                self.pages(kind, &header, waits)?;
                self.lane.flush()?;
                self.renew_figures();
                Ok(Came::Pages)
            }
            Incomer::Control(Record::Marker(marker)) => {
                self.lane.marker(&marker)?;
                self.figures.pass(marker.pass);
                self.renew_figures();
                // The host may have changed our memory's state since the last record.
                self.account.refresh();
                Ok(Came::Marker(marker))
            }
            other => Ok(Came::Other(other)),
        }
    }

    fn pages(&mut self, kind: RecordType, header: &Header, waits: &Waits<'_>) -> Result<()> {
        let Receiver {
            lane,
            account,
            placement,
            listed,
            recall,
            agreed,
            ..
        } = self;
        agreed.check(kind, header)?;
        match kind {
            RecordType::Zeros => account.zeros(header)?,
            RecordType::Ballooned => account.ballooned(header)?,
            RecordType::ZerosList => {
                let mut list = [0; list_len(LIST_RUNS_MAX)];
                let list = &mut list[..list_len(header.count)];
                let io = waits.record(header, Limit::never());
                lane.payload_begins(list, &io)?;
                account.zeros_list(header, list, listed)?;
                lane.taken_list(kind, header, wire::listed_pages(list));
                return Ok(());
            }
            RecordType::PagesList | RecordType::CompressedList => {
                let io = waits.record(header, Limit::never());
                let pages = placement.place_list(lane, account, header, listed, recall, &io)?;
                lane.taken_list(kind, header, pages);
                return Ok(());
            }
            RecordType::Delta => {
                let io = waits.record(header, Limit::never());
                placement.place_changed(lane, account, header, recall, &io)?;
            }
            _ => {
                let io = waits.record(header, Limit::never());
                placement.place(lane, account, header, recall, &io)?;
            }
        }
        lane.taken(kind, header);
        Ok(())
    }

    /// Renews the lane's figures.
    pub(super) fn renew_figures(&self) {
        self.figures.renew(&self.lane, self.placement.prefaulted());
    }

    /// Called when no more pages come.
    pub(super) fn finish(&mut self) {
        self.placement.finish();
        self.figures.done();
    }
}
