//! Saving and loading one vCPU: which calls, in which order, and why in that order. `docs/kvm-state.md`
//! says the same to a reader who does not know the code.

use super::blob::{Blob, Known, Owner, Writer};
use super::cpuid::{self, CPUID};
use super::host::Kernel;
use super::msrs::{self, Groups, MSRS};
use super::time;
use crate::error::{Error, Kind, Result};
use crate::sys::clock::realtime;
use crate::sys::kvm_kind::{expect, vcpu_number, Role};
use crate::sys::kvm_state::{self as sys, AsKvmFd, Msr, Request};
use crate::vmm::{StateBlob, StateSink};
use kvm_bindings::{
    kvm_sregs, kvm_sregs2, kvm_vcpu_events, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
};
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The name of a vCPU's blob. Its instance is the VMM's number of the vCPU.
pub const VCPU: &str = "kvm-vcpu";
/// The version of its format.
const VERSION: u32 = 2;

const MP_STATE: Known = (1, "mp_state");
const SREGS2: Known = (2, "sregs2");
const SREGS: Known = (3, "sregs");
const NESTED: Known = (4, "nested state");
const REGS: Known = (5, "regs");
const XCRS: Known = (6, "xcrs");
const XSAVE: Known = (7, "xsave");
const FPU: Known = (8, "fpu");
const DEBUGREGS: Known = (9, "debugregs");
const LAPIC: Known = (10, "local APIC");
const TSC: Known = (12, "TSC");
const EVENTS: Known = (13, "events");
const KNOWN: &[Known] = &[
    MP_STATE, SREGS2, SREGS, NESTED, REGS, XCRS, XSAVE, FPU, DEBUGREGS, LAPIC, MSRS, TSC, EVENTS,
    CPUID,
];

/// Time of day in nanoseconds, the TSC then, its frequency in kHz.
const TSC_WORDS: usize = 3;
const CR8_AT: usize = offset_of!(kvm_sregs, cr8) / 8;
const INTERRUPTS_AT: usize = offset_of!(kvm_sregs, interrupt_bitmap) / 8;
const EVENT_FLAGS_AT: usize = offset_of!(kvm_vcpu_events, flags);
/// What XSTATE_BV of the header says is where the header begins, behind 512 bytes.
const XSTATE_BV_AT: usize = 512 / 8;
const _: () = assert!(INTERRUPTS_AT == offset_of!(kvm_sregs2, flags) / 8);

/// Puts the state of one vCPU into `sink`, as one blob named [`VCPU`] with `number` as its instance.
/// The vCPU does not run, and its last exit is retired ([`Vmm`](crate::vmm::Vmm) says how). No other
/// vCPU of the VM runs either. The vCPU can run on afterwards.
///
/// # Errors
/// [`Kind::Invalid`] for a descriptor that is closed, of another kind or of another VM (as far as that shows); the
/// message calls `vcpu` vcpu_fd, as the C functions do. [`Kind::Kernel`] for a call that failed.
pub fn save_vcpu(
    kernel: &Kernel,
    vcpu: &impl AsKvmFd,
    number: u32,
    sink: &mut dyn StateSink,
) -> Result<()> {
    let data =
        saved(kernel, vcpu.kvm_fd(), number).map_err(|e| e.context(format!("vCPU {number}")))?;
    sink.put(&StateBlob {
        name: VCPU,
        instance: number,
        version: VERSION,
        data: &data,
    })
}

