//! Which of KVM's logs is used, and why. Pure: what the kernel offers goes in.

use crate::error::{Error, Kind, Result};
use crate::sys::kvm::{MANUAL_INITIALLY_SET, MANUAL_PROTECT_ENABLE};

/// Which of KVM's logs, and how its bits are read and cleared. The numbers are part of the C ABI.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum KvmMode {
    /// The best that there is: [`choose`] decides.
    #[default]
    Auto = 0,
    /// GET clears.
    GetAndClear = 1,
    /// CLEAR clears; starting protects everything.
    ManualProtect = 2,
    /// CLEAR clears; starting protects nothing and sets every bit.
    InitiallySet = 3,
    /// No bitmap: each vCPU's ring. See [`super::ring`].
    Ring = 4,
}

/// What a kernel and a VM offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// What `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` answers.
    pub manual: u64,
    /// The VM has its rings enabled.
    pub ring: bool,
    /// GET and CLEAR work on it: there is no ring, or a backup bitmap beside it.
    pub bitmap: bool,
}

/// What was picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Never [`KvmMode::Auto`].
    pub mode: KvmMode,
    /// One sentence.
    pub reason: String,
}

/// Picks a mode, or says why `asked` cannot be.
pub fn choose(asked: KvmMode, offer: Offer) -> Result<Choice> {
    let initially = MANUAL_PROTECT_ENABLE | MANUAL_INITIALLY_SET;
    let pick = |mode, reason: &str| {
        Ok(Choice {
            mode,
            reason: reason.to_owned(),
        })
    };
    match (asked, offer) {
        (KvmMode::Ring, Offer { ring: false, .. }) => Err(Error::new(
            Kind::State,
            "mode ring: expected a VM whose dirty rings are enabled (brant_kvm_enable_ring, before \
             its first vCPU); found one without",
        )),
        (KvmMode::Ring, _) => pick(KvmMode::Ring, "the ring was asked for"),
        (
            KvmMode::Auto,
            Offer {
                ring: true, bitmap, ..
            },
        ) => pick(
            KvmMode::Ring,
            match bitmap {
                // There is nothing left to measure: what a bitmap would cost cannot be tried.
                false => {
                    "this VM has its dirty rings enabled, and no bitmap works on it then; whether \
                     rings are worth it is decided when they are enabled: a guest that writes a \
                     lot, and one whose instructions the kernel emulates, is faster without"
                }
                true => {
                    "this VM has its dirty rings enabled, and a bitmap for what no vCPU writes"
                }
            },
        ),
        (mode, Offer { ring: true, .. }) => Err(Error::new(
            Kind::Unsupported,
            format!(
                "this VM has its dirty rings enabled, and the kernel refuses bitmaps for it \
                 (ENXIO): expected mode AUTO or ring, found mode {}",
                mode as u32
            ),
        )),
        (KvmMode::Auto, Offer { manual, .. }) if manual & initially == initially => pick(
            KvmMode::InitiallySet,
            "there is no ring, and this kernel starts bitmaps all ones without protecting anything",
        ),
        (KvmMode::Auto, Offer { manual, .. }) if manual & MANUAL_PROTECT_ENABLE != 0 => pick(
            KvmMode::ManualProtect,
            "there is no ring, and this kernel leaves clearing to us but has no initially-set bitmaps",
        ),
        (KvmMode::Auto, _) => pick(
            KvmMode::GetAndClear,
            "there is no ring, and this kernel can only get and clear at once",
        ),
        (KvmMode::ManualProtect, Offer { manual, .. }) if manual & MANUAL_PROTECT_ENABLE == 0 => {
            Err(missing("manual dirty-log protection", manual))
        }
        (KvmMode::InitiallySet, Offer { manual, .. }) if manual & initially != initially => {
            Err(missing("initially-set dirty logs", manual))
        }
        (mode, _) => pick(mode, "it was asked for"),
    }
}

fn missing(what: &str, manual: u64) -> Error {
    Error::new(
        Kind::Unsupported,
        format!(
            "this KVM has no {what}: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is {manual}; use mode AUTO \
             or get-and-clear"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let got = choose(asked, offer);
            assert_eq!(
                got.as_ref().ok().map(|c| c.mode),
                expected,
                "{asked:?} {offer:?}"
            );
            assert!(got.map_or(true, |c| !c.reason.is_empty()));
        }
    }
}
