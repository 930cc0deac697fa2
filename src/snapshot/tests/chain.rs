//! Each image of a chain is the guest at its instant, whatever became of the saves in between.

use super::instant::{busy, holds, start};
use crate::dirty::tracker::StartWith;
use crate::dirty::When;
use crate::error::{Kind, Result};
use crate::memory::{BlockFlags, Whose};
use crate::migrate::Blockers;
use crate::snapshot::testing::*;
use crate::snapshot::{merge, Chain, RestoreParams, Save, SaveParams, Stats};
use crate::sys::kernel::plan::{Call, Fault, Scope};
use crate::units::{Pages, PAGE_SIZE};
use crate::vmm::Vmm;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;

pub(super) fn instants() -> [SaveParams; 2] {
    [SaveParams::default(), start()]
}

/// The next image of a chain, at `path`.
pub(super) fn next(here: &World, chain: &Chain, params: SaveParams, path: &Path) -> Result<Stats> {
    let vmm: Arc<dyn Vmm> = Arc::<Notes>::clone(&here.notes);
    let save = Save::in_chain(chain, Blockers::new(), vmm, params)?;
    save.start(path)?;
    save.wait(Some(LONG))?;
    Ok(save.stats())
}

/// The paths of a chain's images.
pub(super) fn paths(directory: &tempfile::TempDir, count: usize) -> Vec<PathBuf> {
    let name = |number| directory.path().join(format!("image.{number}"));
    (0..count).map(name).collect()
}

fn chain_of(here: &World) -> Chain {
    Chain::new(Arc::clone(&here.tracker))
}

fn lazily_holds(path: &Path, pages: u64, expected: &[u8]) {
    let there = world_of(pages, Notes::default());
    let restore = there.restore(RestoreParams {
        lazy: true,
        ..RestoreParams::default()
    });
    restore.start(path).unwrap();
    restore.finish(Some(LONG)).unwrap();
    assert!(there.contents() == expected, "restored lazily");
}

/// A busy guest is saved five times, and some saves in between fail at a call of the kernel's.
fn five_of(here: &World, choose: impl Fn(&mut Numbers) -> SaveParams) {
    let (directory, _) = place();
    let paths = paths(&directory, 5);
    let mut numbers = Numbers::seeded();
    let ram = here.ram.clone();
    // Most pages are never written again, so that they come from old images.
    let guest = busy(here, 2, move |numbers| {
        let page = numbers.below(PAGES) * numbers.below(PAGES) / PAGES;
        let value = (numbers.next() % 3).wrapping_mul(numbers.next());
        write(&ram, page, value);
        std::thread::yield_now();
    });
    guest.goes_on(300);
    let chain = chain_of(here);
    let mut instants = Vec::new();
    let mut failed = 0;
    for path in &paths {
        loop {
            let scope = Scope::default();
            let calls = [
                ("pwrite", numbers.below(12)),
                ("fsync", 0),
                ("rename", 0),
                ("pwrite", 1 << 40),
            ];
            let (name, number) = calls[numbers.below(4) as usize];
            for role in ["brant-image", "brant-snapshot"] {
                let fault = Fault::Error(libc::ENOSPC);
                scope.plan(Call { role, name, number }, fault);
            }
            let params = choose(&mut numbers);
            let result = scope.enter(|| next(here, &chain, params, path));
            guest.goes_on(100);
            match result {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), Kind::Kernel, "{error}"),
            }
            failed += 1;
        }
        instants.push(guest.frozen.lock().unwrap().clone());
    }
    guest.ends();
    println!("{failed} saves failed");
    assert_eq!(chain.images(), 5);
    for (path, instant) in paths.iter().zip(&instants) {
        holds(path, PAGES, instant);
    }
    lazily_holds(&paths[4], PAGES, &instants[4]);
    for (number, path) in paths.iter().enumerate().skip(3) {
        let whole = directory.path().join("whole");
        merge(path, &whole).unwrap();
        holds(&whole, PAGES, &instants[number]);
    }
}

#[test]
fn each_image_of_a_chain_whose_instant_is_the_end_is_the_guest_at_its_instant() {
    five_of(&world(), |_| SaveParams::default());
}

