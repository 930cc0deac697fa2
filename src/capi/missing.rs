//! A guest that runs at the destination of a postcopy before all of its memory is there: what is
//! missing, who waits, other processes that share the memory, recovery and giving up.

use super::error::{brant_error, invalid};
use super::incoming::brant_incoming;
use super::structs::{duplicated, handle, put_optional, taken_all, text};
use crate::channel::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::served::Theirs;
use crate::memory::BlockId;
use crate::migrate::AcceptFrom;
use crate::units::{Bytes, Pages};
use std::ffi::c_char;

/// Some pages of a block that have not arrived. Pages are 4 KiB.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct brant_missing_run {
    /// The block, by the number that `brant_guest_add_block` gave.
    pub block: u32,
    /// 0.
    pub reserved: u32,
    /// The first page, counted from the beginning of the block.
    pub first_page: u64,
    /// How many pages.
    pub pages: u64,
}

/// How long a thread has waited for pages that had not arrived.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct brant_blocked {
    /// The thread's number in the kernel (gettid), by which the VMM knows its vCPU threads. 0: all
    /// threads beyond the first 1024, and those of other processes.
    pub thread: u32,
    /// 0.
    pub reserved: u32,
    /// The thread's page faults on memory that was not here.
    pub faults: u64,
    /// How long it waited, a wait in progress included; nanoseconds.
    pub blocked_ns: u64,
}

/// Where another process has some of a block: a region of its memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct brant_uffd_region {
    /// The address in the other process.
    pub address: u64,
    /// Bytes. With `address` and `offset` a multiple of the block's page size.
    pub length: u64,
    /// The block, by the number that `brant_guest_add_block` gave.
    pub block: u32,
    /// 0.
    pub reserved: u32,
    /// Where in the block the region begins, in bytes.
    pub offset: u64,
}

/// Puts up to `capacity` items into `to`, and the number of all of them into `*needed`.
///
/// # Safety
/// `to` is null or has room for `capacity` items; `needed` is null or a place.
unsafe fn put_list<T: Copy>(
    items: &[T],
    to: *mut T,
    capacity: usize,
    needed: *mut usize,
    name: &str,
) -> Result<()> {
    if to.is_null() && capacity > 0 {
        return Err(invalid(format!(
            "{name} is NULL, and capacity is {capacity}"
        )));
    }
    // SAFETY: the caller's contract.
    unsafe { put_optional(needed, items.len()) };
    let count = items.len().min(capacity);
    if count > 0 {
        // SAFETY: room for `capacity` items by the caller's contract, and no overlap with a list of
        // brant's.
        unsafe { std::ptr::copy_nonoverlapping(items.as_ptr(), to, count) };
    }
    Ok(())
}

/// The pages that have not arrived, of a guest that runs here since a switch to postcopy: up to
/// `capacity` runs, ascending within each block, into `runs`. `*needed` (may be NULL) gets the number
/// of all runs. None when nothing is missing, and before the guest was handed over. `runs` may be NULL
/// when `capacity` is 0. While pages arrive, a run may have some that have just come; in
/// BRANT_DESTINATION_INTERRUPTED the answer stands still. Takes about a read of a bit for each page of
/// the guest. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_get_missing(
    incoming: *const brant_incoming,
    runs: *mut brant_missing_run,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        let mut all = Vec::new();
        let mut full = Ok(());
        incoming.incoming.missing(|block, pages| {
            if full.is_ok() {
                let run = brant_missing_run {
                    block: block.id().0,
                    reserved: 0,
                    first_page: pages.start.0,
                    pages: (pages.end - pages.start).0,
                };
                full = fallible::push(&mut all, run, "runs of missing pages");
            }
        });
        full?;
        // SAFETY: the caller's contract.
        unsafe { put_list(&all, runs, capacity, needed, "runs") }
    })
}

/// How long each thread has waited for pages since the switch to postcopy: up to `capacity` threads,
/// ascending by number, into `threads`. `*needed` (may be NULL) gets the number of all of them.
/// `threads` may be NULL when `capacity` is 0. A wait counts from the moment at which brant reads of
/// it. After the migration the figures stay. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_get_blocked(
    incoming: *const brant_incoming,
    threads: *mut brant_blocked,
    capacity: usize,
    needed: *mut usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        let blocked = incoming.incoming.blocked();
        let all = blocked.iter().map(|one| brant_blocked {
            thread: one.thread,
            reserved: 0,
            faults: one.faults,
            blocked_ns: crate::migrate::report::nanos(one.time),
        });
        let all = fallible::collect(all, "threads that waited")?;
        // SAFETY: the caller's contract.
        unsafe { put_list(&all, threads, capacity, needed, "threads") }
    })
}

