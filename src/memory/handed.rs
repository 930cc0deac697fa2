//! Memory that another process on this host takes over by the descriptor of its file, without a
//! copy: which blocks go that way, and whether a descriptor that came is such a file.
//!
//! Both processes map the same pages. So the block has to be a shared mapping of a file that lives in
//! memory: of a memfd, or of a file on tmpfs or hugetlbfs. A private mapping of a memfd is not
//! enough: the pages that the guest has written are this process's own, and the file lacks them.
//!
//! The file must not become shorter, because a load or store behind its end is SIGBUS, which ends
//! the process. So it is sealed against that (`F_SEAL_SHRINK`, fcntl(2)), or the receiver seals it. A
//! file that can never be sealed is refused: a memfd that was made without `MFD_ALLOW_SEALING`, and
//! every file with a path.

use super::block::{Block, BlockDescription};
use super::map::Memory;
use super::slot::SlotDescription;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::sys::fd::{is_path_only, is_writable, what_is};
use crate::sys::maps::Maps;
use crate::sys::mem::{self, FileKind};
use crate::sys::pagemap::{self, Mapping};
use crate::sys::seals;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// The part of a file that is a block's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FilePart {
    /// The first byte.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u64,
    /// Whether the guest can write the block.
    pub(crate) written: bool,
}

/// The file of `block` and the part of it that another process can map in its place.
///
/// # Errors
/// [`Kind::Unsupported`] with the reason why the block has to be copied.
pub(crate) fn by_descriptor(block: &Block) -> Result<(BorrowedFd<'_>, FilePart)> {
    let copied = |why: &str| {
        let message = format!("block `{}` has to be copied: {why}", block.name());
        Error::new(Kind::Unsupported, message)
    };
    let Some(file) = block.file() else {
        return Err(copied(
            "the VMM has given no descriptor of the file that it is mapped from",
        ));
    };
    let part = FilePart {
        offset: file.offset,
        length: block.length().0,
        written: !block.flags().rom,
    };
    // The VMM may have mapped something else there since it described the block.
    let maps = Maps::open().map_err(|e| copied(e.message()))?;
    let mapping = pagemap::mapping_of(&maps, block.host() as u64, part.length);
    match mapping.map_err(|e| copied(e.message()))? {
        Mapping::Shared { inode, offset, .. }
            if block.identity().is_some_and(|i| i.inode == inode) && offset == part.offset => {}
        Mapping::PrivateFile { .. } | Mapping::PrivateAnonymous => return Err(copied(
            "it is mapped privately (MAP_PRIVATE), so the file lacks what the guest has written",
        )),
        _ => {
            return Err(copied(
                "it is not one shared mapping of its file, in the file's order",
            ))
        }
    }
    match problem(file.fd.as_fd(), part) {
        None => Ok((file.fd.as_fd(), part)),
        Some(why) => Err(copied(&why)),
    }
}

/// Checks a descriptor that a peer sent as the file of block `name`, and seals the file against
/// becoming shorter, where it is not sealed yet.
///
/// # Errors
/// [`Kind::Protocol`] with what was expected and found.
pub(crate) fn check_received(name: &str, fd: BorrowedFd<'_>, part: FilePart) -> Result<()> {
    let refused = |what: &str| {
        let message = format!("the descriptor that came as block `{name}`: {what}");
        Error::new(Kind::Protocol, message)
    };
    if let Some(what) = problem(fd, part) {
        return Err(refused(&what));
    }
    // Whoever could make the file shorter between the look at its length and the seal cannot do so
    // afterwards, so the length is looked at again.
    seals::add(fd, libc::F_SEAL_SHRINK)
        .map_err(|e| refused(&format!("sealing it against becoming shorter: {e}")))?;
    match problem(fd, part) {
        None => Ok(()),
        Some(what) => Err(refused(&what)),
    }
}

/// Why `fd` is no file whose part `part` two processes can have as a block's memory.
fn problem(fd: BorrowedFd<'_>, part: FilePart) -> Option<String> {
    if is_path_only(fd) || mem::file_kind(fd) == FileKind::Other {
        return Some(format!(
            "expected a memfd, or a file of hugetlbfs, found {}{}",
            what_is(fd),
            match mem::file_length(fd) {
                Ok(Some(_)) if !is_path_only(fd) => " of another file system",
                _ => "",
            }
        ));
    }
    if part.written && !is_writable(fd) {
        return Some(
            "expected a descriptor that is open for reading and writing, found one that is not \
             open for writing"
                .to_owned(),
        );
    }
    let page = mem::page_size_of(fd) as u64;
    if !part.offset.is_multiple_of(page) || !part.length.is_multiple_of(page) {
        return Some(format!(
            "expected an offset and a length in whole pages of the file, {page} bytes each, found \
             offset {} and length {}",
            part.offset, part.length
        ));
    }
    let length = match mem::file_length(fd) {
        Ok(length) => length.unwrap_or(0),
        Err(e) => return Some(e.message().to_owned()),
    };
    if part
        .offset
        .checked_add(part.length)
        .is_none_or(|end| end > length)
    {
        return Some(format!(
            "expected a file of at least {} bytes after offset {}, found one of {length} bytes",
            part.length, part.offset
        ));
    }
    let seals = match seals::of(fd) {
        Ok(seals) => seals,
        Err(e) => {
            return Some(format!(
                "expected a file that can be sealed, found one without ({e})"
            ))
        }
    };
    if part.written && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
        return Some(format!(
            "expected a file that a new mapping can write, found one sealed against that ({})",
            seals::names(seals)
        ));
    }
    if seals & libc::F_SEAL_SHRINK == 0 && seals & libc::F_SEAL_SEAL != 0 {
        return Some(format!(
            "expected a file that is sealed against becoming shorter (F_SEAL_SHRINK) or can be, \
             found one with the seals {}: make the memfd with MFD_ALLOW_SEALING",
            seals::names(seals)
        ));
    }
    None
}

impl Memory {
    /// Adds a block whose file came by descriptor and is mapped by now. Memory that was described
    /// under that name before has to be at the same place: the file was mapped over it. The block has
    /// a new number then, and the slots of the old one.
    ///
    /// # Errors
    /// Those of [`Memory::add_block`]; [`Kind::Invalid`] when the memory of that name is at another
    /// place, and for a mapping that is not shared. The block is not in the map then.
    pub(crate) fn add_handed(&self, description: BlockDescription) -> Result<()> {
        let before = self.map();
        let mut slots = Vec::new();
        if let Some(old) = before.block_named(&description.name) {
            let there = (old.host(), old.length());
            let now = (description.host.start(), description.length);
            if there != now {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "expected the address {:p} of {} bytes, where the VMM has a block of this \
                         name already (map the file over it, with MAP_FIXED), found {:p} of {} bytes",
                        there.0, there.1, now.0, now.1
                    ),
                ));
            }
            for slot in before.slots_of(old.id(), 0..u64::MAX) {
                fallible::push(&mut slots, Arc::clone(slot), "slots")?;
            }
            self.remove_block(old.id())?;
        }
        let id = self.add_block(description)?;
        let shared = self.map();
        let shared = shared.block(id).map(|block| by_descriptor(block).map(drop));
        if let Some(Err(e)) = shared {
            self.remove_block(id)?;
            return Err(e);
        }
        for slot in slots {
            self.add_slot(&SlotDescription {
                slot: slot.slot,
                flags: slot.flags,
                offset: slot.first.bytes(),
                ..SlotDescription::new(id, slot.guest_address, slot.pages.bytes())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
