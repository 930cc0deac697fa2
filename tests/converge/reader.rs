//! A guest whose one vCPU writes and whose other one reads: the dirty limit slows the writer alone.

use crate::support::busy::{has_rings, migrate, pair, Shape};
use crate::support::link::Link;
use crate::support::time::MS;
use brant::kvm_ioctls::Kvm;
use brant::migrate::{Params, Policy, Slowing};
use std::time::Duration;

const RATE: u64 = 20_000_000;
const WRITES: f64 = 3.0 * RATE as f64 / 4096.0;
const READS: f64 = 4000.0;

#[test]
fn the_dirty_limit_slows_the_writer_and_leaves_the_reader_alone() {
    let kvm = match Kvm::new() {
        Ok(kvm) if has_rings(&kvm) => kvm,
        _ => {
            println!("skipped: no /dev/kvm, or no dirty rings");
            return;
        }
    };
    let shape = Shape {
        pages: 4096,
        region: 3072,
        writes: Some(WRITES),
        reads: Some(READS),
        rings: true,
        state: 1000,
    };
    let ([here, there], tracker) = pair(&kvm, shape);
    let params = Params {
        downtime_limit: MS * 400,
        policy: Policy {
            slowing: Slowing::DirtyLimit,
            ..Policy::default()
        },
        ..Params::default()
    };
    let link = Link::of(RATE, Duration::ZERO, 256 << 10);
    let moved = migrate(tracker, [&here, &there], &link, &params);
    here.halt();
    moved.ended.unwrap();
    // The rings keep the limit: the VMM's operation is not called.
    assert_eq!(here.most_throttled(), 0);
    let told = here.told();
    let limited = |text: &&String| *text == "1 vCPU is slowed";
    assert!(told.iter().filter(limited).count() >= 1, "{told:?}");
    let share =
        |vcpu: usize, rate: f64| moved.work[vcpu] as f64 / (rate * moved.took.as_secs_f64());
    let (writer, reader) = (share(0, WRITES), share(1, READS));
    println!("the writer did {writer:.2} of its work, the reader {reader:.2}: {told:?}");
    // Beside each other, so that a busy machine slows both.
    assert!(writer < 0.9 * reader, "{writer} and {reader}");
}
