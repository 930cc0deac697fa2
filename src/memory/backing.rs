//! Whether memory is mapped from the file whose descriptor came with it.
//!
//! Example: a VMM closes the wrong descriptor, and a block's descriptor is now standard input, or the
//! memfd of another guest. The holes of that file would pass for pages that were never written, and
//! those pages would be lost. So the descriptor's file is compared with what `/proc/self/maps` shows
//! of the memory.
//!
//! `fstat` cannot answer that: btrfs and some overlays show another device there than in
//! `/proc/self/maps`. So brant maps a page of the descriptor's file, and compares what
//! `/proc/self/maps` shows of the two mappings. That is exact on every file system. What no mapping
//! can be made of has no memory.

use crate::error::{Error, Kind, Result};
use crate::sys::fd::{is_path_only, what_is};
use crate::sys::maps::{self, Maps, Shown};
use crate::sys::mem;
use crate::sys::pagemap::Mapping;
use crate::units::PAGE_SIZE;
use std::os::fd::{AsFd, OwnedFd};

/// The file or memfd a block is mapped from.
#[derive(Debug)]
pub struct BackingFile {
    /// The descriptor, which brant owns from now on.
    pub fd: OwnedFd,
    /// The offset in the file at which the block begins, in bytes.
    pub offset: u64,
}

/// The file of a block's descriptor. What the block is mapped from may change, so the memory is
/// asked anew each time (see [`super::contents`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) kind: mem::FileKind,
}

/// A device (`major << 32 | minor`) in the usual way of writing it.
fn device_name(device: u64) -> String {
    format!("{}:{}", device >> 32, device & 0xffff_ffff)
}

/// The identity of `file`, if `mapping`, the memory of the block, can be mapped from it. `maps` is the
/// open `/proc/self/maps` that showed the mapping.
///
/// # Errors
/// [`Kind::Invalid`] with what was expected and found.
pub(super) fn identity(
    file: &BackingFile,
    maps: Option<&Maps>,
    mapping: Mapping,
) -> Result<Identity> {
    let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
    let fd = file.fd.as_fd();
    if is_path_only(fd) {
        return invalid(
            "expected a descriptor through which its file can be read, found one that is open for \
             its path only (O_PATH)"
                .to_owned(),
        );
    }
    if !file.offset.is_multiple_of(PAGE_SIZE) {
        return invalid(format!(
            "the offset in the file is page-aligned; found {}",
            file.offset
        ));
    }
    let (device, inode, _) = mem::inode_of(fd)?;
    let (mapped_device, mapped_inode, offset) = match mapping {
        Mapping::PrivateAnonymous => {
            return invalid(format!(
                "it is said to be mapped from the file of its descriptor (inode {inode}), and what \
                 is mapped there is private memory without a file"
            ));
        }
        Mapping::Shared {
            device,
            inode,
            offset,
        }
        | Mapping::PrivateFile {
            device,
            inode,
            offset,
        } => (device, inode, offset),
        // Several mappings, or an unknown one: the descriptor is believed, if it is of a file.
        Mapping::Other => (device, inode, file.offset),
    };
    let same = match maps::shown_for(maps, fd) {
        Shown::NoMemory => {
            return invalid(format!(
                "expected the descriptor of the file or memfd that the block is mapped from, found \
                 {}, from which no memory can be mapped",
                what_is(fd)
            ))
        }
        Shown::WriteOnly => {
            return invalid(format!(
                "expected a descriptor through which its file can be read, found {} that is open \
                 for writing only",
                what_is(fd)
            ))
        }
        Shown::File { device, inode } if mapping != Mapping::Other => {
            (mapped_device, mapped_inode) == (device, inode)
        }
        // Some file systems show another device in maps than in stat. Without a mapping to compare
        // with, inodes can be compared only when the devices are the same.
        Shown::File { .. } | Shown::Unknown => mapped_device != device || mapped_inode == inode,
    };
    if !same {
        return invalid(format!(
            "expected the descriptor of the file that the memory is mapped from (device {}, inode \
             {mapped_inode}), found one of another file ({}; device {}, inode {inode})",
            device_name(mapped_device),
            what_is(fd),
            device_name(device)
        ));
    }
    if offset != file.offset {
        return invalid(format!(
            "the memory is mapped from offset {offset} of its file, and the offset given with it \
             is {}",
            file.offset
        ));
    }
    Ok(Identity {
        device,
        inode,
        kind: mem::file_kind(fd),
    })
}

#[cfg(test)]
mod tests;
