//! The rules as a table, and calls of several threads at once.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use Whose as W;

const ALL: [Whose; 15] = [
    W::Unknown,
    W::Here,
    W::Stands,
    W::Leaving,
    W::Paused,
    W::HandingOver,
    W::HandedOver,
    W::Unanswered,
    W::GivenUp,
    W::Arriving,
    W::Empty,
    W::Saving,
    W::SavePaused,
    W::Restoring,
    W::Incomplete,
];

fn guest(whose: Whose) -> Guest {
    let before = match whose {
        W::Leaving | W::Paused | W::HandingOver | W::Saving | W::SavePaused => W::Here,
        _ => W::Unknown,
    };
    Guest {
        whose,
        before,
        overwritten: false,
        shared: false,
    }
}

/// The result of a call in each state: the next state, or the kind of the refusal.
fn table(
    call: impl Fn(Guest) -> Result<Guest>,
    rows: &[(Whose, std::result::Result<Whose, Kind>)],
) {
    assert_eq!(rows.len(), ALL.len(), "every state has a row");
    for (from, wanted) in rows {
        let found = call(guest(*from));
        let found = found.map(Guest::whose).map_err(|e| e.kind());
        assert_eq!(found, *wanted, "in {from:?}");
    }
}

#[test]
fn an_outgoing_migration_begins_only_where_the_guest_is_here_and_nothing_else_goes_on() {
    table(
        Guest::leaves,
        &[
            (W::Unknown, Ok(W::Leaving)),
            (W::Here, Ok(W::Leaving)),
            (W::Stands, Ok(W::Leaving)),
            (W::Leaving, Err(Kind::Busy)),
            (W::Paused, Err(Kind::Busy)),
            (W::HandingOver, Err(Kind::Busy)),
            (W::HandedOver, Err(Kind::State)),
            (W::Unanswered, Err(Kind::State)),
            (W::GivenUp, Err(Kind::State)),
            (W::Arriving, Err(Kind::Busy)),
            (W::Empty, Ok(W::Leaving)),
            (W::Saving, Err(Kind::Busy)),
            (W::SavePaused, Err(Kind::Busy)),
            (W::Restoring, Err(Kind::Busy)),
            (W::Incomplete, Err(Kind::Busy)),
        ],
    );
    let error = guest(W::HandedOver).leaves().unwrap_err();
    assert!(error.message().contains("handed over"), "{error}");
    let error = guest(W::Unanswered).leaves().unwrap_err();
    assert!(error.message().contains("resolve"), "{error}");
}

#[test]
fn an_incoming_migration_begins_only_where_no_guest_is_and_nothing_else_goes_on() {
    table(
        Guest::arrives,
        &[
            (W::Unknown, Ok(W::Arriving)),
            (W::Here, Err(Kind::State)),
            (W::Stands, Err(Kind::State)),
            (W::Leaving, Err(Kind::Busy)),
            (W::Paused, Err(Kind::Busy)),
            (W::HandingOver, Err(Kind::Busy)),
            (W::HandedOver, Ok(W::Arriving)),
            // Its memory may be taken back.
            (W::Unanswered, Err(Kind::State)),
            (W::GivenUp, Ok(W::Arriving)),
            (W::Arriving, Err(Kind::Busy)),
            (W::Empty, Ok(W::Arriving)),
            (W::Saving, Err(Kind::Busy)),
            (W::SavePaused, Err(Kind::Busy)),
            (W::Restoring, Err(Kind::Busy)),
            (W::Incomplete, Err(Kind::Busy)),
        ],
    );
}

#[test]
fn a_guest_runs_here_by_the_vmms_word_only_where_no_other_copy_may_run() {
    table(
        Guest::runs_here,
        &[
            (W::Unknown, Ok(W::Here)),
            (W::Here, Ok(W::Here)),
            (W::Stands, Ok(W::Here)),
            (W::Leaving, Ok(W::Leaving)),
            (W::Paused, Err(Kind::Busy)),
            (W::HandingOver, Err(Kind::Busy)),
            (W::HandedOver, Err(Kind::State)),
            (W::Unanswered, Err(Kind::State)),
            (W::GivenUp, Err(Kind::State)),
            (W::Arriving, Err(Kind::Busy)),
            (W::Empty, Ok(W::Here)),
            (W::Saving, Ok(W::Saving)),
            (W::SavePaused, Err(Kind::Busy)),
            (W::Restoring, Err(Kind::Busy)),
            (W::Incomplete, Ok(W::Incomplete)),
        ],
    );
}

