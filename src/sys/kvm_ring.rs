//! KVM's dirty rings: enabling them, mapping the ring of a vCPU, and `KVM_RESET_DIRTY_RINGS`.
//!
//! [`ResetRings`] and [`RingMemory`] are the boundary: [`RingVm`] and [`RingMap`] are the kernel,
//! and tests put a model behind the same traits. The meaning of an entry's flags is in
//! `dirty/kvm/ring/protocol.rs`.

use super::fd::what_is;
use super::kvm::{Vm, VmFd};
use super::{file, kernel};
use crate::error::{Error, Kind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, Ordering};

const KVM_RESET_DIRTY_RINGS: u64 = 0xaec7;
/// `KVM_CAP_DIRTY_LOG_RING` (5.11): for processors whose stores become visible in order.
const CAP_DIRTY_LOG_RING: u32 = 192;
/// `KVM_CAP_DIRTY_LOG_RING_ACQ_REL` (6.1): the same with ordered flags, for all processors.
const CAP_DIRTY_LOG_RING_ACQ_REL: u32 = 223;
/// `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP` (6.2): a bitmap for writes that no vCPU makes.
pub const CAP_DIRTY_LOG_RING_WITH_BITMAP: u32 = 225;
/// `KVM_DIRTY_LOG_PAGE_OFFSET`: the page of a vCPU's descriptor at which its ring begins.
const RING_PAGE: i64 = 64;
/// `KVM_EXIT_DIRTY_RING_FULL`.
const EXIT_DIRTY_RING_FULL: u32 = 31;
/// `KVM_EXIT_INTR`, after which every VMM enters the guest again.
const EXIT_INTR: u32 = 10;
/// The offset of `exit_reason` in `struct kvm_run`.
const EXIT_REASON_AT: usize = 8;
/// The offset of `immediate_exit` in `struct kvm_run`.
const IMMEDIATE_EXIT_AT: usize = 1;
const PAGE: u64 = 4096;
/// `KVM_DIRTY_RING_MAX_ENTRIES` entries of 16 bytes.
const BYTES_MAX: u64 = 65536 * ENTRY_BYTES;
/// The default: 16384 entries, 256 KiB a vCPU. The reaper empties a ring at a quarter, and the rest
/// then has room for a dozen of the kernel's batches of emulated instructions.
const BYTES_DEFAULT: u64 = 16384 * ENTRY_BYTES;
/// `sizeof(struct kvm_dirty_gfn)`.
pub const ENTRY_BYTES: u64 = 16;

/// `struct kvm_dirty_gfn`, which the kernel and brant write at the same time.
#[repr(C)]
#[derive(Default)]
pub struct Entry {
    /// `KVM_DIRTY_GFN_F_*`.
    pub flags: AtomicU32,
    /// Address space in the upper 16 bits, slot number in the lower.
    pub slot: AtomicU32,
    /// Index of the page in the slot.
    pub offset: AtomicU64,
}

/// The result of a `KVM_RESET_DIRTY_RINGS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// How many entries of all rings it consumed.
    pub count: u64,
    /// The calling thread slept during the call, so it may have been stopped, frozen or traced. In
    /// that case the call ended early, and did not protect the pages of the last entries that it
    /// consumed.
    pub disturbed: bool,
}

/// The call to a virtual machine with rings.
pub trait ResetRings: Send + Sync {
    /// `KVM_RESET_DIRTY_RINGS`.
    fn reset(&self) -> Result<Reset>;
}

/// One vCPU's ring.
pub trait RingMemory: Send {
    /// The entries; their number is a power of two.
    fn entries(&self) -> &[Entry];
    /// Whether the vCPU last left `KVM_RUN` because its ring was full. Call it while the vCPU is
    /// out.
    fn exited_full(&self) -> bool;
    /// Makes an exit with a full ring, of which the VMM has told, look like one by a signal. A
    /// later [`RingMemory::exited_full`] then tells of another exit. Call it while the vCPU is out.
    fn strike_out(&self);
    /// Whether the VMM has asked that the next `KVM_RUN` of the vCPU return at once.
    fn is_wanted_out(&self) -> bool {
        false
    }
}

