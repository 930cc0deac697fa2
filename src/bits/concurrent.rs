//! A bitmap that any thread marks without waiting, and that one thread at a time collects.
//!
//! The VMM's own threads report their writes to guest memory here (the *reported* layer), and the
//! tracker collects them at each sync. This file knows nothing of pages. A migration's own bits are
//! in a `Bitmap`.
//!
//! There are two buffers. A setter pins the epoch, loads which buffer is current, ORs its bits into
//! that buffer, and unpins. The collector makes the other buffer current. Then it waits until every
//! thread that could have seen the old choice has unpinned: the *grace wait*. From then on the
//! collector has the old buffer for itself. It reads the buffer with plain (vector) loads, and
//! zeroes it with plain stores for the next swap. So collecting needs no atomic exchange of each
//! word, and setters meet no lock.
//!
//! Why this is correct:
//! - *No setter is overlooked.* A pin ends with a full fence, between the announcement of the pin
//!   and the load of `current`. The collector has a full fence between its store to `current` and
//!   its look at who is pinned. At least one of the two sees the other: the setter finds the new
//!   buffer, or the collector waits for the setter.
//! - *The collector sees what a setter wrote.* An unpin is a release, and the end of the grace wait
//!   an acquire. So everything that a setter did before its unpin happens before the collector's
//!   plain loads: its atomic stores to words, summary and `any`, in whatever order, and above all
//!   the write to guest memory that it marks. (Write first, then mark.)
//! - *A bit that is set already needs no read-modify-write,* because the pin carries the order and
//!   not the bit. A setter that finds its bit set in the buffer that it has pinned knows that this
//!   buffer is collected after its unpin, so the page is read after its write. The bit cannot be
//!   left over from the buffer's last use either. The zeroing happened before the store that made
//!   the buffer current again, and the setter acquired that store. (In a bitmap that is harvested
//!   by exchanges, without a grace wait, the same shortcut loses pages. The load may pass the
//!   setter's own write, which is still in the store buffer, while the harvester takes the bit and
//!   reads the old page.)
//! - *A wait that runs out loses nothing.* The old buffer stays as it is, and the next collect
//!   first waits for it. Until then no other swap is made, because the other buffer is in use. So
//!   setters never see more than these two buffers.
//!
//! `runtime::grace` does the waiting. Only marks, lookups in the memory map and collects pin there,
//! each for an instant. Except for the epoch itself, all of this is model-checked: `tests/loom`.

use super::cells::Cells;
use super::heap::Words;
use super::summary::{drain_or_exchange, for_each_group, span_of, Bitmap};
use super::words::{self, low_mask};
use super::{cut, group_rounded_words, GROUP_BITS, GROUP_WORDS, SPAN_WORDS, WORD_BITS};
use crate::error::{Error, Kind, Result};
use crate::runtime::grace::{self, GracePeriod, Guard};
use crate::runtime::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use std::time::{Duration, Instant};

/// The most bits that are marked under one pin (512 words and 64 summary bits). This bounds how
/// long a mark of any size holds up a collector.
const BITS_A_PIN: usize = SPAN_WORDS * WORD_BITS;

/// Pins the calling thread. Never waits.
fn pin() -> Guard {
    #[cfg(test)]
    tests::perhaps_preempted();
    grace::pin()
}

/// Keeps a value that is written often off the cache lines of its neighbours. Two lines, because
/// the adjacent-line prefetcher pairs them.
#[repr(align(128))]
struct Apart<T>(T);

/// One of the two bitmaps. Setters access it by atomics. The collector, once it has the buffer for
/// itself, accesses it as plain memory.
struct Buffer {
    /// While the collector has this buffer for itself, it may exchange the memory for a bitmap's
    /// (`drain_or_exchange`).
    words: Cells,
    /// One bit for each group of 8 words, as in [`Bitmap`]. A bit may be set early or late, but is
    /// right at the end of a grace wait.
    summary: Cells,
    /// Whether anything was marked.
    any: Apart<AtomicBool>,
}

