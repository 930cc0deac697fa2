//! Whether a page is all zero, and which pages of a run are.
//!
//! This file reads guest memory and decides nothing. The sender decides how a zero page goes on the
//! wire, and restores the page's protection before it asks here. When a page is zero and is written
//! a moment later, the page is dirty again, and is sent again.
//!
//! Guest memory changes while it is read, so this file has no `&[u8]` and no ordinary load. The
//! vector loops are inline assembly. The compiler must run assembly as it stands: it loads every
//! byte exactly once, from memory that the compiler knows nothing about. On other machines
//! `read_volatile` does the same, a word at a time. (The assembly also avoids the AVX-512
//! intrinsics, which are newer than the oldest compiler that brant supports.)

use super::level::Level;
use crate::units::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
const WORD: usize = size_of::<u64>();

impl Level {
    /// Whether the page at `page` is all zero.
    ///
    /// # Safety
    /// As for [`is_zero`]; and the machine has the instructions of the level.
    #[inline]
    unsafe fn is_zero(self, page: *const u8) -> bool {
        // SAFETY: the caller's promise is that of each function called.
        unsafe {
            if !looks_zero(page) {
                return false;
            }
            match self {
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                Level::Avx512 => x86::is_zero_avx512(page),
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                Level::Avx2 => x86::is_zero_avx2(page),
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                Level::Sse2 => x86::is_zero_sse2(page),
                Level::Words => is_zero_words(page),
            }
        }
    }
}

/// Whether the page's first word is zero, and its last word and two in between. Most pages that are
/// not zero show it here, for one branch or two.
///
/// # Safety
/// As for [`is_zero`].
#[inline]
unsafe fn looks_zero(page: *const u8) -> bool {
    // SAFETY: the offsets are inside the page and multiples of a word, and the page is aligned. The
    // caller promises the rest.
    let word = |offset: usize| unsafe { page.add(offset).cast::<u64>().read_volatile() };
    // The last three words are read together, so that their cache misses overlap.
    word(0) == 0 && (word(PAGE - WORD) | word(PAGE / 2 - 3 * 64) | word(PAGE / 4 + 40)) == 0
}

