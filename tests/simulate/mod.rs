//! The simulator: its model keeps what it promises, traces survive their text, and the deciders do
//! their work on synthetic guests and on traces of real ones.

#[allow(dead_code)]
#[path = "../../examples/simulate/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../examples/simulate/scenarios.rs"]
mod scenarios;
#[allow(dead_code)]
#[path = "../../examples/simulate/trace.rs"]
mod trace;

use brant::migrate::steering::policies::Slowing;
use brant::migrate::steering::working_set::Pool;
use model::{migrate, slowing, Guest, Outcome, Phase, Plan, PAGE};
use scenarios::{guests, loads, policies, GBIT};
use std::time::Duration;
use trace::{Recording, Trace};

const LIMIT: Duration = Duration::from_millis(300);

/// 40 GB on a link of 1 GB/s; half of the vCPUs write `rate` times the link to a tenth of memory.
fn guest(rate: f64) -> Guest {
    let pages = 40e9 / PAGE;
    Guest {
        pages,
        data: 1.0,
        vcpus: 4,
        writers: 2,
        phases: vec![Phase {
            seconds: 1e6,
            pools: vec![Pool {
                pages: pages / 10.0,
                rate: rate * 1e9 / PAGE,
            }],
        }],
    }
}

fn with(guest: &Guest, kind: Slowing) -> Outcome {
    let plan = Plan {
        link: 1e9,
        round_trip: 0.0,
        policy: slowing(kind),
        limit: LIMIT,
        background: 0.5,
    };
    migrate(guest, &plan)
}

#[test]
fn an_idle_guest_takes_one_pass_of_memory_over_bandwidth() {
    let outcome = with(&guest(0.0), Slowing::Off);
    assert!(outcome.converged);
    assert_eq!(outcome.passes, 1);
    assert!((outcome.time - 40.0).abs() < 0.01, "{outcome:?}");
    assert!((outcome.bytes / 40e9 - 1.0).abs() < 1e-6);
    assert_eq!(outcome.work, 1.0);
}

#[test]
fn each_pass_of_a_guest_at_a_fifth_of_the_link_sends_a_fifth_of_the_one_before() {
    let outcome = with(&guest(0.2), Slowing::Off);
    // The first pass takes 40 s. The guest writes its 4 GB in 20 s, and a page whose last write came
    // before it was sent does not go again: on average a quarter of them. The following passes are
    // 3 s, then a fifth of each other.
    let expected = 40.0 + 3.0 / (1.0 - 0.2);
    assert!((outcome.time / expected - 1.0).abs() < 0.02, "{outcome:?}");
    assert!(outcome.converged && outcome.passes < 15);
}

#[test]
fn a_guest_that_dirties_more_than_the_link_carries_converges_only_when_it_is_slowed() {
    for rate in [1.5, 3.0] {
        assert!(!with(&guest(rate), Slowing::Off).converged);
        for kind in [Slowing::AutoConverge, Slowing::DirtyLimit] {
            let outcome = with(&guest(rate), kind);
            assert!(outcome.converged, "{rate} {kind:?}: {outcome:?}");
            assert!(outcome.downtime <= LIMIT.as_secs_f64());
            assert!(outcome.time < 60.0, "{rate} {kind:?}: {outcome:?}");
            assert!((0.7..1.0).contains(&outcome.work));
            match kind {
                // Two of four vCPUs only read.
                Slowing::DirtyLimit => assert_eq!((outcome.limited, outcome.throttle), (2, 0)),
                _ => assert!(outcome.throttle > 0 && outcome.limited == 0),
            }
        }
    }
    // Below half of the link nobody is slowed.
    for kind in [Slowing::AutoConverge, Slowing::DirtyLimit] {
        let outcome = with(&guest(0.2), kind);
        assert_eq!(outcome.limited, 0);
    }
}

#[test]
fn a_forecast_for_a_steady_guest_is_right_to_within_fifteen_percent_of_time_and_bytes() {
    for rate in [0.2, 0.9, 1.5, 3.0] {
        for kind in [Slowing::AutoConverge, Slowing::DirtyLimit] {
            let errors = with(&guest(rate), kind).errors();
            let Some([time, bytes, _]) = errors else {
                panic!("{rate} {kind:?}: no forecast");
            };
            assert!(time <= 0.15 && bytes <= 0.15, "{rate} {kind:?}: {errors:?}");
        }
    }
}