impl Buffer {
    fn new(nbits: usize) -> Result<Buffer> {
        let nwords = group_rounded_words(nbits);
        Ok(Buffer {
            words: Cells::zeroed(nwords, "reported bitmap")?,
            summary: Cells::zeroed(nwords.div_ceil(SPAN_WORDS), "reported bitmap summary")?,
            any: Apart(AtomicBool::new(false)),
        })
    }

    fn heap_bytes(&mut self) -> usize {
        self.words.heap_bytes() + self.summary.heap_bytes()
    }

    #[inline]
    fn word(&self, i: usize) -> &AtomicU64 {
        // SAFETY: only a setter that holds this buffer calls this. While a setter can hold it, no
        // thread has the buffer for itself: the epoch's wait, and the store that makes the buffer
        // current again, order the two.
        unsafe { self.words.at(i) }
    }

    #[inline]
    fn summary(&self, i: usize) -> &AtomicU64 {
        // SAFETY: as for `word`.
        unsafe { self.summary.at(i) }
    }

    /// Sets `bits`, which is not empty and lies inside. The caller is pinned, and has found this
    /// buffer to be current since it pinned.
    #[inline]
    fn set(&self, bits: std::ops::Range<usize>) {
        let first = bits.start / WORD_BITS;
        let last = (bits.end - 1) / WORD_BITS;
        for i in first..=last {
            let mut mask = u64::MAX;
            if i == first {
                mask <<= bits.start % WORD_BITS;
            }
            if i == last {
                mask &= low_mask((bits.end - 1) % WORD_BITS + 1);
            }
            let word = self.word(i);
            // Relaxed everywhere: the file's description says what carries the order.
            if word.load(Ordering::Relaxed) & mask != mask {
                if mask == u64::MAX {
                    // Storing all ones is the same as an OR, whatever other threads do: no thread
                    // clears a bit here.
                    word.store(mask, Ordering::Relaxed);
                } else {
                    word.fetch_or(mask, Ordering::Relaxed);
                }
            }
        }
        let (first, last) = (bits.start / GROUP_BITS, (bits.end - 1) / GROUP_BITS);
        for group in first..=last {
            self.note(group);
        }
    }

    /// Sets those of `bits` whose bit in `words` is set. `bits` is not empty and lies inside. Bit
    /// `skip` of `words` stands for `bits.start`. The caller is pinned, as for [`Buffer::set`].
    fn set_words(&self, bits: std::ops::Range<usize>, words: &[u64], skip: usize) {
        let first = bits.start / WORD_BITS;
        let last = (bits.end - 1) / WORD_BITS;
        let mut group = None;
        for i in first..=last {
            let from = bits.start.max(i * WORD_BITS);
            let len = bits.end.min((i + 1) * WORD_BITS) - from;
            let given = words::bits_at(words, skip + from - bits.start, len);
            if given == 0 {
                continue;
            }
            let mask = given << (from % WORD_BITS);
            let word = self.word(i);
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
            if group != Some(i / GROUP_WORDS) {
                // All words of the group before are set, so its summary bit comes now.
                if let Some(group) = group.replace(i / GROUP_WORDS) {
                    self.note(group);
                }
            }
        }
        if let Some(group) = group {
            self.note(group);
        }
    }

    /// Notes that a group has marks. Its words are set already.
    #[inline]
    fn note(&self, group: usize) {
        let summary = self.summary(group / WORD_BITS);
        let bit = 1 << (group % WORD_BITS);
        // `any` is set before the summary. The summary's bit is a release, which a thread that
        // relies on the bit acquires. So a mark that has returned is visible in `any`, even if
        // another thread has set the bit. A collect can then skip an untouched buffer.
        if summary.load(Ordering::Acquire) & bit == 0 {
            if !self.any.0.load(Ordering::Relaxed) {
                self.any.0.store(true, Ordering::Relaxed);
            }
            summary.fetch_or(bit, Ordering::Release);
        }
    }