#[test]
fn a_guest_that_is_gone_is_reclaimed_and_one_that_may_be_resolved_is_not() {
    table(
        Guest::reclaimed,
        &[
            (W::Unknown, Ok(W::Here)),
            (W::Here, Ok(W::Here)),
            (W::Stands, Ok(W::Here)),
            (W::Leaving, Err(Kind::Busy)),
            (W::Paused, Err(Kind::Busy)),
            (W::HandingOver, Err(Kind::Busy)),
            (W::HandedOver, Ok(W::Here)),
            (W::Unanswered, Err(Kind::State)),
            (W::GivenUp, Ok(W::Here)),
            (W::Arriving, Err(Kind::Busy)),
            (W::Empty, Ok(W::Here)),
            (W::Saving, Err(Kind::Busy)),
            (W::SavePaused, Err(Kind::Busy)),
            (W::Restoring, Err(Kind::Busy)),
            (W::Incomplete, Err(Kind::Busy)),
        ],
    );
}

#[test]
fn a_guest_that_has_ended_is_given_up_and_then_another_may_arrive() {
    table(
        Guest::given_up,
        &[
            (W::Unknown, Ok(W::GivenUp)),
            (W::Here, Ok(W::GivenUp)),
            (W::Stands, Ok(W::GivenUp)),
            (W::Leaving, Err(Kind::Busy)),
            (W::Paused, Err(Kind::Busy)),
            (W::HandingOver, Err(Kind::Busy)),
            (W::HandedOver, Ok(W::GivenUp)),
            (W::Unanswered, Err(Kind::State)),
            (W::GivenUp, Ok(W::GivenUp)),
            (W::Arriving, Err(Kind::Busy)),
            (W::Empty, Ok(W::GivenUp)),
            (W::Saving, Err(Kind::Busy)),
            (W::SavePaused, Err(Kind::Busy)),
            (W::Restoring, Err(Kind::Busy)),
            (W::Incomplete, Err(Kind::Busy)),
        ],
    );
    let ended = guest(W::Here).given_up().unwrap();
    assert!(ended.arrives().is_ok());
}

#[test]
fn migration_save_and_restore_of_one_guest_exclude_each_other_by_name() {
    let (saves, restores) = (guest(W::Here).is_saved(), guest(W::Empty).is_restored());
    let (leaves, arrives) = (guest(W::Here).leaves(), guest(W::Empty).arrives());
    for (going_on, name) in [
        (saves, "saved to an image"),
        (restores, "restored from an image"),
        (leaves, "outgoing migration of this guest"),
        (arrives, "incoming migration fills"),
    ] {
        let busy = going_on.unwrap();
        for refused in [
            busy.is_saved(),
            busy.is_restored(),
            busy.leaves(),
            busy.arrives(),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), Kind::Busy, "{error}");
            assert!(error.message().contains(name), "{error}");
        }
    }
    // A save needs a guest here, a restore needs that none is here. Migrations need the same.
    assert_eq!(
        guest(W::HandedOver).is_saved().unwrap_err().kind(),
        Kind::State
    );
    assert_eq!(
        guest(W::Here).is_restored().unwrap_err().kind(),
        Kind::State
    );
    // A guest that stood still and was not touched stands still afterwards. One that was paused may
    // run.
    let stood = guest(W::Stands).is_saved().unwrap();
    assert_eq!(stood.comes_to(Stage::Kept).whose(), W::Stands);
    assert_eq!(stood.let_go().whose(), W::Stands);
    let paused = guest(W::Here)
        .is_saved()
        .unwrap()
        .comes_to(Stage::SavePaused);
    assert_eq!(paused.comes_to(Stage::Kept).whose(), W::Here);
    assert_eq!(paused.let_go().whose(), W::Stands);
    // A guest whose memory a failed restore has overwritten cannot be taken back.
    let gone = guest(W::HandedOver).is_restored().unwrap();
    assert!(gone.let_go().reclaimed().is_ok());
    assert!(gone
        .comes_to(Stage::Restoring)
        .let_go()
        .reclaimed()
        .is_err());
}

#[test]
fn a_guest_that_the_vmm_paused_for_a_save_is_afterwards_whose_it_was_and_may_be_kicked() {
    for (before, after) in [
        (W::Unknown, W::Unknown),
        (W::Here, W::Here),
        (W::Stands, W::Stands),
        (W::Empty, W::Stands),
    ] {
        let saving = guest(before).is_saved().unwrap();
        let saved = saving.comes_to(Stage::SavePaused);
        assert!(!saved.may_kick(), "{before:?}");
        for ended in [saving, saved] {
            let ended = ended.comes_to(Stage::PausedByVmm);
            assert_eq!(ended.whose(), after, "{before:?}");
            let may_kick = matches!(after, W::Unknown | W::Here);
            assert_eq!(ended.may_kick(), may_kick, "{before:?}");
        }
    }
    // A guest that brant paused is kicked only after the VMM has said that it runs.
    let saving = guest(W::Unknown).is_saved().unwrap();
    let stays = saving.comes_to(Stage::SavePaused).comes_to(Stage::Stands);
    assert!(!stays.may_kick());
    assert!(stays.runs_here().unwrap().may_kick());
}

