//! A guest that starts before its memory is here: it finds every page as it was saved, or a signal,
//! and never anything else.

use crate::error::{Error, Kind};
use crate::image::format::HEADER_LEN;
use crate::image::Image;
use crate::memory::{BlockDescription, HostMemory, Memory, Whose};
use crate::snapshot::testing::*;
use crate::snapshot::{Restore, RestoreParams, State};
use crate::sys::disk::Caching;
use crate::sys::kernel::plan::{Call, Scope};
use crate::sys::kernel::plausible::faults;
use crate::units::{Bytes, PAGE_SIZE};
use crate::vmm::EventKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

const LAZY: RestoreParams = RestoreParams {
    readers: 3,
    direct: true,
    max_state_bytes: 1 << 20,
    stay_paused: false,
    lazy: true,
    trusted: false,
};

/// A guest with every kind of page, saved to `path`, and its contents.
fn saved(pages: u64, path: &Path) -> Vec<u8> {
    let notes = Notes {
        blobs: [vec![("early", vec![3; 77])], vec![("cpu", vec![4; 5000])]],
        ..Notes::default()
    };
    let here = world_of(pages, notes);
    for page in (0..pages).filter(|page| page % 7 < 3 || page % 900 > 700) {
        here.fill(page, page as u8 | 1);
        here.write(page, page * 77 + 1);
    }
    here.save_to(path).unwrap();
    here.contents()
}

/// A guest whose memory has something else in it.
fn other(pages: u64) -> World {
    let there = world_of(pages, Notes::default());
    (0..pages).for_each(|page| there.fill(page, 0xee));
    there
}

/// A page's bytes, or `None` where an access raises a signal: the kernel's own access says so.
fn page(world: &World, page: u64) -> Option<Vec<u8>> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let length = PAGE_SIZE as usize;
    let at = world.memory.map().blocks()[0]
        .host()
        .wrapping_add(page as usize * length);
    // SAFETY: a page of the guest's; the kernel says whether it can be read.
    let put = unsafe { libc::write(writer.as_raw_fd(), at.cast(), length) };
    if put < 0 {
        return None;
    }
    let mut bytes = vec![0; length];
    std::io::Read::read_exact(&mut reader, &mut bytes).unwrap();
    Some(bytes)
}

fn wanted(contents: &[u8], page: u64) -> &[u8] {
    let length = PAGE_SIZE as usize;
    &contents[page as usize * length..][..length]
}

/// A gate at which the threads that read the image wait.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
    fn pass(&self) {
        let closed = self.0.lock().unwrap();
        drop(self.1.wait_while(closed, |open| !*open).unwrap());
    }
    /// A gate for the image threads of `world`.
    fn of(world: &World) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        let ours = Arc::clone(&gate);
        world.notes.hook("thread_start", move || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            if name.trim_end() == "brant-image" {
                ours.pass();
            }
            Ok(())
        });
        gate
    }
}

fn start(world: &World, params: RestoreParams, path: &Path) -> Restore {
    let restore = world.restore(params);
    restore.start(path).unwrap();
    restore
}

/// Waits until `run` has returned.
fn wait_running(restore: &Restore) {
    while restore.stats().state != State::Filling && !restore.stats().state.is_over() {
        std::thread::yield_now();
    }
}

/// A guest of so many pages that runs before any of them is here: the threads that read the image wait.
fn held(pages: u64, params: RestoreParams, path: &Path) -> (Arc<World>, Arc<Gate>, Restore) {
    let there = Arc::new(other(pages));
    let gate = Gate::of(&there);
    let restore = start(&there, params, path);
    wait_running(&restore);
    (there, gate, restore)
}

