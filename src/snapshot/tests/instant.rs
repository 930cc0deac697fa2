//! A save whose instant is its start holds the guest as it was at the pause, whatever the guest does
//! to its memory afterwards.

use crate::dirty::userfault::UserfaultLog;
use crate::error::{Kind, Result};
use crate::memory::{BlockFlags, BlockId, Whose};
use crate::snapshot::testing::*;
use crate::snapshot::{Save, SaveInstant, SaveParams, State, Stats};
use crate::units::{Bytes, PAGE_SIZE};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{mpsc, Arc, Mutex};
use std::thread::JoinHandle;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

pub(super) fn start() -> SaveParams {
    SaveParams {
        instant: SaveInstant::Start,
        ..SaveParams::default()
    }
}

/// A guest that writes all the time, except while it is paused, and its contents at the pause.
pub(super) struct Busy {
    pub(super) frozen: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// Has `here` written by threads that call `write` with numbers of their own, and its contents noted
/// when its state is saved.
pub(super) fn busy(
    here: &World,
    threads: u64,
    write: impl Fn(&mut Numbers) + Send + Sync + 'static,
) -> Busy {
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let standing = Arc::new(AtomicU64::new(0));
    let write = Arc::new(write);
    let mut seeds = Numbers::seeded();
    let threads_of: Vec<_> = (0..threads)
        .map(|_| {
            let mut numbers = Numbers(seeds.next());
            let notes = Arc::clone(&here.notes);
            let (stop, written): (_, Arc<AtomicU64>) = (Arc::clone(&stop), Arc::clone(&written));
            let (standing, write) = (Arc::clone(&standing), Arc::clone(&write));
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    if notes.paused.load(SeqCst) {
                        standing.fetch_add(1, SeqCst);
                        while notes.paused.load(SeqCst) && !stop.load(SeqCst) {
                            std::thread::yield_now();
                        }
                        standing.fetch_sub(1, SeqCst);
                        continue;
                    }
                    write(&mut numbers);
                    written.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let ends = Arc::clone(&stop);
    here.notes.hook("pause", move || {
        while standing.load(SeqCst) < threads && !ends.load(SeqCst) {
            std::thread::yield_now();
        }
        Ok(())
    });
    let frozen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (ram, into) = (here.ram.clone(), Arc::clone(&frozen));
    let length = here.memory.map().blocks()[0].length().0 as usize;
    here.notes.hook("save", move || {
        let mut bytes = vec![0; length];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        *into.lock().unwrap() = bytes;
        Ok(())
    });
    Busy {
        frozen,
        stop,
        written,
        threads: threads_of,
    }
}

impl Busy {
    /// The guest writes this often more.
    pub(super) fn goes_on(&self, times: u64) {
        let until = self.written.load(SeqCst) + times;
        while self.written.load(SeqCst) < until {
            std::thread::yield_now();
        }
    }

    pub(super) fn ends(self) -> Vec<u8> {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.frozen.lock().unwrap())
    }
}

fn saved(here: &World, params: SaveParams, path: &Path) -> (Result<()>, Stats) {
    let save = here.save(params);
    save.start(path).unwrap();
    let result = save.wait(Some(LONG));
    (result, save.stats())
}

pub(super) fn holds(path: &Path, pages: u64, expected: &[u8]) {
    let there = world_of(pages, Notes::default());
    there.restore_from(path).unwrap();
    let contents = there.contents();
    let differs = |page: &u64| {
        let at = (*page * PAGE_SIZE) as usize..((*page + 1) * PAGE_SIZE) as usize;
        contents[at.clone()] != expected[at]
    };
    let wrong: Vec<u64> = (0..pages).filter(differs).collect();
    assert!(
        wrong.is_empty(),
        "{} pages, the first {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(8)]
    );
}

/// Saves `here` while it writes everywhere, data and zeros.
fn save_while_busy(here: &World, pages: u64, params: SaveParams) -> Stats {
    let (_directory, path) = place();
    let ram = here.ram.clone();
    let guest = busy(here, 2, move |numbers| {
        let page = numbers.below(pages);
        let value = (numbers.next() % 3).wrapping_mul(numbers.next());
        write(&ram, page, value);
    });
    guest.goes_on(100);
    let (result, stats) = saved(here, params, &path);
    result.unwrap();
    guest.goes_on(1000);
    let frozen = guest.ends();
    holds(&path, pages, &frozen);
    assert_eq!(stats.state, State::Completed);
    assert!(stats.protecting.unwrap() <= stats.downtime.unwrap());
    assert_eq!(stats.data_pages + stats.zero_pages, pages);
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
    stats
}

fn fill_half(here: &World, pages: u64) {
    let mut numbers = Numbers::seeded();
    for _ in 0..pages / 2 {
        here.fill(numbers.below(pages), numbers.next() as u8);
    }
}

#[test]
fn a_guest_in_private_memory_is_saved_as_it_was_at_the_pause_and_writes_on() {
    let here = world();
    fill_half(&here, PAGES);
    let stats = save_while_busy(&here, PAGES, start());
    assert!(stats.faults > 0 && stats.copied_pages > 0, "{stats:?}");
}

#[test]
fn a_guest_in_a_memfd_is_saved_as_it_was_at_the_pause_and_writes_on() {
    let (here, _file) = shared_world_of(PAGES, Notes::default());
    fill_half(&here, PAGES);
    let stats = save_while_busy(&here, PAGES, start());
    assert!(stats.faults > 0 && stats.copied_pages > 0, "{stats:?}");
}

/// Nobody has touched these pages through the block's mapping, so they are neither missing nor in
/// the page tables.
#[test]
fn pages_of_a_memfd_that_the_mapping_has_not_touched_are_saved_as_they_were() {
    let (here, file) = shared_world_of(FEW, Notes::default());
    for page in 0..FEW {
        let bytes = [page as u8 | 1; PAGE_SIZE as usize];
        file.write_all_at(&bytes, page * PAGE_SIZE).unwrap();
    }
    let (_directory, path) = place();
    // Its first writes come right after the pause, ahead of the save.
    let ram = here.ram.clone();
    here.notes.hook("resume", move || {
        for page in (0..FEW).rev().step_by(7) {
            write(&ram, page, 0x1234_5678);
        }
        Ok(())
    });
    let (result, stats) = saved(&here, start(), &path);
    result.unwrap();
    assert_eq!(stats.copied_pages, FEW.div_ceil(7));
    let expected: Vec<u8> = (0..FEW)
        .flat_map(|page| [page as u8 | 1; PAGE_SIZE as usize])
        .collect();
    holds(&path, FEW, &expected);
}

#[test]
fn a_guest_on_transparent_huge_pages_is_saved_as_it_was_at_the_pause() {
    let here = world();
    let host = here.memory.map().blocks()[0].host();
    let length = (PAGES * PAGE_SIZE) as usize;
    // SAFETY: the block's memory.
    unsafe { libc::madvise(host.cast(), length, libc::MADV_HUGEPAGE) };
    for page in 0..PAGES {
        here.fill(page, page as u8 | 1);
    }
    save_while_busy(&here, PAGES, start());
}

/// The guest writes the same number to page `i` and then to page `i + PAIRS`, of 10,000 pairs. So at
/// each instant the first is equal to the second, or one ahead in the one pair that a thread is
/// writing. BRANT_SNAPSHOTS is how many snapshots of each kind of memory are taken.
#[test]
fn an_invariant_across_two_far_pages_is_never_broken_in_an_image() {
    const PAIRS: u64 = 10_000;
    let given = std::env::var("BRANT_SNAPSHOTS").ok();
    let rounds = given.map_or(1, |count| count.parse().unwrap());
    let worlds = [
        world_of(2 * PAIRS, Notes::default()),
        shared_world_of(2 * PAIRS, Notes::default()).0,
    ];
    for here in worlds {
        let ram = here.ram.clone();
        let half = Arc::new(Mutex::new(None));
        let guest = busy(&here, 1, move |numbers| {
            let mut half = half.lock().unwrap();
            match half.take() {
                None => {
                    let pair = numbers.below(PAIRS);
                    let at = GuestAddress(pair * PAGE_SIZE);
                    let value: u64 = ram.read_obj(at).unwrap();
                    ram.write_obj(value + 1, at).unwrap();
                    *half = Some((pair, value + 1));
                }
                // The guest may stand still between the two.
                Some((pair, value)) => {
                    let at = GuestAddress((pair + PAIRS) * PAGE_SIZE);
                    ram.write_obj(value, at).unwrap();
                }
            }
        });
        guest.goes_on(PAIRS);
        for round in 0..rounds {
            let (_directory, path) = place();
            let (result, stats) = saved(&here, start(), &path);
            result.unwrap();
            let there = world_of(2 * PAIRS, Notes::default());
            there.restore_from(&path).unwrap();
            let number = |page: u64| -> u64 {
                let at = GuestAddress(page * PAGE_SIZE);
                there.ram.read_obj(at).unwrap()
            };
            let mut ahead = 0;
            for pair in 0..PAIRS {
                let (first, second) = (number(pair), number(pair + PAIRS));
                assert!(
                    first == second || first == second + 1,
                    "snapshot {round}, pair {pair}: {first} and {second}, {stats:?}"
                );
                ahead += first - second;
            }
            assert!(
                ahead <= 1,
                "snapshot {round}: {ahead} pairs are half written"
            );
        }
        guest.ends();
    }
}

#[test]
fn kernel_writes_into_guest_memory_wait_like_all_others() {
    let here = world_of(FEW, Notes::default());
    for page in 0..FEW {
        here.fill(page, 1);
    }
    let (_directory, path) = place();
    let ram = here.ram.clone();
    here.notes.hook("resume", move || {
        // read(2) of 1 MiB into the end of guest memory: some filled pages, as one system call.
        let at = GuestAddress((FEW - 256) * PAGE_SIZE);
        let host = ram.get_host_address(at).unwrap();
        let mut zeros = std::fs::File::open("/dev/urandom").unwrap();
        // SAFETY: 1 MiB of guest memory, which no reference is to.
        let into = unsafe { std::slice::from_raw_parts_mut(host, 1 << 20) };
        zeros.read_exact(into).unwrap();
        Ok(())
    });
    let (result, stats) = saved(&here, start(), &path);
    result.unwrap();
    assert_eq!(stats.copied_pages, 256);
    holds(&path, FEW, &vec![1; (FEW * PAGE_SIZE) as usize]);
}

#[test]
fn a_hole_of_guest_memory_is_a_hole_of_the_image_and_stays_one_of_the_guest() {
    let here = world_of(FEW, Notes::default());
    here.fill(7, 7);
    let (_directory, path) = place();
    let ram = here.ram.clone();
    here.notes.hook("resume", move || {
        // A hole that is read and then written, before the save comes to it.
        let at = GuestAddress((FEW - 1) * PAGE_SIZE);
        assert_eq!(ram.read_obj::<u64>(at).unwrap(), 0);
        ram.write_obj(5u64, at).unwrap();
        Ok(())
    });
    let (result, stats) = saved(&here, start(), &path);
    result.unwrap();
    assert_eq!((stats.data_pages, stats.zero_pages), (1, FEW - 1));
    let host = here.memory.map().blocks()[0].host();
    let mut there = vec![0u8; FEW as usize];
    // SAFETY: a page's entry for each page of the block.
    let asked = unsafe {
        libc::mincore(
            host.cast(),
            (FEW * PAGE_SIZE) as usize,
            there.as_mut_ptr().cast(),
        )
    };
    assert_eq!(asked, 0);
    assert_eq!(there.iter().filter(|is| **is & 1 != 0).count(), 2);
    let mut expected = vec![0; (FEW * PAGE_SIZE) as usize];
    expected[7 * PAGE_SIZE as usize..8 * PAGE_SIZE as usize].fill(7);
    holds(&path, FEW, &expected);
}

#[test]
fn a_guest_that_writes_faster_than_the_disk_is_slowed_and_copies_stay_below_their_limit() {
    let here = world_of(FEW, Notes::default());
    for page in 0..FEW {
        here.fill(page, page as u8 | 1);
    }
    let params = SaveParams {
        max_copy_bytes: 1 << 20,
        // A slow disk: 12 MiB take most of a second.
        max_bandwidth: Some(16 << 20),
        ..start()
    };
    let stats = save_while_busy(&here, FEW, params);
    assert!(stats.held_faults > 0, "{stats:?}");
    assert!(stats.copied_pages >= 256, "{stats:?}");
}

#[test]
fn writers_that_page_tables_do_not_see_refuse_the_save_before_the_pause() {
    let (directory, path) = place();
    let refused = |here: &World, kind: Kind, says: &str| {
        let (result, _) = saved(here, start(), &path);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(says), "{error}");
        assert!(!here.notes.calls().contains(&"pause".into()), "{error}");
        assert!(names(directory.path()).is_empty());
        assert_eq!(here.memory.ownership().whose(), Whose::Here);
    };
    // A userfaultfd log that watches the memory: a page is watched by one only.
    let here = world_of(FEW, Notes::default());
    if let Ok(log) = UserfaultLog::new() {
        here.tracker.add_log(Box::new(log)).unwrap();
        let consumer = here.tracker.consumer();
        consumer
            .start(crate::dirty::tracker::StartWith::Nothing)
            .unwrap();
        refused(&here, Kind::Exists, "another userfaultfd");
        drop(consumer);
        // When it watches no more, the same guest is saved.
        saved(&here, start(), &path).0.unwrap();
    }
}

#[test]
fn parameters_that_contradict_a_save_of_the_start_are_refused() {
    let here = world_of(FEW, Notes::default());
    let made = |params| {
        let (tracker, vmm) = (Arc::clone(&here.tracker), Arc::clone(&here.notes));
        Save::new(tracker, crate::migrate::Blockers::new(), vmm, params)
    };
    for (already_paused, stay_paused) in [(true, false), (false, true)] {
        let params = SaveParams {
            already_paused,
            stay_paused,
            ..start()
        };
        assert_eq!(made(params).unwrap_err().kind(), Kind::Invalid);
    }
    for max_copy_bytes in [0, (1 << 20) - 1, (1 << 40) + 1] {
        let params = SaveParams {
            max_copy_bytes,
            ..start()
        };
        let error = made(params).unwrap_err();
        assert!(error.message().contains("max_copy_bytes"), "{error}");
    }
}

/// Holds a save in its walk: the disk takes 64 KiB a second.
fn slow() -> SaveParams {
    SaveParams {
        max_bandwidth: Some(65_536),
        writers: 1,
        ..start()
    }
}

fn full(pages: u64) -> World {
    let here = world_of(pages, Notes::default());
    for page in 0..pages {
        here.fill(page, page as u8 | 1);
    }
    here
}

/// Starts a slow save, and returns when the guest runs again.
fn begun(here: &World, path: &Path) -> Save {
    let (resumed, is_resumed) = mpsc::channel();
    let resumed = Mutex::new(resumed);
    here.notes.hook("resume", move || {
        let _ = resumed.lock().unwrap().send(());
        Ok(())
    });
    let save = here.save(slow());
    save.start(path).unwrap();
    is_resumed.recv_timeout(LONG).unwrap();
    save
}

#[test]
fn a_cancel_after_the_instant_leaves_the_guest_running_unprotected_and_no_file() {
    let (directory, path) = place();
    let here = full(PAGES);
    let save = begun(&here, &path);
    save.cancel();
    assert_eq!(save.wait(None).unwrap_err().kind(), Kind::Cancelled);
    assert!(names(directory.path()).is_empty());
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
    // Nobody serves faults any more, so a page that is still protected would be a thread that waits
    // for ever.
    for page in 0..PAGES {
        here.write(page, 9);
    }
    saved(&here, start(), &path).0.unwrap();
}

#[test]
fn another_user_of_the_guest_is_refused_until_the_image_has_its_memory() {
    let (_directory, path) = place();
    let here = full(PAGES);
    let save = begun(&here, &path);
    let other = here.save(SaveParams::default());
    assert_eq!(other.start(&path).unwrap_err().kind(), Kind::Busy);
    save.cancel();
}

#[test]
fn no_block_is_removed_before_the_image_has_it_and_one_that_comes_later_is_not_in_it() {
    let (_directory, path) = place();
    let here = full(PAGES);
    let late = Arc::new(Plugged::new(300));
    late.fill(3);
    let (memory, plugged) = (Arc::clone(&here.memory), Arc::clone(&late));
    let (told, tells) = mpsc::channel();
    let told = Mutex::new(told);
    here.notes.hook("resume", move || {
        plugged.add_to(&memory, "late", BlockFlags::default());
        let first = memory.map().blocks()[0].id();
        let _ = told.lock().unwrap().send(memory.remove_block(first));
        Ok(())
    });
    saved(&here, start(), &path).0.unwrap();
    let error = tells.recv_timeout(LONG).unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.message().contains("a save to an image"), "{error}");
    holds(&path, PAGES, &here.contents());
    // Afterwards the block goes.
    here.memory.remove_block(BlockId(0)).unwrap();
}

