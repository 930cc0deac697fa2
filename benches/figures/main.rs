//! The measured figures of brant, each beside a comparison. Run them with `make bench`, which
//! builds what they need, keeps the results and prints the table.
//!
//! Absolute times mean little on a shared machine, so each figure is a ratio: contenders take turns
//! in one run, over memory that was touched before.

mod back_ends;
#[path = "../../tests/support/busy.rs"]
mod busy;
mod collect;
mod compression;
mod converge;
mod delta;
mod description;
mod downtime;
mod forecast;
mod growth;
mod hand_over;
mod image;
#[path = "../../tests/support/kinds.rs"]
mod kinds;
#[path = "../../tests/support/link.rs"]
mod link;
mod machine;
mod memory;
mod pages;
mod parts;
mod postcopy;
mod readable;
mod report;
mod restore;
mod ring;
mod slowdown;
mod standstill;
mod stream;
mod sync;
mod vhost;

use report::Report;
use std::fs::File;
use std::time::Instant;

/// Figures that are measured together. Their line is printed at their beginning, because some take
/// minutes.
struct Part {
    what: &'static str,
    /// The beginnings of their names.
    families: &'static [&'static str],
    measure: fn(&mut Report),
}

const PARTS: [Part; 23] = [
    Part {
        what: "memory sent over TCP, beside a bare sender in C",
        families: &["stream."],
        measure: stream::measure,
    },
    Part {
        what: "zero pages and pages that lie apart, beside a pass of reading and writev in C",
        families: &["zero.", "scatter."],
        measure: pages::measure,
    },
    Part {
        what: "changed pages encoded, beside an encoder in C; a hot set with deltas and without",
        families: &["delta."],
        measure: delta::measure,
    },
    Part {
        what: "contents compressed and decompressed, beside a memcpy",
        families: &["compress."],
        measure: compression::measure,
    },
    Part {
        what: "a guest saved to a file and restored, beside bare writes and reads",
        families: &["image.", "snapshot."],
        measure: image::measure,
    },
    Part {
        what: "a guest restored from a file before its memory is read, beside one after it",
        families: &["restore."],
        measure: restore::measure,
    },
    Part {
        what: "how long a guest stands still",
        families: &["standstill."],
        measure: standstill::measure,
    },
    Part {
        what: "whether the downtime limit and the promise are kept, over links with buffers and delays",
        families: &["downtime."],
        measure: downtime::measure,
    },
    Part {
        what: "a guest handed over on one host, 16 GiB beside 1 GiB",
        families: &["handover."],
        measure: hand_over::measure,
    },
    Part {
        what: "the description of the pages that postcopy misses, beside a read of the bitmap",
        families: &["postcopy.description"],
        measure: description::measure,
    },
    Part {
        what: "pages that a guest waits for behind a switch to postcopy, beside a round trip",
        families: &["postcopy.fault_"],
        measure: postcopy::faults,
    },
    Part {
        what: "how long a guest stands still at the switch to postcopy",
        families: &["postcopy.blackout"],
        measure: postcopy::blackout,
    },
    Part {
        what: "guests that write 0.3 to 3 times what a link carries, under each policy",
        families: &["converge."],
        measure: converge::measure,
    },
    Part {
        what: "forecasts beside what became of the migration, on traces and on a guest over a link",
        families: &["forecast."],
        measure: forecast::measure,
    },
    Part {
        what: "marks collected from a bitmap while others set them",
        families: &["collect."],
        measure: collect::measure,
    },
    Part {
        what: "a sync beside a memcpy of the bitmap; the longest clear",
        families: &["sync.over_kernel/", "clear."],
        measure: sync::measure,
    },
    Part {
        what: "the parts of a sync, and slots that are not aligned",
        families: &["sync.parts/", "sync.misaligned_ratio", "sync.clear_ioctls"],
        measure: parts::measure,
    },
    Part {
        what: "the log that vhost back ends share, beside a log for each",
        families: &["vhost."],
        measure: vhost::measure,
    },
    Part {
        what: "a sync by dirty ring",
        families: &["ring."],
        measure: ring::measure,
    },
    Part {
        what: "the check that memory can be read",
        families: &["readable."],
        measure: readable::measure,
    },
    Part {
        what: "what tracking holds for each page",
        families: &["layers."],
        measure: parts::layers,
    },
    Part {
        what: "how fast a tracked guest writes",
        families: &["guest."],
        measure: slowdown::measure,
    },
    Part {
        what: "how costs grow with the guest",
        families: &["growth."],
        measure: growth::measure,
    },
];

fn main() {
    let mut only = Vec::new();
    let mut out = None;
    let mut asked = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("an option's value");
        match argument.as_str() {
            // cargo passes this for benchmarks. Without it, it only checks that the program runs.
            "--bench" => asked = true,
            "--only" => only.push(value()),
            "--out" => out = Some(File::create(value()).expect("the results' file")),
            "--stream-destination" => return stream::destination(),
            "--pages-destination" => return pages::destination(),
            other => panic!("unknown argument {other}; use make bench"),
        }
    }
    if !asked {
        return;
    }
    let mut report = Report::new(only, out);
    let begun = Instant::now();
    let wanted = |part: &&Part| part.families.iter().any(|family| report.wants_any(family));
    let parts: Vec<&Part> = PARTS.iter().filter(wanted).collect();
    for (i, part) in parts.iter().enumerate() {
        let (n, all, at) = (i + 1, parts.len(), begun.elapsed().as_secs());
        eprintln!("[{n}/{all}, {at} s] {}", part.what);
        (part.measure)(&mut report);
    }
    if report.is_empty() {
        eprintln!("no figure has a name that begins so");
        std::process::exit(1);
    }
    eprintln!("measured in {} s", begun.elapsed().as_secs());
}
