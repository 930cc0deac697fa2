//! The gate, with real vCPUs: what a pause promises at any moment, and what it says when it cannot.

mod device;
mod guest;
mod machine;

use crate::support::random::Random;
use crate::support::time::{LONG, MS};
use brant::gate::{Config, Gate, Holder};
use brant::Kind;
use machine::{config, kvm, Machine, Ram, Seen, ASKS, HALTS, LOOPS};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn seed() -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = nanos.unwrap().as_nanos() as u64;
    println!("seed {seed}");
    seed
}

/// Spins, because a sleep is too coarse.
fn pass(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// At each pause the vCPU's registers go to another machine, where the guest goes on. An exit that was
/// not retired would be lost there, or made twice.
#[test]
fn no_port_access_is_lost_or_repeated_by_pauses_at_any_moment() {
    let Some(kvm) = kvm() else { return };
    let (ram, seen) = (Ram::new(ASKS), Arc::new(Seen::default()));
    let machines = [(); 2].map(|()| Machine::new(&kvm, &ram, &seen, false));
    let mut random = Random(seed());
    machines.iter().for_each(|m| m.gate.pause(LONG).unwrap());
    machines.iter().for_each(|m| m.gate.start().unwrap());
    for moves in 0..2000 {
        let (from, to) = (&machines[moves % 2], &machines[(moves + 1) % 2]);
        from.gate.resume().unwrap();
        pass(Duration::from_micros(random.next() % 60));
        from.gate.pause(LONG).unwrap();
        let (state, told) = (from.state(), seen.told.load(Ordering::Relaxed));
        let counted = state.0.rbx as u32;
        // The guest has counted, and may not have told yet.
        assert!(
            counted == told || counted == told + 1,
            "{counted} after {told}"
        );
        to.set_state(&state);
        seen.check();
    }
    let told = seen.told.load(Ordering::Relaxed);
    println!(
        "{told} numbers in {} exits",
        seen.exits.load(Ordering::Relaxed)
    );
    assert!(told > 500, "{told}");
}

#[test]
fn a_guest_that_loops_without_an_exit_is_paused_and_runs_on() {
    let Some(kvm) = kvm() else { return };
    let (ram, seen) = (Ram::new(LOOPS), Arc::new(Seen::default()));
    let machine = Machine::new(&kvm, &ram, &seen, false);
    machine.gate.start().unwrap();
    let mut random = Random(seed());
    for _ in 0..1000 {
        pass(Duration::from_micros(random.next() % 50));
        machine.gate.pause(LONG).unwrap();
        machine.gate.pause(LONG).unwrap();
        machine.gate.resume().unwrap();
        assert!(machine.gate.holds().by(Holder::User));
        machine.gate.resume().unwrap();
        machine.gate.on_kick().unwrap();
    }
    machine.gate.kick_vcpu(0).unwrap();
    assert_eq!(
        machine.gate.kick_vcpu(1).unwrap_err().kind(),
        Kind::NotFound
    );
    seen.check();
}

#[test]
fn a_halted_vcpu_is_paused_in_the_kernel_and_in_the_vmm() {
    let Some(kvm) = kvm() else { return };
    for interrupts in [true, false] {
        let (ram, seen) = (Ram::new(HALTS), Arc::new(Seen::default()));
        let machine = Machine::new(&kvm, &ram, &seen, interrupts);
        machine.gate.start().unwrap();
        for _ in 0..100 {
            pass(Duration::from_micros(20));
            machine.gate.pause(LONG).unwrap();
            machine.gate.resume().unwrap();
            machine.gate.on_kick().unwrap();
            machine.gate.kick_vcpu(0).unwrap();
        }
        seen.check();
    }
}

/// A vCPU's thread without KVM. It does what it is told between `enter` and `left`.
struct Slow {
    gate: Arc<Gate>,
    go: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

fn slow(gate: &Arc<Gate>, number: u32, inside: bool) -> Slow {
    let (go, may_go) = channel::<()>();
    let (ready, is_ready) = channel();
    let at = Arc::clone(gate);
    let thread = std::thread::spawn(move || {
        let vcpu = at.add_vcpu(number, None).unwrap();
        vcpu.enter().unwrap();
        if !inside {
            vcpu.left(false).unwrap();
        }
        ready.send(()).unwrap();
        may_go.recv().unwrap();
        if !inside {
            vcpu.enter().unwrap();
        }
        while vcpu.left(true).is_ok() && vcpu.enter().is_ok() {
            std::thread::yield_now();
        }
    });
    is_ready.recv().unwrap();
    Slow {
        gate: Arc::clone(gate),
        go,
        thread,
    }
}

impl Slow {
    fn end(self) {
        let _ = self.go.send(());
        self.gate.shut_down();
        self.thread.join().unwrap();
    }
}

#[test]
fn a_pause_names_who_did_not_come_and_the_gate_works_afterwards() {
    let wait = 50 * MS;
    let gate = Gate::new(Config { wait, ..config() }).unwrap();
    gate.start().unwrap();
    let busy = slow(&gate, 3, false);
    let error = gate.pause(50 * MS).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    let text = error.message();
    assert!(
        text.contains("50 ms") && text.contains("vCPU 3 (its exit is being handled)"),
        "{text}"
    );
    assert!(gate.holds().is_open(), "{:?}", gate.holds());
    let stuck = slow(&gate, 4, true);
    let text = gate.pause(MS).unwrap_err().to_string();
    assert!(
        text.contains("vCPU 3") && text.contains("vCPU 4 (in KVM_RUN)"),
        "{text}"
    );
    // A second pause that fails leaves the first one waiting.
    let other = Arc::clone(&gate);
    let first = std::thread::spawn(move || other.pause(LONG));
    while !gate.holds().by(Holder::User) {
        std::thread::yield_now();
    }
    assert_eq!(gate.on_pause().unwrap_err().kind(), Kind::Timeout);
    assert!(gate.holds().by(Holder::User) && !gate.holds().by(Holder::Migration));
    busy.go.send(()).unwrap();
    stuck.go.send(()).unwrap();
    first.join().unwrap().unwrap();
    gate.resume().unwrap();
    gate.pause(LONG).unwrap();
    gate.resume().unwrap();
    gate.shut_down();
    busy.thread.join().unwrap();
    stuck.thread.join().unwrap();
}

#[test]
fn each_user_takes_its_own_pause_back_and_one_that_failed_is_none() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let (operator, snapshot) = (&gate, &gate);
    snapshot.pause(LONG).unwrap();
    operator.pause(LONG).unwrap();
    snapshot.resume().unwrap();
    assert!(gate.holds().by(Holder::User), "its operator has paused it");
    operator.resume().unwrap();
    assert!(gate.holds().is_open());
    // A pause that ran out of time leaves the pause of another user alone.
    let device = gate.add_device("disk").unwrap();
    operator.pause(LONG).unwrap();
    operator.resume().unwrap();
    let inside = device.enter(None).unwrap();
    let at = Arc::clone(&gate);
    let late = std::thread::spawn(move || at.pause(5 * MS)).join().unwrap();
    assert_eq!(late.unwrap_err().kind(), Kind::Timeout);
    assert!(gate.holds().is_open());
    drop(inside);
    // A pause that waits and is taken back says so.
    let busy = slow(&gate, 1, false);
    let at = Arc::clone(&gate);
    let waits = std::thread::spawn(move || at.pause(LONG));
    while !gate.holds().by(Holder::User) {
        std::thread::yield_now();
    }
    gate.resume().unwrap();
    assert_eq!(waits.join().unwrap().unwrap_err().kind(), Kind::State);
    assert_eq!(gate.holds().user_pauses(), 0);
    busy.end();
}

/// One resume takes one of two pauses that wait back. The other one holds the guest.
#[test]
fn each_pause_that_returned_holds_the_guest_until_it_is_taken_back() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let device = gate.add_device("disk").unwrap();
    let inside = device.enter(None).unwrap();
    let waits = [(); 2].map(|()| {
        let at = Arc::clone(&gate);
        std::thread::spawn(move || at.pause(LONG).map_err(|e| e.kind()))
    });
    while gate.holds().user_pauses() < 2 {
        std::thread::yield_now();
    }
    gate.resume().unwrap();
    drop(inside);
    let mut ended = waits.map(|pause| pause.join().unwrap());
    ended.sort_by_key(|pause| pause.is_err());
    assert_eq!(ended, [Ok(()), Err(Kind::State)]);
    assert_eq!(gate.holds().user_pauses(), 1);
    gate.resume().unwrap();
    assert!(gate.holds().is_open());
}

