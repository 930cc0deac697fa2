//! The comparison of two CPUIDs: that of a guest at the source, and that of the vCPU that the VMM has
//! made at the destination. Pure.
//!
//! The VMM sets CPUID, because only the VMM knows what it has promised to the guest. A guest that finds
//! another processor after its move fails later, and elsewhere. So they are compared, bit by bit, except for
//! the bits that follow the guest's own registers, and the processor's number.

use super::blob::{halves, Blob, Known, Vendor};
use crate::error::{Error, Kind, Result};
use crate::sys::kvm_state::{Leaf, CPUID_MAX};
use std::fmt::Write as _;

pub(super) const CPUID: Known = (14, "CPUID");
const WORDS: usize = 3;
/// Differences that a message names.
const NAMED: usize = 4;
const NAMES: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Bits that are not compared: function, index, register, bits. KVM changes some while the guest runs.
/// Others are the number of the processor. `KVM_GET_SUPPORTED_CPUID` puts the number of the host's processor
/// there on which it was called, and many VMMs leave it so.
const FOLLOW: &[(u32, u32, usize, u32)] = &[
    (1, 0, 2, 1 << 27 | 1 << 3), // OSXSAVE follows CR4; MONITOR follows IA32_MISC_ENABLE
    (1, 0, 3, 1 << 9),           // APIC follows IA32_APIC_BASE
    (7, 0, 2, 1 << 4),           // OSPKE follows CR4
    (0xd, 0, 1, u32::MAX),       // the size of what XCR0 enables
    (0xd, 1, 1, u32::MAX),       // the size of what XCR0 and IA32_XSS enable
    (1, 0, 1, 0xff << 24),       // the number of the APIC, here and below
    (0xb, 0, 3, u32::MAX),
    (0xb, 1, 3, u32::MAX),
    (0x1f, 0, 3, u32::MAX),
    (0x1f, 1, 3, u32::MAX),
    (0x8000_001e, 0, 0, u32::MAX),
    (0x8000_001e, 0, 1, 0xff),
    (0x8000_001e, 0, 2, 0xff),
];

/// The vendor of the processor that a guest sees.
pub(super) fn vendor(leaves: &[Leaf]) -> Vendor {
    let leaf = leaves.iter().find(|leaf| leaf.function == 0);
    leaf.map_or(Vendor::default(), |leaf| {
        let [_, b, c, d] = leaf.registers;
        Vendor([b, d, c])
    })
}

/// A section of these leaves.
pub(super) fn words(leaves: &[Leaf]) -> Vec<u64> {
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let one = |leaf: &Leaf| {
        let [a, b, c, d] = leaf.registers;
        [word(leaf.function, leaf.index), word(a, b), word(c, d)]
    };
    leaves.iter().flat_map(one).collect()
}

/// The leaves of a section.
pub(super) fn leaves(blob: &Blob) -> Result<Vec<Leaf>> {
    let words = blob.any(CPUID)?;
    if !words.len().is_multiple_of(WORDS) || words.len() > WORDS * CPUID_MAX {
        return Err(blob.refuse(
            Kind::Invalid,
            format_args!(
                "section CPUID: expected entries of 24 bytes, at most {CPUID_MAX}; found {} bytes",
                8 * words.len()
            ),
        ));
    }
    let leaf = |entry: &[u64]| {
        let ((function, index), (a, b), (c, d)) =
            (halves(entry[0]), halves(entry[1]), halves(entry[2]));
        Leaf {
            function,
            index,
            registers: [a, b, c, d],
        }
    };
    Ok(words.chunks_exact(WORDS).map(leaf).collect())
}

/// The registers of a leaf without the bits that are not compared; zeros for one that is
/// not there.
fn fixed(leaves: &[Leaf], function: u32, index: u32) -> [u32; 4] {
    let mut registers = registers(leaves, function, index);
    for (f, i, register, bits) in FOLLOW {
        if (*f, *i) == (function, index) {
            registers[*register] &= !bits;
        }
    }
    registers
}

/// Compares the source's leaves with those here. A leaf that only one side has counts as zeros on the
/// other.
pub(super) fn compare(source: &[Leaf], here: &[Leaf]) -> Result<()> {
    let only_here = here.iter().filter(|leaf| {
        !source
            .iter()
            .any(|s| (s.function, s.index) == (leaf.function, leaf.index))
    });
    let mut text = String::new();
    let mut differ = 0;
    for leaf in source.iter().chain(only_here) {
        let (function, index) = (leaf.function, leaf.index);
        let (a, b) = (fixed(source, function, index), fixed(here, function, index));
        for register in (0..4).filter(|r| a[*r] != b[*r]) {
            differ += 1;
            if differ > NAMED {
                continue;
            }
            let name = NAMES[register];
            let (a, b) = (a[register], b[register]);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "{}leaf {function:#x}.{index} {name} is {a:#x} at the source and {b:#x} here \
                 (bits {:#x} are missing here, {:#x} are more)",
                if text.is_empty() { "" } else { "; " },
                a & !b,
                b & !a
            );
        }
    }
    if differ == 0 {
        return Ok(());
    }
    if differ > NAMED {
        let _ = write!(text, "; and {} more registers differ", differ - NAMED);
    }
    let advice = "the VMM sets at the destination what it has set at the source (KVM_SET_CPUID2)";
    Err(Error::new(
        Kind::Unsupported,
        format!("CPUID differs, and {advice}: {text}"),
    ))
}

