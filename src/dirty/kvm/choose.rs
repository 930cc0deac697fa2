//! The choice between KVM's logs, and its reason. No other file decides it. Pure: the kernel's
//! offer and the measured costs go in.

use super::measure::costs::{cheapest, Measured};
use super::mode::{Choice, KvmMode};
use crate::error::{Error, Kind, Result};

/// What a kernel and a VM offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The answer to `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    pub manual: u64,
    /// The VM's rings are enabled.
    pub ring: bool,
    /// GET and CLEAR work on the VM: it has no rings, or a backup bitmap beside them.
    pub bitmap: bool,
}

impl Offer {
    /// Whether the offer includes `mode`.
    fn has(self, mode: KvmMode) -> bool {
        match mode {
            KvmMode::Ring => self.ring,
            mode => !self.ring && self.manual & mode.manual() == mode.manual(),
        }
    }
}

/// Picks a mode, or says why `asked` is not possible. [`KvmMode::Auto`] follows `measured` as far
/// as the VM still offers what it recommends.
pub fn choose(asked: KvmMode, offer: Offer, measured: Option<&Measured>) -> Result<Choice> {
    let pick = |mode, reason: String| Ok(Choice { mode, reason });
    match asked {
        KvmMode::Auto => Ok(best(offer, measured)),
        KvmMode::Ring if !offer.ring => Err(Error::new(
            Kind::State,
            "mode ring: expected a VM whose dirty rings are enabled (brant_kvm_enable_ring, before \
             its first vCPU); found one without",
        )),
        KvmMode::Ring => pick(asked, "the ring was asked for".to_owned()),
        mode if offer.ring => Err(Error::new(
            Kind::Unsupported,
            format!(
                "this VM has its dirty rings enabled, and the kernel refuses bitmaps for it \
                 (ENXIO): expected mode AUTO or ring, found mode {}",
                mode as u32
            ),
        )),
        mode if !offer.has(mode) => Err(Error::new(
            Kind::Unsupported,
            format!(
                "this KVM has no {}: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is {}; use mode AUTO or \
                 get-and-clear",
                mode.name(),
                offer.manual
            ),
        )),
        mode => pick(mode, "it was asked for".to_owned()),
    }
}

/// The mode that [`KvmMode::Auto`] leads to.
fn best(offer: Offer, measured: Option<&Measured>) -> Choice {
    if offer.ring {
        return with_rings(offer, measured);
    }
    let by_figures = measured
        .and_then(|measured| cheapest(&measured.costs, measured.workload, |m| offer.has(m)));
    if let Some(mut choice) = by_figures {
        if measured.is_some_and(|measured| measured.choice.mode == KvmMode::Ring) {
            choice.reason += "; dirty rings were measured cheaper, and this VM has none enabled";
        }
        return choice;
    }
    let (mode, why) = if offer.has(KvmMode::InitiallySet) {
        let why = "this kernel starts bitmaps all ones without protecting anything";
        (KvmMode::InitiallySet, why)
    } else if offer.has(KvmMode::ManualProtect) {
        let why = "this kernel leaves clearing to us but has no initially-set bitmaps";
        (KvmMode::ManualProtect, why)
    } else {
        let why = "this kernel can only get and clear at once";
        (KvmMode::GetAndClear, why)
    };
    Choice {
        mode,
        reason: format!("there is no ring, and {why}"),
    }
}

