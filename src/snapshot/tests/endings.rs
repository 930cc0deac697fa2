//! However a save or a restore ends, the guest runs where it should, and no file is left behind.

use crate::error::{Error, Kind};
use crate::memory::Whose;
use crate::migrate::{Blockers, ConnectTo, Outgoing, Params};
use crate::snapshot::testing::*;
use crate::snapshot::{Restore, RestoreParams, Save, SaveParams, State};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{mpsc, Arc, Mutex};
use std::time::{Duration, Instant};

/// Holds an operation until it is released. Reports when the operation is reached.
fn gate(notes: &Notes, operation: &'static str) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (reached, is_reached) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let ends = Mutex::new((reached, goes));
    notes.hook(operation, move || {
        let ends = ends.lock().unwrap();
        let _ = ends.0.send(());
        let _ = ends.1.recv_timeout(LONG);
        Ok(())
    });
    (is_reached, go)
}

#[test]
fn whatever_operation_fails_or_panics_the_guest_runs_on_and_what_was_there_stays() {
    for operation in ["early_save", "pause", "save", "resume", "thread_start"] {
        for panics in [false, true] {
            let (directory, path) = place();
            std::fs::write(&path, "an older image").unwrap();
            let here = world_of(FEW, Notes::default());
            here.fill(1, 1);
            here.notes.hook(operation, move || match panics {
                true => panic!("in the VMM"),
                false => no("not today"),
            });
            let error = here.save_to(&path).unwrap_err();
            let case = format!("{operation}, {panics}: {error}");
            assert_eq!(error.kind(), Kind::Vmm, "{case}");
            assert!(error.message().contains(operation), "{case}");
            assert_eq!(names(directory.path()), ["guest.image"], "{case}");
            assert_eq!(std::fs::read(&path).unwrap(), b"an older image");
            let calls = here.notes.calls();
            let (paused, resumed) = (
                calls.contains(&"pause".into()),
                calls.iter().filter(|c| *c == "resume").count(),
            );
            assert_eq!(paused, resumed == 1, "{case}");
            let whose = here.memory.ownership().whose();
            let expected = match operation {
                "resume" => Whose::Stands,
                "pause" | "save" => Whose::Here,
                // The guest was never touched.
                _ => Whose::Here,
            };
            assert_eq!(whose, expected, "{case}");
            // A later save succeeds if the VMM allows it.
            if operation != "resume" {
                assert!(!here.notes.paused.load(SeqCst), "{case}");
            }
            let events = here.notes.events.lock().unwrap();
            let last = events.last().unwrap();
            assert_eq!(last.message, error.message(), "{case}");
        }
    }
}

#[test]
fn a_cancel_ends_a_save_wherever_it_is_and_leaves_no_file() {
    for operation in ["early_save", "pause", "save"] {
        let (directory, path) = place();
        let here = world_of(FEW, Notes::default());
        for page in 0..FEW {
            here.fill(page, 1);
        }
        let (reached, go) = gate(&here.notes, operation);
        let save = here.save(SaveParams::default());
        save.start(&path).unwrap();
        reached.recv_timeout(LONG).unwrap();
        std::thread::scope(|scope| {
            let cancelled = scope.spawn(|| {
                let begun = Instant::now();
                save.cancel();
                begun.elapsed()
            });
            // Released after the cancel.
            while !save.is_cancelled() {
                std::thread::yield_now();
            }
            go.send(()).unwrap();
            let took = cancelled.join().unwrap();
            assert!(took < Duration::from_secs(5), "{took:?}");
        });
        assert_eq!(save.wait(None).unwrap_err().kind(), Kind::Cancelled);
        assert_eq!(save.stats().state, State::Failed);
        assert!(names(directory.path()).is_empty());
        assert!(!here.notes.paused.load(SeqCst));
        assert_eq!(here.memory.ownership().whose(), Whose::Here);
    }
}

#[test]
fn a_save_that_is_dropped_is_cancelled_and_one_that_is_over_cannot_be_started_again() {
    let (directory, path) = place();
    let here = world_of(FEW, Notes::default());
    for page in 0..FEW {
        here.fill(page, 1);
    }
    let save = here.save(SaveParams::default());
    assert_eq!(save.wait(None).unwrap_err().kind(), Kind::State);
    save.start(&path).unwrap();
    assert_eq!(save.start(&path).unwrap_err().kind(), Kind::State);
    drop(save);
    // Cancelled, or complete just before; nothing in between.
    let left = names(directory.path());
    assert!(left.is_empty() || left == ["guest.image"], "{left:?}");
    assert_eq!(here.memory.ownership().whose(), Whose::Here);
    let save = here.save(SaveParams::default());
    save.start(&path).unwrap();
    save.wait(Some(LONG)).unwrap();
    // A cancel after the end has no effect.
    save.cancel();
    save.wait(None).unwrap();
}

