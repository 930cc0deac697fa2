//! Saves and restores with one failing system call: the guest runs on, no file is left behind, and
//! what succeeds is right.

use crate::error::Result;
use crate::memory::Whose;
use crate::migrate::Blockers;
use crate::snapshot::testing::*;
use crate::snapshot::{Save, SaveInstant, SaveParams};
use crate::sys::kernel::plan::{Call, Fault, Scope};
use crate::sys::kernel::plausible::faults;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

fn guest() -> World {
    let notes = Notes {
        blobs: [Vec::new(), vec![("cpu", vec![4; 500])]],
        ..Notes::default()
    };
    let here = world_of(700, notes);
    for page in (0..700).filter(|page| page % 200 < 100) {
        here.fill(page, page as u8 | 1);
    }
    here
}

fn save(world: &World, scope: &Scope, path: &Path) -> Result<()> {
    scope.enter(|| world.save_to(path))
}

/// The first call of each name and role and one later call, each with every fault that it can have.
fn cases(scope: &Scope, numbers: &mut Numbers) -> Vec<(Call, Fault)> {
    let mut counts: BTreeMap<_, u64> = BTreeMap::new();
    for call in scope.calls() {
        *counts.entry((call.role, call.name)).or_default() += 1;
    }
    let mut cases = Vec::new();
    for ((role, name), count) in counts {
        let mut tried = vec![0, numbers.below(count)];
        tried.dedup();
        for number in tried {
            let call = Call { role, name, number };
            cases.extend(faults(name).iter().map(|fault| (call, *fault)));
        }
    }
    cases
}

/// The guest runs on, whatever became of the save, and the directory has nothing but an image.
fn assert_runs_on(here: &World, directory: &Path, case: &str) {
    let whose = here.memory.ownership().whose();
    assert!(
        matches!(whose, Whose::Here | Whose::Unknown),
        "{case}: {whose:?}"
    );
    assert_eq!(names(directory), ["guest.image"], "{case}");
}

#[test]
fn whatever_call_of_a_save_fails_the_guest_runs_on_and_no_half_file_is_left() {
    let mut numbers = Numbers::seeded();
    let (directory, path) = place();
    let whole = Scope::default();
    save(&guest(), &whole, &path).unwrap();
    let (mut failed, mut succeeded) = (0, 0);
    let cases = cases(&whole, &mut numbers);
    assert!(cases.len() > 60, "{}", cases.len());
    for (call, fault) in cases {
        std::fs::write(&path, "older").unwrap();
        let here = guest();
        let scope = Scope::default();
        scope.plan(call, fault);
        let result = save(&here, &scope, &path);
        let case = format!("{call}: {fault}: {result:?}");
        assert!(!here.notes.paused.load(SeqCst), "{case}");
        assert_runs_on(&here, directory.path(), &case);
        match result {
            Ok(()) => {
                succeeded += 1;
                let there = world_of(700, Notes::default());
                there.restore_from(&path).unwrap();
                assert!(there.contents() == here.contents(), "{case}");
            }
            Err(error) => {
                failed += 1;
                assert!(scope.fired(), "{case}");
                assert!(!error.message().is_empty());
                // If the directory cannot be synced, its file is there all the same.
                if !error.message().contains("it is whole") {
                    assert_eq!(std::fs::read(&path).unwrap(), b"older", "{case}");
                }
            }
        }
    }
    println!("{failed} failed, {succeeded} succeeded");
    assert!(failed > 20 && succeeded > 10, "{failed}, {succeeded}");
}

/// Writes every page of a guest. A page that is still protected would keep the thread for ever.
fn write_all(here: &World) {
    let (done, is_done) = std::sync::mpsc::channel();
    let ram = here.ram.clone();
    std::thread::spawn(move || {
        (0..700).for_each(|page| write(&ram, page, 9));
        let _ = done.send(());
    });
    is_done.recv_timeout(LONG).expect("a page stays protected");
}

