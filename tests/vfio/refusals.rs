//! What is refused, and by which words: devices that cannot migrate, transfers that never give a byte
//! or never end, states that arrive damaged.

use super::model::*;
use super::steps::Machines;
use brant::device::vfio::VfioDevice;
use brant::error::Kind;
use brant::vmm::device::Device;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn a_device_whose_driver_cannot_migrate_says_so_before_anything_begins() {
    let bus = Bus::new(1, &[0, CAN_PRE_COPY]);
    for (i, expected) in [
        (0, "expected a VFIO device"),
        (1, "VFIO_MIGRATION_STOP_COPY"),
    ] {
        let device = VfioDevice::new(bus.device(i));
        for error in [device.abilities().unwrap_err(), device.begin().unwrap_err()] {
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.message().contains(expected), "{error}");
        }
        // The destination says the same at the first byte.
        assert_eq!(
            device.load_running(&[1]).unwrap_err().kind(),
            Kind::Unsupported
        );
    }
    assert!(bus.lock().calls.is_empty());
}

#[test]
fn a_descriptor_that_is_no_vfio_device_is_refused_by_the_kernel_s_own_answer() {
    let file = tempfile::tempfile().unwrap();
    let error = VfioDevice::from_fd(file.into()).err().unwrap();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.message().contains("VFIO_DEVICE_GET_INFO"), "{error}");
    assert!(error.message().contains("Inappropriate ioctl"), "{error}");
}

#[test]
fn an_error_names_both_states_where_the_device_is_now_and_the_kernel_s_answer() {
    let machines = Machines::new(2, &[ABILITIES[3]]);
    machines.begin().unwrap();
    let count = machines.from.lock().counted;
    machines.from.lock().fault = Some((count, Fault::Broken(libc::EIO)));
    let error = machines.sources[0].quiesce().unwrap_err();
    for word in [
        "from PRE_COPY to PRE_COPY_P2P",
        "in ERROR now",
        "os error 5",
    ] {
        assert!(error.message().contains(word), "{error}");
    }
}

#[test]
fn a_stopped_device_that_gives_no_byte_fails_after_the_limit_and_at_a_cancel() {
    for can in [ABILITIES[0], ABILITIES[3]] {
        let machines = Machines::new(3, &[can]);
        machines.sources[0]
            .set_limits(Duration::from_millis(50), 1 << 30)
            .unwrap();
        machines.begin().unwrap();
        machines.rounds().unwrap();
        machines.from.lock().parts[0].silent = true;
        machines.stop().unwrap();
        let error = machines.rest().unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(
            error.message().contains("STOP_COPY gave no byte"),
            "{error}"
        );
        machines.resume().unwrap();
        machines.end();
        machines.assert_runs(&machines.from, "silent");

        // Cancelled from another thread, while the limit is far away.
        machines.sources[0]
            .set_limits(Duration::from_secs(600), 1 << 30)
            .unwrap();
        machines.begin().unwrap();
        machines.stop().unwrap();
        let device = Arc::clone(&machines.sources[0]);
        let start = Instant::now();
        let reading = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match device.read_stopped(&mut buffer) {
                    Ok(0) => panic!("an end"),
                    Ok(_) => {}
                    Err(e) => return e,
                }
            }
        });
        machines.sources[0].cancel();
        assert_eq!(reading.join().unwrap().kind(), Kind::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn a_state_that_never_ends_is_given_up_at_the_stated_limit() {
    let machines = Machines::new(4, &[ABILITIES[3]]);
    machines.sources[0]
        .set_limits(Duration::from_secs(60), 20_000)
        .unwrap();
    machines.begin().unwrap();
    machines.rounds().unwrap();
    machines.from.lock().parts[0].endless = true;
    machines.stop().unwrap();
    let mut buffer = [0; 4096];
    let mut given = 0;
    let error = loop {
        match machines.sources[0].read_stopped(&mut buffer) {
            Ok(n) => given += n,
            Err(e) => break e,
        }
    };
    assert!(error.message().contains("more than 20000 bytes"), "{error}");
    assert!((1..=20_000).contains(&given), "{given}");
    machines.resume().unwrap();
    machines.end();
    machines.assert_runs(&machines.from, "endless");
}

#[test]
fn a_device_that_takes_no_byte_fails_the_load_after_the_limit() {
    let machines = Machines::new(5, &[ABILITIES[0]]);
    machines.destinations[0]
        .set_limits(Duration::from_millis(50), 1)
        .unwrap();
    machines.to.lock().parts[0].silent = true;
    machines.begin().unwrap();
    machines.stop().unwrap();
    let error = machines.rest().unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.message().contains("RESUMING took no byte"), "{error}");
    machines.reset();
    machines.assert_runs(&machines.to, "reset");
}

#[test]
fn a_state_that_is_cut_or_damaged_is_refused_and_a_reset_makes_the_device_usable_again() {
    let machines = Machines::new(6, &[ABILITIES[0]]);
    machines.begin().unwrap();
    machines.stop().unwrap();
    let mut stream = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match machines.sources[0].read_stopped(&mut buffer).unwrap() {
            0 => break,
            n => stream.extend(&buffer[..n]),
        }
    }
    let device = &machines.destinations[0];
    for cut in [0, 1, 8, 12, stream.len() - 8, stream.len() - 1] {
        device.load_stopped(&stream[..cut]).unwrap();
        let error = device.loaded().unwrap_err();
        assert!(
            error.message().contains("ends in the middle"),
            "{cut}: {error}"
        );
        device.reset();
        machines.assert_runs(&machines.to, "cut");
    }
    // A byte of a register is another one: the device's own sum does not fit.
    let mut damaged = stream.clone();
    damaged[18] ^= 1;
    device.load_stopped(&damaged).unwrap();
    let error = device.loaded().unwrap_err();
    for word in ["from RESUMING to STOP", "in ERROR now", "Invalid argument"] {
        assert!(error.message().contains(word), "{error}");
    }
    device.reset();
    // And the same device takes the whole one.
    device.load_stopped(&stream).unwrap();
    device.loaded().unwrap();
    assert!(machines.to.registers(0) == machines.from.registers(0));
}

#[test]
fn a_device_that_does_not_run_when_a_migration_begins_is_refused_by_its_state() {
    let machines = Machines::new(7, &[ABILITIES[3]]);
    machines.from.lock().parts[0].state = ERROR;
    let error = machines.sources[0].begin().unwrap_err();
    assert_eq!(error.kind(), Kind::State);
    assert!(
        error.message().contains("in ERROR; expected RUNNING"),
        "{error}"
    );
}
