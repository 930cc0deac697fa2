//! What the dirty rings of limited vCPUs leave after each pass, beside what fits the downtime limit.
//! Pure.
//!
//! Example: eight vCPUs have a dirty limit, and each one's ring has 16,384 entries. A vCPU over its
//! limit stands still when its ring is full, and not before. The sync at the end of a pass empties
//! all rings, so the vCPUs fill them once more in the next pass: eight times 64 MiB. On a link of 300
//! MB/s that takes 1.8 s, and no dirty limit makes it less. Only smaller rings do, or a higher
//! downtime limit.
//!
//! **More than the rings is left.** vCPUs also write what their limits allow while the rest is sent,
//! [`AIM`] of what the link carries. So rings of `n` bytes leave `n / (1 - AIM)` in the end.

use super::dirty_limit::AIM;
use super::facts::{seconds, Facts};
use crate::units::Pages;
use std::time::Duration;

/// The smallest ring that is worth a recommendation. The kernel keeps up to 576 entries of a ring free.
const SMALLEST: u64 = 1024;

/// Rings that are too large for a downtime limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::migrate) struct TooLarge {
    /// How many vCPUs have a dirty limit, and the entries of each one's ring.
    vcpus: u64,
    entries: u64,
    /// Bytes that a pass leaves in the end.
    leaves: f64,
    /// The bytes that fit the limit, and the bytes a second at which they are sent.
    fits: f64,
    link: f64,
    limit: Duration,
    /// The limit that would do.
    needs: Duration,
}

/// The rings of limited vCPUs when what they leave exceeds what fits the downtime limit `limit`.
/// `None` when it fits, when no vCPU is limited by its ring, and before the bandwidth is known.
pub(in crate::migrate) fn too_large(facts: &Facts, limit: Duration) -> Option<TooLarge> {
    let (vcpus, entries) = (u64::from(facts.limited_vcpus), facts.ring.0);
    let link = facts.bandwidth.filter(|link| *link > 0.0)?;
    // The rings cannot leave more than the guest has.
    let rings = Pages(vcpus.saturating_mul(entries)).bytes().0;
    let leaves = (rings as f64 / (1.0 - AIM)).min(facts.total.0 as f64);
    let fixed = facts.parts().unwrap_or_default().fixed().total();
    let fits = link * limit.saturating_sub(fixed).as_secs_f64();
    (leaves > fits).then(|| TooLarge {
        vcpus,
        entries,
        leaves,
        fits,
        link,
        limit,
        needs: seconds(leaves / link).saturating_add(fixed),
    })
}

impl TooLarge {
    /// What is wrong and what would do, without a full stop at the end.
    pub(in crate::migrate) fn describe(&self) -> String {
        let mb = |bytes: f64| bytes / 1e6;
        let rings = match self.vcpus {
            1 => "the dirty ring of 1 limited vCPU has".to_owned(),
            n => format!("the dirty rings of {n} limited vCPUs have"),
        };
        let each = if self.vcpus == 1 { "" } else { " each" };
        let most = self.fits * (1.0 - AIM) / 4096.0 / self.vcpus as f64;
        // Rings have a power of two of entries.
        let would = match (most as u64).checked_ilog2().map(|bits| 1 << bits) {
            Some(entries) if entries >= SMALLEST => format!("rings of {entries} entries or"),
            _ => "no ring is small enough;".to_owned(),
        };
        format!(
            "{rings} {} entries{each}, which leave {:.1} MB after each pass, whatever the dirty limit; \
             {:.1} MB fit the downtime limit of {} ms at {:.1} MB/s; {would} a downtime limit of {} ms \
             would do",
            self.entries,
            mb(self.leaves),
            mb(self.fits),
            self.limit.as_millis(),
            mb(self.link),
            // The limit that is named must be enough.
            self.needs.as_millis().saturating_add(1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;
    use proptest::prelude::*;

    /// So many limited vCPUs with rings of so many entries, on a link of 300 MB/s.
    fn facts(vcpus: u32, entries: u64) -> Facts {
        Facts {
            total: Bytes(64 << 30),
            bandwidth: Some(300e6),
            limited_vcpus: vcpus,
            ring: Pages(entries),
            ..Facts::default()
        }
    }

    const LIMIT: Duration = Duration::from_millis(300);

    #[test]
    fn rings_that_leave_more_than_fits_are_named_with_what_would_fit() {
        let found = too_large(&facts(8, 16_384), LIMIT).unwrap().describe();
        assert_eq!(
            found,
            "the dirty rings of 8 limited vCPUs have 16384 entries each, which leave 941.9 MB after \
             each pass, whatever the dirty limit; 90.0 MB fit the downtime limit of 300 ms at 300.0 \
             MB/s; rings of 1024 entries or a downtime limit of 3140 ms would do"
        );
        let found = too_large(&facts(1, 65_536), LIMIT).unwrap().describe();
        assert!(
            found.starts_with("the dirty ring of 1 limited vCPU has 65536 entries, which"),
            "{found}"
        );
        assert!(found.contains("rings of 8192 entries or"), "{found}");
        // 100 vCPUs with the smallest rings.
        let found = too_large(&facts(100, 1024), LIMIT).unwrap().describe();
        assert!(found.contains("no ring is small enough; a down"), "{found}");
    }

    #[test]
    fn rings_that_fit_no_limited_vcpu_and_an_unknown_link_are_nothing_to_tell() {
        let unknown = Facts {
            bandwidth: None,
            ..facts(8, 16_384)
        };
        let small = Facts {
            total: Bytes(80_000_000),
            ..facts(8, 16_384)
        };
        for fine in [
            facts(8, 1024),
            facts(1, 8192),
            facts(0, 16_384),
            facts(8, 0),
            unknown,
            small,
        ] {
            assert_eq!(too_large(&fine, LIMIT), None, "{fine:?}");
        }
        assert!(too_large(&facts(8, 2048), LIMIT).is_some());
    }

    proptest! {
        /// Whoever does what the sentence says is told nothing again.
        #[test]
        fn what_is_recommended_is_enough(
            vcpus in 1u32..512, bits in 10u32..17, link in 1e6f64..1e10, ms in 1u64..10_000,
        ) {
            let facts = Facts { bandwidth: Some(link), ..facts(vcpus, 1 << bits) };
            let limit = Duration::from_millis(ms);
            if let Some(found) = too_large(&facts, limit) {
                let needs = Duration::from_millis(found.needs.as_millis() as u64 + 1);
                prop_assert!(needs > limit);
                prop_assert_eq!(too_large(&facts, needs), None);
                let text = found.describe();
                if let Some(entries) = text.split("; rings of ").nth(1) {
                    let entries = entries.split(' ').next().unwrap_or_default();
                    let entries: u64 = entries.parse().unwrap();
                    prop_assert!(entries < 1 << bits);
                    let smaller = Facts { ring: Pages(entries), ..facts };
                    prop_assert_eq!(too_large(&smaller, limit), None);
                }
            }
        }
    }
}