#[test]
fn a_block_that_is_added_before_the_pause_is_in_the_image() {
    let (_directory, path) = place();
    let here = full(FEW);
    let late = Arc::new(Plugged::new(300));
    late.fill(3);
    let (memory, plugged) = (Arc::clone(&here.memory), Arc::clone(&late));
    here.notes.hook("pause", move || {
        plugged.add_to(&memory, "late", BlockFlags::default());
        Ok(())
    });
    let plugged = Arc::clone(&late);
    here.notes.hook("resume", move || {
        plugged.fill(4);
        Ok(())
    });
    saved(&here, start(), &path).0.unwrap();
    let there = world_of(FEW, Notes::default());
    let again = Plugged::new(300);
    again.add_to(&there.memory, "late", BlockFlags::default());
    there.restore_from(&path).unwrap();
    assert!(again.bytes().iter().all(|byte| *byte == 3));
}

fn discard(here: &World, page: u64, pages: u64) {
    let map = here.memory.map();
    let at = map.blocks()[0].page_address(crate::units::Pages(page));
    // SAFETY: pages of the block, which nobody refers to.
    let done =
        unsafe { libc::madvise(at.cast(), (pages * PAGE_SIZE) as usize, libc::MADV_DONTNEED) };
    assert_eq!(done, 0);
}

