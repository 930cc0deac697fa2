//! What a destination cannot take is refused with its name, before anything is written.

use super::machine::{kvm, new_vcpu, Chips, Machine, Ram, Saved};
use super::programs::Program;
use crate::support::random::Random;
use brant::error::{Error, Kind};
use brant::kvm_bindings::{kvm_cpuid_entry2, CpuId, KVM_MAX_CPUID_ENTRIES};
use brant::kvm_ioctls::VcpuFd;
use brant::kvmstate::{
    check_compat, load_renumbered_vcpu, load_vcpu, save_compat, save_vcpu, stood_still, Kernel,
    COMPAT, VCPU, VM,
};
use brant::vmm::StateBlob;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A machine whose guest has run, its state, and a machine that has none of it.
fn machines() -> Option<(Machine, Saved, Machine)> {
    let kvm = kvm()?;
    let ram = Ram::new();
    let mut here = Machine::new(&kvm, &ram, Chips::Kernel);
    let there = Machine::new(&kvm, &ram, Chips::Kernel);
    here.begin(Program::Wait);
    here.run();
    let saved = here.save();
    Some((here, saved, there))
}

/// The state of a vCPU as far as a refused load could have changed it.
fn state(machine: &Machine) -> String {
    let (regs, sregs) = (machine.vcpu.get_regs(), machine.vcpu.get_sregs());
    let (events, xcrs) = (machine.vcpu.get_vcpu_events(), machine.vcpu.get_xcrs());
    let lapic = machine.vcpu.get_lapic().unwrap().regs;
    format!("{regs:?} {sregs:?} {events:?} {xcrs:?} {lapic:?}")
}

/// The words of the section `id` in the blob `name`, and the index of the first.
fn section(saved: &Saved, name: &str, id: u32) -> (usize, Vec<u64>) {
    let data = &saved.0.iter().find(|blob| blob.0 == name).unwrap().3;
    let word = |at: usize| u64::from_le_bytes(data[8 * at..8 * at + 8].try_into().unwrap());
    let mut at = 5;
    while word(at) as u32 != id {
        at += 1 + (word(at) >> 32) as usize;
    }
    let length = (word(at) >> 32) as usize;
    (at + 1, (at + 1..at + 1 + length).map(word).collect())
}

/// The state with one word of one blob changed.
fn with(saved: &Saved, name: &str, at: usize, value: u64) -> Saved {
    let mut changed = saved.clone();
    let blob = changed.0.iter_mut().find(|blob| blob.0 == name).unwrap();
    blob.3[8 * at..8 * at + 8].copy_from_slice(&value.to_le_bytes());
    seal(&mut blob.3);
    changed
}

/// Puts the checksum into the upper half of the fourth word: it is counted with 0 there.
fn seal(data: &mut [u8]) {
    const AT: std::ops::Range<usize> = 28..32;
    data[AT].fill(0);
    let sum = crc32fast::hash(data);
    data[AT].copy_from_slice(&sum.to_le_bytes());
}

fn refused(machine: &Machine, saved: &Saved, kind: Kind, word: &str) {
    let before = state(machine);
    let error = machine.load(saved).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(word), "{word}: {error}");
    assert_eq!(state(machine), before, "{error}");
}

#[test]
fn what_this_kernel_or_vcpu_cannot_take_is_named_and_nothing_is_loaded() {
    let Some((_, saved, there)) = machines() else {
        return;
    };
    let unsupported = |saved: &Saved, word: &str| refused(&there, saved, Kind::Unsupported, word);
    // Another vendor.
    unsupported(&with(&saved, VCPU, 2, 0x4444_4444), "vendor");
    // A feature that this vCPU does not have: the first leaf's EBX.
    let (at, cpuid) = section(&saved, VCPU, 14);
    unsupported(&with(&saved, VCPU, at + 4, cpuid[4] ^ 1 << 32), "EBX");
    // An MSR that nobody has.
    let (at, _) = section(&saved, VCPU, 11);
    let mut unknown = with(&saved, VCPU, at, 0x1234_5678);
    unknown = with(&unknown, VCPU, at + 1, 9);
    unsupported(&unknown, "no MSR 0x12345678 (value 0x9)");
    // A component of the extended state that is not there.
    let (at, xsave) = section(&saved, VCPU, 7);
    unsupported(
        &with(&saved, VCPU, at + 64, xsave[64] | 1 << 50),
        "components",
    );
    // Events of a capability that the VMM has not enabled here.
    let (at, events) = section(&saved, VCPU, 13);
    unsupported(
        &with(&saved, VCPU, at + 2, events[2] | 16 << 32),
        "KVM_CAP_EXCEPTION_PAYLOAD",
    );
    // A TSC of another frequency.
    let (at, tsc) = section(&saved, VCPU, 12);
    if tsc[2] > 0 && !there.vm.check_extension(brant::kvm_ioctls::Cap::TscControl) {
        unsupported(&with(&saved, VCPU, at + 2, 2 * tsc[2]), "kHz");
    }
}