#[test]
fn each_image_of_a_chain_whose_instant_is_the_start_is_the_guest_at_its_instant() {
    five_of(&world(), |_| start());
    five_of(&shared_world_of(PAGES, Notes::default()).0, |_| start());
}

#[test]
fn the_images_of_one_chain_may_have_either_instant() {
    five_of(&world(), |numbers| instants()[numbers.below(2) as usize]);
}

#[test]
fn an_image_of_changes_is_as_large_as_what_changed_and_a_merged_one_equals_a_full_one() {
    for params in instants() {
        let (directory, full) = place();
        let paths = paths(&directory, 3);
        let here = world();
        for page in 0..PAGES {
            here.fill(page, page as u8 | 1);
        }
        let chain = chain_of(&here);
        let first = next(&here, &chain, params, &paths[0]).unwrap();
        assert_eq!((first.data_pages, chain.images()), (PAGES, 1));
        let changed: Vec<u64> = (0..PAGES).step_by(911).collect();
        for (number, page) in changed.iter().enumerate() {
            here.fill(*page, number as u8 % 4);
        }
        let second = next(&here, &chain, params, &paths[1]).unwrap();
        let zero = changed.len().div_ceil(4) as u64;
        assert_eq!(second.zero_pages, zero, "{params:?}");
        assert_eq!(second.data_pages, changed.len() as u64 - zero);
        // Nothing changed.
        let third = next(&here, &chain, params, &paths[2]).unwrap();
        assert_eq!(third.data_pages + third.zero_pages, 0);
        let bytes = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
        // Header, index and table rows; the first two of the file system's own blocks for each page.
        let most = (changed.len() as u64 * 3 + 16) * PAGE_SIZE;
        assert!(bytes(&paths[1]) <= most, "{} bytes", bytes(&paths[1]));
        assert!(bytes(&paths[2]) <= 16 * PAGE_SIZE, "{}", bytes(&paths[2]));
        here.save_to(&full).unwrap();
        let whole = directory.path().join("whole");
        merge(&paths[2], &whole).unwrap();
        let pages = |path: &Path| {
            let image = crate::image::Image::open(path, crate::sys::disk::Caching::Cached).unwrap();
            image.index().blocks.clone()
        };
        // Names, places and the checksums of all checksums.
        assert_eq!(pages(&whole), pages(&full));
        let contents = here.contents();
        for path in paths[1..].iter().chain([&whole, &full]) {
            holds(path, PAGES, &contents);
        }
        // The newest may be replaced by a full image of itself, and the others may go then.
        merge(&paths[2], &paths[2]).unwrap();
        std::fs::remove_file(&paths[0]).unwrap();
        holds(&paths[2], PAGES, &contents);
    }
}

#[test]
fn other_consumers_and_saves_without_the_chain_take_nothing_from_it() {
    for params in instants() {
        let (directory, other) = place();
        let paths = paths(&directory, 2);
        let here = world_of(FEW, Notes::default());
        let chain = chain_of(&here);
        next(&here, &chain, params, &paths[0]).unwrap();
        let consumer = here.tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        // Found by others' syncs before the next save, in its pause, and by another save.
        here.fill(5, 5);
        consumer.sync(When::Running).unwrap();
        here.fill(6, 6);
        here.save_to(&other).unwrap();
        here.fill(7, 7);
        let (tracker, ram) = (Arc::clone(&here.tracker), here.ram.clone());
        here.notes.hook("save", move || {
            write(&ram, 8, 8);
            let consumer = tracker.consumer();
            consumer.start(StartWith::Nothing)?;
            consumer.sync(When::Running).map(drop)
        });
        let stats = next(&here, &chain, params, &paths[1]).unwrap();
        assert_eq!(stats.data_pages, 4);
        holds(&paths[1], FEW, &here.contents());
    }
}

