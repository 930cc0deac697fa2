//! Device state without callbacks: memory of the VMM's that is saved and loaded as it is.

use super::error::{brant_error, invalid};
use super::guest::brant_guest;
use super::structs::{handle, text};
use std::ffi::{c_char, c_void};

/// Adds `length` bytes at `data` as state of a device, with no callback: brant saves and loads them. At
/// the source they are put after `save` has returned, in the order of the calls of this function. At the
/// destination they arrive in the same order, after what the source's `save` put and before `loaded`: so
/// `save` may fill them from the kernel, and `loaded` may give them to it.
///
/// Both sides know a state by `name` (1 to 128 bytes, no control characters) and `instance`. `version` is
/// the VMM's own number of the layout. The destination refuses the switchover, and the guest runs on at
/// the source, when version or length differ, and when one of the destination's states did not come; the
/// message names the state and both values. A state that only the source has goes to the destination's
/// `load`. A destination that refuses may have loaded some states before.
///
/// The bytes stay the VMM's. brant reads them when the guest is paused, and writes them when a guest
/// arrives that does not run yet; nobody else writes them meanwhile. Bytes that cannot be read or written
/// then raise no signal: `save` or `load` fails, the message names the state and the byte, and the guest
/// runs on at the source. Memory that is unmapped or protected by another thread in the same moment is
/// not noticed.
///
/// 1 byte to 1 GiB each and 4096 states a guest. Add them before the migration starts, also in
/// `early_load`. BRANT_E_EXISTS for a name and instance that is there. BRANT_E_INVALID for 0 bytes, bytes
/// that reach past the end of the address space, and bytes that cannot be read now. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_add_state(
    guest: *mut brant_guest,
    name: *const c_char,
    instance: u32,
    version: u32,
    data: *mut c_void,
    length: usize,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        let name = unsafe { text(name, "name") }?;
        if data.is_null() {
            return Err(invalid(format!("state `{name}`: data is NULL")));
        }
        // SAFETY: the contract of this function.
        unsafe {
            guest
                .ops
                .states()
                .add(name, instance, version, data.cast(), length)
        }
    })
}

/// Removes a state. When this returns, brant does not access its bytes any more. BRANT_E_NOT_FOUND when
/// there is none of that name and instance. Any thread.
#[no_mangle]
pub unsafe extern "C" fn brant_guest_remove_state(
    guest: *mut brant_guest,
    name: *const c_char,
    instance: u32,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours by contract.
        let guest = unsafe { handle(guest, "guest") }?;
        // SAFETY: null or a string by contract.
        guest
            .ops
            .states()
            .remove(unsafe { text(name, "name") }?, instance)
    })
}
