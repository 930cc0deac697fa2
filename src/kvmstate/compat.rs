//! Whether a destination will be able to take a guest's KVM state: asked before the guest is paused, and
//! before its memory is sent.
//!
//! The source says what its VM has, without a call on a vCPU: such a call waits until the vCPU comes out of
//! the guest. So CPUID comes from the VMM, which has set it.

use super::blob::{Blob, Known, Owner, Writer};
use super::cpuid::{self, CPUID};
use super::host::Kernel;
use super::msrs;
use super::time;
use crate::error::{Kind, Result};
use crate::sys::kvm_state::{self as sys, Leaf};
use crate::vmm::{StateBlob, StateSink};
use kvm_bindings::kvm_cpuid_entry2;
use std::fmt::Write as _;
use std::os::fd::AsFd;

/// The name of the blob about compatibility.
pub const COMPAT: &str = "kvm-compat";
/// The version of its format.
const VERSION: u32 = 2;

const MSR_LIST: Known = (20, "list of MSRs");
const HAS: Known = (21, "capabilities");
const KNOWN: &[Known] = &[CPUID, MSR_LIST, HAS];
/// Flags, bytes of extended state, frequency of the TSC in kHz.
const HAS_WORDS: usize = 3;
/// The bits of the flags.
const FLAGS: [&str; 5] = [
    "KVM_CAP_XSAVE",
    "KVM_CAP_XCRS",
    "KVM_CAP_DEBUGREGS",
    "interrupt controllers in the kernel (KVM_CREATE_IRQCHIP)",
    "a PIT in the kernel (KVM_CREATE_PIT2)",
];
/// More registers than any kernel lists.
const MSRS_MOST: usize = 4096;
/// Registers that a message names.
const NAMED: usize = 8;

fn leaves(cpuid: &[kvm_cpuid_entry2]) -> Vec<Leaf> {
    cpuid.iter().map(Leaf::of).collect()
}

fn has(kernel: &Kernel) -> Result<[u64; HAS_WORDS]> {
    let (caps, vm) = (&kernel.caps, kernel.vm.fd());
    let bits = [
        caps.xsave,
        caps.xcrs,
        caps.debugregs,
        kernel.has_irqchip()?,
        sys::get_if_there(vm, sys::GET_PIT2)?.is_some(),
    ];
    let flags = bits
        .iter()
        .rev()
        .fold(0, |all, bit| all << 1 | u64::from(*bit));
    // A VM tells the frequency since Linux 5.18.
    let khz = sys::tsc_khz(vm).unwrap_or(0);
    Ok([flags, caps.xsave_bytes as u64, khz])
}

/// Source: puts what [`check_compat`] needs into `sink`, as one blob named [`COMPAT`]. For
/// [`Vmm::early_save`](crate::vmm::Vmm::early_save): the guest runs. `cpuid` is what the VMM gave to
/// `KVM_SET_CPUID2`, of any one vCPU.
///
/// # Errors
/// As [`save_vcpu`](super::save_vcpu).
pub fn save_compat(
    kernel: &Kernel,
    cpuid: &[kvm_cpuid_entry2],
    sink: &mut dyn StateSink,
) -> Result<()> {
    let cpuid = leaves(cpuid);
    let mut blob = Writer::new(cpuid::vendor(&cpuid), Owner::default())?;
    blob.put(CPUID, &cpuid::words(&cpuid))?;
    let list: Vec<u64> = kernel.msrs.iter().copied().map(u64::from).collect();
    blob.put(MSR_LIST, &list)?;
    blob.put(HAS, &has(kernel)?)?;
    sink.put(&StateBlob {
        name: COMPAT,
        instance: 0,
        version: VERSION,
        data: &blob.finish()?,
    })
}