/// The loop for machines without vector instructions of their own below: 64 bytes between branches.
///
/// # Safety
/// As for [`is_zero`].
unsafe fn is_zero_words(page: *const u8) -> bool {
    const STEP: usize = 8;
    let words = page.cast::<u64>();
    (0..PAGE / WORD).step_by(STEP).all(|first| {
        let mut any = 0;
        for i in first..first + STEP {
            // SAFETY: `i` is below the number of words in a page, and the page is aligned. The
            // caller promises the rest.
            any |= unsafe { words.add(i).read_volatile() };
        }
        any == 0
    })
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    //! One loop for each width of vector: 256 bytes between branches.

    use super::PAGE;
    use std::arch::asm;

    /// # Safety
    /// As for [`super::is_zero`]; the machine has AVX-512F.
    pub(super) unsafe fn is_zero_avx512(page: *const u8) -> bool {
        let any: u32;
        // SAFETY: reads PAGE bytes from `page`, as the caller promises is allowed, and writes no
        // memory. Every vector and mask register is declared as clobbered, because vzeroupper
        // touches them all.
        unsafe {
            asm!(
                "xor eax, eax",
                "2:",
                "vmovdqu64 zmm0, [rdi]",
                "vmovdqu64 zmm1, [rdi + 64]",
                "vporq zmm0, zmm0, [rdi + 128]",
                "vporq zmm1, zmm1, [rdi + 192]",
                "vporq zmm0, zmm0, zmm1",
                "vptestmq k1, zmm0, zmm0",
                "kortestw k1, k1",
                "jnz 3f",
                "add rdi, 256",
                "cmp rdi, rsi",
                "jne 2b",
                "jmp 4f",
                "3:",
                "mov eax, 1",
                "4:",
                "vzeroupper",
                inout("rdi") page => _,
                inout("rsi") page.wrapping_add(PAGE) => _,
                out("eax") any,
                clobber_abi("sysv64"),
                options(nostack, readonly),
            );
        }
        any == 0
    }

    /// # Safety
    /// As for [`super::is_zero`]; the machine has AVX2.
    pub(super) unsafe fn is_zero_avx2(page: *const u8) -> bool {
        let any: u32;
        // SAFETY: as for `is_zero_avx512`.
        unsafe {
            asm!(
                "xor eax, eax",
                "2:",
                "vmovdqu ymm0, [rdi]",
                "vmovdqu ymm1, [rdi + 32]",
                "vpor ymm0, ymm0, [rdi + 64]",
                "vpor ymm1, ymm1, [rdi + 96]",
                "vpor ymm0, ymm0, [rdi + 128]",
                "vpor ymm1, ymm1, [rdi + 160]",
                "vpor ymm0, ymm0, [rdi + 192]",
                "vpor ymm1, ymm1, [rdi + 224]",
                "vpor ymm0, ymm0, ymm1",
                "vptest ymm0, ymm0",
                "jnz 3f",
                "add rdi, 256",
                "cmp rdi, rsi",
                "jne 2b",
                "jmp 4f",
                "3:",
                "mov eax, 1",
                "4:",
                "vzeroupper",
                inout("rdi") page => _,
                inout("rsi") page.wrapping_add(PAGE) => _,
                out("eax") any,
                clobber_abi("sysv64"),
                options(nostack, readonly),
            );
        }
        any == 0
    }

    /// # Safety
    /// As for [`super::is_zero`]. Every x86-64 machine has SSE2.
    pub(super) unsafe fn is_zero_sse2(page: *const u8) -> bool {
        let mask: u32;
        // SAFETY: reads PAGE bytes from `page`, as the caller promises is allowed, and writes no
        // memory. `por` with a memory operand needs 16-byte alignment, which a page has.
        unsafe {
            asm!(
                "pxor {zero}, {zero}",
                "2:",
                "movdqa {a}, [{at}]",
                "movdqa {b}, [{at} + 16]",
                "por {a}, [{at} + 32]",
                "por {b}, [{at} + 48]",
                "por {a}, [{at} + 64]",
                "por {b}, [{at} + 80]",
                "por {a}, [{at} + 96]",
                "por {b}, [{at} + 112]",
                "por {a}, [{at} + 128]",
                "por {b}, [{at} + 144]",
                "por {a}, [{at} + 160]",
                "por {b}, [{at} + 176]",
                "por {a}, [{at} + 192]",
                "por {b}, [{at} + 208]",
                "por {a}, [{at} + 224]",
                "por {b}, [{at} + 240]",
                "por {a}, {b}",
                "pcmpeqb {a}, {zero}",
                "pmovmskb {mask:e}, {a}",
                "cmp {mask:e}, 0xffff",
                "jne 3f",
                "add {at}, 256",
                "cmp {at}, {end}",
                "jne 2b",
                "3:",
                at = inout(reg) page => _,
                end = in(reg) page.wrapping_add(PAGE),
                mask = out(reg) mask,
                zero = out(xmm_reg) _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                options(nostack, readonly),
            );
        }
        mask == 0xffff
    }
}

/// Has the processor fetch the bytes that [`is_zero`] reads first, for a page that it will be asked
/// about soon. Never faults, whatever is at the address.
#[inline]
pub fn fetch(page: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: a prefetch is a hint, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(page.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = page;
}

/// Whether the 4 KiB page at `page` is all zero. Each byte is read once, while others may write.
///
/// # Safety
/// `page` is aligned to 4096 bytes and points to 4096 bytes that are mapped
/// and readable. They may change at any time.
#[inline]
pub unsafe fn is_zero(page: *const u8) -> bool {
    debug_assert_eq!(page.addr() % PAGE, 0, "a page is aligned to its size");
    // SAFETY: the caller's promise; `best` gives a loop that the machine can run.
    unsafe { Level::best().is_zero(page) }
}

/// The number of zero pages before the first page that is not zero, among the `pages` pages from
/// `first` on. Reads no page after that one.
///
/// # Safety
/// As for [`is_zero`], for each of the `pages` pages.
pub unsafe fn zero_prefix(first: *const u8, pages: usize) -> usize {
    let mut zeros = 0;
    // SAFETY: page `zeros` is one of the caller's.
    while zeros < pages && unsafe { is_zero(first.add(zeros * PAGE)) } {
        zeros += 1;
    }
    zeros
}

/// Neighbouring pages that are all zero, or of which none is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alike {
    /// The first page, counted from where [`split`] began.
    pub start: usize,
    /// The number of pages, at least 1.
    pub len: usize,
    /// Whether the pages are zero.
    pub zero: bool,
}

