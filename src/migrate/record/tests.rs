//! Recordings of real migrations, and of readers that take nothing, or go away.

use crate::error::Kind;
use crate::migrate::record::outlet::Outlet;
use crate::migrate::record::{lines, RecordParams};
use crate::runtime::Deadline;
use crate::sys::pipe;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

fn values(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn read_all(from: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(from).read_to_string(&mut text).unwrap();
    text
}

fn line() -> lines::Line {
    lines::begin(&RecordParams {
        what: "w".repeat(1000),
        ..RecordParams::default()
    })
}

#[test]
fn lines_that_nobody_takes_are_dropped_as_whole_lines_and_counted() {
    let (reader, writer) = pipe::pipe(0).unwrap();
    let mut outlet = Outlet::new(writer);
    let all = 1000;
    for _ in 0..all {
        outlet.add(&line()).unwrap();
        outlet.push().unwrap();
    }
    // The pipe is full, and nothing has waited for it.
    let dropped = outlet.dropped();
    assert!((1..all).contains(&dropped), "{dropped}");
    let reading = std::thread::spawn(move || read_all(reader));
    outlet
        .flush(Deadline::after(Duration::from_secs(60)))
        .unwrap();
    let done = outlet.settle(None);
    let text = reading.join().unwrap();
    assert_eq!(values(&text).len() as u64, all - dropped);
    assert_eq!((done.lines, done.dropped), (all - dropped, dropped));
    assert_eq!(done.bytes, text.len() as u64);
}

#[test]
fn a_reader_that_goes_away_ends_the_recording_with_an_error() {
    let (reader, writer) = pipe::pipe(0).unwrap();
    let mut outlet = Outlet::new(writer);
    outlet.add(&line()).unwrap();
    drop(reader);
    // Threads of brant's mask SIGPIPE, and this one ignores it: the standard library of Rust does.
    let error = outlet.push().unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.message().contains("nobody reads"), "{error}");
    let done = outlet.settle(Some(error));
    assert_eq!((done.lines, done.dropped), (0, 1));
}

#[test]
fn what_waits_at_the_end_is_given_up_in_time() {
    let (reader, writer) = pipe::pipe(0).unwrap();
    let mut outlet = Outlet::new(writer);
    for _ in 0..200 {
        outlet.add(&line()).unwrap();
    }
    outlet
        .flush(Deadline::after(Duration::from_millis(20)))
        .unwrap();
    let done = outlet.settle(None);
    assert!(done.lines > 0 && done.dropped > 0, "{done:?}");
    assert_eq!(done.lines + done.dropped, 200);
    drop(reader);
}
