//! Two real processes: the guest counts in the old one, and goes on counting in the new one with no
//! gap and no repeat. And either of them is killed at each step.

use super::machine::{Machine, PRIVATE, SHARED};
use super::params;
use crate::support::time::LONG;
use brant::error::{Error, Kind};
use brant::kvm_ioctls::Kvm;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, HandOver, Incoming, Outgoing, Params, Resolution, SourceState,
};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const ROLE: &str = "BRANT_TEST_HAND_OVER";
const PLACE: &str = "BRANT_TEST_DIES_AT";
/// The new process has the guest count by so many steps.
const STEPS: u32 = 200;

/// Ends the process without a message, a destructor or a flush.
fn die() {
    // SAFETY: a signal to this very process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// The other process: one side over this connection, which dies at `place`.
fn spawn(role: &str, place: &str, connection: OwnedFd) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "hand_over::processes::the_other_process",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(PLACE, place)
        .stdin(Stdio::from(connection))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn short() -> Params {
    Params {
        handover_timeout: Duration::from_millis(500),
        ..params(HandOver::WherePossible)
    }
}

fn outgoing(machine: &Arc<Machine>) -> Outgoing {
    let vmm = Arc::clone(machine);
    Outgoing::new(machine.tracker(), Blockers::new(), vmm, short()).unwrap()
}

fn incoming(machine: &Arc<Machine>) -> Incoming {
    let (memory, vmm) = (Arc::clone(&machine.memory), Arc::clone(machine));
    Incoming::new(memory, vmm, short()).unwrap()
}

/// No test, but the process that the tests below start: one side on its standard input.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let place = std::env::var(PLACE).unwrap();
    let connection = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let kvm = Kvm::new().unwrap();
    if role == "source" {
        let machine = Machine::new(&kvm, true, false);
        machine.at(&place, die);
        machine.start();
        machine.count_to(10);
        let out = outgoing(&machine);
        out.start(ConnectTo::Connected(connection)).unwrap();
        let _ = out.wait(Some(LONG));
    } else {
        let machine = Machine::new(&kvm, false, false);
        machine.at(&place, die);
        let inc = incoming(&machine);
        inc.start(AcceptFrom::Connected(connection)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        let from = machine.count(SHARED);
        machine.count_to(from + STEPS);
        machine.stop();
        assert!(!machine.is_wrong());
        let counts = [
            machine.count(SHARED),
            machine.count(PRIVATE),
            machine.count_of_vcpu(),
        ];
        println!("counted {counts:?}");
    }
}

fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(e) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {e}");
            None
        }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

/// A guest in this process that counts.
fn counting(kvm: &Kvm, ring: bool) -> Arc<Machine> {
    let machine = Machine::new(kvm, true, ring);
    machine.start();
    machine.count_to(20);
    machine
}

#[test]
fn a_guest_counts_on_in_the_new_process_with_no_gap_and_no_repeat() {
    let Some(kvm) = kvm() else { return };
    for ring in [false, true] {
        let machine = counting(&kvm, ring);
        let (near, far) = pair();
        let mut child = spawn("destination", "", far);
        let out = outgoing(&machine);
        out.start(ConnectTo::Connected(near)).unwrap();
        out.wait(Some(LONG)).unwrap();
        assert_eq!(out.state(), SourceState::Completed);
        assert_eq!(out.stats().shared_bytes, super::machine::LENGTH);
        // The vCPU here stands still, and its count is the last one of this process.
        let here = machine.count_of_vcpu();
        let mut said = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(child.wait().unwrap().success(), "ring {ring}: {said}");
        let counts: Vec<u32> = said
            .lines()
            .find_map(|line| line.split_once("counted "))
            .map(|(_, list)| {
                let list = list.trim_matches(['[', ']']).split(", ");
                list.map(|count| count.parse().unwrap()).collect()
            })
            .unwrap_or_else(|| panic!("{said}"));
        // The guest has compared the three with each other at each step. The memory that was copied
        // stays as it was here; the memory that was handed over is the new process's.
        assert!(counts[0] >= here + STEPS, "{here}: {counts:?}");
        assert_eq!(machine.count(SHARED), counts[0], "{counts:?}");
        assert!(machine.count(PRIVATE) <= here && machine.count(PRIVATE) + 1 >= here);
        assert!(counts[0].abs_diff(counts[2]) <= 1 && counts[1].abs_diff(counts[2]) <= 1);
        assert!(!machine.is_wrong());
    }
}

fn killed(mut child: Child, what: &str) {
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{what}: {status}");
}

/// A hand-over to a process that is killed at `place`, and its error here.
fn to_one_that_dies(kvm: &Kvm, place: &str) -> (Arc<Machine>, Outgoing, Error) {
    let machine = counting(kvm, false);
    let (near, far) = pair();
    let child = spawn("destination", place, far);
    let out = outgoing(&machine);
    out.start(ConnectTo::Connected(near)).unwrap();
    let error = out.wait(Some(LONG)).unwrap_err();
    killed(child, place);
    (machine, out, error)
}

#[test]
fn the_old_process_keeps_its_guest_when_the_new_one_dies_before_the_hand_over() {
    let Some(kvm) = kvm() else { return };
    let places = [
        "listening",
        "negotiating",
        "map_block",
        "receiving",
        "loading",
        "load",
        "loaded",
        "ready",
    ];
    for place in places {
        let (machine, out, error) = to_one_that_dies(&kvm, place);
        assert_eq!(out.state(), SourceState::Failed, "{place}: {error}");
        // The guest goes on here, and finds in each block what it has written.
        machine.count_to(machine.count(SHARED) + STEPS);
        machine.stop();
        assert!(!machine.is_wrong(), "{place}");
    }
}

#[test]
fn a_guest_that_was_handed_over_to_a_process_that_died_is_not_taken_back() {
    let Some(kvm) = kvm() else { return };
    for place in ["committing", "starting", "run", "ran"] {
        let (_machine, out, error) = to_one_that_dies(&kvm, place);
        assert_eq!(error.kind(), Kind::Unanswered, "{place}: {error}");
        let refused = out.resolve(Resolution::Resume).unwrap_err();
        assert_eq!(refused.kind(), Kind::State, "{place}: {refused}");
        out.resolve(Resolution::Destroy).unwrap();
        assert_eq!(out.state(), SourceState::GivenUp);
    }
}

#[test]
fn the_new_process_never_runs_a_guest_of_an_old_one_that_died_before_the_hand_over() {
    let Some(kvm) = kvm() else { return };
    let places = [
        "negotiating",
        "copying",
        "pause",
        "save",
        "sending the last pages",
        "awaiting ready",
        "release",
        "committing",
    ];
    for place in places {
        let machine = Machine::new(&kvm, false, false);
        let (near, far) = pair();
        let child = spawn("source", place, near);
        let inc = incoming(&machine);
        inc.start(AcceptFrom::Connected(far)).unwrap();
        let error = inc.wait(Some(LONG)).unwrap_err();
        killed(child, place);
        assert_eq!(
            inc.state(),
            brant::migrate::DestinationState::Failed,
            "{place}: {error}"
        );
    }
}
