//! What the kernel here can save and load for one VM. Asked once, used for each vCPU.

use crate::error::{Error, Result};
use crate::sys::kvm::{Vm as _, VmFd};
use crate::sys::kvm_kind::{expect, Role};
use crate::sys::kvm_state::{self as sys, AsKvmFd};
use crate::sys::{file, kvm_machine};
use kvm_bindings::{
    KVM_CAP_DEBUGREGS, KVM_CAP_NESTED_STATE, KVM_CAP_SREGS2, KVM_CAP_TSC_CONTROL, KVM_CAP_XCRS,
    KVM_CAP_XSAVE,
};
use std::os::fd::{AsFd, OwnedFd};

/// What the kernel has for the VMs that are made on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caps {
    /// `KVM_GET_SREGS2` (Linux 5.14).
    pub sregs2: bool,
    pub xsave: bool,
    pub xcrs: bool,
    pub debugregs: bool,
    /// `KVM_SET_TSC_KHZ` for a frequency that is not the host's.
    pub tsc_control: bool,
    /// The most bytes of a vCPU's nested state; 0 without nested virtualisation.
    pub nested_bytes: usize,
    /// Bytes of the extended state of this VM's vCPUs.
    pub xsave_bytes: usize,
}

/// The kernel here, as the saving and loading of one VM's state needs it. It keeps a duplicate of the
/// VM's descriptor.
#[derive(Debug)]
pub struct Kernel {
    pub(super) vm: VmFd,
    pub(super) kvm: OwnedFd,
    pub(super) caps: Caps,
    /// The model-specific registers that this kernel saves and restores.
    pub(super) msrs: Vec<u32>,
}

impl Kernel {
    /// Asks the kernel what it has. `kvm` is `/dev/kvm`, and is opened when it is `None`; `vm` is what
    /// `KVM_CREATE_VM` returned.
    ///
    /// The size of the extended state follows the permissions of the process (`ARCH_REQ_XCOMP_GUEST_PERM`),
    /// so ask for those first.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind::Invalid) for a descriptor that is closed, of another kind or of
    /// another process's VM. The message calls `kvm` kvm_fd and `vm` vm_fd, as the C functions do.
    pub fn new(kvm: Option<&impl AsKvmFd>, vm: &impl AsKvmFd) -> Result<Kernel> {
        // Before a new descriptor can take the number of one that is closed.
        expect(vm.kvm_fd(), Role::Vm)?;
        let kvm = kvm_machine::kvm(kvm.map(AsKvmFd::kvm_fd))?;
        let vm = file::duplicate(vm.kvm_fd())
            .map_err(|e| Error::os("duplicating the VM descriptor", e))?;
        let vm = VmFd::new(vm)?;
        let has = |cap| vm.check_extension(cap) > 0;
        let caps = Caps {
            sregs2: has(KVM_CAP_SREGS2),
            xsave: has(KVM_CAP_XSAVE),
            xcrs: has(KVM_CAP_XCRS),
            debugregs: has(KVM_CAP_DEBUGREGS),
            tsc_control: has(KVM_CAP_TSC_CONTROL),
            nested_bytes: vm.check_extension(KVM_CAP_NESTED_STATE) as usize,
            xsave_bytes: sys::xsave_bytes(&vm),
        };
        let msrs = sys::msr_list(kvm.as_fd())?;
        Ok(Kernel {
            vm,
            kvm,
            caps,
            msrs,
        })
    }

    /// Whether the VM's interrupt controllers are the kernel's, all of them.
    pub(super) fn has_irqchip(&self) -> Result<bool> {
        let mut chip = vec![0; sys::GET_IRQCHIP.words()];
        sys::fill_if_there(self.vm.fd(), sys::GET_IRQCHIP, &mut chip)
    }
}
