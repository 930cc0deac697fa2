//! Which model-specific registers are state, and in what order they are loaded.

use super::blob::{Blob, Known};
use super::cpuid;
use crate::error::{Error, Kind, Result};
use crate::sys::kvm_state::{self, Leaf, Msr};
use std::fmt::Write as _;
use std::os::fd::BorrowedFd;

pub(super) const MSRS: Known = (11, "MSRs");

/// The time-stamp counter, which has a section of its own.
pub(super) const TSC: u32 = 0x10;
/// When the local APIC's timer fires, in the guest's TSC.
const TSC_DEADLINE: u32 = 0x6e0;
/// Written by a guest to have the time of day put into a page: `MSR_KVM_WALL_CLOCK` and its successor.
const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
/// What nested state depends on: `IA32_FEATURE_CONTROL`, and the capabilities of VMX.
const BEFORE_NESTED: [std::ops::RangeInclusive<u32>; 2] = [0x3a..=0x3a, 0x480..=0x493];
/// More registers than any kernel lists.
const MOST: usize = 4096;
/// Registers that a message names.
const NAMED: usize = 8;

/// Whether a register is state that goes into the section of registers.
///
/// A write to the wall clock's register is an order: put the time of day to this address, now. Linux
/// gives it again each time it wants to know. To repeat an old order would write twelve bytes into
/// memory that the guest may use for something else by now, so it is not repeated.
pub(super) fn is_state(index: u32) -> bool {
    index != TSC && !WALL_CLOCKS.contains(&index)
}

/// Registers that a guest has only if CPUID has a bit: registers, function, index, register, bits of
/// which one suffices. KVM lists them wherever the host has them.
const BY_CPUID: &[(std::ops::RangeInclusive<u32>, u32, u32, usize, u32)] = &[
    (0x48..=0x49, 7, 0, 3, 1 << 26),            // SPEC_CTRL, PRED_CMD
    (0x8c..=0x8f, 7, 0, 2, 1 << 30),            // SGX launch control
    (0xc1..=0xc8, 0xa, 0, 0, 0xff),             // performance counters
    (0xe1..=0xe1, 7, 0, 2, 1 << 5),             // UMWAIT
    (0x122..=0x122, 7, 0, 1, 1 << 4 | 1 << 11), // TSX
    (0x186..=0x18d, 0xa, 0, 0, 0xff),           // performance events
    (0x1c4..=0x1c5, 0xd, 1, 0, 1 << 4),         // XFD
    (0x309..=0x30c, 0xa, 0, 0, 0xff),           // fixed counters
    (0x38d..=0x390, 0xa, 0, 0, 0xff),           // their control
    (0x3f1..=0x3f2, 0xa, 0, 0, 0xff),           // PEBS
    (0x480..=0x493, 1, 0, 2, 1 << 5),           // VMX
    (0x4c1..=0x4c8, 0xa, 0, 0, 0xff),           // wide performance counters
    (0x560..=0x587, 7, 0, 1, 1 << 25),          // processor trace
    (0x600..=0x600, 1, 0, 3, 1 << 21),          // debug store
    (0x6a0..=0x6a8, 7, 0, 2, 1 << 7),           // shadow stacks
    (0xd90..=0xd90, 7, 0, 1, 1 << 14),          // MPX
    (0xda0..=0xda0, 0xd, 1, 0, 1 << 3),         // XSS
    (0x4000_0000..=0x4000_01ff, 0x4000_0003, 0, 0, u32::MAX), // Hyper-V
    (0xc000_0103..=0xc000_0103, 0x8000_0001, 0, 3, 1 << 27), // TSC_AUX
    (0xc000_0300..=0xc000_0303, 0x8000_0022, 0, 0, 1), // AMD's global counters
    (0xc001_0000..=0xc001_0007, 0x8000_0001, 0, 2, 1 << 23), // AMD's counters
    (0xc001_0200..=0xc001_020b, 0x8000_0001, 0, 2, 1 << 23), // and their successors
    (0xc001_0114..=0xc001_0117, 0x8000_0001, 0, 2, 1 << 2), // SVM
];

