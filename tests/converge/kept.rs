//! The downtime limit of guests of the real KVM, over links with buffers and delays: kept, or refused
//! at once. `make test` plays one round of the shortest form; `make test-downtime` plays 100
//! switchovers for each limit, and there no switchover may exceed its limit.

use crate::support::busy::{has_rings, migrate, pair, Moved, Shape};
use crate::support::link::Link;
use crate::support::time::MS;
use brant::error::Kind;
use brant::kvm_ioctls::Kvm;
use brant::migrate::{Operations, Params};

/// Bytes a second.
const RATE: u64 = 40_000_000;
const PAGES: u64 = 2048;
/// 1 MiB is written all the time. It takes 26 ms on the link, so a guest that writes faster than the
/// link converges all the same.
const HOT: u64 = 256;
const STATE: usize = 200_000;
/// The writes, beside what the link carries.
const WRITES: [f64; 3] = [0.3, 0.9, 1.5];

#[derive(Debug, Clone, Copy)]
struct Case {
    writes: f64,
    rings: bool,
    limit: u32,
    buffer: usize,
    round_trip: u32,
}

impl Case {
    fn is_too_far(&self) -> bool {
        2 * self.round_trip > self.limit
    }
}

/// The cases of a limit, each link with log and with rings.
fn cases(limit: u32, kvm: &Kvm) -> Vec<Case> {
    let mut cases = Vec::new();
    for writes in WRITES {
        for rings in [false, true] {
            for buffer in [0, 1 << 20, 8 << 20] {
                for round_trip in [0, 10, 100] {
                    cases.push(Case {
                        writes,
                        rings,
                        limit,
                        buffer,
                        round_trip,
                    });
                }
            }
        }
    }
    cases.retain(|case| !case.rings || has_rings(kvm));
    cases
}

fn play(kvm: &Kvm, case: &Case) -> Moved {
    let shape = Shape {
        pages: PAGES,
        region: HOT,
        writes: Some(case.writes * RATE as f64 / 4096.0),
        reads: None,
        rings: case.rings,
        state: STATE,
    };
    let ([here, there], tracker) = pair(kvm, shape);
    let params = Params {
        downtime_limit: MS * case.limit,
        // Fewer than 30 passes.
        total_timeout: Some(MS * 4000),
        expected: Operations {
            state_bytes: Some(STATE as u64),
            ..Operations::default()
        },
        ..Params::default()
    };
    let link = Link::of(RATE, MS * case.round_trip, case.buffer);
    let moved = migrate(tracker, [&here, &there], &link, &params);
    here.halt();
    if moved.ended.is_ok() {
        assert!(
            here.bytes() == there.bytes(),
            "{case:?}: the memory differs"
        );
    }
    moved
}

/// How switchovers ended.
#[derive(Debug, Default)]
struct Tally {
    switchovers: usize,
    kept: usize,
    /// Beyond the limit in a migration in which the host took a processor away.
    stolen: usize,
    /// Migrations that said that the limit cannot be kept.
    refused: usize,
    beyond: Vec<String>,
}

impl Tally {
    fn take(&mut self, case: &Case, moved: &Moved) {
        let stats = &moved.stats;
        match &moved.ended {
            Err(error) => {
                assert_eq!(error.kind(), Kind::NotConverged, "{case:?}: {error}");
                let far = error.message().contains("the round trips alone");
                assert_eq!(far, case.is_too_far(), "{case:?}: {error}");
                // At once, before the first page.
                assert!(!far || stats.data_pages == 0, "{case:?}: {stats:?}");
                println!("    {error}: {case:?}");
                self.refused += 1;
            }
            Ok(()) => assert!(!case.is_too_far(), "{case:?}: {stats:?}"),
        }
        let aborted = &stats.aborted_pause[..stats.aborted_pauses as usize];
        let limit = MS * case.limit;
        for stood in aborted.iter().copied().chain(stats.downtime) {
            self.switchovers += 1;
            if stood <= limit {
                self.kept += 1;
                continue;
            }
            self.stolen += usize::from(moved.stolen);
            let steal = if moved.stolen { "; steal" } else { "" };
            let promised = stats.promised_downtime.unwrap_or_default();
            let line = format!("{stood:?} of {limit:?}, {promised:?} promised{steal}: {case:?}");
            println!("    {line}\n    {stats:?}");
            self.beyond.push(line);
        }
    }
}

#[test]
fn a_kvm_guest_is_paused_within_its_limit_or_the_limit_is_refused_at_once() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no /dev/kvm");
        return;
    };
    let wanted = std::env::var("BRANT_SWITCHOVERS").ok();
    let wanted: Option<usize> = wanted.map(|n| n.parse().expect("BRANT_SWITCHOVERS is a number"));
    let mut all_kept = true;
    for limit in [50, 300] {
        let cases = cases(limit, &kvm);
        let mut tally = Tally::default();
        let mut turn = 0;
        // Steps that meet log and rings, all buffers and all round trips within a few turns.
        let mut next = || {
            turn += 1;
            cases[turn * 7 % cases.len()]
        };
        match wanted {
            None => {
                for _ in 0..3 {
                    let case = next();
                    tally.take(&case, &play(&kvm, &case));
                }
            }
            Some(wanted) => {
                while tally.switchovers < wanted {
                    let case = next();
                    tally.take(&case, &play(&kvm, &case));
                }
            }
        }
        let Tally {
            switchovers, kept, ..
        } = tally;
        println!(
            "limit {limit} ms: {kept} of {switchovers} switchovers kept it, {} beyond it with steal, \
             {} migrations refused it",
            tally.stolen, tally.refused
        );
        all_kept &= kept + tally.stolen == switchovers;
    }
    // A busy machine makes single pauses longer, so the short form only shows that it works.
    assert!(wanted.is_none() || all_kept, "the lines above tell");
}
