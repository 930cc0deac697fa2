//! Policies at work: on facts of single passes, and on any facts.

use super::*;
use crate::migrate::PassFacts;
use crate::units::Pages;
use proptest::prelude::*;

const LIMIT: Duration = Duration::from_millis(300);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// After the `number`th pass, which sent `sent` MB and left `left` MB, on a link of 100 MB/s, at
/// `elapsed` seconds. The guest dirties 150 MB/s.
fn after(number: u32, sent: u64, left: u64, elapsed: u64) -> Facts {
    let pages = Bytes(sent * 1_000_000).pages_down();
    Facts {
        pass: number,
        elapsed: secs(elapsed),
        total: Bytes(10_000_000_000),
        remaining: Bytes(left * 1_000_000),
        bandwidth: Some(100e6),
        dirty_rate: Some(150e6 / 4096.0),
        last_pass: Some(PassFacts {
            number,
            pages,
            data: pages,
            time: Duration::from_millis(sent * 10),
        }),
        ..Facts::default()
    }
}

fn steer(policies: &mut Policies, facts: &Facts) -> Steer {
    policies.steer(facts, &Next::GoOn, &[], 0.0).unwrap()
}

fn with(policy: Policy) -> Policies {
    Policies::new(policy, LIMIT).unwrap()
}

#[test]
fn without_a_policy_the_downtime_decider_decides_alone() {
    let mut policies = with(Policy::default());
    for next in [
        Next::GoOn,
        Next::Sync,
        Next::SwitchOver { expected: secs(1) },
        Next::GiveUp(Error::new(Kind::NotConverged, "no")),
    ] {
        let facts = after(3, 100, 100, 1_000_000);
        let steer = policies.steer(&facts, &next, &[1e9], 0.0).unwrap();
        assert_eq!((steer.next, steer.throttle), (next, 0));
        assert_eq!(policies.limits().flatten().count(), 0);
    }
    assert_eq!(policies.in_pass(true), InPass::Nothing);
}

#[test]
fn auto_converge_acts_from_the_end_of_the_first_pass() {
    let mut policies = with(Policy {
        slowing: Slowing::AutoConverge,
        ..Policy::default()
    });
    assert_eq!(policies.in_pass(true), InPass::Sync);
    let mut first = after(1, 1000, 1000, 1);
    (first.moment, first.last_pass) = (Moment::Walking, None);
    assert_eq!(steer(&mut policies, &first).throttle, 0);
    assert_eq!(steer(&mut policies, &after(1, 1000, 1000, 10)).throttle, 72);
}

#[test]
fn a_guest_at_nine_tenths_of_the_link_converges_by_itself_and_its_limit_does_not_rise() {
    let mut policies = with(Policy {
        ceiling: Some(secs(1)),
        ..Policy::default()
    });
    for (pass, left) in (2..12).zip([90, 91, 89, 92, 88, 95, 90, 85, 91, 90]) {
        let steer = steer(&mut policies, &after(pass, 100, left, 11));
        assert_eq!(steer.limit, LIMIT, "{left} of 100 MB");
    }
    assert!(steer(&mut policies, &after(12, 100, 98, 11)).limit > LIMIT);
}

#[test]
fn a_pause_within_the_ceiling_goes_through_once_the_limit_has_risen() {
    let paused = |left: u64| Facts {
        moment: Moment::Paused,
        ..after(3, 100, left, 11)
    };
    let ceiling = Some(Duration::from_millis(700));
    let policy = |ceiling| Policy {
        ceiling,
        ..Policy::default()
    };
    // 31 MB take 310 ms. The limit of 300 ms was wished and has not risen.
    let mut policies = with(policy(ceiling));
    assert_eq!(
        policies.judge(&paused(31), Verdict::Resume),
        Verdict::Resume
    );
    // The aborted pause has raised it to 450 ms.
    assert_eq!(policies.limit(), Duration::from_millis(450));
    let verdict = policies.judge(&paused(46), Verdict::Resume);
    assert_eq!(verdict, Verdict::GoThrough);
    assert_eq!(policies.limit().as_millis(), 460);
    // Nothing goes beyond the ceiling.
    assert_eq!(
        policies.judge(&paused(71), Verdict::Resume),
        Verdict::Resume
    );
    // Without a ceiling each limit is what was wished.
    let mut policies = with(policy(None));
    for _ in 0..3 {
        assert_eq!(
            policies.judge(&paused(31), Verdict::Resume),
            Verdict::Resume
        );
        assert_eq!(policies.limit(), LIMIT);
    }
}