#[test]
fn a_kick_is_allowed_only_where_the_guest_runs_here_and_may() {
    let allowed = [W::Unknown, W::Here, W::Leaving, W::Saving];
    for whose in ALL {
        assert_eq!(
            guest(whose).may_kick(),
            allowed.contains(&whose),
            "{whose:?}"
        );
    }
    // After a failed incoming migration the memory has half a guest.
    let failed = guest(W::Unknown)
        .arrives()
        .unwrap()
        .comes_to(Stage::Filling)
        .comes_to(Stage::NotArrived);
    assert_eq!(failed.whose(), W::Empty);
    assert!(!failed.may_kick());
    assert!(failed.leaves().unwrap().may_kick());
    assert!(failed.runs_here().unwrap().may_kick());
    // A guest that `resume` could not start is not started by a kick of the next migration.
    let stood = guest(W::Stands).leaves().unwrap();
    assert!(!stood.may_kick());
    assert_eq!(stood.comes_to(Stage::Kept).whose(), W::Stands);
    let resumed = stood.comes_to(Stage::Paused).comes_to(Stage::Kept);
    assert_eq!(resumed.whose(), W::Here);
}

#[test]
fn what_an_incoming_migration_overwrote_is_not_taken_back() {
    let gone = guest(W::HandedOver);
    let untouched = gone.arrives().unwrap().comes_to(Stage::Arriving);
    let back = untouched.comes_to(Stage::NotArrived);
    assert_eq!(back.whose(), W::HandedOver);
    assert!(back.reclaimed().is_ok());

    let filled = gone.arrives().unwrap().comes_to(Stage::Filling);
    let back = filled.comes_to(Stage::NotArrived);
    // The state tells this too: a guest that counts as handed over can be reclaimed.
    assert_eq!(back.whose(), W::GivenUp);
    for refused in [
        back.reclaimed(),
        back.given_up().unwrap().reclaimed(),
        back.leaves(),
        back.runs_here(),
        filled.let_go().reclaimed(),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::State);
        assert!(error.message().contains("was overwritten"), "{error}");
    }
    // A whole guest that arrives there is a guest like any other.
    let arrived = back.arrives().unwrap().comes_to(Stage::Filling);
    let gone = arrived.comes_to(Stage::Arrived).leaves().unwrap();
    assert!(gone.comes_to(Stage::HandedOver).reclaimed().is_ok());
    // So is a guest that the VMM makes after a failed incoming migration.
    let failed = guest(W::Unknown)
        .arrives()
        .unwrap()
        .comes_to(Stage::Filling);
    let built = failed.comes_to(Stage::NotArrived).leaves().unwrap();
    assert!(built.comes_to(Stage::HandedOver).reclaimed().is_ok());
}

#[test]
fn memory_that_another_process_may_have_changed_is_not_taken_back() {
    let shared = |whose| Guest {
        shared: true,
        ..guest(whose)
    };
    let left = shared(W::HandingOver);
    for gone in [
        left.comes_to(Stage::HandedOver),
        left.comes_to(Stage::GivenUp),
        left.comes_to(Stage::Unanswered).let_go(),
        left.comes_to(Stage::HandedOver).given_up().unwrap(),
        // A guest that did not arrive changes nothing.
        left.comes_to(Stage::HandedOver)
            .arrives()
            .unwrap()
            .comes_to(Stage::Arriving)
            .comes_to(Stage::NotArrived),
    ] {
        let error = gone.reclaimed().unwrap_err();
        assert_eq!(error.kind(), Kind::State, "{gone:?}");
        assert!(error.message().contains("by descriptor"), "{error}");
        // Another guest may arrive in it, and is a guest like any other.
        let arrived = gone.arrives().unwrap().comes_to(Stage::Arrived);
        let gone = arrived.leaves().unwrap().comes_to(Stage::HandedOver);
        assert!(gone.reclaimed().is_ok(), "{gone:?}");
    }
    // A guest that was kept here, and leaves later by copies.
    let kept = left.comes_to(Stage::Kept);
    let gone = kept.leaves().unwrap().comes_to(Stage::HandedOver);
    assert!(gone.reclaimed().is_ok());
    // The destination has said that it never ran it.
    let ownership = Arc::new(Ownership::default());
    let claim = ownership.leave().unwrap();
    ownership.memory_is_shared(true);
    claim.comes_to(Stage::Unanswered);
    ownership.memory_is_shared(false);
    claim.comes_to(Stage::GivenUp);
    ownership.reclaim().unwrap();
}

