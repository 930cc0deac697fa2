//! Memory of the source's that comes by descriptor: the VMM maps the file, and the block is in the
//! guest's map. Both processes have the same pages from then on.
//!
//! Until the hand-over these pages are the memory of the guest that runs at the source. So nothing of
//! brant's writes or backs them before `run`: no page comes for them, none is looked at, discarded or
//! prefaulted, and no checksum of them is computed.

use crate::error::{Error, Kind, Result};
use crate::memory::block::BLOCKS_MAX;
use crate::memory::handed::{self, FilePart};
use crate::memory::{BackingFile, BlockDescription, BlockFlags, HostMemory, Memory};
use crate::migrate::callbacks::Callbacks;
use crate::units::Bytes;
use crate::wire;
use std::os::fd::{AsFd, OwnedFd};

const _: () = assert!(BLOCKS_MAX <= wire::BLOCKS_MAX as usize);

/// The file of a block, as it came.
pub(super) struct File {
    pub(super) fd: OwnedFd,
    /// Where the block begins in it.
    pub(super) offset: u64,
}

/// Checks that a BLOCK_FD follows the BLOCK that it is about.
pub(super) fn check_place(said: &wire::BlockFd, last: Option<&wire::Block>) -> Result<()> {
    if last.is_some_and(|block| (block.id, block.length) == (said.id, said.length)) {
        return Ok(());
    }
    let last = match last {
        Some(block) => format!("that is block {} of {} bytes", block.id, block.length),
        None => "there was none".to_owned(),
    };
    Err(Error::new(
        Kind::Protocol,
        format!(
            "BLOCK_FD: expected the number and the length of the BLOCK before it ({last}), found \
             block {} of {} bytes",
            said.id, said.length
        ),
    ))
}

/// Has the VMM map the file of the source's block `theirs`, and puts the block into the guest's map.
pub(super) fn take_in(
    vmm: &Callbacks,
    memory: &Memory,
    theirs: &wire::Block,
    file: File,
) -> Result<()> {
    let name = &theirs.name;
    let rom = theirs.flags & wire::BLOCK_FLAG_ROM != 0;
    let part = FilePart {
        offset: file.offset,
        length: theirs.length,
        written: !rom,
    };
    handed::check_received(name, file.fd.as_fd(), part)?;
    let mapped = vmm.call("map_block", |vmm| {
        vmm.map_block(name, file.fd.as_fd(), theirs.length, file.offset)
    })?;
    // SAFETY: `MappedBlock` carries the VMM's promise about this memory.
    let host = unsafe { HostMemory::new(mapped.start()) };
    let mapped = memory.add_handed(BlockDescription {
        page_size: Bytes(theirs.page_size),
        file: Some(BackingFile {
            fd: file.fd,
            offset: file.offset,
        }),
        flags: BlockFlags {
            rom,
            ..BlockFlags::default()
        },
        ..BlockDescription::new(name.clone(), host, Bytes(theirs.length))
    });
    mapped.map_err(|e| {
        let kind = match e.kind() {
            Kind::Invalid | Kind::Unsupported => Kind::Vmm,
            kind => kind,
        };
        Error::new(
            kind,
            format!(
                "what `map_block` returned for block `{name}`: {}",
                e.message()
            ),
        )
    })
}
