//! The comparison at the end of a verified migration: this part of the source's driver receives the
//! destination's checksums and tells the VMM what was found. The guest runs at the destination by
//! now, so nothing here is a failure of the migration.

use super::{no_connection, Driver};
use crate::channel::Io;
use crate::error::Result;
use crate::memory::BlockId;
use crate::migrate::outgoing::verify::{name_of, Comparer, Coverage, Found};
use crate::vmm::EventKind;
use crate::wire::Record;
use std::sync::Arc;
use std::time::Instant;

impl Driver {
    /// Compares the destination's memory with the memory here, and tells the VMM of differences and
    /// of whatever kept it from comparing all.
    pub(super) fn verify(&mut self) {
        let begun = Instant::now();
        let mut coverage = None;
        let compared = Coverage::of(self.announced.copied())
            .and_then(|all| self.compare_all(coverage.insert(all)));
        self.common.stats.verify = Some(begun.elapsed());
        let Err(error) = compared else {
            return;
        };
        let mut left = String::new();
        if let Some(coverage) = coverage {
            for (block, found) in coverage.parts() {
                self.tell_mismatch(block, &found, "so far");
            }
            self.uncompared = coverage.left();
            self.common.stats.unverified_pages += coverage.left();
            left = format!(", {} pages were not compared", coverage.left());
        }
        let text = format!(
            "the guest runs at the destination, and its memory there was not verified to the \
             end{left}: {error}"
        );
        self.common.vmm.event(EventKind::Warning, text);
    }

    fn compare_all(&mut self, coverage: &mut Coverage) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let params = &shared.params;
        let memory = shared.guest.tracker.memory();
        let unread = self.unread.clone().unwrap_or_default();
        let mut comparer = Comparer::new(memory, &unread);
        let limit = params.digests(coverage.left()).from_now();
        let stop = &shared.guest.comparison;
        while coverage.left() > 0 {
            stop.check("comparing memory")?;
            // Each record has a limit of its own: a destination that says only KEEPALIVE says
            // nothing.
            let io = Io::until(stop, params.io())
                .within(limit)
                .within(params.io().from_now())
                .of("DIGEST");
            let lanes = self.lanes.as_mut().ok_or_else(no_connection)?;
            let digest = match lanes.first().hear(&io)? {
                Record::Digest(digest) => digest,
                other => return Err(lanes.first().unexpected(other.record_type(), "DIGEST")),
            };
            let (block, range) = coverage.take(&digest)?;
            let found = comparer.compare(block, range, &digest)?;
            let stats = &mut self.common.stats;
            stats.verified_pages += found.verified;
            stats.unverified_pages += found.unverified;
            stats.mismatched_pages += found.mismatched;
            if let (Some(page), None) = (found.first, stats.first_mismatch_page) {
                stats.first_mismatch_block = Some(block.0);
                stats.first_mismatch_page = Some(page.0);
            }
            if let Some(whole) = coverage.found(block, found) {
                self.tell_mismatch(block, &whole, "in all");
            }
            self.renew(false);
        }
        Ok(())
    }

    fn tell_mismatch(&self, block: BlockId, found: &Found, so_far: &str) {
        let Some(first) = found.first else {
            return;
        };
        let name = name_of(self.common.shared.guest.tracker.memory(), block);
        let text = format!(
            "{name}: pages differ at the destination from those here, {} {so_far}; the first is \
             page {first}, at offset {:#x}",
            found.mismatched,
            first.bytes().0
        );
        self.common.vmm.event(EventKind::Mismatch, text);
    }
}
