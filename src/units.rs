//! Units that must not be mixed up: pages and bytes are different types.
//!
//! Guest physical addresses are [`vm_memory::GuestAddress`]; durations are [`std::time::Duration`].
//! A page, everywhere in brant, is a *tracking page*: the 4 KiB at which KVM, vhost and userfaultfd
//! report writes on x86-64. The size of the host's pages behind a block (2 MiB, 1 GiB) is a
//! property of the block.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a tracking page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Pages in a stretch, the block-aligned 2 MiB that no record crosses.
pub const STRETCH_PAGES: u64 = 512;

/// A number of pages, or the index of a page inside its block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages(pub u64);

/// A number of bytes, or an offset in bytes inside a block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Pages {
    /// The same amount in bytes. Saturates, which never happens for a block: its length is checked
    /// to be far smaller.
    pub fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
    /// As an index into memory of this machine.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Bytes {
    /// The number of whole pages below this offset.
    pub fn pages_down(self) -> Pages {
        Pages(self.0 >> PAGE_SHIFT)
    }
    /// The number of pages that hold these bytes, the last one perhaps in part.
    pub fn pages_up(self) -> Pages {
        Pages(self.0.div_ceil(PAGE_SIZE))
    }
    /// Whether this is a whole number of pages.
    pub fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }
}

macro_rules! arithmetic {
    ($t:ident) => {
        impl Add for $t {
            type Output = $t;
            fn add(self, other: $t) -> $t {
                $t(self.0 + other.0)
            }
        }
        impl Sub for $t {
            type Output = $t;
            fn sub(self, other: $t) -> $t {
                $t(self.0 - other.0)
            }
        }
        impl AddAssign for $t {
            fn add_assign(&mut self, other: $t) {
                self.0 += other.0;
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
arithmetic!(Pages);
arithmetic!(Bytes);