/// The result of enabling rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enabled {
    /// Bytes of each vCPU's ring.
    pub bytes: u64,
    /// There is also a bitmap, for writes that no vCPU makes.
    pub with_bitmap: bool,
}

/// The capability that enables rings here, and the most bytes that it allows.
fn offered(vm: &dyn Vm) -> Option<(u32, u64)> {
    let acquire = vm.check_extension(CAP_DIRTY_LOG_RING_ACQ_REL);
    if acquire > 0 {
        return Some((CAP_DIRTY_LOG_RING_ACQ_REL, acquire));
    }
    // Unordered flags will do only where the processor keeps stores in order.
    let ordered = cfg!(any(target_arch = "x86_64", target_arch = "x86"));
    let plain = vm.check_extension(CAP_DIRTY_LOG_RING);
    (ordered && plain > 0).then_some((CAP_DIRTY_LOG_RING, plain))
}

/// The size to ask for, or the error about the requested one.
fn size_of_ring(asked: u64, most: u64) -> Result<u64> {
    let most = most.min(BYTES_MAX);
    if asked == 0 {
        return Ok(BYTES_DEFAULT.min(most));
    }
    let expected = |found: &str| {
        Err(Error::new(
            Kind::Invalid,
            format!(
                "a dirty ring is a power of two of bytes, from {PAGE} to {most} on this kernel; \
                 {asked} {found}"
            ),
        ))
    };
    match asked {
        _ if !asked.is_power_of_two() => expected("is no power of two"),
        _ if asked < PAGE => expected("is too small"),
        _ if asked > most => expected("is too big"),
        _ => Ok(asked),
    }
}

/// Enables dirty rings of `bytes` (0: brant's default) for each vCPU of a VM that has no vCPU yet,
/// and the backup bitmap if the kernel has one. The bitmap has to come before the first memory
/// slot.
pub fn enable(vm: &mut VmFd, bytes: u64) -> Result<Enabled> {
    let Some((cap, most)) = offered(vm) else {
        return Err(Error::new(
            Kind::Unsupported,
            "this KVM has no dirty rings: capabilities 223 (DIRTY_LOG_RING_ACQ_REL) and 192 are 0",
        ));
    };
    let bytes = size_of_ring(bytes, most)?;
    if is_enabled(vm) {
        return Err(Error::new(
            Kind::State,
            "this VM's dirty rings are enabled already, which can be done once",
        ));
    }
    vm.enable_cap(cap, bytes).map_err(|e| {
        // The kernel's answer is EINVAL for either cause; only for small sizes both are possible.
        let reason = if bytes < (64 + 512) * ENTRY_BYTES {
            "either there are vCPUs already (expected none), or a ring on this processor has to \
             hold more than its reserve of 64 entries, 576 with page-modification logging: then \
             at least 16384 bytes are expected"
        } else {
            "expected: a VM that has no vCPUs yet; found: one that has"
        };
        e.context(format_args!("dirty rings of {bytes} bytes: {reason}"))
    })?;
    let with_bitmap = vm.check_extension(CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0;
    if with_bitmap {
        vm.enable_cap(CAP_DIRTY_LOG_RING_WITH_BITMAP, 0)
            .map_err(|e| {
                e.context(
                    "the dirty rings' backup bitmap: expected a VM that has no memory slots yet",
                )
            })?;
    }
    Ok(Enabled { bytes, with_bitmap })
}

/// Whether a VM has its rings enabled: without them, RESET is `EINVAL`.
pub fn is_enabled(vm: &VmFd) -> bool {
    // No entry is flagged, so a signal cannot make the call lose pages. The mask is for callers
    // that break this rule.
    let _masked = super::event::SignalMask::full().put();
    reset(vm.fd()) >= 0
}

/// Whether GET and CLEAR work on a VM. With rings they do only if it has the backup bitmap as well.
///
/// # Errors
/// An answer of KVM's that tells neither, for example from a VM that it has given up.
pub fn has_bitmap(vm: &mut VmFd) -> Result<bool> {
    // Page 1 is not a multiple of 64. With bitmaps that is EINVAL, before KVM touches anything;
    // without them ENXIO comes first. Any other answer tells nothing. Taken for a yes it would fail
    // each last sync; taken for a no it would lose writes that no vCPU made.
    match (vm.clear_dirty_log(0, 1, 0, &[]), super::kvm::last_errno()) {
        (Ok(()), _) | (Err(_), libc::EINVAL) => Ok(true),
        (Err(_), libc::ENXIO) => Ok(false),
        (Err(error), _) => Err(error.context("asking for the backup bitmap of dirty rings")),
    }
}

fn reset(vm: BorrowedFd<'_>) -> libc::c_int {
    // SAFETY: takes no argument, and accesses no memory of the process but the rings, whose entries
    // are atomics.
    unsafe { kernel::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS as _, 0) }
}

