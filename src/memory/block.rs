//! A RAM block: a named piece of guest memory that is contiguous in this process.
//!
//! The VMM describes a block. brant checks the description once and from then on holds the block by
//! counted reference. A [`BlockPin`] is such a reference plus a promise: while a pin exists,
//! [`crate::memory::Memory::remove_block`] does not return, or is refused.

use super::address::HostMemory;
pub use super::backing::BackingFile;
use super::backing::{self, Identity};
use super::ballooned::Ballooned;
use super::hidden_holes::HiddenHoles;
use super::holds::{Holder, Uses};
use super::poisoned::Poisoned;
use crate::channel::{Part, PartMut};
use crate::error::{Error, Kind, Result};
use crate::sys::fd::with_own_position;
use crate::sys::maps::Maps;
use crate::sys::{mem, pagemap};
use crate::units::{Bytes, Pages, PAGE_SIZE};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::VolatileSlice;

/// The longest block name, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest block, in pages: 2^40 (4 PiB), so that sums of blocks fit with room to spare.
pub const PAGES_MAX: u64 = 1 << 40;
/// The most blocks in one map.
pub const BLOCKS_MAX: usize = 4096;

/// A block's number, unique in its [`crate::memory::Memory`] and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl BlockId {
    /// As an index into a table by block.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Properties of a block, all off by default.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BlockFlags {
    /// The guest cannot write the block: its pages are sent once and not logged. Marks still count,
    /// for example of flash that the VMM rewrites.
    pub rom: bool,
    /// Destination: the VMM knows that the memory reads as zero, so brant need not look at a page
    /// before it skips a zero page. This holds until a page with contents arrives, all pages have
    /// arrived, or the block is sent. A later incoming migration into the same memory looks at the
    /// pages again.
    pub zeroed: bool,
}

/// A block as the VMM describes it. Fields may be added: [`BlockDescription::new`] has the usual
/// values for those that are not named.
///
/// ```
/// use brant::memory::{BlockDescription, BlockFlags, HostMemory, Memory, SlotDescription};
/// use brant::units::Bytes;
/// use brant::vm_memory::GuestAddress;
///
/// # fn main() -> brant::Result<()> {
/// let memory = Memory::new()?;
/// # let layout = std::alloc::Layout::from_size_align(64 << 10, 4096).unwrap();
/// # // SAFETY: the layout has a size.
/// # let flash = unsafe { std::alloc::alloc_zeroed(layout) };
/// // SAFETY: 64 KiB that stay mapped until the block is removed.
/// let host = unsafe { HostMemory::new(flash) };
/// let flash = memory.add_block(BlockDescription {
///     flags: BlockFlags { rom: true, ..BlockFlags::default() },
///     ..BlockDescription::new("flash", host, Bytes(64 << 10))
/// })?;
/// // KVM's slot 3 shows it at the end of the first 4 GiB.
/// let at = GuestAddress((4 << 30) - (64 << 10));
/// memory.add_slot(&SlotDescription {
///     slot: 3,
///     ..SlotDescription::new(flash, at, Bytes(64 << 10))
/// })?;
/// assert_eq!(memory.map().slot(3).unwrap().guest_address, at);
/// memory.remove_block(flash)?; // and its slots
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BlockDescription {
    /// 1 to 255 bytes without control characters, unique in the map; the destination's block has
    /// the same name.
    pub name: String,
    /// The address of the first byte in this process, page-aligned.
    pub host: HostMemory,
    /// Length; a multiple of `page_size`.
    pub length: Bytes,
    /// Size of the host's pages behind the block: a power of two, 4 KiB to 1 GiB.
    pub page_size: Bytes,
    /// The file or memfd that the block is mapped from. With it brant can see the file's holes.
    pub file: Option<BackingFile>,
    /// See [`BlockFlags`].
    pub flags: BlockFlags,
}

impl BlockDescription {
    /// A block of 4 KiB pages without a file, which the guest can write.
    pub fn new(name: impl Into<String>, host: HostMemory, length: Bytes) -> Self {
        BlockDescription {
            name: name.into(),
            host,
            length,
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        }
    }
}

/// A block of guest memory.
pub struct Block {
    id: BlockId,
    name: String,
    memory: HostMemory,
    length: Bytes,
    page_size: Bytes,
    file: Option<BackingFile>,
    flags: BlockFlags,
    identity: Option<Identity>,
    uses: Uses,
    ballooned: Ballooned,
    poisoned: Poisoned,
    hidden_holes: Mutex<Option<Arc<HiddenHoles>>>,
    /// The VMM said that the block reads as zero, and nobody has written to it since.
    zeroed: AtomicBool,
}

