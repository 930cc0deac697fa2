//! The dirty limit of single vCPUs on a guest of the real KVM: the writer is slowed and the reader is
//! not, and nobody who needs a vCPU waits for one that is limited.

mod machine;
mod migrating;

use crate::support::time::LONG;
use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::vcpus::{VcpuLimit, VcpuRates};
use brant::dirty::When;
use brant::units::Pages;
use brant::vm_memory::{Bytes, GuestAddress};
use brant::vmm::Vmm;
use machine::{machine, Machine, BYTES, ENTRIES, PAGES, READER, WRITER};
use std::time::{Duration, Instant};

fn until(begun: Instant, what: &str, over: impl Fn() -> bool) {
    while !over() {
        assert!(begun.elapsed() < LONG, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets the reader make so many steps. Returns the pages that the writer wrote meanwhile, and the time.
fn steps(machine: &Machine, steps: u64) -> (u64, Duration) {
    let rings = machine.rings();
    let (begun, from) = (Instant::now(), machine.steps());
    let before = rings.dirtied(WRITER).unwrap();
    until(begun, "reading", || machine.steps() >= from + steps);
    (rings.dirtied(WRITER).unwrap() - before, begun.elapsed())
}

fn limit(consumer: &Consumer, pages_per_second: f64) {
    let limit = VcpuLimit {
        vcpu: WRITER,
        pages_per_second,
    };
    consumer.limit_vcpus(&[limit]).unwrap();
}

/// A copy of what the consumer hands out, page by page.
fn take(machine: &Machine, consumer: &Consumer, copy: &mut [u8]) {
    let mut cursor = Cursor::default();
    loop {
        let taken = consumer.take(&mut cursor, 64, Pages(512)).unwrap();
        if taken.is_empty() {
            return;
        }
        for run in taken.runs() {
            let from = run.pages.first().bytes().0;
            let to = from + run.pages.count().bytes().0;
            let place = &mut copy[from as usize..to as usize];
            machine
                .memory()
                .read_slice(place, GuestAddress(from))
                .unwrap();
        }
        taken.delivered();
    }
}

#[test]
fn the_writer_is_slowed_to_its_limit_and_the_reader_is_not_and_no_page_is_lost() {
    let Some((machine, consumer)) = machine() else {
        return;
    };
    let mut copy = vec![0; BYTES];
    let mut rates = VcpuRates::default();
    take(&machine, &consumer, &mut copy);
    machine.start();
    let begun = Instant::now();
    rates
        .update(begun.elapsed(), &consumer.vcpu_counts().unwrap())
        .unwrap();

    let (free, free_time) = steps(&machine, 2000);
    // Or else it is no sweep.
    let found = consumer.sync(When::Running).unwrap().found.0;
    assert!(found > PAGES / 8, "{found} pages were found");
    rates
        .update(begun.elapsed(), &consumer.vcpu_counts().unwrap())
        .unwrap();
    assert_eq!(rates.vcpus(), [READER, WRITER]);
    // A KVM with nested paging may log a page that is only read, once.
    assert!(
        rates.rates()[0] < rates.rates()[1] / 10.0,
        "{:?}",
        rates.rates()
    );

    let pages_per_second = free as f64 / free_time.as_secs_f64() / 20.0;
    limit(&consumer, pages_per_second);
    // What the writer saved or has in its ring.
    let _ = steps(&machine, 200);
    let waits = machine.rings().figures().limit_waits;
    let (limited, limited_time) = steps(&machine, 2000);
    let allowed = pages_per_second * (limited_time.as_secs_f64() + 0.05) + ENTRIES as f64;
    assert!(limited as f64 <= allowed, "{limited} pages of {allowed}");
    assert!(
        machine.rings().figures().limit_waits > waits,
        "nobody waited"
    );
    // As seen from the reader, the writer became much slower. A throttle for both would not show.
    assert!(
        limited * 4 < free,
        "{limited} pages with a limit, {free} without"
    );
    let (slow, fast) = (limited_time.as_secs_f64(), free_time.as_secs_f64());
    assert!(
        slow < 10.0 * fast,
        "the reader took {slow} s instead of {fast}"
    );

    // A sync kicks both vCPUs, and finds what the limited one has in its ring.
    for _ in 0..5 {
        consumer.sync(When::Running).unwrap();
        take(&machine, &consumer, &mut copy);
    }
    machine.pause().unwrap();
    consumer.sync(When::Stopped).unwrap();
    take(&machine, &consumer, &mut copy);
    let mut memory = vec![0; copy.len()];
    machine
        .memory()
        .read_slice(&mut memory, GuestAddress(0))
        .unwrap();
    let lost = copy
        .chunks(4096)
        .zip(memory.chunks(4096))
        .filter(|(a, b)| a != b);
    assert_eq!(lost.count(), 0);
    consumer.stop().unwrap();
    assert!(!consumer.has_vcpu_limits());
}

#[test]
fn a_pause_a_kick_and_a_stop_do_not_wait_for_a_vcpu_that_may_write_a_page_a_minute() {
    let Some((machine, consumer)) = machine() else {
        return;
    };
    machine.start();
    limit(&consumer, 1.0 / 60.0);
    let waits = || machine.rings().figures().limit_waits;
    let begun = Instant::now();
    until(begun, "the first wait", || waits() > 0);
    for _ in 0..3 {
        // The kick in a sync returns when the vCPU was seen outside.
        let begun = Instant::now();
        consumer.sync(When::Running).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let begun = Instant::now();
    machine.pause().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    machine.start();
    let (begun, before) = (Instant::now(), waits());
    until(begun, "another wait", || waits() > before);
    consumer.stop().unwrap();
    let (begun, steps, waits_then) = (Instant::now(), machine.steps(), waits());
    // Nothing is tracked any more: the writer runs on, and a full ring is emptied at once.
    until(begun, "reading on", || machine.steps() > steps);
    assert!(
        waits() <= waits_then + 1,
        "a vCPU waits although nothing is tracked"
    );
    machine.pause().unwrap();
}
