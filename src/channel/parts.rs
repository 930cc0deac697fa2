//! Places in memory from and to which a channel moves bytes: brant's own buffers and guest memory.
//!
//! Guest memory changes while it is read, so a part is no slice but an address and a length, and
//! only the kernel accesses the memory. `memory` makes parts of a block's pages, and other code
//! makes them of its own bytes. The transfer cuts them to what one call takes.

use self::sealed::Sealed;
use std::marker::PhantomData;

/// A place in memory and its length, by which scatter lists are cut. Only [`Part`] and [`PartMut`]
/// implement it, whose layout is that of `struct iovec`.
pub trait IoPart: Copy + Sealed {
    /// A part without bytes.
    const EMPTY: Self;
    /// The address of the first byte.
    fn address(self) -> usize;
    /// The length in bytes.
    fn len(self) -> usize;
    /// Whether it has no bytes.
    fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// The part from byte `from` on, with at most `most` bytes, cut at its end.
    fn cut(self, from: usize, most: usize) -> Self;
}

/// Parts in the kernel's form: an array of `struct iovec`.
pub(super) fn iovecs<P: IoPart>(parts: &[P]) -> &[libc::iovec] {
    const { assert!(size_of::<P>() == size_of::<libc::iovec>()) };
    // SAFETY: `IoPart` is implemented below, for types that are transparent over iovec.
    unsafe { std::slice::from_raw_parts(parts.as_ptr().cast(), parts.len()) }
}

/// Bytes to send: their address and number. Not a `&[u8]`, because guest memory changes while it is
/// read. Only the kernel reads it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Part<'a>(libc::iovec, PhantomData<&'a [u8]>);

/// Room for bytes to receive. A copy names the same room. If parts overlap the kernel writes them
/// in order; no reference is made from them.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PartMut<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

impl<'a> Part<'a> {
    /// A buffer of brant's own.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Part(
            libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            PhantomData,
        )
    }

    /// `len` bytes at `ptr`, which other code may write meanwhile.
    ///
    /// # Safety
    /// For `'a`, the owner of the range wants it to be sent to the peer. (A range that is not
    /// mapped is an error, not undefined: the kernel reads it.)
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
    /// A buffer of brant's own.
    pub fn bytes(bytes: &'a mut [u8]) -> Self {
        PartMut(
            libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            },
            PhantomData,
        )
    }

    /// `len` bytes at `ptr`, which other code may read and write meanwhile.
    ///
    /// # Safety
    /// For `'a`, no Rust reference covers the range, and all of it is memory that the peer may
    /// write: guest memory. (A range that is not mapped is an error, not undefined: the kernel
    /// writes it.)
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
    /// Keeps other crates from implementing the trait.
    pub trait Sealed {}
}
