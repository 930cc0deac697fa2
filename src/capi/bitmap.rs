//! Level one: bitmaps with a summary, for whoever works on dirty bits.

use super::error::{brant_error, invalid};
use super::structs::{handle, put, put_optional};
use crate::bits::summary::Bitmap;
use crate::error::Result;

/// A bitmap with a summary level: the cost of walking and merging follows the set bits, not the
/// length. Bit i is bit i % 64 of 64-bit word i / 64, as in KVM's logs.
///
/// Threads: any, one at a time. `brant_bitmap_free` is the last call on it.
pub struct brant_bitmap {
    bits: Bitmap,
}

/// The most bits of one bitmap: 2^40.
pub const BRANT_BITMAP_BITS_MAX: u64 = 0x100_0000_0000;

fn check(bits: &Bitmap, first: u64, count: u64) -> Result<()> {
    if first
        .checked_add(count)
        .is_none_or(|end| end > bits.len() as u64)
    {
        return Err(invalid(format!(
            "{count} bits from bit {first} reach past the bitmap's {}",
            bits.len()
        )));
    }
    Ok(())
}

/// # Safety
/// Null or a bitmap that nobody else uses now.
unsafe fn exclusive<'a>(bitmap: *mut brant_bitmap) -> Result<&'a mut Bitmap> {
    // SAFETY: the caller's contract.
    match unsafe { bitmap.as_mut() } {
        Some(bitmap) => Ok(&mut bitmap.bits),
        None => Err(invalid("the bitmap is NULL")),
    }
}

/// Makes a bitmap of `bits` bits, 0 to BRANT_BITMAP_BITS_MAX, all clear. Memory is taken as bits
/// are set. Free the bitmap with `brant_bitmap_free`.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_new(
    bits: u64,
    bitmap: *mut *mut brant_bitmap,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        if bits > BRANT_BITMAP_BITS_MAX {
            return Err(invalid(format!(
                "a bitmap has at most {BRANT_BITMAP_BITS_MAX} bits, not {bits}"
            )));
        }
        if bitmap.is_null() {
            return Err(invalid("bitmap is NULL"));
        }
        let made = Box::new(brant_bitmap {
            bits: Bitmap::new(bits as usize)?,
        });
        // SAFETY: a place for a pointer by contract.
        unsafe { put(bitmap, "bitmap", Box::into_raw(made)) }
    })
}

/// Frees a bitmap; NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_free(bitmap: *mut brant_bitmap) {
    boundary!(or(), {
        if !bitmap.is_null() {
            // SAFETY: from Box::into_raw above, not freed before, by contract.
            drop(unsafe { Box::from_raw(bitmap) });
        }
    })
}

/// How many bits are set. The bitmap keeps this count, so the call costs nothing. 0 for NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_count(bitmap: *const brant_bitmap) -> u64 {
    boundary!(or 0, {
        // SAFETY: null or ours by contract.
        unsafe { bitmap.as_ref() }.map_or(0, |b| b.bits.count())
    })
}

/// Whether bit `bit` is set: 1 or 0, 0 also past the end and for NULL.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_test(bitmap: *const brant_bitmap, bit: u64) -> i32 {
    boundary!(or 0, {
        // SAFETY: null or ours by contract.
        match unsafe { bitmap.as_ref() } {
            Some(b) if bit < b.bits.len() as u64 => b.bits.test(bit as usize) as i32,
            _ => 0,
        }
    })
}

/// Sets `count` bits from `first`. `*changed` (may be NULL) gets how many were clear before.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_set(
    bitmap: *mut brant_bitmap,
    first: u64,
    count: u64,
    changed: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours, and this thread's alone, by contract.
        let bits = unsafe { exclusive(bitmap) }?;
        check(bits, first, count)?;
        let new = bits.set_range(first as usize, count as usize);
        // SAFETY: null or a place by contract.
        unsafe { put_optional(changed, new) };
        Ok(())
    })
}