    /// Calls `f` with the words and the summary as plain memory.
    ///
    /// # Safety
    /// No setter can hold this buffer (it is not current, and a grace wait has passed since it
    /// was), and the caller is the only collector.
    unsafe fn plain<R>(&self, f: impl FnOnce(&mut Words, &mut Words) -> R) -> R {
        // SAFETY: the caller's promise.
        unsafe {
            self.words
                .alone(|words| self.summary.alone(|summary| f(words, summary)))
        }
    }
}

/// The result of a collect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Marked bits that were not set before in the destination.
    pub new: u64,
    /// Marked bits.
    pub marked: u64,
    /// How long the grace wait took.
    pub waited: Duration,
}

/// State that only the collecting thread uses.
struct Collecting {
    /// The buffer that was swapped out and is not drained yet, and the wait for it.
    old: Option<(usize, GracePeriod)>,
}

/// A bitmap of fixed size that any thread may mark at any time.
///
/// ```
/// use brant::bits::{Bitmap, ConcurrentBitmap};
/// use std::time::Duration;
///
/// # fn main() -> brant::Result<()> {
/// let marks = ConcurrentBitmap::new(1 << 16)?;
/// std::thread::scope(|scope| {
///     for first in [0, 1000] {
///         let marks = &marks;
///         scope.spawn(move || marks.mark(first, 3)); // never waits
///     }
/// });
/// let mut found = Bitmap::new(1 << 16)?;
/// marks.collect(Duration::from_secs(1), &mut found)?;
/// assert_eq!(found.count(), 6);
/// # Ok(())
/// # }
/// ```
pub struct ConcurrentBitmap {
    nbits: usize,
    heap_bytes: usize,
    /// Index of the buffer that setters use.
    current: Apart<AtomicUsize>,
    buffers: [Buffer; 2],
    collecting: Mutex<Collecting>,
}

impl ConcurrentBitmap {
    /// Two buffers of `nbits` clear bits. [`Kind::NoMemory`] if there is no memory. Memory without
    /// marks is never touched.
    pub fn new(nbits: usize) -> Result<ConcurrentBitmap> {
        let mut buffers = [Buffer::new(nbits)?, Buffer::new(nbits)?];
        let heap_bytes = buffers.iter_mut().map(Buffer::heap_bytes).sum();
        Ok(ConcurrentBitmap {
            nbits,
            heap_bytes,
            current: Apart(AtomicUsize::new(0)),
            buffers,
            collecting: Mutex::new(Collecting { old: None }),
        })
    }

    /// The number of bits, marked or not.
    pub fn len(&self) -> usize {
        self.nbits
    }

    /// Whether the bitmap has length 0.
    pub fn is_empty(&self) -> bool {
        self.nbits == 0
    }

    /// Bytes taken from the heap. This is address space: untouched pages of it are not backed.
    pub fn heap_bytes(&self) -> usize {
        self.heap_bytes
    }

    /// Marks the `n` bits from `start` on, cut at the end. May be called on any thread, even one
    /// that is just ending, and in a signal handler. Takes no lock, never waits, and allocates
    /// nothing.
    ///
    /// Write to memory first, then mark. A mark before the write can be collected, and the page
    /// sent, before the write lands.
    pub fn mark(&self, start: usize, n: usize) {
        let bits = cut(start, n, self.nbits);
        let mut from = bits.start;
        while from < bits.end {
            let end = bits.end.min((from / BITS_A_PIN + 1) * BITS_A_PIN);
            self.mark_pinned(&pin(), from, end - from);
            from = end;
        }
    }

    /// [`ConcurrentBitmap::mark`] for a thread that is pinned already. A collector waits for that
    /// thread, so mark no more than some ten thousand bits under one pin.
    pub fn mark_pinned(&self, _pinned: &Guard, start: usize, n: usize) {
        let bits = cut(start, n, self.nbits);
        if !bits.is_empty() {
            self.current().set(bits);
        }
    }