/// How often the calling thread has gone to sleep so far. Being stopped (`SIGSTOP`), traced or
/// frozen counts; being preempted does not.
fn times_slept() -> Option<i64> {
    // SAFETY: all zero is a valid value of that plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    let result = unsafe { kernel::getrusage(libc::RUSAGE_THREAD, &mut usage) };
    (result == 0).then_some(usage.ru_nvcsw)
}

/// The kernel's rings, through a VM descriptor.
#[derive(Debug)]
pub struct RingVm(OwnedFd);

impl RingVm {
    /// A second descriptor of the same VM.
    pub fn new(vm: &VmFd) -> Result<Self> {
        let fd = file::duplicate(vm.fd());
        Ok(RingVm(fd.map_err(|e| {
            Error::os("duplicating the VM descriptor", e)
        })?))
    }
}

impl ResetRings for RingVm {
    fn reset(&self) -> Result<Reset> {
        use std::os::fd::AsFd;
        let before = times_slept();
        let count = reset(self.0.as_fd());
        if count < 0 {
            return Err(Error::last_os("KVM_RESET_DIRTY_RINGS"));
        }
        let after = times_slept();
        Ok(Reset {
            count: count as u64,
            disturbed: before.is_none() || before != after,
        })
    }
}

/// A mapping that is unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    at: *mut u8,
    bytes: usize,
}

// SAFETY: shared memory of the kernel's and brant's, which is read through atomics only.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(
        fd: BorrowedFd<'_>,
        bytes: u64,
        protection: libc::c_int,
        sharing: libc::c_int,
        page: i64,
    ) -> std::io::Result<Self> {
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            kernel::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                protection,
                sharing,
                fd.as_raw_fd(),
                page * PAGE as i64,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Mapping {
            at: at.cast(),
            bytes: bytes as usize,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: a mapping of this object's own, to which no reference exists any more.
        unsafe { kernel::munmap(self.at.cast(), self.bytes) };
    }
}

/// A vCPU's ring, mapped, and the first page of its `struct kvm_run`.
#[derive(Debug)]
pub struct RingMap {
    ring: Mapping,
    run: Mapping,
}

/// Whether a page of a vCPU's descriptor belongs to a ring: only those pages cannot be mapped
/// privately. A page that belongs to nothing can be mapped, but an access to it kills the process.
fn is_ring_page(vcpu: BorrowedFd<'_>, page: i64) -> bool {
    let private = Mapping::new(vcpu, PAGE, libc::PROT_READ, libc::MAP_PRIVATE, page);
    matches!(private, Err(e) if e.raw_os_error() == Some(libc::EINVAL))
}

/// The bytes of a vCPU's ring; 0 without one.
fn bytes_of(vcpu: BorrowedFd<'_>) -> u64 {
    let sizes = (0..).map(|shift| 1i64 << shift);
    let sizes = sizes.take_while(|&pages| {
        pages as u64 * PAGE <= BYTES_MAX && is_ring_page(vcpu, RING_PAGE + pages - 1)
    });
    sizes.last().map_or(0, |pages| pages as u64 * PAGE)
}

