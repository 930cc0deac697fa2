//! What each of KVM's logs costs, and which of them these costs recommend. Pure: figures go in.
//!
//! Example: a guest of 4 GiB writes to all of its memory again and again. With bitmaps each page
//! faults once between two syncs, and later writes to it are free. A ring is emptied when a quarter
//! of it is in use. So its pages are protected again long before the next sync, and fault once
//! more: the guest writes at a fraction of the speed. The opposite example: a guest of 1 TiB writes
//! 100 pages a second. With bitmaps each sync reads all of them, while a ring holds ten entries.

use super::super::mode::{Choice, KvmMode};
use crate::units::Bytes;
use std::time::Duration;

/// Syncs that a migration in its later passes makes each second.
const SYNCS_PER_SECOND: u64 = 10;
/// A kind takes the place of one before it in [`ORDER`] if it costs less than this many quarters of
/// it. Figures of one short measurement differ by more than that only for a reason.
const QUARTERS: u128 = 3;
/// Nanoseconds of each second that are not noticed. A cost below this is no reason to choose.
const NEGLIGIBLE: u128 = 1_000_000;
/// The order among kinds that cost about the same. A start with initially-set bitmaps protects no
/// page at once. Rings need the VMM's help (`brant_tracker_add_vcpu`, full exits).
const ORDER: [KvmMode; 4] = [
    KvmMode::InitiallySet,
    KvmMode::ManualProtect,
    KvmMode::GetAndClear,
    KvmMode::Ring,
];

/// The costs of one kind of log: processor time, of the guest for a write, of the syncing thread
/// for a sync.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// The first write to a clean page.
    pub first_write: Duration,
    /// The mean write of a guest that goes over its memory again and again: four times between two
    /// syncs, with more pages than a quarter of its ring has entries. The mean is over first and
    /// later writes.
    pub busy_write: Duration,
    /// A sync, for each dirty page: finding it and protecting it again.
    pub sync_page: Duration,
    /// A sync, for each GiB of guest memory without a dirty page.
    pub sync_gib: Duration,
}

/// The costs of each kind on this machine; `None` for a kind that is not offered, or for which the
/// time did not suffice.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// A write of a guest that is not tracked.
    pub untracked_write: Duration,
    /// [`KvmMode::GetAndClear`].
    pub get_and_clear: Option<Cost>,
    /// [`KvmMode::ManualProtect`].
    pub manual_protect: Option<Cost>,
    /// [`KvmMode::InitiallySet`].
    pub initially_set: Option<Cost>,
    /// [`KvmMode::Ring`].
    pub ring: Option<Cost>,
}

impl Costs {
    /// The costs of `mode`; `None` for [`KvmMode::Auto`], which is no kind of its own.
    pub fn of(&self, mode: KvmMode) -> Option<&Cost> {
        match mode {
            KvmMode::Auto => None,
            KvmMode::GetAndClear => self.get_and_clear.as_ref(),
            KvmMode::ManualProtect => self.manual_protect.as_ref(),
            KvmMode::InitiallySet => self.initially_set.as_ref(),
            KvmMode::Ring => self.ring.as_ref(),
        }
    }

    pub(in crate::dirty::kvm) fn of_mut(&mut self, mode: KvmMode) -> Option<&mut Option<Cost>> {
        match mode {
            KvmMode::Auto => None,
            KvmMode::GetAndClear => Some(&mut self.get_and_clear),
            KvmMode::ManualProtect => Some(&mut self.manual_protect),
            KvmMode::InitiallySet => Some(&mut self.initially_set),
            KvmMode::Ring => Some(&mut self.ring),
        }
    }
}

/// What is known of the guest that will be tracked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Bytes of its memory; 0 if the choice should not depend on them.
    pub memory: Bytes,
    /// Pages that it dirties in a second, where a page counts once in each tenth of a second.
    /// `None`: it writes as fast as it can, which is where a log costs most.
    pub dirty_pages_per_second: Option<u64>,
}

/// A measurement's figures, the guest they are judged for, and the recommendation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The figures.
    pub costs: Costs,
    /// The guest.
    pub workload: Workload,
    /// The recommended kind, and why.
    pub choice: Choice,
}

