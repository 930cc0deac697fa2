//! A restored guest is the saved guest.

use crate::dirty::tracker::StartWith;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::memory::{BlockFlags, Map, MapObserver, Whose};
use crate::snapshot::testing::*;
use crate::snapshot::{RestoreParams, SaveParams, State};
use crate::sys::disk::Caching;
use crate::units::{Bytes, Pages, PAGE_SIZE};
use crate::vmm::{EventKind, Role};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{mpsc, Arc, Mutex, Weak};

#[test]
fn a_guest_that_writes_while_it_is_saved_is_restored_as_it_was_when_it_was_paused() {
    let (_directory, path) = place();
    let notes = Notes {
        blobs: [
            vec![("config", b"two disks".to_vec())],
            vec![("cpu", vec![7; 10_000]), ("empty", Vec::new())],
        ],
        ..Notes::default()
    };
    let here = world_of(PAGES, notes);
    let mut numbers = Numbers::seeded();
    for _ in 0..PAGES / 2 {
        here.fill(numbers.below(PAGES), numbers.next() as u8);
    }
    // The guest: writes data and zeros, everywhere, until it is paused; and again when it is resumed.
    let (notes, ram) = (Arc::clone(&here.notes), here.ram.clone());
    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let guest = {
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        std::thread::spawn(move || {
            while !stop.load(SeqCst) {
                if notes.paused.load(SeqCst) {
                    notes.calls.lock().unwrap().push("stood".into());
                    while notes.paused.load(SeqCst) && !stop.load(SeqCst) {
                        std::thread::yield_now();
                    }
                    continue;
                }
                let page = numbers.below(PAGES);
                let value = (numbers.next() % 3).wrapping_mul(numbers.next());
                write(&ram, page, value);
                written.fetch_add(1, SeqCst);
            }
        })
    };
    // `pause` returns when no write is in progress.
    let (notes, ram) = (Arc::clone(&here.notes), here.ram.clone());
    let (sender, frozen) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    here.notes.hook("pause", move || {
        while !notes.calls().contains(&"stood".to_owned()) {
            std::thread::yield_now();
        }
        use vm_memory::{Bytes, GuestAddress};
        // A save writes guest memory too.
        write(&ram, 3, 0x1234);
        let mut bytes = vec![0; (PAGES * PAGE_SIZE) as usize];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        sender.lock().unwrap().send(bytes).unwrap();
        Ok(())
    });
    let save = here.save(SaveParams::default());
    assert_eq!(save.stats().state, State::Idle);
    save.start(&path).unwrap();
    save.wait(Some(LONG)).unwrap();
    let resumed_at = written.load(SeqCst);
    while written.load(SeqCst) == resumed_at {
        std::thread::yield_now();
    }
    stop.store(true, SeqCst);
    guest.join().unwrap();
    let stats = save.stats();
    assert_eq!((stats.state, stats.error), (State::Completed, None));
    assert_eq!((stats.progress, stats.remaining_bytes), (10_000, 0));
    assert!(stats.downtime.is_some());
    assert_eq!(stats.state_bytes, 10_009);
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
    let calls = here.notes.calls();
    let order = ["early_save", "pause", "save", "resume"];
    let at = order.map(|name| calls.iter().position(|c| c == name).unwrap());
    assert!(at.is_sorted(), "{calls:?}");
    let roles = here.notes.roles.lock().unwrap().clone();
    assert_eq!(roles.iter().filter(|r| **r == Role::Snapshot).count(), 1);
    assert_eq!(roles.iter().filter(|r| **r == Role::Image).count(), 2);

    let there = world();
    // The old contents do not stay.
    for page in 0..PAGES {
        there.fill(page, 0xee);
    }
    let restore = there.restore(RestoreParams::default());
    restore.start(&path).unwrap();
    restore.wait(Some(LONG)).unwrap();
    let frozen = frozen.recv().unwrap();
    let restored = there.contents();
    for (page, (a, b)) in frozen.chunks(4096).zip(restored.chunks(4096)).enumerate() {
        assert!(a == b, "page {page}");
    }
    assert_eq!(there.memory.ownership().whose(), Whose::Here);
    assert_eq!(
        there
            .notes
            .calls()
            .into_iter()
            .filter(|c| c != "thread_start")
            .collect::<Vec<_>>(),
        ["early_load", "load", "load", "loaded", "run"]
    );
    assert_eq!(
        *there.notes.loaded.lock().unwrap(),
        [
            ("config".into(), 0, 10, b"two disks".to_vec()),
            ("cpu".into(), 0, 10, vec![7; 10_000]),
            ("empty".into(), 1, 11, Vec::new()),
        ]
    );
    let stats = restore.stats();
    assert_eq!(stats.data_pages + stats.zero_pages, PAGES);
    assert_eq!((stats.progress, stats.state), (10_000, State::Completed));
    let events = there.notes.events.lock().unwrap();
    assert_eq!(events.last().unwrap().kind, EventKind::Completed);
}