#[test]
fn memory_that_the_vmm_announces_and_discards_is_in_the_image_as_it_was() {
    let (_directory, path) = place();
    let here = full(PAGES);
    let expected = here.contents();
    let save = here.save(SaveParams {
        max_bandwidth: Some(64 << 20),
        ..start()
    });
    let (resumed, is_resumed) = mpsc::channel();
    let resumed = Mutex::new(resumed);
    here.notes.hook("resume", move || {
        let _ = resumed.lock().unwrap().send(());
        Ok(())
    });
    save.start(&path).unwrap();
    is_resumed.recv_timeout(LONG).unwrap();
    // From the end, where the walk comes last.
    for page in (0..PAGES - 64).rev().step_by(1500) {
        let (at, length) = (GuestAddress(page * PAGE_SIZE), 64 * PAGE_SIZE);
        here.memory.before_discard(at, length).unwrap();
        discard(&here, page, 64);
        here.write(page, 77);
    }
    save.wait(Some(LONG)).unwrap();
    holds(&path, PAGES, &expected);
    // Without a save the call waits for nobody, wherever it points.
    here.memory
        .before_discard(GuestAddress(u64::MAX - 5), u64::MAX)
        .unwrap();
}

#[test]
fn memory_that_is_discarded_without_a_word_fails_the_save_by_name_and_not_the_guest() {
    let (directory, path) = place();
    let here = full(PAGES);
    let save = begun(&here, &path);
    discard(&here, PAGES - 10, 5);
    let error = save.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    assert!(error.message().contains("before_discard"), "{error}");
    let name = here.memory.map().blocks()[0].name().to_owned();
    assert!(error.message().contains(&name), "{error}");
    assert!(names(directory.path()).is_empty());
    for page in 0..PAGES {
        here.write(page, 9);
    }
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
}