fn saved(kernel: &Kernel, vcpu: BorrowedFd<'_>, instance: u32) -> Result<Vec<u8>> {
    expect(vcpu, Role::Vcpu)?;
    let caps = &kernel.caps;
    // First, because KVM takes INIT and SIPI when it is asked for this, and they change registers.
    let mp_state = sys::get(vcpu, sys::GET_MP_STATE)?;
    let cpuid = sys::cpuid(vcpu, sys::GET_CPUID2)?;
    let owner = Owner {
        instance,
        number: vcpu_number(vcpu),
    };
    let mut blob = Writer::new(cpuid::vendor(&cpuid), owner)?;
    blob.put(CPUID, &cpuid::words(&cpuid))?;
    blob.put(MP_STATE, &mp_state)?;
    match caps.sregs2 {
        true => blob.put(SREGS2, &sys::get(vcpu, sys::GET_SREGS2)?)?,
        false => blob.put(SREGS, &sys::get(vcpu, sys::GET_SREGS)?)?,
    }
    if caps.nested_bytes > 0 {
        blob.put(NESTED, &sys::get_nested(vcpu, caps.nested_bytes)?)?;
    }
    blob.put(REGS, &sys::get(vcpu, sys::GET_REGS)?)?;
    if caps.xcrs {
        blob.put(XCRS, &sys::get(vcpu, sys::GET_XCRS)?)?;
    }
    match caps.xsave {
        true => blob.put(XSAVE, &sys::get_xsave(&kernel.vm, vcpu)?)?,
        false => blob.put(FPU, &sys::get(vcpu, sys::GET_FPU)?)?,
    }
    if caps.debugregs {
        blob.put(DEBUGREGS, &sys::get(vcpu, sys::GET_DEBUGREGS)?)?;
    }
    blob.put(TSC, &tsc(vcpu)?)?;
    // Before the local APIC: a timer that fires in between is then in both and fires twice. The other
    // way round it would be in neither.
    let state: Vec<u32> = kernel
        .msrs
        .iter()
        .copied()
        .filter(|i| msrs::is_state(*i))
        .collect();
    blob.put(MSRS, &msrs::words(&sys::get_msrs(vcpu, &state)?))?;
    if let Some(lapic) = lapic(kernel, vcpu)? {
        blob.put(LAPIC, &lapic)?;
    }
    blob.put(EVENTS, &sys::get(vcpu, sys::GET_VCPU_EVENTS)?)?;
    blob.finish()
}

/// The local APIC, unless it is the VMM's own.
fn lapic(kernel: &Kernel, vcpu: BorrowedFd<'_>) -> Result<Option<Vec<u64>>> {
    let lapic = sys::get_if_there(vcpu, sys::GET_LAPIC)?;
    // KVM refuses KVM_CREATE_IRQCHIP once a VM has vCPUs.
    if lapic.is_none() && kernel.has_irqchip()? {
        let why = "vcpu_fd: expected a vCPU of the VM of vm_fd, which has its interrupt controllers in the \
                   kernel; found a vCPU of another VM, without a local APIC in the kernel";
        return Err(Error::new(Kind::Invalid, why));
    }
    Ok(lapic)
}

/// The time-stamp counter and the time of day at the same moment: the closest of a few tries.
fn tsc(vcpu: BorrowedFd<'_>) -> Result<[u64; TSC_WORDS]> {
    let mut closest = (Duration::MAX, [0; TSC_WORDS]);
    let khz = sys::tsc_khz(vcpu)?;
    for _ in 0..3 {
        let before = realtime();
        let value = sys::get_msrs(vcpu, &[msrs::TSC])?;
        let took = realtime().saturating_sub(before);
        let value = value.first().map_or(0, |msr| msr.value);
        if took < closest.0 {
            closest = (took, [before.as_nanos() as u64, value, khz]);
        }
    }
    Ok(closest.1)
}

/// What loading does, decided and checked before the first write.
struct Plan<'a> {
    mp_state: &'a [u64],
    sregs: (Request, Vec<u64>),
    nested: Option<&'a [u64]>,
    simple: Vec<(Request, &'a [u64])>,
    xsave: Option<&'a [u64]>,
    lapic: Option<&'a [u64]>,
    msrs: Groups,
    tsc: [u64; TSC_WORDS],
    events: &'a [u64],
}