#[test]
fn a_guest_that_starts_at_once_finds_every_page_as_it_was_saved() {
    let (_directory, path) = place();
    let contents = Arc::new(saved(FEW, &path));
    for hurry in [false, true] {
        let there = Arc::new(other(FEW));
        let ownership = Arc::clone(there.memory.ownership());
        there.notes.hook("run", move || {
            assert_eq!(ownership.whose(), Whose::Incomplete);
            Ok(())
        });
        let restore = start(&there, LAZY, &path);
        let mut numbers = Numbers::seeded();
        let readers: Vec<_> = (0..3u64)
            .map(|n| {
                let (there, contents) = (Arc::clone(&there), Arc::clone(&contents));
                let seed = numbers.next();
                std::thread::spawn(move || {
                    while !there.notes.calls().contains(&"run".into()) {
                        std::thread::yield_now();
                    }
                    let mut numbers = Numbers(seed);
                    for i in 0..2000 {
                        // One of them goes through memory page by page.
                        let at = if n == 0 { i } else { numbers.below(FEW) };
                        let found = page(&there, at).unwrap();
                        assert!(found == wanted(&contents, at), "page {at}");
                    }
                })
            })
            .collect();
        match hurry {
            true => restore.finish(Some(LONG)).unwrap(),
            false => restore.wait(Some(LONG)).unwrap(),
        }
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
        assert!(there.contents() == *contents);
        assert_eq!(there.memory.ownership().whose(), Whose::Here);
        let roles = there.notes.roles.lock().unwrap().clone();
        assert!(roles.contains(&crate::vmm::Role::Fault), "{roles:?}");
        let stats = restore.stats();
        assert_eq!((stats.state, stats.progress), (State::Completed, 10_000));
        assert_eq!((stats.lost_pages, stats.remaining_bytes), (0, 0));
        assert_eq!(stats.data_pages + stats.zero_pages, FEW);
        // The guest is as any other: it can be saved.
        there.save_to(&path).unwrap();
    }
}

#[test]
fn pages_that_lie_alone_are_read_on_the_thread_that_serves_faults() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    if crate::sys::disk::open_for_reading(&path, Caching::Direct).is_err() {
        eprintln!("skipped: no reads past the page cache here");
        return;
    }
    let there = other(FEW);
    let scope = Scope::default();
    let restore = scope.enter(|| start(&there, LAZY, &path));
    wait_running(&restore);
    for at in (0..FEW).rev().step_by(20) {
        let found = page(&there, at).unwrap();
        assert!(found == wanted(&contents, at), "page {at}");
    }
    restore.finish(Some(LONG)).unwrap();
    assert!(there.contents() == contents);
    let calls = scope.calls();
    let on_fault = |name| {
        let is = |call: &&Call| call.role == crate::vmm::Role::Fault.name() && call.name == name;
        calls.iter().filter(is).count()
    };
    assert!(on_fault("io_submit") > 0);
    assert_eq!(on_fault("pread"), 0, "a fault waited for the disk");
}

#[test]
fn load_and_run_may_touch_memory_that_is_not_here() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let there = Arc::new(other(FEW));
    let ours = Arc::downgrade(&there);
    let expected = contents.clone();
    there.notes.hook("load", move || {
        let there = ours.upgrade().unwrap();
        for at in [2999, 0, 1500] {
            assert!(
                page(&there, at).unwrap() == wanted(&expected, at),
                "page {at}"
            );
        }
        Ok(())
    });
    start(&there, LAZY, &path).finish(Some(LONG)).unwrap();
    assert!(there.contents() == contents);
}

#[test]
fn until_all_is_here_other_users_are_told_how_much_is_left_and_a_page_comes_as_it_is_asked_for() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let (there, gate, restore) = held(FEW, LAZY, &path);
    let refused = there.save_to(&path).unwrap_err();
    assert_eq!(refused.kind(), Kind::Busy);
    assert!(
        refused.message().contains("3000 pages are left"),
        "{refused}"
    );
    let tracked = there
        .tracker
        .consumer()
        .start(crate::dirty::tracker::StartWith::Nothing);
    assert_eq!(tracked.unwrap_err().kind(), Kind::Busy);
    assert_eq!(
        restore
            .wait(Some(std::time::Duration::ZERO))
            .unwrap_err()
            .kind(),
        Kind::Pending
    );
    let reader = {
        let there = Arc::clone(&there);
        std::thread::spawn(move || page(&there, 777).unwrap())
    };
    while restore.stats().faults == 0 {
        std::thread::yield_now();
    }
    gate.open();
    assert!(reader.join().unwrap() == wanted(&contents, 777));
    restore.finish(Some(LONG)).unwrap();
    let stats = restore.stats();
    assert!(stats.urgent_pages >= 1 && !stats.fault_max.is_zero());
    assert!(stats.fault_p50 <= stats.fault_p99 && stats.fault_p99 <= stats.fault_max);
}

