//! Places in memory that a channel moves bytes from and to: our own buffers and guest memory.
//!
//! Guest memory changes while it is read, so a part is no slice: an address and a length, which
//! the kernel alone looks behind. Made by `memory` (a block's pages) and by whoever has bytes of
//! its own; cut to what one call takes by the transfer.

use self::sealed::Sealed;
use std::marker::PhantomData;

/// What scatter lists are cut by: a place in memory and its length. Implemented by [`Part`] and
/// [`PartMut`] alone, which are `struct iovec` in memory.
pub trait IoPart: Copy + Sealed {
    /// A part of no bytes.
    const EMPTY: Self;
    /// The address of the first byte.
    fn address(self) -> usize;
    /// The length in bytes.
    fn len(self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// The part from byte `from` on, at most `most` bytes; cut to what there is.
    fn cut(self, from: usize, most: usize) -> Self;
}

/// Parts as the kernel has them: `struct iovec`, one after another.
pub(super) fn iovecs<P: IoPart>(parts: &[P]) -> &[libc::iovec] {
    const { assert!(size_of::<P>() == size_of::<libc::iovec>()) };
    // SAFETY: `IoPart` is implemented below, for types that are transparent over iovec.
    unsafe { std::slice::from_raw_parts(parts.as_ptr().cast(), parts.len()) }
}

/// Bytes to send: where they are and how many. Not a `&[u8]`, because guest
/// memory changes while it is read; the kernel copies from it and nobody else looks.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Part<'a>(libc::iovec, PhantomData<&'a [u8]>);

/// Room for bytes to receive. A copy names the same room: parts that overlap
/// are the kernel's to write in order, no reference is made from them.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PartMut<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

impl<'a> Part<'a> {
    /// Bytes of our own.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Part(
            libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            PhantomData,
        )
    }

    /// `len` bytes at `ptr`, which may be written by others meanwhile.
    ///
    /// # Safety
    /// For `'a`, the range belongs to nothing that its owner would not have
    /// sent to the peer. (A range that is not mapped is an error, not
    /// undefined: the kernel does the reading.)
    pub unsafe fn raw(ptr: *const u8, len: usize) -> Self {
        Part(
            libc::iovec {
                iov_base: ptr.cast_mut().cast(),
                iov_len: len,
            },
            PhantomData,
        )
    }
}

impl<'a> PartMut<'a> {
    /// A buffer of our own.
    pub fn bytes(bytes: &'a mut [u8]) -> Self {
        PartMut(
            libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            },
            PhantomData,
        )
    }

    /// `len` bytes at `ptr`, which others may read and write meanwhile.
    ///
    /// # Safety
    /// For `'a`, no Rust reference covers the range and it is not the place of
    /// anything but what the peer may write: guest memory. (A range that is
    /// not mapped is an error, not undefined: the kernel does the writing.)
    pub unsafe fn raw(ptr: *mut u8, len: usize) -> Self {
        PartMut(
            libc::iovec {
                iov_base: ptr.cast(),
                iov_len: len,
            },
            PhantomData,
        )
    }
}

fn cut_iovec(iovec: libc::iovec, from: usize, most: usize) -> libc::iovec {
    let from = from.min(iovec.iov_len);
    libc::iovec {
        iov_base: iovec.iov_base.cast::<u8>().wrapping_add(from).cast(),
        iov_len: (iovec.iov_len - from).min(most),
    }
}

macro_rules! io_part {
    ($t:ident) => {
        impl Sealed for $t<'_> {}
        impl IoPart for $t<'_> {
            const EMPTY: Self = $t(
                libc::iovec {
                    iov_base: std::ptr::null_mut(),
                    iov_len: 0,
                },
                PhantomData,
            );
            fn address(self) -> usize {
                self.0.iov_base as usize
            }
            fn len(self) -> usize {
                self.0.iov_len
            }
            fn cut(self, from: usize, most: usize) -> Self {
                $t(cut_iovec(self.0, from, most), PhantomData)
            }
        }
    };
}
io_part!(Part);
io_part!(PartMut);

mod sealed {
    /// Nobody outside can implement it.
    pub trait Sealed {}
}