/// Loads a blob that [`save_vcpu`] has made into a vCPU that does not run. The VMM has set its CPUID
/// before, and has made the in-kernel interrupt controllers if the source has them. All that can be
/// checked is checked before the first register is written. When it fails later the vCPU must not run:
/// load again, or make another one.
///
/// The vCPU has the number that it had at the source (what `KVM_CREATE_VCPU` was given, on x86 the number
/// of its APIC). Whether it has is checked where both kernels tell the number (Linux 5.14). A VMM that gives its
/// vCPUs other numbers calls [`load_renumbered_vcpu`].
///
/// # Errors
/// - [`Kind::Unsupported`]: this kernel, or this vCPU with its CPUID, cannot take the state. The
///   message names the register or the capability.
/// - [`Kind::Version`]: a blob of another version.
/// - [`Kind::Invalid`]: no such blob, a damaged one, one of another vCPU, or a descriptor as with
///   [`save_vcpu`].
/// - [`Kind::Kernel`]: a call failed.
pub fn load_vcpu(kernel: &Kernel, vcpu: &impl AsKvmFd, blob: &StateBlob<'_>) -> Result<()> {
    load_into(kernel, vcpu.kvm_fd(), blob, None)
}

/// As [`load_vcpu`], for a vCPU that has another number here than at the source, where `KVM_CREATE_VCPU` was
/// given `number`. The guest reads its APIC's number in the state that is loaded, and in the CPUID that the VMM
/// has set. With an in-kernel local APIC in x2APIC mode, KVM refuses a number that is not the vCPU's own.
///
/// # Errors
/// As [`load_vcpu`]; [`Kind::Invalid`] also for the state of a vCPU that had another number than `number`.
pub fn load_renumbered_vcpu(
    kernel: &Kernel,
    vcpu: &impl AsKvmFd,
    number: u32,
    blob: &StateBlob<'_>,
) -> Result<()> {
    load_into(kernel, vcpu.kvm_fd(), blob, Some(number))
}

fn load_into(
    kernel: &Kernel,
    vcpu: BorrowedFd<'_>,
    blob: &StateBlob<'_>,
    renumbered: Option<u32>,
) -> Result<()> {
    expect(vcpu, Role::Vcpu)?;
    let blob = Blob::read(blob, VCPU, VERSION, KNOWN)?;
    let expected = renumbered.or_else(|| vcpu_number(vcpu));
    if let (Some(expected), Some(found)) = (expected, blob.number) {
        if expected != found {
            let why = format_args!(
                "expected the state of vCPU {expected} (the number that KVM_CREATE_VCPU was given), found \
                 that of vCPU {found}; brant_kvm_vcpu_load_renumbered is for a VMM that gives other numbers"
            );
            return Err(blob.refuse(Kind::Invalid, why));
        }
    }
    let plan = checked(kernel, vcpu, &blob)?;
    load(kernel, vcpu, &plan).map_err(|e| blob.about(e))
}