impl RingMap {
    /// Maps the ring of a vCPU. `expected` is its size in bytes, 0 if that is unknown.
    pub fn new(vcpu: BorrowedFd<'_>, expected: u64) -> Result<Self> {
        let bytes = bytes_of(vcpu);
        let no_ring = || {
            let what = format!(
                "expected the descriptor that KVM_CREATE_VCPU returned, of a VM whose rings were \
                 enabled before; found one without a dirty ring ({})",
                what_is(vcpu)
            );
            Error::new(Kind::Invalid, what)
        };
        if bytes == 0 {
            return Err(no_ring());
        }
        if expected != 0 && expected != bytes {
            return Err(Error::new(
                Kind::Invalid,
                format!("the vCPU's dirty ring: {expected} bytes expected, {bytes} found"),
            ));
        }
        let cannot = |e: std::io::Error| match e.raw_os_error() {
            // Files of huge pages refuse every offset that was tried, and so look like rings.
            Some(libc::EINVAL | libc::ENODEV | libc::EACCES | libc::EPERM) => no_ring(),
            _ => Error::os("mapping a vCPU's dirty ring", e),
        };
        let both = libc::PROT_READ | libc::PROT_WRITE;
        Ok(RingMap {
            ring: Mapping::new(vcpu, bytes, both, libc::MAP_SHARED, RING_PAGE).map_err(cannot)?,
            run: Mapping::new(vcpu, PAGE, both, libc::MAP_SHARED, 0).map_err(cannot)?,
        })
    }
}

impl RingMap {
    fn exit_reason(&self) -> &AtomicU32 {
        // SAFETY: inside the mapped page, and aligned. An atomic, because the kernel writes it at
        // any time.
        unsafe { &*self.run.at.add(EXIT_REASON_AT).cast::<AtomicU32>() }
    }
}

impl RingMemory for RingMap {
    fn entries(&self) -> &[Entry] {
        let len = self.ring.bytes / ENTRY_BYTES as usize;
        // SAFETY: the mapping lives as long as `self` and is page-aligned. All of it is ring, which
        // the kernel confirmed when it was made. An entry has only atomics, for which all bytes are
        // valid and the kernel's writes are no data races.
        unsafe { std::slice::from_raw_parts(self.ring.at.cast::<Entry>(), len) }
    }

    fn exited_full(&self) -> bool {
        self.exit_reason().load(Ordering::Relaxed) == EXIT_DIRTY_RING_FULL
    }

    fn strike_out(&self) {
        let (was, now) = (EXIT_DIRTY_RING_FULL, EXIT_INTR);
        let (done, failed) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.exit_reason().compare_exchange(was, now, done, failed);
    }

    fn is_wanted_out(&self) -> bool {
        // SAFETY: inside the mapped page. An atomic, because the VMM's threads write it at any
        // time.
        let asked = unsafe { &*self.run.at.add(IMMEDIATE_EXIT_AT).cast::<AtomicU8>() };
        asked.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Entry>() as u64, ENTRY_BYTES);
        assert_eq!(std::mem::offset_of!(Entry, slot), 4);
        assert_eq!(std::mem::offset_of!(Entry, offset), 8);
    }

    #[test]
    fn a_size_that_cannot_be_is_refused_and_none_is_chosen_well() {
        for (asked, most, fine) in [
            (0, 1 << 20, Some(BYTES_DEFAULT)),
            (0, 1 << 16, Some(1 << 16)),
            (4096, 1 << 20, Some(4096)),
            (1 << 20, 1 << 20, Some(1 << 20)),
            (1 << 21, 1 << 21, None),
            (1 << 20, 1 << 16, None),
            (2048, 1 << 20, None),
            (5000, 1 << 20, None),
            (u64::MAX, u64::MAX, None),
        ] {
            let got = size_of_ring(asked, most);
            assert_eq!(got.as_ref().ok().copied(), fine, "{asked} of {most}");
            if let Err(e) = got {
                assert!(e.message().contains(&asked.to_string()), "{e}");
            }
        }
    }
}
