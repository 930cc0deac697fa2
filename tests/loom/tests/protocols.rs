//! brant's promises about its lock-free parts, in every order of up to three threads' steps (with a
//! bounded number of preemptions) that the memory model allows.
//!
//! Guest memory is made of relaxed atomics here, as it is for a processor, so no order can come
//! from it. Loom does not see two things. Accesses that are SeqCst count as AcqRel (only fences are
//! more), so no promise here depends on them. And stores do not move before earlier loads.

use brant_loom::bits::concurrent::ConcurrentBitmap;
use brant_loom::bits::summary::Bitmap;
use brant_loom::dirty::protocol::{Position, Seen};
use brant_loom::dirty::reported::{Reported, ReportedLog};
use brant_loom::dirty::{DirtyLog, Harvested, Sink, When};
use brant_loom::error::{Kind, Result};
use brant_loom::memory::{BlockId, Map, Memory};
use brant_loom::runtime::snapshot::Snapshot;
use brant_loom::runtime::sync::{Arc, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering};
use brant_loom::sys::kvm_ring::Entry;
use brant_loom::units::Bytes;
use loom::cell::UnsafeCell;
use loom::thread;
use std::time::Duration;
use vm_memory::GuestAddress;

const LONG: Duration = Duration::from_secs(1);
const PAGES: usize = 64;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&orders);
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!("{orders:?} orders");
}

/// A page of the guest, and the version that the collector last read.
struct Page {
    bit: usize,
    memory: AtomicUsize,
}

impl Page {
    fn new(bit: usize) -> Page {
        let memory = AtomicUsize::new(0);
        Page { bit, memory }
    }
    fn write_and_mark(&self, version: usize, shared: &ConcurrentBitmap) {
        self.memory.store(version, Ordering::Relaxed);
        shared.mark(self.bit, 1);
    }
    fn read(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }
}

/// Collects, and reads the pages it is given.
fn collect(shared: &ConcurrentBitmap, wait: Duration, pages: &[&Page], read: &mut [usize]) -> bool {
    let mut into = Bitmap::new(PAGES).unwrap();
    let complete = match shared.collect(wait, &mut into) {
        Ok(got) => {
            // A bit can be in the leftover as well as in the current buffer.
            assert!(got.marked >= into.count() && got.new <= into.count());
            true
        }
        Err(e) => {
            assert!(e.kind() == Kind::Timeout && wait.is_zero());
            false
        }
    };
    for (page, read) in pages.iter().zip(read) {
        if into.test(page.bit) {
            *read = page.read();
        }
    }
    complete
}

/// Two setters of one word: in the end each page has been read at its last version.
#[test]
fn no_mark_is_lost_and_none_is_collected_before_its_write() {
    check(2, || {
        let all = Arc::new((
            ConcurrentBitmap::new(PAGES).unwrap(),
            Page::new(3),
            Page::new(5),
        ));
        let theirs = Arc::clone(&all);
        let one = thread::spawn(move || {
            theirs.1.write_and_mark(1, &theirs.0);
            theirs.1.write_and_mark(2, &theirs.0);
        });
        let theirs = Arc::clone(&all);
        let two = thread::spawn(move || theirs.2.write_and_mark(1, &theirs.0));
        let (shared, pages) = (&all.0, [&all.1, &all.2]);
        let mut read = [0; 2];
        collect(shared, LONG, &pages, &mut read);
        one.join().unwrap();
        two.join().unwrap();
        collect(shared, LONG, &pages, &mut read);
        assert_eq!(read, [2, 1]);
        assert!(shared.is_clean_hint());
    });
}

/// One setter meets both buffers, and the first one again after it was zeroed.
#[test]
fn a_buffer_that_is_used_again_is_clean_and_takes_marks() {
    check(3, || {
        let all = Arc::new((ConcurrentBitmap::new(PAGES).unwrap(), Page::new(3)));
        let theirs = Arc::clone(&all);
        let setter = thread::spawn(move || {
            for version in 1..=3 {
                theirs.1.write_and_mark(version, &theirs.0);
            }
        });
        let (shared, pages) = (&all.0, [&all.1]);
        let mut read = [0];
        collect(shared, LONG, &pages, &mut read);
        collect(shared, LONG, &pages, &mut read);
        setter.join().unwrap();
        collect(shared, LONG, &pages, &mut read);
        assert_eq!(read, [3]);
        collect(shared, LONG, &pages, &mut [0]);
        assert!(shared.is_clean_hint());
    });
}