fn checked<'a>(kernel: &Kernel, vcpu: BorrowedFd<'_>, blob: &'a Blob) -> Result<Plan<'a>> {
    let caps = &kernel.caps;
    let unsupported = |why: String| Err(blob.refuse(Kind::Unsupported, why));
    let here = sys::cpuid(vcpu, sys::GET_CPUID2).map_err(|e| blob.about(e))?;
    let vendor = cpuid::vendor(&here);
    if vendor != blob.vendor {
        return unsupported(format!(
            "the processor's vendor is {} at the source and {vendor} here",
            blob.vendor
        ));
    }
    cpuid::compare(&cpuid::leaves(blob)?, &here).map_err(|e| blob.about(e))?;

    let mut simple = vec![(sys::SET_REGS, blob.sized(REGS, sys::SET_REGS.words())?)];
    for (section, request, there) in [
        (XCRS, sys::SET_XCRS, caps.xcrs),
        (FPU, sys::SET_FPU, true),
        (DEBUGREGS, sys::SET_DEBUGREGS, caps.debugregs),
    ] {
        if let Some(words) = blob.find_sized(section, request.words())? {
            if !there {
                return unsupported(format!("this kernel has no {}", request.name));
            }
            simple.push((request, words));
        }
    }
    let lapic_here = self::lapic(kernel, vcpu)?;
    let lapic = blob.find_sized(LAPIC, sys::SET_LAPIC.words())?;
    match (lapic, lapic_here) {
        (Some(_), None) => return unsupported(
            "the local APIC is the kernel's at the source, and this VM has none: the VMM calls \
                 KVM_CREATE_IRQCHIP (or enables KVM_CAP_SPLIT_IRQCHIP) before it makes vCPUs"
                .into(),
        ),
        (None, Some(_)) => {
            return unsupported(
                "the local APIC is the kernel's here, and the VMM's own at the source".into(),
            )
        }
        _ => {}
    }
    let tsc = blob.sized(TSC, TSC_WORDS)?;
    let tsc = [tsc[0], tsc[1], tsc[2]];
    let khz = sys::tsc_khz(vcpu).map_err(|e| blob.about(e))?;
    if !time::same_frequency(tsc[2], khz) && !caps.tsc_control {
        return unsupported(format!(
            "the TSC runs at {} kHz at the source and at {khz} kHz here, and this kernel cannot scale \
             it (KVM_CAP_TSC_CONTROL)",
            tsc[2]
        ));
    }
    Ok(Plan {
        mp_state: blob.sized(MP_STATE, sys::SET_MP_STATE.words())?,
        sregs: sregs(kernel, blob)?,
        nested: nested(kernel, vcpu, blob)?,
        simple,
        xsave: xsave(kernel, vcpu, blob)?,
        lapic,
        msrs: msrs::read(blob, vcpu)?,
        tsc,
        events: events(vcpu, blob)?,
    })
}

/// The special registers, in the structure that this kernel takes. Without `KVM_SET_SREGS2` the kernel
/// reads the four entries of a PAE guest's page table from memory again.
fn sregs(kernel: &Kernel, blob: &Blob) -> Result<(Request, Vec<u64>)> {
    if let Some(words) = blob.find_sized(SREGS2, sys::SET_SREGS2.words())? {
        if kernel.caps.sregs2 {
            return Ok((sys::SET_SREGS2, words.to_vec()));
        }
        let mut older = words[..INTERRUPTS_AT].to_vec();
        // The interrupt that is being delivered is among the events too.
        older.resize(sys::SET_SREGS.words(), 0);
        return Ok((sys::SET_SREGS, older));
    }
    let words = blob.sized(SREGS, sys::SET_SREGS.words())?;
    Ok((sys::SET_SREGS, words.to_vec()))
}

/// The extended state; what it has, this processor has to have.
fn xsave<'a>(kernel: &Kernel, vcpu: BorrowedFd<'_>, blob: &'a Blob) -> Result<Option<&'a [u64]>> {
    let least = sys::SET_XSAVE.words();
    let Some(words) = blob.find(XSAVE) else {
        blob.sized(FPU, sys::SET_FPU.words())?;
        return Ok(None);
    };
    if words.len() < least {
        let found = 8 * words.len();
        let least = 8 * least;
        let why = format_args!("section xsave: expected at least {least} bytes, found {found}");
        return Err(blob.refuse(Kind::Invalid, why));
    }
    let unsupported = |why: String| Err(blob.refuse(Kind::Unsupported, why));
    if !kernel.caps.xsave {
        return unsupported("this kernel has no KVM_SET_XSAVE".into());
    }
    let most = kernel.caps.xsave_bytes;
    if 8 * words.len() > most.next_multiple_of(8) {
        return unsupported(format!(
            "the extended state (xsave) has {} bytes, and this VM's vCPUs take {most}",
            8 * words.len()
        ));
    }
    // x87 and SSE need no XSAVE; the rest is what leaf 0xd has.
    let here = sys::cpuid(vcpu, sys::GET_CPUID2).map_err(|e| blob.about(e))?;
    let leaf = here
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (0xd, 0));
    let has = leaf.map_or(0, |leaf| {
        u64::from(leaf.registers[0]) | u64::from(leaf.registers[3]) << 32
    });
    let more = words[XSTATE_BV_AT] & !(has | 3);
    if more != 0 {
        return unsupported(format!(
            "the extended state (xsave) has components {more:#x}, which this vCPU's CPUID (leaf 0xd) has not"
        ));
    }
    Ok(Some(words))
}