// SAFETY: the pointer is an address of guest memory, which every thread of the VMM, the
// guest and the kernel write to at any time; brant only ever copies from and to it by raw
// or volatile accesses. The VMM keeps it mapped until `remove_block` has returned.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("id", &self.id.0)
            .field("name", &self.name)
            .field("host", &self.host())
            .field("length", &self.length.0)
            .field("page_size", &self.page_size.0)
            .field("flags", &self.flags)
            .finish()
    }
}

impl Block {
    /// Checks a description and makes a block of it.
    pub(super) fn new(id: BlockId, description: BlockDescription) -> Result<Self> {
        let BlockDescription {
            name,
            host,
            length,
            page_size,
            file,
            flags,
        } = description;
        let memory = host;
        let host = memory.start();
        let invalid =
            |what: String| Err(Error::new(Kind::Invalid, format!("block `{name}`: {what}")));
        if name.is_empty() || name.len() > NAME_MAX {
            return invalid(format!(
                "a name has 1 to {NAME_MAX} bytes, this one has {}",
                name.len()
            ));
        }
        // The stream refuses control characters, because both sides show names in messages and
        // files.
        if let Some(c) = name.chars().find(|c| c.is_control()) {
            return invalid(format!(
                "a name has no control characters, this one has {c:?}"
            ));
        }
        if !page_size.0.is_power_of_two() || !(PAGE_SIZE..=1 << 30).contains(&page_size.0) {
            return invalid(format!(
                "the page size is a power of two from {PAGE_SIZE} to {}, not {page_size}",
                1u64 << 30
            ));
        }
        if length.0 == 0 || length.0 % page_size.0 != 0 {
            return invalid(format!(
                "the length is a multiple of the page size ({page_size}) and not 0; found {length}"
            ));
        }
        if length.pages_down().0 > PAGES_MAX {
            return invalid(format!(
                "at most {PAGES_MAX} pages of 4 KiB, found {}",
                length.pages_down()
            ));
        }
        if host.is_null() || !(host as u64).is_multiple_of(PAGE_SIZE) {
            return invalid(format!(
                "the host address is page-aligned and not NULL; found {host:p}"
            ));
        }
        if (host as u64).checked_add(length.0).is_none() {
            return invalid(format!("{length} bytes from {host:p} wrap around"));
        }
        // Without /proc (a chroot, a sandbox that forbids opening files) the mapping is unknown,
        // and every page counts as touched.
        let maps = Maps::open().ok();
        let mapping = maps
            .as_ref()
            .and_then(|maps| pagemap::mapping_of(maps, host as u64, length.0).ok())
            .unwrap_or(pagemap::Mapping::Other);
        let identity = match &file {
            None => None,
            Some(file) => Some(
                backing::identity(file, maps.as_ref(), mapping)
                    .map_err(|e| e.context(format_args!("block `{name}`")))?,
            ),
        };
        // `contents` looks for holes by lseek in tmpfs files only.
        let of_tmpfs = identity.is_some_and(|i| i.kind == mem::FileKind::Tmpfs);
        let file = file.map(|file| BackingFile {
            fd: if of_tmpfs {
                with_own_position(file.fd)
            } else {
                file.fd
            },
            ..file
        });
        Ok(Block {
            id,
            name,
            memory,
            length,
            page_size,
            file,
            flags,
            identity,
            uses: Uses::default(),
            ballooned: Ballooned::new(host as u64, length.pages_down(), page_size.0),
            poisoned: Poisoned::new(length.pages_down()),
            hidden_holes: Mutex::default(),
            zeroed: AtomicBool::new(flags.zeroed),
        })
    }