#[test]
fn pages_that_are_zero_are_holes_and_stay_untouched_in_the_guest_that_is_restored() {
    let (_directory, path) = place();
    let here = world();
    for page in [0, 5, PAGES - 1] {
        here.fill(page, 9);
    }
    // Written with zeros.
    for page in 1000..3000 {
        here.fill(page, 0);
    }
    here.save_to(&path).unwrap();
    let file = std::fs::metadata(&path).unwrap();
    assert_eq!(
        file.mode() & 0o777,
        0o600,
        "guest memory is its owner's alone"
    );
    let taken = file.blocks() * 512;
    assert!(taken < 1 << 20, "{taken} bytes on the disk for three pages");
    let there = world();
    there.restore_from(&path).unwrap();
    let map = there.memory.map();
    let mut touched = 0;
    let block = &map.blocks()[0];
    crate::memory::contents::Contents::new()
        .touched(block, crate::units::Pages(0)..block.pages(), |run| {
            touched += run.end.0 - run.start.0;
        })
        .unwrap();
    // The host may have backed a page with a larger one.
    assert!(touched <= 3 * 512, "{touched} pages");
    assert!(here.contents() == there.contents());
}

#[test]
fn however_often_pages_are_written_the_file_is_bounded_by_the_guests_memory() {
    let (_directory, path) = place();
    let here = world();
    // Every page over and over, and all of them once more right before the guest stands: a thread that
    // gets no processor in time must not decide what is tried.
    let last = here.ram.clone();
    let (ram, notes) = (here.ram.clone(), Arc::clone(&here.notes));
    let stop = Arc::new(AtomicBool::new(false));
    let guest = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            for value in 1.. {
                for page in 0..PAGES {
                    if stop.load(SeqCst) || notes.paused.load(SeqCst) {
                        return;
                    }
                    write(&ram, page, value);
                }
            }
        })
    };
    here.notes.hook("pause", {
        let stop = Arc::clone(&stop);
        let guest = std::sync::Mutex::new(Some(guest));
        move || {
            stop.store(true, SeqCst);
            guest.lock().unwrap().take().unwrap().join().unwrap();
            (0..PAGES).for_each(|page| write(&last, page, 7));
            Ok(())
        }
    });
    let save = here.save(SaveParams {
        max_passes: 4,
        downtime_limit: std::time::Duration::from_millis(1),
        ..SaveParams::default()
    });
    save.start(&path).unwrap();
    save.wait(Some(LONG)).unwrap();
    assert!(save.stats().data_pages > PAGES, "pages were written again");
    let file = std::fs::metadata(&path).unwrap();
    let bound = PAGES * PAGE_SIZE + PAGES * 4 + (4 << 20);
    assert!(file.len() <= bound, "{} of {bound}", file.len());
    assert!(file.blocks() * 512 <= bound);
    let there = world();
    there.restore_from(&path).unwrap();
    assert!(here.contents() == there.contents());
}