/// `KVM_STATE_NESTED_GIF_SET`.
const GIF: u64 = 1 << 8;
const NESTED_FORMATS: [&str; 2] = ["VMX", "SVM"];

/// The nested state, unless there is none in it and this kernel has no place for it.
fn nested<'a>(kernel: &Kernel, vcpu: BorrowedFd<'_>, blob: &'a Blob) -> Result<Option<&'a [u64]>> {
    let Some(words) = blob.find(NESTED) else {
        return Ok(None);
    };
    if words.len() < sys::SET_NESTED_STATE.words() || (words[0] >> 32) as usize > 8 * words.len() {
        let why = "section nested state: it is shorter than its own header says";
        return Err(blob.refuse(Kind::Invalid, why));
    }
    let (flags, format) = (words[0] & 0xffff, words[0] >> 16 & 0xffff);
    let nothing = match format {
        0 => flags == 0 && words[1] == u64::MAX, // the address of VMXON's region
        _ => flags & !GIF == 0,
    };
    let most = kernel.caps.nested_bytes;
    let unsupported = |why: String| Err(blob.refuse(Kind::Unsupported, why));
    if most == 0 {
        return match nothing {
            true => Ok(None),
            false => unsupported(
                "the guest runs a guest of its own, and this kernel has no nested virtualisation \
                 (KVM_CAP_NESTED_STATE)"
                    .into(),
            ),
        };
    }
    let here = sys::get_nested(vcpu, most).map_err(|e| blob.about(e))?;
    let format_here = here[0] >> 16 & 0xffff;
    if format != format_here {
        let name = |f: u64| NESTED_FORMATS.get(f as usize).copied().unwrap_or("unknown");
        return match nothing {
            true => Ok(None),
            false => unsupported(format!(
                "the nested state is {}'s, and this processor has {}",
                name(format),
                name(format_here)
            )),
        };
    }
    if 8 * words.len() > most.next_multiple_of(8) {
        return unsupported(format!(
            "the nested state has {} bytes, and this kernel takes {most}",
            8 * words.len()
        ));
    }
    Ok(Some(words))
}

fn event_flags(words: &[u64]) -> u32 {
    (words[EVENT_FLAGS_AT / 8] >> (8 * (EVENT_FLAGS_AT % 8))) as u32
}

/// The events, whose optional parts the VMM has to have enabled here too.
fn events<'a>(vcpu: BorrowedFd<'_>, blob: &'a Blob) -> Result<&'a [u64]> {
    let words = blob.sized(EVENTS, sys::SET_VCPU_EVENTS.words())?;
    let here = sys::get(vcpu, sys::GET_VCPU_EVENTS).map_err(|e| blob.about(e))?;
    for (flag, cap) in [
        (KVM_VCPUEVENT_VALID_PAYLOAD, "KVM_CAP_EXCEPTION_PAYLOAD"),
        (
            KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
            "KVM_CAP_X86_TRIPLE_FAULT_EVENT",
        ),
    ] {
        if event_flags(words) & flag != 0 && event_flags(&here) & flag == 0 {
            let why = format_args!("{cap} is enabled for the VM at the source, and not here");
            return Err(blob.refuse(Kind::Unsupported, why));
        }
    }
    Ok(words)
}

