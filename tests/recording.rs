//! Recordings of migrations: what is in them, and that no reader holds a migration up.

use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params, RecordParams, RECORD_VERSION,
};
use serde_json::Value;
use std::io::{pipe, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

/// A pair of sides, and a migration between them that completes.
fn moved(record: impl FnOnce(&Outgoing, &Incoming)) -> (Pair, Outgoing, Incoming) {
    let pair = Pair::new(&[ram("ram", 32 * 256)]);
    pair.source.ram("ram").fill_all(&mut Random(1));
    pair.source.track();
    let params = Params::default();
    let tracker = Arc::clone(&pair.source.tracker);
    let out = Outgoing::new(tracker, Blockers::new(), pair.from.clone(), params.clone()).unwrap();
    let memory = Arc::clone(&pair.destination.memory);
    let inc = Incoming::new(memory, pair.to.clone(), params).unwrap();
    record(&out, &inc);
    let (a, b) = UnixStream::pair().unwrap();
    inc.start(AcceptFrom::Connected(b.into())).unwrap();
    out.start(ConnectTo::Connected(a.into())).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a recorded migration");
    (pair, out, inc)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of_kind<'a>(lines: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["kind"] == kind)
}

#[test]
fn a_recording_has_the_figures_every_event_and_the_end_of_both_sides() {
    let mut files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let params = RecordParams {
        interval: 10 * MS,
        what: "a \"test\"".into(),
    };
    let to = files.each_ref().map(|file| file.try_clone().unwrap());
    let (pair, out, inc) = moved(|out, inc| {
        let [here, there] = to;
        out.record(here.into(), params.clone()).unwrap();
        inc.record(there.into(), params.clone()).unwrap();
        let again = out.record(tempfile::tempfile().unwrap().into(), params.clone());
        assert_eq!(again.unwrap_err().kind(), Kind::Exists);
    });
    let recorded = [out.end_record().unwrap(), inc.end_record().unwrap()];
    assert_eq!(out.end_record().unwrap_err().kind(), Kind::State);
    let mut all = Vec::new();
    for (file, recorded) in files.iter_mut().zip(&recorded) {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let lines = lines(&text);
        assert_eq!(recorded.error, None);
        assert_eq!((recorded.dropped, recorded.lines), (0, lines.len() as u64));
        assert_eq!(recorded.bytes, text.len() as u64);
        let times: Vec<_> = lines
            .iter()
            .map(|line| line["time_ns"].as_u64().unwrap())
            .collect();
        assert!(
            times.is_sorted_by(|a, b| a <= b || b + 1_000_000_000 > *a),
            "{times:?}"
        );
        assert_eq!(lines[0]["kind"], "begin");
        assert_eq!(lines[0]["version"], RECORD_VERSION);
        assert_eq!(lines[0]["what"], "a \"test\"");
        let end = lines.last().unwrap();
        assert_eq!((&end["kind"], &end["error"]), (&"end".into(), &0.into()));
        all.push(lines);
    }
    let last = of_kind(&all[0], "stats").last().unwrap();
    let stats = out.stats();
    assert_eq!(last["state"], "completed");
    assert_eq!(last["progress"], 10_000);
    assert_eq!(last["wire_bytes"], stats.wire_bytes);
    assert_eq!(
        last["downtime_ns"],
        stats.downtime.unwrap().as_nanos() as u64
    );
    assert!(last["promised_memory_ns"].is_u64() && last["memory_ns"].is_u64());
    assert!(last["throttle"].is_u64() && last["dirty_pages_per_second"].is_u64());
    assert_eq!(last["lanes"][0]["data_pages"], stats.data_pages);
    assert_eq!(
        of_kind(&all[1], "stats").last().unwrap()["state"],
        "running"
    );
    // What the VMM was told, in the same order.
    let told = pair.from.all_events();
    let told: Vec<_> = told
        .iter()
        .map(|(kind, message)| (kind.name(), &message[..]))
        .collect();
    let heard: Vec<_> = of_kind(&all[0], "event")
        .map(|line| {
            (
                line["event"].as_str().unwrap(),
                line["message"].as_str().unwrap(),
            )
        })
        .collect();
    assert!(!heard.is_empty());
    assert_eq!(heard, told);
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_no_migration_and_its_lines_are_counted() {
    let (reader, writer) = pipe().unwrap();
    let (_pair, out, _inc) = moved(|out, _| {
        let params = RecordParams {
            interval: 10 * MS,
            what: "w".repeat(1000),
        };
        // SAFETY: asks for the size of an open pipe.
        let room = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) };
        // Nothing else fits.
        let filled = vec![b'\n'; room as usize];
        (&writer).write_all(&filled).unwrap();
        out.record(writer.into(), params).unwrap();
    });
    let recorded = out.end_record().unwrap();
    assert_eq!((recorded.lines, recorded.error), (0, None));
    assert!(recorded.dropped >= 3, "{}", recorded.dropped);
    drop(reader);
}

#[test]
fn a_reader_that_is_gone_ends_the_recording_and_nothing_else() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let (_pair, out, _inc) =
        moved(|out, _| out.record(writer.into(), RecordParams::default()).unwrap());
    let error = out.end_record().unwrap().error.unwrap();
    assert_eq!(error.kind(), Kind::Io, "{error}");
}

#[test]
fn what_cannot_be_recorded_is_refused_with_what_was_expected() {
    let pair = Pair::new(&[ram("ram", 256)]);
    let tracker = Arc::clone(&pair.source.tracker);
    let out = Outgoing::new(
        tracker,
        Blockers::new(),
        pair.from.clone(),
        Params::default(),
    )
    .unwrap();
    let (reader, writer) = pipe().unwrap();
    let wrong = out
        .record(reader.into(), RecordParams::default())
        .unwrap_err();
    assert_eq!(wrong.kind(), Kind::Invalid);
    assert!(wrong.message().contains("open for writing"), "{wrong}");
    for (interval, what) in [(9 * MS, 0), (3_600_001 * MS, 0), (50 * MS, 1025)] {
        let params = RecordParams {
            interval,
            what: "w".repeat(what),
        };
        let wrong = out
            .record(writer.try_clone().unwrap().into(), params)
            .unwrap_err();
        assert_eq!(wrong.kind(), Kind::Invalid);
    }
    // One that never starts has a first line and its first figures.
    let (mut reader, writer) = pipe().unwrap();
    out.record(writer.into(), RecordParams::default()).unwrap();
    assert_eq!(out.end_record().unwrap().lines, 2);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let lines = lines(&text);
    let kinds: Vec<_> = lines
        .iter()
        .map(|line| line["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["begin", "stats"]);
    assert_eq!(lines[1]["state"], "idle");
}
