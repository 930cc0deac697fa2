//! Whole migrations of a guest with modelled devices, which write its memory by DMA until they are
//! stopped: state and memory arrive equal, in the order that the kernel's interface asks for.

use super::model::*;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair, start, AbortsOnce};
use crate::support::time::{cancel_promptly, LONG};
use brant::device::vfio::VfioDevice;
use brant::dirty::iova::{DmaRange, DmaTarget, Iovas};
use brant::dirty::vfio::VfioDeviceLog;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo};
use brant::units::Bytes;
use std::sync::{Arc, Mutex};

const PAGES: usize = 400;
const NAMES_OF_DEVICES: [&str; 2] = ["nic", "gpu"];

struct Moving {
    pair: Pair,
    from: Bus,
    to: Bus,
}

/// A guest with devices of these abilities on both sides, and with their dirty logs if `logged`.
fn moving(seed: u64, abilities: &[u64], logged: bool) -> Moving {
    let pair = Pair::new(&[ram("ram", PAGES)]);
    pair.source.fill(seed);
    let from = Bus::new(seed, abilities);
    let to = Bus::new(!seed, abilities).waiting();
    let (block, memory) = pair.source.rams()[0].clone();
    from.lock().memory = Some(Memory {
        host: memory.page(0).as_ptr().cast_mut(),
        pages: PAGES as u64,
    });
    for (i, name) in NAMES_OF_DEVICES.iter().take(abilities.len()).enumerate() {
        let (here, there) = (from.device(i), to.device(i));
        let add = |guest: &brant::memory::Memory, device| {
            let device = Arc::new(VfioDevice::new(device));
            guest.add_device(name, 0, 1, device).unwrap();
        };
        add(&pair.source.memory, here);
        add(&pair.destination.memory, there);
        if logged {
            let range = DmaRange {
                iova: 0,
                length: Bytes(PAGES as u64 * 4096),
                target: DmaTarget::Block {
                    block,
                    offset: Bytes(0),
                },
            };
            let iovas = Iovas::ranges(vec![range]).unwrap();
            let log = VfioDeviceLog::new(from.device(i), iovas, 4096).unwrap();
            pair.source.tracker.add_log(Box::new(log)).unwrap();
        }
    }
    Moving { pair, from, to }
}

impl Moving {
    fn migrate(&self) -> brant::Result<()> {
        let (out, inc) = start(&self.pair, &quick());
        let result = out.wait(Some(LONG));
        let _ = inc.wait(Some(LONG));
        result
    }

    fn calls(&self) -> Vec<String> {
        self.from.lock().calls.clone()
    }

    fn assert_runs_on(&self, devices: usize, what: &str) {
        self.pair.assert_runs_on(what);
        for i in 0..devices {
            assert_eq!(self.from.state(i), RUNNING, "{what}: {:?}", self.calls());
            assert!(!self.from.has_transfer(i), "{what}");
            assert_eq!(
                self.to.state(i),
                RUNNING,
                "{what}: fresh at the destination"
            );
        }
    }
}

#[test]
fn a_guest_with_one_or_two_devices_arrives_with_their_state_and_all_that_they_wrote() {
    let two = [ABILITIES[3], ABILITIES[1]];
    let kinds: [&[u64]; 5] = [
        &ABILITIES[..1],
        &ABILITIES[1..2],
        &ABILITIES[2..3],
        &ABILITIES[3..],
        &two,
    ];
    for (seed, abilities) in kinds.into_iter().enumerate() {
        let moving = moving(seed as u64, abilities, true);
        moving.migrate().unwrap();
        // The destination's VMM has compared all memory when it was told to run.
        moving.pair.assert_sound("moved");
        assert_eq!(moving.pair.world.who(), (false, true));
        for i in 0..abilities.len() {
            assert_eq!((moving.from.state(i), moving.to.state(i)), (STOP, RUNNING));
            let (here, there) = (moving.from.registers(i), moving.to.registers(i));
            // The destination's device works on from the moment it runs.
            let changed = here.iter().zip(&there).filter(|(a, b)| a != b).count();
            assert!(changed < 12, "device {i}: {changed} registers differ");
            assert_eq!(moving.from.lock().parts[i].resets, 0);
        }
        let faults = [
            moving.from.lock().faults.clone(),
            moving.to.lock().faults.clone(),
        ];
        assert!(faults.iter().all(Vec::is_empty), "{faults:?}");
    }
}

#[test]
fn dma_is_logged_before_the_first_byte_of_state_and_synced_after_the_last_stop() {
    let moving = moving(9, &[ABILITIES[3], ABILITIES[3]], true);
    moving.migrate().unwrap();
    let calls = moving.calls();
    let first = |what: &str| calls.iter().position(|c| c.contains(what)).unwrap();
    let last = |what: &str| calls.iter().rposition(|c| c.contains(what)).unwrap();
    for i in 0..2 {
        assert!(
            first(&format!("{i} logs")) < first("to PRE_COPY_P2P"),
            "{calls:?}"
        );
        assert!(
            last("to STOP_COPY") < last(&format!("{i} reports")),
            "{calls:?}"
        );
        // And none of them is asked to log no more before that.
        assert!(
            last("to STOP_COPY") < last(&format!("{i} logs no more")),
            "{calls:?}"
        );
    }
    assert!(last("to PRE_COPY_P2P") < first("to STOP_COPY"), "{calls:?}");
}

