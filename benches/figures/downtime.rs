//! Whether the downtime limit is kept, and how far the promise is from what happened: 100 switchovers
//! of writing guests over links with a rate, a delay and a buffer.
//!
//! Source, destination and link are one process. Only limits are tried that the round trips leave room
//! for: a shorter one is refused, which the tests show. An aborted pause is a switchover too, with its
//! own length. Overruns of runs in which the host took the processor away (steal) are reported apart.

use crate::link::Link;
use crate::report::{Report, Runs};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::Kind;
use brant::memory::{BlockDescription, BlockFlags, BlockId, HostMemory, Memory};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Incoming, Operations, Outgoing, Params, Stats,
};
use brant::units::{Bytes, PAGE_SIZE};
use brant::vmm::{StateBlob, StateSink, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

const FAMILY: &str = "downtime.";
const SWITCHOVERS: usize = 100;
/// Bytes a second of the link.
const RATE: u64 = 40_000_000;
const PAGES: u64 = 4096;
/// The guest writes to these pages. 1 MiB takes 26 ms on the link, so that a guest which writes faster
/// than the link converges all the same.
const HOT: u64 = 256;
const STATE: usize = 200_000;
const LONG: Duration = Duration::from_secs(60);

/// Memory and who writes to it.
struct Guest {
    ram: Vec<AtomicU64>,
    state: Vec<u8>,
    paused: RwLock<bool>,
}

impl Guest {
    fn new(fill: u64) -> Arc<Guest> {
        let words = (PAGES + 1) * PAGE_SIZE / 8;
        Arc::new(Guest {
            ram: (0..words)
                .map(|word| AtomicU64::new(word.wrapping_mul(fill)))
                .collect(),
            state: vec![7; STATE],
            paused: RwLock::new(false),
        })
    }

    /// The words from the first whole page on.
    fn pages(&self) -> &[AtomicU64] {
        let at = self.ram.as_ptr() as usize;
        &self.ram[(at.next_multiple_of(PAGE_SIZE as usize) - at) / 8..]
    }

    fn memory(&self) -> (Arc<Memory>, BlockId) {
        let memory = Memory::new().unwrap();
        let block = memory
            .add_block(BlockDescription {
                name: "ram".to_owned(),
                // SAFETY: whole pages within the vector, which outlives the migration.
                host: unsafe { HostMemory::new(self.pages().as_ptr() as *mut u8) },
                length: Bytes(PAGES * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        (Arc::new(memory), block)
    }

    /// Writes `rate` pages a second until `stop`, each mark after its write.
    fn write(&self, tracker: &Tracker, block: BlockId, rate: f64, stop: &AtomicBool) {
        let begun = Instant::now();
        let (mut written, mut state) = (0u64, 0x1234_5678_9abc_def1u64);
        while !stop.load(Ordering::Relaxed) {
            let due = (begun.elapsed().as_secs_f64() * rate) as u64;
            let paused = self.paused.read().unwrap();
            if !*paused {
                for _ in 0..64.min(due.saturating_sub(written)) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let at = state % HOT * PAGE_SIZE;
                    self.pages()[at as usize / 8].store(state, Ordering::Relaxed);
                    tracker.mark_block(block, Bytes(at), 8);
                    written += 1;
                }
            }
            drop(paused);
            if due.saturating_sub(written) > rate as u64 / 10 {
                written = due;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Vmm for Guest {
    fn pause(&self) -> brant::Result<()> {
        *self.paused.write().unwrap() = true;
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        *self.paused.write().unwrap() = false;
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> brant::Result<()> {
        sink.put(&StateBlob {
            name: "device",
            instance: 0,
            version: 1,
            data: &self.state,
        })
    }
    fn load(&self, _: &StateBlob<'_>) -> brant::Result<()> {
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
}

/// One kind of switchover.
#[derive(Clone, Copy)]
struct Case {
    /// The guest's writes, as a part of what the link carries.
    dirties: f64,
    limit: Duration,
    buffer: usize,
    round_trip: Duration,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dirties in [0.3, 0.9, 1.5] {
        for limit in [50, 300] {
            for buffer in [0, 1 << 20, 8 << 20] {
                for round_trip in [0, 10, 100] {
                    if 2 * round_trip < limit {
                        cases.push(Case {
                            dirties,
                            limit: Duration::from_millis(limit),
                            buffer,
                            round_trip: Duration::from_millis(round_trip),
                        });
                    }
                }
            }
        }
    }
    cases
}

/// Migrates once. `None`: the migration said that the limit cannot be kept.
fn migrate(case: &Case) -> Option<Stats> {
    let (source, destination) = (Guest::new(0x9e37_79b9), Guest::new(1));
    let ((here, block), (there, _)) = (source.memory(), destination.memory());
    let tracker = Tracker::new(here, Clearing::default()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (guest, tracker, stop) = (Arc::clone(&source), Arc::clone(&tracker), Arc::clone(&stop));
        let rate = case.dirties * RATE as f64 / PAGE_SIZE as f64;
        std::thread::spawn(move || guest.write(&tracker, block, rate, &stop))
    };
    let params = Params {
        downtime_limit: case.limit,
        total_timeout: Some(LONG),
        expected: Operations {
            state_bytes: Some(STATE as u64),
            ..Operations::default()
        },
        ..Params::default()
    };
    let link = Link::of(RATE, case.round_trip, case.buffer);
    let (near, far) = link.connect();
    let incoming = Incoming::new(there, destination, Params::default()).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), source, params).unwrap();
    incoming.start(AcceptFrom::Connected(far)).unwrap();
    outgoing.start(ConnectTo::Connected(near)).unwrap();
    let ended = outgoing.wait(Some(2 * LONG));
    let _ = incoming.wait(Some(LONG));
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    match ended {
        Ok(()) => Some(outgoing.stats()),
        Err(error) if error.kind() == Kind::NotConverged => {
            eprintln!("    {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The time that the host has taken the processors away, in ticks.
fn stolen() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let field = stat
        .lines()
        .next()
        .and_then(|cpu| cpu.split_whitespace().nth(8));
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let cases = cases();
    let (mut kept, mut all, mut by_steal, mut refused) = (0, 0, 0, 0);
    let mut errors = Runs::default();
    let mut worst: Vec<f64> = Vec::new();
    let mut turn = 0;
    while all < SWITCHOVERS && turn < 2 * SWITCHOVERS {
        let case = &cases[turn % cases.len()];
        turn += 1;
        let before = stolen();
        let Some(stats) = migrate(case) else {
            refused += 1;
            continue;
        };
        let steal = stolen() > before;
        let stood = stats.downtime.unwrap_or_default();
        let aborted = &stats.aborted_pause[..stats.aborted_pauses as usize];
        for stood in aborted.iter().copied().chain([stood]) {
            all += 1;
            let in_time = stood <= case.limit;
            kept += usize::from(in_time);
            by_steal += usize::from(!in_time && steal);
        }
        let promised = stats.promised_downtime.unwrap_or_default().as_secs_f64();
        let error = (stood.as_secs_f64() - promised).abs() / promised.max(1e-6);
        errors.push(error);
        worst.push(error);
    }
    worst.sort_by(f64::total_cmp);
    let share = |count: usize| Runs::of(count as f64 / all.max(1) as f64);
    let one = Runs::of(1.0);
    report.compared(
        "downtime.kept",
        "share",
        &share(kept),
        "all switchovers",
        &one,
    );
    let beyond = share(by_steal);
    report.compared(
        "downtime.overrun_by_steal",
        "share",
        &beyond,
        "all switchovers",
        &one,
    );
    let refused = Runs::of(refused as f64 / turn.max(1) as f64);
    report.compared(
        "downtime.refused",
        "share",
        &refused,
        "all migrations",
        &one,
    );
    report.compared(
        "downtime.promise_error",
        "share",
        &errors,
        "the promise",
        &one,
    );
    let last = worst.get(worst.len() * 95 / 100).copied().unwrap_or(0.0);
    report.compared(
        "downtime.promise_error/p95",
        "share",
        &Runs::of(last),
        "the promise",
        &one,
    );
}