#[test]
fn while_rings_keep_limits_only_the_ends_of_passes_sync() {
    let mut policies = with(Policy {
        slowing: Slowing::DirtyLimit,
        ..Policy::default()
    });
    // Nobody is limited yet.
    assert_eq!(policies.in_pass(true), InPass::Sync);
    let facts = after(3, 100, 100, 11);
    let mut steer = |rates: &[f64]| {
        policies.steer(&facts, &Next::GoOn, rates, 0.0).unwrap();
        (policies.in_pass(true), policies.in_pass(false))
    };
    assert_eq!(steer(&[0.0, 36_000.0]), (InPass::Count, InPass::Sync));
    // The writer becomes quiet, and its limit goes.
    assert_eq!(steer(&[0.0, 500.0]), (InPass::Sync, InPass::Sync));
    steer(&[0.0, 36_000.0]);
    policies.stop_slowing();
    assert_eq!(policies.in_pass(true), InPass::Nothing);
}

#[test]
fn an_error_at_the_deadline_names_rings_that_are_too_large() {
    let mut policies = with(Policy {
        slowing: Slowing::DirtyLimit,
        deadline: Some(secs(10)),
        ..Policy::default()
    });
    let mut facts = after(3, 100, 100, 11);
    let error = |policies: &mut Policies, facts: &Facts| match steer(policies, facts).next {
        Next::GiveUp(error) => error.message().to_owned(),
        other => panic!("{other:?}"),
    };
    (facts.limited_vcpus, facts.ring) = (2, Pages(1024));
    assert!(!error(&mut policies, &facts).contains("entries"));
    facts.ring = Pages(16_384);
    let text = error(&mut policies, &facts);
    assert!(
        text.contains("the dirty rings of 2 limited vCPUs have 16384 entries each"),
        "{text}"
    );
    assert!(text.contains("rings of 2048 entries or"), "{text}");
}

#[test]
fn a_guest_whose_rest_fits_is_not_slowed_further() {
    let mut policies = with(Policy {
        slowing: Slowing::AutoConverge,
        ..Policy::default()
    });
    assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
    // 20 MB fit 300 ms, and 60 MB do not.
    for (left, more) in [(20, false), (60, true)] {
        let throttle = steer(&mut policies, &after(3 + left as u32, 60, left, 11)).throttle;
        assert_eq!(throttle > 72, more, "{left} MB: {throttle}");
    }
}

#[test]
fn after_an_aborted_pause_the_guest_is_slowed_as_before_without_a_further_sync() {
    let mut policies = with(Policy {
        slowing: Slowing::AutoConverge,
        ..Policy::default()
    });
    assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
    let pause = Next::SwitchOver { expected: secs(0) };
    let steer = policies.steer(&after(3, 100, 20, 11), &pause, &[], 0.0);
    assert_eq!(steer.unwrap().throttle, 0);
    policies.go_on();
    assert_eq!(policies.throttle(), 72);
}

#[test]
fn nothing_is_slowed_when_the_guest_is_paused_and_the_throttle_is_back_if_it_is_resumed() {
    let mut policies = with(Policy {
        slowing: Slowing::AutoConverge,
        ..Policy::default()
    });
    assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
    let pause = Next::SwitchOver { expected: secs(0) };
    let facts = after(3, 100, 40, 11);
    assert_eq!(
        policies.steer(&facts, &pause, &[], 0.0).unwrap().throttle,
        0
    );
    // The pause was aborted.
    let mut again = after(4, 40, 16, 12);
    again.dirty_rate = Some(42e6 / 4096.0);
    assert_eq!(steer(&mut policies, &again).throttle, 72);
    assert_eq!(policies.end(), 0);

    let mut policies = with(Policy {
        slowing: Slowing::DirtyLimit,
        ..Policy::default()
    });
    let facts = after(3, 100, 100, 11);
    policies
        .steer(&facts, &Next::GoOn, &[0.0, 36_000.0], 0.0)
        .unwrap();
    assert_eq!(policies.limits().flatten().count(), 1);
    policies
        .steer(&facts, &pause, &[0.0, 10_000.0], 0.0)
        .unwrap();
    assert_eq!(policies.limits().flatten().count(), 0);
    policies
        .steer(&facts, &Next::GoOn, &[0.0, 10_000.0], 0.0)
        .unwrap();
    assert_eq!(policies.limits().flatten().count(), 1);
    policies.end();
    assert_eq!(policies.limits().flatten().count(), 0);
}