    /// The buffer for marks. The calling thread is pinned.
    fn current(&self) -> &Buffer {
        // After the pin, which is a full fence. Acquire, for the zeroing that the collector did
        // before it made this buffer current.
        let current = self.current.0.load(Ordering::Acquire);
        #[cfg(test)]
        tests::perhaps_preempted();
        &self.buffers[current]
    }

    /// Marks those of the `n` bits from `start` on whose bit in `words` is set. Bit `skip` of
    /// `words` stands for bit `start`. Bits past the end of either count as clear. Costs a look at
    /// each word, and an OR into each with a bit. The calling thread is pinned: see
    /// [`ConcurrentBitmap::mark_pinned`].
    pub fn mark_words(&self, _pinned: &Guard, start: usize, words: &[u64], skip: usize, n: usize) {
        let given = cut(skip, n, words.len().saturating_mul(WORD_BITS));
        let bits = cut(start, given.len(), self.nbits);
        if !bits.is_empty() {
            self.current().set_words(bits, words, skip);
        }
    }

    /// Whether there is nothing to collect. `true` is only a hint, since any thread may mark at
    /// once. But a mark that returned before this call (in the sense of happens-before) makes it
    /// `false` until it is collected.
    pub fn is_clean_hint(&self) -> bool {
        self.buffers
            .iter()
            .all(|b| !b.any.0.load(Ordering::Relaxed))
    }

    /// Moves all marks into `into`, a bitmap of the same length. Every mark that returned before
    /// this call is in it, or was in an earlier collect. A mark that runs at the same time is in
    /// this collect or in the next.
    ///
    /// The cost is the grace wait and the marked groups. The wait is normally about a microsecond;
    /// a setter that was preempted inside a mark makes it longer.
    ///
    /// # Errors
    /// - [`Kind::Invalid`]: the length differs; nothing was done.
    /// - [`Kind::Timeout`]: a thread stood inside a mark for all of `wait`. No mark is lost: the
    ///   swapped-out buffer stays, and the next collect begins with it. (`into` may have received
    ///   marks that an earlier collect had left behind; its count tells.)
    pub fn collect(&self, wait: Duration, into: &mut Bitmap) -> Result<Collected> {
        self.collect_unless(wait, &|| false, into)
    }

    /// [`ConcurrentBitmap::collect`] that ends its wait early, with the same error, once `given_up`
    /// returns true.
    pub fn collect_unless(
        &self,
        wait: Duration,
        given_up: &dyn Fn() -> bool,
        into: &mut Bitmap,
    ) -> Result<Collected> {
        into.check_len(self.nbits)?;
        self.collect_by(wait, given_up, |words, summary| {
            drain_or_exchange(words, summary, into)
        })
    }

    /// [`ConcurrentBitmap::collect`] into any destination. Calls `f` with the first bit's index and
    /// the 8 words of each group of 512 bits that has marks, in order. `new` in the result is 0. If
    /// `f` panics, the next collect passes on again each group whose call of `f` had not returned.
    pub fn collect_with(
        &self,
        wait: Duration,
        mut f: impl FnMut(usize, &[u64; GROUP_WORDS]),
    ) -> Result<Collected> {
        self.collect_by(wait, &|| false, |words, summary| {
            let mut marked = 0;
            let mut span = 0;
            while let Some(found) = words::find_nonzero(summary, span) {
                let part = span_of(words, found);
                let first_bit = part.start * WORD_BITS;
                let (groups, _) = words[part].as_chunks_mut::<GROUP_WORDS>();
                for_each_group(summary[found], |g| {
                    f(first_bit + g * GROUP_BITS, &groups[g]);
                    marked += words::count(&groups[g]);
                    groups[g] = [0; GROUP_WORDS];
                    summary[found] &= !(1 << g);
                });
                span = found + 1;
            }
            (0, marked)
        })
    }

