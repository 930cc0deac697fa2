//! One lane of the destination as a value: a connection, and the steps of its page runs on their
//! way into guest memory. The thread that owns the value drives it: the migration's thread, or a
//! thread of the lane's own.
//!
//! A receiver takes page runs and markers, which come on every channel. Other records go to its
//! driver.

use super::account::Account;
use super::agreed::Agreed;
use super::devices::Pieces;
use super::figures::Figures;
use super::lane::{Incomer, Lane, Waits};
use super::lane_account::LaneAccount;
use super::placement::Placement;
use crate::channel::Channel;
use crate::error::{Error, Kind, Result};
use crate::memory::served::Served;
use crate::memory::{Memory, PageRun, PinRecall};
use crate::migrate::control;
use crate::migrate::lane_name::LaneName;
use crate::runtime::Limit;
use crate::wire::{self, list_len, Header, Marker, Piece, Record, RecordType, LIST_RUNS_MAX};
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
    /// Where pieces of devices' state go, when the source has devices.
    pieces: Option<Pieces>,
    /// Whether the marker of [`Came::Switch`] has come.
    switched: bool,
}

/// What the next record was, and what was done with it.
pub(super) enum Came {
    /// A run of pages, which is in memory now.
    Pages,
    /// A piece of a device's state, which is loaded, or kept for later.
    Piece,
    /// The marker behind the last page run, as [`Came::Marker`]. Pieces of stopped devices follow.
    PagesEnd,
    /// The marker behind the last page of a guest that ran at the source, as [`Came::Marker`]. Pages
    /// behind it are placed by [`Served`].
    Switch,
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
            pieces: None,
            switched: false,
        })
    }

    /// Sets what both sides have agreed on. Called before the first run of pages.
    pub(super) fn agreed(&mut self, agreed: Agreed) {
        self.agreed = agreed;
    }

    /// Sets where pieces of devices' state go. Called before the first run of pages, when the source
    /// has devices.
    pub(super) fn takes_pieces(&mut self, pieces: Pieces) {
        self.pieces = Some(pieces);
    }

    /// Pages that come from here on are placed by `served`.
    pub(super) fn serve(&mut self, served: &Arc<Served>) {
        self.switched = true;
        self.placement.serve(Arc::clone(served));
    }

    /// It belongs to a session whose switch is over, and takes no page.
    pub(super) fn is_switched(&mut self) {
        self.switched = true;
        self.placement.stop_prefault();
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

    /// Takes the next record, whose header has to come by `begins`. `None` for a record that may be
    /// skipped: the source only says that it is there.
    pub(super) fn take_or_skip(
        &mut self,
        waits: &Waits<'_>,
        begins: Limit,
    ) -> Result<Option<Came>> {
        let came = self
            .lane
            .next_or_skipped(waits, begins, "pages or a marker");
        let taken = came.and_then(|came| came.map(|came| self.handle(came, waits)).transpose());
        self.lane.named(taken)
    }

    fn take_one(&mut self, waits: &Waits<'_>, begins: Limit) -> Result<Came> {
        let came = self.lane.next_by(waits, begins, "pages or a marker")?;
        self.handle(came, waits)
    }

    fn handle(&mut self, came: Incomer, waits: &Waits<'_>) -> Result<Came> {
        match came {
            Incomer::Pages(kind, header) => {
                if self.pages_ended() {
                    let expected = "DEVICE or the final MARKER, after the end of the pages";
                    return Err(control::unexpected(kind, expected));
                }
                self.pages(kind, &header, waits)?;
                self.lane.flush()?;
                self.renew_figures();
                Ok(Came::Pages)
            }
            Incomer::Piece(header) if self.pieces.is_some() => {
                self.piece(&header, waits)?;
                self.lane.flush()?;
                Ok(Came::Piece)
            }
            Incomer::Control(Record::Marker(marker)) => {
                self.check_end(&marker)?;
                self.lane.marker(&marker)?;
                self.figures.pass(marker.pass);
                self.renew_figures();
                if marker.begins_postcopy() {
                    self.switched = true;
                    // Pages are discarded soon, and no helper may back them again.
                    self.placement.stop_prefault();
                    return Ok(Came::Switch);
                }
                // The host may have changed our memory's state since the last record.
                self.account.refresh();
                match (&mut self.pieces, marker.ends_pages()) {
                    (Some(pieces), true) => {
                        pieces.end_pages();
                        Ok(Came::PagesEnd)
                    }
                    _ => Ok(Came::Marker(marker)),
                }
            }
            other => Ok(Came::Other(other)),
        }
    }

    /// Whether the marker of [`Came::Switch`] has come.
    pub(super) fn switched(&self) -> bool {
        self.switched
    }

    /// Whether the marker behind the last page run has come.
    pub(super) fn pages_ended(&self) -> bool {
        self.pieces.as_ref().is_some_and(Pieces::pages_ended)
    }

    /// Refuses a marker that ends the pages or the lane out of turn.
    fn check_end(&self, marker: &Marker) -> Result<()> {
        let ended = self.pages_ended();
        if marker.begins_postcopy() && (self.switched || !self.agreed.postcopy) {
            let what = match self.switched {
                true => "one MARKER that begins postcopy",
                false => {
                    "no MARKER that begins postcopy: the feature \"postcopy\" is not agreed on"
                }
            };
            return Err(Error::new(Kind::Protocol, format!("expected {what}")));
        }
        let expected = match (self.pieces.is_some(), marker.ends_pages()) {
            (false, true) => "no MARKER that ends the pages, without devices",
            (true, true) if ended => "one MARKER that ends the pages",
            (true, false) if !ended && marker.is_final() => {
                "a MARKER that ends the pages before the final one"
            }
            _ => return Ok(()),
        };
        let message = format!(
            "expected {expected}, found one with the flags {:#x}",
            marker.flags
        );
        Err(Error::new(Kind::Protocol, message))
    }

    fn piece(&mut self, header: &Header, waits: &Waits<'_>) -> Result<()> {
        let payload = self
            .lane
            .payload(header, &waits.record(header, Limit::never()))?;
        let piece = Piece::decode(header, &payload)?;
        let Some(pieces) = &mut self.pieces else {
            return Ok(());
        };
        match pieces.take(&piece, payload, waits)? {
            Some(loaded) => self.lane.say(&Record::DeviceLoaded(loaded)),
            None => Ok(()),
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
        if placement.is_served() {
            let zeros = matches!(
                kind,
                RecordType::Zeros | RecordType::Ballooned | RecordType::ZerosList
            );
            if zeros {
                let io = waits.record(header, Limit::never());
                let pages = placement.place_zeros(lane, account, header, listed, &io)?;
                match kind {
                    RecordType::ZerosList => lane.taken_list(kind, header, pages),
                    _ => lane.taken(kind, header),
                }
                return Ok(());
            }
        }
        match kind {
            RecordType::Zeros => account.zeros(header)?,
            RecordType::Ballooned => account.ballooned(header)?,
            RecordType::ZerosList => {
                let mut list = [0; list_len(LIST_RUNS_MAX)];
                let list = &mut list[..list_len(header.count)];
                let io = waits.record(header, Limit::never());
                lane.payload_begins(list, header, &io)?;
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