#[test]
fn a_thread_that_ended_without_leaving_is_named() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let at = Arc::clone(&gate);
    let ended = std::thread::spawn(move || {
        let vcpu = at.add_vcpu(7, None).unwrap();
        vcpu.enter().unwrap();
        std::mem::forget(vcpu);
    });
    ended.join().unwrap();
    let text = gate.pause(30 * MS).unwrap_err().to_string();
    assert!(text.contains("vCPU 7 (its thread has ended"), "{text}");
}

#[test]
fn a_shut_down_ends_a_pause_that_waits_and_every_thread() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let busy = slow(&gate, 0, false);
    let (a, b) = (Arc::clone(&gate), Arc::clone(&gate));
    let pauses = [
        std::thread::spawn(move || a.pause(LONG)),
        std::thread::spawn(move || b.on_pause()),
    ];
    while !(gate.holds().by(Holder::User) && gate.holds().by(Holder::Migration)) {
        std::thread::yield_now();
    }
    gate.shut_down();
    for pause in pauses {
        let error = pause.join().unwrap().unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (Kind::Cancelled, "the guest has shut down")
        );
    }
    // A migration that had paused it calls `resume`, and that is fine.
    gate.on_resume();
    assert!(gate.holds().is_shut_down());
    for refused in [
        gate.start(),
        gate.pause(LONG),
        gate.resume(),
        gate.on_run(),
        gate.on_pause(),
    ] {
        assert_eq!(refused.unwrap_err().kind(), Kind::Cancelled);
    }
    gate.on_kick().unwrap();
    assert_eq!(gate.add_vcpu(9, None).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(gate.add_device("late").unwrap_err().kind(), Kind::Cancelled);
    busy.end();
}

