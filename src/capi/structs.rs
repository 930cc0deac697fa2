//! Structures that begin with their own size, read and written so that either side may know
//! more fields than the other.

use super::error::{invalid, BRANT_E_CALLBACK, BRANT_E_INVALID};
use crate::error::{Error, Result};
use std::ffi::{c_char, CStr, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A size beyond this is no structure of any version.
const SIZE_MAX: usize = 64 << 10;

/// A `repr(C)` structure whose first field is `size: usize` and for which all bytes zero is a
/// valid value.
///
/// # Safety
/// Only implement it for such structures, without padding.
pub(super) unsafe trait Sized {
    /// The structure's name in messages.
    const NAME: &'static str;
}

/// Declares [`Sized`] for structures of the C face.
macro_rules! sized {
    ($($t:ident),*) => {$(
        // SAFETY: repr(C), begins with `size: usize`, zero is valid for every field, and the
        // test below shows that there is no padding.
        unsafe impl $crate::capi::structs::Sized for $t {
            const NAME: &'static str = stringify!($t);
        }
    )*};
}
pub(super) use sized;

/// Reads a structure that C filled: what it does not have yet is 0, what it has beyond ours
/// must be 0.
///
/// # Safety
/// `from` is null or points to a readable structure of as many bytes as its first field says.
pub(super) unsafe fn read<T: Sized>(from: *const T) -> Result<T> {
    if from.is_null() {
        return Err(invalid(format!("{} is NULL", T::NAME)));
    }
    // SAFETY: the first field is the size, by the trait's contract; C may have aligned it less.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    let ours = size_of::<T>();
    // SAFETY: all bytes zero is a valid T by the trait's contract.
    let mut value: T = unsafe { std::mem::zeroed() };
    let bytes = from.cast::<u8>();
    // SAFETY: `size` bytes are readable by the caller's contract, and at most `ours` of them
    // are copied into a T.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes, (&raw mut value).cast::<u8>(), size.min(ours));
    }
    // Every version of a structure ends at a multiple of its alignment. Half a pointer is none.
    if !size.is_multiple_of(align_of::<T>()) {
        return Err(invalid(format!(
            "{}.size is {size}, where no version of it ends; set it to sizeof({})",
            T::NAME,
            T::NAME
        )));
    }
    for i in ours..size {
        // SAFETY: below `size`.
        if unsafe { bytes.add(i).read() } != 0 {
            return Err(invalid(format!(
                "{} sets a field that this version does not know (byte {i}; it knows {ours} bytes)",
                T::NAME
            )));
        }
    }
    Ok(value)
}

/// Fills a structure of C's: as much of it as its size says.
///
/// # Safety
/// `to` is null or points to a writable structure of as many bytes as its first field says.
pub(super) unsafe fn write<T: Sized>(to: *mut T, value: &T) -> Result<()> {
    if to.is_null() {
        return Err(invalid(format!("{} is NULL", T::NAME)));
    }
    // SAFETY: as in `read`.
    let size = unsafe { to.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    let head = size_of::<usize>();
    let ours = size.min(size_of::<T>());
    // SAFETY: `size` bytes are writable by the caller's contract; the first field stays.
    unsafe {
        let bytes = to.cast::<u8>();
        let from = std::ptr::from_ref(value).cast::<u8>();
        std::ptr::copy_nonoverlapping(from.add(head), bytes.add(head), ours - head);
        bytes.add(ours).write_bytes(0, size - ours);
    }
    Ok(())
}

fn check_size<T: Sized>(size: usize) -> Result<()> {
    if !(size_of::<usize>()..=SIZE_MAX).contains(&size) {
        return Err(invalid(format!(
            "{}.size is {size}; set it to sizeof({}), which is {} in this version",
            T::NAME,
            T::NAME,
            size_of::<T>()
        )));
    }
    Ok(())
}

/// A path of C's: bytes, in whatever encoding.
///
/// # Safety
/// Null or a string that lives for `'a`.
pub(super) unsafe fn path_of<'a>(text: *const c_char, name: &str) -> Result<&'a Path> {
    if text.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: the caller's contract.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

/// A string of C's.
///
/// # Safety
/// `text` is null or a NUL-terminated string that lives for `'a`.
pub(super) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    if text.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| invalid(format!("{name} is not UTF-8")))
}

