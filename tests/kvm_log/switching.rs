//! Who switches the logging of slots, and what happens if it was not switched.

use super::guest::*;
use super::vm::*;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::SlotDescription;
use brant::units::{Bytes, PAGE_SIZE};
use brant::vmm::Vmm;
use brant::Kind;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use vm_memory::GuestAddress;

#[test]
fn the_vmm_can_switch_the_logging_itself() {
    let Some(kvm) = kvm() else { return };
    let (mut guest, switches) = Guest::new(&kvm, KvmMode::Auto, Clearing::default(), true);
    guest.consumer.start(StartWith::Nothing).unwrap();
    guest.writes(&[5, 226]);
    guest.consumer.sync(When::Running).unwrap();
    assert_eq!(guest.drain(|_| ()), BTreeSet::from([CODE, 5, 219]));
    guest.consumer.stop().unwrap();
    assert!(guest.flags_are_off());
    let calls = switches.calls.lock().unwrap();
    let all = vec![0, 1, 2, 3];
    assert_eq!(*calls, [(true, all.clone()), (false, all)]);
}

/// A VMM whose `log_on` does not switch anything.
struct Forgets(Mutex<Vec<bool>>);

impl Vmm for Forgets {
    fn log_on(&self, _: &[u32]) -> brant::Result<()> {
        self.0.lock().unwrap().push(true);
        Ok(())
    }
    fn log_off(&self, _: &[u32]) -> brant::Result<()> {
        self.0.lock().unwrap().push(false);
        Ok(())
    }
}

#[test]
fn a_log_on_that_switched_nothing_on_is_named_at_the_start() {
    let Some(kvm) = kvm() else { return };
    let (guest, _) = Guest::new(&kvm, KvmMode::Auto, Clearing::default(), true);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let forgets = Arc::new(Forgets(Mutex::default()));
    let switch = LogSwitch::Vmm(Arc::clone(&forgets) as Arc<dyn Vmm>);
    let log = KvmLog::from_vm(&guest.vm, KvmMode::Auto, switch).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    let error = consumer.start(StartWith::Everything).unwrap_err();
    assert_eq!(error.kind(), Kind::Vmm);
    for part in ["`log_on`", "slot 0x0", "KVM_MEM_LOG_DIRTY_PAGES"] {
        assert!(error.message().contains(part), "{part} in: {error}");
    }
    assert_eq!(*forgets.0.lock().unwrap(), [true, false]);
    assert!(guest.flags_are_off());
}

#[test]
fn a_slot_that_kvm_does_not_have_is_an_error_and_is_not_made() {
    let Some(kvm) = kvm() else { return };
    let (guest, _) = Guest::new(&kvm, KvmMode::Auto, Clearing::default(), false);
    let free = GuestAddress(1 << 30);
    let slot = SlotDescription {
        slot: 9,
        flags: 0,
        block: guest.memory.find_block("ram").unwrap(),
        offset: Bytes(0),
        length: Bytes(8 * PAGE_SIZE),
        guest_address: free,
    };
    guest.memory.add_slot(&slot).unwrap();
    let error = guest.consumer.start(StartWith::Everything).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains("no memory slot 0x9"), "{error}");
    // Now the call makes a new slot. Size and memory of an existing slot cannot change.
    region(&guest.vm, 9, 0, free.0, 16, guest.ram.0 as u64);
    assert!(guest.flags_are_off(), "the slots that exist are not logged");
    guest.memory.remove_slot(9, free).unwrap();
    guest.consumer.start(StartWith::Everything).unwrap();
    guest.consumer.stop().unwrap();
}
