//! The state of KVM's vCPUs and VMs, for the operations `save`, `load`, `early_save` and `early_load`.

use super::error::{brant_error, invalid};
use super::ops::{brant_saver, brant_state_blob, saving};
use super::structs::{handle, lent, read, text};
use crate::error::Result;
use crate::kvmstate::{self, Kernel};
use crate::sys::kvm_kind::{expect, Role};
use crate::vmm::StateBlob;
use kvm_bindings::kvm_cpuid_entry2;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;

/// The most entries of CPUID that KVM takes.
const CPUID_MAX: u32 = 256;

/// The kernel here, as `kvm_fd` and `vm_fd` lead to it.
///
/// # Safety
/// Nobody closes the descriptors during the call.
unsafe fn kernel(kvm_fd: i32, vm_fd: i32) -> Result<Kernel> {
    let kvm = match kvm_fd {
        -1 => None,
        // SAFETY: the caller's contract.
        fd => Some(unsafe { lent(fd, "kvm_fd") }?),
    };
    // SAFETY: the caller's contract.
    let vm: BorrowedFd<'_> = unsafe { lent(vm_fd, "vm_fd") }?;
    Kernel::new(kvm.as_ref(), &vm)
}

/// The descriptor of a vCPU. It is asked for before [`kernel`], whose new descriptors can take the number of one
/// that is closed.
///
/// # Safety
/// Nobody closes the descriptor as long as `'a`.
unsafe fn vcpu<'a>(vcpu_fd: i32) -> Result<BorrowedFd<'a>> {
    // SAFETY: the caller's contract.
    let fd = unsafe { lent(vcpu_fd, "vcpu_fd") }?;
    expect(fd, Role::Vcpu)?;
    Ok(fd)
}

/// Runs `load` with a blob of C's.
///
/// # Safety
/// `blob` is null or points to a structure as its size says, with a string and as many bytes as its
/// length says.
unsafe fn loading(
    blob: *const brant_state_blob,
    load: impl FnOnce(&StateBlob<'_>) -> Result<()>,
) -> Result<()> {
    // SAFETY: the caller's contract.
    let blob = unsafe { read(blob) }?;
    // SAFETY: the caller's contract.
    let name = unsafe { text(blob.name, "brant_state_blob.name") }?;
    let length = isize::try_from(blob.length)
        .map_err(|_| invalid("brant_state_blob.length is more than memory can have"))?;
    let data = match (length, blob.data.is_null()) {
        (0, _) => &[][..],
        (_, true) => return Err(invalid("brant_state_blob.data is NULL")),
        // SAFETY: as many readable bytes by contract, not written during the call.
        (_, false) => unsafe {
            std::slice::from_raw_parts(blob.data.cast::<u8>(), length as usize)
        },
    };
    load(&StateBlob {
        name,
        instance: blob.instance,
        version: blob.version,
        data,
    })
}

/// The entries of a `struct kvm_cpuid2`.
///
/// # Safety
/// `cpuid` points to such a structure with as many entries as it says.
unsafe fn entries<'a>(cpuid: *const c_void) -> Result<&'a [kvm_cpuid_entry2]> {
    if !cpuid.cast::<u32>().is_aligned() {
        return Err(invalid("cpuid is not aligned as a struct kvm_cpuid2"));
    }
    // SAFETY: the structure begins with the number of its entries.
    let count = unsafe { cpuid.cast::<u32>().read() };
    if count > CPUID_MAX {
        return Err(invalid(format!(
            "cpuid has {count} entries; KVM takes at most {CPUID_MAX}"
        )));
    }
    // SAFETY: the entries follow two words of 32 bits, and have the same alignment.
    Ok(unsafe {
        let first = cpuid.cast::<u8>().add(8).cast::<kvm_cpuid_entry2>();
        std::slice::from_raw_parts(first, count as usize)
    })
}

/// Puts the state of one vCPU into `saver`: a blob with the name "kvm-vcpu" and the instance `vcpu`, the
/// VMM's number of it. To be called in `save` (`brant_ops`) for each vCPU: registers of all kinds, extended
/// state, MSRs, events, local APIC, nested state, TSC, and CPUID for comparison. docs/kvm-state.md says
/// what is saved, in which order, and what the VMM still does itself. x86-64 only.
///
/// `kvm_fd` is /dev/kvm, or -1: then brant opens /dev/kvm for the call. `vm_fd` and `vcpu_fd` are what
/// KVM_CREATE_VM and KVM_CREATE_VCPU returned. All three stay the VMM's. No vCPU of the VM runs, and pending
/// I/O is retired (`brant_ops`). The vCPU can run on afterwards.
///
/// BRANT_E_INVALID for a descriptor that is closed, of another kind, of another process's VM, or of a vCPU that shows
/// to be another VM's (no in-kernel local APIC where the VM has in-kernel interrupt controllers); the message names the
/// argument, and says what was expected and found. When this fails, `save` counts as failed, as with
/// brant_saver_put. Threads: that of `save`.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_vcpu_save(
    kvm_fd: i32,
    vm_fd: i32,
    vcpu_fd: i32,
    vcpu: u32,
    saver: *mut brant_saver,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let saver = unsafe { handle(saver, "saver") }?;
        saving(saver, |sink| {
            // SAFETY: open during the call by contract.
            let (fd, kernel) = unsafe { (self::vcpu(vcpu_fd)?, kernel(kvm_fd, vm_fd)?) };
            kvmstate::save_vcpu(&kernel, &fd, vcpu, sink)
        })
    })
}