/// A descriptor that C lends: a duplicate of it for brant to keep, closed on exec.
///
/// # Safety
/// Nobody closes `fd` during the call.
pub(super) unsafe fn duplicated(fd: i32, name: &str) -> Result<OwnedFd> {
    // SAFETY: the caller's contract.
    unsafe { crate::sys::fd::duplicate(fd) }.map_err(|e| match e.raw_os_error() {
        Some(libc::EBADF) => invalid(format!("{name} is {fd}, which is no open descriptor ({e})")),
        _ => Error::os(format!("duplicating {name}"), e),
    })
}

/// A descriptor that C lends for the length of a call.
///
/// # Safety
/// Nobody closes `fd` as long as `'a`.
pub(super) unsafe fn lent<'a>(fd: i32, name: &str) -> Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(invalid(format!("{name} is {fd}, which is no descriptor")));
    }
    // SAFETY: not -1, and the caller's contract. If it is not open, the kernel says so.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A connected socket that C hands over: brant's from here on, and closed on exec.
///
/// # Safety
/// Nobody else closes `fd`.
pub(super) unsafe fn taken(fd: i32, name: &str) -> Result<OwnedFd> {
    // SAFETY: the caller's contract.
    unsafe { crate::sys::fd::take(fd) }
        .map_err(|e| invalid(format!("{name} is {fd}, which is no open descriptor ({e})")))
}

/// Connected sockets that C hands over, one for each channel. After an error about one of them
/// the others are closed; none is taken when the list itself is wrong.
///
/// # Safety
/// `fds` is null or an array of `count` descriptors, and nobody else closes those.
pub(super) unsafe fn taken_all(fds: *const i32, count: usize) -> Result<Vec<OwnedFd>> {
    if fds.is_null() {
        return Err(invalid("fds is NULL"));
    }
    let most = usize::from(crate::wire::CHANNELS_MAX);
    if !(1..=most).contains(&count) {
        return Err(invalid(format!(
            "expected 1 to {most} sockets, one for each channel; found {count}"
        )));
    }
    // SAFETY: the caller's contract.
    let fds = unsafe { std::slice::from_raw_parts(fds, count) };
    for (at, fd) in fds.iter().enumerate() {
        if let Some(before) = fds[..at].iter().position(|other| other == fd) {
            return Err(invalid(format!(
                "fds[{before}] and fds[{at}] are both {fd}: each channel has a socket of its own"
            )));
        }
    }
    let mut all = Vec::with_capacity(count);
    let mut first_error = None;
    for (at, fd) in fds.iter().enumerate() {
        // SAFETY: the caller's contract.
        match unsafe { taken(*fd, &format!("fds[{at}]")) } {
            Ok(fd) => all.push(fd),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(all), Err)
}

/// A handle of C's.
///
/// # Safety
/// `handle` is null or a handle of brant's that is not freed for `'a`.
pub(super) unsafe fn handle<'a, T>(handle: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the caller's contract.
    unsafe { handle.as_ref() }.ok_or_else(|| invalid(format!("{name} is NULL")))
}

/// Frees a handle of C's. Null is fine. Inside one of the object's own callbacks nothing is freed:
/// `BRANT_E_CALLBACK`.
///
/// # Safety
/// Null, or from `Box::into_raw` and not freed before.
pub(super) unsafe fn free<T>(handle: *mut T, in_callback: impl FnOnce(&T) -> bool) -> i32 {
    // SAFETY: the caller's contract.
    match unsafe { handle.as_ref() } {
        None => 0,
        Some(object) if in_callback(object) => BRANT_E_CALLBACK,
        Some(_) => {
            // SAFETY: the caller's contract.
            drop(unsafe { Box::from_raw(handle) });
            0
        }
    }
}

