//! Reads and writes of guest memory by brant's own code, made safe from signals.
//!
//! A page of guest memory can be mapped and still be inaccessible. The hardware lost its contents
//! (poison), `PROT_NONE` forbids the access, its file was cut off, or a full tmpfs has no room for
//! it. A load or store there is SIGBUS or SIGSEGV, which ends the process. A library installs no
//! signal handler. So the kernel makes the access first (`MADV_POPULATE_READ`,
//! `MADV_POPULATE_WRITE`), and a failure becomes an [`Error`] that names the block and the offset.
//!
//! Memory that only the kernel touches, when pages are sent or received, needs no such check. There
//! the system call fails by itself, and [`broken`] makes the error.
//!
//! The check holds for its own moment only. A page that breaks between the check and the access
//! still ends the process.
//!
//! Never call [`readable`] for a hole: reading allocates it.

use super::block::Block;
use crate::error::{Error, Kind, Result};
use crate::sys::mem::{self, Pipe};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

/// What is done to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
}

impl Access {
    fn populate(self, address: *mut u8, length: usize) -> io::Result<()> {
        match self {
            Access::Read => mem::populate_read(address, length),
            Access::Write => mem::populate_write(address, length),
        }
    }

    fn done(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "written",
        }
    }
}

/// Makes the kernel read pages of `block`. After `Ok` a load from them raises no signal, unless
/// they break meanwhile. [`Kind::Memory`] with the first page that cannot be read,
/// [`Kind::NoMemory`] when there is no memory to read it into.
pub fn readable(block: &Block, range: Range<Pages>) -> Result<()> {
    let (address, length) = span(block, &range)?;
    match mem::populate_read(address, length) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => by_reading(block, range),
        Err(_) => first_bad(block, range, Access::Read),
    }
}

/// Makes the kernel back pages of `block` for writing, and keeps their contents. Errors as those of
/// [`readable`]; also when the kernel is older than 5.14, or the memory is a device's.
pub fn writable(block: &Block, range: Range<Pages>) -> Result<()> {
    let (address, length) = span(block, &range)?;
    match mem::populate_write(address, length) {
        Ok(()) => Ok(()),
        Err(_) => first_bad(block, range, Access::Write),
    }
}

impl Block {
    /// Writes zeros over a run of pages. Errors as those of [`readable`]; pages before the one that
    /// is named may be zero by then.
    pub fn write_zeros(&self, range: Range<Pages>) -> Result<()> {
        let (address, length) = span(self, &range)?;
        match mem::populate_write(address, length) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return by_writing(self, range),
            Err(_) => first_bad(self, range, Access::Write)?,
        }
        // SAFETY: within the block, and writable a moment ago. Nothing runs on this memory yet
        // but brant.
        unsafe { std::ptr::write_bytes(address, 0, length) };
        Ok(())
    }
}

/// The error for a system call that failed with `EFAULT` at a page of `block`. It names the block,
/// the page and the cause.
pub fn broken(block: &Block, page: Pages, access: Access) -> Error {
    let refused = access
        .populate(block.page_address(page), PAGE_SIZE as usize)
        .err()
        .and_then(|e| e.raw_os_error());
    because(block, page, access, refused)
}

/// `error` of a system call that failed at an address (`EFAULT`) as [`broken`] tells it, if that
/// address lies in one of `blocks`.
pub fn name_fault<'a>(
    error: Error,
    address: Option<usize>,
    mut blocks: impl Iterator<Item = &'a Block>,
    access: Access,
) -> Error {
    let Some(address) = address.filter(|_| error.kind() == Kind::Memory) else {
        return error;
    };
    let offset = |block: &Block| (address as u64).wrapping_sub(block.host() as u64);
    match blocks.find(|block| offset(block) < block.length().0) {
        Some(block) => broken(block, Bytes(offset(block)).pages_down(), access),
        None => error,
    }
}

/// An error about `access` if the file behind `block` ends before `range` does. Pages that were cut
/// off have no contents any more, but look like holes to a search for data.
pub(crate) fn file_reaches(block: &Block, range: &Range<Pages>, access: Access) -> Result<()> {
    let Some(file) = block.file() else {
        return Ok(());
    };
    let Some(length) = mem::file_length(file.fd.as_fd())? else {
        return Ok(());
    };
    let end = Bytes(length.saturating_sub(file.offset)).pages_up();
    if end >= range.end {
        return Ok(());
    }
    let page = range.start.max(end);
    Err(because(block, page, access, Some(libc::EFAULT)))
}

