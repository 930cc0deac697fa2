//! Switching a slot's dirty logging on and off.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::Slot;
use crate::sys::kvm::{UserMemoryRegion, Vm, MEM_LOG_DIRTY_PAGES};
use crate::vmm::Vmm;
use std::sync::Arc;

/// Who switches a slot's logging on and off.
#[derive(Default)]
pub enum LogSwitch {
    /// brant does, by `KVM_SET_USER_MEMORY_REGION` with the slot as it is in the map.
    #[default]
    Brant,
    /// The VMM does, in its `log_on` and `log_off` operations.
    Vmm(Arc<dyn Vmm>),
}

impl LogSwitch {
    fn region(vm: &mut dyn Vm, slot: &Slot, on: bool) -> Result<()> {
        // For a slot that does not exist KVM_SET_USER_MEMORY_REGION would make one, over memory
        // that the guest was never meant to see.
        if on && !vm.has_slot(slot.slot, slot.guest_address.0) {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "KVM has no memory slot {:#x}, which was described at guest address {:#x}: \
                     make it in KVM first, or describe it with BRANT_NO_SLOT",
                    slot.slot, slot.guest_address.0
                ),
            ));
        }
        vm.set_region(&UserMemoryRegion {
            slot: slot.slot,
            flags: slot.flags | if on { MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_address: slot.guest_address.0,
            size: slot.pages.bytes().0,
            host_address: slot.host_address,
        })
    }

    /// Switches the logging of `slots`. If switching on fails, all of them are off afterwards.
    pub(super) fn set(&self, vm: &mut dyn Vm, slots: &[&Slot], on: bool) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        match self {
            LogSwitch::Vmm(vmm) => {
                let numbers = fallible::collect(slots.iter().map(|s| s.slot), super::SLOTS)?;
                if on {
                    vmm.log_on(&numbers)?;
                    // Without this check the first harvest would fail, and say no more than ENOENT.
                    match numbers.iter().find(|s| vm.is_logged(**s) == Some(false)) {
                        Some(slot) => {
                            let error = Error::new(
                                Kind::Vmm,
                                format!(
                                    "`log_on` returned well, and KVM does not log memory slot \
                                     {slot:#x}: set it once more with KVM_MEM_LOG_DIRTY_PAGES"
                                ),
                            );
                            // The first error is the one that is returned.
                            let _ = vmm.log_off(&numbers);
                            Err(error)
                        }
                        None => Ok(()),
                    }
                } else {
                    vmm.log_off(&numbers)
                }
            }
            LogSwitch::Brant if on => {
                for (done, slot) in slots.iter().enumerate() {
                    if let Err(e) = Self::region(vm, slot, true) {
                        for slot in &slots[..done] {
                            // The first error is the one that is returned. A slot that stays logged
                            // only costs speed.
                            let _ = Self::region(vm, slot, false);
                        }
                        return Err(e);
                    }
                }
                Ok(())
            }
            LogSwitch::Brant => {
                // Every slot is switched off, even after one fails: a slot that stays logged costs
                // the guest one fault a page for as long as the guest lives.
                let mut result = Ok(());
                for slot in slots {
                    result = result.and(Self::region(vm, slot, false));
                }
                result
            }
        }
    }
}
