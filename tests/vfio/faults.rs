//! Every call to the kernel fails once, in each way that the interface allows, and afterwards the
//! devices of the source run.

use super::model::*;
use super::steps::Machines;
use brant::vmm::device::Device;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

/// A migration with an aborted pause in it, up to the first error.
fn migrate(machines: &Machines) -> brant::Result<()> {
    machines.begin()?;
    machines.rounds()?;
    machines.stop()?;
    machines.resume()?;
    machines.rounds()?;
    machines.stop()?;
    machines.rest()?;
    machines.loaded()
}

const FAULTS: [Fault; 3] = [
    Fault::Errno(libc::EIO),
    Fault::HalfWay(libc::EBUSY),
    Fault::Broken(libc::EIO),
];

/// Fails call `at` of the source's machine, or of the destination's. Returns whether there was one.
fn one(can: u64, at: usize, fault: Fault, source: bool) -> bool {
    let what = format!("abilities {can}, call {at}, {fault:?}, source {source}");
    let machines = Machines::new(at as u64, &[can, can]);
    let told = Arc::new(AtomicU32::new(0));
    for device in &machines.sources {
        let told = Arc::clone(&told);
        device.on_reset(move |why| {
            assert!(!why.message().is_empty());
            told.fetch_add(1, Ordering::SeqCst);
        });
    }
    let bus = match source {
        true => &machines.from,
        false => &machines.to,
    };
    let before = bus.lock().counted;
    bus.lock().fault = Some((before + at, fault));
    let result = migrate(&machines);
    let reached = bus.lock().counted > before + at;
    bus.lock().fault = None;
    if result.is_ok() {
        // A call whose failure is harmless: the migration may have succeeded all the same.
        machines.end();
        machines.run().unwrap();
        for i in 0..2 {
            assert_eq!(machines.from.state(i), STOP, "{what}");
        }
        return reached;
    }
    let error = result.unwrap_err();
    assert!(error.message().contains("VFIO"), "{what}: {error}");
    machines.from.lock().faults.clear();
    machines.resume().unwrap_or_else(|e| panic!("{what}: {e}"));
    machines.end();
    machines.reset();
    machines.assert_runs(&machines.from, &what);
    machines.assert_runs(&machines.to, &what);
    let resets: u32 = (0..2).map(|i| machines.from.lock().parts[i].resets).sum();
    assert_eq!(resets, told.load(Ordering::SeqCst), "{what}");
    if !(source && matches!(fault, Fault::Broken(_))) {
        assert_eq!(resets, 0, "{what}: a reset loses the device's state");
    }
    // Another migration of the same devices succeeds.
    migrate(&machines).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    for i in 0..2 {
        assert!(
            machines.from.registers(i) == machines.to.registers(i),
            "{what}"
        );
    }
    reached
}

#[test]
fn whatever_call_fails_the_source_s_devices_run_and_can_migrate_later() {
    for can in ABILITIES {
        for fault in FAULTS {
            for source in [true, false] {
                let mut at = 0;
                // Reads are many and alike, so later ones are tried in larger steps.
                while one(can, at, fault, source) {
                    at += 1 + at / 8;
                }
                assert!(at > 8, "{at} calls were made to fail");
            }
        }
    }
}

#[test]
fn a_device_in_error_is_reset_and_the_vmm_hears_that_its_state_is_lost() {
    let machines = Machines::new(9, &[ABILITIES[3]]);
    let told = Arc::new(AtomicU32::new(0));
    let there = Arc::clone(&told);
    machines.sources[0].on_reset(move |why| {
        assert!(why.message().contains("from ERROR to RUNNING"), "{why}");
        there.fetch_add(1, Ordering::SeqCst);
    });
    machines.begin().unwrap();
    machines.rounds().unwrap();
    let count = machines.from.lock().counted;
    machines.from.lock().fault = Some((count, Fault::Broken(libc::EIO)));
    machines.stop().unwrap_err();
    assert_eq!(machines.from.state(0), ERROR);
    machines.resume().unwrap();
    machines.end();
    machines.assert_runs(&machines.from, "reset");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(machines.from.lock().parts[0].resets, 1);
}

#[test]
fn a_device_that_even_a_reset_does_not_help_is_an_error_of_the_resume_with_every_answer() {
    let machines = Machines::new(10, &[ABILITIES[0]]);
    machines.begin().unwrap();
    let count = machines.from.lock().counted;
    machines.from.lock().fault = Some((count, Fault::Broken(libc::EIO)));
    machines.stop().unwrap_err();
    // RUNNING is refused, the state is asked for, and the reset fails.
    let count = machines.from.lock().counted;
    machines.from.lock().fault = Some((count + 2, Fault::Errno(libc::ENOTTY)));
    let error = machines.sources[0].resume().unwrap_err();
    for word in ["VFIO_DEVICE_RESET", "is in ERROR", "from ERROR to RUNNING"] {
        assert!(error.message().contains(word), "{error}");
    }
}

/// After the VMM's `resume` the guest runs, and a reset would take a device away from it. So whatever
/// call fails when a migration that paused the guest has failed, it is reset before that or not at all.
#[test]
fn once_a_failed_migration_has_resumed_the_guest_no_device_is_reset() {
    for can in ABILITIES {
        for stopped in [false, true] {
            let machines = Machines::new(11, &[can]);
            machines.begin().unwrap();
            machines.rounds().unwrap();
            machines.sources[0].quiesce().unwrap();
            if stopped {
                machines.sources[0].stop().unwrap();
            }
            machines.resume().unwrap();
            // The VMM has resumed the guest.
            machines.sources[0].on_reset(|why| panic!("reset under the guest: {why}"));
            let count = machines.from.lock().counted;
            machines.from.lock().fault = Some((count, Fault::Broken(libc::EIO)));
            machines.end();
            machines.from.lock().fault = None;
            machines.assert_runs(&machines.from, "resumed");
        }
    }
}