/// The number of a descriptor that stays the object's.
///
/// # Safety
/// `handle` is null or a handle of ours that is not freed meanwhile.
pub(super) unsafe fn lent_fd<T>(
    handle: *const T,
    fd: impl FnOnce(&T) -> std::os::fd::BorrowedFd<'_>,
) -> i32 {
    // SAFETY: the caller's contract.
    match unsafe { handle.as_ref() } {
        Some(object) => fd(object).as_raw_fd(),
        None => BRANT_E_INVALID,
    }
}

/// Where a result goes.
///
/// # Safety
/// `out` is null or a place for a T.
pub(super) unsafe fn put<T>(out: *mut T, name: &str, value: T) -> Result<()> {
    if out.is_null() {
        return Err(invalid(format!("{name} is NULL")));
    }
    // SAFETY: the caller's contract.
    unsafe { out.write(value) };
    Ok(())
}

/// [`put`] for a result that the caller may not want.
///
/// # Safety
/// As for [`put`].
pub(super) unsafe fn put_optional<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: the caller's contract.
        unsafe { out.write(value) };
    }
}

/// Refuses a buffer for text that is NULL and has a capacity.
pub(super) fn check_room(buffer: *const c_char, capacity: usize) -> Result<()> {
    if buffer.is_null() && capacity > 0 {
        return Err(invalid("the buffer is NULL and its capacity is not 0"));
    }
    Ok(())
}

/// Copies text into a buffer of C's, cut and NUL-terminated, and says how long it is.
///
/// # Safety
/// `buffer` is null with capacity 0, or `capacity` writable bytes; `needed` is null or a place.
pub(super) unsafe fn put_text(
    from: &str,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<()> {
    check_room(buffer, capacity)?;
    // SAFETY: the caller's contract.
    unsafe { put_optional(needed, from.len() + 1) };
    if capacity > 0 {
        let n = from.len().min(capacity - 1);
        // SAFETY: n + 1 <= capacity.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr().cast(), buffer, n);
            buffer.add(n).write(0);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::params::brant_params;

    fn zeroed() -> brant_params {
        // SAFETY: the trait's contract.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn a_smaller_structure_has_zeros_for_what_it_lacks() {
        let mut params = zeroed();
        params.size = 16;
        params.downtime_limit_ms = 7;
        params.max_bandwidth = 99;
        // SAFETY: larger than its size says.
        let read = unsafe { read(&params) }.unwrap();
        assert_eq!((read.downtime_limit_ms, read.max_bandwidth), (7, 0));
    }

    #[test]
    fn a_larger_structure_is_taken_if_its_tail_is_zero_and_refused_by_name_otherwise() {
        #[repr(C)]
        struct Larger {
            params: brant_params,
            tail: u64,
        }
        let mut larger = Larger {
            params: zeroed(),
            tail: 0,
        };
        larger.params.size = size_of::<Larger>();
        let at = (&raw const larger).cast::<brant_params>();
        // SAFETY: as large as its size says.
        assert!(unsafe { read(at) }.is_ok());
        larger.tail = 1 << 40;
        let at = (&raw const larger).cast::<brant_params>();
        // SAFETY: as above.
        let Err(error) = (unsafe { read(at) }) else {
            panic!("an unknown field was accepted");
        };
        assert!(error.message().contains("brant_params sets a field"));
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        for size in [0, 7, 1 << 20] {
            let mut params = zeroed();
            params.size = size;
            // SAFETY: refused by its size before anything is read.
            assert!(unsafe { read(&params) }.is_err(), "{size}");
        }
    }
}
