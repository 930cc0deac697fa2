//! Random walks: the calls of many migrations, some aborted, some cancelled, some failing, to
//! machines of one to three devices of any abilities.

use super::model::*;
use super::steps::Machines;
use crate::support::random::Random;

fn walk(seed: u64) {
    let mut random = Random(seed);
    let count = 1 + random.below(3);
    // Devices that reach each other all have P2P, or there is one.
    let abilities: Vec<u64> = (0..count)
        .map(|_| match count {
            1 => ABILITIES[random.below(4)],
            _ => [ABILITIES[1], ABILITIES[3]][random.below(2)],
        })
        .collect();
    let machines = Machines::new(random.next(), &abilities);
    for _ in 0..4 {
        machines.begin().unwrap();
        for _ in 0..random.below(3) {
            machines.rounds().unwrap();
        }
        // Pauses that are aborted, after the stop or before it.
        for _ in 0..random.below(3) {
            use brant::vmm::device::Device;
            machines.sources.iter().for_each(|d| d.quiesce().unwrap());
            if random.below(2) == 0 {
                machines.sources.iter().for_each(|d| d.stop().unwrap());
            }
            machines.resume().unwrap();
            if random.below(2) == 0 {
                machines.rounds().unwrap();
            }
        }
        match random.below(3) {
            // Cancelled while the guest runs.
            0 => {
                machines.end();
                machines.reset();
                machines.assert_runs(&machines.from, "cancelled");
                continue;
            }
            // The destination refuses at the end.
            1 => {
                machines.stop().unwrap();
                machines.rest().unwrap();
                machines.resume().unwrap();
                machines.end();
                machines.reset();
                machines.assert_runs(&machines.from, "refused");
                continue;
            }
            _ => {}
        }
        machines.stop().unwrap();
        machines.rest().unwrap();
        machines.loaded().unwrap();
        for i in 0..count {
            assert!(
                machines.from.registers(i) == machines.to.registers(i),
                "device {i}"
            );
        }
        machines.run().unwrap();
        machines.end();
        for i in 0..count {
            assert_eq!(
                (machines.from.state(i), machines.to.state(i)),
                (STOP, RUNNING)
            );
        }
        break;
    }
    machines.assert_no_faults("a walk");
    let resets: u32 = (0..count)
        .map(|i| machines.from.lock().parts[i].resets)
        .sum();
    assert_eq!(resets, 0, "a source that nothing failed at is never reset");
}

#[test]
fn random_walks_keep_the_kernel_s_rules_and_arrive_equal() {
    let first = std::env::var("BRANT_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let (from, to) = first.map_or((0, 300), |s: u64| (s, s + 1));
    for seed in from..to {
        // A panic in the walk is printed after this line.
        println!("BRANT_SEED={seed}");
        walk(seed);
    }
}
