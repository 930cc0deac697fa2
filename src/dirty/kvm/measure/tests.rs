use super::costs::cheapest;
use super::*;
use crate::sys::kernel::plan::{Call, Fault, Scope};
use crate::sys::kernel::plausible::faults;
use std::collections::BTreeMap;

/// Figures of a machine that protects pages in software, recorded while the machine was idle.
fn recorded() -> Costs {
    let cost = |first, busy, page, gib| {
        Some(Cost {
            first_write: Duration::from_nanos(first),
            busy_write: Duration::from_nanos(busy),
            sync_page: Duration::from_nanos(page),
            sync_gib: Duration::from_nanos(gib),
        })
    };
    Costs {
        untracked_write: Duration::from_nanos(12),
        get_and_clear: cost(8661, 2191, 27, 56_671),
        manual_protect: cost(7396, 1866, 27, 41_272),
        initially_set: cost(7740, 1961, 24, 50_388),
        ring: cost(6986, 8127, 95, 0),
    }
}

#[test]
fn a_guest_that_modifies_pages_is_recommended_bitmaps_by_the_figures_of_this_machine() {
    let choice = cheapest(&recorded(), Workload::default(), |_| true).unwrap();
    assert_eq!(choice.mode, KvmMode::InitiallySet, "{}", choice.reason);
    assert!(choice.reason.contains("8127 ns with dirty rings"));
}

#[test]
fn a_limit_that_is_none_is_refused_with_those_that_are() {
    for limit in [
        Duration::ZERO,
        LIMITS.0 - Duration::from_nanos(1),
        LIMITS.1 + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        let refused = measure(None, Workload::default(), limit).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid);
        assert!(refused.message().contains("20 to 10000 ms"), "{refused}");
    }
}

#[test]
fn kinds_that_were_not_measured_for_one_reason_are_named_together() {
    let late = || Error::new(Kind::Timeout, "no time");
    let lacking = Error::new(Kind::Unsupported, "no such capability");
    let missing = [
        (KvmMode::Ring, late()),
        (KvmMode::InitiallySet, lacking),
        (KvmMode::GetAndClear, late()),
    ];
    assert_eq!(
        not_measured(&missing),
        "; dirty rings, get-and-clear bitmaps were not measured: no time\
         ; initially-set bitmaps were not measured: no such capability"
    );
    assert_eq!(not_measured(&[]), "");
}

/// How often a call of one name fails: its first calls, which include each place that makes it.
const PLACES: u64 = 4;

#[test]
fn a_measurement_that_any_call_fails_ends_with_what_it_has_or_says_what_failed() {
    if !cfg!(target_arch = "x86_64") || kvm_ioctls::Kvm::new().is_err() {
        return eprintln!("skipped: no /dev/kvm, or no x86-64");
    }
    let run = |scope: &Scope, limit| scope.enter(|| measure(None, Workload::default(), limit));
    let whole = Scope::default();
    // As long as it takes, to see every call on the busiest machine.
    let _ = run(&whole, LIMITS.1);
    let mut calls: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for call in whole.calls() {
        calls.entry(call.name).or_default().push(call);
    }
    for name in ["KVM_CREATE_VM", "KVM_RUN", "KVM_GET_DIRTY_LOG", "mmap"] {
        assert!(calls.contains_key(name), "{name} was not seen: {calls:?}");
    }
    let mut failed = 0;
    for call in calls.values().flatten().filter(|c| c.number < PLACES) {
        for fault in faults(call.name) {
            let mut scope = Scope::default();
            scope.plan(*call, *fault);
            let mut ended = run(&scope, Duration::from_millis(60));
            if !scope.fired() {
                // The time was over before that call.
                scope = Scope::default();
                scope.plan(*call, *fault);
                ended = run(&scope, LIMITS.1);
            }
            match ended {
                Ok(measured) => assert_ne!(measured.choice.mode, KvmMode::Auto),
                // EINTR and EAGAIN are retried, and are no failures.
                Err(e) => {
                    let retried = matches!(*fault, Fault::Error(libc::EINTR | libc::EAGAIN));
                    let late = e.kind() == Kind::Timeout;
                    assert!(!e.message().is_empty());
                    assert!(late || call.name != "KVM_RUN" || !retried, "{call}: {e}");
                }
            }
            failed += u32::from(scope.fired());
        }
    }
    assert!(failed > 30, "{failed} calls failed");
}