/// Splits the `pages` pages from `first` on into runs of zero pages and runs of other pages. The
/// runs alternate, in order and without gaps.
///
/// Every page is read once, when the iterator first comes to it. So no page is in two runs, however
/// it changes meanwhile.
///
/// # Safety
/// As for [`is_zero`], for each of the `pages` pages, until the iterator is
/// dropped or has ended.
pub unsafe fn split(first: *const u8, pages: usize) -> Split {
    Split {
        first,
        pages,
        next: 0,
        seen: None,
    }
}

/// The iterator that [`split`] returns.
#[derive(Debug)]
pub struct Split {
    first: *const u8,
    pages: usize,
    /// Where the next run begins.
    next: usize,
    /// Whether page `next` is zero, when the last run ended at it.
    seen: Option<bool>,
}

impl Split {
    fn look(&self, page: usize) -> bool {
        // SAFETY: `page` is below `pages`, and the caller of `split` promised that those pages stay
        // readable while this iterator is in use.
        unsafe { is_zero(self.first.add(page * PAGE)) }
    }
}

impl Iterator for Split {
    type Item = Alike;

    fn next(&mut self) -> Option<Alike> {
        let start = self.next;
        if start >= self.pages {
            return None;
        }
        let zero = match self.seen.take() {
            Some(zero) => zero,
            None => self.look(start),
        };
        let mut end = start + 1;
        while end < self.pages {
            let other = self.look(end);
            if other != zero {
                self.seen = Some(other);
                break;
            }
            end += 1;
        }
        self.next = end;
        Some(Alike {
            start,
            len: end - start,
            zero,
        })
    }
}

impl std::iter::FusedIterator for Split {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::UnsafeCell;

    /// Aligned memory that is touched only through pointers.
    struct Memory {
        pages: Box<[UnsafeCell<Page>]>,
    }

    #[derive(Clone, Copy)]
    #[repr(C, align(4096))]
    struct Page([u8; PAGE]);

    impl Memory {
        fn new(pages: usize) -> Memory {
            Memory {
                pages: (0..pages)
                    .map(|_| UnsafeCell::new(Page([0; PAGE])))
                    .collect(),
            }
        }

        fn at(&self, byte: usize) -> *mut u8 {
            assert!(byte < self.pages.len() * PAGE);
            self.base().wrapping_add(byte)
        }

        fn base(&self) -> *mut u8 {
            self.pages.as_ptr() as *mut u8
        }

        fn set(&self, byte: usize, value: u8) {
            // SAFETY: `at` checked the index; one thread.
            unsafe { self.at(byte).write(value) }
        }

        fn naive(&self, page: usize) -> bool {
            // SAFETY: `at` checks the index.
            (0..PAGE).all(|byte| unsafe { self.at(page * PAGE + byte).read() } == 0)
        }
    }

