//! A scan that fails, memory that another userfaultfd watches, and the stop of the log.

use super::watched::{log, tracked, tracked_with, Ram, PAGE};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::error::Kind;
use brant::memory::Memory;
use std::collections::BTreeSet;
use std::sync::Arc;

fn replace(ram: &Ram, first: usize, pages: usize) {
    // SAFETY: this test's own mapping, that nobody has a reference into.
    unsafe {
        let at = ram.at.add(first * PAGE).cast();
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        assert_eq!(libc::mmap(at, pages * PAGE, rw, flags, -1, 0), at);
    }
}

#[test]
fn a_scan_that_fails_makes_everything_dirty_and_the_next_is_a_good_one() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(10)]) else {
        return;
    };
    t.start();
    t.blocks[0].write(1, 1);
    replace(&t.blocks[0], 30, 4);
    let report = t.consumer.sync(When::Running).unwrap();
    assert_eq!(report.warnings.len(), 1);
    let warning = &report.warnings[0];
    assert!(
        warning.contains("userfault") && warning.contains("ram0"),
        "{warning}"
    );
    assert_eq!(report.pending.0, 74);
    assert_eq!(t.take().len(), 74);
    t.blocks[0].write(31, 1);
    t.blocks[0].write(2, 1);
    assert_eq!(t.found(), BTreeSet::from([(0, 2), (0, 31)]));
    // The very last sync may not guess.
    replace(&t.blocks[0], 0, 64);
    let error = t.consumer.sync(When::Stopped).unwrap_err();
    assert!(error.message().contains("userfault"), "{error}");
    assert_eq!(t.take().len(), 74);
}

#[test]
fn memory_of_another_userfaultfd_is_refused_by_name_and_stays_the_other_s() {
    let Some(first) = tracked(vec![Ram::anonymous(64)]) else {
        return;
    };
    first.start();
    let taken = &first.blocks[0];
    let free = Ram::anonymous(8);
    let memory = Arc::new(Memory::new().unwrap());
    memory.add_block(free.describe("free")).unwrap();
    memory.add_block(taken.describe("taken")).unwrap();
    let tracker = Tracker::new(memory, Clearing::default()).unwrap();
    tracker.add_log(log().unwrap()).unwrap();
    let consumer = tracker.consumer();
    let error = consumer.start(StartWith::Nothing).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.message().contains("`taken`"), "{error}");
    assert!(error.message().contains("another userfaultfd"), "{error}");
    taken.write(5, 1);
    assert_eq!(first.found(), BTreeSet::from([(0, 5)]), "the first goes on");
    // The memory that the failed start had registered is free again.
    let third = tracked_with(log().unwrap(), vec![]);
    third.memory.add_block(free.describe("free")).unwrap();
    third.start();
    third.consumer.stop().unwrap();
    first.consumer.stop().unwrap();
    consumer.start(StartWith::Nothing).unwrap();
    consumer.stop().unwrap();
}

#[test]
fn stopping_gives_the_memory_back_even_when_a_child_holds_the_descriptor() {
    let Some(t) = tracked(vec![Ram::anonymous(64), Ram::shared(64)]) else {
        return;
    };
    t.start();
    t.blocks[0].write(1, 1);
    let mut pipe = [0; 2];
    // SAFETY: two descriptors; the child only waits for the end of its file, and ends.
    let child = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            libc::close(pipe[1]);
            let mut byte = 0u8;
            libc::read(pipe[0], (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        child
    };
    t.consumer.stop().unwrap();
    assert_eq!(t.take(), BTreeSet::from([(0, 1)]), "a stop harvests first");
    let again = t.consumer.start(StartWith::Nothing);
    // SAFETY: this test's own descriptors and child.
    unsafe {
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    again.unwrap();
    t.blocks[1].write(2, 1);
    assert_eq!(t.found(), BTreeSet::from([(1, 2)]));
}
