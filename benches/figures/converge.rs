//! What each policy does for a guest that writes 0.3, 0.9, 1.5 or 3 times what the link carries: total
//! time, bytes, downtime, and how much of its work the guest does meanwhile.
//!
//! The guest is one of the real KVM, with a vCPU that writes and one that only reads. Source,
//! destination and link are one process. A migration that does not converge ends at a timeout, and its
//! row says why. The rows of QEMU in the same table come from `scripts/bench-peers`.

use crate::busy::{has_rings, migrate, pair, Moved, Shape};
use crate::link::Link;
use crate::machine::kvm;
use crate::report::Report;
use brant::kvm_ioctls::Kvm;
use brant::migrate::{OnDeadline, Params, Policy, Slowing};
use brant::units::PAGE_SIZE;
use serde_json::json;
use std::time::Duration;

const FAMILY: &str = "converge.table/";
/// Bytes a second of the link.
const RATE: u64 = 100_000_000;
/// 64 MiB of memory, of which the guest writes 48 MiB in turn.
const PAGES: u64 = 16384;
const REGION: u64 = 12288;
/// Pages a second that the second vCPU reads.
const READS: f64 = 10_000.0;
/// The guest's writes, as a part of what the link carries.
const WRITES: [f64; 4] = [0.3, 0.9, 1.5, 3.0];
const LIMIT: Duration = Duration::from_millis(50);
const CEILING: Duration = Duration::from_millis(1000);
const DEADLINE: Duration = Duration::from_secs(4);
/// A migration that has not converged by then does not.
const TOTAL: Duration = Duration::from_secs(10);

/// The policies by name, and whether each needs dirty rings.
fn policies() -> [(&'static str, Policy, bool); 5] {
    let with = |slowing| Policy {
        slowing,
        ..Policy::default()
    };
    [
        ("none", with(Slowing::Off), false),
        ("all-vcpus", with(Slowing::AutoConverge), false),
        ("writers", with(Slowing::DirtyLimit), true),
        (
            "rising-limit",
            Policy {
                ceiling: Some(CEILING),
                ..Policy::default()
            },
            false,
        ),
        (
            "pause-to-finish",
            Policy {
                deadline: Some(DEADLINE),
                on_deadline: OnDeadline::PauseToFinish,
                ..Policy::default()
            },
            false,
        ),
    ]
}

fn run(kvm: &Kvm, writes: f64, policy: Policy, rings: bool) -> Moved {
    let shape = Shape {
        pages: PAGES,
        region: REGION,
        writes: Some(writes * RATE as f64 / PAGE_SIZE as f64),
        reads: Some(READS),
        rings,
        state: 100_000,
    };
    let ([source, destination], tracker) = pair(kvm, shape);
    let params = Params {
        downtime_limit: LIMIT,
        total_timeout: Some(TOTAL),
        policy,
        ..Params::default()
    };
    let link = Link::of(RATE, Duration::from_millis(1), 256 << 10);
    let moved = migrate(tracker, [&source, &destination], &link, &params);
    source.halt();
    moved
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
    for writes in WRITES {
        for (policy, settings, rings) in policies() {
            let name = format!("{FAMILY}{writes}/{policy}");
            if !report.wants(&name) {
                continue;
            }
            if rings && !has_rings(&kvm) {
                report.skipped(&name, "this KVM has no dirty rings");
                continue;
            }
            let moved = run(&kvm, writes, settings, rings);
            let (stats, took) = (&moved.stats, moved.took.as_secs_f64());
            let ended = match &moved.ended {
                Ok(()) => "converged".to_owned(),
                Err(error) => error.message().to_owned(),
            };
            eprintln!("    {name}: {ended}");
            let rates = [writes * RATE as f64 / PAGE_SIZE as f64, READS];
            let share = |vcpu: usize| moved.work[vcpu] as f64 / (rates[vcpu] * took);
            let more = json!({
                "ended": ended,
                "converged": moved.ended.is_ok(),
                "bytes": stats.wire_bytes,
                "downtime_ms": stats.downtime.map(|stood| stood.as_secs_f64() * 1e3),
                "limit_ms": stats.downtime_limit.unwrap_or(LIMIT).as_secs_f64() * 1e3,
                "passes": stats.pass,
                "writer": share(0),
                "reader": share(1),
            });
            let once = (PAGES * PAGE_SIZE) as f64 / RATE as f64;
            report.told(&name, "s", took, ("memory sent once", once), more);
        }
    }
}
