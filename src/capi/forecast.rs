//! What a migration is expected to become: the structure that forecasts fill.

use super::structs::sized;
use crate::migrate::report::nanos;
use crate::migrate::Forecast;

/// A forecast of a migration: whether it will converge and what it will take. It assumes that guest
/// and link go on as they were seen last. Example: 64 GiB over 10 Gb/s take 55 s. Meanwhile the guest
/// writes 6 GiB of them again, so a second pass takes 5 s and a third one less. The forecast walks
/// through these passes beforehand.
///
/// When the migration will not converge, `limit_us`, `bandwidth` and `throttle` say what would make
/// it converge: the smallest of each, the two others being as they are. They are 0 when no value of
/// this one alone is enough, and when the migration converges as it is.
///
/// Experimental: what is forecast, and from which figures, may change.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct brant_forecast {
    /// sizeof(brant_forecast).
    pub size: usize,
    /// 1 when the migration ends with a switchover, else 0.
    pub converges: u32,
    /// Passes over memory in all, from the first.
    pub passes: u32,
    /// Microseconds from the migration's start to its end.
    pub time_us: u64,
    /// Bytes sent in all. What is to come counts as compressed as what was sent.
    pub bytes: u64,
    /// Microseconds that the guest will stand still. When the migration does not converge: what they
    /// would be after so many passes.
    pub downtime_us: u64,
    /// The lowest downtime limit with which the migration converges, microseconds.
    pub limit_us: u64,
    /// The lowest bandwidth with which the migration converges, bytes a second.
    pub bandwidth: u64,
    /// The lowest throttle of all vCPUs with which the migration converges, in percent of the time
    /// that they run now.
    pub throttle: u32,
    /// 1 as long as no sync has shown what the guest writes: it then counts as writing nothing, so
    /// passes, time, bytes and downtime are the least that they can be, and `converges` is a guess.
    /// Without a policy that slows the guest, that is the whole first pass. Else 0.
    pub guessed: u32,
}

sized!(brant_forecast);

impl brant_forecast {
    /// What is filled in before there is a forecast: zeros.
    pub(super) fn nothing() -> Self {
        // SAFETY: numbers only.
        unsafe { std::mem::zeroed() }
    }
}

impl From<&Forecast> for brant_forecast {
    fn from(forecast: &Forecast) -> Self {
        let micros = |time| nanos(time) / 1000;
        let help = forecast.remedies;
        brant_forecast {
            size: 0,
            converges: u32::from(forecast.converges),
            passes: forecast.passes,
            time_us: micros(forecast.time),
            bytes: forecast.bytes as u64,
            downtime_us: micros(forecast.downtime),
            limit_us: help.limit.map_or(0, micros),
            bandwidth: help.bandwidth.map_or(0, |bandwidth| bandwidth as u64),
            throttle: help.throttle.map_or(0, u32::from),
            guessed: u32::from(forecast.guessed),
        }
    }
}
