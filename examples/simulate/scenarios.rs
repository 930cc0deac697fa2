//! The guests, loads and policies of the table.

use super::model::{slowing, Guest, Phase, Plan, PAGE};
use brant::migrate::steering::policies::{OnDeadline, Policy, Slowing};
use brant::migrate::steering::working_set::Pool;
use std::time::Duration;

/// Bytes a second.
pub const GBIT: f64 = 1e9 / 8.0;
const GIB: f64 = (1u64 << 30) as f64;

/// Name, pages and vCPUs.
pub fn guests() -> [(&'static str, f64, usize); 3] {
    [
        ("64 vCPU 256 GiB", 256.0 * GIB / PAGE, 64),
        ("448 vCPU 12 TiB", 12.0 * 1024.0 * GIB / PAGE, 448),
        ("786 vCPU 24 TiB", 24.0 * 1024.0 * GIB / PAGE, 786),
    ]
}

/// How much slower than a trace's time a guest's is, so that the trace lasts a fifth of the time in
/// which the link (in Gb/s) carries all memory.
pub fn slower(pages: f64, link: f64) -> f64 {
    let first_pass = pages * PAGE / (link * GBIT);
    (first_pass / 5.0 / 6.0).max(1.0)
}

/// A guest whose half writes with a hot set and a wide one, in phases.
fn guest(pages: f64, vcpus: usize, phases: Vec<Phase>) -> Guest {
    Guest {
        pages,
        data: 0.8,
        vcpus,
        writers: vcpus.div_ceil(2),
        phases,
    }
}

/// The loads for a link of so many bytes a second.
pub fn loads(pages: f64, vcpus: usize, link: f64) -> Vec<(&'static str, Guest)> {
    let link = link / PAGE;
    let first_pass = pages / link;
    // Pools of `rate` times the link: a tenth of it in 0.2 % of memory, the rest in 8 %.
    let pools = |rate: f64| {
        let pool = |share: f64, pages: f64| Pool {
            pages,
            rate: rate * link * share,
        };
        vec![pool(0.1, pages * 0.002), pool(0.9, pages * 0.08)]
    };
    let phase = |share: f64, rate: f64| Phase {
        seconds: (first_pass * share).max(0.1),
        pools: pools(rate),
    };
    let steady = |rate| guest(pages, vcpus, vec![phase(1.0, rate)]);
    vec![
        ("0.3", steady(0.3)),
        ("0.9", steady(0.9)),
        ("1.5", steady(1.5)),
        ("3", steady(3.0)),
        (
            "bursts",
            guest(pages, vcpus, vec![phase(0.02, 1.5), phase(0.06, 0.1)]),
        ),
        (
            "phases",
            guest(pages, vcpus, vec![phase(0.15, 0.4), phase(0.15, 1.2)]),
        ),
    ]
}

/// The policies, and the migrations that they steer.
pub fn policies(guest: &Guest, link: f64, limit: Duration) -> Vec<(&'static str, Plan)> {
    let first_pass = guest.pages * guest.data * PAGE / link;
    let background = (first_pass / 100.0).clamp(0.1, 3.0);
    let plan = |policy: Policy| Plan {
        link,
        round_trip: 200e-6,
        policy: match policy.slowing {
            Slowing::Off => policy,
            _ => Policy {
                sync: Duration::from_secs_f64(background),
                ..policy
            },
        },
        limit,
        background,
    };
    let none = slowing(Slowing::Off);
    vec![
        ("none", plan(none.clone())),
        ("auto", plan(slowing(Slowing::AutoConverge))),
        ("limit", plan(slowing(Slowing::DirtyLimit))),
        (
            "ceiling",
            plan(Policy {
                ceiling: Some(limit * 10),
                ..none.clone()
            }),
        ),
        (
            "finish",
            plan(Policy {
                deadline: Some(Duration::from_secs_f64(first_pass * 3.0)),
                on_deadline: OnDeadline::PauseToFinish,
                ..none
            }),
        ),
    ]
}