/// The choice when rings are enabled. Bitmaps no longer work then, but for writes that no vCPU
/// makes, so there is nothing left to choose. If costs were measured, the reason tells what the
/// rings cost.
fn with_rings(offer: Offer, measured: Option<&Measured>) -> Choice {
    let reason = if offer.bitmap {
        "this VM has its dirty rings enabled, and a bitmap for what no vCPU writes"
    } else {
        "this VM has its dirty rings enabled, and no bitmap works on it then"
    };
    let more = match measured {
        Some(measured) if measured.choice.mode == KvmMode::Ring => {
            format!("; {}", measured.choice.reason)
        }
        Some(measured) => format!(
            "; {} would have been cheaper: {}",
            measured.choice.mode.name(),
            measured.choice.reason
        ),
        None => "; whether rings are worth it is decided when they are enabled (brant_kvm_measure \
                 says): a guest that writes a lot is faster without"
            .to_owned(),
    };
    Choice {
        mode: KvmMode::Ring,
        reason: reason.to_owned() + &more,
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::costs::{Cost, Costs, Workload};
    use super::*;
    use std::time::Duration;

    #[test]
    fn auto_takes_the_ring_of_a_vm_that_has_one_and_else_the_best_bitmap() {
        let offer = |manual, ring, bitmap| Offer {
            manual,
            ring,
            bitmap,
        };
        for (asked, offer, expected) in [
            (KvmMode::Auto, offer(3, true, false), Some(KvmMode::Ring)),
            (KvmMode::Auto, offer(3, true, true), Some(KvmMode::Ring)),
            (
                KvmMode::Auto,
                offer(3, false, true),
                Some(KvmMode::InitiallySet),
            ),
            (
                KvmMode::Auto,
                offer(1, false, true),
                Some(KvmMode::ManualProtect),
            ),
            (
                KvmMode::Auto,
                offer(0, false, true),
                Some(KvmMode::GetAndClear),
            ),
            (KvmMode::Ring, offer(3, false, true), None),
            (KvmMode::Ring, offer(3, true, false), Some(KvmMode::Ring)),
            (KvmMode::GetAndClear, offer(3, true, false), None),
            (KvmMode::InitiallySet, offer(3, true, true), None),
            (
                KvmMode::GetAndClear,
                offer(3, false, true),
                Some(KvmMode::GetAndClear),
            ),
            (KvmMode::ManualProtect, offer(0, false, true), None),
            (KvmMode::InitiallySet, offer(1, false, true), None),
        ] {
            let got = choose(asked, offer, None);
            assert_eq!(
                got.as_ref().ok().map(|c| c.mode),
                expected,
                "{asked:?} {offer:?}"
            );
            assert!(got.map_or(true, |c| !c.reason.is_empty()));
        }
    }

    fn measured(recommended: KvmMode, busy: [(KvmMode, u64); 2]) -> Measured {
        let mut costs = Costs::default();
        for (mode, ns) in busy {
            *costs.of_mut(mode).unwrap() = Some(Cost {
                busy_write: Duration::from_nanos(ns),
                ..Default::default()
            });
        }
        Measured {
            costs,
            workload: Workload::default(),
            choice: Choice {
                mode: recommended,
                reason: "figures".into(),
            },
        }
    }

    #[test]
    fn auto_goes_by_what_was_measured_as_far_as_that_is_still_to_be_had() {
        use KvmMode::{GetAndClear, InitiallySet, ManualProtect, Ring};
        let bitmaps = |manual| Offer {
            manual,
            ring: false,
            bitmap: true,
        };
        let rings = Offer {
            manual: 3,
            ring: true,
            bitmap: false,
        };
        let plain_is_faster = measured(GetAndClear, [(InitiallySet, 100), (GetAndClear, 10)]);
        let ring_is_faster = measured(Ring, [(InitiallySet, 100), (Ring, 10)]);
        let bitmap_is_faster = measured(InitiallySet, [(InitiallySet, 10), (Ring, 100)]);
        for (offer, measured, expected, says) in [
            (bitmaps(3), &plain_is_faster, GetAndClear, "10 ns"),
            (bitmaps(3), &bitmap_is_faster, InitiallySet, "10 ns"),
            // None of the measured kinds is offered, so the order without figures counts.
            (bitmaps(1), &bitmap_is_faster, ManualProtect, "no ring"),
            (bitmaps(3), &ring_is_faster, InitiallySet, "none enabled"),
            (rings, &bitmap_is_faster, Ring, "would have been cheaper"),
            (rings, &ring_is_faster, Ring, "figures"),
        ] {
            let got = choose(KvmMode::Auto, offer, Some(measured)).unwrap();
            assert_eq!(got.mode, expected, "{offer:?}: {}", got.reason);
            assert!(got.reason.contains(says), "{}", got.reason);
        }
        // A kind that is asked for is used, whatever was measured.
        let asked = choose(InitiallySet, bitmaps(3), Some(&plain_is_faster)).unwrap();
        assert_eq!(asked.mode, InitiallySet);
    }
}