#[test]
fn waiting_for_a_save_inside_one_of_its_callbacks_is_an_error_and_a_cancel_there_only_asks() {
    let (directory, path) = place();
    let here = world_of(FEW, Notes::default());
    let save = Arc::new(here.save(SaveParams::default()));
    let weak = Arc::downgrade(&save);
    let (told, tells) = mpsc::channel();
    let told = Mutex::new(told);
    here.notes.hook("save", move || {
        let save = weak.upgrade().unwrap();
        let kind = save.wait(None).unwrap_err().kind();
        save.cancel();
        let _ = told.lock().unwrap().send((kind, save.in_callback()));
        Ok(())
    });
    save.start(&path).unwrap();
    let error = save.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(tells.recv().unwrap(), (Kind::Callback, true));
    assert!(!save.in_callback());
    assert!(names(directory.path()).is_empty());
}

#[test]
fn while_a_guest_is_saved_or_restored_nothing_else_begins_with_it() {
    let (_directory, path) = place();
    let here = world_of(FEW, Notes::default());
    here.save_to(&path).unwrap();
    let begin = |world: &World| {
        let vmm: Arc<Notes> = Arc::clone(&world.notes);
        let tracker = Arc::clone(&world.tracker);
        let out = Outgoing::new(tracker, Blockers::new(), vmm, Params::default()).unwrap();
        let (a, _b) = UnixStream::pair().unwrap();
        let errors = [
            out.start(ConnectTo::Connected(a.into())).unwrap_err(),
            world.save(SaveParams::default()).start(&path).unwrap_err(),
            world
                .restore(RestoreParams::default())
                .start(&path)
                .unwrap_err(),
        ];
        errors.map(|e: Error| {
            assert_eq!(e.kind(), Kind::Busy, "{e}");
            e.message().to_owned()
        })
    };
    let (reached, go) = gate(&here.notes, "save");
    let save = here.save(SaveParams::default());
    save.start(&path).unwrap();
    reached.recv_timeout(LONG).unwrap();
    assert_eq!(here.memory.ownership().whose(), Whose::SavePaused);
    for message in begin(&here) {
        assert!(message.contains("being saved to an image"), "{message}");
    }
    assert_eq!(here.memory.runs_here().unwrap_err().kind(), Kind::Busy);
    go.send(()).unwrap();
    save.wait(Some(LONG)).unwrap();

    let there = world_of(FEW, Notes::default());
    let (reached, go) = gate(&there.notes, "loaded");
    let restore = there.restore(RestoreParams::default());
    restore.start(&path).unwrap();
    reached.recv_timeout(LONG).unwrap();
    assert_eq!(there.memory.ownership().whose(), Whose::Restoring);
    for message in begin(&there) {
        assert!(
            message.contains("being restored from an image"),
            "{message}"
        );
    }
    go.send(()).unwrap();
    restore.wait(Some(LONG)).unwrap();
    // Then it is a guest like any other, over which no other guest can be restored.
    let again = there.restore(RestoreParams::default());
    assert_eq!(again.start(&path).unwrap_err().kind(), Kind::State);
    there.save_to(&path).unwrap();
}

#[test]
fn a_restore_whose_vmm_refuses_or_panics_leaves_no_guest_and_says_who_refused() {
    let (_directory, path) = place();
    let notes = Notes {
        blobs: [vec![("early", vec![1])], vec![("cpu", vec![2])]],
        ..Notes::default()
    };
    let here = world_of(FEW, notes);
    here.save_to(&path).unwrap();
    for operation in ["early_load", "load", "loaded", "run", "thread_start"] {
        for panics in [false, true] {
            let there = world_of(FEW, Notes::default());
            there.notes.hook(operation, move || match panics {
                true => panic!("in the VMM"),
                false => no("not this one"),
            });
            let error = there.restore_from(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::Vmm, "{operation}: {error}");
            assert!(error.message().contains(operation), "{error}");
            let whose = there.memory.ownership().whose();
            let expected = match operation {
                "run" => Whose::Stands,
                _ => Whose::Empty,
            };
            assert_eq!(whose, expected, "{operation}");
            let ran = there.notes.calls().contains(&"run".into());
            assert_eq!(ran, operation == "run");
        }
    }
}

#[test]
fn a_cancelled_restore_never_runs_the_guest() {
    let (_directory, path) = place();
    let here = world_of(FEW, Notes::default());
    for page in 0..FEW {
        here.fill(page, 1);
    }
    here.save_to(&path).unwrap();
    let there = world_of(FEW, Notes::default());
    let (reached, go) = gate(&there.notes, "loaded");
    let restore = there.restore(RestoreParams::default());
    restore.start(&path).unwrap();
    reached.recv_timeout(LONG).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| restore.cancel());
        while !restore.is_cancelled() {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
    });
    assert_eq!(restore.wait(None).unwrap_err().kind(), Kind::Cancelled);
    assert!(!there.notes.calls().contains(&"run".into()));
    assert_eq!(there.memory.ownership().whose(), Whose::Empty);
}

