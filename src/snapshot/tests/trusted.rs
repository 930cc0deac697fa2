//! Memory that is mapped from an image which the VMM trusts: as it was saved, the guest's own, and
//! refused by name where it cannot be had.

use crate::error::{Error, Kind};
use crate::memory::Whose;
use crate::snapshot::testing::*;
use crate::snapshot::{merge, Chain, Restore, RestoreParams, SaveInstant, SaveParams};
use crate::sys::uffd::{Faults, Modes};
use crate::units::PAGE_SIZE;
use std::path::Path;
use std::sync::Arc;

const TRUSTED: RestoreParams = RestoreParams {
    readers: 4,
    direct: true,
    max_state_bytes: 1 << 20,
    stay_paused: false,
    lazy: false,
    trusted: true,
};

fn restored(there: &World, path: &Path) -> crate::Result<Restore> {
    let restore = there.restore(TRUSTED);
    restore.start(path)?;
    restore.wait(Some(LONG))?;
    Ok(restore)
}

/// A guest with data, zeros and holes, some of which was written and became zero again while it was
/// saved.
fn saved(path: &Path) -> World {
    let notes = Notes {
        blobs: [Vec::new(), vec![("cpu", vec![1, 2, 3])]],
        ..Notes::default()
    };
    let here = world_of(FEW, notes);
    for page in (0..FEW).filter(|page| page % 3 != 0) {
        here.fill(page, page as u8 | 1);
    }
    let ram = here.ram.clone();
    here.notes.hook("pause", move || {
        use vm_memory::{Bytes, GuestAddress};
        for page in (0..FEW).step_by(5) {
            let at = GuestAddress(page * PAGE_SIZE);
            ram.write_slice(&[0; PAGE_SIZE as usize], at).unwrap();
        }
        Ok(())
    });
    here.save_to(path).unwrap();
    here
}

fn refused(there: &World, path: &Path, kind: Kind, words: &[&str]) {
    let before = there.contents();
    let error = restored(there, path).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    assert_eq!(there.memory.ownership().whose(), Whose::Empty);
    assert!(there.contents() == before);
}

#[test]
fn a_guest_in_a_mapped_image_is_the_saved_one_and_writes_nothing_into_the_file() {
    let (_directory, path) = place();
    let here = saved(&path);
    let file = std::fs::read(&path).unwrap();
    let there = world_of(FEW, Notes::default());
    for page in 0..FEW {
        there.fill(page, 0xee);
    }
    let restore = restored(&there, &path).unwrap();
    assert!(there.contents() == here.contents());
    let stats = restore.stats();
    assert_eq!((stats.progress, stats.remaining_bytes), (10_000, 0));
    assert_eq!(there.memory.ownership().whose(), Whose::Here);
    assert_eq!(there.notes.loaded.lock().unwrap().len(), 1);
    assert!(there.notes.calls().contains(&"run".into()));
    for page in (0..FEW).step_by(7) {
        there.fill(page, 0x77);
        here.fill(page, 0x77);
    }
    assert!(there.contents() == here.contents());
    assert!(std::fs::read(&path).unwrap() == file);
    // It is a guest like any other: what it has only in the file is saved too.
    let again = path.with_extension("again");
    there.save_to(&again).unwrap();
    // The name may lead to another image by now.
    std::fs::rename(&again, &path).unwrap();
    assert!(there.contents() == here.contents());
    let third = world_of(FEW, Notes::default());
    third.restore_from(&path).unwrap();
    assert!(third.contents() == here.contents());
}

