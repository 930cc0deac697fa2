//! Which calls are made, in which order, and that the state at the destination is the source's.

use super::model::*;
use super::steps::Machines;
use brant::vmm::device::Device;

fn calls(bus: &Bus) -> Vec<String> {
    std::mem::take(&mut bus.lock().calls)
}

/// A whole migration. The devices of the source stop to work at their stop, so their registers stay
/// for the comparison.
fn migrate(machines: &Machines) {
    machines.begin().unwrap();
    machines.rounds().unwrap();
    machines.stop().unwrap();
    let before: Vec<Vec<u8>> = (0..machines.sources.len())
        .map(|i| machines.from.registers(i))
        .collect();
    machines.rest().unwrap();
    machines.loaded().unwrap();
    for (i, before) in before.iter().enumerate() {
        assert!(machines.to.registers(i) == *before, "device {i} differs");
    }
    machines.end();
    machines.run().unwrap();
    machines.assert_no_faults("a whole migration");
}

#[test]
fn the_ways_of_the_model_are_those_that_the_kernel_s_comment_lists() {
    let all = ABILITIES[3];
    let named = |way: Option<Vec<u32>>| {
        let names = way?.iter().map(|s| NAMES[*s as usize]).collect::<Vec<_>>();
        Some(names.join(" "))
    };
    let cases = [
        (PRE_COPY, STOP_COPY, "PRE_COPY_P2P STOP_COPY"),
        (PRE_COPY, RUNNING_P2P, "RUNNING RUNNING_P2P"),
        (PRE_COPY, STOP, "RUNNING RUNNING_P2P STOP"),
        (PRE_COPY, RESUMING, "RUNNING RUNNING_P2P STOP RESUMING"),
        (PRE_COPY_P2P, RUNNING, "RUNNING_P2P RUNNING"),
        (PRE_COPY_P2P, STOP, "RUNNING_P2P STOP"),
        (RESUMING, PRE_COPY_P2P, "STOP RUNNING_P2P PRE_COPY_P2P"),
        (RESUMING, PRE_COPY, "STOP RUNNING_P2P RUNNING PRE_COPY"),
        (RESUMING, STOP_COPY, "STOP STOP_COPY"),
        (RUNNING, PRE_COPY_P2P, "RUNNING_P2P PRE_COPY_P2P"),
        (RUNNING, STOP_COPY, "RUNNING_P2P STOP STOP_COPY"),
        (RUNNING_P2P, PRE_COPY, "RUNNING PRE_COPY"),
        (STOP, PRE_COPY, "RUNNING_P2P RUNNING PRE_COPY"),
        (STOP_COPY, RESUMING, "STOP RESUMING"),
        (STOP_COPY, RUNNING, "STOP RUNNING_P2P RUNNING"),
    ];
    for (from, to, expected) in cases {
        assert_eq!(named(way(all, from, to)).as_deref(), Some(expected));
    }
    for (can, from, to) in [
        (all, STOP_COPY, PRE_COPY),
        (all, STOP_COPY, PRE_COPY_P2P),
        (all, ERROR, RUNNING),
        (all, RUNNING, ERROR),
        (all, RUNNING, 8),
        (ABILITIES[0], RUNNING, RUNNING_P2P),
        (ABILITIES[1], RUNNING, PRE_COPY),
        (ABILITIES[2], PRE_COPY, PRE_COPY_P2P),
    ] {
        assert_eq!(way(can, from, to), None, "{can} {from} {to}");
    }
    let plain = |from, to| named(way(ABILITIES[0], from, to));
    assert_eq!(plain(RUNNING, STOP_COPY).as_deref(), Some("STOP STOP_COPY"));
    assert_eq!(plain(STOP_COPY, RUNNING).as_deref(), Some("STOP RUNNING"));
}