/// Another thread may have set the summary's bit and `any`. The mark is found all the same.
#[test]
fn a_mark_that_has_returned_is_in_the_very_next_collect() {
    check(3, || {
        let all = Arc::new((
            ConcurrentBitmap::new(PAGES).unwrap(),
            Page::new(3),
            Page::new(5),
        ));
        let returned = Arc::new(AtomicUsize::new(0));
        let theirs = Arc::clone(&all);
        let done = Arc::clone(&returned);
        let one = thread::spawn(move || {
            theirs.1.write_and_mark(1, &theirs.0);
            done.store(1, Ordering::Release);
        });
        let theirs = Arc::clone(&all);
        let two = thread::spawn(move || theirs.2.write_and_mark(1, &theirs.0));
        let mut read = [0; 2];
        if returned.load(Ordering::Acquire) == 1 {
            assert!(!all.0.is_clean_hint());
            collect(&all.0, LONG, &[&all.1, &all.2], &mut read);
            assert_eq!(read[0], 1);
        }
        one.join().unwrap();
        two.join().unwrap();
    });
}

/// Waits of zero length, which run out whenever a setter is inside a mark.
#[test]
fn a_wait_that_runs_out_loses_nothing() {
    check(3, || {
        let all = Arc::new((ConcurrentBitmap::new(PAGES).unwrap(), Page::new(3)));
        let theirs = Arc::clone(&all);
        let setter = thread::spawn(move || {
            theirs.1.write_and_mark(1, &theirs.0);
            theirs.1.write_and_mark(2, &theirs.0);
        });
        let (shared, pages) = (&all.0, [&all.1]);
        let mut read = [0];
        collect(shared, Duration::ZERO, &pages, &mut read);
        collect(shared, Duration::ZERO, &pages, &mut read);
        setter.join().unwrap();
        assert!(
            collect(shared, Duration::ZERO, &pages, &mut read),
            "nobody is inside"
        );
        assert_eq!(read, [2]);
        assert!(shared.is_clean_hint());
    });
}

/// Loom fails the model when the drop and a reader's look are not ordered.
struct Value(usize, UnsafeCell<bool>);

impl Value {
    fn new(number: usize) -> Value {
        Value(number, UnsafeCell::new(true))
    }
    fn look(&self) -> usize {
        // SAFETY: loom checks it.
        assert!(self.1.with(|alive| unsafe { *alive }));
        self.0
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: loom checks it.
        self.1.with_mut(|alive| unsafe { *alive = false });
    }
}

#[test]
fn no_reader_sees_a_value_that_was_dropped() {
    check(3, || {
        let cell = Arc::new(Snapshot::new(Value::new(0)));
        let theirs = Arc::clone(&cell);
        let reader = thread::spawn(move || {
            let first = theirs.with(Value::look);
            assert!(theirs.with(Value::look) >= first);
        });
        let theirs = Arc::clone(&cell);
        let holder = thread::spawn(move || {
            let held = theirs.load();
            thread::yield_now();
            held.look();
        });
        cell.replace(Arc::new(Value::new(1)));
        assert_eq!(cell.with(Value::look), 1);
        reader.join().unwrap();
        holder.join().unwrap();
    });
}

#[test]
fn when_replace_returns_nobody_looks_at_the_old_value() {
    check(3, || {
        let cell = Arc::new(Snapshot::new(Value::new(0)));
        let old = cell.load();
        let theirs = Arc::clone(&cell);
        let reader = thread::spawn(move || theirs.with(Value::look));
        cell.replace(Arc::new(Value::new(1)));
        // As a VMM does with a block's memory when its removal returns.
        // SAFETY: loom checks it.
        old.1.with_mut(|alive| unsafe { *alive = false });
        reader.join().unwrap();
    });
}

