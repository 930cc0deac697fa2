//! Level two: how fast a guest dirties its memory, without migrating it.

use super::error::{brant_error, invalid};
use super::forecast::brant_forecast;
use super::params::{brant_params, params};
use super::policy::{self, brant_policy};
use super::stats::BRANT_UNKNOWN;
use super::structs::{handle, put, put_optional, read, sized, write};
use super::tracker::brant_tracker;
use crate::error::{Error, Kind};
use crate::migrate::before::forecast_from;
use crate::rate::{Params, Probe, Rate, Way, SAMPLES_DEFAULT};
use crate::units::{Pages, PAGE_SIZE};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Measures the dirty rate of a tracker's guest; any number of times, one at a time.
///
/// Threads: any, several at once. `brant_rate_cancel` and `brant_rate_finish` end a measurement
/// that another thread makes. `brant_rate_free` is the last call: all others on it have returned
/// before it begins. The tracker may be freed before the measurement.
pub struct brant_rate {
    probe: Probe,
    /// The last measurement, and the pages a second of each vCPU in it.
    last: Mutex<(Option<Rate>, Vec<u64>)>,
}

/// By all logs of the tracker: every page that is written is counted. The guest pays a write fault
/// for each written page, twice in the period. Other consumers of the tracker lose no page by it.
pub const BRANT_RATE_BY_LOG: u32 = 0;
/// By the contents of some pages, read at the begin and the end of the period: an estimate, at no
/// cost to the guest. Works with a tracker that has no log. A page that is written with the
/// contents that it already has is not seen.
pub const BRANT_RATE_BY_SAMPLING: u32 = 1;

/// What a measurement measures. A field that is 0 has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_rate_params {
    /// sizeof(brant_rate_params).
    pub size: usize,
    /// The period of the measurement, milliseconds, 10 to 60000; default 1000. The rate depends on
    /// the period: see brant_dirty_rate.
    pub period_ms: u64,
    /// BRANT_RATE_BY_*.
    pub way: u32,
    /// By sampling: how many pages of each GiB are read, 1 to 262144; default 512. At most 16 GiB
    /// are read, twice.
    pub samples_per_gib: u32,
}

/// A dirty rate: distinct pages of 4 KiB that were written in the period, divided by its seconds. A
/// page that is written many times counts once. So a short period gives about the speed at which
/// the guest writes, and a long period tends to the number of different pages that it writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_dirty_rate {
    /// sizeof(brant_dirty_rate).
    pub size: usize,
    /// Distinct pages written in the period, divided by its seconds.
    pub pages_per_second: u64,
    /// pages_per_second in bytes: what a migration would have to send if it sent each page
    /// whole.
    pub bytes_per_second: u64,
    /// How far pages_per_second may be off, up or down. By sampling: half of the interval that
    /// holds the true figure in 95 of 100 measurements. By log: the uncertainty of when the
    /// period began and ended for each page.
    pub error_pages_per_second: u64,
    /// Distinct pages written in the period: counted, or estimated.
    pub written_pages: u64,
    /// Nanoseconds: how long the period really was.
    pub period_ns: u64,
    /// By log: of written_pages, those written in both halves of the period. If these are few, the
    /// guest goes on to new pages, and a longer period would find more. If these are nearly all,
    /// the guest writes to the same pages again and again, and written_pages is how many they are.
    /// BRANT_UNKNOWN by sampling.
    pub rewritten_pages: u64,
    /// By sampling: pages that were read. BRANT_UNKNOWN by log.
    pub sampled_pages: u64,
    /// By sampling: of those, pages that had changed. BRANT_UNKNOWN by log.
    pub changed_pages: u64,
    /// By log: 1 when a log failed, so that all its pages were counted, or when a log will deliver
    /// some pages only later; else 0.
    pub warnings: u64,
}

sized!(brant_rate_params, brant_dirty_rate);