#[test]
fn without_the_devices_logs_what_they_wrote_is_found_missing() {
    // That the comparison of the tests above can fail.
    let moving = moving(10, &[ABILITIES[3]], false);
    // Between the last pass and the stop, the device writes at each of these calls.
    let bus = moving.from.clone();
    moving.pair.from.at("pause", move || {
        for _ in 0..50 {
            bus.work();
        }
        Ok(())
    });
    let _ = moving.migrate();
    let wrongs = moving.pair.world.wrongs.lock().unwrap();
    assert!(!wrongs.is_empty(), "nothing was missed");
}

#[test]
fn what_a_device_writes_between_the_pause_and_its_stop_arrives() {
    let moving = moving(11, &[ABILITIES[3]], true);
    let bus = moving.from.clone();
    moving.pair.from.at("pause", move || {
        for _ in 0..50 {
            bus.work();
        }
        Ok(())
    });
    moving.migrate().unwrap();
    moving.pair.assert_sound("moved");
}

#[test]
fn initial_bytes_of_the_transfer_after_an_aborted_pause_are_loaded_before_the_next_pause() {
    let moving = moving(15, &[ABILITIES[3]], true);
    let (from, to) = (moving.from.clone(), moving.to.clone());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    moving.pair.from.at("pause", move || {
        noted.lock().unwrap().push(to.transferred(0));
        // The next transfer gives nothing at first.
        from.lock().parts[0].lazy = 30;
        Ok(())
    });
    let (out, inc) = (
        outgoing(&moving.pair, &quick()),
        incoming(&moving.pair, &quick()),
    );
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    let decider = Box::new(AbortsOnce::default());
    out.start_with(ConnectTo::Connected(a), decider).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    moving.pair.assert_sound("moved");
    assert_eq!(moving.to.lock().parts[0].resets, 1);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|n| *n >= REGISTERS * 3), "{seen:?}");
}

#[test]
fn a_cancel_does_not_wait_for_a_silent_device_and_the_next_migration_knows_nothing_of_it() {
    for at_source in [true, false] {
        let moving = moving(16, &[ABILITIES[3]], true);
        let bus = match at_source {
            true => moving.from.clone(),
            false => moving.to.clone(),
        };
        bus.lock().parts[0].silent = true;
        let (out, inc) = start(&moving.pair, &quick());
        let what = format!("at the source: {at_source}");
        match at_source {
            true => moving.pair.from.wait_state("sending the last pages"),
            false => {
                while moving.to.state(0) != RESUMING {
                    std::thread::yield_now();
                }
            }
        }
        let error = match at_source {
            true => {
                cancel_promptly(&what, || out.cancel()).unwrap();
                let _ = inc.wait(Some(LONG));
                out.wait(Some(LONG)).unwrap_err()
            }
            false => {
                cancel_promptly(&what, || inc.cancel()).unwrap();
                let _ = out.wait(Some(LONG));
                inc.wait(Some(LONG)).unwrap_err()
            }
        };
        assert_eq!(error.kind(), Kind::Cancelled, "{what}: {error}");
        moving.assert_runs_on(1, &what);
        drop((out, inc));
        bus.lock().parts[0].silent = false;
        moving.migrate().unwrap();
        assert_eq!((moving.from.state(0), moving.to.state(0)), (STOP, RUNNING));
        moving.pair.assert_sound(&what);
    }
}

#[test]
fn a_device_that_fails_is_named_and_guest_and_device_run_on_at_the_source() {
    for operation in ["pause", "save"] {
        let moving = moving(12, &[ABILITIES[3], ABILITIES[3]], true);
        let bus = moving.from.clone();
        moving.pair.from.at(operation, move || {
            let mut state = bus.lock();
            // The next call about a state, or a later one: each is a device's.
            state.fault = Some((state.counted, Fault::Broken(libc::EIO)));
            Ok(())
        });
        let result = moving.migrate();
        if operation == "pause" {
            let error = result.unwrap_err();
            for word in [
                "device `nic`",
                "from PRE_COPY to PRE_COPY_P2P",
                "in ERROR now",
            ] {
                assert!(error.message().contains(word), "{error}");
            }
            moving.assert_runs_on(2, operation);
            assert_eq!(moving.from.lock().parts[0].resets, 1);
        }
        moving.pair.assert_sound(operation);
    }
}

#[test]
fn a_destination_whose_device_refuses_its_state_leaves_the_guest_at_the_source() {
    let moving = moving(13, &[ABILITIES[3]], true);
    let bus = moving.to.clone();
    moving.pair.to.at("load", move || {
        let mut state = bus.lock();
        state.fault = Some((state.counted, Fault::Broken(libc::EINVAL)));
        Ok(())
    });
    let error = moving.migrate().unwrap_err();
    for word in ["device `nic`", "from RESUMING to STOP"] {
        assert!(error.message().contains(word), "{error}");
    }
    moving.assert_runs_on(1, "refused");
    assert_eq!(moving.from.lock().parts[0].resets, 0);
}

#[test]
fn a_device_that_cannot_migrate_ends_the_migration_before_anything_is_sent_by_its_name() {
    let moving = moving(14, &[0], false);
    let error = moving.migrate().unwrap_err();
    for word in ["device `nic`", "VFIO_DEVICE_FEATURE_MIGRATION"] {
        assert!(error.message().contains(word), "{error}");
    }
    moving.assert_runs_on(1, "no migration");
    assert_eq!(moving.pair.from.calls("pause"), 0);
}