impl Measured {
    /// What figures recommend for a guest; `None` without any figure.
    pub fn of(costs: Costs, workload: Workload) -> Option<Measured> {
        let choice = cheapest(&costs, workload, |_| true)?;
        Some(Measured {
            costs,
            workload,
            choice,
        })
    }
}

/// The cost of a kind for a guest, in nanoseconds: of each write, or of each second. Costs are
/// compared and never added up.
fn nanoseconds(cost: &Cost, workload: Workload) -> u128 {
    let Some(pages) = workload.dirty_pages_per_second else {
        // What the guest notices is how fast it writes. A sync runs on another processor.
        return cost.busy_write.as_nanos();
    };
    // Saturating, because a caller may pass any figures.
    let times = |ns: Duration, n: u64| ns.as_nanos().saturating_mul(u128::from(n));
    let page = cost.first_write.saturating_add(cost.sync_page);
    let clean = (times(cost.sync_gib, workload.memory.0) >> 30) * u128::from(SYNCS_PER_SECOND);
    times(page, pages).saturating_add(clean)
}

/// The kind that costs `workload` least, among measured kinds that `offered` allows; `None` if
/// there is none.
pub fn cheapest(
    costs: &Costs,
    workload: Workload,
    offered: impl Fn(KvmMode) -> bool,
) -> Option<Choice> {
    let measured = ORDER.into_iter().filter(|mode| offered(*mode));
    let measured = measured.filter_map(|mode| {
        let cost = costs.of(mode)?;
        Some((mode, nanoseconds(cost, workload)))
    });
    let measured: Vec<(KvmMode, u128)> = measured.collect();
    let mut best = *measured.first()?;
    let floor = match workload.dirty_pages_per_second {
        Some(_) => NEGLIGIBLE,
        None => 0,
    };
    let times = |ns: u128, n| ns.saturating_add(floor).saturating_mul(n);
    for &(mode, cost) in &measured[1..] {
        if times(cost, 4) < times(best.1, QUARTERS) {
            best = (mode, cost);
        }
    }
    let others = measured.iter().filter(|(mode, _)| *mode != best.0);
    let others: Vec<String> = others.map(|m| named(*m)).collect();
    let reason = match (workload.dirty_pages_per_second, others.is_empty()) {
        (None, true) => format!(
            "nothing else was measured; a write of a busy guest takes {}",
            named(best)
        ),
        (None, false) => format!(
            "measured here, a write of a busy guest takes {} ({}; {} untracked)",
            named(best),
            others.join(", "),
            time(costs.untracked_write.as_nanos())
        ),
        (Some(pages), true) => format!(
            "nothing else was measured; {pages} dirty pages a second take {}",
            named(best)
        ),
        (Some(pages), false) => format!(
            "measured here, {pages} dirty pages a second in {} MiB cost {} of each second ({})",
            workload.memory.0 >> 20,
            named(best),
            others.join(", ")
        ),
    };
    Some(Choice {
        mode: best.0,
        reason,
    })
}

/// "310 ns with dirty rings".
fn named((mode, cost): (KvmMode, u128)) -> String {
    format!("{} with {}", time(cost), mode.name())
}