#[test]
fn a_claim_that_is_dropped_leaves_the_guest_where_it_was() {
    let ownership = Arc::new(Ownership::default());
    drop(ownership.leave().unwrap());
    assert_eq!(ownership.whose(), W::Unknown, "nothing was started");
    drop(ownership.arrive().unwrap());
    assert_eq!(ownership.whose(), W::Unknown);

    let claim = ownership.leave().unwrap();
    claim.comes_to(Stage::Unanswered);
    drop(claim);
    // The migration can no longer be resolved, so the guest counts as handed over.
    assert_eq!(ownership.whose(), W::HandedOver);
    assert_eq!(ownership.leave().unwrap_err().kind(), Kind::State);
    ownership.reclaim().unwrap();
    assert_eq!(ownership.whose(), W::Here);
}

#[test]
fn an_old_claim_does_not_speak_for_the_guest_any_more() {
    let ownership = Arc::new(Ownership::default());
    let old = ownership.leave().unwrap();
    old.comes_to(Stage::HandedOver);
    let new = ownership.arrive().unwrap();
    new.comes_to(Stage::Arrived);
    old.comes_to(Stage::Unanswered);
    assert_eq!(ownership.whose(), W::Here);
    drop(old);
    drop(new);
    assert_eq!(ownership.whose(), W::Here);
}

#[test]
fn of_many_who_begin_at_once_one_does() {
    let ownership = Arc::new(Ownership::default());
    let begun = AtomicU32::new(0);
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (ownership, begun, barrier) = (&ownership, &begun, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let claim = if i % 2 == 0 {
                    ownership.leave()
                } else {
                    ownership.arrive()
                };
                match &claim {
                    Ok(_) => drop(begun.fetch_add(1, Ordering::SeqCst)),
                    Err(e) => assert_eq!(e.kind(), Kind::Busy, "{e}"),
                }
                // Until every thread has tried.
                barrier.wait();
            });
        }
    });
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[test]
fn pausing_waits_for_the_kicks_that_have_begun_and_no_other_begins() {
    let ownership = Arc::new(Ownership::default());
    let claim = ownership.leave().unwrap();
    let (begun, has_begun) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (ownership, over) = (&ownership, &over);
        scope.spawn(move || {
            let kicked = ownership.kick(|| {
                begun.send(()).unwrap();
                ends.recv().unwrap();
                over.store(true, Ordering::SeqCst);
            });
            assert_eq!(kicked, Some(()));
        });
        has_begun.recv().unwrap();
        let paused = scope.spawn(move || {
            claim.comes_to(Stage::Paused);
            assert!(over.load(Ordering::SeqCst), "paused during a kick");
            claim
        });
        // Kicks are forbidden from before the wait on, so a kick is refused now.
        while ownership.whose() != W::Paused {
            std::thread::yield_now();
        }
        assert_eq!(ownership.kick(|| panic!("a kick of a paused guest")), None);
        end.send(()).unwrap();
        let claim = paused.join().unwrap();
        assert_eq!(ownership.kick(|| panic!("a kick of a paused guest")), None);
        claim.comes_to(Stage::Kept);
        assert_eq!(ownership.kick(|| 7), Some(7));
    });
}

#[test]
fn a_kick_that_panics_does_not_hold_up_a_pause() {
    let ownership = Arc::new(Ownership::default());
    let claim = ownership.leave().unwrap();
    let kicked = crate::runtime::catch(|| {
        ownership.kick(|| panic!("in the VMM"));
        Ok::<(), Error>(())
    });
    assert!(kicked.is_err());
    let (paused, is_paused) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            claim.comes_to(Stage::Paused);
            paused.send(()).unwrap();
        });
        is_paused.recv_timeout(Duration::from_secs(20)).unwrap();
    });
}

#[test]
fn an_incomplete_guest_is_at_the_end_as_it_runs_or_stands() {
    let restoring = guest(W::Restoring);
    let stands = restoring.comes_to(Stage::IncompleteStands);
    let runs = restoring.comes_to(Stage::Incomplete);
    assert_eq!([stands.whose(), runs.whose()], [W::Incomplete; 2]);
    assert_eq!(stands.comes_to(Stage::Whole).whose(), W::Stands);
    assert_eq!(stands.let_go().whose(), W::Stands);
    assert_eq!(runs.comes_to(Stage::Whole).whose(), W::Here);
    assert_eq!(runs.let_go().whose(), W::Here);
    let started = stands.runs_here().unwrap();
    assert_eq!(started.whose(), W::Incomplete);
    assert_eq!(started.comes_to(Stage::Whole).whose(), W::Here);
    assert!(runs.comes_to(Stage::Whole).leaves().is_ok());
}
