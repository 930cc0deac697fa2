//! The cost of a sync beside the kernel's own work, and the time for clearing a chunk, on slots of
//! 256 GiB and 1 TiB of the real KVM.

use crate::machine::{kvm, Clear, Machine, Shape, GIB};
use crate::report::{alternate, Report, Runs};
use brant::dirty::tracker::StartWith;
use brant::units::PAGE_SIZE;
use kvm_ioctls::Kvm;
use std::time::Instant;

const RUNS: usize = 5;
const SIZES: [(&str, u64); 2] = [("256GiB", 256 * GIB), ("1TiB", 1024 * GIB)];
const DENSITIES: [(&str, f64); 4] = [("0%", 0.0), ("0.1%", 0.001), ("1%", 0.01), ("10%", 0.1)];

/// All figures of syncing and clearing.
pub fn measure(report: &mut Report) {
    if !report.wants_any("sync.over_kernel/") && !report.wants("clear.longest_ms") {
        return;
    }
    let kvm = match kvm() {
        Ok(kvm) => kvm,
        Err(reason) => {
            report.skipped("sync.over_kernel/", &reason);
            return report.skipped("clear.longest_ms", &reason);
        }
    };
    for (size, length) in SIZES {
        for (density_name, density) in DENSITIES {
            let name = format!("sync.over_kernel/{size}-{density_name}");
            if report.wants(&name) {
                over_kernel(report, &kvm, &name, length, density);
            }
        }
    }
    if report.wants("clear.longest_ms") {
        longest_clear(report, &kvm);
    }
}

fn over_kernel(report: &mut Report, kvm: &Kvm, name: &str, length: u64, density: f64) {
    let machine = Machine::new(kvm, &Shape::plain(length), Vec::new());
    let words = (length / PAGE_SIZE / 64) as usize;
    machine.start_dirty(density);
    let (mut from, mut to) = (vec![1u64; words], vec![1u64; words]);
    let mut pages = None;
    let [sync, memcpy]: [Runs; 2] = alternate(RUNS, |contender| {
        if contender == 0 {
            let (synced, get) = machine.sync();
            let pending = machine.consumer.pending().0;
            assert_eq!(
                *pages.get_or_insert(pending),
                pending,
                "each sync finds the same"
            );
            let wanted = (length / PAGE_SIZE) as f64 * density;
            assert!(
                (pending as f64 - wanted).abs() <= wanted * 0.02,
                "{pending} of {wanted}"
            );
            machine.drain();
            (synced.time - get).as_secs_f64() * 1e3
        } else {
            // A GET has just written the memory that a sync reads, so one is made here too.
            machine.get(&mut from);
            let begun = Instant::now();
            to.copy_from_slice(&from);
            std::hint::black_box(&mut to);
            begun.elapsed().as_secs_f64() * 1e3
        }
    });
    machine.consumer.stop().unwrap();
    report.compared(name, "ms", &sync, "memcpy", &memcpy);
}

fn longest_clear(report: &mut Report, kvm: &Kvm) {
    let machine = Machine::new(kvm, &Shape::plain(SIZES[0].1), Vec::new());
    let [chunk, whole]: [Runs; 2] = alternate(RUNS, |contender| {
        machine.clears(Clear::Pass);
        let time = if contender == 0 {
            machine.consumer.start(StartWith::Everything).unwrap();
            machine.drain();
            machine.consumer.stats().longest_clear
        } else {
            // A clean start is one clear of the whole slot.
            machine.consumer.start(StartWith::Nothing).unwrap();
            machine.control.lock().unwrap().clearing
        };
        machine.consumer.stop().unwrap();
        time.as_secs_f64() * 1e3
    });
    report.compared("clear.longest_ms", "ms", &chunk, "one clear of all", &whole);
}