fn span(block: &Block, range: &Range<Pages>) -> Result<(*mut u8, usize)> {
    let count = Pages(range.end.0.saturating_sub(range.start.0));
    let slice = block.slice(range.start, count)?;
    Ok((slice.ptr_guard_mut().as_ptr(), slice.len()))
}

/// The error of the first page that cannot be accessed, found by halves; none if all can be.
fn first_bad(block: &Block, range: Range<Pages>, access: Access) -> Result<()> {
    let error = |from: u64, to: u64| {
        let length = (to - from) * PAGE_SIZE;
        let address = block.page_address(Pages(from));
        access.populate(address, length as usize).err()
    };
    loop {
        let (mut good, mut bad) = (range.start.0, range.end.0);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if error(good, middle).is_some() {
                bad = middle;
            } else {
                good = middle;
            }
        }
        if let Some(error) = error(good, bad) {
            return Err(because(block, Pages(good), access, error.raw_os_error()));
        }
        // That page is accessible again, or another page was the first.
        if error(range.start.0, range.end.0).is_none() {
            return Ok(());
        }
    }
}

/// [`readable`] where populating says nothing: the kernel is older than 5.14, the memory is a
/// device's, or a page's permissions forbid it.
fn by_reading(block: &Block, range: Range<Pages>) -> Result<()> {
    let pipe = pipe(block)?;
    let mut at = range.start.0;
    while at < range.end.0 {
        let pages = (range.end.0 - at).min(Pipe::PAGES as u64);
        if pipe
            .reads(block.page_address(Pages(at)), pages as usize)
            .is_err()
        {
            for page in (at..at + pages).map(Pages) {
                if pipe.reads(block.page_address(page), 1).is_err() {
                    return Err(broken(block, page, Access::Read));
                }
            }
        }
        at += pages;
    }
    Ok(())
}

/// [`Block::write_zeros`] in the same cases: the kernel writes.
fn by_writing(block: &Block, range: Range<Pages>) -> Result<()> {
    let pipe = pipe(block)?;
    for page in (range.start.0..range.end.0).map(Pages) {
        // SAFETY: a page of the block. Nothing runs on this memory yet but brant, which has no
        // references into it.
        let written = unsafe { pipe.zero(block.page_address(page), PAGE_SIZE as usize) };
        if written.is_err() {
            return Err(broken(block, page, Access::Write));
        }
    }
    Ok(())
}

fn pipe(block: &Block) -> Result<Pipe> {
    Pipe::new().map_err(|e| {
        Error::os(
            format_args!("block `{}`: a pipe to try its memory with", block.name()),
            e,
        )
    })
}

/// The words for a page of which the kernel said `refused` when it was populated.
fn because(block: &Block, page: Pages, access: Access, refused: Option<i32>) -> Error {
    let address = block.page_address(page);
    let (kind, reason) = match refused {
        Some(libc::EHWPOISON) => (
            Kind::Memory,
            "it is poisoned, its contents are lost".to_owned(),
        ),
        Some(libc::ENOMEM) if mem::is_mapped(address) => {
            (Kind::NoMemory, "there is no memory for it".to_owned())
        }
        Some(libc::ENOMEM) => (Kind::Memory, "nothing is mapped there".to_owned()),
        Some(libc::EINVAL) if mem::can_populate() => (
            Kind::Memory,
            format!("its mapping does not let it be {}", access.done()),
        ),
        _ => (Kind::Memory, bus_error(block, page)),
    };
    Error::new(
        kind,
        format!(
            // No address, because the peer gets this message too and should not learn where memory
            // lies here.
            "block `{}`: the page at offset {:#x} cannot be {}: {reason}",
            block.name(),
            page.bytes().0,
            access.done()
        ),
    )
}

/// The likely cause when an access to a page would raise SIGBUS.
fn bus_error(block: &Block, page: Pages) -> String {
    if let Some(file) = block.file() {
        let at = file.offset + page.bytes().0;
        if let Ok(Some(length)) = mem::file_length(file.fd.as_fd()) {
            if length <= at {
                return format!(
                    "it is byte {at} of the file behind the block, which has {length} bytes now"
                );
            }
        }
    }
    if block.page_size().0 > PAGE_SIZE {
        return format!(
            "the host has no page of {} bytes left for it, or the file behind it was cut",
            block.page_size()
        );
    }
    match block.file() {
        Some(file) if mem::file_system_is_full(file.fd.as_fd()) => {
            "the file system of the file behind it is full".to_owned()
        }
        Some(_) => "an access would be a bus error".to_owned(),
        None => "an access would be a bus error (is there a file behind the block, and was it \
                 cut, or is its file system full?)"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests;