/// The registers of a leaf; zeros for one that is not there.
pub(super) fn registers(leaves: &[Leaf], function: u32, index: u32) -> [u32; 4] {
    let found = leaves
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (function, index));
    found.map_or([0; 4], |leaf| leaf.registers)
}

/// Whether a guest with this CPUID may run guests of its own: VMX or SVM.
pub(super) fn has_nested(leaves: &[Leaf]) -> bool {
    registers(leaves, 1, 0)[2] >> 5 & 1 == 1 || registers(leaves, 0x8000_0001, 0)[2] >> 2 & 1 == 1
}

/// Registers that are a feature a bit: function, index, register, and the bits of those that a VMM may
/// set although KVM does not list them, or that follow the guest's registers.
const FEATURES: &[(u32, u32, usize, u32)] = &[
    (1, 0, 2, 1 << 3 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31), // MONITOR x2APIC deadline OSXSAVE hypervisor
    (1, 0, 3, 1 << 9 | 1 << 28),                               // APIC, HTT
    (7, 0, 1, 0),
    (7, 0, 2, 1 << 4), // OSPKE
    (7, 0, 3, 0),
    (7, 1, 0, 0),
    (7, 1, 3, 0),
    (0xd, 0, 0, 0),
    (0xd, 0, 3, 0),
    (0xd, 1, 0, 0),
    (0x4000_0001, 0, 0, 0),
    (0x8000_0001, 0, 2, 1 << 1 | 1 << 22), // the topology
    (0x8000_0001, 0, 3, 0),
    (0x8000_0008, 0, 1, 0),
];

/// Whether KVM supports every feature of the source's guest here.
pub(super) fn support(source: &[Leaf], here: &[Leaf]) -> Result<()> {
    let mut text = String::new();
    for (function, index, register, free) in FEATURES {
        let there = registers(source, *function, *index)[*register];
        let missing = there & !registers(here, *function, *index)[*register] & !free;
        if missing != 0 {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "{}leaf {function:#x}.{index} {} bits {missing:#x}",
                if text.is_empty() { "" } else { ", " },
                NAMES[*register]
            );
        }
    }
    match text.is_empty() {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Unsupported,
            format!("the guest's CPUID has features that KVM does not support here: {text}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> Leaf {
        Leaf {
            function,
            index,
            registers,
        }
    }

    #[test]
    fn a_difference_is_named_by_leaf_register_and_bits() {
        let source = [leaf(1, 0, [1, 2, 3, 4]), leaf(7, 0, [0, 0b110, 0, 0])];
        let here = [leaf(7, 0, [0, 0b011, 0, 0]), leaf(1, 0, [1, 2, 3, 4])];
        let error = compare(&source, &here).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        let text = error.message();
        assert!(
            text.contains("leaf 0x7.0 EBX is 0x6 at the source and 0x3 here"),
            "{text}"
        );
        assert!(
            text.contains("bits 0x4 are missing here, 0x1 are more"),
            "{text}"
        );
    }

    #[test]
    fn bits_that_follow_registers_and_leaves_of_zeros_do_not_count() {
        let source = [
            leaf(1, 0, [1, 3 << 24, 1 << 27, 1 << 9]),
            leaf(0xd, 0, [7, 832, 832, 0]),
            leaf(5, 0, [0; 4]),
        ];
        let here = [leaf(1, 0, [1, 0, 0, 0]), leaf(0xd, 0, [7, 576, 832, 0])];
        compare(&source, &here).unwrap();
    }

    #[test]
    fn a_feature_that_kvm_lacks_is_named_and_one_of_the_vmms_own_is_not() {
        let here = [leaf(1, 0, [0, 0, 0b11, 0])];
        support(&[leaf(1, 0, [9, 9, 0b01 | 1 << 31, 1 << 28])], &here).unwrap();
        let error = support(&[leaf(1, 0, [0, 0, 0b101, 0])], &here).unwrap_err();
        assert!(
            error.message().contains("leaf 0x1.0 ECX bits 0x4"),
            "{error}"
        );
    }

    #[test]
    fn a_message_names_few_of_many_differences() {
        let source: Vec<Leaf> = (100..140).map(|f| leaf(f, 0, [1; 4])).collect();
        let error = compare(&source, &[]).unwrap_err();
        assert!(
            error.message().contains("and 156 more registers differ"),
            "{error}"
        );
        assert!(error.message().len() < 1000);
    }
}