    fn collect_by(
        &self,
        wait: Duration,
        given_up: &dyn Fn() -> bool,
        mut drain: impl FnMut(&mut Words, &mut Words) -> (u64, u64),
    ) -> Result<Collected> {
        let mut state = self.lock();
        let mut out = Collected::default();
        // First the buffer that an earlier collect had to leave, then the current one. With one of
        // them alone, marks that returned before this call could be missing.
        if state.old.is_some() {
            self.finish(&mut state, wait, given_up, &mut out, &mut drain)?;
        }
        if self.is_clean_hint() {
            return Ok(out);
        }
        self.swap(&mut state);
        self.finish(&mut state, wait, given_up, &mut out, &mut drain)?;
        Ok(out)
    }

    fn lock(&self) -> MutexGuard<'_, Collecting> {
        // A panic during a collect leaves `old` in place, so the next collect can go on from there.
        self.collecting.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the other, clean buffer current, and begins the grace wait for this one.
    fn swap(&self, state: &mut Collecting) {
        let old = self.current.0.load(Ordering::Relaxed);
        self.current.0.swap(1 - old, Ordering::SeqCst);
        state.old = Some((old, GracePeriod::begin()));
    }

    /// Waits for the end of the grace wait of `state.old`, and then drains that buffer.
    fn finish(
        &self,
        state: &mut Collecting,
        wait: Duration,
        given_up: &dyn Fn() -> bool,
        out: &mut Collected,
        drain: &mut impl FnMut(&mut Words, &mut Words) -> (u64, u64),
    ) -> Result<()> {
        let Some((old, grace)) = &state.old else {
            return Ok(());
        };
        let old = *old;
        let begun = Instant::now();
        let over = grace.wait_unless(wait.saturating_sub(out.waited), given_up);
        out.waited += begun.elapsed();
        if !over {
            return Err(Error::new(
                Kind::Timeout,
                format!(
                    "collecting reported writes: after {:?} (allowed: {wait:?}) a thread is still inside a mark \
                     that began before; its buffer is kept for the next collect",
                    out.waited
                ),
            ));
        }
        let buffer = &self.buffers[old];
        // SAFETY: `old` has not been current since `swap`, the grace wait that began there is over,
        // and this thread holds the collectors' lock.
        let (new, marked) = unsafe { buffer.plain(drain) };
        out.new += new;
        out.marked += marked;
        buffer.any.0.store(false, Ordering::Relaxed);
        state.old = None;
        Ok(())
    }
}