/// Loads a blob of brant_kvm_vcpu_save into a vCPU. To be called in `load` (`brant_ops`) for the vCPU
/// with the number `blob->instance`. The vCPU has to be the one of the same number for KVM too: KVM_CREATE_VCPU was
/// given the same number at both sides, on x86-64 that of the APIC. The blob has it, and brant compares it where
/// both kernels tell it (Linux 5.14). brant_kvm_vcpu_load_renumbered is for a VMM with other numbers here. Before, the VMM has set its CPUID (KVM_SET_CPUID2) to that of the
/// source; brant compares both and changes nothing. If the source has in-kernel interrupt controllers,
/// the VMM has made them here (KVM_CREATE_IRQCHIP). The vCPU does not run. The guest's TSC goes on by the time that has passed since `save`
/// by the two hosts' clocks (CLOCK_REALTIME), at most 60 seconds. At its next entry the guest hears that it
/// was stopped (KVM_KVMCLOCK_CTRL).
///
/// All that can be checked is checked before the first register is written. BRANT_E_UNSUPPORTED: this
/// kernel or this vCPU cannot take the state, and the message names CPUID bits, MSR, size or capability.
/// BRANT_E_VERSION: the blob's format is of another version. BRANT_E_INVALID: a damaged blob (it has a checksum), one of
/// another name, instance or vCPU, or a descriptor as with brant_kvm_vcpu_save. After BRANT_E_KERNEL the vCPU may have a part of the state and must
/// not run. Descriptors as with brant_kvm_vcpu_save. Any thread, one call at a time for a vCPU.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_vcpu_load(
    kvm_fd: i32,
    vm_fd: i32,
    vcpu_fd: i32,
    blob: *const brant_state_blob,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract; descriptors open during the call.
        unsafe {
            loading(blob, |blob| {
                let fd = vcpu(vcpu_fd)?;
                kvmstate::load_vcpu(&kernel(kvm_fd, vm_fd)?, &fd, blob)
            })
        }
    })
}

/// As brant_kvm_vcpu_load, for a VMM that gives its vCPUs other numbers than the source did: the blob is of the
/// vCPU for which the source gave `number` to KVM_CREATE_VCPU, whatever the number of `vcpu_fd` is. The state of
/// any other vCPU is BRANT_E_INVALID. The guest finds the APIC's number of the source in its local APIC, so its
/// CPUID has to say that one too. When the in-kernel local APIC is in x2APIC mode, KVM itself refuses any number
/// but the vCPU's own. Threads and errors as with brant_kvm_vcpu_load.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_vcpu_load_renumbered(
    kvm_fd: i32,
    vm_fd: i32,
    vcpu_fd: i32,
    number: u32,
    blob: *const brant_state_blob,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract; descriptors open during the call.
        unsafe {
            loading(blob, |blob| {
                let fd = vcpu(vcpu_fd)?;
                kvmstate::load_renumbered_vcpu(&kernel(kvm_fd, vm_fd)?, &fd, number, blob)
            })
        }
    })
}