/// Whether a guest with this CPUID can have changed a register. Of one that is not known, it is assumed.
pub(super) fn is_usable(index: u32, cpuid: &[Leaf]) -> bool {
    let known = BY_CPUID.iter().find(|(msrs, ..)| msrs.contains(&index));
    known.is_none_or(|(_, function, sub, register, bits)| {
        cpuid::registers(cpuid, *function, *sub)[*register] & bits != 0
    })
}

fn is_early(index: u32) -> bool {
    BEFORE_NESTED.iter().any(|range| range.contains(&index))
}

/// A section of these registers.
pub(super) fn words(msrs: &[Msr]) -> Vec<u64> {
    let pair = |msr: &Msr| [u64::from(msr.index), msr.value];
    msrs.iter().flat_map(pair).collect()
}

/// The registers of a blob, in three groups in which they are loaded.
pub(super) struct Groups {
    /// Before the nested state.
    pub(super) early: Vec<Msr>,
    pub(super) most: Vec<Msr>,
    /// When all else is there: the deadline of the timer starts it.
    pub(super) last: Vec<Msr>,
}

/// Reads the section. Every register that is not 0 has to be one that this vCPU has.
pub(super) fn read(blob: &Blob, vcpu: BorrowedFd<'_>) -> Result<Groups> {
    let words = blob.any(MSRS)?;
    let pairs = words.chunks_exact(2).map(|pair| Msr {
        index: pair[0] as u32,
        value: pair[1],
    });
    if !words.len().is_multiple_of(2)
        || words.len() > 2 * MOST
        || words.iter().step_by(2).any(|i| *i > u64::from(u32::MAX))
    {
        return Err(blob.refuse(
            Kind::Invalid,
            format_args!(
                "section MSRs: expected pairs of a number of 32 bits and a value, at most {MOST}"
            ),
        ));
    }
    let msrs: Vec<Msr> = pairs.filter(|msr| is_state(msr.index)).collect();
    let there = values(vcpu, &msrs)?;
    let missing = |msr: &Msr| msr.value != 0 && value_of(&there, msr.index).is_none();
    let missing: Vec<Msr> = msrs.iter().copied().filter(missing).collect();
    if !missing.is_empty() {
        return Err(blob.about(unknown(&missing)));
    }
    let known = msrs
        .into_iter()
        .filter(|msr| value_of(&there, msr.index).is_some());
    let mut groups = Groups {
        early: Vec::new(),
        most: Vec::new(),
        last: Vec::new(),
    };
    for msr in known {
        match msr.index {
            TSC_DEADLINE => groups.last.push(msr),
            index if is_early(index) => groups.early.push(msr),
            _ => groups.most.push(msr),
        }
    }
    Ok(groups)
}

fn unknown(missing: &[Msr]) -> Error {
    let mut text = String::new();
    for msr in missing.iter().take(NAMED) {
        // Writing to a String cannot fail.
        let _ = write!(text, " {:#x} (value {:#x})", msr.index, msr.value);
    }
    if missing.len() > NAMED {
        let _ = write!(text, " and {} more", missing.len() - NAMED);
    }
    Error::new(
        Kind::Unsupported,
        format!("this kernel, or this vCPU with its CPUID, has no MSR{text}"),
    )
}

fn values(vcpu: BorrowedFd<'_>, of: &[Msr]) -> Result<Vec<Msr>> {
    let indices: Vec<u32> = of.iter().map(|msr| msr.index).collect();
    kvm_state::get_msrs(vcpu, &indices)
}

fn value_of(msrs: &[Msr], index: u32) -> Option<u64> {
    let found = msrs.iter().find(|msr| msr.index == index);
    found.map(|msr| msr.value)
}

/// Writes the registers that have another value now. Registers that KVM lets nobody write, such as
/// what the processor can do, are equal on equal processors.
pub(super) fn load(vcpu: BorrowedFd<'_>, msrs: &[Msr]) -> Result<()> {
    let now = values(vcpu, msrs)?;
    let differs = |msr: &Msr| value_of(&now, msr.index) != Some(msr.value);
    let different: Vec<Msr> = msrs.iter().copied().filter(differs).collect();
    kvm_state::set_msrs(vcpu, &different)
}