    /// The loop alone, without the look at a few words before it.
    unsafe fn whole(level: Level, page: *const u8) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            match level {
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                Level::Avx512 => x86::is_zero_avx512(page),
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                Level::Avx2 => x86::is_zero_avx2(page),
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                Level::Sse2 => x86::is_zero_sse2(page),
                Level::Words => is_zero_words(page),
            }
        }
    }

    #[test]
    fn one_byte_anywhere_in_a_page_is_seen_by_every_loop() {
        let memory = Memory::new(3);
        let page = memory.at(PAGE);
        for level in Level::all() {
            for byte in 0..PAGE {
                for value in [1, 0x80, 0xff] {
                    memory.set(PAGE + byte, value);
                    // SAFETY: the middle page of three.
                    let found = unsafe { (whole(level, page), level.is_zero(page), is_zero(page)) };
                    assert_eq!(
                        found,
                        (false, false, false),
                        "{level:?}, byte {byte} = {value:#x}"
                    );
                }
                memory.set(PAGE + byte, 0);
            }
            // SAFETY: as above.
            assert!(unsafe { whole(level, page) && level.is_zero(page) && is_zero(page) });
        }
    }

    #[test]
    fn the_neighbours_of_a_page_do_not_count() {
        let memory = Memory::new(3);
        memory.set(PAGE - 1, 0xff);
        memory.set(2 * PAGE, 0xff);
        for level in Level::all() {
            // SAFETY: the middle page of three.
            let found = unsafe {
                (
                    whole(level, memory.at(PAGE)),
                    level.is_zero(memory.at(PAGE)),
                )
            };
            assert_eq!(found, (true, true), "{level:?}");
        }
    }

    #[test]
    fn nothing_beyond_the_last_page_is_read() {
        // SAFETY: a private mapping of three pages, of which the last one is made unreadable.
        // Nobody else knows of the mapping.
        let base = unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(base, libc::MAP_FAILED);
            let last = base.cast::<u8>().add(2 * PAGE);
            assert_eq!(libc::mprotect(last.cast(), PAGE, libc::PROT_NONE), 0);
            base.cast::<u8>()
        };
        // SAFETY: two readable pages, which are then unmapped and not used any more.
        unsafe {
            for level in Level::all() {
                assert!(whole(level, base.add(PAGE)), "{level:?}");
            }
            assert_eq!(zero_prefix(base, 2), 2);
            assert_eq!(split(base, 2).count(), 1);
            libc::munmap(base.cast(), 3 * PAGE);
        }
    }

    #[test]
    fn nothing_is_read_of_no_pages() {
        // SAFETY: the number of pages is 0, so nothing is read.
        unsafe {
            assert_eq!(zero_prefix(std::ptr::null(), 0), 0);
            assert_eq!(split(std::ptr::null(), 0).next(), None);
        }
    }

    #[test]
    fn a_page_that_changes_under_us_is_in_one_run_only() {
        let memory = Memory::new(2);
        memory.set(PAGE + 7, 1);
        // SAFETY: two pages.
        let mut runs = unsafe { split(memory.base(), 2) };
        let first = runs.next().unwrap();
        assert_eq!((first.start, first.len, first.zero), (0, 1, true));
        // Page 1 was read when it ended the run. Its dirty bit reports a change after that.
        memory.set(PAGE + 7, 0);
        let second = runs.next().unwrap();
        assert_eq!((second.start, second.len, second.zero), (1, 1, false));
        assert_eq!(runs.next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn runs_cover_every_page_once_and_agree_with_a_naive_look(
            kinds in prop::collection::vec(any::<bool>(), 1..24),
            places in prop::collection::vec((0..PAGE, 1u8..), 24),
        ) {
            let memory = Memory::new(kinds.len());
            for (page, &filled) in kinds.iter().enumerate() {
                if filled {
                    let (byte, value) = places[page];
                    memory.set(page * PAGE + byte, value);
                }
            }
            let mut next = 0;
            let mut before = None;
            // SAFETY: all of `memory`.
            for run in unsafe { split(memory.base(), kinds.len()) } {
                prop_assert_eq!(run.start, next);
                prop_assert!(run.len > 0);
                prop_assert_ne!(Some(run.zero), before);
                for page in run.start..run.start + run.len {
                    prop_assert_eq!(memory.naive(page), run.zero);
                }
                next = run.start + run.len;
                before = Some(run.zero);
            }
            prop_assert_eq!(next, kinds.len());
            // SAFETY: all of `memory`.
            let prefix = unsafe { zero_prefix(memory.base(), kinds.len()) };
            prop_assert_eq!(prefix, kinds.iter().take_while(|&&filled| !filled).count());
        }
    }
}