/// Tells the guest of a vCPU, at its next entry, that it stood still (KVM_KVMCLOCK_CTRL), so that its
/// watchdogs do not take the pause for a hang. Call it in `resume` for each vCPU before it runs;
/// brant_kvm_vcpu_load does it too. Nothing happens for a guest without KVM's clock. BRANT_E_INVALID if
/// `vcpu_fd` is not what KVM_CREATE_VCPU returned; the message says what it is. Any thread; waits while the vCPU runs.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_vcpu_stood_still(
    vcpu_fd: i32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: open during the call by contract.
        kvmstate::stood_still(&unsafe { lent(vcpu_fd, "vcpu_fd") }?)
    })
}

/// Puts what belongs to the VM and to no vCPU into `saver`, a blob with the name "kvm-vm": the in-kernel
/// interrupt controllers and PIT, if there are any, and KVM's clock. To be called in `save` (`brant_ops`)
/// after all vCPUs. Descriptors, threads and errors as with brant_kvm_vcpu_save.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_vm_save(
    kvm_fd: i32,
    vm_fd: i32,
    saver: *mut brant_saver,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let saver = unsafe { handle(saver, "saver") }?;
        saving(saver, |sink| {
            // SAFETY: open during the call by contract.
            kvmstate::save_vm(&unsafe { kernel(kvm_fd, vm_fd) }?, sink)
        })
    })
}

/// Loads a blob of brant_kvm_vm_save. To be called in `load` (`brant_ops`): the blob comes after those of
/// all vCPUs if it was saved so. The VMM has made interrupt controllers and PIT as at the source.
/// Afterwards devices assert again the lines that they hold up. KVM's clock goes on by the time that has
/// passed, as the TSC does. Descriptors, threads and errors as with brant_kvm_vcpu_load.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_vm_load(
    kvm_fd: i32,
    vm_fd: i32,
    blob: *const brant_state_blob,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract; descriptors open during the call.
        unsafe {
            loading(blob, |blob| {
                kvmstate::load_vm(&kernel(kvm_fd, vm_fd)?, blob)
            })
        }
    })
}

/// Puts what brant_kvm_compat_check needs into `saver`, a blob with the name "kvm-compat". To be called in
/// `early_save` (`brant_ops`): it makes no call on a vCPU, so the guest runs on. `cpuid` is the `struct kvm_cpuid2` that
/// the VMM gave to KVM_SET_CPUID2 for any one vCPU, with at most 256 entries; read during the call.
/// Descriptors, threads and errors as with brant_kvm_vcpu_save.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_compat_save(
    kvm_fd: i32,
    vm_fd: i32,
    cpuid: *const c_void,
    saver: *mut brant_saver,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let saver = unsafe { handle(saver, "saver") }?;
        saving(saver, |sink| {
            if cpuid.is_null() {
                return Err(invalid("cpuid is NULL"));
            }
            // SAFETY: open during the call, and not null, by contract.
            let (kernel, cpuid) = unsafe { (kernel(kvm_fd, vm_fd)?, entries(cpuid)?) };
            kvmstate::save_compat(&kernel, cpuid, sink)
        })
    })
}

/// Whether this VM will be able to take the state of the guest that comes: CPUID, MSRs, size of the
/// extended state, capabilities, frequency of the TSC, in-kernel controllers. To be called in `early_load`
/// (`brant_ops`): a refusal ends the migration before memory is sent, and the source's error has the reason
/// if the operation sets it. `cpuid` is the `struct kvm_cpuid2` that the VMM sets here for the same vCPU,
/// compared in full; or NULL: then every feature of the guest has to be one that KVM supports here.
/// BRANT_E_UNSUPPORTED: the message names what is missing. Descriptors and other errors as with
/// brant_kvm_vcpu_load. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_kvm_compat_check(
    kvm_fd: i32,
    vm_fd: i32,
    cpuid: *const c_void,
    blob: *const brant_state_blob,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or a structure by contract; descriptors open during the call.
        unsafe {
            loading(blob, |blob| {
                let cpuid = match cpuid.is_null() {
                    true => None,
                    false => Some(entries(cpuid)?),
                };
                kvmstate::check_compat(&kernel(kvm_fd, vm_fd)?, cpuid, blob)
            })
        }
    })
}
