//! The one entry that chooses KVM's log of a virtual machine. It asks the VM and the kernel what
//! they offer, has [`choose`] decide, and makes the log.

use super::choose::{choose, Offer};
use super::log::KvmLog;
use super::measure::costs::Measured;
use super::mode::{Choice, KvmMode};
use super::ring::{KvmRing, Rings};
use super::switch::LogSwitch;
use crate::dirty::DirtyLog;
use crate::error::Result;
use crate::sys::kvm::{Vm, VmFd, CAP_MANUAL_DIRTY_LOG_PROTECT2};
use crate::sys::kvm_ring::{has_bitmap, is_enabled};
use crate::vmm::Vmm;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A request for KVM's log. By default the mode is [`KvmMode::Auto`], and brant switches the
/// logging.
#[derive(Default)]
pub struct Request {
    /// A certain mode, or `Auto` for the best one.
    pub mode: KvmMode,
    /// Who switches the logging of slots.
    pub switch: LogSwitch,
    /// With rings, a harvest first asks this VMM to `kick` the vCPUs while they run. The VMM is
    /// also told of the reaper's thread.
    pub vmm: Option<Arc<dyn Vmm>>,
    /// The result of [`super::measure()`], by which [`KvmMode::Auto`] chooses. Without it, Auto
    /// chooses by what the kernel offers.
    pub measured: Option<Measured>,
    /// Bytes of each vCPU's ring, as returned when rings were enabled. A vCPU whose ring has
    /// another size is refused. With 0 the kernel is asked for the size.
    pub ring_bytes: u64,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("mode", &self.mode)
            .field("ring_bytes", &self.ring_bytes)
            .finish_non_exhaustive()
    }
}

/// The mode and the rings of a log, still usable after the log was given to a tracker.
#[derive(Debug, Clone)]
pub struct Used {
    /// The mode, and why.
    pub choice: Choice,
    /// Whether a bitmap is read besides the rings.
    pub with_bitmap: bool,
    /// In mode ring, access for vCPU threads. Add each vCPU before it runs under tracking.
    pub rings: Option<Rings>,
    /// In mode ring, the value of [`Request::ring_bytes`].
    pub ring_bytes: u64,
}

/// A log for [`Tracker::add_log`](crate::dirty::tracker::Tracker::add_log), and how it works.
pub struct Opened {
    /// The log.
    pub log: Box<dyn DirtyLog>,
    /// Its mode and rings.
    pub used: Used,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// The log of a virtual machine of a VMM that uses `kvm-ioctls`; its descriptor is duplicated.
    ///
    /// ```
    /// use brant::dirty::kvm::{KvmMode, Request};
    ///
    /// # fn main() -> brant::Result<()> {
    /// # let Ok(kvm) = kvm_ioctls::Kvm::new() else { return Ok(()) };
    /// let vm = kvm.create_vm().unwrap();
    /// let opened = Request::default().open(&vm)?;
    /// assert_ne!(opened.used.choice.mode, KvmMode::Auto);
    /// println!("{:?}: {}", opened.used.choice.mode, opened.used.choice.reason);
    /// // tracker.add_log(opened.log)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(self, vm: &kvm_ioctls::VmFd) -> Result<Opened> {
        self.open_fd(VmFd::duplicate(vm)?)
    }

    /// The log of the virtual machine behind the descriptor that `KVM_CREATE_VM` returned, or a
    /// duplicate of that descriptor. brant owns the descriptor from now on.
    pub fn open_fd(self, vm: OwnedFd) -> Result<Opened> {
        let mut vm = VmFd::new(vm)?;
        let ring = is_enabled(&vm);
        let bitmap = !ring || has_bitmap(&mut vm)?;
        let offer = Offer {
            manual: vm.check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2),
            ring,
            bitmap,
        };
        let choice = choose(self.mode, offer, self.measured.as_ref())?;
        let mut rings = None;
        let log: Box<dyn DirtyLog> = match choice.mode {
            KvmMode::Ring => {
                let log = KvmRing::from_fd(vm, self.switch, self.vmm)?;
                rings = Some(log.rings());
                Box::new(log)
            }
            mode => Box::new(KvmLog::new(Box::new(vm), mode, self.switch)),
        };
        Ok(Opened {
            log,
            used: Used {
                choice,
                with_bitmap: ring && bitmap,
                rings,
                ring_bytes: if ring { self.ring_bytes } else { 0 },
            },
        })
    }
}
