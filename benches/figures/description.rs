//! Postcopy: what it costs to write down which pages are missing and to read that, beside one read of the bitmap:
//! 1 TiB of memory of which a hundredth is missing, scattered page by page, or in runs of 64 pages.

use crate::report::{alternate, Report, Runs};
use brant::bits::Stretches;
use brant::units::Pages;
use brant::wire::{describe, Described, Header, Missing, Record, HEADER_LEN};
use std::hint::black_box;
use std::time::Instant;

const FAMILY: &str = "postcopy.description";
const RUNS: usize = 7;
const PAGES: usize = 1 << 28;
const BLOCK: u32 = 7;

/// A bitmap of which every hundredth bit is set, in runs of `run`.
fn bitmap(run: usize) -> Vec<u64> {
    let mut words = vec![0u64; PAGES / 64];
    let mut random = 88172645463325252u64;
    for _ in 0..PAGES / 100 / run {
        // The generator of George Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let first = random as usize % (PAGES / run) * run;
        for page in first..first + run {
            words[page / 64] |= 1 << (page % 64);
        }
    }
    words
}

/// Milliseconds of `work`.
fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let begun = Instant::now();
    black_box(work());
    begun.elapsed().as_secs_f64() * 1e3
}

/// The description's bytes, as the source sends them.
fn encode(words: &[u64], out: &mut Vec<u8>) {
    out.clear();
    describe(BLOCK, words, Pages(PAGES as u64), |missing: &Missing| {
        Record::Missing(missing.clone()).encode(out)
    })
    .unwrap();
}

/// The set of missing pages, as the destination makes it.
fn decode(bytes: &[u8]) -> Stretches {
    let (set, mut told) = (Stretches::new(PAGES).unwrap(), Described::default());
    let mut at = 0;
    while at < bytes.len() {
        let head: &[u8; HEADER_LEN] = bytes[at..at + HEADER_LEN].try_into().unwrap();
        let header = Header::decode(head).unwrap();
        at += HEADER_LEN;
        let body = &bytes[at..at + header.payload as usize];
        at += body.len();
        let Record::Missing(missing) = Record::decode(&header, body).unwrap() else {
            panic!("not a description");
        };
        told.take(&missing, Pages(PAGES as u64)).unwrap();
        for run in missing.runs() {
            set.set_range(run.start.0 as usize, (run.end.0 - run.start.0) as usize);
        }
    }
    set
}

/// The figures of the description.
pub fn measure(report: &mut Report) {
    for (how, run) in [("scattered", 1), ("clustered", 64)] {
        let names = ["encode", "decode"].map(|what| format!("{FAMILY}/{what}-{how}"));
        if !names.iter().any(|name| report.wants(name)) {
            continue;
        }
        let words = bitmap(run);
        let mut bytes = Vec::new();
        encode(&words, &mut bytes);
        let kept = bytes.clone();
        let count: u32 = words.iter().map(|word| word.count_ones()).sum();
        eprintln!(
            "    1 TiB, {how}: {:.2} bytes a missing page, {:.4} a page",
            kept.len() as f64 / f64::from(count),
            kept.len() as f64 / PAGES as f64
        );
        let [ours, back, read]: [Runs; 3] = alternate(RUNS, |contender| match contender {
            0 => timed(|| encode(&words, &mut bytes)),
            1 => timed(|| decode(&kept)),
            _ => timed(|| {
                words
                    .iter()
                    .map(|word| u64::from(word.count_ones()))
                    .sum::<u64>()
            }),
        });
        let peer = "a read of the bitmap";
        report.compared(&names[0], "ms", &ours, peer, &read);
        report.compared(&names[1], "ms", &back, peer, &read);
    }
}
