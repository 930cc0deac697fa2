//! The measured figures of brant, each beside what it is held against. Run it with
//! `make bench`, which builds what it needs, keeps the results and prints the table.
//!
//! Absolute times mean little on a shared machine, so each figure is a ratio: contenders take
//! turns in one run, over memory that was touched before.

mod collect;
mod growth;
mod machine;
mod parts;
mod readable;
mod report;
mod ring;
mod slowdown;
mod standstill;
mod stream;
mod sync;

use report::Report;
use std::fs::File;

fn main() {
    let mut only = String::new();
    let mut out = None;
    let mut asked = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("an option's value");
        match argument.as_str() {
            // cargo says this when it benches; without it, it only checks that this runs.
            "--bench" => asked = true,
            "--only" => only = value(),
            "--out" => out = Some(File::create(value()).expect("the results' file")),
            "--stream-destination" => return stream::destination(),
            other => panic!("unknown argument {other}; use make bench"),
        }
    }
    if !asked {
        return;
    }
    let mut report = Report::new(only, out);
    stream::measure(&mut report);
    standstill::measure(&mut report);
    collect::measure(&mut report);
    sync::measure(&mut report);
    parts::measure(&mut report);
    ring::measure(&mut report);
    readable::measure(&mut report);
    parts::layers(&mut report);
    slowdown::measure(&mut report);
    growth::measure(&mut report);
    if report.is_empty() {
        eprintln!("no figure has a name that begins so");
        std::process::exit(1);
    }
}
