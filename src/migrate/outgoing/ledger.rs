//! Pages that were sent on a lane and are not acknowledged, and the markers between them.

use crate::dirty::taken::Taken;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::wire::{Marker, MARKER_FLAG_FINAL};
use std::collections::VecDeque;
use std::time::Instant;

/// After so many pages a marker is due, so that the account stays short.
const MARKER_PAGES: u64 = 16 << 10;
/// Or after so many runs.
const MARKER_RUNS: usize = 4096;

/// See the file's description. Dropped, it puts back what was not acknowledged.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The last marker, and what it will say: all that was sent so far.
    marker: Marker,
    /// Each lot with the number of the first marker behind it.
    lots: VecDeque<(u64, Taken)>,
    /// How many pages those are.
    pages: u64,
    /// The newest marker that was acknowledged.
    acknowledged: u64,
    /// Pages and runs sent since the last marker.
    since_marker: (u64, usize),
    /// Since when the destination has had markers to acknowledge and has acknowledged none.
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
            acknowledged: 0,
            since_marker: (0, 0),
            silent_since: None,
        }
    }

    /// Room for one more lot: to be had before its first byte is sent.
    pub(super) fn make_room(&mut self) -> Result<()> {
        fallible::reserve_back(&mut self.lots, 1, "the account of what is sent")
    }

    /// Pages have been sent, as so many records. There is room for them.
    pub(super) fn sent(&mut self, taken: Taken, records: u64, data_pages: u64, zero_pages: u64) {
        let pages = taken.pages().0;
        self.marker.records += records;
        self.marker.data_pages += data_pages;
        self.marker.zero_pages += zero_pages;
        self.since_marker.0 += pages;
        self.since_marker.1 += taken.run_count();
        self.pages += pages;
        self.lots.push_back((self.marker.number + 1, taken));
    }

    /// Pages sent and not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.pages
    }

    /// Markers sent and not acknowledged.
    pub(super) fn markers_waiting(&self) -> usize {
        (self.marker.number - self.acknowledged) as usize
    }

    /// Since when the destination has had markers to acknowledge and has acknowledged none; `None`
    /// where it has none.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// Whether enough was sent since the last marker for another.
    pub(super) fn marker_is_due(&self) -> bool {
        let (pages, runs) = self.since_marker;
        pages >= MARKER_PAGES || runs >= MARKER_RUNS
    }

    /// The next marker: the destination acknowledges it when all before it is in memory.
    pub(super) fn next_marker(&mut self, pass: u32, last: bool) -> Marker {
        self.marker.number += 1;
        self.marker.pass = pass;
        self.marker.flags = if last { MARKER_FLAG_FINAL } else { 0 };
        self.since_marker = (0, 0);
        self.silent_since.get_or_insert_with(Instant::now);
        self.marker
    }

    /// The destination has acknowledged a marker, and so all before it. It may leave markers
    /// out, and never goes back.
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
        while self.lots.front().is_some_and(|(n, _)| *n <= number) {
            if let Some((_, taken)) = self.lots.pop_front() {
                self.pages -= taken.pages().0;
                taken.delivered();
            }
        }
        self.silent_since = (self.markers_waiting() > 0).then(Instant::now);
        Ok(())
    }

    /// Gives everything that was not acknowledged back.
    pub(super) fn give_up(&mut self) {
        self.lots.clear();
        self.pages = 0;
    }
}
