//! The tracker with a guest that really writes: every page is found, once, whatever the shape of
//! its slots.

use super::guest::*;
use super::vm::*;
use brant::dirty::consumer::Cursor;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::sys::kvm as sys;
use brant::sys::kvm::Vm;
use brant::units::{Bytes, Pages, PAGE_SIZE};
use std::collections::BTreeSet;
use std::sync::Arc;
use vm_memory::GuestAddress;

#[test]
fn every_page_the_guest_writes_is_found_and_none_twice() {
    let Some(kvm) = kvm() else { return };
    let modes = [
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
    ];
    let clearings = [
        Clearing::Chunked { shift: 6 },
        Clearing::default(),
        Clearing::AtSync,
    ];
    for (mode, clearing) in modes.iter().flat_map(|m| clearings.map(|c| (*m, c))) {
        let (mut guest, _) = Guest::new(&kvm, mode, clearing, false);
        assert!(guest.flags_are_off());
        // Frames that are mapped before logging begins.
        guest.writes(&[2, 69, 70, 226]);
        guest.consumer.start(StartWith::Everything).unwrap();
        assert_eq!(guest.consumer.pending(), Pages(PAGES));
        guest.consumer.sync(When::Running).unwrap();
        let all = guest.drain(|guest| guest.writes(&[2, 63, 64, 69, 70, 226]));
        assert_eq!(all.len() as u64, PAGES, "{mode:?} {clearing:?}");

        // Guest frames. The block's pages are 2, 63, 64, 69, 70, 102, 103, 219, and 85 through the
        // slot that shows it again.
        guest.writes(&[2, 63, 64, 69, 70, 102, 110, 226, 235]);
        guest.consumer.sync(When::Running).unwrap();
        let wrote = BTreeSet::from([CODE, 2, 63, 64, 69, 70, 85, 102, 103, 219]);
        let first = guest.drain(|_| ());
        assert_eq!(first, wrote, "{mode:?} {clearing:?}");

        // Written again between the harvest and the take of the rest.
        guest.writes(&[64, 226]);
        guest.consumer.sync(When::Running).unwrap();
        guest.drain(|guest| guest.writes(&[64, 65, 226, 85, 235]));
        let last = guest.consumer.sync(When::Stopped).unwrap();
        assert!(last.warnings.is_empty());
        guest.drain(|_| ());
        guest.assert_copied();
        for _ in 0..2 {
            let still = guest.consumer.sync(When::Stopped).unwrap();
            assert_eq!(still.found, Pages(0), "{mode:?} {clearing:?}");
        }
        guest.consumer.stop().unwrap();
        assert!(guest.flags_are_off(), "{mode:?} {clearing:?}");

        // A second start, for which the kernel makes new bitmaps.
        guest.copy.fill(0xff);
        guest.consumer.start(StartWith::Nothing).unwrap();
        assert_eq!(guest.consumer.pending(), Pages(0));
        assert_eq!(guest.consumer.sync(When::Running).unwrap().found, Pages(0));
        guest.writes(&[69, 226]);
        guest.consumer.sync(When::Running).unwrap();
        assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 69, 219]));
    }
}

#[test]
fn a_write_through_another_slot_of_the_same_memory_is_found() {
    let Some(kvm) = kvm() else { return };
    for clearing in [
        Clearing::Chunked { shift: 6 },
        Clearing::default(),
        Clearing::AtSync,
    ] {
        let (mut guest, _) = Guest::new(&kvm, KvmMode::Auto, clearing, false);
        guest.consumer.start(StartWith::Everything).unwrap();
        guest.consumer.sync(When::Running).unwrap();
        guest.drain(|_| ());
        // Pages 80 and 85 lie in slot 1, and at frames 230 and 235 in slot 3.
        for frames in [[80, 235], [230, 85], [235, 85], [230, 230]] {
            guest.writes(&frames);
            guest.consumer.sync(When::Running).unwrap();
            // A take protects the page in both slots, so the next sync finds a later write through
            // either.
            guest.drain(|guest| guest.writes(&frames));
            guest.consumer.sync(When::Stopped).unwrap();
            guest.drain(|_| ());
            guest.assert_copied();
        }
        let still = guest.consumer.sync(When::Stopped).unwrap();
        assert_eq!(still.found, Pages(0), "{clearing:?}");
    }
}