#[test]
fn two_that_replace_drop_each_value_once() {
    check(3, || {
        let cell = Arc::new(Snapshot::new(Value::new(0)));
        let theirs = Arc::clone(&cell);
        let other = thread::spawn(move || theirs.replace(Arc::new(Value::new(1))));
        cell.replace(Arc::new(Value::new(2)));
        cell.with(Value::look);
        other.join().unwrap();
    });
}

/// The pending pages of the first block, and the page that is read.
struct Pending(Bitmap);

impl Sink for Pending {
    fn block(
        &mut self,
        block: BlockId,
        merge: &mut dyn FnMut(&mut Bitmap) -> Result<u64>,
    ) -> Result<()> {
        match block {
            BlockId(0) => merge(&mut self.0).map(drop),
            _ => merge(&mut Bitmap::new(PAGES)?).map(drop),
        }
    }
}

fn map(blocks: u32) -> Map {
    Map::of(blocks, PAGES as u64)
}

fn harvest(log: &mut ReportedLog, blocks: u32) -> Bitmap {
    let mut pending = Pending(Bitmap::new(PAGES).unwrap());
    let got = log.harvest(&map(blocks), When::Stopped, &mut pending);
    assert!(matches!(got.unwrap(), Harvested::Complete));
    pending.0
}

fn reported(blocks: u32) -> Arc<Reported> {
    Arc::new(Reported::new(Arc::new(Memory::new(map(blocks)))))
}

/// When a log has been started, all pages are read afterwards. A write is seen by such a read, or
/// its mark is recorded.
#[test]
fn a_write_at_the_start_of_the_log_is_read_or_recorded() {
    check(3, || {
        let reported = reported(1);
        let memory = Arc::new(AtomicUsize::new(0));
        let (theirs, page) = (Arc::clone(&reported), Arc::clone(&memory));
        let device = thread::spawn(move || {
            page.store(1, Ordering::Relaxed);
            theirs.mark_block(BlockId(0), Bytes(3 * 4096), 1);
        });
        let mut log = ReportedLog::new(Arc::clone(&reported));
        log.start(&map(1)).unwrap();
        let mut read = memory.load(Ordering::Relaxed);
        device.join().unwrap();
        if harvest(&mut log, 1).test(3) {
            read = memory.load(Ordering::Relaxed);
        }
        assert_eq!(read, 1);
        assert_eq!(reported.strays(), 0);
    });
}

/// The same by guest address: through the map's cell and the table's.
#[test]
fn a_write_while_the_log_runs_is_harvested_though_the_map_changes() {
    check(3, || {
        let reported = reported(1);
        let memory = Arc::new(AtomicUsize::new(0));
        let mut log = ReportedLog::new(Arc::clone(&reported));
        log.start(&map(1)).unwrap();
        let (theirs, page) = (Arc::clone(&reported), Arc::clone(&memory));
        let device = thread::spawn(move || {
            page.store(1, Ordering::Relaxed);
            theirs.mark_guest(GuestAddress(3 * 4096), 8);
        });
        let mut sink = Pending(Bitmap::new(PAGES).unwrap());
        log.map_changes(&map(1), &map(2), &mut sink).unwrap();
        let mut read = 0;
        for round in 0..2 {
            if harvest(&mut log, 2).test(3) {
                read = memory.load(Ordering::Relaxed);
            }
            if round == 0 {
                thread::yield_now();
            }
        }
        device.join().unwrap();
        if harvest(&mut log, 2).test(3) {
            read = memory.load(Ordering::Relaxed);
        }
        assert_eq!(read, 1);
        assert_eq!(reported.strays(), 0);
    });
}

/// Loom notices a buffer that is freed during a mark, and one that is never freed.
#[test]
fn a_mark_at_the_stop_of_the_log_meets_no_freed_buffer() {
    check(3, || {
        let reported = reported(1);
        let mut log = ReportedLog::new(Arc::clone(&reported));
        log.start(&map(1)).unwrap();
        let theirs = Arc::clone(&reported);
        let device = thread::spawn(move || theirs.mark_block(BlockId(0), Bytes(3 * 4096), 1));
        log.stop(&map(1)).unwrap();
        device.join().unwrap();
    });
}