#[test]
fn a_rising_limit_takes_the_rest_once_it_fits_and_not_above_the_ceiling() {
    let policy = |ceiling| Policy {
        ceiling: Some(Duration::from_millis(ceiling)),
        ..Policy::default()
    };
    let with = |policy| Policies::new(policy, Duration::from_millis(50)).unwrap();
    // 20 MB take 200 ms.
    let mut policies = with(policy(400));
    let mut passes = 0;
    let limit = loop {
        passes += 1;
        let steer = steer(&mut policies, &after(1 + passes, 20, 20, 10));
        if let Next::SwitchOver { expected } = steer.next {
            assert_eq!(expected.as_millis(), 200);
            break steer.limit;
        }
        assert!(passes < 10);
    };
    assert_eq!(passes, 4);
    assert!(limit >= Duration::from_millis(200) && limit < Duration::from_millis(400));
    let mut policies = with(policy(150));
    for pass in 2..50 {
        assert_eq!(
            steer(&mut policies, &after(pass, 20, 20, 10)).next,
            Next::GoOn
        );
    }
    assert_eq!(policies.limit(), Duration::from_millis(150));
}

#[test]
fn a_limit_that_no_pass_keeps_rises_for_an_idle_guest_too() {
    let policy = Policy {
        ceiling: Some(Duration::from_millis(400)),
        ..Policy::default()
    };
    let mut policies = Policies::new(policy, Duration::from_millis(50)).unwrap();
    let mut idle = after(2, 0, 0, 1);
    (idle.last_pass, idle.round_trip) = (None, Some(Duration::from_millis(80)));
    let limits: Vec<_> = (0..8)
        .map(|_| steer(&mut policies, &idle).limit.as_millis())
        .collect();
    // Two syncs may have been slow by chance. It rises no further than what takes 160 ms.
    assert_eq!(limits, [50, 50, 75, 112, 168, 168, 168, 168]);
}

#[test]
fn at_the_deadline_each_policy_does_what_it_says() {
    let policy = |on_deadline| Policy {
        deadline: Some(secs(60)),
        on_deadline,
        patience: secs(1000),
        ..Policy::default()
    };
    // 500 MB take 5 s. A further pass ends 10 s before the deadline, or 9.
    let (early, late, over) = (
        after(5, 500, 500, 49),
        after(5, 500, 500, 51),
        after(5, 500, 500, 60),
    );
    let mut cancel = with(policy(OnDeadline::Cancel));
    assert_eq!(steer(&mut cancel, &late).next, Next::GoOn);
    let Next::GiveUp(error) = steer(&mut cancel, &over).next else {
        panic!("it goes on");
    };
    assert_eq!(error.kind(), Kind::NotConverged);
    assert!(error.to_string().contains("60.0 s"), "{error}");
    let mut walking = over;
    walking.moment = Moment::Walking;
    assert!(matches!(steer(&mut cancel, &walking).next, Next::GiveUp(_)));

    let mut on = with(policy(OnDeadline::CarryOn));
    assert_eq!(steer(&mut on, &over).next, Next::GoOn);

    let mut finish = with(policy(OnDeadline::PauseToFinish));
    assert_eq!(steer(&mut finish, &early).next, Next::GoOn);
    let paused = steer(&mut finish, &late).next;
    assert!(matches!(paused, Next::SwitchOver { expected } if expected.as_millis() == 5000));
}