/// Gives up the pages that are missing, in BRANT_DESTINATION_INTERRUPTED: the source is known to be
/// gone for good, and the guest is to go on with what it has. The migration ends with
/// BRANT_DESTINATION_INCOMPLETE, and the call returns when that state is reached. From then on an
/// access of a missing page ends as one of memory that the hardware has lost:
///
/// - in a thread: SIGBUS (SIGSEGV before Linux 6.6);
/// - in a system call: EFAULT;
/// - in KVM_RUN: SIGBUS for the vCPU's thread, with KVM_RUN interrupted at each further entry, or EFAULT.
///   KVM inside a virtual machine returns KVM_EXIT_MMIO at an address of RAM too, and KVM_EXIT_SHUTDOWN
///   where the page held the guest's page tables. A VMM treats each as lost memory, and an MMIO there
///   not as an access of a device.
///
/// Threads that wait for such a page are woken that way, so install a handler first. The pages count
/// as declared lost (brant_guest_mark_poisoned): a later migration of the guest does not read them.
/// `brant_incoming_get_missing` before this call says which pages these are. Any thread that holds no
/// lock which the operations `event` and `thread_start` need. Inside one of
/// the migration's own callbacks the call only asks, and returns at once. BRANT_E_STATE in any other
/// state.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_give_up(
    incoming: *mut brant_incoming,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        unsafe { handle(incoming, "incoming") }?.incoming.give_up()
    })
}

/// Recovers a migration in BRANT_DESTINATION_INTERRUPTED: listens for new connections of the source on
/// "tcp:ADDRESS:PORT" or "unix:/PATH", as brant_incoming_listen, and returns at once.
/// `brant_incoming_get_endpoint` tells the port that was found for port 0. The source's VMM calls
/// brant_outgoing_recover. All of the source's connections have to come within the connect timeout,
/// which begins with this call. The destination then says which pages it lacks, and asks again for
/// those that somebody waits for. The guest runs on meanwhile. A recovery that fails leaves
/// BRANT_DESTINATION_INTERRUPTED, and can be repeated. A connection of an older recovery is refused.
///
/// A source that has lost the last acknowledgements does not know that all of the guest is here
/// (BRANT_DESTINATION_RUNNING behind a switch to postcopy), and is interrupted. Then the call tells it, on a
/// thread of brant's: the source completes. The state here stays, and BRANT_EVENT_RECOVERED or
/// BRANT_EVENT_WARNING says what became of it. That is possible until brant_incoming_free, any number of
/// times; BRANT_E_BUSY while one such call is at work, which is so for a moment after its event.
///
/// BRANT_E_STATE in any other state. Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_recover(
    incoming: *mut brant_incoming,
    endpoint: *const c_char,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        // SAFETY: null or a string by contract.
        let endpoint = Endpoint::parse(unsafe { text(endpoint, "endpoint") }?)?;
        incoming.incoming.recover_at(&endpoint)?;
        Ok(())
    })
}

/// As brant_incoming_recover, over connected stream sockets: `fds` has `count` of them, one for each
/// channel of the source and one for its urgent connection, in any order. Who owns the sockets is as in
/// brant_incoming_start_fds.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_recover_fds(
    incoming: *mut brant_incoming,
    fds: *const i32,
    count: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: handed over by contract.
        let sockets = unsafe { taken_all(fds, count) }?;
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        incoming.incoming.recover(AcceptFrom::ConnectedAll(sockets))
    })
}

/// Serves page faults of another process, such as a vhost-user back end, which shares memory of the
/// guest and touches pages that have not arrived. That process makes a userfaultfd, calls UFFDIO_API
/// on it, registers its mappings of the guest's memory for missing faults, and sends the descriptor to
/// the VMM (VHOST_USER_POSTCOPY_ADVISE and _LISTEN). brant keeps a duplicate of `fd`. `regions` has
/// `count` parts: what is where in that process. Each lies inside a block of shared memory.
///
/// Call it after the start of the migration and before the end of `early_load`, and before the other
/// process touches memory of the guest. At the switch to postcopy, old contents of missing pages are
/// then punched out of the files of shared memory, so that the other process does not find them: 4
/// microseconds a page. A call behind a switch at which no such descriptor was known is BRANT_E_STATE.
/// Faults are served until the migration is freed. So have the other process unregister its mappings
/// (VHOST_USER_POSTCOPY_END) when the migration has ended, and free the migration then.
///
/// BRANT_E_INVALID for a region that is not inside a block of shared memory, or overlaps another.
/// Any thread, also inside callbacks.
#[no_mangle]
pub unsafe extern "C" fn brant_incoming_add_uffd(
    incoming: *mut brant_incoming,
    fd: i32,
    regions: *const brant_uffd_region,
    count: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let incoming = unsafe { handle(incoming, "incoming") }?;
        if regions.is_null() || count == 0 {
            return Err(invalid("expected at least one region"));
        }
        // SAFETY: `count` regions by contract.
        let regions = unsafe { std::slice::from_raw_parts(regions, count) };
        let mut map = Vec::new();
        fallible::reserve(&mut map, count, "regions")?;
        for region in regions {
            let (offset, end) = (
                Bytes(region.offset),
                region.address.checked_add(region.length),
            );
            let Some(end) = end.filter(|_| offset.is_page_aligned()) else {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "expected a region of whole pages below 2^64, found {} bytes at {:#x}, offset {}",
                        region.length, region.address, region.offset
                    ),
                ));
            };
            map.push(Theirs {
                addresses: region.address..end,
                block: BlockId(region.block),
                first: Pages(offset.pages_down().0),
            });
        }
        // SAFETY: a descriptor of the caller's by contract, or refused.
        let fd = unsafe { duplicated(fd, "fd") }?;
        incoming.incoming.add_uffd(fd, map)
    })
}