#[test]
fn whatever_call_of_a_save_of_the_start_fails_the_guest_runs_on_unprotected() {
    let params = SaveParams {
        instant: SaveInstant::Start,
        ..SaveParams::default()
    };
    let guest = || {
        let here = guest();
        let ram = here.ram.clone();
        // Pages with contents and holes, ahead of the walk.
        here.notes.hook("resume", move || {
            for page in [699, 650, 201, 50] {
                write(&ram, page, 77);
            }
            Ok(())
        });
        here
    };
    let save = |here: &World, scope: &Scope, path: &Path| {
        scope.enter(|| {
            let (tracker, vmm) = (here.tracker.clone(), here.notes.clone());
            let save = Save::new(tracker, Blockers::new(), vmm, params)?;
            save.start(path)?;
            save.wait(Some(LONG))
        })
    };
    let mut numbers = Numbers::seeded();
    let (directory, path) = place();
    let whole = Scope::default();
    save(&guest(), &whole, &path).unwrap();
    let (mut failed, mut succeeded) = (0, 0);
    let cases = cases(&whole, &mut numbers);
    assert!(cases.len() > 80, "{}", cases.len());
    for (call, fault) in cases {
        std::fs::write(&path, "older").unwrap();
        let here = guest();
        let before = here.contents();
        let scope = Scope::default();
        scope.plan(call, fault);
        let result = save(&here, &scope, &path);
        let case = format!("{call}: {fault}: {result:?}");
        assert!(!here.notes.paused.load(SeqCst), "{case}");
        write_all(&here);
        assert_runs_on(&here, directory.path(), &case);
        match result {
            Ok(()) => {
                succeeded += 1;
                let there = world_of(700, Notes::default());
                there.restore_from(&path).unwrap();
                assert!(there.contents() == before, "{case}");
            }
            Err(error) => {
                failed += 1;
                assert!(scope.fired(), "{case}");
                if !error.message().contains("it is whole") {
                    assert_eq!(std::fs::read(&path).unwrap(), b"older", "{case}");
                }
            }
        }
    }
    println!("{failed} failed, {succeeded} succeeded");
    assert!(failed > 30 && succeeded > 10, "{failed}, {succeeded}");
}

#[test]
fn whatever_call_of_a_restore_fails_no_guest_runs_that_is_not_whole() {
    let mut numbers = Numbers::seeded();
    let (_directory, path) = place();
    let here = guest();
    here.save_to(&path).unwrap();
    let contents = here.contents();
    let restore = |scope: &Scope| {
        let there = world_of(700, Notes::default());
        let result = scope.enter(|| there.restore_from(&path));
        (there, result)
    };
    let whole = Scope::default();
    restore(&whole).1.unwrap();
    let (mut failed, mut succeeded) = (0, 0);
    for (call, fault) in cases(&whole, &mut numbers) {
        let scope = Scope::default();
        scope.plan(call, fault);
        let (there, result) = restore(&scope);
        let case = format!("{call}: {fault}: {result:?}");
        match result {
            Ok(()) => {
                succeeded += 1;
                assert!(there.contents() == contents, "{case}");
            }
            Err(_) => {
                failed += 1;
                assert!(scope.fired(), "{case}");
                assert!(!there.notes.calls().contains(&"run".into()), "{case}");
            }
        }
    }
    println!("{failed} failed, {succeeded} succeeded");
    assert!(failed > 10 && succeeded > 10, "{failed}, {succeeded}");
}

#[test]
fn a_disk_that_fills_up_fails_the_save_by_block_and_place() {
    let (directory, path) = place();
    let here = guest();
    let scope = Scope::default();
    let call = Call {
        role: "brant-image",
        name: "pwrite",
        number: 2,
    };
    scope.plan(call, Fault::Error(libc::ENOSPC));
    let error = save(&here, &scope, &path).unwrap_err();
    assert!(error.message().contains("block `"), "{error}");
    assert!(
        error.message().contains("No space left on device"),
        "{error}"
    );
    assert!(error.message().contains("guest.image"), "{error}");
    assert!(names(directory.path()).is_empty());
    // When there is room again, the same guest is saved.
    here.save_to(&path).unwrap();
}

#[test]
fn once_an_image_has_its_name_no_lack_of_descriptors_or_rights_fails_the_save() {
    let (directory, path) = place();
    let whole = Scope::default();
    save(&guest(), &whole, &path).unwrap();
    let opens = whole.calls();
    let opens = opens
        .iter()
        .filter(|call| (call.name, call.role) == ("open", "brant-snapshot"))
        .count();
    assert!(opens > 1, "{opens}");
    for number in 0..opens as u64 {
        for error in [libc::EACCES, libc::EMFILE] {
            std::fs::write(&path, "older").unwrap();
            let scope = Scope::default();
            let call = Call {
                role: "brant-snapshot",
                name: "open",
                number,
            };
            scope.plan(call, Fault::Error(error));
            let result = save(&guest(), &scope, &path);
            assert!(scope.fired(), "{call}");
            // A failed save leaves the earlier file.
            let older = std::fs::read(&path).unwrap() == b"older";
            assert_eq!(result.is_err(), older, "{call}: {result:?}");
            assert_eq!(names(directory.path()), ["guest.image"], "{call}");
        }
    }
}

#[test]
fn a_failing_sync_of_the_directory_is_told_though_the_image_is_whole_and_has_its_name() {
    let (_directory, path) = place();
    std::fs::write(&path, "older").unwrap();
    let here = guest();
    let scope = Scope::default();
    let call = Call {
        role: "brant-snapshot",
        name: "fsync",
        number: 1,
    };
    scope.plan(call, Fault::Error(libc::EIO));
    let error = save(&here, &scope, &path).unwrap_err();
    assert!(error.message().contains("it is whole"), "{error}");
    let there = world_of(700, Notes::default());
    there.restore_from(&path).unwrap();
    assert!(there.contents() == here.contents());
}
