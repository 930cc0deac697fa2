//! The figures of an outgoing migration, as the VMM reads them.

use super::Driver;
use crate::dirty::tracker::ConsumerStats;
use crate::migrate::outgoing::lanes::Lanes;
use crate::migrate::params::PageChecksums;
use crate::migrate::report::{LaneState, LaneStats, ZeroCopyState};
use crate::migrate::steering::budget::millis;
use crate::migrate::steering::forecast::Forecast;
use crate::migrate::steering::{Facts, Moment};
use crate::migrate::switchover::source::State;
use crate::units::Pages;
use crate::vmm::EventKind;
use std::time::{Duration, Instant};

impl Driver {
    /// Brings the figures up to date and notifies the VMM: when `now` is set, or when the last time
    /// is long enough ago.
    pub(super) fn renew(&mut self, now: bool) {
        let Some(at) = self.common.renewed.due(now) else {
            return;
        };
        let elapsed = at - self.common.begun;
        self.common.stats.elapsed = elapsed;
        // Before the lanes are asked: a page that goes out meanwhile counts twice rather than never.
        let (tracked, remaining) = (self.consumer.stats(), self.consumer.to_read());
        self.note_lanes();
        self.note_postcopy(remaining);
        let stats = &mut self.common.stats;
        stats.throughput = self.common.meter.rate(elapsed, stats.wire_bytes);
        self.note_remaining(remaining);
        self.note_sources(&tracked);
        let facts = self.facts(Moment::Walking);
        self.note_steering(&facts);
        if !self.ended {
            self.note_promise(&facts);
            self.look_ahead(&facts);
        }
        self.common.shared.handle.publish(&self.common.stats);
    }

    /// What went over the connections, and how.
    fn note_lanes(&mut self) {
        let stats = &mut self.common.stats;
        let Some(lanes) = &self.lanes else {
            return;
        };
        stats.wire_bytes = self.sent_before + lanes.sent();
        stats.unacknowledged_pages = lanes.unacknowledged();
        let mut put = lanes.put();
        put += self.before;
        stats.data_pages = put.data_pages;
        stats.zero_pages = put.zero_pages;
        stats.hole_pages = put.hole_pages;
        stats.ballooned_pages = put.ballooned_pages;
        stats.poisoned_pages = put.poisoned_pages;
        stats.compressed_pages = put.compressed_pages;
        stats.compressed_bytes = put.compressed_bytes;
        stats.delta_pages = put.delta_pages;
        stats.delta_saved_bytes = put.delta_saved;
        stats.delta_missed_pages = put.delta_misses;
        stats.delta_overflowed_pages = put.delta_overflows;
        stats.uneven = lanes.uneven();
        let zero_copy = lanes.zero_copy();
        stats.zero_copied_bytes = zero_copy.without.0;
        stats.copied_anyway_bytes = zero_copy.anyway.0;
        stats.zero_copy_refused = zero_copy.refused;
        stats.encoded_pages = put.copied_pages;
        let checksums = self.common.shared.params.page_checksums == PageChecksums::On;
        stats.zero_copy = ZeroCopyState::of(&zero_copy, checksums, put.copied_pages > 0);
        // In the first pass, pages may follow that are not worth compressing.
        let for_good = match stats.zero_copy {
            ZeroCopyState::Encoded => checksums || stats.pass > 1,
            _ => true,
        };
        let off = stats.zero_copy.why_off();
        let off = off.filter(|_| for_good && !self.told_copies);
        self.told_copies |= off.is_some();
        if let Some(why) = off {
            let text = format!("pages are copied when they are sent: {why}");
            self.common.vmm.event(EventKind::Warning, text);
        }
        let shared = &self.common.shared;
        let over = self.ended;
        shared
            .handle
            .publish_lanes(shared.params.channels, |stats| {
                lanes.fill(stats);
                if over {
                    let closed = |lane: &mut LaneStats| lane.state = LaneState::Closed;
                    stats.iter_mut().for_each(closed);
                }
            });
    }

    /// What follows the guest after a switch to postcopy.
    fn note_postcopy(&mut self, remaining: Pages) {
        let stats = &mut self.common.stats;
        [stats.requests, stats.requested_pages] = self.counts.now();
        // Of a session that was given up, the pages that did not go stay in the figures.
        let state = self.common.shared.handle.state();
        let interrupted = matches!(
            state,
            State::Interrupted | State::Recovering | State::GivenUp
        );
        if self.ended {
            // As they were.
        } else if self.rest.is_some() || interrupted {
            let now = self.lanes.as_ref().map_or([0; 2], Lanes::arrived);
            [stats.urgent_pages, stats.bulk_pages] = sum(self.arrived_before, now);
            stats.missing_pages = remaining.0 + stats.unacknowledged_pages;
            if self.recovering && now != [0; 2] {
                stats.recoveries += 1;
                self.recovering = false;
            }
        } else if !matches!(state, State::Unanswered) {
            stats.missing_pages = 0;
        }
    }