fn time(ns: u128) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{} us", ns / 1000),
        _ => format!("{} ms", ns / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(first: u64, busy: u64, page: u64, gib: u64) -> Option<Cost> {
        Some(Cost {
            first_write: Duration::from_nanos(first),
            busy_write: Duration::from_nanos(busy),
            sync_page: Duration::from_nanos(page),
            sync_gib: Duration::from_nanos(gib),
        })
    }

    /// Figures much as on a machine that protects pages in software.
    fn software() -> Costs {
        Costs {
            untracked_write: Duration::from_nanos(10),
            get_and_clear: cost(2000, 520, 250, 4000),
            manual_protect: cost(2000, 510, 300, 3500),
            initially_set: cost(2100, 530, 300, 3500),
            ring: cost(2200, 2200, 320, 0),
        }
    }

    /// Figures much as on a processor that logs pages itself, where a first write costs next to
    /// nothing.
    fn hardware() -> Costs {
        Costs {
            untracked_write: Duration::from_nanos(5),
            get_and_clear: cost(40, 14, 60, 4000),
            manual_protect: cost(40, 14, 60, 3500),
            initially_set: cost(40, 14, 60, 3500),
            ring: cost(45, 45, 80, 0),
        }
    }

    fn only(kinds: &[KvmMode]) -> impl Fn(KvmMode) -> bool + '_ {
        move |mode| kinds.contains(&mode)
    }

    #[test]
    fn a_busy_guest_gets_bitmaps_and_a_huge_quiet_one_a_ring() {
        let gib = |n: u64| Bytes(n << 30);
        let quiet = |memory, pages| Workload {
            memory,
            dirty_pages_per_second: Some(pages),
        };
        for (costs, workload, expected) in [
            (software(), Workload::default(), KvmMode::InitiallySet),
            (hardware(), Workload::default(), KvmMode::InitiallySet),
            // Without a dirty rate the guest's size does not matter: the guest has to be fast.
            (
                software(),
                Workload {
                    memory: gib(1 << 20),
                    dirty_pages_per_second: None,
                },
                KvmMode::InitiallySet,
            ),
            (software(), quiet(gib(1), 1000), KvmMode::InitiallySet),
            (software(), quiet(gib(1024), 100), KvmMode::Ring),
            (software(), quiet(gib(256), 1000), KvmMode::Ring),
            // With so many dirty pages reading the bitmaps is the smaller part.
            (software(), quiet(gib(256), 100_000), KvmMode::InitiallySet),
            (hardware(), quiet(gib(256), 10_000), KvmMode::Ring),
            // The bitmap of an idle guest is read in vain, but the time for that is negligible.
            (software(), quiet(gib(1), 0), KvmMode::InitiallySet),
            (software(), quiet(gib(0), 0), KvmMode::InitiallySet),
        ] {
            let got = cheapest(&costs, workload, |_| true).unwrap();
            assert_eq!(got.mode, expected, "{workload:?}: {}", got.reason);
            assert!(got.reason.contains(expected.name()), "{}", got.reason);
        }
    }

    #[test]
    fn a_kind_that_is_less_than_a_quarter_cheaper_changes_nothing() {
        for (busy, expected) in [
            (530, KvmMode::InitiallySet),
            (398, KvmMode::InitiallySet),
            (397, KvmMode::GetAndClear),
            (1, KvmMode::GetAndClear),
        ] {
            let costs = Costs {
                get_and_clear: cost(2000, busy, 250, 4000),
                ..software()
            };
            let got = cheapest(&costs, Workload::default(), |_| true).unwrap();
            assert_eq!(got.mode, expected, "{busy}: {}", got.reason);
        }
    }

    #[test]
    fn only_what_is_offered_and_was_measured_is_recommended() {
        let busy = Workload::default();
        let all = software();
        let without = Costs {
            initially_set: None,
            ..all
        };
        for (costs, offered, expected) in [
            (all, &[KvmMode::Ring][..], Some(KvmMode::Ring)),
            (all, &[], None),
            (all, &[KvmMode::Auto], None),
            (
                all,
                &[KvmMode::GetAndClear, KvmMode::Ring],
                Some(KvmMode::GetAndClear),
            ),
            (
                without,
                &[KvmMode::InitiallySet, KvmMode::ManualProtect],
                Some(KvmMode::ManualProtect),
            ),
            (without, &[KvmMode::InitiallySet], None),
            (Costs::default(), &ORDER, None),
        ] {
            let got = cheapest(&costs, busy, only(offered)).map(|choice| choice.mode);
            assert_eq!(got, expected, "{offered:?}");
        }
    }

    #[test]
    fn figures_as_large_as_can_be_do_not_overflow() {
        let most = Some(Cost {
            first_write: Duration::MAX,
            busy_write: Duration::MAX,
            sync_page: Duration::MAX,
            sync_gib: Duration::MAX,
        });
        let costs = Costs {
            untracked_write: Duration::MAX,
            get_and_clear: most,
            manual_protect: most,
            initially_set: most,
            ring: most,
        };
        for pages in [None, Some(u64::MAX)] {
            let workload = Workload {
                memory: Bytes(u64::MAX),
                dirty_pages_per_second: pages,
            };
            let got = cheapest(&costs, workload, |_| true).unwrap();
            assert_eq!(got.mode, KvmMode::InitiallySet);
        }
    }
}