#[test]
fn a_long_pass_ends_early_enough_to_pause_before_the_deadline() {
    let mut policies = with(Policy {
        deadline: Some(secs(60)),
        on_deadline: OnDeadline::PauseToFinish,
        ..Policy::default()
    });
    // 1,000 MB of the pass are left, and 1,000 MB were written: 20 s.
    let walking = |elapsed| {
        let mut facts = after(1, 1000, 1000, elapsed);
        (facts.moment, facts.last_pass) = (Moment::Walking, None);
        facts.dirty_rate = Some(100e6 / 4096.0);
        facts.since_sync = secs(10);
        facts
    };
    assert_eq!(steer(&mut policies, &walking(39)).next, Next::GoOn);
    assert_eq!(steer(&mut policies, &walking(41)).next, Next::Sync);
}

#[test]
fn a_stalled_migration_is_paused_to_finish_at_a_local_minimum() {
    let mut policies = with(Policy {
        on_deadline: OnDeadline::PauseToFinish,
        patience: secs(10),
        ..Policy::default()
    });
    let rests = [400, 380, 410, 120, 390, 400, 380, 410, 390, 120];
    let mut told = 0;
    for (pass, left) in (2..).zip(rests) {
        let steer = steer(&mut policies, &after(pass, 400, left, u64::from(pass) * 3));
        told += u32::from(steer.stalled.is_some());
        let paused = matches!(steer.next, Next::SwitchOver { .. });
        assert_eq!(paused, pass == 11, "pass {pass}");
    }
    assert_eq!(told, 1);
}

#[test]
fn a_policy_changes_while_the_migration_runs() {
    let mut policies = with(Policy {
        slowing: Slowing::AutoConverge,
        ..Policy::default()
    });
    assert_eq!(steer(&mut policies, &after(2, 100, 100, 10)).throttle, 72);
    let policy = Policy {
        slowing: Slowing::DirtyLimit,
        ..Policy::default()
    };
    policies.set(policy, LIMIT).unwrap();
    let facts = after(3, 100, 100, 11);
    let steer = policies
        .steer(&facts, &Next::GoOn, &[36_000.0], 0.0)
        .unwrap();
    assert_eq!(steer.throttle, 0);
    assert_eq!(policies.limits().flatten().count(), 1);
    policies.set(Policy::default(), secs(1)).unwrap();
    assert_eq!(policies.limit(), secs(1));
    assert_eq!(policies.limits().flatten().count(), 0);
}

proptest! {
    /// Whatever the facts are: a guest that is paused, and one whose migration has ended, is not
    /// slowed, the throttle stays in its bounds, and the limit never falls or exceeds the
    /// ceiling.
    #[test]
    fn nothing_stays_throttled(
        slowing in prop_oneof![
            Just(Slowing::Off), Just(Slowing::AutoConverge), Just(Slowing::DirtyLimit)],
        on_deadline in prop_oneof![
            Just(OnDeadline::Cancel), Just(OnDeadline::CarryOn), Just(OnDeadline::PauseToFinish)],
        throttle_max in 1u8..=99,
        passes in proptest::collection::vec(
            (0u64..1000, 0u64..1000, any::<bool>(), any::<bool>(), 0.0f64..1e6), 1..40),
    ) {
        let mut policies = with(Policy {
            slowing,
            on_deadline,
            throttle_max,
            ceiling: Some(secs(2)),
            deadline: Some(secs(60)),
            ..Policy::default()
        });
        let mut limit = policies.limit();
        for (pass, (sent, left, walking, fits, rate)) in (1..).zip(passes) {
            let mut facts = after(pass, sent, left, u64::from(pass) * 2);
            facts.dirty_rate = Some(rate);
            if walking {
                facts.moment = Moment::Walking;
            }
            let inner = match fits {
                true => Next::SwitchOver { expected: secs(0) },
                false => Next::GoOn,
            };
            let steer = policies.steer(&facts, &inner, &[0.0, rate], 0.0).unwrap();
            let limited = policies.limits().flatten().count();
            prop_assert!(steer.throttle <= throttle_max);
            prop_assert!(steer.limit >= limit && steer.limit <= secs(2));
            limit = steer.limit;
            if matches!(steer.next, Next::SwitchOver { .. } | Next::GiveUp(_)) {
                prop_assert_eq!((steer.throttle, limited), (0, 0));
            }
        }
        prop_assert_eq!(policies.end(), 0);
        prop_assert_eq!(policies.limits().flatten().count(), 0);
    }
}