#[test]
fn what_cannot_be_mapped_is_refused_by_name_before_anything_is_touched() {
    let (directory, path) = place();
    let here = saved(&path);
    let name = here.memory.map().blocks()[0].name().to_owned();
    let block = format!("block `{name}`");
    let shared = shared_world_of(FEW, Notes::default()).0;
    shared.fill(5, 5);
    refused(
        &shared,
        &path,
        Kind::Unsupported,
        &[&block, "shared memory"],
    );
    // Somebody serves its faults.
    let there = world_of(FEW, Notes::default());
    there.fill(5, 5);
    if let Ok(faults) = Faults::open() {
        let host = there.memory.map().blocks()[0].host() as u64;
        let range = host..host + FEW * PAGE_SIZE;
        let modes = Modes {
            protect: true,
            ..Modes::default()
        };
        faults.register(range.clone(), modes).unwrap();
        refused(&there, &path, Kind::Exists, &[&block, "userfaultfd"]);
        faults.unregister(range).unwrap();
    }
    // An image of older software says nothing of its zero pages.
    let older = directory.path().join("older");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[12] = 0;
    let sum = crc32fast::hash(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&older, &bytes).unwrap();
    refused(
        &there,
        &older,
        Kind::Unsupported,
        &["older", "older software"],
    );
    // An image that holds what changed.
    let chain = Chain::new(Arc::clone(&here.tracker));
    let paths = super::chain::paths(&directory, 2);
    for path in &paths {
        super::chain::next(&here, &chain, SaveParams::default(), path).unwrap();
    }
    refused(&there, &paths[1], Kind::Unsupported, &["image.1", "merge"]);
    let whole = directory.path().join("whole");
    merge(&paths[1], &whole).unwrap();
    restored(&there, &whole).unwrap();
    assert!(there.contents() == here.contents());
    // Both ways at once.
    let there = world_of(FEW, Notes::default());
    let vmm = Arc::clone(&there.notes);
    let both = RestoreParams {
        lazy: true,
        ..TRUSTED
    };
    let error = Restore::new(Arc::clone(&there.memory), vmm, both).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

/// The kernel protects private mappings of tmpfs files; there the save succeeds.
#[test]
fn a_save_of_the_start_says_that_a_mapped_guest_cannot_be_protected_and_what_to_do() {
    let (_directory, path) = place();
    saved(&path);
    let there = world_of(FEW, Notes::default());
    let _restore = restored(&there, &path).unwrap();
    let contents = there.contents();
    let start = SaveParams {
        instant: SaveInstant::Start,
        ..SaveParams::default()
    };
    let again = path.with_extension("again");
    let save = there.save(start);
    save.start(&again).unwrap();
    if let Err(error) = save.wait(Some(LONG)) {
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        for words in [
            "block `",
            "private mapping of a file",
            "as it is at the end",
        ] {
            assert!(error.message().contains(words), "{words}: {error}");
        }
        assert!(!there.notes.calls().contains(&"pause".into()));
        there.save_to(&again).unwrap();
    }
    assert_eq!(there.memory.ownership().whose(), Whose::Here);
    let third = world_of(FEW, Notes::default());
    third.restore_from(&again).unwrap();
    assert!(third.contents() == contents);
}

#[test]
fn a_guest_that_does_not_come_leaves_memory_that_any_restore_takes() {
    let (_directory, path) = place();
    let here = saved(&path);
    let there = world_of(FEW, Notes::default());
    there.notes.hook("load", || {
        Err(Error::new(Kind::Busy, "the VMM cannot load"))
    });
    restored(&there, &path).unwrap_err();
    assert_eq!(there.memory.ownership().whose(), Whose::Empty);
    assert!(there.contents().iter().all(|byte| *byte == 0));
    there.notes.hooks.lock().unwrap().clear();
    let lazy = RestoreParams {
        lazy: true,
        trusted: false,
        ..TRUSTED
    };
    let restore = there.restore(lazy);
    restore.start(&path).unwrap();
    restore.finish(Some(LONG)).unwrap();
    assert!(there.contents() == here.contents());
}

/// The documented danger: what the file loses, the guest loses. The kernel takes the guest's own copies
/// of such pages too.
#[test]
fn a_page_that_is_cut_off_the_file_cannot_be_accessed_and_all_others_can() {
    let (_directory, path) = place();
    saved(&path);
    let there = world_of(FEW, Notes::default());
    let _restore = restored(&there, &path).unwrap();
    there.fill(FEW - 1, 9);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // The file keeps the header and the first pages.
    file.set_len((2 << 20) + 10 * PAGE_SIZE).unwrap();
    let mut pipe = [0; 2];
    // SAFETY: a place for two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let host = there.memory.map().blocks()[0].host();
    // The kernel reads for the caller, and says EFAULT where the caller would get SIGBUS.
    let reads = |page: u64| {
        // SAFETY: a byte of the block.
        let got = unsafe { libc::write(pipe[1], host.add((page * PAGE_SIZE) as usize).cast(), 1) };
        (got, std::io::Error::last_os_error().raw_os_error())
    };
    assert_eq!(reads(9).0, 1);
    for page in [10, FEW - 1] {
        assert_eq!(reads(page), (-1, Some(libc::EFAULT)), "page {page}");
    }
    // SAFETY: descriptors of our own.
    let _ = pipe.map(|fd| unsafe { libc::close(fd) });
}
