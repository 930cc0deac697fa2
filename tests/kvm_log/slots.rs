//! Slots that go, come, or are replaced while they are logged.

use super::guest::*;
use super::vm::*;
use crate::support::alone::alone;
use brant::dirty::consumer::Cursor;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use std::collections::BTreeSet;
use std::sync::Arc;
use vm_memory::GuestAddress;

#[test]
fn a_slot_that_goes_is_harvested_and_one_that_comes_is_logged() {
    let Some(kvm) = kvm() else { return };
    for mode in [
        KvmMode::GetAndClear,
        KvmMode::ManualProtect,
        KvmMode::InitiallySet,
    ] {
        let (mut guest, _) = Guest::new(&kvm, mode, Clearing::Chunked { shift: 6 }, false);
        guest.consumer.start(StartWith::Everything).unwrap();
        guest.drain(|_| ());
        guest.consumer.sync(When::Running).unwrap();
        guest.drain(|_| ());
        // Page 85 through slot 3, which then goes.
        guest.writes(&[235]);
        let (slot, first, pages, frame) = SLOTS[3];
        let at = GuestAddress(frame * PAGE_SIZE);
        guest.memory.remove_slot(slot, at).unwrap();
        region(&guest.vm, slot, 0, frame, 0, 0);
        guest.consumer.sync(When::Running).unwrap();
        assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 85]), "{mode:?}");
        // It comes back.
        let host = guest.ram.0 as u64 + first * PAGE_SIZE;
        region(&guest.vm, slot, 0, frame, pages, host);
        guest
            .memory
            .add_slot(&SlotDescription {
                slot,
                flags: 0,
                block: guest.memory.find_block("ram").unwrap(),
                offset: Bytes(first * PAGE_SIZE),
                length: Bytes(pages * PAGE_SIZE),
                guest_address: at,
            })
            .unwrap();
        assert_eq!(guest.drain(|_| ()), (80..100).collect(), "{mode:?}");
        guest.writes(&[236]);
        guest.consumer.sync(When::Stopped).unwrap();
        assert!(guest.drain(|_| ()).contains(&86), "{mode:?}");
        guest.assert_copied();
        assert_eq!(
            guest.consumer.sync(When::Stopped).unwrap().found,
            Pages(0),
            "{mode:?}"
        );
    }
}

#[test]
fn a_slot_that_was_replaced_by_a_larger_one_counts_as_dirty_and_nothing_else_is_written() {
    alone(LIMIT, || {
        let Some(kvm) = kvm() else {
            return;
        };
        for mode in [
            KvmMode::GetAndClear,
            KvmMode::ManualProtect,
            KvmMode::InitiallySet,
        ] {
            // A bitmap of 512 bytes and one of 64 KiB and a word, and the pages of the slot that
            // replaces it in KVM.
            for (pages, larger) in [(4096, 1 << 20), ((1 << 19) + 64, 1 << 20)] {
                replace_slot(&kvm, mode, pages, larger);
            }
        }
    });
}

/// KVM's slot 0 becomes larger without brant's knowledge, and then what it was.
fn replace_slot(kvm: &Kvm, mode: KvmMode, pages: u64, larger: u64) {
    let vm = kvm.create_vm().unwrap();
    let reserved = (larger * PAGE_SIZE) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing of it is touched.
    let host = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), reserved, access, flags, -1, 0)
    };
    assert_ne!(host, libc::MAP_FAILED);
    let set = |pages: u64, flags: u32| {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping outlives the machine.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    };
    set(pages, 0);
    let memory = Arc::new(Memory::new().unwrap());
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { brant::memory::HostMemory::new(host.cast()) },
            length: Bytes(pages * PAGE_SIZE),
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    let slot = SlotDescription {
        slot: 0,
        flags: 0,
        block: memory.find_block("ram").unwrap(),
        offset: Bytes(0),
        length: Bytes(pages * PAGE_SIZE),
        guest_address: GuestAddress(0),
    };
    memory.add_slot(&slot).unwrap();
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    let log = KvmLog::from_vm(&vm, mode, LogSwitch::Brant).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    let named = format!("{mode:?}, {pages} pages");
    let take_all = || {
        let (mut cursor, mut all) = (Cursor::default(), 0);
        loop {
            let taken = consumer.take(&mut cursor, 1024, Pages(1 << 20)).unwrap();
            if taken.is_empty() {
                return all;
            }
            all += taken.pages().0;
            taken.delivered();
        }
    };
    consumer.sync(When::Running).unwrap();
    take_all();
    set(0, 0);
    set(larger, LOGGED);
    for _ in 0..2 {
        let report = consumer.sync(When::Running).unwrap();
        assert!(
            report.warnings.iter().any(|w| w.contains("slot 0x0")),
            "{named}: {report:?}"
        );
        assert_eq!(take_all(), pages, "{named}");
    }
    // In the right order everything works again.
    memory.remove_slot(0, GuestAddress(0)).unwrap();
    set(0, 0);
    set(pages, 0);
    memory.add_slot(&slot).unwrap();
    let report = consumer.sync(When::Running).unwrap();
    assert_eq!(report.warnings, [""; 0], "{named}");
    take_all();
    assert_eq!(
        consumer.sync(When::Running).unwrap().found,
        Pages(0),
        "{named}"
    );
    consumer.stop().unwrap();
    // SAFETY: this test's own mapping; the machine does not run.
    unsafe { libc::munmap(host, reserved) };
}
