//! The figures as JSON.

use super::{nanos, Stats};
use crate::error::{Error, Kind, Result};
use crate::migrate::steering::forecast::Forecast;
use crate::migrate::steering::stall::Cause;
use crate::migrate::steering::Parts;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// The longest JSON of [`Stats::to_json`] and of the figures with their forecast, in bytes.
pub const JSON_MAX: usize = 8191;

fn json(figures: &impl Serialize) -> Result<String> {
    serde_json::to_string(figures).map_err(|e| Error::new(Kind::Internal, format!("JSON: {e}")))
}

impl Stats {
    /// The figures as one JSON object with a field for each of the structure's. Durations are
    /// nanoseconds, and their names end in `_ns`. An unknown figure is `null`, but an unknown
    /// downtime, part of it or `sync` is 0. `error` is 0 or the number of the [`Kind`]; `state` is
    /// the state's name.
    pub fn to_json(&self) -> Result<String> {
        json(self)
    }

    /// [`Stats::to_json`] with one more field, `forecast`.
    pub(in crate::migrate) fn to_json_with(self, forecast: Option<&Forecast>) -> Result<String> {
        #[derive(Serialize)]
        struct Both<'a> {
            #[serde(flatten)]
            stats: Stats,
            forecast: Option<&'a Forecast>,
        }
        let both = Both {
            stats: self,
            forecast,
        };
        json(&both)
    }
}

pub(super) fn as_cause<S: Serializer>(
    cause: &Option<Cause>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u32(cause.map_or(0, |cause| cause as u32))
}

pub(super) fn as_code<S: Serializer>(
    error: &Option<Kind>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_i32(error.map_or(0, |kind| kind as i32))
}

pub(super) fn as_nanos<S: Serializer>(
    time: &Duration,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u64(nanos(*time))
}

pub(super) fn as_nanos_or_0<S: Serializer>(
    time: &Option<Duration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u64(time.map_or(0, nanos))
}

pub(super) fn as_nanos_or_null<S: Serializer>(
    time: &Option<Duration>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    time.map(nanos).serialize(to)
}

pub(super) fn as_list_of_nanos<S: Serializer>(
    times: &[Duration],
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(times.iter().copied().map(nanos))
}

pub(super) fn as_promised<S: Serializer>(
    parts: &Parts,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let fields = [
        ("promised_pause_ns", parts.pause),
        ("promised_sync_ns", parts.sync),
        ("promised_save_ns", parts.save),
        ("promised_memory_ns", parts.memory),
        ("promised_state_ns", parts.state),
        ("promised_load_ns", parts.load),
        ("promised_round_trips_ns", parts.round_trips),
        ("promised_release_ns", parts.release),
        ("promised_run_ns", parts.run),
    ];
    let mut map = to.serialize_map(Some(fields.len()))?;
    for (name, part) in fields {
        map.serialize_entry(name, &nanos(part))?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_every_field_and_null_for_what_is_unknown() {
        let json = Stats::default().to_json().unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["state"], "idle");
        let unknown = [
            "bandwidth",
            "dirty_pages_per_second",
            "time_left_ns",
            "expected_downtime_ns",
            "promised_downtime_ns",
            "switchover_bandwidth",
            "round_trip_ns",
            "first_mismatch_block",
            "first_mismatch_page",
        ];
        for (name, value) in value.as_object().unwrap() {
            match name.as_str() {
                "state" => {}
                "aborted_pause_ns" => assert_eq!(*value, serde_json::json!([0, 0, 0])),
                name if unknown.contains(&name) => assert!(value.is_null(), "{name}"),
                name => assert_eq!(value, 0, "{name}"),
            }
        }
        assert_eq!(value.as_object().unwrap().len(), 102);
    }

    /// The largest JSON: each number has as many digits as there can be, and the state the longest name.
    #[test]
    fn no_json_is_longer_than_the_longest() {
        use crate::migrate::steering::forecast::Remedies;
        let forecast = Forecast {
            passes: u32::MAX,
            time: Duration::MAX,
            bytes: f64::MAX,
            downtime: Duration::MAX,
            remedies: Remedies {
                limit: Some(Duration::MAX),
                bandwidth: Some(f64::MAX),
                throttle: Some(u8::MAX),
            },
            ..Forecast::default()
        };
        let json = Stats::default().to_json_with(Some(&forecast)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        fn fill(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::Array(list) => list.iter_mut().for_each(fill),
                serde_json::Value::Number(_) | serde_json::Value::Null => *value = u64::MAX.into(),
                _ => {}
            }
        }
        for (name, value) in value.as_object_mut().unwrap() {
            match name.as_str() {
                // No state has so long a name.
                "state" => *value = "s".repeat(40).into(),
                _ => fill(value),
            }
        }
        let longest = value.to_string().len();
        println!("{longest}");
        assert!((JSON_MAX / 2..=JSON_MAX).contains(&longest), "{longest}");
    }

    #[test]
    fn json_tells_times_in_nanoseconds_and_the_error_by_its_number() {
        let stats = Stats {
            error: Some(Kind::Timeout),
            elapsed: Duration::from_millis(3),
            downtime: Some(Duration::from_nanos(7)),
            time_left: Some(Duration::MAX),
            ..Stats::default()
        };
        let value: serde_json::Value = serde_json::from_str(&stats.to_json().unwrap()).unwrap();
        assert_eq!(value["error"], -11);
        assert_eq!(value["elapsed_ns"], 3_000_000);
        assert_eq!(value["downtime_ns"], 7);
        assert_eq!(value["time_left_ns"], u64::MAX - 1);
    }
}
