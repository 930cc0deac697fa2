//! Which blocks can be served, and how: found out before the guest is paused, so that no pause ends
//! in a refusal.
//!
//! The kernel has the last word. So a page of each mapping of a block is registered with a
//! userfaultfd of brant's own, and let go again at once. That shows missing rights, kinds of memory
//! that no userfaultfd watches, and userfaultfds of somebody else's.

use crate::error::{Error, Kind as ErrorKind, Result};
use crate::fallible;
use crate::memory::block::{Block, BlockId};
use crate::memory::map::Memory;
use crate::sys::fd;
use crate::sys::maps::{self, Area, Maps};
use crate::sys::mem::{self, FileKind};
use crate::sys::uffd::{Can, Faults, Modes};
use crate::units::{Pages, PAGE_SIZE};
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;

/// How contents get into the absent pages of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Private memory: a page that was discarded is nowhere.
    Private,
    /// Shared memory whose file brant writes to: old contents of a page stay in the file, and are
    /// overwritten there before the page is mapped.
    Overwrite,
    /// Other shared memory: old contents are punched out of the file.
    Holes,
}

impl Way {
    /// The faults that have to be told of.
    pub(super) fn modes(self) -> Modes {
        Modes {
            missing: true,
            minor: self == Way::Overwrite,
            protect: false,
        }
    }
}

/// How a block is served.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) way: Way,
    /// The size of the kernel's pages there.
    pub(super) unit: Pages,
    /// What the kernel can do with it.
    pub(super) can: Can,
    /// Where transparent huge pages are to be allowed again at the end.
    pub(super) huge: Vec<Range<u64>>,
}

/// Blocks that were found to be of kinds that can be served: the result of
/// [`Served::check`](super::Served::check).
#[derive(Debug, Default)]
pub struct Checked {
    kinds: HashMap<BlockId, Kind>,
}

impl Checked {
    /// Looks at every block of `memory`.
    pub(super) fn all(memory: &Memory) -> Result<Checked> {
        let faults = Faults::open()?;
        let maps = Maps::open()?;
        let map = memory.map();
        let huge = allowed_huge()?;
        let mut kinds = HashMap::new();
        for block in map.blocks() {
            let kind = kind(&faults, &maps, block, &huge)?;
            fallible::insert(&mut kinds, block.id(), kind, "blocks")?;
        }
        Ok(Checked { kinds })
    }

    /// How `block` is served. A block that was added since the check is looked at now.
    pub(super) fn of(&self, faults: &Faults, block: &Block) -> Result<Kind> {
        match self.kinds.get(&block.id()) {
            Some(kind) => Ok(kind.clone()),
            None => kind(faults, &Maps::open()?, block, &allowed_huge()?),
        }
    }
}

/// The mappings in which transparent huge pages are allowed: by the VMM's advice, or because it gave
/// none and the system's setting is to use them always.
fn allowed_huge() -> Result<Vec<Range<u64>>> {
    let always = maps::huge_pages_always();
    let mut allowed = Vec::new();
    maps::huge_page_advice(|range, advice| {
        if advice.unwrap_or(always) {
            fallible::push(&mut allowed, range, "mappings")?;
        }
        Ok(())
    })?;
    Ok(allowed)
}

fn refused(block: &Block, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
    Error::new(
        kind,
        format!(
            "block `{}` cannot be served by fault while the guest runs: {why}",
            block.name()
        ),
    )
}

fn kind(faults: &Faults, maps: &Maps, block: &Block, huge: &[Range<u64>]) -> Result<Kind> {
    let no = |why: &str| refused(block, ErrorKind::Unsupported, why);
    let host = block.host() as u64;
    let range = host..host + block.length().0;
    let mut found: Option<Kind> = None;
    let mut at = range.start;
    let mut result = Ok(());
    maps.over(range.clone(), |area| {
        let part = area.start.max(range.start)..area.end.min(range.end);
        result = kind_of(faults, block, &area, &part).and_then(|kind| match &found {
            Some(other) if (other.way, other.unit) != (kind.way, kind.unit) => {
                Err(no("its parts are mapped from memory of different kinds"))
            }
            _ => {
                found = Some(kind);
                Ok(())
            }
        });
        at = area.end;
        result.is_ok()
    })?;
    result?;
    let Some(mut kind) = found.filter(|_| at >= range.end) else {
        return Err(no("not all of it is mapped"));
    };
    if !host.is_multiple_of(kind.unit.bytes().0)
        || !block.length().0.is_multiple_of(kind.unit.bytes().0)
    {
        return Err(no("it begins or ends in the middle of a huge page"));
    }
    for area in huge {
        let part = area.start.max(range.start)..area.end.min(range.end);
        if !part.is_empty() {
            fallible::push(&mut kind.huge, part, "mappings")?;
        }
    }
    Ok(kind)
}

