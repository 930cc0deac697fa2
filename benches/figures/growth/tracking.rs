//! Growth with a guest's size, its vCPUs and the number of runs of its dirty pages: marks, balloon
//! and hints, and the tracker's start, sync, take and stop.

use super::{block, row, slot, Growth, NOWHERE};
use crate::machine::{self, Machine, Shape, GIB};
use crate::report::Report;
use brant::dirty::consumer::Consumer;
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{Memory, NO_SLOT};
use brant::units::{Bytes, PAGE_SIZE};
use kvm_ioctls::Kvm;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// Bytes of guest memory, where the contents do not matter.
const LENGTH: u64 = 64 * GIB;
const VCPUS: u64 = 8;
/// The number of runs of one page. The guest has the same size at both sizes.
const PIECES: u64 = 1 << 14;

/// A tracker of this many bytes, which are never accessed.
fn huge(length: u64) -> (Arc<Memory>, Arc<Tracker>) {
    let memory = Arc::new(Memory::new().unwrap());
    block(&memory, "ram", NOWHERE as *mut u8, length);
    slot(&memory, NO_SLOT, "ram", 0, length, 0);
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    (memory, tracker)
}

fn started(length: u64) -> (Arc<Tracker>, Consumer) {
    let (_memory, tracker) = huge(length);
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    (tracker, consumer)
}

fn marks_and_balloon(report: &mut Report) {
    /// One such bitmap takes too little time.
    const TIMES: u64 = 32;
    let words = |pages: u64| vec![0x5555_5555_5555_5555; pages as usize / 64];
    let marked = |pages| {
        let (made, words) = (started(pages * PAGE_SIZE), words(pages));
        // Touches both sides' words.
        made.0.mark_words(GuestAddress(0), &words, pages);
        (made, words)
    };
    let growth = Growth::Linear;
    row(
        report,
        "mark_bitmap",
        1 << 17,
        growth,
        marked,
        |pages, it| {
            for _ in 0..TIMES {
                it.0 .0.mark_words(GuestAddress(0), &it.1, pages);
            }
        },
    );
    let ballooned = |length| {
        let (memory, tracker) = huge(length);
        memory.set_must_tell_host(true);
        memory.mark_ballooned(GuestAddress(0), length);
        (memory, tracker)
    };
    let again = |_, it: &mut (Arc<Memory>, _)| {
        let page = |i: u64| it.0.mark_ballooned(GuestAddress(i * PAGE_SIZE), PAGE_SIZE);
        (0..100_000).for_each(page);
    };
    let growth = Growth::None;
    let (name, length) = ("balloon_told_again", 2 * LENGTH);
    row(report, name, length, growth, ballooned, again);
    let asked = |length| {
        let (tracker, consumer) = started(length);
        let round = tracker.begin_hints().unwrap();
        (tracker, consumer, round)
    };
    let growth = Growth::None;
    row(report, "hint", length, growth, asked, |_, it| {
        for i in 0..100_000 {
            let at = GuestAddress(i * PAGE_SIZE);
            it.0.hint_free(it.2, at, PAGE_SIZE).unwrap();
        }
    });
}

/// The pages of one guest, each a run of its own.
fn runs(report: &mut Report) {
    const APART_PAGES: u64 = LENGTH / PAGE_SIZE / (8 * PIECES);
    let made = |_| started(LENGTH);
    let scattered = |pieces: u64, it: &mut (Arc<Tracker>, Consumer)| {
        let block = it.1.memory().map().blocks()[0].id();
        // From one end to the other, whatever their number.
        let step = APART_PAGES * (8 * PIECES / pieces) * PAGE_SIZE;
        for i in 0..pieces {
            it.1.mark_block(block, Bytes(i * step), 1);
        }
    };
    row(report, "mark/runs", PIECES, Growth::Linear, made, scattered);
    let marked = |pieces| {
        let mut it = made(pieces);
        scattered(pieces, &mut it);
        it
    };
    // The bitmaps of a guest without a dirty page are still looked at.
    let growth = Growth::Beside(1);
    row(report, "sync/runs", PIECES, growth, marked, |_, it| {
        it.1.sync(When::Running).unwrap();
    });
    let synced = |pieces| {
        let it = marked(pieces);
        it.1.sync(When::Running).unwrap();
        it
    };
    let growth = Growth::Beside(1);
    row(report, "take/runs", PIECES, growth, synced, |_, it| {
        machine::drain(&it.1);
    });
}

fn tracking(report: &mut Report, kvm: &Kvm) {
    let made = |length| Machine::new(kvm, &Shape::plain(length), Vec::new());
    let started = |length| {
        let machine = made(length);
        machine.start_dirty(0.001);
        machine
    };
    row(report, "start", LENGTH, Growth::Linear, made, |_, it| {
        it.consumer.start(StartWith::Everything).unwrap();
    });
    row(report, "stop", LENGTH, Growth::Linear, started, |_, it| {
        it.consumer.stop().unwrap();
    });
    let drained = |length| {
        let machine = started(length);
        machine.sync();
        machine.drain();
        machine
    };
    let growth = Growth::Linear;
    row(report, "sync/0.1%", LENGTH, growth, drained, |_, it| {
        it.sync();
    });
    let synced = |length| {
        let machine = started(length);
        machine.sync();
        machine
    };
    let growth = Growth::Linear;
    row(report, "take/0.1%", LENGTH, growth, synced, |_, it| {
        it.drain()
    });
}

/// The same number of pages written by each vCPU: the entries of its ring, and the size of its
/// ring.
fn vcpus(report: &mut Report, kvm: &Kvm) {
    const EACH: u64 = 32;
    let made = |ring_vcpus| {
        let shape = Shape {
            ring_vcpus,
            clearing: Clearing::AtSync,
            ..Shape::plain(GIB)
        };
        Machine::new(kvm, &shape, Vec::new())
    };
    let started = |vcpus| {
        let machine = made(vcpus);
        machine.consumer.start(StartWith::Nothing).unwrap();
        machine
    };
    let growth = || Growth::Beside(1);
    row(report, "start/vcpus", VCPUS, growth(), made, |_, it| {
        it.consumer.start(StartWith::Nothing).unwrap();
    });
    let written = |vcpus| {
        let machine = started(vcpus);
        machine.write(EACH, GIB);
        machine
    };
    row(report, "sync/vcpus", VCPUS, growth(), written, |_, it| {
        it.consumer.sync(When::Running).unwrap();
    });
    row(report, "stop/vcpus", VCPUS, growth(), written, |_, it| {
        it.consumer.stop().unwrap();
    });
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    marks_and_balloon(report);
    runs(report);
    match machine::kvm() {
        Ok(kvm) => {
            tracking(report, &kvm);
            match machine::has_rings(&kvm) {
                true => vcpus(report, &kvm),
                false => report.skipped("growth.sync/vcpus", "this KVM has no dirty rings"),
            }
        }
        Err(reason) => {
            for name in ["start", "stop", "sync", "take"] {
                report.skipped(&format!("growth.{name}"), &reason);
            }
        }
    }
}