impl std::fmt::Debug for ConcurrentBitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConcurrentBitmap")
            .field("nbits", &self.nbits)
            .field("clean", &self.is_clean_hint())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU8;
    use std::sync::Arc;
    use std::sync::{mpsc, Barrier};

    thread_local! {
        static UNLUCKY: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }

    /// On threads that asked for it: yields the processor now and then at the worst places of a
    /// mark. A scheduler does so too rarely for a test.
    pub(super) fn perhaps_preempted() {
        UNLUCKY.with(|x| {
            if x.get() != 0 {
                x.set(x.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223) | 1);
                if x.get() >> 26 == 0 {
                    std::thread::yield_now();
                }
            }
        });
    }

    const LONG: Duration = Duration::from_secs(60);

    /// Holds the epoch back on the calling thread, as a setter does that is stuck inside a mark.
    struct Stuck(Guard, usize);

    impl Stuck {
        fn before_its_store(shared: &ConcurrentBitmap) -> Stuck {
            let guard = pin();
            Stuck(guard, shared.current.0.load(Ordering::Acquire))
        }
        fn finish(self, shared: &ConcurrentBitmap, bit: usize) {
            shared.buffers[self.1].set(bit..bit + 1);
            drop(self.0);
        }
    }

    /// Tests that hold the epoch back would disturb tests that wait for it.
    static ALONE: Mutex<()> = Mutex::new(());
    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(|e| e.into_inner())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_marked_is_collected_once(
            nbits in prop_oneof![0usize..1200, 30_000usize..70_000],
            rounds in prop::collection::vec(
                prop::collection::vec((0usize..71_000, prop_oneof![0usize..3, 0usize..40_000]), 0..6),
                1..6,
            ),
            with in any::<bool>(),
        ) {
            let _alone = alone();
            let shared = ConcurrentBitmap::new(nbits).unwrap();
            let mut into = Bitmap::new(nbits).unwrap();
            let mut all = Bitmap::new(nbits).unwrap();
            for marks in rounds {
                let mut this = Bitmap::new(nbits).unwrap();
                for (start, n) in marks {
                    shared.mark(start, n);
                    this.set_range(start, n);
                }
                prop_assert_eq!(shared.is_clean_hint(), this.is_empty());
                let new = all.merge(&this);
                let got = if with {
                    let mut last = None;
                    shared.collect_with(LONG, |at, words| {
                        assert!(at % 512 == 0 && last < Some(at), "in order");
                        last = Some(at);
                        assert!(!words::is_zero(words), "only groups with marks");
                        into.merge_words(at, words, 512);
                    }).unwrap()
                } else {
                    shared.collect(LONG, &mut into).unwrap()
                };
                prop_assert_eq!(got.marked, this.count());
                prop_assert_eq!(got.new, if with { 0 } else { new });
                prop_assert_eq!(into.words(), all.words());
                prop_assert!(shared.is_clean_hint());
            }
            for buffer in &shared.buffers {
                // SAFETY: every setter of this test has ended.
                let clean = unsafe { buffer.plain(|w, s| words::is_zero(w) && words::is_zero(s)) };
                prop_assert!(clean);
            }
        }
    }

    #[test]
    fn a_bitmap_of_another_length_is_refused() {
        let shared = ConcurrentBitmap::new(100).unwrap();
        shared.mark(99, 1);
        let error = shared
            .collect(LONG, &mut Bitmap::new(99).unwrap())
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(!shared.is_clean_hint());
    }

    #[test]
    fn a_wait_that_runs_out_loses_nothing_and_the_next_collect_has_it_all() {
        let _alone = alone();
        let shared = &ConcurrentBitmap::new(5000).unwrap();
        let mut into = Bitmap::new(5000).unwrap();
        std::thread::scope(|s| {
            let (ready, is_ready) = mpsc::channel();
            let (go, may_go) = mpsc::channel::<()>();
            s.spawn(move || {
                let stuck = Stuck::before_its_store(shared);
                ready.send(()).unwrap();
                may_go.recv().unwrap();
                stuck.finish(shared, 4000);
                ready.send(()).unwrap();
            });
            is_ready.recv().unwrap();
            shared.mark(7, 1);
            for wait in [Duration::ZERO, Duration::from_millis(3), Duration::ZERO] {
                let error = shared.collect(wait, &mut into).unwrap_err();
                assert_eq!(error.kind(), Kind::Timeout);
                assert!(error.message().contains("inside a mark"), "{error}");
                assert!(into.is_empty() && !shared.is_clean_hint());
            }
            shared.mark(1234, 2);
            go.send(()).unwrap();
            is_ready.recv().unwrap();
        });
        let got = shared.collect(LONG, &mut into).unwrap();
        assert_eq!((got.new, got.marked), (4, 4));
        let runs: Vec<_> = into.runs(0).collect();
        assert_eq!(runs, [7..8, 1234..1236, 4000..4001]);
        assert!(shared.is_clean_hint());
    }

    #[test]
    fn a_callback_that_panics_gets_its_groups_again() {
        let _alone = alone();
        let shared = ConcurrentBitmap::new(10_000).unwrap();
        for at in [0, 1000, 5000] {
            shared.mark(at, 1);
        }
        let mut seen = Vec::new();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            shared.collect_with(LONG, |at, _| {
                assert!(at < 512, "planned");
                seen.push(at);
            })
        }));
        assert!(panicked.is_err());
        let got = shared.collect_with(LONG, |at, _| seen.push(at)).unwrap();
        assert_eq!(got.marked, 2);
        assert_eq!(seen, [0, 512, 4608]);
    }

    #[test]
    fn marks_from_a_thread_that_is_ending_are_collected() {
        let _alone = alone();
        struct AtExit(Arc<ConcurrentBitmap>, usize);
        impl Drop for AtExit {
            fn drop(&mut self) {
                self.0.mark(self.1, 1);
            }
        }
        thread_local! {
            static EARLY: std::cell::RefCell<Option<AtExit>> = const { std::cell::RefCell::new(None) };
            static LATE: std::cell::RefCell<Option<AtExit>> = const { std::cell::RefCell::new(None) };
        }
        let shared = Arc::new(ConcurrentBitmap::new(100).unwrap());
        let theirs = Arc::clone(&shared);
        // Registered before and after the epoch's own handle, so that one of the two destructors
        // runs when that handle is gone, whatever the order.
        std::thread::spawn(move || {
            EARLY.with(|slot| *slot.borrow_mut() = Some(AtExit(Arc::clone(&theirs), 1)));
            theirs.mark(0, 1);
            LATE.with(|slot| *slot.borrow_mut() = Some(AtExit(theirs, 2)));
        })
        .join()
        .unwrap();
        let mut into = Bitmap::new(100).unwrap();
        assert_eq!(shared.collect(LONG, &mut into).unwrap().marked, 3);
    }

    /// Each setter writes a version into its page's cell and then marks the page. The collector
    /// reads the cell of each page that it is given. In the end every page must have been read at
    /// its last version. A lost mark, or one that was collected before its write was visible,
    /// leaves an older one. Setters of the same page write the same value or a greater one, so
    /// setters often find their bit set already.
    #[test]
    fn eight_threads_mark_one_collects_and_no_mark_is_lost() {
        let _alone = alone();
        const SETTERS: usize = 8;
        const BITS: usize = 3000;
        const ROUNDS: u32 = if cfg!(debug_assertions) {
            20_000
        } else {
            100_000
        };
        let shared = &ConcurrentBitmap::new(BITS).unwrap();
        // Written with relaxed atomics, as guest memory is: the order has to come from `mark`.
        let cells: &Vec<AtomicU64> = &(0..BITS * SETTERS).map(|_| AtomicU64::new(0)).collect();
        let left = &AtomicUsize::new(SETTERS);
        let done = &[const { AtomicU64::new(0) }; SETTERS];
        let start = &Barrier::new(SETTERS + 1);
        let mut read = vec![0u64; BITS * SETTERS];
        let mut collects = 0u32;
        std::thread::scope(|s| {
            for me in 0..SETTERS {
                s.spawn(move || {
                    let mut x = 0x9e37_79b9u32.wrapping_mul(me as u32 + 1);
                    UNLUCKY.set(me as u32 + 1);
                    start.wait();
                    for round in 1..=ROUNDS {
                        x ^= x << 13;
                        x ^= x >> 17;
                        x ^= x << 5;
                        // Half of the marks go to eight hot pages.
                        let page = match x % 2 {
                            0 => (x >> 8) as usize % 8 * 300,
                            _ => (x >> 8) as usize % BITS,
                        };
                        let n = (1 + (x >> 4) as usize % 3 * 40).min(BITS - page);
                        for p in page..page + n {
                            cells[p * SETTERS + me].store(u64::from(round), Ordering::Relaxed);
                        }
                        shared.mark(page, n);
                        // This mark has returned: round and page in one word.
                        done[me].store(u64::from(round) << 32 | page as u64, Ordering::Release);
                    }
                    left.fetch_sub(1, Ordering::Release);
                });
            }
            start.wait();
            let mut into = Bitmap::new(BITS).unwrap();
            loop {
                let last = left.load(Ordering::Acquire) == 0;
                // Some waits are short, so that buffers are left for the next collect.
                let wait = if collects.is_multiple_of(3) && !last {
                    Duration::ZERO
                } else {
                    LONG
                };
                collects += 1;
                let returned: Vec<u64> = done.iter().map(|d| d.load(Ordering::Acquire)).collect();
                let mut whole = true;
                match shared.collect(wait, &mut into) {
                    Ok(got) => assert!(got.new <= got.marked),
                    Err(e) => {
                        assert!(e.kind() == Kind::Timeout && !last);
                        whole = false;
                    }
                }
                for run in into.runs(0) {
                    for i in run.start * SETTERS..run.end * SETTERS {
                        read[i] = cells[i].load(Ordering::Relaxed);
                    }
                }
                into.clear_all();
                // A mark that returned before a successful collect was in that collect or in an
                // earlier one.
                for (me, mark) in returned.iter().enumerate().filter(|_| whole) {
                    let page = (mark & 0xffff_ffff) as usize;
                    let seen = read[page * SETTERS + me];
                    assert!(
                        seen >= mark >> 32,
                        "page {page} setter {me}: {seen} of {}",
                        mark >> 32
                    );
                }
                if last {
                    break;
                }
            }
        });
        for (i, cell) in cells.iter().enumerate() {
            assert_eq!(
                read[i],
                cell.load(Ordering::Relaxed),
                "page {} setter {} after {collects} collects",
                i / SETTERS,
                i % SETTERS
            );
        }
        assert!(shared.is_clean_hint());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn words_are_marked_bit_by_bit_whatever_their_alignment(
            nbits in prop_oneof![1usize..700, 60_000usize..70_000],
            start in 0usize..70_500,
            near in any::<bool>(),
            words in prop::collection::vec(prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>()], 0..1200),
            skip in 0usize..200,
            n in prop_oneof![Just(usize::MAX), 0usize..80_000],
        ) {
            let _alone = alone();
            let start = if near { start % 700 } else { start };
            let shared = ConcurrentBitmap::new(nbits).unwrap();
            shared.mark_words(&pin(), start, &words, skip, n);
            let mut into = Bitmap::new(nbits).unwrap();
            shared.collect(LONG, &mut into).unwrap();
            let mut expected = Bitmap::new(nbits).unwrap();
            for i in 0..n.min(words.len() * 64) {
                if words.get((skip + i) / 64).is_some_and(|w| w >> ((skip + i) % 64) & 1 != 0) {
                    expected.set_range(start + i, 1);
                }
            }
            prop_assert_eq!(into.words(), expected.words());
            prop_assert_eq!(into.count(), expected.count());
        }
    }

    /// A mark that returned before collect was called is in that collect, every time.
    #[test]
    fn a_mark_that_has_returned_is_in_the_very_next_collect() {
        let _alone = alone();
        const ROUNDS: usize = 3000;
        let shared = &ConcurrentBitmap::new(1024).unwrap();
        let turn = &AtomicU8::new(0);
        std::thread::scope(|s| {
            // Marks the same group, so that summary and `any` are often set by another thread.
            s.spawn(move || {
                while turn.load(Ordering::Relaxed) != 2 {
                    shared.mark(1, 1);
                    std::thread::yield_now();
                }
            });
            let (to, from) = mpsc::sync_channel::<usize>(0);
            let (back, done) = mpsc::sync_channel::<()>(0);
            s.spawn(move || {
                for bit in from {
                    shared.mark(bit, 1);
                    back.send(()).unwrap();
                }
            });
            let mut into = Bitmap::new(1024).unwrap();
            let mut missing = 0;
            for round in 0..ROUNDS {
                let bit = 2 + round * 7 % 1000;
                to.send(bit).unwrap();
                done.recv().unwrap();
                shared.collect(LONG, &mut into).unwrap();
                missing += usize::from(!into.test(bit));
                into.clear_all();
            }
            turn.store(2, Ordering::Relaxed);
            drop(to);
            assert_eq!(missing, 0);
        });
    }
}
