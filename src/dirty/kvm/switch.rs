//! Switching a slot's dirty logging on and off.

use crate::error::Result;
use crate::memory::Slot;
use crate::sys::kvm::{Region, Vm, MEM_LOG_DIRTY_PAGES};
use crate::vmm::Vmm;
use std::sync::Arc;

/// Who switches a slot's logging on and off.
pub enum LogSwitch {
    /// brant, by `KVM_SET_USER_MEMORY_REGION` with the slot as it is in the map.
    Brant,
    /// The VMM, in its `log_on` and `log_off` operations.
    Vmm(Arc<dyn Vmm>),
}

impl LogSwitch {
    fn region(vm: &mut dyn Vm, slot: &Slot, on: bool) -> Result<()> {
        vm.set_region(&Region {
            slot: slot.slot,
            flags: slot.flags | if on { MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_address: slot.guest_address.0,
            size: slot.pages.bytes().0,
            host_address: slot.host_address,
        })
    }

    /// Switches `slots`; after an error on the way on, they are off.
    pub(super) fn set(&self, vm: &mut dyn Vm, slots: &[&Slot], on: bool) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        match self {
            LogSwitch::Vmm(vmm) => {
                let numbers: Vec<u32> = slots.iter().map(|s| s.slot).collect();
                if on {
                    vmm.log_on(&numbers)
                } else {
                    vmm.log_off(&numbers)
                }
            }
            LogSwitch::Brant if on => {
                for (done, slot) in slots.iter().enumerate() {
                    if let Err(e) = Self::region(vm, slot, true) {
                        for slot in &slots[..done] {
                            // The first error is the one to tell; a slot that stays
                            // logged only costs speed.
                            let _ = Self::region(vm, slot, false);
                        }
                        return Err(e);
                    }
                }
                Ok(())
            }
            LogSwitch::Brant => {
                // All of them, also after one that fails: each that stays logged costs the
                // guest a fault a page for as long as it lives.
                let mut result = Ok(());
                for slot in slots {
                    result = result.and(Self::region(vm, slot, false));
                }
                result
            }
        }
    }
}
