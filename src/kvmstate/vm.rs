//! Saving and loading what belongs to a VM and not to one of its vCPUs: the in-kernel interrupt
//! controllers, the in-kernel timer (PIT), and KVM's clock.

use super::blob::{Blob, Known, Owner, Vendor, Writer};
use super::host::Kernel;
use super::time;
use crate::error::{Kind, Result};
use crate::sys::clock::realtime;
use crate::sys::kvm_state as sys;
use crate::vmm::{StateBlob, StateSink};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The name of a VM's blob.
pub const VM: &str = "kvm-vm";
/// The version of its format.
const VERSION: u32 = 2;

const CHIPS: [Known; 3] = [(1, "PIC, master"), (2, "PIC, slave"), (3, "I/O APIC")];
const PIT: Known = (4, "PIT");
const CLOCK: Known = (5, "clock");
const KNOWN: &[Known] = &[CHIPS[0], CHIPS[1], CHIPS[2], PIT, CLOCK];

/// Time of day in nanoseconds, and KVM's clock then.
const CLOCK_WORDS: usize = 2;

/// Puts the state of a VM into `sink`, as one blob named [`VM`]. No vCPU of the VM runs. Save the vCPUs
/// first: saving a vCPU can still move an interrupt.
///
/// # Errors
/// As [`save_vcpu`](super::save_vcpu).
pub fn save_vm(kernel: &Kernel, sink: &mut dyn StateSink) -> Result<()> {
    let vm = kernel.vm.fd();
    let mut blob = Writer::new(Vendor::default(), Owner::default())?;
    for (number, section) in CHIPS.iter().enumerate() {
        if let Some(chip) = chip(vm, number as u64)? {
            blob.put(*section, &chip)?;
        }
    }
    if let Some(pit) = sys::get_if_there(vm, sys::GET_PIT2)? {
        blob.put(PIT, &pit)?;
    }
    let now = realtime();
    let clock = sys::get(vm, sys::GET_CLOCK)?;
    blob.put(CLOCK, &[now.as_nanos() as u64, clock[0]])?;
    sink.put(&StateBlob {
        name: VM,
        instance: 0,
        version: VERSION,
        data: &blob.finish()?,
    })
}

/// One of the three interrupt controllers, unless the VM has none in the kernel.
fn chip(vm: BorrowedFd<'_>, number: u64) -> Result<Option<Vec<u64>>> {
    let mut words = vec![0; sys::GET_IRQCHIP.words()];
    words[0] = number;
    match sys::fill_if_there(vm, sys::GET_IRQCHIP, &mut words)? {
        true => Ok(Some(words)),
        false => Ok(None),
    }
}

/// Loads a blob that [`save_vm`] has made, after all vCPUs. The VMM has made interrupt controllers and PIT
/// as at the source. Lines that a device holds up are the devices': assert them again afterwards.
///
/// # Errors
/// As [`load_vcpu`](super::load_vcpu).
pub fn load_vm(kernel: &Kernel, blob: &StateBlob<'_>) -> Result<()> {
    let vm = kernel.vm.fd();
    let blob = Blob::read(blob, VM, VERSION, KNOWN)?;
    let mut chips = Vec::new();
    for (number, section) in CHIPS.iter().enumerate() {
        let words = blob.find_sized(*section, sys::SET_IRQCHIP.words())?;
        let here = chip(vm, number as u64).map_err(|e| blob.about(e))?;
        agree(
            &blob,
            section.1,
            words.is_some(),
            here.is_some(),
            "KVM_CREATE_IRQCHIP",
        )?;
        if let Some(words) = words {
            if words[0] as u32 as usize != number {
                let why = format_args!("section {}: it is chip {}", section.1, words[0] as u32);
                return Err(blob.refuse(Kind::Invalid, why));
            }
            chips.push(words);
        }
    }
    let pit = blob.find_sized(PIT, sys::SET_PIT2.words())?;
    let here = sys::get_if_there(vm, sys::GET_PIT2).map_err(|e| blob.about(e))?;
    agree(
        &blob,
        PIT.1,
        pit.is_some(),
        here.is_some(),
        "KVM_CREATE_PIT2",
    )?;
    let clock = blob.sized(CLOCK, CLOCK_WORDS)?;

    let load = || {
        for chip in chips {
            sys::set(vm, sys::SET_IRQCHIP, chip)?;
        }
        // The timer may fire from here on, and its interrupt goes to the controllers.
        if let Some(pit) = pit {
            sys::set(vm, sys::SET_PIT2, pit)?;
        }
        // Last, because its time runs from here on.
        let gone = time::gone(Duration::from_nanos(clock[0]), realtime());
        let mut words = vec![0; sys::SET_CLOCK.words()];
        words[0] = clock[1].saturating_add(gone.as_nanos() as u64);
        sys::set(vm, sys::SET_CLOCK, &words)
    };
    load().map_err(|e| blob.about(e))
}

/// Both sides have a device in the kernel, or neither has.
fn agree(blob: &Blob, what: &str, there: bool, here: bool, call: &str) -> Result<()> {
    let why = match (there, here) {
        (true, false) => format!(
            "the source has its {what} in the kernel, and this VM has not: the VMM calls {call} first"
        ),
        (false, true) => format!("this VM has its {what} in the kernel ({call}), and the source has not"),
        _ => return Ok(()),
    };
    Err(blob.refuse(Kind::Unsupported, why))
}