#[test]
fn a_cap_on_the_bandwidth_holds_for_all_writers_together() {
    let (_directory, path) = place();
    let cap = PAGES * PAGE_SIZE;
    for already_paused in [true, false] {
        let here = world();
        (0..PAGES).for_each(|page| here.write(page, 7));
        let save = here.save(SaveParams {
            max_bandwidth: Some(cap),
            already_paused,
            ..SaveParams::default()
        });
        save.start(&path).unwrap();
        save.wait(Some(LONG)).unwrap();
        let stats = save.stats();
        let bytes = stats.data_pages * PAGE_SIZE;
        assert!(bytes > cap / 2, "{stats:?}");
        // A second, less the credit of the beginning.
        let least = bytes as f64 / cap as f64 * 0.98;
        assert!(stats.elapsed.as_secs_f64() >= least, "{stats:?}");
        let there = world();
        there.restore_from(&path).unwrap();
        assert!(here.contents() == there.contents());
    }
    for wrong in [1, 65_535, (1 << 40) + 1] {
        let params = SaveParams {
            max_bandwidth: Some(wrong),
            ..SaveParams::default()
        };
        let error = params.check().unwrap_err();
        assert!(
            error.message().contains("65536 to 1099511627776"),
            "{error}"
        );
    }
}

#[test]
fn the_figures_of_a_save_and_of_its_restore_tell_the_length_of_the_file() {
    let (_directory, path) = place();
    let here = world();
    here.fill(7, 7);
    let save = here.save(SaveParams::default());
    save.start(&path).unwrap();
    save.wait(Some(LONG)).unwrap();
    let there = world();
    let restore = there.restore(RestoreParams::default());
    assert_eq!(restore.stats().file_bytes, 0, "no file is known yet");
    restore.start(&path).unwrap();
    restore.wait(Some(LONG)).unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    assert_eq!(save.stats().file_bytes, length);
    assert_eq!(restore.stats().file_bytes, length);
}

#[test]
fn a_page_that_becomes_zero_between_two_passes_is_a_hole_again() {
    let (_directory, path) = place();
    let here = world();
    for page in 0..4096 {
        here.fill(page, 5);
    }
    let ram = here.ram.clone();
    here.notes.hook("pause", move || {
        use vm_memory::{Bytes, GuestAddress};
        let zeros = vec![0; 4000 * PAGE_SIZE as usize];
        ram.write_slice(&zeros, GuestAddress(0)).unwrap();
        Ok(())
    });
    here.save_to(&path).unwrap();
    let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(taken < 2 << 20, "{taken} bytes on the disk for 96 pages");
    let there = world();
    there.restore_from(&path).unwrap();
    assert!(here.contents() == there.contents());
}

#[test]
fn blocks_that_come_and_go_during_a_save_are_those_of_the_moment_of_the_pause() {
    let (_directory, path) = place();
    let here = world();
    here.fill(7, 7);
    let goes = Plugged::new(600);
    let comes = Arc::new(Plugged::new(300));
    goes.fill(1);
    comes.fill(2);
    goes.add_to(&here.memory, "goes", BlockFlags::default());
    let (memory, new) = (Arc::clone(&here.memory), Arc::clone(&comes));
    here.notes.hook("pause", move || {
        let goes = memory.map().block_named("goes").unwrap().id();
        memory.remove_block(goes)?;
        let rom = BlockFlags {
            rom: true,
            ..BlockFlags::default()
        };
        new.add_to(&memory, "comes", rom);
        Ok(())
    });
    here.save_to(&path).unwrap();
    let image = Image::open(&path, Caching::Cached).unwrap();
    let names: Vec<_> = image
        .index()
        .blocks
        .iter()
        .map(|b| b.name.as_str())
        .collect();
    let ours = here.memory.map();
    assert_eq!(names, [ours.blocks()[0].name(), "comes"]);
    // A guest with the same blocks accepts the image; for another one the error says what is
    // missing.
    let there = world();
    let error = there.restore_from(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Layout);
    assert!(
        error.message().contains("block `comes` of 1228800 bytes"),
        "{error}"
    );
    assert_eq!(there.memory.ownership().whose(), Whose::Empty);
    let new = Plugged::new(300);
    let added = there.notes.loaded.lock().unwrap().len();
    assert_eq!(added, 0, "nothing was loaded");
    let rom = BlockFlags {
        rom: true,
        ..BlockFlags::default()
    };
    new.add_to(&there.memory, "comes", rom);
    there.restore_from(&path).unwrap();
    assert!(new.bytes().iter().all(|b| *b == 2));
    drop(there);
}

