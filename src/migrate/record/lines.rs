//! The lines of a recording as text: one JSON object each, whose `kind` says what it is, and whose
//! `time_ns` counts from the beginning of the recording. `docs/recording.md` has all fields. A reader
//! ignores fields and kinds that it does not know; a line that means something else gets another version.

use super::params::{Frame, RecordParams, RECORD_VERSION};
use super::tape::Heard;
use crate::error::Error;
use crate::migrate::report::{nanos, LaneStats, Stats};
use crate::migrate::steering::forecast::Forecast;
use serde::Serialize;
use std::time::Instant;

/// A line, with its newline; empty when there is none.
pub(super) struct Line(Vec<u8>);

impl Line {
    fn new(object: &impl Serialize) -> Line {
        let mut text = serde_json::to_vec(object).unwrap_or_default();
        if !text.is_empty() {
            text.push(b'\n');
        }
        Line(text)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// An event of the migration.
    pub(super) fn event(begun: Instant, heard: &Heard) -> Line {
        #[derive(Serialize)]
        struct Event<'a> {
            time_ns: u64,
            kind: &'static str,
            event: &'static str,
            message: &'a str,
        }
        Line::new(&Event {
            time_ns: nanos(heard.at.saturating_duration_since(begun)),
            kind: "event",
            event: heard.kind.name(),
            message: &heard.message,
        })
    }
}

/// The first line.
pub(super) fn begin(params: &RecordParams) -> Line {
    #[derive(Serialize)]
    struct Begin<'a> {
        time_ns: u64,
        kind: &'static str,
        version: u32,
        library: &'static str,
        what: &'a str,
        interval_ns: u64,
    }
    Line::new(&Begin {
        time_ns: 0,
        kind: "begin",
        version: RECORD_VERSION,
        library: env!("CARGO_PKG_VERSION"),
        what: &params.what,
        interval_ns: nanos(params.interval),
    })
}

/// The figures of a moment. `dropped`: how many lines were dropped before.
pub(super) fn stats(begun: Instant, frame: &Frame, dropped: u64) -> Line {
    #[derive(Serialize)]
    struct Now<'a> {
        time_ns: u64,
        kind: &'static str,
        #[serde(flatten)]
        stats: Stats,
        forecast: Option<&'a Forecast>,
        lanes: &'a [LaneStats],
        dropped: u64,
    }
    // Channels that the other side may have and does not use are all zero.
    let used = frame.lanes.iter().rposition(|lane| lane.wire_bytes > 0);
    let lanes = &frame.lanes[..used.map_or(frame.lanes.len().min(1), |last| last + 1)];
    Line::new(&Now {
        time_ns: nanos(begun.elapsed()),
        kind: "stats",
        stats: frame.stats,
        forecast: frame.forecast.as_ref(),
        lanes,
        dropped,
    })
}

/// The last line of a migration that is over.
pub(super) fn end(begun: Instant, error: Option<&Error>, dropped: u64) -> Line {
    #[derive(Serialize)]
    struct End<'a> {
        time_ns: u64,
        kind: &'static str,
        error: i32,
        message: &'a str,
        dropped: u64,
    }
    Line::new(&End {
        time_ns: nanos(begun.elapsed()),
        kind: "end",
        error: error.map_or(0, |error| error.kind() as i32),
        message: error.map_or("", Error::message),
        dropped,
    })
}
