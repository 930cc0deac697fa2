//! A switchover that took too long or was cancelled, and the VMM's decision when there was no
//! answer.

use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::{cancel_promptly, LONG, MS};
use crate::support::vmm::failure;
use brant::error::Kind;
use brant::migrate::switchover::source::State;
use brant::migrate::{AcceptFrom, ConnectTo, Params, Resolution};

#[test]
fn a_resolution_whose_resume_fails_can_be_given_again() {
    let pair = Pair::new(&[ram("ram", 65)]);
    pair.to.at("run", || Err(failure()));
    let (out, _inc) = start(&pair, &quick());
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Unanswered);
    pair.from.at("resume", || Err(failure()));
    assert_eq!(
        out.resolve(Resolution::Resume).unwrap_err().kind(),
        Kind::Vmm
    );
    assert_eq!(out.state(), State::Unanswered);
    pair.from.at("resume", || Ok(()));
    out.resolve(Resolution::Resume).unwrap();
    assert_eq!(pair.world.who(), (true, false));
    assert_eq!(out.state(), State::TakenBack);
}

#[test]
fn the_switchover_timeout_gives_the_guest_back_when_an_operation_takes_too_long() {
    for op in ["pause", "save", "release"] {
        let pair = Pair::new(&[ram("ram", 65)]);
        // Longer than the limit. There is no event that tells that time has passed.
        pair.from.at(op, || {
            std::thread::sleep(MS * 150);
            Ok(())
        });
        let params = Params {
            switchover_timeout: MS * 100,
            ..quick()
        };
        let (a, b) = socketpair();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &quick()));
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start(ConnectTo::Connected(a)).unwrap();
        assert_eq!(
            out.wait(Some(LONG)).unwrap_err().kind(),
            Kind::Timeout,
            "{op}"
        );
        let _ = inc.wait(Some(LONG));
        pair.assert_runs_on(op);
        assert_eq!(pair.from.calls("resume"), 1, "{op}");
    }
}

#[test]
fn a_destination_that_gave_up_during_release_is_not_handed_the_guest() {
    let pair = Pair::new(&[ram("ram", 65)]);
    let hold = pair.from.hold_at("release");
    let (out, inc) = start(&pair, &quick());
    hold.reached();
    cancel_promptly("the destination during release", || inc.cancel()).unwrap();
    hold.go();
    let error = out.wait(Some(LONG)).unwrap_err();
    assert!(
        matches!(error.kind(), Kind::Cancelled | Kind::PeerGone | Kind::Io),
        "{:?} {error}",
        error.kind()
    );
    pair.assert_runs_on("it gave up in time");
    assert_eq!(pair.from.calls("resume"), 1);
}

#[test]
fn of_two_resolutions_at_once_one_is_taken() {
    for round in 0..20 {
        let pair = Pair::new(&[ram("ram", 1)]);
        pair.to.at("run", || Err(failure()));
        let (out, _inc) = start(&pair, &quick());
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Unanswered);
        let barrier = std::sync::Barrier::new(2);
        let taken: Vec<bool> = std::thread::scope(|scope| {
            let resolve = |resolution| {
                let (out, barrier) = (&out, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    out.resolve(resolution).is_ok()
                })
            };
            let both = [resolve(Resolution::Resume), resolve(Resolution::Destroy)];
            both.map(|thread| thread.join().unwrap()).to_vec()
        });
        assert_eq!(taken.iter().filter(|t| **t).count(), 1, "round {round}");
        assert_eq!(pair.from.calls("resume"), usize::from(taken[0]));
        assert_eq!(pair.world.who(), (taken[0], false));
    }
}