impl From<&Rate> for brant_dirty_rate {
    fn from(rate: &Rate) -> Self {
        let pages = |pages: Option<Pages>| pages.map_or(BRANT_UNKNOWN, |pages| pages.0);
        brant_dirty_rate {
            size: 0,
            pages_per_second: rate.pages_per_second.round() as u64,
            bytes_per_second: (rate.pages_per_second * PAGE_SIZE as f64).round() as u64,
            error_pages_per_second: rate.error.ceil() as u64,
            written_pages: rate.written.0,
            period_ns: rate.period.as_nanos() as u64,
            rewritten_pages: pages(rate.rewritten),
            sampled_pages: pages(rate.sampled.map(|(read, _)| read)),
            changed_pages: pages(rate.sampled.map(|(_, changed)| changed)),
            warnings: u64::from(rate.warned),
        }
    }
}

/// Makes a measurement of the guest that `tracker` tracks. `parameters` may be NULL for the
/// defaults. Nothing is measured before `brant_rate_measure`. Free it with `brant_rate_free`.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_new(
    tracker: *mut brant_tracker,
    parameters: *const brant_rate_params,
    rate: *mut *mut brant_rate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let tracker = unsafe { handle(tracker, "tracker") }?;
        if rate.is_null() {
            return Err(invalid("rate is NULL"));
        }
        let mut params = Params::default();
        if !parameters.is_null() {
            // SAFETY: a structure by contract.
            let given = unsafe { read(parameters) }?;
            if given.period_ms != 0 {
                params.period = Duration::from_millis(given.period_ms);
            }
            params.way = match (given.way, given.samples_per_gib) {
                (BRANT_RATE_BY_LOG, _) => Way::Log,
                (BRANT_RATE_BY_SAMPLING, 0) => Way::Sample {
                    per_gib: SAMPLES_DEFAULT,
                },
                (BRANT_RATE_BY_SAMPLING, per_gib) => Way::Sample { per_gib },
                (other, _) => {
                    return Err(invalid(format!(
                        "brant_rate_params.way is BRANT_RATE_BY_LOG (0) or \
                         BRANT_RATE_BY_SAMPLING (1), not {other}"
                    )))
                }
            };
        }
        let made = Box::new(brant_rate {
            probe: Probe::new(Arc::clone(&tracker.tracker), params)?,
            last: Mutex::default(),
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(rate, "rate", Box::into_raw(made)) }
    })
}

/// Frees a measurement; NULL is fine. When another thread measures with it, call brant_rate_cancel,
/// join that thread, then free.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_free(rate: *mut brant_rate) {
    boundary!(or(), {
        if !rate.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(rate) });
        }
    })
}

/// Measures, and returns when the period is over (`brant_rate_finish` ends it early). The calling
/// thread waits, and the guest runs on. BRANT_E_CANCELLED after `brant_rate_cancel`; BRANT_E_BUSY
/// while another thread measures with `rate`, and for a guest in BRANT_GUEST_INCOMPLETE. By log the measurement is one more consumer of the
/// tracker (see brant_consumer), also beside a migration. Its start restores the protection of all
/// of the guest's memory, and its three syncs end rounds of free-page hints.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_measure(
    rate: *mut brant_rate,
    found: *mut brant_dirty_rate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let rate = unsafe { handle(rate, "rate") }?;
        if found.is_null() {
            return Err(invalid("brant_dirty_rate is NULL"));
        }
        let measured = rate.probe.measure()?;
        let filled = brant_dirty_rate::from(&measured);
        let period = measured.period.as_secs_f64();
        let by_vcpu = measured.per_vcpu.iter().flatten();
        let vcpus = by_vcpu.map(|pages| (*pages as f64 / period).round() as u64);
        let vcpus = vcpus.collect();
        *rate.last.lock().unwrap_or_else(|e| e.into_inner()) = (Some(measured), vcpus);
        // SAFETY: a structure by contract.
        unsafe { write(found, &filled) }
    })
}

/// Ends the period of the measurement that is in progress: `brant_rate_measure` returns the figures
/// until now. The call does not wait for that. Without a measurement in progress it does nothing.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_finish(
    rate: *const brant_rate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(rate, "rate") }?.probe.finish();
        Ok(())
    })
}

