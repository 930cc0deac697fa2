//! The KVM virtual-machine ioctls that dirty logging needs.
//!
//! [`Vm`] is the boundary: [`VmFd`] is the kernel, and tests put a model of the kernel behind the
//! same trait. The calls are made here, with the structures of `kvm-bindings`, for three reasons.
//! `kvm-ioctls` has no `KVM_CLEAR_DIRTY_LOG`. Its `get_dirty_log` allocates the whole bitmap at
//! each call (256 MiB for 8 TiB). Its `VmFd` cannot be made from a descriptor without opening
//! `/dev/kvm`, which a confined VMM may no longer be able to do.

use super::fd::what_is;
use super::{file, kernel};
use crate::error::{Error, Kind, Result};
use crate::units::PAGE_SIZE;
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_dirty_log, kvm_enable_cap, kvm_userspace_memory_region,
};
use once_cell::sync::OnceCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(super) const KVM_GET_API_VERSION: u64 = 0xae00;
pub(super) const KVM_CHECK_EXTENSION: u64 = 0xae03;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const KVM_GET_DIRTY_LOG: u64 = 0x4010_ae42;
const KVM_CLEAR_DIRTY_LOG: u64 = 0xc018_aec0;
const KVM_ENABLE_CAP: u64 = 0x4068_aea3;

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
pub const CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
/// First flag of that capability: GET only copies, CLEAR clears.
pub const MANUAL_PROTECT_ENABLE: u64 = 1;
/// Second flag: logging starts with every bit set and no page protected.
pub const MANUAL_INITIALLY_SET: u64 = 2;
/// `KVM_MEM_LOG_DIRTY_PAGES`.
pub const MEM_LOG_DIRTY_PAGES: u32 = 1;
/// `KVM_MEM_READONLY`.
pub const MEM_READONLY: u32 = 2;
/// The most pages a slot can have: `KVM_MEM_MAX_NR_PAGES`, (1 << 31) - 1.
pub const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;

/// A memory slot, as `KVM_SET_USER_MEMORY_REGION` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserMemoryRegion {
    /// Address space in the upper 16 bits, slot number in the lower.
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Host virtual address of the first byte.
    pub host_address: u64,
}

/// The calls to a virtual machine that dirty logging needs.
pub trait Vm: Send {
    /// `KVM_CHECK_EXTENSION` on the VM: 0 when the capability is absent.
    fn check_extension(&self, cap: u32) -> u64;
    /// `KVM_ENABLE_CAP` with one argument.
    fn enable_cap(&mut self, cap: u32, arg: u64) -> Result<()>;
    /// `KVM_SET_USER_MEMORY_REGION`.
    fn set_region(&mut self, region: &UserMemoryRegion) -> Result<()>;
    /// `KVM_GET_DIRTY_LOG`. `words` has `ceil(pages / 64)` words, and the kernel writes all of
    /// them. It goes by the size that the slot has now, which the VMM may have enlarged. So `words`
    /// ends at a guard page ([`super::guarded`]).
    fn get_dirty_log(&mut self, slot: u32, words: &mut [u64]) -> Result<()>;
    /// `KVM_CLEAR_DIRTY_LOG` of `pages` pages from `first` on, for the bits that are set in `words`
    /// (bit 0 is page `first`). `first` is a multiple of 64, and so is `pages` unless the range
    /// ends where the slot does (otherwise `EINVAL`).
    fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: u32, words: &[u64]) -> Result<()>;
    /// Whether KVM has a slot of that number; `true` if that cannot be known.
    fn has_slot(&mut self, slot: u32, guest_address: u64) -> bool {
        let _ = (slot, guest_address);
        true
    }
    /// Whether a slot's writes are logged in a bitmap; `None` if that cannot be known.
    fn is_logged(&mut self, slot: u32) -> Option<bool> {
        let _ = slot;
        None
    }
}

const EXPECTED: &str = "expected the descriptor that KVM_CREATE_VM returned";

/// The kernel's KVM, through a VM descriptor.
#[derive(Debug)]
pub struct VmFd(OwnedFd);