#[test]
fn a_larger_extended_state_is_refused() {
    let Some((_, saved, there)) = machines() else {
        return;
    };
    let (at, xsave) = section(&saved, VCPU, 7);
    let mut larger = saved.clone();
    let data = &mut larger.0.iter_mut().find(|blob| blob.0 == VCPU).unwrap().3;
    let end = 8 * (at + xsave.len());
    data.splice(end..end, [0; 4096]);
    let head = 7 | (xsave.len() as u64 + 512) << 32;
    data[8 * (at - 1)..8 * at].copy_from_slice(&head.to_le_bytes());
    seal(data);
    refused(&there, &larger, Kind::Unsupported, "xsave");
}

#[test]
fn damaged_and_newer_blobs_are_refused_and_nothing_is_loaded() {
    let Some((_, saved, there)) = machines() else {
        return;
    };
    for blob in [VCPU, VM] {
        let mut newer = saved.clone();
        newer.0.iter_mut().find(|b| b.0 == blob).unwrap().2 += 1;
        let mut alone = newer.clone();
        alone.0.retain(|b| b.0 == blob);
        refused(&there, &alone, Kind::Version, "expected version 2, found 3");
        let length = saved.0.iter().find(|b| b.0 == blob).unwrap().3.len();
        let mut older = newer.clone();
        older.0.iter_mut().find(|b| b.0 == blob).unwrap().2 = 1;
        older.0.retain(|b| b.0 == blob);
        refused(&there, &older, Kind::Version, "expected version 2, found 1");
        for cut in (0..length).step_by(61).chain([length - 8]) {
            let mut short = saved.clone();
            short.0.retain(|b| b.0 == blob);
            short.0[0].3.truncate(cut);
            refused(&there, &short, Kind::Invalid, "");
        }
    }
    // Anything at all: an error or not, but no panic.
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut random = Random(seed);
    for _ in 0..300 {
        let mut damaged = saved.clone();
        let blob = random.below(damaged.0.len());
        let data = &mut damaged.0[blob].3;
        let at = random.below(data.len());
        data[at] = random.below(256) as u8;
        seal(data);
        let _ = there.load(&damaged);
    }
    there.load(&saved).unwrap();
}

#[test]
fn a_bit_that_was_flipped_in_any_byte_is_found_and_nothing_is_loaded() {
    let Some((_, saved, there)) = machines() else {
        return;
    };
    let before = state(&there);
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut random = Random(seed);
    for blob in 0..saved.0.len() {
        let mut alone = Saved(vec![saved.0[blob].clone()]);
        for at in 0..alone.0[0].3.len() {
            let bit = 1 << random.below(8);
            alone.0[0].3[at] ^= bit;
            let error = there.load(&alone).unwrap_err();
            alone.0[0].3[at] ^= bit;
            assert_eq!(error.kind(), Kind::Invalid, "byte {at}: {error}");
            let text = error.message();
            assert!(
                text.contains("expected") && text.contains("found"),
                "{text}"
            );
        }
    }
    assert_eq!(state(&there), before);
    there.load(&saved).unwrap();
}

#[test]
fn the_state_of_a_vcpu_goes_into_the_vcpu_of_the_same_number_only() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::new(&kvm, &Ram::new(), Chips::None);
    let second = new_vcpu(&kvm, &machine.vm, 1);
    let mut saved = Saved::default();
    save_vcpu(&machine.kernel, &machine.vcpu, 7, &mut saved).unwrap();
    let load = |saved: &Saved, vcpu: &VcpuFd| saved.each(|b| load_vcpu(&machine.kernel, vcpu, b));
    let error = load(&saved, &second).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    let said = "expected the state of vCPU 1 (the number that KVM_CREATE_VCPU was given), found that of vCPU 0";
    assert!(error.message().contains(said), "{error}");
    load(&saved, &machine.vcpu).unwrap();
    // A VMM that gives other numbers says which vCPU of the source it means.
    let as_number =
        |number| saved.each(|b| load_renumbered_vcpu(&machine.kernel, &second, number, b));
    as_number(0).unwrap();
    let error = as_number(2).unwrap_err();
    assert!(
        error.message().contains("expected the state of vCPU 2"),
        "{error}"
    );
    // The instance is the VMM's own number.
    saved.0[0].1 = 6;
    let error = load(&saved, &machine.vcpu).unwrap_err();
    assert!(
        error
            .message()
            .contains("instance 6, found that of instance 7"),
        "{error}"
    );
}

