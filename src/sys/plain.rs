//! Plain memory of the VMM's, outside of guest blocks: read and written without a signal.
//!
//! The VMM names bytes by address and length, and nothing says that they are mapped, or may be
//! accessed. A load or store there would be SIGSEGV or SIGBUS, which ends the process. So the kernel
//! makes the access first, as for guest memory (`memory::access`): a whole range at once
//! (`MADV_POPULATE_READ`, `MADV_POPULATE_WRITE`), and page by page through a pipe where that gives no
//! answer. The check of [`check_readable`] holds for its own moment only.
//!
//! What bytes are for, and what a failure means, is decided in the layers above.

use super::mem::{self, Pipe};
use crate::units::PAGE_SIZE;
use std::fmt;
use std::io;

const PAGE: usize = PAGE_SIZE as usize;

/// The first byte of a range that cannot be accessed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Its offset in the range.
    pub offset: usize,
    why: String,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.why)
    }
}

impl Bad {
    fn at(start: *const u8, offset: usize, access: &str) -> Bad {
        let page = start.wrapping_add(offset).map_addr(|at| at & !(PAGE - 1));
        let why = match mem::is_mapped(page) {
            false => "nothing is mapped there".to_owned(),
            true => format!("its mapping does not let it be {access}"),
        };
        Bad { offset, why }
    }

    fn no_pipe(error: &io::Error) -> Bad {
        let why = format!("there is no pipe to try it with: {error}");
        Bad { offset: 0, why }
    }
}

/// The pages that a range lies in: the first one, and their length. `None` for a range that reaches
/// past the end of the address space.
fn pages(at: *const u8, length: usize) -> Option<(*const u8, usize)> {
    let end = at.addr().checked_add(length)?;
    let first = at.map_addr(|at| at & !(PAGE - 1));
    let end = end.checked_next_multiple_of(PAGE)?;
    Some((first, end - first.addr()))
}

/// Whether all bytes of a range can be read at this moment. No byte is changed.
///
/// # Errors
/// The first byte that cannot be read.
pub fn check_readable(at: *const u8, length: usize) -> Result<(), Bad> {
    let Some((first, span)) = pages(at, length) else {
        return Err(Bad::at(at, 0, "read"));
    };
    if mem::populate_read(first, span).is_ok() {
        return Ok(());
    }
    let pipe = Pipe::new().map_err(|e| Bad::no_pipe(&e))?;
    let all = span / PAGE;
    let mut page = 0;
    while page < all {
        let count = (all - page).min(Pipe::PAGES);
        let page_at = |page: usize| first.wrapping_add(page * PAGE);
        if pipe.reads(page_at(page), count).is_err() {
            let bad = (page..page + count).find(|&page| pipe.reads(page_at(page), 1).is_err());
            if let Some(bad) = bad {
                let offset = page_at(bad).addr().saturating_sub(at.addr());
                return Err(Bad::at(at, offset, "read"));
            }
        }
        page += count;
    }
    Ok(())
}

/// Copies `bytes` to `at`.
///
/// # Errors
/// The first byte that cannot be written. Bytes before it may have been written.
///
/// # Safety
/// No Rust reference covers the range, and nobody else uses its bytes meanwhile. It need not be mapped.
pub unsafe fn write(at: *mut u8, bytes: &[u8]) -> Result<(), Bad> {
    let Some((first, span)) = pages(at, bytes.len()) else {
        return Err(Bad::at(at, 0, "written"));
    };
    if mem::populate_write(first.cast_mut(), span).is_ok() {
        // SAFETY: mapped and writable a moment ago; the caller's contract for the rest.
        unsafe { at.copy_from(bytes.as_ptr(), bytes.len()) };
        return Ok(());
    }
    let pipe = Pipe::new().map_err(|e| Bad::no_pipe(&e))?;
    let mut offset = 0;
    while offset < bytes.len() {
        let to = at.wrapping_add(offset);
        // No part reaches into a second page, so it is written whole or not at all.
        let part = (PAGE - to.addr() % PAGE).min(bytes.len() - offset);
        // SAFETY: the caller's contract.
        if unsafe { pipe.write(to, &bytes[offset..offset + part]) }.is_err() {
            return Err(Bad::at(at, offset, "written"));
        }
        offset += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::own::OwnMemory;

    /// Three pages, of which the second has other permissions.
    fn with_second(protection: libc::c_int, test: impl FnOnce(*mut u8)) {
        let memory = OwnMemory::new(3 * PAGE, "a test").unwrap();
        let at = memory.as_ptr().cast_mut();
        let change = |protection| {
            // SAFETY: a page of this test's own memory.
            let changed = unsafe { libc::mprotect(at.add(PAGE).cast(), PAGE, protection) };
            assert_eq!(changed, 0);
        };
        change(protection);
        test(at);
        change(libc::PROT_READ | libc::PROT_WRITE);
    }

    #[test]
    fn bytes_that_cannot_be_read_are_told_by_their_offset() {
        with_second(libc::PROT_NONE, |at| {
            check_readable(at, PAGE).unwrap();
            check_readable(at.wrapping_add(2 * PAGE), PAGE).unwrap();
            let bad = check_readable(at.wrapping_add(100), 2 * PAGE).unwrap_err();
            assert_eq!(bad.offset, PAGE - 100);
            assert!(bad.to_string().contains("does not let it be read"), "{bad}");
        });
    }

    #[test]
    fn a_range_that_is_not_mapped_or_wraps_is_no_memory() {
        for (at, length) in [
            (8, 1),
            (usize::MAX - 9, 5),
            (usize::MAX - 9, 20),
            (1 << 62, 1),
        ] {
            let bad = check_readable(std::ptr::without_provenance(at), length).unwrap_err();
            assert_eq!(
                bad.to_string(),
                "byte 0: nothing is mapped there",
                "{at:#x}"
            );
        }
    }

    #[test]
    fn bytes_that_cannot_be_written_are_told_and_all_others_are() {
        with_second(libc::PROT_READ, |at| {
            // SAFETY: this test's memory, to which it has no reference.
            let write = |offset: usize, bytes: &[u8]| unsafe { write(at.add(offset), bytes) };
            write(0, &[1; PAGE]).unwrap();
            let bad = write(PAGE - 6, &[2; 10]).unwrap_err();
            assert_eq!(bad.offset, 6);
            assert!(bad.to_string().contains("be written"), "{bad}");
            check_readable(at, 3 * PAGE).unwrap();
        });
    }
}