#[test]
fn layouts_that_differ_are_refused_with_each_difference_before_anything_is_written() {
    let (_directory, path) = place();
    let here = world();
    here.fill(0, 1);
    here.save_to(&path).unwrap();
    let there = world_of(PAGES + 1, Notes::default());
    there.fill(0, 3);
    let more = Plugged::new(16);
    more.add_to(&there.memory, "more", BlockFlags::default());
    let before = there.contents();
    let error = there.restore_from(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Layout, "{error}");
    let (theirs, ours) = (PAGES * PAGE_SIZE, (PAGES + 1) * PAGE_SIZE);
    let difference = format!("has {theirs} bytes in the image and {ours} in the guest");
    for words in [&difference, "block `more` of 65536 bytes", "guest.image"] {
        assert!(error.message().contains(words), "{words}: {error}");
    }
    assert!(before == there.contents());
    drop(there);
}

#[test]
fn a_guest_that_is_paused_already_is_saved_in_one_pass_and_stays_paused() {
    let (_directory, path) = place();
    let here = world();
    here.fill(77, 1);
    here.notes.paused.store(true, SeqCst);
    let save = here.save(SaveParams {
        already_paused: true,
        ..SaveParams::default()
    });
    save.start(&path).unwrap();
    save.wait(Some(LONG)).unwrap();
    assert_eq!((save.stats().pass, save.stats().downtime), (1, None));
    let calls = here.notes.calls();
    assert!(!calls.contains(&"pause".into()) && !calls.contains(&"resume".into()));
    // The VMM, which paused it, starts it again without a word here.
    assert_eq!(here.memory.ownership().whose(), Whose::Unknown);
    assert!(here.memory.ownership().kick(|| ()).is_some());
    let there = world();
    let restore = there.restore(RestoreParams {
        stay_paused: true,
        ..RestoreParams::default()
    });
    restore.start(&path).unwrap();
    restore.wait(Some(LONG)).unwrap();
    assert!(!there.notes.calls().contains(&"run".into()));
    assert_eq!(there.memory.ownership().whose(), Whose::Stands);
    assert!(here.contents() == there.contents());
    // A restored guest can be saved again, with the same result.
    let again = path.with_extension("again");
    there.memory.runs_here().unwrap();
    there.save_to(&again).unwrap();
    let bytes = [&path, &again].map(|path| {
        let mut bytes = std::fs::read(path).unwrap();
        // Each image has a number of its own, which its header's checksum covers.
        bytes[36..52].fill(0);
        bytes[4092..4096].fill(0);
        bytes
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn a_guest_that_is_to_stay_paused_does() {
    let (_directory, path) = place();
    let here = world();
    let save = here.save(SaveParams {
        stay_paused: true,
        direct: false,
        writers: 1,
        ..SaveParams::default()
    });
    save.start(&path).unwrap();
    save.wait(Some(LONG)).unwrap();
    assert!(here.notes.paused.load(SeqCst));
    assert_eq!(here.memory.ownership().whose(), Whose::Stands);
}

#[test]
fn a_block_added_after_the_last_look_at_what_is_pending_is_never_in_the_image_without_its_contents()
{
    let (_directory, path) = place();
    let here = world();
    here.fill(7, 7);
    let late = Arc::new(Plugged::new(300));
    late.fill(0x5a);
    let (memory, new) = (Arc::clone(&here.memory), Arc::clone(&late));
    let added = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let adds = Arc::clone(&added);
    // On the save's thread, with the guest paused.
    here.notes.hook("save", move || {
        let (memory, new) = (Arc::clone(&memory), Arc::clone(&new));
        let adds = Arc::clone(&adds);
        after_the_look_at_pending(move || {
            new.add_to(&memory, "late", BlockFlags::default());
            adds.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        Ok(())
    });
    here.save_to(&path).unwrap();
    assert!(added.load(std::sync::atomic::Ordering::SeqCst));
    // The block came after the moment of the image.
    let image = Image::open(&path, Caching::Cached).unwrap();
    let blocks = &image.index().blocks;
    assert!(blocks.iter().all(|block| block.name != "late"));
    let there = world();
    there.restore_from(&path).unwrap();
    assert!(here.contents() == there.contents());
}

/// Refuses the removal of a block, after `go` was said.
struct Refuses {
    asked: Mutex<mpsc::Sender<()>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl MapObserver for Refuses {
    fn map_changes(&self, old: &Arc<Map>, new: &Arc<Map>) -> Result<()> {
        if new.blocks().len() >= old.blocks().len() {
            return Ok(());
        }
        self.asked.lock().unwrap().send(()).unwrap();
        self.go.lock().unwrap().recv_timeout(LONG).unwrap();
        Err(Error::new(Kind::Refused, "the block stays"))
    }
}

#[test]
fn a_block_whose_removal_is_refused_after_the_last_look_is_in_the_image_with_all_its_pages() {
    const PLUG: u64 = 300;
    let (_directory, path) = place();
    let here = world_of(16, Notes::default());
    let plug = Arc::new(Plugged::new(PLUG));
    plug.fill(1);
    plug.add_to(&here.memory, "plug", BlockFlags::default());
    let id = here.memory.find_block("plug").unwrap();
    let (asked, is_asked) = mpsc::channel();
    let (say_go, go) = mpsc::channel();
    let (asked, go) = (Mutex::new(asked), Mutex::new(go));
    // Asked after the save's tracker, which was made before and has set the pages aside by then.
    let refuses = Arc::new(Refuses { asked, go });
    here.memory
        .observe(Arc::downgrade(&refuses) as Weak<dyn MapObserver>);
    let (memory, tracker, new) = (
        Arc::clone(&here.memory),
        Arc::clone(&here.tracker),
        Arc::clone(&plug),
    );
    let (is_asked, say_go) = (Mutex::new(is_asked), Mutex::new(say_go));
    let removal = Arc::new(Mutex::new(None));
    let removes = Arc::clone(&removal);
    // On the save's thread, with the guest paused: the block's newest contents are pending when its
    // removal begins. The removal is refused only after the save has looked at what is pending.
    here.notes.hook("save", move || {
        new.fill(2);
        tracker.mark_block(id, Bytes(0), Pages(PLUG).bytes().0);
        // Another consumer's start harvests for the save's.
        tracker.consumer().start(StartWith::Nothing)?;
        let memory = Arc::clone(&memory);
        *removes.lock().unwrap() = Some(std::thread::spawn(move || memory.remove_block(id)));
        is_asked.lock().unwrap().recv_timeout(LONG).unwrap();
        let say_go = say_go.lock().unwrap().clone();
        after_the_look_at_pending(move || say_go.send(()).unwrap());
        Ok(())
    });
    here.save_to(&path).unwrap();
    let removal = removal.lock().unwrap().take().unwrap();
    let refused = removal.join().unwrap().unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused, "{refused}");
    let there = world_of(16, Notes::default());
    let copy = Plugged::new(PLUG);
    copy.add_to(&there.memory, "plug", BlockFlags::default());
    there.restore_from(&path).unwrap();
    assert!(copy.bytes() == plug.bytes());
    drop(there);
    drop(here);
}
