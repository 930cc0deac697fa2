//! Whether the downtime limit is kept, and how far the promise is from what happened: 100 switchovers
//! of writing guests of the real KVM, with its bitmap and its dirty rings in turn, over links with a rate,
//! a delay and a buffer.
//!
//! Source, destination and link are one process. Only limits are tried that the round trips leave room
//! for: a shorter one is refused, which the tests show. An aborted pause is a switchover too, with its
//! own length. Overruns of runs in which the host took the processor away (steal) are reported apart.

use crate::busy::{self, has_rings, Shape};
use crate::link::Link;
use crate::machine::kvm;
use crate::report::{Report, Runs};
use brant::error::Kind;
use brant::kvm_ioctls::Kvm;
use brant::migrate::{Operations, Params, Stats};
use brant::units::PAGE_SIZE;
use std::time::Duration;

const FAMILY: &str = "downtime.";
const SWITCHOVERS: usize = 100;
/// Bytes a second of the link.
const RATE: u64 = 40_000_000;
const PAGES: u64 = 4096;
/// The guest writes to these pages. They take 20 ms on the link. So a guest that writes faster than the
/// link converges all the same, and beside a round trip of 10 ms they fit a limit of 50 ms.
const HOT: u64 = 192;
const STATE: usize = 200_000;
/// A migration that takes so long does not converge, and is counted as refused.
const LONG: Duration = Duration::from_secs(10);

/// One kind of switchover.
#[derive(Clone, Copy)]
struct Case {
    /// The guest's writes, as a part of what the link carries.
    dirties: f64,
    limit: Duration,
    buffer: usize,
    round_trip: Duration,
    /// KVM's dirty rings are the log, else its bitmap.
    rings: bool,
}

fn cases(kvm: &Kvm) -> Vec<Case> {
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
                            rings: cases.len() % 2 == 1 && has_rings(kvm),
                        });
                    }
                }
            }
        }
    }
    cases
}

/// Migrates once. `None`: the migration said that the limit cannot be kept. And whether the host took
/// a processor away meanwhile.
fn migrate(kvm: &Kvm, case: &Case) -> (Option<Stats>, bool) {
    let shape = Shape {
        pages: PAGES,
        region: HOT,
        writes: Some(case.dirties * RATE as f64 / PAGE_SIZE as f64),
        reads: None,
        rings: case.rings,
        state: STATE,
    };
    let ([source, destination], tracker) = busy::pair(kvm, shape);
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
    let moved = busy::migrate(tracker, [&source, &destination], &link, &params);
    source.halt();
    let stats = match moved.ended {
        Ok(()) => Some(moved.stats),
        Err(error) if error.kind() == Kind::NotConverged => {
            eprintln!("    {error}");
            None
        }
        Err(error) => panic!("{error}"),
    };
    (stats, moved.stolen)
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped(FAMILY, &reason),
    };
    let cases = cases(&kvm);
    let (mut kept, mut all, mut by_steal, mut refused) = (0, 0, 0, 0);
    let mut errors = Runs::default();
    let mut worst: Vec<f64> = Vec::new();
    let mut turn = 0;
    while all < SWITCHOVERS && turn < 2 * SWITCHOVERS {
        let case = &cases[turn % cases.len()];
        turn += 1;
        let (stats, steal) = migrate(&kvm, case);
        let Some(stats) = stats else {
            refused += 1;
            continue;
        };
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
