//! The promise, made before the pause and part by part, and what happened.

use crate::support::link::Link;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::migrate_over;
use crate::support::time::MS;
use crate::support::vmm::blob;
use brant::migrate::{Operations, Params};
use std::time::Duration;

const MIB: usize = 256;

#[test]
fn every_part_of_a_downtime_is_promised_and_measured() {
    let link = Link::of(10_000_000, MS * 20, 1 << 20);
    let pair = Pair::new(&[ram("ram", 8 * MIB)]);
    pair.source.fill(1);
    *pair.from.state.lock().unwrap() = vec![blob("gpu", 0, &vec![7; 2_000_000])];
    // What the VMM's operations take, and what they are said to take.
    let takes = MS * 30;
    for operation in ["pause", "save", "release"] {
        pair.from.at(operation, move || {
            std::thread::sleep(takes);
            Ok(())
        });
    }
    for operation in ["loaded", "run"] {
        pair.to.at(operation, move || {
            std::thread::sleep(takes);
            Ok(())
        });
    }
    let params = Params {
        downtime_limit: MS * 3000,
        expected: Operations {
            pause: Some(takes),
            save: Some(takes),
            load: Some(takes),
            release: Some(takes),
            run: Some(takes),
            state_bytes: Some(2_000_000),
        },
        ..Params::default()
    };
    let (out, ended) = migrate_over(&pair, &link, &params);
    ended.unwrap();
    let stats = out.stats();
    let promised = stats.promised;
    for part in [
        promised.pause,
        promised.save,
        promised.load,
        promised.release,
        promised.run,
    ] {
        assert_eq!(part, takes, "{stats:?}");
    }
    // 200 ms of state, and two round trips of 20 ms. Nothing is padded: the bandwidth was measured
    // on this link, and a busy machine makes it slower.
    assert!(promised.state >= MS * 180, "{stats:?}");
    assert!(promised.round_trips >= MS * 40, "{stats:?}");
    assert_eq!(stats.promised_downtime, Some(promised.total()));
    let least = [
        (stats.pause, takes),
        (stats.save, takes),
        (stats.load, takes),
        (stats.release, takes),
        (stats.run, takes),
        (stats.state_sent, MS * 150),
        (stats.round_trips, MS * 40),
    ];
    for (part, least) in least {
        assert!(part.unwrap() >= least, "{least:?} in {stats:?}");
    }
    let parts = [
        stats.pause,
        stats.last_sync,
        stats.save,
        stats.memory,
        stats.state_sent,
        stats.load,
        stats.round_trips,
        stats.release,
        stats.run,
    ];
    let sum: Duration = parts.iter().map(|part| part.unwrap()).sum();
    let stood = stats.downtime.unwrap();
    // The state is one round trip longer than on the link alone, at most.
    assert!(sum <= stood + MS * 25, "{sum:?} of {stood:?}");
    assert!(stood <= 10 * promised.total(), "{stats:?}");
    let json: serde_json::Value = serde_json::from_str(&out.stats_json().unwrap()).unwrap();
    assert_eq!(json["promised_load_ns"], 30_000_000);
    assert_eq!(json["load_ns"], stats.load.unwrap().as_nanos() as u64);
}

#[test]
fn what_was_measured_and_what_was_used_of_the_bandwidth_are_both_told() {
    let link = Link::of(10_000_000, Duration::ZERO, 1 << 20);
    let table = [
        (None, None),
        (Some(50_000_000), None),
        (Some(50_000_000), Some(20_000_000)),
        (None, Some(1_000_000)),
    ];
    for (stated, capped) in table {
        let pair = Pair::new(&[ram("ram", 8 * MIB)]);
        pair.source.fill(1);
        let params = Params {
            switchover_bandwidth: stated,
            switchover_max_bandwidth: capped,
            downtime_limit: MS * 3000,
            ..Params::default()
        };
        let (out, ended) = migrate_over(&pair, &link, &params);
        ended.unwrap();
        let stats = out.stats();
        let measured = stats.bandwidth.expect("it was measured");
        assert!(measured < 15_000_000, "{stats:?}");
        let used = stats.switchover_bandwidth.expect("it is known");
        let bandwidth = stated.unwrap_or(measured);
        assert_eq!(used, capped.map_or(bandwidth, |cap| cap.min(bandwidth)));
        assert!(stats.round_trip.is_some());
    }
}