#[test]
fn descriptors_of_another_kind_are_named() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::new(&kvm, &Ram::new(), Chips::None);
    let mut saved = Saved::default();
    let mut save = |fd: &dyn AsRawFd| {
        // SAFETY: open as long as its owner.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        save_vcpu(&machine.kernel, &fd, 0, &mut saved).unwrap_err()
    };
    let is = |error: &Error, said: &str| {
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.message().contains(said), "{error}");
    };
    is(&save(&machine.vm), "vcpu_fd: expected the descriptor that KVM_CREATE_VCPU returned, found the descriptor of a VM");
    is(&save(&kvm), "found /dev/kvm itself");
    is(&stood_still(&kvm).unwrap_err(), "vcpu_fd: expected");
    is(
        &stood_still(&machine.vm).unwrap_err(),
        "found the descriptor of a VM",
    );
    is(&Kernel::new(Some(&kvm), &machine.vcpu).unwrap_err(), "vm_fd: expected the descriptor that KVM_CREATE_VM returned, found the descriptor of a vCPU");
    is(
        &Kernel::new(Some(&kvm), &kvm).unwrap_err(),
        "vm_fd: expected",
    );
    is(
        &Kernel::new(Some(&machine.vm), &machine.vm).unwrap_err(),
        "kvm_fd: expected a descriptor of /dev/kvm, found the descriptor of a VM",
    );
    assert!(saved.0.is_empty());
}

#[test]
fn a_vcpu_of_another_vm_is_found_where_the_vms_have_other_controllers() {
    let Some(kvm) = kvm() else { return };
    let ram = Ram::new();
    let (with, without) = (
        Machine::new(&kvm, &ram, Chips::Kernel),
        Machine::new(&kvm, &ram, Chips::None),
    );
    let mut saved = Saved::default();
    let error = save_vcpu(&with.kernel, &without.vcpu, 0, &mut saved).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(
        error
            .message()
            .contains("vcpu_fd: expected a vCPU of the VM of vm_fd"),
        "{error}"
    );
}

fn supported() -> Option<(Machine, Vec<kvm_cpuid_entry2>)> {
    let kvm = kvm()?;
    let machine = Machine::new(&kvm, &Ram::new(), Chips::Kernel);
    let cpuid: CpuId = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    Some((machine, cpuid.as_slice().to_vec()))
}

fn compat(machine: &Machine, cpuid: &[kvm_cpuid_entry2]) -> Saved {
    let mut saved = Saved::default();
    save_compat(&machine.kernel, cpuid, &mut saved).unwrap();
    saved
}

fn check(machine: &Machine, cpuid: Option<&[kvm_cpuid_entry2]>, saved: &Saved) -> String {
    let check = |blob: &StateBlob<'_>| check_compat(&machine.kernel, cpuid, blob);
    saved
        .each(check)
        .map_or_else(|e| e.to_string(), |()| String::new())
}

#[test]
fn a_destination_says_before_the_migration_what_it_will_not_be_able_to_take() {
    let Some((machine, cpuid)) = supported() else {
        return;
    };
    let good = compat(&machine, &cpuid);
    assert_eq!(check(&machine, None, &good), "");
    assert_eq!(check(&machine, Some(&cpuid), &good), "");

    let mut more = cpuid.clone();
    more.iter_mut()
        .find(|leaf| leaf.function == 7 && leaf.index == 0)
        .unwrap()
        .edx ^= 1 << 9;
    let other = compat(&machine, &more);
    assert!(check(&machine, Some(&cpuid), &other).contains("leaf 0x7.0 EDX"));

    let (at, list) = section(&good, COMPAT, 20);
    let msr = with(&good, COMPAT, at + list.len() - 1, 0x1234_5678);
    let said = check(&machine, None, &msr);
    assert!(
        said.contains("neither saves nor restores MSR 0x12345678"),
        "{said}"
    );
    let (at, has) = section(&good, COMPAT, 21);
    let said = check(&machine, None, &with(&good, COMPAT, at + 1, has[1] + 8));
    assert!(said.contains("xsave"), "{said}");
    let said = check(&machine, None, &with(&good, COMPAT, at, has[0] & !8));
    assert!(
        said.contains("this VM has interrupt controllers in the kernel"),
        "{said}"
    );
}