#[test]
fn a_vcpu_that_comes_during_a_pause_waits_and_one_that_goes_is_not_waited_for() {
    let Some(kvm) = kvm() else { return };
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    gate.pause(LONG).unwrap();
    let at = Arc::clone(&gate);
    let (entered, has_entered) = channel();
    let comes = std::thread::spawn(move || {
        let vcpu = at.add_vcpu(1, None).unwrap();
        vcpu.enter().unwrap();
        entered.send(()).unwrap();
        vcpu.left(true).unwrap();
    });
    assert!(
        has_entered.recv_timeout(20 * MS).is_err(),
        "entered during a pause"
    );
    gate.pause(LONG).unwrap();
    gate.resume().unwrap();
    assert!(
        has_entered.recv_timeout(20 * MS).is_err(),
        "one of two pauses was taken back"
    );
    gate.resume().unwrap();
    has_entered.recv_timeout(LONG).unwrap();
    comes.join().unwrap();
    // It goes in the middle of an exit, while a pause waits for it.
    let busy = slow(&gate, 2, false);
    let at = Arc::clone(&gate);
    let pause = std::thread::spawn(move || at.pause(LONG));
    while !gate.holds().by(Holder::User) {
        std::thread::yield_now();
    }
    drop(busy.go);
    assert!(
        busy.thread.join().is_err(),
        "it was to panic, and go by that"
    );
    pause.join().unwrap().unwrap();
    drop(kvm);
}

#[test]
fn a_pause_by_a_thread_that_would_wait_for_itself_is_refused() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let vcpu = gate.add_vcpu(5, None).unwrap();
    let error = gate.pause(LONG).unwrap_err();
    assert_eq!(error.kind(), Kind::Callback);
    assert!(error.message().contains("vCPU 5"), "{error}");
    assert_eq!(gate.on_pause().unwrap_err().kind(), Kind::Callback);
    assert!(gate.holds().is_open());
    // Another gate's vCPU may pause this one.
    Gate::new(config()).unwrap().pause(LONG).unwrap();
    assert_eq!(vcpu.run().unwrap_err().kind(), Kind::State);
    assert_eq!(gate.add_vcpu(5, None).unwrap_err().kind(), Kind::Exists);
    let elsewhere = std::thread::scope(|s| s.spawn(|| vcpu.enter().unwrap_err()).join().unwrap());
    assert_eq!(elsewhere.kind(), Kind::State);
    drop(vcpu);
    gate.pause(LONG).unwrap();
}

/// In a process of its own, because a signal's action is the whole process's.
#[test]
fn no_handler_is_installed_unasked_and_a_signal_without_one_is_never_sent() {
    crate::support::alone::alone(LONG, || {
        let signal = libc::SIGUSR1;
        let gate = Gate::new(Config {
            signal,
            ..Config::default()
        })
        .unwrap();
        let error = gate.add_vcpu(0, None).unwrap_err();
        assert_eq!(error.kind(), Kind::State);
        assert!(error.message().contains("default action"), "{error}");
        let with = Gate::new(Config {
            signal,
            install_handler: true,
            ..Config::default()
        })
        .unwrap();
        with.start().unwrap();
        let stuck = slow(&with, 0, true);
        // The VMM takes the handler away again.
        // SAFETY: as the test wants it, in a process of its own.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        assert_eq!(with.pause(LONG).unwrap_err().kind(), Kind::State);
        assert_eq!(with.on_kick().unwrap_err().kind(), Kind::State);
        stuck.end();
        // SAFETY: as above.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
        let ignored = Gate::new(Config {
            signal,
            install_handler: true,
            ..Config::default()
        });
        assert!(ignored.unwrap_err().message().contains("ignored"));
        for wrong in [0, -1, libc::SIGKILL, libc::SIGSEGV, 4096] {
            let error = Gate::new(Config {
                signal: wrong,
                ..Config::default()
            })
            .unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
        }
    });
}

#[test]
fn a_descriptor_of_no_vcpu_is_refused() {
    use std::os::fd::AsFd;
    let gate = Gate::new(config()).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = gate.add_vcpu(0, Some(file.as_fd())).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.message().contains("KVM_CREATE_VCPU"), "{error}");
}