/// Example of the loss: a save takes page 5, the disk is full, and nobody writes to page 5 again.
#[test]
fn what_a_failed_save_has_taken_is_in_the_next_image() {
    for params in instants() {
        let (directory, _) = place();
        let paths = paths(&directory, 2);
        let here = world_of(FEW, Notes::default());
        let chain = chain_of(&here);
        next(&here, &chain, params, &paths[0]).unwrap();
        [5, 6, 700].into_iter().for_each(|page| here.fill(page, 5));
        let scope = Scope::default();
        for role in ["brant-image", "brant-snapshot"] {
            let (name, number) = ("fsync", 0);
            scope.plan(Call { role, name, number }, Fault::Error(libc::ENOSPC));
        }
        let failed = scope.enter(|| next(&here, &chain, params, &paths[1]));
        assert_eq!(failed.unwrap_err().kind(), Kind::Kernel);
        let stats = next(&here, &chain, params, &paths[1]).unwrap();
        assert_eq!(stats.data_pages, 3);
        holds(&paths[1], FEW, &here.contents());
    }
}

/// A device that reports all of its pages at every sync would hold the guest up for as long as somebody
/// syncs.
#[test]
fn a_pause_ends_although_another_consumer_finds_pages_all_the_time() {
    let (directory, _) = place();
    let paths = paths(&directory, 3);
    let here = Arc::new(world_of(FEW, Notes::default()));
    let chain = chain_of(&here);
    next(&here, &chain, SaveParams::default(), &paths[0]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let device = {
        let (here, stop) = (Arc::clone(&here), Arc::clone(&stop));
        std::thread::spawn(move || {
            let consumer = here.tracker.consumer();
            consumer.start(StartWith::Nothing).unwrap();
            while !stop.load(SeqCst) {
                here.fill(9, 9);
                consumer.sync(When::Running).unwrap();
            }
        })
    };
    for path in &paths[1..] {
        next(&here, &chain, SaveParams::default(), path).unwrap();
    }
    stop.store(true, SeqCst);
    device.join().unwrap();
    holds(&paths[2], FEW, &here.contents());
}

#[test]
fn a_block_may_come_and_go_between_two_images() {
    for params in instants() {
        let (directory, _) = place();
        let paths = paths(&directory, 4);
        let here = world_of(FEW, Notes::default());
        here.fill(3, 3);
        let chain = chain_of(&here);
        next(&here, &chain, params, &paths[0]).unwrap();
        let more = Plugged::new(600);
        more.fill(7);
        more.add_to(&here.memory, "more", BlockFlags::default());
        let stats = next(&here, &chain, params, &paths[1]).unwrap();
        assert_eq!(stats.data_pages, 600);
        next(&here, &chain, params, &paths[2]).unwrap();
        // The same name, and other memory.
        let block = here.memory.map().block_named("more").unwrap().id();
        here.memory.remove_block(block).unwrap();
        let other = Plugged::new(900);
        other.fill(8);
        other.add_to(&here.memory, "more", BlockFlags::default());
        next(&here, &chain, params, &paths[3]).unwrap();
        for (path, pages, value) in [
            (&paths[1], 600, 7),
            (&paths[2], 600, 7),
            (&paths[3], 900, 8),
        ] {
            let there = world_of(FEW, Notes::default());
            let plugged = Plugged::new(pages);
            plugged.add_to(&there.memory, "more", BlockFlags::default());
            there.restore_from(path).unwrap();
            assert!(plugged.bytes().iter().all(|b| *b == value));
            assert!(there.contents() == here.contents());
        }
        let block = here.memory.map().block_named("more").unwrap().id();
        here.memory.remove_block(block).unwrap();
        next(&here, &chain, params, &directory.path().join("last")).unwrap();
        holds(&directory.path().join("last"), FEW, &here.contents());
    }
}

#[test]
fn pages_that_change_without_a_write_are_in_the_next_image() {
    for params in instants() {
        let (directory, _) = place();
        let paths = paths(&directory, 3);
        let here = world_of(FEW, Notes::default());
        for page in 0..FEW {
            here.fill(page, 1);
        }
        here.memory.set_must_tell_host(true);
        let chain = chain_of(&here);
        next(&here, &chain, params, &paths[0]).unwrap();
        // The guest gives pages back, and the VMM discards them.
        let at = |page: u64| vm_memory::GuestAddress(page * PAGE_SIZE);
        here.memory.mark_ballooned(at(100), 700 * PAGE_SIZE);
        let block = Arc::clone(&here.memory.map().blocks()[0]);
        // SAFETY: the block's memory, of which nobody holds a reference.
        unsafe {
            let host = block.host().add(100 * PAGE_SIZE as usize);
            libc::madvise(host.cast(), 700 * PAGE_SIZE as usize, libc::MADV_DONTNEED);
        }
        let stats = next(&here, &chain, params, &paths[1]).unwrap();
        assert_eq!((stats.data_pages, stats.zero_pages), (0, 700));
        holds(&paths[1], FEW, &here.contents());
        // Told once; and a page that the guest uses again is there again.
        here.memory.clear_ballooned(at(150), PAGE_SIZE);
        here.fill(150, 9);
        let stats = next(&here, &chain, params, &paths[2]).unwrap();
        assert_eq!((stats.data_pages, stats.zero_pages), (1, 0));
        holds(&paths[2], FEW, &here.contents());
    }
}

#[test]
fn a_guest_that_was_paused_by_its_vmm_or_stays_paused_can_have_a_chain_too() {
    let (directory, _) = place();
    let paths = paths(&directory, 3);
    let here = world_of(FEW, Notes::default());
    let chain = chain_of(&here);
    let paused = SaveParams {
        already_paused: true,
        ..SaveParams::default()
    };
    let stays = SaveParams {
        stay_paused: true,
        ..SaveParams::default()
    };
    for (number, params) in [paused, stays, paused].into_iter().enumerate() {
        here.fill(40 + number as u64, 4);
        let stats = next(&here, &chain, params, &paths[number]).unwrap();
        assert_eq!(stats.data_pages, 1);
        holds(&paths[number], FEW, &here.contents());
        if params.stay_paused {
            here.memory.runs_here().unwrap();
        }
    }
}

#[test]
fn a_chain_whose_memory_was_filled_from_elsewhere_is_refused_with_what_to_do() {
    let (directory, other) = place();
    let paths = paths(&directory, 2);
    let here = world_of(FEW, Notes::default());
    here.save_to(&other).unwrap();
    let chain = chain_of(&here);
    next(&here, &chain, SaveParams::default(), &paths[0]).unwrap();
    here.memory.give_up().unwrap();
    here.restore_from(&other).unwrap();
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
    for params in instants() {
        let error = next(&here, &chain, params, &paths[1]).unwrap_err();
        assert_eq!(error.kind(), Kind::State);
        for words in ["filled by a restore", "image.0", "begin a new chain"] {
            assert!(error.message().contains(words), "{error}");
        }
    }
    assert_eq!(names(directory.path()), ["guest.image", "image.0"]);
    let chain = chain_of(&here);
    next(&here, &chain, SaveParams::default(), &paths[1]).unwrap();
    holds(&paths[1], FEW, &here.contents());
}

#[test]
fn a_chain_that_is_dropped_stops_the_logs_and_one_without_an_image_begins_with_a_full_one() {
    let (directory, _) = place();
    let paths = paths(&directory, 2);
    let here = world_of(FEW, Notes::default());
    let chain = chain_of(&here);
    let fails = Arc::new(AtomicBool::new(true));
    let hook = Arc::clone(&fails);
    here.notes.hook("save", move || match hook.load(SeqCst) {
        true => no("the VMM cannot save"),
        false => Ok(()),
    });
    for params in instants() {
        next(&here, &chain, params, &paths[0]).unwrap_err();
        assert!(!here.tracker.is_started(), "{:?}", params.instant);
    }
    fails.store(false, SeqCst);
    here.fill(3, 3);
    let stats = next(&here, &chain, SaveParams::default(), &paths[0]).unwrap();
    assert_eq!(Pages(stats.data_pages + stats.zero_pages), Pages(FEW));
    assert!(here.tracker.is_started());
    let again = chain.clone();
    drop(chain);
    next(&here, &again, SaveParams::default(), &paths[1]).unwrap();
    drop(again);
    assert!(!here.tracker.is_started());
    holds(&paths[1], FEW, &here.contents());
}