#[test]
fn a_damaged_page_that_is_found_before_run_fails_the_restore_and_the_memory_can_be_used_again() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let good = std::fs::read(&path).unwrap();
    let at =
        Image::open(&path, Caching::Cached).unwrap().index().blocks[0].offset + 700 * PAGE_SIZE;
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x55; 16], at + 100).unwrap();
    let there = Arc::new(other(FEW));
    let ours = Arc::downgrade(&there);
    there.notes.hook("load", move || {
        // The operation that waits for the page goes on.
        page(&ours.upgrade().unwrap(), 700).unwrap();
        Ok(())
    });
    let error = start(&there, LAZY, &path).wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Image);
    assert!(error.message().contains("page 700"), "{error}");
    assert!(!there.notes.calls().contains(&"run".into()));
    assert_eq!(there.memory.ownership().whose(), Whose::Empty);
    std::fs::write(&path, good).unwrap();
    there.restore_from(&path).unwrap();
    assert!(there.contents() == contents);
}

#[test]
fn a_damaged_page_of_a_guest_that_runs_raises_a_signal_and_is_told_and_all_others_are_right() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let block = Image::open(&path, Caching::Cached).unwrap().index().blocks[0].clone();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let at = block.offset + 708 * PAGE_SIZE;
    file.write_all_at(&[0x55; 16], at + 100).unwrap();
    let (there, gate, restore) = held(FEW, LAZY, &path);
    let waits = {
        let there = Arc::clone(&there);
        std::thread::spawn(move || page(&there, 708))
    };
    gate.open();
    assert_eq!(
        waits.join().unwrap(),
        None,
        "the access of a page that is not right"
    );
    let error = restore.finish(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Image);
    let words = error.message();
    assert!(
        words.contains("1 pages") && words.contains("page 708"),
        "{words}"
    );
    assert_eq!(there.memory.ownership().whose(), Whose::Here);
    for at in 0..FEW {
        let found = page(&there, at);
        let right = found.as_deref() == (at != 708).then(|| wanted(&contents, at));
        assert!(right, "page {at}");
    }
    assert_eq!(restore.stats().lost_pages, 1);
    assert_eq!(there.memory.poisoned_pages(), 1);
    let events = there.notes.events.lock().unwrap();
    let warned = events
        .iter()
        .find(|event| event.kind == EventKind::Warning)
        .unwrap();
    assert!(warned.message.contains("page 708"), "{}", warned.message);
    drop(events);
    // The guest can be saved without that page.
    there.save_to(&path).unwrap();
}

#[test]
fn an_image_that_loses_its_end_or_its_name_while_the_guest_runs_never_makes_wrong_memory() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let there = Arc::new(other(FEW));
    let gate = Gate::of(&there);
    let params = RestoreParams {
        direct: false,
        ..LAZY
    };
    let restore = start(&there, params, &path);
    wait_running(&restore);
    std::fs::remove_file(&path).unwrap();
    gate.open();
    restore.finish(Some(LONG)).unwrap();
    assert!(
        there.contents() == contents,
        "an open file is there without a name"
    );

    let contents = saved(FEW, &path);
    let (there, gate, restore) = held(FEW, params, &path);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(HEADER_LEN as u64).unwrap();
    gate.open();
    let error = restore.finish(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Image);
    assert!(error.message().contains("the file ends"), "{error}");
    let (mut right, mut lost) = (0, 0);
    for at in 0..FEW {
        match page(&there, at) {
            None => lost += 1,
            Some(found) => {
                assert!(found == wanted(&contents, at), "page {at}");
                right += 1;
            }
        }
    }
    assert_eq!(
        (right, lost),
        (FEW - restore.stats().lost_pages, restore.stats().lost_pages)
    );
    assert!(lost > 0);
}

