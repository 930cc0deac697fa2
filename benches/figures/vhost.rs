//! The log that vhost back ends share, beside a log for each of them: a sync of 256 GiB of which a
//! tenth is dirty. vCPUs wrote that much; 24 back ends wrote a tenth of it between them, and the VMM
//! marked another tenth.
//!
//! A sync reads a vhost log and leaves its bits set. They are cleared when pages are taken, and the
//! time for that is reported too.

use crate::back_ends::Writers;
use crate::machine::{kvm, Machine, Shape, GIB};
use crate::parts::{ms, split, sync_written};
use crate::report::{Report, Runs};
use std::time::Duration;

const RUNS: usize = 9;
const LENGTH: u64 = 256 * GIB;
const DENSITY: f64 = 0.1;
const CASE: &str = "256GiB-10%";

/// All figures of this file.
pub fn measure(report: &mut Report) {
    const FAMILIES: [&str; 3] = ["vhost.shared/", "vhost.separate/", "vhost.clear/"];
    if !FAMILIES.iter().any(|family| report.wants_any(family)) {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => {
            let skip = |family: &&str| report.skipped(family, &reason);
            return FAMILIES.iter().for_each(skip);
        }
    };
    let machines = [Writers::together(), Writers::apart()].map(|writers| {
        let machine = Machine::new(&kvm, &Shape::plain(LENGTH), writers.logs());
        machine.start_dirty(DENSITY);
        (machine, writers)
    });
    let mut kernel_and_merge = Runs::default();
    let mut whole: [Runs; 2] = Default::default();
    let mut vhost: [Runs; 2] = Default::default();
    let mut clear: [Runs; 2] = Default::default();
    for turn in 0..=RUNS {
        for (i, (machine, writers)) in machines.iter().enumerate() {
            let (synced, get) = sync_written(machine, writers, LENGTH, DENSITY);
            let [kernel, merge, _, logs, all] = split(&synced, get);
            *writers.clearing.lock().unwrap() = Duration::ZERO;
            machine.drain();
            if turn == 0 {
                continue;
            }
            clear[i].push(ms(*writers.clearing.lock().unwrap()));
            vhost[i].push(logs);
            whole[i].push(all);
            if i == 0 {
                kernel_and_merge.push(kernel + merge);
            }
        }
    }
    let [shared, apart] = &whole;
    let name = format!("vhost.shared/{CASE}");
    report.compared(&name, "ms", shared, "KVM and its merge", &kernel_and_merge);
    let name = format!("vhost.separate/{CASE}");
    report.compared(&name, "ms", &vhost[1], "one shared log", &vhost[0]);
    for (which, clear, whole) in [
        ("shared", &clear[0], shared),
        ("separate", &clear[1], apart),
    ] {
        let name = format!("vhost.clear/{CASE}/{which}");
        report.compared(&name, "ms", clear, "the whole sync", whole);
    }
    for (machine, _) in &machines {
        machine.consumer.stop().unwrap();
    }
}