#[test]
fn a_forecast_is_right_to_within_fifteen_percent_when_the_guest_has_bursts_and_phases_too() {
    let (_, memory, vcpus) = guests()[0];
    let link = 10.0 * GBIT;
    let recorded = traces().map(|trace| {
        let slower = scenarios::slower(memory, 10.0);
        (trace.name.clone(), trace.guest(memory, vcpus, slower))
    });
    let made = loads(memory, vcpus, link).into_iter();
    for (load, guest) in made.map(|(n, g)| (n.to_owned(), g)).chain(recorded) {
        for (policy, plan) in policies(&guest, link, LIMIT) {
            if !["auto", "limit"].contains(&policy) {
                continue;
            }
            let errors = migrate(&guest, &plan).errors();
            println!("{load} {policy}: {errors:.2?}");
            let Some([time, bytes, _]) = errors else {
                panic!("{load} {policy}: no forecast");
            };
            assert!(time <= 0.15 && bytes <= 0.15, "{load} {policy}: {errors:?}");
        }
    }
}

#[test]
fn a_pause_to_finish_ends_the_migration_by_its_deadline() {
    let (_, memory, vcpus) = guests()[0];
    let link = 100.0 * GBIT;
    for (load, guest) in loads(memory, vcpus, link) {
        let all = policies(&guest, link, LIMIT);
        let (_, plan) = all.iter().find(|(name, _)| *name == "finish").unwrap();
        let outcome = migrate(&guest, plan);
        let deadline = plan.policy.deadline.unwrap().as_secs_f64();
        assert!(outcome.converged, "{load}: {outcome:?}");
        assert!(
            outcome.time <= deadline * 1.01,
            "{load}: {} of {deadline}",
            outcome.time
        );
    }
}

/// The traces that were recorded from KVM guests.
fn traces() -> [Trace; 3] {
    let texts = [
        include_str!("../../examples/simulate/traces/steady.jsonl"),
        include_str!("../../examples/simulate/traces/bursts.jsonl"),
        include_str!("../../examples/simulate/traces/phases.jsonl"),
    ];
    texts.map(|text| Trace::parse(text).unwrap())
}

#[test]
fn guests_that_write_as_real_ones_did_converge_with_each_policy_that_slows_them() {
    for trace in traces() {
        let (_, memory, vcpus) = guests()[0];
        let guest = trace.guest(memory, vcpus, scenarios::slower(memory, 100.0));
        for (name, plan) in policies(&guest, 100.0 * GBIT, LIMIT) {
            if !["auto", "limit"].contains(&name) {
                continue;
            }
            let outcome = migrate(&guest, &plan);
            assert!(outcome.converged, "{} {name}: {outcome:?}", trace.name);
            assert!(outcome.downtime <= LIMIT.as_secs_f64() * 1.01);
        }
    }
}

#[test]
fn a_trace_survives_its_text() {
    for trace in traces() {
        assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
    }
}

#[test]
fn a_line_that_is_no_part_of_a_trace_is_named() {
    let head = "{\"name\":\"x\",\"pages\":100,\"interval_ms\":100}\n";
    for (text, says) in [
        (String::new(), "empty"),
        ("{}".into(), "line 1: `pages`"),
        (
            "{\"pages\":1,\"interval_ms\":0}".into(),
            "line 1: `interval_ms`",
        ),
        (head.into(), "without intervals"),
        (format!("{head}{{\"distinct\":[1,2]}}\nhello"), "line 3"),
        (format!("{head}{{\"distinct\":[2,1]}}"), "line 2"),
        (format!("{head}{{\"distinct\":[101]}}"), "at most 100"),
        (format!("{head}{{\"distinct\":[]}}"), "line 2"),
    ] {
        let error = Trace::parse(&text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_recording_tells_the_same_pages_again_from_new_ones() {
    let mut again = Recording::new(100);
    let mut new = Recording::new(100);
    for interval in 0..4 {
        again.interval(0..10);
        new.interval(interval * 10..interval * 10 + 10);
    }
    assert_eq!(again.lines[3][..3], [10, 10, 10]);
    assert_eq!(new.lines[3][..3], [10, 20, 40]);
}