#[test]
fn a_device_that_can_all_goes_through_these_states_and_arrives_equal() {
    let machines = Machines::new(1, &[ABILITIES[3]]);
    migrate(&machines);
    assert_eq!(
        calls(&machines.from),
        [
            "0 RUNNING to PRE_COPY",
            "0 PRE_COPY to PRE_COPY_P2P",
            "0 PRE_COPY_P2P to STOP_COPY",
            "0 STOP_COPY to STOP",
        ]
    );
    assert_eq!(
        calls(&machines.to),
        [
            "0 RUNNING to RESUMING",
            "0 RESUMING to STOP",
            "0 STOP to RUNNING_P2P",
            "0 RUNNING_P2P to RUNNING",
        ]
    );
}

#[test]
fn a_device_is_asked_for_no_state_that_its_driver_has_not() {
    let expected: [(&[&str], &[&str]); 3] = [
        (
            &["RUNNING to STOP_COPY", "STOP_COPY to STOP"],
            &["RUNNING to RESUMING", "RESUMING to STOP", "STOP to RUNNING"],
        ),
        (
            &[
                "RUNNING to RUNNING_P2P",
                "RUNNING_P2P to STOP_COPY",
                "STOP_COPY to STOP",
            ],
            &[
                "RUNNING to RESUMING",
                "RESUMING to STOP",
                "STOP to RUNNING_P2P",
                "RUNNING_P2P to RUNNING",
            ],
        ),
        (
            &[
                "RUNNING to PRE_COPY",
                "PRE_COPY to STOP_COPY",
                "STOP_COPY to STOP",
            ],
            &["RUNNING to RESUMING", "RESUMING to STOP", "STOP to RUNNING"],
        ),
    ];
    for (can, (from, to)) in ABILITIES.into_iter().zip(expected) {
        let machines = Machines::new(2, &[can]);
        migrate(&machines);
        let named = |list: &[&str]| list.iter().map(|c| format!("0 {c}")).collect::<Vec<_>>();
        assert_eq!(calls(&machines.from), named(from), "{can}");
        assert_eq!(calls(&machines.to), named(to), "{can}");
    }
}

#[test]
fn all_devices_enter_p2p_before_one_stops_and_leave_it_after_all_have_woken() {
    for seed in 0..8 {
        let machines = Machines::new(seed, &[ABILITIES[3], ABILITIES[1], ABILITIES[3]]);
        // The bus notes each device that reaches another one that does not answer.
        migrate(&machines);
        let calls = calls(&machines.from);
        let at = |what: &str| calls.iter().position(|c| c.contains(what)).unwrap();
        let last = |what: &str| calls.iter().rposition(|c| c.contains(what)).unwrap();
        assert!(last("to RUNNING_P2P") < at("to STOP_COPY"), "{calls:?}");
        assert!(last("to PRE_COPY_P2P") < at("to STOP_COPY"), "{calls:?}");
    }
}

#[test]
fn the_model_notices_a_device_that_stops_while_another_one_reaches_it() {
    // What the test before relies on.
    let machines = Machines::new(3, &[ABILITIES[3], ABILITIES[3]]);
    machines.begin().unwrap();
    machines.sources[0].quiesce().unwrap();
    machines.sources[0].stop().unwrap();
    let faults = machines.from.lock().faults.clone();
    assert!(faults[0].contains("device 1 in PRE_COPY reached device 0 in STOP_COPY"));
}

#[test]
fn initial_bytes_are_read_while_the_device_runs_and_the_sizes_feed_a_budget() {
    let machines = Machines::new(4, &[ABILITIES[3], ABILITIES[1]]);
    machines.begin().unwrap();
    let before = machines.sources[0].left().unwrap();
    assert_eq!(before.initial, REGISTERS as u64 * 3);
    assert!(before.running >= before.initial);
    assert!(before.stopped.unwrap() < 100);
    let plain = machines.sources[1].left().unwrap();
    assert_eq!((plain.initial, plain.running), (0, 0));
    assert_eq!(plain.stopped, Some((REGISTERS as u64 + 1) * 3));
    machines.rounds().unwrap();
    assert_eq!(machines.sources[0].left().unwrap().initial, 0);
    // A kernel that does not say the size.
    machines.from.lock().parts[0].old_kernel = true;
    assert_eq!(machines.sources[0].left().unwrap().stopped, None);
}