/// Destination: whether this VM will be able to take the state of the guest that sent the blob. For
/// [`Vmm::early_load`](crate::vmm::Vmm::early_load). With `cpuid`, what the VMM sets for the same vCPU
/// here, CPUIDs are compared in full. With `None`, every feature of the guest has to be one that KVM
/// supports here.
///
/// # Errors
/// [`Kind::Unsupported`] names everything that is missing of the first kind found: vendor, CPUID, size of
/// the extended state, capabilities, TSC, MSRs. Other kinds: as [`load_vcpu`](super::load_vcpu).
pub fn check_compat(
    kernel: &Kernel,
    cpuid: Option<&[kvm_cpuid_entry2]>,
    blob: &StateBlob<'_>,
) -> Result<()> {
    let blob = Blob::read(blob, COMPAT, VERSION, KNOWN)?;
    let unsupported = |why: String| Err(blob.refuse(Kind::Unsupported, why));
    let source = cpuid::leaves(&blob)?;
    let supported = match cpuid {
        Some(_) => Vec::new(),
        None => sys::cpuid(kernel.kvm.as_fd(), sys::GET_SUPPORTED_CPUID)?,
    };
    let here = cpuid.map_or(supported, leaves);
    let vendor = cpuid::vendor(&here);
    if vendor != blob.vendor {
        return unsupported(format!(
            "the processor's vendor is {} at the source and {vendor} here",
            blob.vendor
        ));
    }
    match cpuid {
        Some(_) => cpuid::compare(&source, &here),
        None => cpuid::support(&source, &here),
    }
    .map_err(|e| blob.about(e))?;

    let theirs = blob.sized(HAS, HAS_WORDS)?;
    let ours = has(kernel)?;
    if theirs[1] > ours[1] {
        return unsupported(format!(
            "the extended state (xsave) has {} bytes at the source, and this VM's vCPUs take {}",
            theirs[1], ours[1]
        ));
    }
    let differ = (theirs[0] ^ ours[0]) & ((1 << FLAGS.len()) - 1);
    // What the kernel can do may be more here; what the VMM has made may not.
    let made = 0b11000;
    for (bit, name) in FLAGS
        .iter()
        .enumerate()
        .filter(|(bit, _)| differ >> bit & 1 == 1)
    {
        match (theirs[0] >> bit & 1, made >> bit & 1) {
            (1, _) => return unsupported(format!("the source has {name}, and this VM has not")),
            (_, 1) => return unsupported(format!("this VM has {name}, and the source has not")),
            _ => {}
        }
    }
    if !time::same_frequency(theirs[2], ours[2]) && !kernel.caps.tsc_control {
        return unsupported(format!(
            "the TSC runs at {} kHz at the source and at {} kHz here, and this kernel cannot scale it \
             (KVM_CAP_TSC_CONTROL)",
            theirs[2], ours[2]
        ));
    }
    if cpuid::has_nested(&source) && kernel.caps.nested_bytes == 0 {
        return unsupported(
            "the guest's CPUID has VMX or SVM, and this kernel cannot load nested state \
             (KVM_CAP_NESTED_STATE)"
                .into(),
        );
    }
    missing_msrs(kernel, &blob, &source)
}

/// Every register that the source saves and the guest can use is one that this kernel restores.
fn missing_msrs(kernel: &Kernel, blob: &Blob, cpuid: &[Leaf]) -> Result<()> {
    let list = blob.any(MSR_LIST)?;
    if list.len() > MSRS_MOST || list.iter().any(|index| *index > u64::from(u32::MAX)) {
        let why = format_args!("section list of MSRs: expected at most {MSRS_MOST} of 32 bits");
        return Err(blob.refuse(Kind::Invalid, why));
    }
    let needed = list.iter().map(|index| *index as u32).filter(|index| {
        msrs::is_state(*index) && !kernel.msrs.contains(index) && msrs::is_usable(*index, cpuid)
    });
    let (mut text, mut count) = (String::new(), 0);
    for index in needed {
        count += 1;
        if count <= NAMED {
            // Writing to a String cannot fail.
            let _ = write!(text, " {index:#x}");
        }
    }
    match count {
        0 => Ok(()),
        _ => {
            let more = match count > NAMED {
                true => format!(" and {} more", count - NAMED),
                false => String::new(),
            };
            let why = format_args!("this kernel neither saves nor restores MSR{text}{more}");
            Err(blob.refuse(Kind::Unsupported, why))
        }
    }
}
