//! The other side's process is killed in each of its phases.

use super::afterwards::{covered, resolve, settled};
use super::cases::Case;
use super::guests::{
    equip_destination, equip_source, guests, incoming, limits, outgoing, script, specs,
};
use super::middle::{Cut, Wire, UNUSED};
use crate::support::guest::Guest;
use crate::support::pair::Pair;
use crate::support::time::{LONG, MS};
use brant::error::{Kind, Result};
use brant::migrate::switchover::source::State;
use brant::migrate::{AcceptFrom, ConnectTo};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Ends the process without a message, a destructor or a flush.
pub fn die() -> Result<()> {
    // SAFETY: a signal to this very process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("killed");
}

const ROLE: &str = "BRANT_TEST_ROLE";

const PLACE: &str = "BRANT_TEST_DIES_AT";

/// Runs one side in a process of its own, over this connection. It dies at `place`.
fn spawn(role: &str, place: &str, connection: OwnedFd) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cut::killing::the_other_process"])
        .env(ROLE, role)
        .env(PLACE, place)
        .stdin(Stdio::from(connection))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// No test, but the process that the tests below start: one side of a migration on its standard
/// input.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let place = std::env::var(PLACE).unwrap();
    let connection = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (source, destination) = guests();
    let pair = Pair::of(source, destination);
    if role == "source" {
        equip_source(&pair.from);
        pair.source.writer_within("ram", 1030..1042, MS / 4);
        pair.from.at(&place, die);
        let out = outgoing(&pair, limits(UNUSED));
        out.start_with(ConnectTo::Connected(connection), script(&pair.source))
            .unwrap();
        out.wait(Some(LONG)).unwrap();
    } else {
        // There is no source in this process to compare with.
        let alone = Pair::of(Guest::new(&[]), Arc::clone(&pair.destination));
        equip_destination(&alone.to, Some(&place));
        if place != "receiving" {
            alone.to.at(&place, die);
        }
        let inc = incoming(&alone, limits(UNUSED));
        inc.start(AcceptFrom::Connected(connection)).unwrap();
        inc.wait(Some(LONG)).unwrap();
    }
}

fn reap(mut child: Child, what: &str) {
    let status = child.wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(libc::SIGKILL),
        "{what}: it never came there: {status}"
    );
}

#[test]
fn a_destination_killed_in_any_phase_leaves_the_guest_where_it_belongs() {
    // Where it dies, and whether the guest had been handed over by then: no, yes, perhaps.
    let places = [
        ("listening", Some(false)),
        ("negotiating", Some(false)),
        ("early_load", Some(false)),
        ("receiving", Some(false)),
        ("loading", Some(false)),
        ("load", Some(false)),
        ("loaded", Some(false)),
        ("ready", Some(false)),
        ("awaiting the hand-over", None),
        ("committing", Some(true)),
        ("starting", Some(true)),
        ("run", Some(true)),
        ("running", Some(true)),
    ];
    for (number, (place, handed_over)) in places.into_iter().cycle().take(26).enumerate() {
        let case = Case {
            what: format!("the destination dies at `{place}`"),
            // Both resolutions at each place.
            number: number + usize::from(number >= places.len()) * (1 - places.len() % 2),
            cut: Cut::Never,
        };
        let what = case.what.as_str();
        let (source, destination) = guests();
        let pair = Pair::of(source, destination);
        equip_source(&pair.from);
        pair.source.writer_within("ram", 1030..1042, MS / 4);
        let out = outgoing(&pair, limits(UNUSED));
        let (wire, a, b) = Wire::new(Cut::Never);
        let child = spawn("destination", place, b);
        let begun = Instant::now();
        out.start_with(ConnectTo::Connected(a), script(&pair.source))
            .unwrap();
        let result = out.wait(Some(LONG));
        let took = begun.elapsed();
        assert!(took < UNUSED, "{what}: {took:?}");
        reap(child, what);
        let log = wire.finish();
        let ran = matches!(place, "run" | "running");
        settled(&pair, &out, &result, &log, ran, &case);
        let unanswered = out.state() == State::Unanswered;
        assert!(
            unanswered || out.state() == State::Failed,
            "{what}: {result:?}"
        );
        if let Some(handed_over) = handed_over {
            assert_eq!(unanswered, handed_over, "{what}: {result:?}");
        }
        pair.source.pause();
        covered(&pair.source, None, &log, what);
        if unanswered {
            resolve(&pair, &out, ran, &case);
        }
    }
}

#[test]
fn a_source_killed_in_any_phase_never_leaves_a_destination_running_that_was_not_told_to() {
    let places = [
        ("connecting", false),
        ("negotiating", false),
        ("early_save", false),
        ("copying", false),
        ("pausing", false),
        ("pause", false),
        ("saving", false),
        ("save", false),
        ("last sync", false),
        ("sending the last pages", false),
        ("awaiting ready", false),
        ("releasing", false),
        ("release", false),
        ("committing", false),
        ("handing over", false),
        ("awaiting running", true),
        ("completed", true),
    ];
    for (place, runs) in places {
        let what = format!("the source dies at `{place}`");
        let pair = Pair::of(Guest::new(&[]), Guest::new(&specs()));
        equip_destination(&pair.to, None);
        let inc = incoming(&pair, limits(UNUSED));
        let (wire, a, b) = Wire::new(Cut::Never);
        let begun = Instant::now();
        inc.start(AcceptFrom::Connected(b)).unwrap();
        let child = spawn("source", place, a);
        let result = inc.wait(Some(LONG));
        let took = begun.elapsed();
        assert!(took < UNUSED, "{what}: {took:?}");
        reap(child, &what);
        let log = wire.finish();
        assert_eq!(log.handover, runs, "{what}");
        assert_eq!(pair.to.calls("run"), usize::from(runs), "{what}");
        assert_eq!(pair.destination.is_running(), runs, "{what}");
        match result {
            Ok(()) => assert!(runs, "{what}"),
            Err(e) => {
                assert!(!runs, "{what}: {e}");
                assert!(
                    matches!(e.kind(), Kind::PeerGone | Kind::Io),
                    "{what}: {:?} {e}",
                    e.kind()
                );
            }
        }
    }
}