/// Clears `count` bits from `first`. `*changed` (may be NULL) gets how many were set before.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_clear(
    bitmap: *mut brant_bitmap,
    first: u64,
    count: u64,
    changed: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours, and this thread's alone, by contract.
        let bits = unsafe { exclusive(bitmap) }?;
        check(bits, first, count)?;
        let cleared = bits.clear_range(first as usize, count as usize);
        // SAFETY: null or a place by contract.
        unsafe { put_optional(changed, cleared) };
        Ok(())
    })
}

/// Sets in `bitmap`, from bit `at` on, the bits that are set in the first `count` bits of `words`
/// (of which (count + 63) / 64 words are read). `at` need not be a multiple of 64. `*changed` (may
/// be NULL) gets how many bits were newly set; the call merges and counts in one pass.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_merge_words(
    bitmap: *mut brant_bitmap,
    at: u64,
    words: *const u64,
    count: u64,
    changed: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        // SAFETY: null or ours, and this thread's alone, by contract.
        let bits = unsafe { exclusive(bitmap) }?;
        check(bits, at, count)?;
        if words.is_null() && count > 0 {
            return Err(invalid("words is NULL"));
        }
        let new = if count == 0 {
            0
        } else {
            // SAFETY: that many words are readable by contract, and nobody writes them meanwhile.
            let words = unsafe { std::slice::from_raw_parts(words, count.div_ceil(64) as usize) };
            bits.merge_words(at as usize, words, count as usize)
        };
        // SAFETY: null or a place by contract.
        unsafe { put_optional(changed, new) };
        Ok(())
    })
}

/// Sets in `bitmap` the bits that are set in `from`, another bitmap of the same length. The cost
/// follows the bits that are set in `from`. `*changed` (may be NULL) gets how many were newly set.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_merge(
    bitmap: *mut brant_bitmap,
    from: *const brant_bitmap,
    changed: *mut u64,
    error: *mut *mut brant_error,
) -> i32 {
    boundary!(error, {
        if std::ptr::eq(bitmap, from) {
            return Err(invalid("a bitmap cannot be merged into itself"));
        }
        // SAFETY: null or ours, and this thread's alone, by contract.
        let bits = unsafe { exclusive(bitmap) }?;
        // SAFETY: null or ours by contract, and not the same.
        let from = unsafe { handle(from, "from") }?;
        if from.bits.len() != bits.len() {
            return Err(invalid(format!(
                "the bitmaps have the same length; found {} and {} bits",
                bits.len(),
                from.bits.len()
            )));
        }
        let new = bits.merge(&from.bits);
        // SAFETY: null or a place by contract.
        unsafe { put_optional(changed, new) };
        Ok(())
    })
}

/// Finds the first run of set bits at or after `from`. `*first` gets its first bit, and `*count`
/// its length, cut to `longest` (1 or more). Returns 1 if there is a run, 0 if not, or a negative
/// code.
#[no_mangle]
pub unsafe extern "C" fn brant_bitmap_next_run(
    bitmap: *const brant_bitmap,
    from: u64,
    longest: u64,
    first: *mut u64,
    count: *mut u64,
) -> i32 {
    boundary!(or super::error::BRANT_E_INTERNAL, {
        // SAFETY: null or ours by contract.
        let Some(bitmap) = (unsafe { bitmap.as_ref() }) else {
            return super::error::BRANT_E_INVALID;
        };
        if longest == 0 || first.is_null() || count.is_null() {
            return super::error::BRANT_E_INVALID;
        }
        if from >= bitmap.bits.len() as u64 {
            return 0;
        }
        let longest = longest.min(bitmap.bits.len() as u64) as usize;
        match bitmap.bits.next_run(from as usize, longest) {
            Some(run) => {
                // SAFETY: not null, places for a number by contract.
                unsafe {
                    first.write(run.start as u64);
                    count.write(run.len() as u64);
                }
                1
            }
            None => 0,
        }
    })
}
