//! Saving and loading what KVM knows of a guest: the registers and events of its vCPUs, the
//! in-kernel interrupt controllers and timer, and the clocks.
//!
//! A VMM calls these functions in its operations [`save`](crate::vmm::Vmm::save) and
//! [`load`](crate::vmm::Vmm::load). The state travels as blobs like that of any other device. What is in a
//! blob, what the order is and what the VMM still does itself: `docs/kvm-state.md`. x86-64 only.
//!
//! A vCPU moves from one VM to another:
//!
//! ```no_run
//! use brant::kvm_ioctls::{Kvm, VcpuFd, VmFd};
//! use brant::kvmstate::{load_vcpu, save_vcpu, AsKvmFd, Kernel};
//! use brant::vmm::{StateBlob, StateSink};
//!
//! /// What a migration does between the two sides.
//! struct Wire<'a, V>(&'a Kernel, &'a V);
//!
//! impl<V: AsKvmFd> StateSink for Wire<'_, V> {
//!     fn put(&mut self, blob: &StateBlob<'_>) -> brant::Result<()> {
//!         load_vcpu(self.0, self.1, blob)
//!     }
//! }
//!
//! # fn moved(kvm: Kvm, from: (VmFd, VcpuFd), to: (VmFd, VcpuFd)) -> brant::Result<()> {
//! let (here, there) = (Kernel::new(Some(&kvm), &from.0)?, Kernel::new(Some(&kvm), &to.0)?);
//! save_vcpu(&here, &from.1, 0, &mut Wire(&there, &to.1))?;
//! # Ok(())
//! # }
//! ```

mod blob;
mod compat;
mod cpuid;
mod host;
mod msrs;
mod time;
mod vcpu;
mod vm;

pub use crate::sys::kvm_state::AsKvmFd;
pub use compat::{check_compat, save_compat, COMPAT};
pub use host::Kernel;
pub use time::GONE_MAX;
pub use vcpu::{load_renumbered_vcpu, load_vcpu, save_vcpu, stood_still, VCPU};
pub use vm::{load_vm, save_vm, VM};