#[test]
fn initial_bytes_that_a_transfer_has_again_are_initial_and_a_stale_estimate_of_them_is_not() {
    let machines = Machines::new(8, &[ABILITIES[3]]);
    machines.from.lock().parts[0].estimate = 7;
    machines.begin().unwrap();
    let initial = || machines.sources[0].left().unwrap().initial;
    assert_eq!(initial(), REGISTERS as u64 * 3 + 7);
    machines.rounds().unwrap();
    assert_eq!(initial(), 0);
    machines.from.has_initial_again(0);
    assert_eq!(initial(), REGISTERS as u64 * 3);
    machines.rounds().unwrap();
    assert_eq!(initial(), 0);
}

#[test]
fn an_aborted_pause_begins_the_state_anew_and_the_destination_loads_only_that() {
    for can in ABILITIES {
        for stopped in [false, true] {
            let machines = Machines::new(5, &[can, can]);
            machines.begin().unwrap();
            machines.rounds().unwrap();
            for device in &machines.sources {
                device.quiesce().unwrap();
            }
            if stopped {
                for device in &machines.sources {
                    device.stop().unwrap();
                }
            }
            machines.resume().unwrap();
            machines.assert_runs(&machines.from, "aborted, or failed");
            let precopies = can & CAN_PRE_COPY != 0;
            // Only a migration that goes on asks.
            let left = machines.sources[0].left().unwrap();
            assert_eq!(left.initial > 0, precopies, "{can}");
            let expected = if precopies { PRE_COPY } else { RUNNING };
            assert_eq!(machines.from.state(0), expected, "{can}");
            machines.rounds().unwrap();
            machines.stop().unwrap();
            let before = machines.from.registers(0);
            machines.rest().unwrap();
            machines.loaded().unwrap();
            assert!(machines.to.registers(0) == before, "{can} {stopped}");
            let resets = machines.to.lock().parts[0].resets;
            assert_eq!(resets, u32::from(precopies));
            machines.assert_no_faults("an aborted pause");
        }
    }
}

#[test]
fn a_device_that_the_vmm_has_stopped_already_stays_stopped_until_it_arrives() {
    for can in ABILITIES {
        let machines = Machines::new(6, &[can]);
        machines.from.lock().parts[0].state = STOP;
        machines.begin().unwrap();
        machines.rounds().unwrap();
        machines.stop().unwrap();
        machines.resume().unwrap();
        assert_eq!(machines.from.state(0), STOP, "{can}");
        machines.stop().unwrap();
        let before = machines.from.registers(0);
        machines.rest().unwrap();
        machines.loaded().unwrap();
        assert!(machines.to.registers(0) == before, "{can}");
        machines.end();
        assert_eq!(machines.from.state(0), STOP);
    }
}

#[test]
fn after_the_end_nothing_runs_at_the_source_until_the_vmm_resolves_that_it_does() {
    for can in ABILITIES {
        let machines = Machines::new(7, &[can]);
        machines.begin().unwrap();
        machines.rounds().unwrap();
        machines.stop().unwrap();
        machines.rest().unwrap();
        machines.end();
        assert_eq!(machines.from.state(0), STOP);
        let before = machines.from.registers(0);
        machines.resume().unwrap();
        machines.assert_runs(&machines.from, "resolved");
        assert_eq!(machines.from.lock().parts[0].resets, 0);
        // It worked on from where it stood: a few registers changed since.
        let now = machines.from.registers(0);
        let changed = before.iter().zip(&now).filter(|(a, b)| a != b).count();
        assert!(changed < 10, "{changed}");
    }
}