impl VmFd {
    /// Takes `fd`, which `KVM_CREATE_VM` returned (or a duplicate of that).
    ///
    /// # Errors
    /// [`Kind::Invalid`] for any other descriptor, and for a VM of another process.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let vm = VmFd(fd);
        // KVM answers KVM_CHECK_EXTENSION on /dev/kvm since 2007, and on a VM since 3.17. A
        // descriptor of anything else fails, with ENOTTY for example.
        // SAFETY: the ioctl takes an integer and accesses no memory.
        let answer = unsafe { kernel::ioctl(vm.0.as_raw_fd(), KVM_CHECK_EXTENSION as _, 3u64) };
        if answer < 0 {
            return Err(vm.is_no_vm(io::Error::last_os_error()));
        }
        // Only /dev/kvm itself tells the version.
        // SAFETY: KVM_GET_API_VERSION takes nothing and touches no memory of ours.
        if unsafe { kernel::ioctl(vm.0.as_raw_fd(), KVM_GET_API_VERSION as _, 0u64) } >= 0 {
            let found = "/dev/kvm itself";
            return Err(Error::new(
                Kind::Invalid,
                format!("{EXPECTED}, found {found}"),
            ));
        }
        Ok(vm)
    }

    /// Why a descriptor on which `KVM_CHECK_EXTENSION` failed is refused.
    fn is_no_vm(&self, error: io::Error) -> Error {
        let found = match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EINTR) => return Error::os("KVM_CHECK_EXTENSION", error),
            Some(libc::EIO) => "the VM of another process",
            _ => what_is(self.fd()),
        };
        let found = format_args!("{EXPECTED}, found {found}");
        Error::os(found, error).into_kind(Kind::Invalid)
    }

    /// A second descriptor of the VM of a VMM that uses `kvm-ioctls`.
    pub fn duplicate(vm: &kvm_ioctls::VmFd) -> Result<OwnedFd> {
        // SAFETY: the descriptor is open as long as `vm` is, which outlives this call.
        let borrowed = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
        file::duplicate(borrowed).map_err(|e| Error::os("duplicating the VM descriptor", e))
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A page of address space without any permission, one for the whole process.
fn untouchable_page() -> Option<u64> {
    static PAGE: OnceCell<u64> = OnceCell::new();
    let page = PAGE.get_or_try_init(|| {
        // SAFETY: new address space, where the kernel likes; it is never unmapped.
        let at = unsafe {
            kernel::mmap(
                std::ptr::null_mut(),
                PAGE_SIZE as usize,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (at != libc::MAP_FAILED).then_some(at as u64).ok_or(())
    });
    page.ok().copied()
}

/// The errno of the last failed call on this thread.
pub(super) fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(what: &str, slot: u32, result: libc::c_int) -> Result<()> {
    if result < 0 {
        Err(Error::last_os(format_args!(
            "{what} on memory slot {slot:#x}"
        )))
    } else {
        Ok(())
    }
}

impl Vm for VmFd {
    fn check_extension(&self, cap: u32) -> u64 {
        // SAFETY: takes an integer, touches no memory of ours.
        let answer =
            unsafe { kernel::ioctl(self.0.as_raw_fd(), KVM_CHECK_EXTENSION as _, cap as u64) };
        answer.max(0) as u64
    }

    fn enable_cap(&mut self, cap: u32, arg: u64) -> Result<()> {
        let mut request = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        request.args[0] = arg;
        // SAFETY: the kernel only reads the structure, which outlives the call.
        let result = unsafe { kernel::ioctl(self.0.as_raw_fd(), KVM_ENABLE_CAP as _, &request) };
        if result < 0 {
            return Err(Error::last_os(format_args!(
                "KVM_ENABLE_CAP of capability {cap} with argument {arg}"
            )));
        }
        Ok(())
    }

    fn set_region(&mut self, region: &UserMemoryRegion) -> Result<()> {
        let request = kvm_userspace_memory_region {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_address,
            memory_size: region.size,
            userspace_addr: region.host_address,
        };
        // SAFETY: the kernel only reads the structure. The memory that it names is the
        // VMM's slot, described by the VMM and already registered there.
        let result = unsafe {
            kernel::ioctl(
                self.0.as_raw_fd(),
                KVM_SET_USER_MEMORY_REGION as _,
                &request,
            )
        };
        check("KVM_SET_USER_MEMORY_REGION", region.slot, result)
    }

    fn get_dirty_log(&mut self, slot: u32, words: &mut [u64]) -> Result<()> {
        let mut request = kvm_dirty_log {
            slot,
            ..Default::default()
        };
        request.__bindgen_anon_1.dirty_bitmap = words.as_mut_ptr().cast();
        // SAFETY: the kernel writes round_up(pages, 64) / 8 bytes, for which the caller made
        // `words`, and stops at the guard page behind them.
        let result = unsafe { kernel::ioctl(self.0.as_raw_fd(), KVM_GET_DIRTY_LOG as _, &request) };
        check("KVM_GET_DIRTY_LOG", slot, result)
    }

    fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: u32, words: &[u64]) -> Result<()> {
        debug_assert!(words.len() as u64 >= u64::from(pages).div_ceil(64));
        let mut request = kvm_clear_dirty_log {
            slot,
            num_pages: pages,
            first_page: first,
            ..Default::default()
        };
        request.__bindgen_anon_1.dirty_bitmap = words.as_ptr().cast_mut().cast();
        // SAFETY: the kernel reads round_up(pages, 64) / 8 bytes from the bitmap, which
        // `words` holds.
        let result =
            unsafe { kernel::ioctl(self.0.as_raw_fd(), KVM_CLEAR_DIRTY_LOG as _, &request) };
        check("KVM_CLEAR_DIRTY_LOG", slot, result)
    }

    /// KVM has no call that asks this. A call that would change size and host address of an
    /// existing slot is refused with `EINVAL` before it does anything. If there is no such slot,
    /// the same call makes one, of an inaccessible page, and that slot is deleted at once.
    fn has_slot(&mut self, slot: u32, guest_address: u64) -> bool {
        let Some(page) = untouchable_page() else {
            return true;
        };
        let mut probe = UserMemoryRegion {
            slot,
            flags: 0,
            guest_address,
            size: PAGE_SIZE,
            host_address: page,
        };
        match self.set_region(&probe) {
            Ok(()) => {
                probe.size = 0;
                // A slot that cannot be deleted again has a page of which every use fails.
                let _ = self.set_region(&probe);
                false
            }
            // A slot that would overlap another one is new.
            Err(_) => last_errno() != libc::EEXIST,
        }
    }

    fn is_logged(&mut self, slot: u32) -> Option<bool> {
        // A clear of no pages checks for the bitmap first, and does nothing.
        let mut none = 0u64;
        let mut request = kvm_clear_dirty_log {
            slot,
            ..Default::default()
        };
        request.__bindgen_anon_1.dirty_bitmap = (&raw mut none).cast();
        // SAFETY: the kernel reads no bits of a range without pages; `none` outlives the call.
        let result =
            unsafe { kernel::ioctl(self.0.as_raw_fd(), KVM_CLEAR_DIRTY_LOG as _, &request) };
        match (result, last_errno()) {
            (0.., _) => Some(true),
            (_, libc::ENOENT) => Some(false),
            // The call does not exist (before Linux 5.0), or the VM has rings.
            _ => None,
        }
    }
}