/// Pages a second that each vCPU wrote in the last measurement, where a log can tell vCPUs apart,
/// as KVM's rings do; At most `capacity` rates are put into `rates`, in the order of the numbers
/// that the vCPUs were added with. `*count` gets how many vCPUs are known, 0 when no log can tell
/// them apart. A page that two vCPUs wrote counts for both. A page that is written again after the
/// rings were emptied (when one is a quarter full, and at half of the period) counts again.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_get_vcpus(
    rate: *const brant_rate,
    rates: *mut u64,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let rate = unsafe { handle(rate, "rate") }?;
        if rates.is_null() && capacity > 0 {
            return Err(invalid("rates is NULL and its capacity is not 0"));
        }
        let last = rate.last.lock().unwrap_or_else(|e| e.into_inner());
        let vcpus = &last.1;
        for (i, pages) in vcpus.iter().take(capacity).enumerate() {
            // SAFETY: room for `capacity` of them by contract, which `i` is below.
            unsafe { rates.add(i).write(*pages) };
        }
        // SAFETY: null or a place by contract.
        unsafe { put_optional(count, vcpus.len()) };
        Ok(())
    })
}

/// Forecasts a migration of the guest by the last measurement, before there is a migration: over a
/// link that carries `bandwidth` bytes a second (not 0), with `parameters` (NULL: the defaults),
/// of which the downtime limit, the caps, the expected times and the total timeout count, and with
/// `policy` (NULL: none; see `brant_outgoing_set_policy`). All of the
/// guest's memory counts as contents that are not compressed. BRANT_E_STATE before the first
/// measurement.
///
/// A measurement cannot tell what the guest writes in more time than its period. By log the two
/// halves of the period show how the written pages become more with time, and the forecast assumes
/// that they go on like that. So a period about as long as memory takes over the link gives the best
/// forecast. Once the migration runs, ask `brant_outgoing_get_forecast`.
///
/// Experimental: what is forecast, and from which figures, may change.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_forecast(
    rate: *const brant_rate,
    parameters: *const brant_params,
    policy: *const brant_policy,
    bandwidth: u64,
    forecast: *mut brant_forecast,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let rate = unsafe { handle(rate, "rate") }?;
        // SAFETY: null or a structure by contract.
        let mut params = unsafe { params(parameters) }?;
        if !policy.is_null() {
            // SAFETY: a structure by contract.
            params.policy = unsafe { policy::policy(policy) }?;
        }
        params.check()?;
        // SAFETY: null or a structure by contract.
        unsafe { write(forecast, &brant_forecast::nothing()) }?;
        if bandwidth == 0 {
            return Err(invalid(
                "the bandwidth is bytes a second that the link carries, not 0",
            ));
        }
        let last = rate
            .last
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .0
            .clone();
        let Some(measured) = last else {
            return Err(Error::new(
                Kind::State,
                "a forecast needs a measurement: call brant_rate_measure first",
            ));
        };
        let found = forecast_from(&measured, rate.probe.memory_bytes(), bandwidth, &params);
        // SAFETY: a structure by contract.
        unsafe { write(forecast, &(&found).into()) }
    })
}

/// How far the measurement in progress is, in hundredths of a percent. 0 until the period has
/// begun. From 1 on, writes of the guest are seen. 9900 when the period is over, 10000 when the
/// measurement has succeeded. NULL: 0.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_progress(rate: *const brant_rate) -> u64 {
    boundary!(or 0, {
        // SAFETY: null or ours by contract.
        unsafe { rate.as_ref() }.map_or(0, |rate| u64::from(rate.probe.progress()))
    })
}

/// Ends the measurement that is in progress, and any later one, with BRANT_E_CANCELLED. The call
/// does not wait for the end.
#[no_mangle]
pub unsafe extern "C" fn brant_rate_cancel(
    rate: *const brant_rate,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(rate, "rate") }?.probe.cancel();
        Ok(())
    })
}