#[test]
fn a_chunk_rounded_out_over_a_page_that_was_sent_leaves_its_new_bit_alone() {
    let Some(kvm) = kvm() else { return };
    let clearing = Clearing::Chunked { shift: 6 };
    let (mut guest, _) = Guest::new(&kvm, KvmMode::Auto, clearing, false);
    guest.consumer.start(StartWith::Everything).unwrap();
    guest.consumer.sync(When::Running).unwrap();
    guest.drain(|_| ());
    // Pages 127 and 128 of the block, two chunks, are pages 24 and 25 of slot 2: one word.
    let (before, after) = (134, 135);
    guest.writes(&[before, after]);
    guest.consumer.sync(When::Running).unwrap();
    let mut taken = Vec::new();
    for _ in [CODE, 127, 128] {
        let one = guest.consumer.take(&mut guest.cursor, 1, Pages(1)).unwrap();
        let page = one.runs().next().unwrap().pages.first().0;
        one.delivered();
        taken.push(page);
        guest.copy[page as usize] = guest.ram.byte(page);
        if page == 127 {
            guest.writes(&[before]);
        }
    }
    assert_eq!(taken, [CODE, 127, 128]);
    guest.consumer.sync(When::Stopped).unwrap();
    guest.cursor = Cursor::default();
    assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 127]));
    guest.assert_copied();
}

#[test]
fn a_misaligned_block_of_4_mib_is_cleared_by_one_ioctl() {
    let Some(kvm) = kvm() else { return };
    const FOUR_MIB: u64 = 1024;
    for first in [0, 1, 37, 63] {
        let vm = kvm.create_vm().unwrap();
        let ram = Ram::new(first + FOUR_MIB);
        let host = ram.0 as u64 + first * PAGE_SIZE;
        region(&vm, 0, 0, 1, FOUR_MIB, host);
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that is never accessed.
                host: unsafe { brant::memory::HostMemory::new(ram.0) },
                length: Bytes((first + FOUR_MIB) * PAGE_SIZE),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        memory
            .add_slot(&SlotDescription {
                slot: 0,
                flags: 0,
                block: memory.find_block("ram").unwrap(),
                offset: Bytes(first * PAGE_SIZE),
                length: Bytes(FOUR_MIB * PAGE_SIZE),
                guest_address: GuestAddress(PAGE_SIZE),
            })
            .unwrap();
        let tracker = Tracker::new(memory, Clearing::default()).unwrap();
        let log = KvmLog::from_vm(&vm, KvmMode::Auto, LogSwitch::Brant).unwrap();
        tracker.add_log(Box::new(log)).unwrap();
        let consumer = tracker.consumer();
        // Every page is dirty.
        consumer.start(StartWith::Everything).unwrap();
        consumer.sync(When::Running).unwrap();
        let mut cursor = Cursor::default();
        loop {
            let taken = consumer.take(&mut cursor, 64, Pages(4096)).unwrap();
            if taken.is_empty() {
                break;
            }
            taken.delivered();
        }
        let stats = consumer.stats();
        if boundary(&vm).check_extension(sys::CAP_MANUAL_DIRTY_LOG_PROTECT2) & 3 == 3 {
            assert_eq!(
                (stats.clear_calls, stats.clear_bits),
                (1, FOUR_MIB),
                "{first}"
            );
        }
        assert_eq!(consumer.sync(When::Stopped).unwrap().found, Pages(0));
        consumer.stop().unwrap();
    }
}