fn kind_of(faults: &Faults, block: &Block, area: &Area, part: &Range<u64>) -> Result<Kind> {
    let no = |why: &str| refused(block, ErrorKind::Unsupported, why);
    let file = block.file().map(|file| file.fd.as_fd());
    let of_file = block
        .identity()
        .filter(|own| (own.device, own.inode) == (area.device, area.inode))
        .map(|own| own.kind);
    let huge = area.huge_anonymous || of_file == Some(FileKind::Hugetlbfs);
    let unit = match area.page_size {
        0 if huge => block.page_size().0,
        0 => PAGE_SIZE,
        size => size,
    };
    let wanted =
        match area.shared {
            false if area.is_private_file() => return Err(no(
                "it is a private mapping of a file, and a page that is discarded there gets the \
                 file's contents back",
            )),
            false => Way::Private,
            true => {
                if file.is_some_and(fd::is_sealed_for_writing) {
                    return Err(no("its file is sealed against writes"));
                }
                let writes = block.file().is_some_and(|file| {
                    let start = area.offset.wrapping_add(part.start - area.start);
                    let expected = file.offset.wrapping_add(part.start - block.host() as u64);
                    start == expected && fd::is_writable(file.fd.as_fd())
                });
                match of_file {
                    Some(FileKind::Tmpfs) if writes => Way::Overwrite,
                    _ => Way::Holes,
                }
            }
        };
    let page = part.start / unit * unit;
    let page = page..page + unit;
    let attempt = |way: Way| -> Result<Can> {
        let can = faults.register(page.clone(), way.modes())?;
        faults.unregister(page.clone())?;
        Ok(can)
    };
    let (way, can) = match attempt(wanted) {
        // Before Linux 5.14 there are no minor faults of shared memory.
        Ok(can) if wanted == Way::Overwrite && !can.resume => (Way::Holes, can),
        Ok(can) => (wanted, can),
        Err(error) if wanted == Way::Overwrite && error.kind() == ErrorKind::Invalid => (
            Way::Holes,
            attempt(Way::Holes).map_err(|e| named(block, &e))?,
        ),
        Err(error) => return Err(named(block, &error)),
    };
    Ok(Kind {
        way,
        unit: Pages(unit / PAGE_SIZE),
        can,
        huge: Vec::new(),
    })
}

/// The kernel's refusal, with the block's name and what it means.
fn named(block: &Block, error: &Error) -> Error {
    let kind = match error.kind() {
        // The VMM's memory is what it is: nothing that was passed is wrong.
        ErrorKind::Invalid => ErrorKind::Unsupported,
        kind => kind,
    };
    refused(block, kind, error.message())
}

/// Takes away the pages of `runs`, which are absent from now on.
///
/// # Errors
/// Some of the pages may have been taken away by then.
pub(super) fn take_away(
    block: &Block,
    kind: &Kind,
    mut next: impl FnMut(u64) -> Option<Range<u64>>,
) -> Result<()> {
    let pages = block.pages().0;
    let address = |page: u64| block.host().wrapping_add(Pages(page).bytes().0 as usize);
    if kind.way == Way::Overwrite && next_is_scattered(pages, &mut next) {
        // Dropping all entries takes some ten nanoseconds a page, and one call.
        // SAFETY: the block's own memory, shared: only entries in page tables go.
        return unsafe { mem::drop_entries(block.host(), block.length().0 as usize) };
    }
    let mut at = 0;
    let mut discards = mem::Discards::default();
    while let Some(run) = next(at) {
        at = run.end;
        let length = Pages(run.end - run.start).bytes().0 as usize;
        // SAFETY: the block's own memory. Its pages there are absent: what is in them is not what the
        // guest wrote last.
        unsafe {
            match kind.way {
                Way::Private => discards.add(address(run.start), length)?,
                Way::Overwrite => mem::drop_entries(address(run.start), length)?,
                Way::Holes => mem::remove_shared(address(run.start), length)?,
            }
        }
    }
    discards.all()
}

/// Whether there are so many runs that a call for each costs more than dropping the entries of all
/// pages: about a microsecond a call, against ten nanoseconds a page.
fn next_is_scattered(pages: u64, next: &mut impl FnMut(u64) -> Option<Range<u64>>) -> bool {
    let most = pages / 100 + 1;
    let (mut at, mut runs) = (0, 0);
    while let Some(run) = next(at) {
        at = run.end;
        runs += 1;
        if runs > most {
            return true;
        }
    }
    false
}