    /// The block's number.
    pub fn id(&self) -> BlockId {
        self.id
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Length in bytes.
    pub fn length(&self) -> Bytes {
        self.length
    }
    /// Length in tracking pages.
    pub fn pages(&self) -> Pages {
        self.length.pages_down()
    }
    /// The size of the host's pages behind the block.
    pub fn page_size(&self) -> Bytes {
        self.page_size
    }
    /// The block's properties.
    pub fn flags(&self) -> BlockFlags {
        self.flags
    }
    /// The file behind it, if the VMM gave one.
    pub fn file(&self) -> Option<&BackingFile> {
        self.file.as_ref()
    }
    /// The identity of that file.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// The pages that the userfaultfd log protected before anybody touched them. `None` while no
    /// such log of brant's watches the block.
    pub(crate) fn hidden_holes(&self) -> Option<Arc<HiddenHoles>> {
        self.lock_hidden_holes().clone()
    }

    /// The userfaultfd log begins to watch the block, or ends (`None`).
    pub(crate) fn watch(&self, hidden_holes: Option<Arc<HiddenHoles>>) {
        *self.lock_hidden_holes() = hidden_holes;
    }

    /// Whether the block is still known to read as zero, by [`BlockFlags::zeroed`].
    pub(crate) fn is_zeroed(&self) -> bool {
        self.zeroed.load(Ordering::Relaxed)
    }

    /// From now on the block may hold anything.
    pub(crate) fn zeroed_no_more(&self) {
        if self.is_zeroed() {
            self.zeroed.store(false, Ordering::Relaxed);
        }
    }

    fn lock_hidden_holes(&self) -> std::sync::MutexGuard<'_, Option<Arc<HiddenHoles>>> {
        self.hidden_holes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The block's ballooned pages.
    pub fn ballooned(&self) -> &Ballooned {
        &self.ballooned
    }
    /// The block's pages whose contents are lost, by the VMM's word.
    pub fn poisoned(&self) -> &Poisoned {
        &self.poisoned
    }
    /// Address of the first byte in this process.
    pub fn host(&self) -> *mut u8 {
        self.memory.start()
    }

    /// Address of a page. Panics in debug builds outside the block; callers check first.
    pub fn page_address(&self, page: Pages) -> *mut u8 {
        debug_assert!(page < self.pages());
        self.host().wrapping_add((page.0 * PAGE_SIZE) as usize)
    }

    /// A run of pages as a volatile slice, to copy out of or into.
    pub fn slice(&self, first: Pages, count: Pages) -> Result<VolatileSlice<'_>> {
        let end = first.0.checked_add(count.0);
        if end.is_none_or(|end| end > self.pages().0) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "block `{}` has {} pages; {count} from page {first} reach past its end",
                    self.name,
                    self.pages()
                ),
            ));
        }
        // SAFETY: within the block, which the VMM keeps mapped while it is in the map or
        // pinned; accesses through VolatileSlice are volatile.
        Ok(unsafe {
            VolatileSlice::new(
                self.host().wrapping_add((first.0 * PAGE_SIZE) as usize),
                count.bytes().0 as usize,
            )
        })
    }

    /// A run of pages to be sent straight from guest memory, without a copy.
    #[doc(hidden)]
    pub fn part(&self, pages: Range<Pages>) -> Result<Part<'_>> {
        let slice = self.slice(pages.start, pages.end - pages.start)?;
        // SAFETY: within the block, mapped while `self` is borrowed; only the kernel reads it.
        Ok(unsafe { Part::raw(slice.ptr_guard().as_ptr(), slice.len()) })
    }

    /// A run of pages to receive into, straight into guest memory, without a copy.
    #[doc(hidden)]
    pub fn part_mut(&self, pages: Range<Pages>) -> Result<PartMut<'_>> {
        let slice = self.slice(pages.start, pages.end - pages.start)?;
        // SAFETY: within the block, mapped while `self` is borrowed; only the kernel writes it.
        Ok(unsafe { PartMut::raw(slice.ptr_guard_mut().as_ptr(), slice.len()) })
    }

    /// The uses of the block's pages.
    pub(super) fn uses(&self) -> &Uses {
        &self.uses
    }
}

/// A reference that keeps a block's memory mapped. A thread of brant's holds a pin, and not the
/// map, across calls that may block.
///
/// While a consumer's taken pages hold a pin, the removal of the block is refused. For any other
/// pin the removal waits.
#[derive(Debug)]
pub struct BlockPin {
    block: Arc<Block>,
    /// The pin's holder, if a removal is refused because of the pin.
    holder: Option<Arc<Holder>>,
}

impl BlockPin {
    /// Pins `block`, which the caller knows to be in the map. Otherwise use
    /// [`crate::memory::Memory::pin`].
    pub(crate) fn new(block: &Arc<Block>) -> Self {
        block.uses.begin();
        BlockPin {
            block: Arc::clone(block),
            holder: None,
        }
    }

    /// Pins `block` under a name, so that its removal is refused instead of waiting. `None` when
    /// the block is being removed.
    ///
    /// # Errors
    /// [`Kind::NoMemory`].
    pub(crate) fn hold(block: &Arc<Block>, holder: &Arc<Holder>) -> Result<Option<Self>> {
        Ok(block.uses.hold(holder)?.then(|| BlockPin {
            block: Arc::clone(block),
            holder: Some(Arc::clone(holder)),
        }))
    }

    /// The block, not pinned.
    pub(crate) fn shared(&self) -> Arc<Block> {
        Arc::clone(&self.block)
    }
}

impl Clone for BlockPin {
    fn clone(&self) -> Self {
        self.block.uses.again(self.holder.as_ref());
        BlockPin {
            block: Arc::clone(&self.block),
            holder: self.holder.clone(),
        }
    }
}

impl std::ops::Deref for BlockPin {
    type Target = Block;
    fn deref(&self) -> &Block {
        &self.block
    }
}

impl Drop for BlockPin {
    fn drop(&mut self) {
        self.block.uses.end(self.holder.as_ref());
    }
}