/// The kernel's side of a dirty ring: a vCPU that pushes, and RESET.
struct Kernel {
    entries: Vec<Entry>,
    /// Whether each page can be written without a fault. Faults and RESET take the lock.
    writable: Mutex<Vec<bool>>,
    memory: Vec<AtomicUsize>,
}

impl Kernel {
    fn new(entries: usize, pages: usize) -> Kernel {
        let free = || Entry {
            flags: AtomicU32::new(0),
            slot: AtomicU32::new(0),
            offset: AtomicU64::new(0),
        };
        Kernel {
            entries: (0..entries).map(|_| free()).collect(),
            writable: Mutex::new(vec![false; pages]),
            memory: (0..pages).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    fn push(&self, dirty: &mut u64, page: u64) {
        let entry = &self.entries[*dirty as usize % self.entries.len()];
        // Slot and offset are equal, so that a mixture of two entries shows.
        entry.slot.store(page as u32, Ordering::Relaxed);
        entry.offset.store(page, Ordering::Relaxed);
        entry.flags.store(1, Ordering::Release);
        *dirty += 1;
    }

    /// The guest writes to a page, whose protection does not change before the write.
    fn write(&self, dirty: &mut u64, page: u64, version: usize) {
        let mut writable = self.writable.lock().unwrap();
        if !std::mem::replace(&mut writable[page as usize], true) {
            self.push(dirty, page);
        }
        self.memory[page as usize].store(version, Ordering::Relaxed);
    }

    fn reset(&self, reset: &mut u64) -> u64 {
        let mut count = 0;
        loop {
            let entry = &self.entries[*reset as usize % self.entries.len()];
            if entry.flags.load(Ordering::Acquire) & 2 == 0 {
                return count;
            }
            let page = entry.offset.load(Ordering::Relaxed);
            entry.flags.store(0, Ordering::Release);
            self.writable.lock().unwrap()[page as usize] = false;
            *reset += 1;
            count += 1;
            assert!(count <= self.entries.len() as u64, "released for ever");
        }
    }
}

fn whole(slot: u32, offset: u64) -> usize {
    assert_eq!(u64::from(slot), offset, "halves of two entries");
    offset as usize
}

/// A page that is read after the RESET of its harvest has been read at its last version in the end.
#[test]
fn no_write_between_harvest_and_reset_of_a_ring_is_lost() {
    check(3, || {
        let kernel = Arc::new(Kernel::new(4, 2));
        let theirs = Arc::clone(&kernel);
        let vcpu = thread::spawn(move || {
            let mut dirty = 0;
            theirs.write(&mut dirty, 0, 1);
            theirs.write(&mut dirty, 1, 1);
            theirs.write(&mut dirty, 0, 2);
        });
        let (mut at, mut reset, mut read) = (Position::default(), 0, [0; 2]);
        let mut round = || {
            let mut found = Vec::new();
            let n = at.harvest(&kernel.entries, |s, o| found.push(whole(s, o)));
            assert_eq!(kernel.reset(&mut reset), n);
            at.settle();
            for page in found {
                read[page] = kernel.memory[page].load(Ordering::Relaxed);
            }
        };
        round();
        vcpu.join().unwrap();
        round();
        assert_eq!(read, [2, 1]);
    });
}

/// Otherwise a running guest would be taken for one whose ring has overrun.
#[test]
fn a_ring_that_is_pushed_to_in_order_never_seems_to_have_a_gap() {
    check(3, || {
        let kernel = Arc::new(Kernel::new(4, 3));
        let theirs = Arc::clone(&kernel);
        let vcpu = thread::spawn(move || {
            let mut dirty = 0;
            for page in 0..3 {
                theirs.push(&mut dirty, page);
            }
        });
        let mut at = Position::default();
        for _ in 0..2 {
            assert!(!matches!(at.look(&kernel.entries), Seen::Gap(_)));
            at.harvest(&kernel.entries, |s, o| {
                whole(s, o);
            });
        }
        vcpu.join().unwrap();
    });
}
