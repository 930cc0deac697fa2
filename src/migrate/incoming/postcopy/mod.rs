//! The destination of a postcopy: the guest is handed over before all of its memory is here, and
//! the rest arrives while it runs.
//!
//! [`described`] collects which pages are missing. [`crate::memory::served`] discards them, waits for
//! faults and places pages. [`requests`] has the pages that somebody waits for, and [`urgent`] is the
//! work of the lanes' threads.
//!
//! [`Rest`] is all of it together, from the end of the description until every page is here.

pub(super) mod described;
pub(super) mod requests;
pub(super) mod urgent;

use super::arriving::Arriving;
use super::lane::Waits;
use super::receiver::Receiver;
use super::workers::Workers;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::served::{Checked, How, Served, Supplier};
use crate::memory::Block;
use crate::migrate::common::Migration;
use crate::migrate::report::Stats;
use crate::migrate::switchover::destination::State;
use crate::runtime::Limit;
use crate::units::Pages;
use described::Lacking;
use requests::Requests;
use std::sync::Arc;

/// What takes the rest of the memory, as the file's description says.
pub(super) struct Rest {
    pub(super) served: Arc<Served>,
    pub(super) requests: Arc<Requests>,
    /// The lanes but channel 0, with their threads; `None` while the session has no connection.
    pub(super) workers: Option<Workers>,
    /// The source's numbers of the blocks with missing pages.
    pub(super) blocks: Vec<(u32, Arc<Block>)>,
    /// How many pages the last description has.
    pub(super) missing: Pages,
    /// The number of the session's last description: 0 at the switch, one more with each recovery.
    pub(super) epoch: u32,
}

impl Rest {
    /// Discards the missing pages, and serves faults on them from the return on.
    pub(super) fn serve(
        migration: &Migration<Arriving, State>,
        checked: &Checked,
        lacking: Vec<Lacking>,
        missing: Pages,
    ) -> Result<Rest> {
        let mut blocks = Vec::new();
        let mut absent = Vec::new();
        for one in lacking {
            let block = Arc::clone(&one.absent.block);
            fallible::push(&mut blocks, (one.id, block), "blocks with missing pages")?;
            fallible::push(&mut absent, one.absent, "blocks with missing pages")?;
        }
        let of = blocks.iter().map(|(id, block)| (*id, block));
        let requests = Arc::new(Requests::new(of, migration.callbacks())?);
        let supplier: Arc<dyn Supplier> = Arc::<Requests>::clone(&requests);
        let vmm = migration.callbacks();
        let served = Served::begin(
            &migration.guest.memory,
            checked,
            absent,
            How {
                punch: migration.guest.has_others(),
            },
            supplier,
            Box::new(move |role| vmm.thread_start(role)),
        )?;
        Ok(Rest {
            served,
            requests,
            workers: None,
            blocks,
            missing,
            epoch: 0,
        })
    }

    /// Starts the threads of `others` and of the urgent lane.
    pub(super) fn start(
        &mut self,
        migration: &Arc<Migration<Arriving, State>>,
        others: Vec<Receiver>,
        mut urgent_lane: Receiver,
    ) -> Result<()> {
        let mut workers = Workers::start(migration, Limit::never(), Vec::new())?;
        for mut lane in others {
            lane.serve(&self.served);
            workers.add(lane, urgent::bulk)?;
        }
        urgent_lane.serve(&self.served);
        self.requests.ask_by(urgent_lane.lane.asker()?);
        let (requests, served) = (Arc::clone(&self.requests), Arc::clone(&self.served));
        workers.add(urgent_lane, move |lane, waits: &Waits<'_>| {
            urgent::urgent(lane, waits, &requests, &served)
        })?;
        self.workers = Some(workers);
        Ok(())
    }

    /// Brings the figures up to date.
    pub(super) fn figures(&self, stats: &mut Stats) {
        let faulted = self.served.figures();
        stats.missing_pages = self.served.left().0;
        stats.urgent_pages = faulted.urgent;
        stats.bulk_pages = faulted.bulk;
        stats.faults = faulted.faults;
        stats.fault_waiting = faulted.waiting;
        stats.fault_p50 = faulted.latency.p50;
        stats.fault_p99 = faulted.latency.p99;
        stats.fault_max = faulted.latency.max;
        stats.fault_blocked = faulted.threads.iter().map(|thread| thread.time).sum();
        stats.local_faults = faulted.local;
        stats.lost_pages = faulted.lost;
    }

    /// The guest never ran here and never will: ends the service, and returns the lanes. The memory
    /// holds nothing of use, and can take another guest.
    pub(super) fn abandon(self) -> Vec<Receiver> {
        let lanes = self.workers.map(Workers::end).unwrap_or_default();
        self.served.abandon();
        lanes
    }

    /// Why the lanes have failed, if they have.
    pub(super) fn failed(&self) -> Option<Error> {
        self.workers.as_ref().and_then(Workers::failed)
    }

    /// Every final marker has come: makes sure that nothing is missing.
    pub(super) fn check_complete(&self) -> Result<()> {
        match self.served.left() {
            Pages(0) => Ok(()),
            left => Err(Error::new(
                Kind::Protocol,
                format!(
                    "the source says that it has sent all of the {} pages that were missing, and \
                     {left} of them did not come",
                    self.missing
                ),
            )),
        }
    }
}
