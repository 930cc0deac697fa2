//! The account of pages that were sent on a lane and are not acknowledged, with the markers between
//! them.

use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::steering::delivery::Carried;
use crate::units::PAGE_SIZE;
use crate::wire::{Marker, MARKER_FLAG_FINAL, MARKER_FLAG_PAGES_END, MARKER_FLAG_POSTCOPY};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// After this many pages a marker is due, so that the account stays short.
const MARKER_PAGES: u64 = 16 << 10;
/// After this many runs a marker is due as well.
const MARKER_RUNS: usize = 4096;
/// After this time a marker is due when anything was sent. On a slow link, acknowledgements thus come
/// often enough to measure it.
const MARKER_TIME: Duration = Duration::from_millis(100);

/// See the file's description. When it is dropped, pages that were not acknowledged are put back.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The last marker, and what the next one will say: the totals of all that was sent so far.
    marker: Marker,
    /// Each batch of sent pages, and each piece of a device's state, with the number of the first
    /// marker behind it.
    lots: VecDeque<(u64, Option<Taken>, Carried)>,
    /// How many pages `lots` holds.
    pages: u64,
    /// All that was sent, and all that was acknowledged.
    loaded: Carried,
    delivered: Carried,
    /// The marker of the switch to postcopy. 0 when there was none, and on connections of a recovery.
    switch: u64,
    /// How many pages behind that marker were acknowledged.
    arrived: u64,
    /// The newest marker that was acknowledged.
    acknowledged: u64,
    /// Pages and runs sent since the last marker.
    since_marker: (u64, usize),
    /// When the first page after the last marker was sent.
    unmarked_since: Instant,
    /// The moment since which the destination has had markers to acknowledge and has acknowledged
    /// none.
    silent_since: Option<Instant>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Ledger {
            marker: Marker {
                number: 0,
                pass: 0,
                flags: 0,
                records: 0,
                data_pages: 0,
                zero_pages: 0,
            },
            lots: VecDeque::new(),
            pages: 0,
            loaded: Carried::default(),
            delivered: Carried::default(),
            switch: 0,
            arrived: 0,
            acknowledged: 0,
            since_marker: (0, 0),
            unmarked_since: Instant::now(),
            silent_since: None,
        }
    }

    /// Makes room for one more entry of `lots`. This is called before the first byte of a batch is
    /// sent.
    pub(super) fn make_room(&mut self) -> Result<()> {
        fallible::reserve_back(&mut self.lots, 1, "the account of what is sent")
    }

    /// Records that pages have been sent in `records` records, and that the link carried `carried` for
    /// them. [`Ledger::make_room`] has made the room.
    pub(super) fn sent(
        &mut self,
        taken: Taken,
        records: u64,
        data_pages: u64,
        zero_pages: u64,
        carried: Carried,
    ) {
        let pages = taken.pages().0;
        self.marker.records += records;
        self.marker.data_pages += data_pages;
        self.marker.zero_pages += zero_pages;
        if self.since_marker.0 == 0 {
            self.unmarked_since = Instant::now();
        }
        self.since_marker.0 += pages;
        self.since_marker.1 += taken.run_count();
        self.pages += pages;
        self.loaded += carried;
        self.lots
            .push_back((self.marker.number + 1, Some(taken), carried));
    }

    /// Records that a piece of a device's state of `bytes` bytes has been sent. [`Ledger::make_room`]
    /// has made the room.
    pub(super) fn sent_piece(&mut self, bytes: u64) {
        let pages = bytes.div_ceil(PAGE_SIZE);
        if self.since_marker.0 == 0 {
            self.unmarked_since = Instant::now();
        }
        self.since_marker.0 += pages;
        let carried = Carried {
            bytes,
            read: pages,
            whole: pages,
        };
        self.loaded += carried;
        self.lots.push_back((self.marker.number + 1, None, carried));
    }

    /// All that the destination has acknowledged so far.
    pub(super) fn delivered(&self) -> Carried {
        self.delivered
    }

    /// How many of the pages that were sent since the switch to postcopy are acknowledged.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Bytes that were sent and are not acknowledged.
    pub(super) fn on_the_way(&self) -> u64 {
        self.loaded.bytes - self.delivered.bytes
    }

    /// How many pages were sent and are not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.pages
    }

    /// How many markers were sent and are not acknowledged.
    pub(super) fn markers_waiting(&self) -> usize {
        (self.marker.number - self.acknowledged) as usize
    }

    /// The moment since which the destination has had markers to acknowledge and has acknowledged
    /// none. `None` when no marker waits for its acknowledgement.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// Whether so much was sent since the last marker that another is due.
    pub(super) fn marker_is_due(&self) -> bool {
        let (pages, runs) = self.since_marker;
        pages >= MARKER_PAGES
            || runs >= MARKER_RUNS
            || pages > 0 && self.unmarked_since.elapsed() >= MARKER_TIME
    }

    /// Makes the next marker. The destination acknowledges the marker when everything before it is
    /// in memory.
    pub(super) fn next_marker(&mut self, pass: u32, last: bool) -> Marker {
        self.marker.number += 1;
        self.marker.pass = pass;
        self.marker.flags = if last { MARKER_FLAG_FINAL } else { 0 };
        self.since_marker = (0, 0);
        self.silent_since.get_or_insert_with(Instant::now);
        self.marker
    }

    /// Makes the marker behind the last page run, with pieces of stopped devices to follow.
    pub(super) fn pages_end(&mut self, pass: u32) -> Marker {
        let marker = self.next_marker(pass, false);
        Marker {
            flags: MARKER_FLAG_PAGES_END,
            ..marker
        }
    }

    /// Makes the marker behind the last page of a guest that ran here.
    pub(super) fn postcopy(&mut self, pass: u32) -> Marker {
        let marker = self.next_marker(pass, false);
        (self.switch, self.arrived) = (marker.number, 0);
        Marker {
            flags: MARKER_FLAG_POSTCOPY,
            ..marker
        }
    }

    /// Whether pages were sent since the last marker.
    pub(super) fn has_unmarked(&self) -> bool {
        self.since_marker.0 > 0
    }

    /// Records the acknowledgement of marker `number`, and so of everything before that marker. The
    /// destination may skip markers, and never goes back.
    pub(super) fn acknowledged(&mut self, number: u64) -> Result<()> {
        let waiting = self.acknowledged + 1..=self.marker.number;
        if !waiting.contains(&number) {
            return Err(Error::new(
                Kind::Protocol,
                format!(
                    "the destination acknowledged marker {number}; {}",
                    match waiting.is_empty() {
                        false => format!("waiting are {} to {}", waiting.start(), waiting.end()),
                        true => "none is waiting for that".to_owned(),
                    }
                ),
            ));
        }
        self.acknowledged = number;
        while self.lots.front().is_some_and(|(n, ..)| *n <= number) {
            if let Some((behind, taken, carried)) = self.lots.pop_front() {
                self.delivered += carried;
                if let Some(taken) = taken {
                    self.pages -= taken.pages().0;
                    if behind > self.switch {
                        self.arrived += taken.pages().0;
                    }
                    taken.delivered();
                }
            }
        }
        self.silent_since = (self.markers_waiting() > 0).then(Instant::now);
        Ok(())
    }

    /// Puts back all pages that were not acknowledged.
    pub(super) fn give_up(&mut self) {
        self.lots.clear();
        self.pages = 0;
        self.loaded = self.delivered;
    }
}