    /// How much memory there is, and how much of it is left to send.
    fn note_remaining(&mut self, remaining: Pages) {
        let stats = &mut self.common.stats;
        stats.total_bytes = self
            .common
            .shared
            .guest
            .tracker
            .memory()
            .with_map(|map| map.total().0);
        if stats.pass == 0 {
            // Before the first pass marks all of memory, nothing is pending although all memory
            // remains.
            stats.remaining_bytes = stats.total_bytes.saturating_sub(stats.shared_bytes);
        } else if !self.ended {
            stats.remaining_bytes = remaining.bytes().0;
        }
    }

    /// What the devices and the dirty logs gave.
    fn note_sources(&mut self, tracked: &ConsumerStats) {
        let stats = &mut self.common.stats;
        let left = self.streams.left();
        stats.device_left_bytes = left.running.saturating_add(left.stopped);
        stats.device_running_bytes = self.streams.running();
        stats.device_stopped_bytes = self.streams.stopped();
        stats.device_time = self.streams.time;
        stats.syncs = tracked.syncs;
        stats.found_pages = tracked.found.0;
        stats.clear_calls = tracked.clear_calls;
        stats.longest_clear = tracked.longest_clear;
        stats.put_back_pages = tracked.put_back.0;
        stats.hinted_pages = tracked.hinted.0;
    }

    /// The measured rates, and what is done about them.
    fn note_steering(&mut self, facts: &Facts) {
        let stats = &mut self.common.stats;
        if let Some(measured) = self.course.bandwidth.estimate() {
            stats.bandwidth = Some(measured as u64);
        }
        stats.dirty_pages_per_second = facts.dirty_rate.map(|rate| rate as u64);
        stats.downtime_limit = Some(self.steer.limit());
        stats.throttle = self.steer.throttle().into();
        stats.limited_vcpus = self.steer.limited() as u64;
        stats.stall = self.steer.stalled().map(|stalled| stalled.cause);
    }

    /// What a switchover would cost now.
    fn note_promise(&mut self, facts: &Facts) {
        let measured = self.course.bandwidth.estimate();
        let stats = &mut self.common.stats;
        stats.unacknowledged_bytes = facts.unacknowledged.0;
        stats.round_trip = facts.round_trip;
        // The cap of the switchover alone is no measure of the bandwidth: the link may be slower.
        let link = measured.is_some() || facts.stated;
        stats.switchover_bandwidth = facts.bandwidth.filter(|_| link).map(|used| used as u64);
        if self.common.shared.guest.stood().is_some() {
            return;
        }
        let parts = facts.parts();
        if stats.pass > 0 && (link || facts.last_pass.is_some()) {
            stats.expected_downtime = facts.expected_downtime().or(stats.expected_downtime);
        }
        let fixed = parts.unwrap_or_default().fixed().total();
        let limit = self.steer.limit();
        stats.predict(limit.saturating_sub(fixed), facts.bandwidth);
    }

    /// Ends the downtime: the paused guest runs again, or nobody knows when it will.
    pub(super) fn stood_until_now(&mut self) {
        if let Some(stood) = self.common.shared.guest.stood() {
            self.common.stats.downtime = Some(stood);
        }
    }

    /// Divides the downtime into its parts, and tells the VMM when it was longer than the limit. By
    /// now nothing can be undone, because the destination was ready.
    pub(super) fn account_for(&mut self) {
        let limit = self.steer.limit();
        let stats = &mut self.common.stats;
        stats.account_for(self.last_bytes);
        let stood = stats.downtime.unwrap_or_default();
        let Some(over) = stood.checked_sub(limit).filter(|over| !over.is_zero()) else {
            return;
        };
        stats.overrun = over;
        let text = format!(
            "the guest stood still for {}, {} longer than the downtime limit: {}",
            millis(stood),
            millis(over),
            stats.why_longer(limit)
        );
        self.common.vmm.event(EventKind::Downtime, text);
    }

    pub(super) fn report(&mut self) {
        if self.common.shared.handle.state() == State::Completed {
            self.common.stats.progress = self.ahead.done();
            let stats = &self.common.stats;
            let outcome = Forecast {
                converges: true,
                passes: stats.pass,
                time: self.common.begun.elapsed(),
                bytes: self.sent() as f64,
                downtime: stats.downtime.unwrap_or_default(),
                ..Forecast::default()
            };
            self.common.shared.guest.foresight.completed(outcome);
            self.common.stats.time_left = Some(Duration::ZERO);
            self.common.stats.remaining_bytes = 0;
        } else {
            self.common.stats.time_left = None;
            let guest = &self.common.shared.guest;
            guest.foresight.freeze(Instant::now(), guest.pacer.sent());
        }
        self.renew(true);
    }

    pub(super) fn pages_sent(&self) -> u64 {
        let put = self.lanes.as_ref().map(Lanes::put).unwrap_or_default();
        put.data_pages + put.zero_pages
    }
}

pub(super) fn sum(one: [u64; 2], other: [u64; 2]) -> [u64; 2] {
    [one[0] + other[0], one[1] + other[1]]
}