#[test]
fn memory_that_is_mapped_anew_during_the_save_fails_it_by_name_with_what_happened() {
    let (directory, path) = place();
    let here = full(PAGES);
    let map = here.memory.map();
    let at = map.blocks()[0].page_address(crate::units::Pages(PAGES - 10)) as usize;
    // Behind the instant, and before the image has a page.
    here.notes.hook("resume", move || {
        // SAFETY: pages of the block, which nobody refers to, are replaced by new ones.
        let mapped = unsafe {
            libc::mmap(
                at as *mut _,
                (5 * PAGE_SIZE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        assert_eq!(mapped as usize, at);
        Ok(())
    });
    let save = here.save(start());
    save.start(&path).unwrap();
    let error = save.wait(Some(LONG)).unwrap_err();
    let name = map.blocks()[0].name().to_owned();
    for part in [format!("block `{name}`"), "mapped anew".to_owned()] {
        assert!(error.message().contains(&part), "{part}: {error}");
    }
    assert!(names(directory.path()).is_empty());
    for page in 0..PAGES {
        here.write(page, 9);
    }
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
}

#[test]
fn a_discard_inside_an_operation_of_the_save_is_refused_instead_of_waiting_for_ever() {
    let (_directory, path) = place();
    let here = full(FEW);
    let (memory, (told, tells)) = (Arc::clone(&here.memory), mpsc::channel());
    let told = Mutex::new(told);
    here.notes.hook("resume", move || {
        let refused = memory.before_discard(GuestAddress(0), Bytes(4096).0);
        let _ = told.lock().unwrap().send(refused);
        Ok(())
    });
    saved(&here, start(), &path).0.unwrap();
    let error = tells.recv_timeout(LONG).unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Callback);
}

#[test]
fn whatever_operation_fails_the_guest_runs_on_and_what_was_there_stays() {
    for operation in ["early_save", "pause", "save", "resume", "thread_start"] {
        let (directory, path) = place();
        std::fs::write(&path, "an older image").unwrap();
        let here = full(FEW);
        here.notes.hook(operation, || no("not today"));
        let (result, _) = saved(&here, start(), &path);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{operation}: {error}");
        assert_eq!(names(directory.path()), ["guest.image"], "{operation}");
        assert_eq!(std::fs::read(&path).unwrap(), b"an older image");
        let expected = match operation {
            "resume" => Whose::Stands,
            _ => Whose::Here,
        };
        assert_eq!(here.memory.ownership().whose(), expected, "{operation}");
        for page in 0..FEW {
            here.write(page, 9);
        }
    }
}

#[test]
fn a_resume_that_writes_more_than_there_is_room_for_fails_the_save_instead_of_waiting_for_ever() {
    let (directory, path) = place();
    let here = full(FEW);
    let ram = here.ram.clone();
    here.notes.hook("resume", move || {
        (0..300).for_each(|page| write(&ram, page, 9));
        Ok(())
    });
    let params = SaveParams {
        max_copy_bytes: 1 << 20,
        ..start()
    };
    let error = saved(&here, params, &path).0.unwrap_err();
    assert_eq!(error.kind(), Kind::NoMemory, "{error}");
    assert!(names(directory.path()).is_empty());
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
}
