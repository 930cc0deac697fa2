//! The figures of one lane. The lane's thread renews them, and any thread reads them.

use super::lane::Lane;
use super::prefault::Backed;
use crate::migrate::report::{nanos, LaneState, LaneStats};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The figures, as the file's description says. They fill two cache lines of their own, so that
/// lanes do not wait for each other.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Figures {
    wire_bytes: AtomicU64,
    data_pages: AtomicU64,
    zero_pages: AtomicU64,
    ballooned_pages: AtomicU64,
    compressed_pages: AtomicU64,
    compressed_bytes: AtomicU64,
    prefaulted_pages: AtomicU64,
    prefault_failures: AtomicU64,
    waited_nanos: AtomicU64,
    pass: AtomicU32,
    /// Whether the lane's final marker has come.
    done: AtomicBool,
}

impl Figures {
    /// Renews the figures: what came on the lane so far, and what was backed for it.
    pub(super) fn renew(&self, lane: &Lane, prefaulted: Backed) {
        let (counts, wire) = (lane.counts(), lane.counters());
        self.wire_bytes.store(wire.received.0, Relaxed);
        self.data_pages.store(counts.data_pages, Relaxed);
        self.zero_pages.store(counts.zero_pages, Relaxed);
        self.ballooned_pages.store(counts.ballooned_pages, Relaxed);
        self.compressed_pages
            .store(counts.compressed_pages, Relaxed);
        self.compressed_bytes
            .store(counts.compressed_bytes, Relaxed);
        self.prefaulted_pages.store(prefaulted.pages, Relaxed);
        self.prefault_failures.store(prefaulted.failures, Relaxed);
        self.waited_nanos.store(nanos(wire.recv_waited), Relaxed);
    }

    /// The number of pages that came compressed, and their compressed size in bytes.
    pub(super) fn compressed(&self) -> (u64, u64) {
        let (pages, bytes) = (&self.compressed_pages, &self.compressed_bytes);
        (pages.load(Relaxed), bytes.load(Relaxed))
    }

    /// Notes that everything on the lane has come.
    pub(super) fn done(&self) {
        self.done.store(true, Relaxed);
    }

    /// Notes that the source is in `pass`. An earlier pass than the last one is ignored.
    pub(super) fn pass(&self, pass: u32) {
        self.pass.fetch_max(pass, Relaxed);
    }

    /// The last pass that the source has named on the lane.
    pub(super) fn last_pass(&self) -> u32 {
        self.pass.load(Relaxed)
    }

    /// The number of ballooned pages among the zero pages.
    pub(super) fn ballooned(&self) -> u64 {
        self.ballooned_pages.load(Relaxed)
    }

    /// The pages that were backed ahead of their contents.
    pub(super) fn prefaulted(&self) -> Backed {
        Backed {
            pages: self.prefaulted_pages.load(Relaxed),
            failures: self.prefault_failures.load(Relaxed),
        }
    }

    /// The figures as the user sees them.
    pub(super) fn stats(&self) -> LaneStats {
        LaneStats {
            state: match self.done.load(Relaxed) {
                true => LaneState::Idle,
                false => LaneState::Busy,
            },
            wire_bytes: self.wire_bytes.load(Relaxed),
            data_pages: self.data_pages.load(Relaxed),
            zero_pages: self.zero_pages.load(Relaxed),
            idle: Duration::from_nanos(self.waited_nanos.load(Relaxed)),
            ..LaneStats::default()
        }
    }
}
