//! What a pause promises, in every order of a pausing thread's, a vCPU's and a device's steps, with a
//! model of `KVM_RUN`: it returns at once while `immediate_exit` is set, and otherwise when a signal
//! comes *while it runs*. A signal that comes earlier is lost, as with a handler that does nothing.

use brant_loom::error::Kind;
use brant_loom::gate::holds::Holder;
use brant_loom::gate::protocol::{Kick, Protocol};
use brant_loom::runtime::deadline::Deadline;
use brant_loom::runtime::sync::{Arc, AtomicBool, AtomicU64, Condvar, Mutex, Ordering};
use loom::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(1000);

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&orders);
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!("{orders:?} orders");
}

#[derive(Default)]
struct Cpu {
    in_kernel: bool,
    signalled: bool,
}

/// The kernel's side of one vCPU.
struct Kernel {
    immediate_exit: AtomicBool,
    cpu: Mutex<Cpu>,
    changed: Condvar,
}

/// What a `KVM_RUN` does when nobody takes it out.
#[derive(Clone, Copy, PartialEq)]
enum Guest {
    /// It exits by itself.
    Exits,
    /// It runs for ever.
    Loops,
}

impl Kernel {
    fn new() -> Arc<Kernel> {
        Arc::new(Kernel {
            immediate_exit: AtomicBool::new(false),
            cpu: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Whether it was interrupted.
    fn run(&self, guest: Guest) -> bool {
        let mut cpu = self.cpu.lock().unwrap();
        *cpu = Cpu {
            in_kernel: true,
            signalled: false,
        };
        // The kernel looks at immediate_exit when the call begins, and never again.
        let mut out = self.immediate_exit.load(Ordering::Relaxed);
        while !out && guest == Guest::Loops {
            if cpu.signalled {
                out = true;
                break;
            }
            cpu = self.changed.wait(cpu).unwrap();
        }
        cpu.in_kernel = false;
        drop(cpu);
        // Between immediate_exit and *asked* a vCPU comes out again and again, without being stopped.
        thread::yield_now();
        out
    }
}

struct Signals(Arc<Kernel>);

impl Kick for Signals {
    fn set_immediate_exit(&self, on: bool) {
        self.0.immediate_exit.store(on, Ordering::Relaxed);
    }
    fn signal(&self) {
        let mut cpu = self.0.cpu.lock().unwrap();
        // Otherwise the handler runs, and that was all.
        cpu.signalled = cpu.in_kernel;
        self.0.changed.notify_all();
    }
    fn has_ended(&self) -> bool {
        false
    }
}

fn protocol() -> Arc<Protocol> {
    let protocol = Arc::new(Protocol::new());
    protocol.start(None).unwrap();
    protocol
}

/// A guest that never exits by itself is out of KVM_RUN when the pause returns, wherever the pause met
/// it, and enters again after the resume. If a kick could be lost, the model would stand for ever.
#[test]
fn a_pause_takes_out_a_vcpu_that_is_about_to_enter() {
    check(4, || {
        let (protocol, kernel) = (protocol(), Kernel::new());
        let vcpu = protocol
            .add_vcpu(0, Box::new(Signals(Arc::clone(&kernel))))
            .unwrap();
        let runs = Arc::new(AtomicU64::new(0));
        let (p, k, r) = (
            Arc::clone(&protocol),
            Arc::clone(&kernel),
            Arc::clone(&runs),
        );
        let thread = thread::spawn(move || {
            // After the first exit the vCPU owes a retirement, and enters although it is asked.
            let mut guest = Guest::Exits;
            while p.enter(&vcpu).is_ok() {
                r.fetch_add(1, Ordering::Relaxed);
                let interrupted = k.run(std::mem::replace(&mut guest, Guest::Loops));
                r.fetch_add(1, Ordering::Relaxed);
                if p.left(&vcpu, interrupted).is_err() {
                    return;
                }
            }
        });
        protocol.hold(Holder::User, LONG).unwrap();
        let seen = runs.load(Ordering::Relaxed);
        assert_eq!(seen % 2, 0, "in KVM_RUN during a pause");
        thread::yield_now();
        assert_eq!(runs.load(Ordering::Relaxed), seen, "ran during a pause");
        protocol.lift(Holder::User).unwrap();
        protocol.shut_down();
        thread.join().unwrap();
    });
}

/// An exit that was handled and not retired is retired by one more KVM_RUN before the vCPU stands.
#[test]
fn a_vcpu_stands_only_when_its_last_kvm_run_was_interrupted() {
    check(3, || {
        let (protocol, kernel) = (protocol(), Kernel::new());
        let vcpu = protocol
            .add_vcpu(0, Box::new(Signals(Arc::clone(&kernel))))
            .unwrap();
        let pending = Arc::new(AtomicBool::new(false));
        let (p, k, owes) = (
            Arc::clone(&protocol),
            Arc::clone(&kernel),
            Arc::clone(&pending),
        );
        let thread = thread::spawn(move || loop {
            if p.enter(&vcpu).is_err() {
                return;
            }
            let interrupted = k.run(Guest::Exits);
            owes.store(!interrupted, Ordering::Relaxed);
            if p.left(&vcpu, interrupted).is_err() {
                return;
            }
        });
        protocol.hold(Holder::Migration, LONG).unwrap();
        assert!(
            !pending.load(Ordering::Relaxed),
            "an exit is pending in a pause"
        );
        protocol.shut_down();
        thread.join().unwrap();
    });
}

/// A kick returns when the vCPU was out once, and leaves the guest running.
#[test]
fn a_kick_takes_a_looping_vcpu_out_once() {
    check(2, || {
        let (protocol, kernel) = (protocol(), Kernel::new());
        let vcpu = protocol
            .add_vcpu(0, Box::new(Signals(Arc::clone(&kernel))))
            .unwrap();
        let (p, k) = (Arc::clone(&protocol), Arc::clone(&kernel));
        let thread = thread::spawn(move || loop {
            if p.enter(&vcpu).is_err() {
                return;
            }
            let interrupted = k.run(Guest::Loops);
            if p.left(&vcpu, interrupted).is_err() {
                return;
            }
        });
        protocol.kick_all(LONG).unwrap();
        assert!(protocol.holds().is_open());
        protocol.shut_down();
        thread.join().unwrap();
    });
}

/// While a pause lasts no thread of a device is inside, and it comes in again afterwards.
#[test]
fn no_device_thread_is_inside_during_a_pause() {
    check(3, || {
        let protocol = protocol();
        let device = protocol.add_device("disk".into()).unwrap();
        let writes = Arc::new(AtomicU64::new(0));
        let (p, w) = (Arc::clone(&protocol), Arc::clone(&writes));
        let thread = thread::spawn(move || {
            for _ in 0..2 {
                p.come_in(&device, Deadline::never()).unwrap();
                w.fetch_add(1, Ordering::Relaxed);
                w.fetch_add(1, Ordering::Relaxed);
                p.go_out(&device);
            }
        });
        protocol.hold(Holder::User, LONG).unwrap();
        let seen = writes.load(Ordering::Relaxed);
        assert_eq!(seen % 2, 0, "between a write and its mark");
        thread::yield_now();
        assert_eq!(writes.load(Ordering::Relaxed), seen, "wrote during a pause");
        protocol.lift(Holder::User).unwrap();
        thread.join().unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 4);
    });
}

/// Two users of the VMM's pause and resume as they like: the guest stands from each one's pause to its resume.
#[test]
fn a_user_resumes_its_own_pause_and_nobody_elses() {
    check(2, || {
        let protocol = protocol();
        let device = protocol.add_device("disk".into()).unwrap();
        let writes = Arc::new(AtomicU64::new(0));
        let (p, w) = (Arc::clone(&protocol), Arc::clone(&writes));
        let thread = thread::spawn(move || {
            p.come_in(&device, Deadline::never()).unwrap();
            w.fetch_add(1, Ordering::Relaxed);
            w.fetch_add(1, Ordering::Relaxed);
            p.go_out(&device);
        });
        let user = |p: &Protocol, w: &AtomicU64| {
            p.hold(Holder::User, LONG).unwrap();
            let seen = w.load(Ordering::Relaxed);
            assert_eq!(seen % 2, 0, "between a write and its mark");
            thread::yield_now();
            assert_eq!(w.load(Ordering::Relaxed), seen, "wrote during a pause");
            p.lift(Holder::User).unwrap();
        };
        let (p, w) = (Arc::clone(&protocol), Arc::clone(&writes));
        let other = thread::spawn(move || user(&p, &w));
        user(&protocol, &writes);
        other.join().unwrap();
        assert!(protocol.holds().is_open());
        thread.join().unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 2);
    });
}

/// A pause and a shutdown at the same time both end, and nobody comes in afterwards.
#[test]
fn a_shut_down_ends_a_pause_that_waits() {
    check(3, || {
        let protocol = protocol();
        let device = protocol.add_device("disk".into()).unwrap();
        protocol.come_in(&device, Deadline::never()).unwrap();
        let p = Arc::clone(&protocol);
        let pausing = thread::spawn(move || p.hold(Holder::Migration, LONG));
        protocol.shut_down();
        let error = pausing.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled);
        let later = protocol.come_in(&device, Deadline::never());
        assert_eq!(later.unwrap_err().kind(), Kind::Cancelled);
    });
}