#[test]
fn a_file_that_was_changed_anywhere_gives_the_pages_that_were_saved_or_signals() {
    let (_directory, path) = place();
    let contents = saved(1500, &path);
    let good = std::fs::read(&path).unwrap();
    let mut numbers = Numbers::seeded();
    let (mut whole, mut lost, mut refused) = (0, 0, 0);
    for round in 0..20 {
        let mut bad = good.clone();
        for _ in 0..1 + numbers.below(3) {
            let at = numbers.below(bad.len() as u64) as usize;
            match numbers.below(3) {
                0 => bad[at] ^= 1 << numbers.below(8),
                1 => {
                    let to = (at + 5000).min(bad.len());
                    bad[at..to].fill(numbers.next() as u8);
                }
                _ if round % 4 == 0 => bad.truncate(at),
                _ => bad[at] = bad[at].wrapping_add(1),
            }
            if bad.is_empty() {
                break;
            }
        }
        std::fs::write(&path, &bad).unwrap();
        let (there, gate, restore) = held(1500, LAZY, &path);
        gate.open();
        match restore.finish(Some(LONG)) {
            Ok(()) => {
                whole += 1;
                assert!(there.contents() == contents, "round {round}");
            }
            Err(error) if there.notes.calls().contains(&"run".into()) => {
                lost += 1;
                assert_eq!(error.kind(), Kind::Image, "{error}");
                for at in 0..1500 {
                    let found = page(&there, at);
                    let right = found.is_none_or(|found| found == wanted(&contents, at));
                    assert!(right, "round {round}, page {at}");
                }
            }
            Err(error) => {
                refused += 1;
                assert!(
                    matches!(error.kind(), Kind::Image | Kind::Version),
                    "{error}"
                );
                assert_eq!(there.memory.ownership().whose(), Whose::Empty);
            }
        }
    }
    println!("{whole} whole, {lost} with lost pages, {refused} refused");
    assert!(
        lost > 1,
        "{whole} whole, {lost} with lost pages, {refused} refused"
    );
}

#[test]
fn a_cancel_gives_up_what_is_not_here_and_a_drop_brings_it_in_first() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let (there, gate, restore) = held(FEW, LAZY, &path);
    let waits = {
        let there = Arc::clone(&there);
        std::thread::spawn(move || page(&there, 5))
    };
    while restore.stats().faults == 0 {
        std::thread::yield_now();
    }
    let opens = Arc::clone(&gate);
    // The threads behind the gate are joined by the cancel.
    let opener = std::thread::spawn(move || opens.open());
    restore.cancel();
    opener.join().unwrap();
    assert_eq!(restore.wait(None).unwrap_err().kind(), Kind::Cancelled);
    let found = waits.join().unwrap();
    assert!(found.is_none_or(|found| found == wanted(&contents, 5)));
    for at in 0..FEW {
        let found = page(&there, at);
        assert!(
            found.is_none_or(|found| found == wanted(&contents, at)),
            "page {at}"
        );
    }
    assert_eq!(there.memory.ownership().whose(), Whose::Here);

    let (there, gate, restore) = held(FEW, LAZY, &path);
    let opener = std::thread::spawn(move || gate.open());
    drop(restore);
    opener.join().unwrap();
    assert!(there.contents() == contents);
    assert_eq!(there.memory.ownership().whose(), Whose::Here);
}

#[test]
fn a_guest_that_is_to_stay_paused_or_cannot_be_started_stands_with_its_whole_memory() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let there = other(FEW);
    let params = RestoreParams {
        stay_paused: true,
        ..LAZY
    };
    start(&there, params, &path).finish(Some(LONG)).unwrap();
    assert!(there.contents() == contents);
    assert_eq!(there.memory.ownership().whose(), Whose::Stands);
    assert!(!there.notes.calls().contains(&"run".into()));
    // The VMM may start it before its memory is here.
    let (there, gate, restore) = held(FEW, params, &path);
    there.memory.runs_here().unwrap();
    gate.open();
    restore.finish(Some(LONG)).unwrap();
    assert_eq!(there.memory.ownership().whose(), Whose::Here);

    let there = other(FEW);
    there.notes.hook("run", || no("no vCPU"));
    let error = start(&there, LAZY, &path).finish(Some(LONG)).unwrap_err();
    assert!(error.message().contains("no vCPU"), "{error}");
    assert!(there.contents() == contents);
    assert_eq!(there.memory.ownership().whose(), Whose::Stands);
}