#[test]
fn parameters_out_of_range_say_the_range() {
    let here = world_of(16, Notes::default());
    let save = |params| {
        let vmm: Arc<Notes> = Arc::clone(&here.notes);
        Save::new(Arc::clone(&here.tracker), Blockers::new(), vmm, params).unwrap_err()
    };
    let d = SaveParams::default();
    for (params, words) in [
        (SaveParams { writers: 0, ..d }, "writers is 1 to 64, not 0"),
        (
            SaveParams { writers: 65, ..d },
            "writers is 1 to 64, not 65",
        ),
        (
            SaveParams { max_passes: 0, ..d },
            "max_passes is 1 to 1000, not 0",
        ),
        (
            SaveParams {
                downtime_limit: Duration::ZERO,
                ..d
            },
            "downtime_limit (milliseconds) is 1 to 3600000, not 0",
        ),
    ] {
        let error = save(params);
        assert_eq!((error.kind(), error.message()), (Kind::Invalid, words));
    }
    let params = RestoreParams {
        max_state_bytes: 1,
        ..RestoreParams::default()
    };
    let vmm: Arc<Notes> = Arc::clone(&here.notes);
    let error = Restore::new(Arc::clone(&here.memory), vmm, params).unwrap_err();
    assert!(
        error.message().contains("max_state_bytes is 4096 to"),
        "{error}"
    );
}

#[test]
fn a_path_that_is_no_place_for_an_image_is_refused_before_memory_is_written() {
    let (directory, path) = place();
    let here = world_of(16, Notes::default());
    let refused = |path: &std::path::Path| {
        let error = here.save_to(path).unwrap_err();
        assert!(!here.notes.calls().contains(&"pause".into()));
        error
    };
    let error = refused(directory.path());
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert!(error.message().contains("found a directory"), "{error}");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = refused(&link);
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert!(error.message().contains("found a symbolic link"), "{error}");
    assert_eq!(refused("".as_ref()).kind(), Kind::Invalid);
    // The last four cannot be told from a file's path by `Path::file_name`.
    for end in ["/", "/..", "/new/", "/new/.", "/new//", "/new/./"] {
        let at = format!("{}{end}", directory.path().display());
        let error = refused(at.as_ref());
        assert_eq!(error.kind(), Kind::Invalid, "{end}: {error}");
    }
    assert_eq!(refused("/".as_ref()).kind(), Kind::Invalid);
    assert_eq!(names(directory.path()), ["link"]);
    let there = world_of(16, Notes::default());
    let not_restored = |path: &std::path::Path, kind, words| {
        let error = there.restore_from(path).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(words), "{error}");
    };
    not_restored(directory.path(), Kind::Image, "found a directory");
    not_restored(
        "/dev/zero".as_ref(),
        Kind::Image,
        "found a character device",
    );
    not_restored("".as_ref(), Kind::Invalid, "found an empty one");
}

#[test]
fn a_path_that_leads_nowhere_is_not_found_and_named() {
    let (directory, path) = place();
    let here = world_of(16, Notes::default());
    std::fs::write(directory.path().join("file"), "no directory").unwrap();
    for nowhere in ["missing/guest.image", "file/guest.image"] {
        let at = directory.path().join(nowhere);
        for error in [
            here.save_to(&at).unwrap_err(),
            world_of(16, Notes::default())
                .restore_from(&at)
                .unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::NotFound, "{error}");
            assert!(error.message().contains(nowhere), "{error}");
        }
    }
    assert!(!here.notes.calls().contains(&"pause".into()));
    let there = world_of(16, Notes::default());
    let error = there.restore_from(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    let long = directory.path().join("x".repeat(300));
    assert_eq!(here.save_to(&long).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn a_blocker_keeps_a_guest_from_being_saved() {
    let (directory, path) = place();
    let here = world_of(16, Notes::default());
    let blockers = Blockers::new();
    let vmm: Arc<Notes> = Arc::clone(&here.notes);
    let tracker = Arc::clone(&here.tracker);
    let save = Save::new(tracker, blockers.clone(), vmm, SaveParams::default()).unwrap();
    let reason = blockers.block("a device of the host's");
    let error = save.start(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked);
    assert_eq!(
        error.message(),
        "the guest can be neither migrated nor saved: a device of the host's"
    );
    drop(reason);
    let late = Mutex::new(None);
    here.notes.hook("early_save", move || {
        *late.lock().unwrap() = Some(blockers.block("one that came"));
        Ok(())
    });
    save.start(&path).unwrap();
    let error = save.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Blocked, "{error}");
    assert!(names(directory.path()).is_empty());
}
