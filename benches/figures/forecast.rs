//! How far forecasts are off: time, bytes and passes, of the last one that was issued before a quarter
//! of the final time had passed.
//!
//! Most guests are simulated, because a forecast shows its worth only when passes take minutes: they
//! write as recorded KVM guests did, or in bursts and phases. A KVM guest of 64 MiB, which really
//! migrates over a link, stands beside them.

#[allow(dead_code)]
#[path = "../../examples/simulate/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../examples/simulate/scenarios.rs"]
mod scenarios;
#[allow(dead_code)]
#[path = "../../examples/simulate/trace.rs"]
mod trace;

use crate::busy::{migrate_watched, pair, Moved, Shape};
use crate::link::Link;
use crate::machine::kvm;
use crate::report::{Report, Runs};
use brant::kvm_ioctls::Kvm;
use brant::migrate::steering::policies::Slowing;
use brant::migrate::{Forecast, Outgoing, Params};
use brant::units::PAGE_SIZE;
use scenarios::GBIT;
use std::time::Duration;
use trace::Trace;

const FAMILY: &str = "forecast.";
const WHAT: [&str; 3] = ["time", "bytes", "passes"];
const LIMIT: Duration = Duration::from_millis(300);
/// Bytes a second of the real link.
const RATE: u64 = 30_000_000;
/// 64 MiB of memory, of which the guest writes 16 MiB in turn.
const PAGES: u64 = 16384;
const REGION: u64 = 4096;
const LONG: Duration = Duration::from_secs(120);

/// The errors of all simulated migrations.
fn simulated() -> [Vec<f64>; 3] {
    let traces = [
        include_str!("../../examples/simulate/traces/steady.jsonl"),
        include_str!("../../examples/simulate/traces/bursts.jsonl"),
        include_str!("../../examples/simulate/traces/phases.jsonl"),
    ];
    let traces = traces.map(|text| Trace::parse(text).expect("a trace of ours"));
    let (_, memory, vcpus) = scenarios::guests()[0];
    let mut all: [Vec<f64>; 3] = Default::default();
    for link in [10.0, 100.0] {
        let recorded = traces.iter().map(|trace| {
            let slower = scenarios::slower(memory, link);
            (trace.name.clone(), trace.guest(memory, vcpus, slower))
        });
        let made = scenarios::loads(memory, vcpus, link * GBIT);
        let made = made
            .into_iter()
            .map(|(name, guest)| (name.to_owned(), guest));
        for (load, guest) in made.chain(recorded) {
            for (policy, plan) in scenarios::policies(&guest, link * GBIT, LIMIT) {
                if policy != "auto" && policy != "limit" {
                    continue;
                }
                // A forecast that was wrong about whether it converges is off by all.
                let errors = model::migrate(&guest, &plan).errors().unwrap_or([1.0; 3]);
                eprintln!("    {link} Gb/s, {load}, {policy}: {errors:.3?}");
                for (all, error) in all.iter_mut().zip(errors) {
                    all.push(error);
                }
            }
        }
    }
    all
}

/// The errors of one migration of a KVM guest that dirties `dirties` times what the link carries.
fn real(kvm: &Kvm, dirties: f64) -> [f64; 3] {
    let shape = Shape {
        pages: PAGES,
        region: REGION,
        writes: Some(dirties * RATE as f64 / PAGE_SIZE as f64),
        reads: None,
        rings: false,
        state: 10_000,
    };
    let ([source, destination], tracker) = pair(kvm, shape);
    let mut params = Params {
        downtime_limit: LIMIT,
        total_timeout: Some(LONG),
        ..Params::default()
    };
    params.policy.slowing = Slowing::AutoConverge;
    params.policy.sync = Duration::from_millis(100);
    let link = Link::of(RATE, Duration::from_millis(1), 64 << 10);
    let mut issued: Vec<(Duration, Forecast)> = Vec::new();
    let look = |outgoing: &Outgoing| {
        let at = outgoing.stats().elapsed;
        issued.extend(outgoing.forecast().map(|forecast| (at, forecast)));
    };
    let machines = [&source, &destination];
    let Moved { stats, ended, .. } = migrate_watched(tracker, machines, &link, &params, look);
    source.halt();
    let early = issued.iter().rev().find(|(at, _)| *at <= stats.elapsed / 4);
    let early = early.filter(|(_, forecast)| forecast.converges && ended.is_ok());
    let Some((_, forecast)) = early else {
        eprintln!("    real, {dirties} of the link: {ended:?}, {stats:?}");
        return [1.0; 3];
    };
    let off = |forecast: f64, was: f64| (forecast - was).abs() / was;
    let errors = [
        off(forecast.time.as_secs_f64(), stats.elapsed.as_secs_f64()),
        off(forecast.bytes, stats.wire_bytes as f64),
        off(f64::from(forecast.passes), f64::from(stats.pass)),
    ];
    eprintln!("    real, {dirties} of the link: {errors:.3?}");
    errors
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let one = Runs::of(1.0);
    for (what, errors) in WHAT.iter().zip(simulated()) {
        let mut runs = Runs::default();
        errors.iter().for_each(|error| runs.push(*error));
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let name = format!("forecast.error/{what}");
        report.compared(&name, "share", &runs, "what it was", &one);
        let name = format!("forecast.error/worst_{what}");
        report.compared(&name, "share", &Runs::of(worst), "what it was", &one);
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => return report.skipped("forecast.error/real_", &reason),
    };
    let mut all: [Runs; 3] = Default::default();
    for dirties in [0.3, 0.9, 1.5, 3.0] {
        for (runs, error) in all.iter_mut().zip(real(&kvm, dirties)) {
            runs.push(error);
        }
    }
    for (what, runs) in WHAT.iter().zip(&all) {
        let name = format!("forecast.error/real_{what}");
        report.compared(&name, "share", runs, "what it was", &one);
    }
}
