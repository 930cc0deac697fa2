//! What zstd makes of typical contents of guest memory, and how fast: 64 MiB of them, in units of
//! 256 KiB as a migration compresses them, beside a memcpy of the same bytes.
//!
//! The contents are made here, so that they are the same everywhere: text, machine code (this
//! program's own), tables of small numbers as kernels keep them, a heap that is mostly zeros, and
//! noise, which stands for what is compressed or encrypted already.

use crate::report::{alternate, Report, Runs};
use brant::page::compress::{Compressor, Decompressor};
use std::hint::black_box;
use std::time::Instant;

const LENGTH: usize = 64 << 20;
const UNIT: usize = 64 * 4096;
const RUNS: usize = 7;
const LEVELS: [i32; 3] = [1, 3, 9];

/// A generator of numbers that look random.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd)
    }
}

fn repeated(of: &[u8]) -> Vec<u8> {
    of.iter().copied().cycle().take(LENGTH).collect()
}

fn text() -> Vec<u8> {
    let words = [
        "memory",
        "of",
        "the",
        "guest",
        "is",
        "sent",
        "while",
        "it",
        "runs",
        "and",
        "page",
        "zero",
        "source",
        "destination",
        "a",
        "dirty",
        "pass",
        "bitmap",
        "kernel",
        "log",
    ];
    let (mut noise, mut text) = (Noise(1), Vec::new());
    while text.len() < LENGTH {
        let word = words[noise.next() as usize % words.len()];
        text.extend_from_slice(word.as_bytes());
        text.extend_from_slice(match noise.next() % 12 {
            0 => b".\n",
            1 => b", ",
            _ => b" ",
        });
        if noise.next() % 16 == 0 {
            text.extend_from_slice(noise.next().to_string().as_bytes());
        }
    }
    text.truncate(LENGTH);
    text
}

fn code() -> Vec<u8> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // Behind the headers; the same bytes come again after more than a unit.
    repeated(&program[4096..program.len().min(LENGTH)])
}

fn tables() -> Vec<u8> {
    let mut noise = Noise(2);
    let entry = |i: u64| (i << 12 | (noise.next() & 0x67) | 1).to_le_bytes();
    (0..LENGTH as u64 / 8).flat_map(entry).collect()
}

fn heap() -> Vec<u8> {
    let (mut noise, mut heap) = (Noise(3), vec![0; LENGTH]);
    let mut at = 0;
    while at + 256 < LENGTH {
        let length = 8 + noise.next() as usize % 120;
        for word in heap[at..at + length].chunks_mut(8) {
            let value = (0x7f00_0000_0000 | (noise.next() & 0xff_fff0)).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
        at += length + noise.next() as usize % 400;
    }
    heap
}

fn noise() -> Vec<u8> {
    let mut noise = Noise(4);
    (0..LENGTH / 8)
        .flat_map(|_| noise.next().to_le_bytes())
        .collect()
}

/// All figures of compression.
pub fn measure(report: &mut Report) {
    type Make = fn() -> Vec<u8>;
    let kinds: [(&str, Make); 5] = [
        ("text", text),
        ("code", code),
        ("tables", tables),
        ("heap", heap),
        ("noise", noise),
    ];
    for (kind, make) in kinds {
        let names = |level| {
            ["gbps", "size", "decode"].map(|what| format!("compress.{what}/{kind}-{level}"))
        };
        if !LEVELS
            .iter()
            .any(|level| names(*level).iter().any(|name| report.wants(name)))
        {
            continue;
        }
        let contents = make();
        for level in LEVELS {
            one(report, &contents, level, &names(level));
        }
    }
}

fn one(report: &mut Report, contents: &[u8], level: i32, [speed, size, decode]: &[String; 3]) {
    let mut compressor = Compressor::new(level).unwrap();
    let mut copy = vec![0u8; contents.len()];
    let mut room = vec![0u8; UNIT / 8 * 7];
    let mut frames: Vec<Option<Vec<u8>>> = Vec::new();
    let gbps = |begun: Instant| contents.len() as f64 / begun.elapsed().as_secs_f64() / 1e9;
    let memcpy = |copy: &mut [u8]| {
        let begun = Instant::now();
        copy.copy_from_slice(black_box(contents));
        black_box(copy);
        gbps(begun)
    };
    let [packed, copied] = alternate(RUNS, |contender| {
        if contender == 1 {
            return memcpy(&mut copy);
        }
        frames.clear();
        let begun = Instant::now();
        for unit in contents.chunks(UNIT) {
            let length = compressor.compress(unit, &mut room);
            frames.push(length.map(|length| room[..length].to_vec()));
        }
        gbps(begun)
    });
    report.compared(speed, "GB/s", &packed, "memcpy", &copied);
    let became: usize = frames
        .iter()
        .map(|frame| frame.as_ref().map_or(UNIT, Vec::len))
        .sum();
    let (became, own) = (Runs::of(became as f64), Runs::of(contents.len() as f64));
    report.compared(size, "bytes", &became, "the contents", &own);
    let mut decompressor = Decompressor::new().unwrap();
    let mut unit = vec![0u8; UNIT];
    let [unpacked, copied] = alternate(RUNS, |contender| {
        if contender == 1 {
            return memcpy(&mut copy);
        }
        let begun = Instant::now();
        for (frame, plain) in frames.iter().zip(contents.chunks(UNIT)) {
            match frame {
                Some(frame) => decompressor.decompress(frame, &mut unit).unwrap(),
                None => unit.copy_from_slice(plain),
            }
        }
        gbps(begun)
    });
    report.compared(decode, "GB/s", &unpacked, "memcpy", &copied);
}
