//! Threads of devices: outside during a pause, and asked only when the vCPUs stand.

use super::machine::config;
use super::{seed, Random, LONG, MS};
use brant::gate::Gate;
use brant::Kind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::Arc;

#[test]
fn no_device_thread_stands_between_a_write_and_its_mark_during_a_pause() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let (written, marked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let ends = Arc::new(AtomicBool::new(false));
    let device = Arc::new(gate.add_device("disk").unwrap());
    let threads = [0, 1, 2].map(|_| {
        let (device, ends) = (Arc::clone(&device), Arc::clone(&ends));
        let (written, marked) = (Arc::clone(&written), Arc::clone(&marked));
        std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let _inside = device.enter(None).unwrap();
                written.fetch_add(1, Ordering::Relaxed);
                // A device that calls another one's code is inside twice.
                let _again = device.enter(None).unwrap();
                marked.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let mut random = Random(seed());
    for _ in 0..2000 {
        for _ in 0..random.below(300) {
            std::hint::spin_loop();
        }
        gate.pause(LONG).unwrap();
        let seen = written.load(Ordering::Relaxed);
        assert_eq!(seen, marked.load(Ordering::Relaxed));
        std::thread::yield_now();
        assert_eq!(
            seen,
            written.load(Ordering::Relaxed),
            "written during a pause"
        );
        gate.resume().unwrap();
    }
    ends.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert!(written.load(Ordering::Relaxed) > 0);
}

/// A vCPU whose exit waits for a device thread must get its answer, so devices stay open until then.
#[test]
fn devices_are_asked_when_the_vcpus_stand_and_not_before() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let device = gate.add_device("serial").unwrap();
    let (ask, asked) = channel::<()>();
    let (answer, answered) = channel::<()>();
    let (began, has_begun) = channel();
    let at = Arc::clone(&gate);
    let vcpu = std::thread::spawn(move || {
        let vcpu = at.add_vcpu(0, None).unwrap();
        vcpu.enter().unwrap();
        vcpu.left(false).unwrap();
        began.send(()).unwrap();
        // In the middle of an exit, long after the pause has begun.
        while at.holds().is_open() {
            std::thread::yield_now();
        }
        ask.send(()).unwrap();
        answered.recv_timeout(LONG).unwrap();
        vcpu.enter().unwrap();
        vcpu.left(true).unwrap();
    });
    let io = std::thread::spawn(move || {
        asked.recv_timeout(LONG).unwrap();
        let inside = device.enter(Some(LONG)).unwrap();
        answer.send(()).unwrap();
        drop(inside);
        device
    });
    has_begun.recv_timeout(LONG).unwrap();
    gate.pause(LONG).unwrap();
    let device = io.join().unwrap();
    // Now it is closed.
    assert_eq!(device.enter(Some(MS)).unwrap_err().kind(), Kind::Pending);
    gate.resume().unwrap();
    vcpu.join().unwrap();
}

#[test]
fn a_device_thread_that_stays_inside_is_named_and_may_not_pause_itself() {
    let gate = Gate::new(config()).unwrap();
    gate.start().unwrap();
    let device = gate.add_device("net0").unwrap();
    let other = gate.add_device("blk").unwrap();
    let inside = device.enter(None).unwrap();
    let error = gate.pause(MS).unwrap_err();
    assert_eq!(error.kind(), Kind::Callback);
    let at = Arc::clone(&gate);
    let error = std::thread::spawn(move || at.pause(20 * MS).unwrap_err())
        .join()
        .unwrap();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(
        error
            .message()
            .contains("device `net0` (a thread is inside)"),
        "{error}"
    );
    // The gate is open again, for all devices.
    drop(other.enter(Some(LONG)).unwrap());
    drop(inside);
    assert_eq!(device.leave().unwrap_err().kind(), Kind::State);
    gate.pause(LONG).unwrap();
    assert_eq!(gate.add_device("blk").unwrap_err().kind(), Kind::Exists);
    // A device that comes during a pause is closed too.
    let late = gate.add_device("late").unwrap();
    assert_eq!(late.enter(Some(MS)).unwrap_err().kind(), Kind::Pending);
    for wrong in ["", "a\nb", &"n".repeat(129)] {
        assert_eq!(gate.add_device(wrong).unwrap_err().kind(), Kind::Invalid);
    }
}

/// At a destination the guest arrives in memory that its devices must not write yet.
#[test]
fn a_device_thread_waits_until_the_guest_has_started() {
    let gate = Gate::new(config()).unwrap();
    let device = gate.add_device("disk").unwrap();
    assert_eq!(device.enter(Some(MS)).unwrap_err().kind(), Kind::Pending);
    // A pause of the user's that comes and goes before does not let it in.
    gate.pause(LONG).unwrap();
    gate.resume().unwrap();
    assert_eq!(device.enter(Some(MS)).unwrap_err().kind(), Kind::Pending);
    gate.start().unwrap();
    drop(device.enter(Some(LONG)).unwrap());
}