fn load(kernel: &Kernel, vcpu: BorrowedFd<'_>, plan: &Plan<'_>) -> Result<()> {
    // Whether the vCPU waits for INIT or SIPI decides what it does with events that come in below.
    // Without an APIC of the kernel's it is always 0, and setting it is refused.
    if sys::get(vcpu, sys::GET_MP_STATE)?[0] as u32 != plan.mp_state[0] as u32 {
        sys::set(vcpu, sys::SET_MP_STATE, plan.mp_state)?;
    }
    // Everything else depends on the processor's mode, on EFER, CR4 and the APIC's base.
    let (request, sregs) = &plan.sregs;
    sys::set(vcpu, *request, sregs)?;
    // Nested state is refused by a processor that may not have it, and replaces registers.
    msrs::load(vcpu, &plan.msrs.early)?;
    if let Some(nested) = plan.nested {
        sys::set_nested(vcpu, nested)?;
    }
    // General registers drop a pending exception, so the events follow. XCR0 says what the extended
    // state may hold.
    for (request, words) in &plan.simple {
        sys::set(vcpu, *request, words)?;
    }
    if let Some(xsave) = plan.xsave {
        sys::set_xsave(&kernel.vm, vcpu, xsave)?;
    }
    if let Some(lapic) = plan.lapic {
        sys::set(vcpu, sys::SET_LAPIC, lapic)?;
    }
    load_tsc(vcpu, plan)?;
    msrs::load(vcpu, &plan.msrs.most)?;
    // The timer's deadline counts in the guest's TSC, and only in the mode that the APIC has now.
    msrs::load(vcpu, &plan.msrs.last)?;
    sys::set(vcpu, sys::SET_VCPU_EVENTS, plan.events)?;
    if plan.lapic.is_none() {
        sys::set_run_cr8(vcpu, sregs[CR8_AT])?;
    }
    sys::clock_stopped(vcpu)?;
    Ok(())
}

/// The time-stamp counter goes on by what has passed since it was saved.
///
/// KVM gives the vCPUs of a VM one offset when their values are less than a second apart. So counters
/// that were alike stay exactly alike, although each is written at another moment. In a VM in which a
/// guest has run before, the offset of that guest can be taken for the one that is meant, and the counter
/// would go back; then it is moved by `KVM_VCPU_TSC_OFFSET`.
fn load_tsc(vcpu: BorrowedFd<'_>, plan: &Plan<'_>) -> Result<()> {
    let [then, saved, khz] = plan.tsc;
    if !time::same_frequency(khz, sys::tsc_khz(vcpu)?) {
        sys::set_tsc_khz(vcpu, khz)?;
    }
    let gone = time::gone(Duration::from_nanos(then), realtime());
    let value = saved.wrapping_add(time::cycles(gone, khz));
    let msr = Msr {
        index: msrs::TSC,
        value,
    };
    sys::set_msrs(vcpu, &[msr])?;
    let now = sys::get_msrs(vcpu, &[msrs::TSC])?;
    let now = now.first().map_or(value, |msr| msr.value);
    if now < saved {
        // A kernel before 5.16 has no such call, and keeps what it took.
        sys::shift_tsc(vcpu, value.wrapping_sub(now));
    }
    Ok(())
}

/// Tells the guest of a vCPU, at its next entry, that it stood still (`KVM_KVMCLOCK_CTRL`), so that its
/// watchdogs do not take the pause for a hang. Loading does this too. At the source, call it in
/// [`Vmm::resume`](crate::vmm::Vmm::resume) for each vCPU that does not run yet. Nothing happens for a
/// guest that does not use KVM's clock.
///
/// # Errors
/// [`Kind::Invalid`] for a descriptor as with [`save_vcpu`].
pub fn stood_still(vcpu: &impl AsKvmFd) -> Result<()> {
    expect(vcpu.kvm_fd(), Role::Vcpu)?;
    sys::clock_stopped(vcpu.kvm_fd())?;
    Ok(())
}