#[test]
fn memory_that_cannot_be_served_is_named_before_anything_of_it_is_touched() {
    let (_directory, path) = place();
    saved(16, &path);
    let file = tempfile::tempfile().unwrap();
    file.set_len(16 * PAGE_SIZE).unwrap();
    let length = (16 * PAGE_SIZE) as usize;
    let (rw, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            rw,
            private,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: the mapping.
    unsafe { at.cast::<u8>().write_volatile(9) };
    let memory = Arc::new(Memory::new().unwrap());
    // SAFETY: mapped until the test's end.
    let host = unsafe { HostMemory::new(at.cast()) };
    let block = BlockDescription::new("ram-0x0", host, Bytes(length as u64));
    memory.add_block(block).unwrap();
    let notes = Arc::new(Notes::default());
    let vmm: Arc<Notes> = Arc::clone(&notes);
    let restore = Restore::new(Arc::clone(&memory), vmm, LAZY).unwrap();
    restore.start(&path).unwrap();
    let error = restore.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("block `ram-0x0`"), "{error}");
    // SAFETY: the mapping, unmapped after its last use.
    unsafe {
        assert_eq!(at.cast::<u8>().read_volatile(), 9);
        drop(restore);
        libc::munmap(at, length);
    }
    assert_eq!(notes.calls(), ["thread_start", "early_load"]);
}

#[test]
fn finishing_is_waiting_for_a_restore_that_fills_memory_first() {
    let (_directory, path) = place();
    let contents = saved(FEW, &path);
    let there = other(FEW);
    let params = RestoreParams {
        lazy: false,
        ..LAZY
    };
    let restore = there.restore(params);
    assert_eq!(restore.finish(None).unwrap_err().kind(), Kind::State);
    restore.start(&path).unwrap();
    restore.finish(Some(LONG)).unwrap();
    assert!(there.contents() == contents);
}

#[test]
fn whatever_call_of_a_lazy_restore_fails_no_page_is_wrong_and_nobody_waits_for_ever() {
    let mut numbers = Numbers::seeded();
    let (_directory, path) = place();
    let contents = saved(700, &path);
    let restore = |scope: &Scope| {
        let there = Arc::new(other(700));
        let over = AtomicBool::new(false);
        let result = std::thread::scope(|threads| {
            threads.spawn(|| {
                // Faults, as long as the restore goes on.
                while !over.load(SeqCst) && !there.notes.calls().contains(&"run".into()) {
                    std::thread::yield_now();
                }
                if there.notes.calls().contains(&"run".into()) {
                    (0..700).step_by(13).for_each(|at| drop(page(&there, at)));
                }
            });
            let result = scope.enter(|| {
                let vmm: Arc<Notes> = Arc::clone(&there.notes);
                let restore = Restore::new(Arc::clone(&there.memory), vmm, LAZY)?;
                restore.start(&path)?;
                restore.finish(Some(LONG))
            });
            over.store(true, SeqCst);
            result
        });
        (there, result)
    };
    let whole = Scope::default();
    restore(&whole).1.unwrap();
    let mut counts = std::collections::BTreeMap::<_, u64>::new();
    for call in whole.calls() {
        *counts.entry((call.role, call.name)).or_default() += 1;
    }
    let (mut failed, mut succeeded) = (0, 0);
    for ((role, name), count) in counts {
        for number in [numbers.below(count)] {
            for fault in faults(name) {
                let scope = Scope::default();
                scope.plan(Call { role, name, number }, *fault);
                let (there, result): (Arc<World>, Result<(), Error>) = restore(&scope);
                let case = format!("{role} {name} {number}: {fault}: {result:?}");
                let ran = there.notes.calls().contains(&"run".into());
                match result {
                    Ok(()) => {
                        succeeded += 1;
                        assert!(there.contents() == contents, "{case}");
                    }
                    Err(_) => {
                        failed += 1;
                        assert!(scope.fired(), "{case}");
                    }
                }
                for at in (0..700).filter(|_| ran) {
                    let found = page(&there, at);
                    let right = found.is_none_or(|found| found == wanted(&contents, at));
                    assert!(right, "{case}: page {at}");
                }
            }
        }
    }
    println!("{failed} failed, {succeeded} succeeded");
    assert!(failed > 10 && succeeded > 10, "{failed}, {succeeded}");
}
