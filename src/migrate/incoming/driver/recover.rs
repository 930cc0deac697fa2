//! The driver's part of a recovery: new connections of a session whose connections were lost after
//! the guest was handed over.
//!
//! The old lanes are joined, so nothing can arrive that the description does not have.

use super::rejoin::Rejoining;
use super::{no_connection, Driver};
use crate::bits::Bitmap;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Cancel, Limit};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{self, MissingEnd, Record, RecoverReply};
use std::sync::Arc;

impl Driver {
    /// Takes new connections, tells the source what is missing, and starts the lanes' threads.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        self.limit = shared.params.connect().from_now();
        let accepting = self.accepting.take().ok_or_else(no_connection)?;
        let (opening, reply) = self.opened.as_ref().ok_or_else(no_connection)?;
        // Nobody has to wait for the connect timeout when the VMM frees the migration.
        let cancel = Cancel::under(&shared.handle.cancel)?;
        shared.guest.is_rejoining(Some(cancel.clone()));
        let rejoining = Rejoining {
            shared: &shared,
            cancel: &cancel,
            account: &self.account,
            agreed: self.agreed,
            opening,
            reply,
            last: self.rest.as_ref().map_or(0, |rest| rest.epoch),
            limit: self.limit,
        };
        let come = rejoining.connections(accepting);
        shared.guest.is_rejoining(None);
        let (mut lanes, epoch) = come?;
        lanes.sort_by_key(|lane| lane.channel);
        let urgent = lanes.pop().ok_or_else(no_connection)?;
        let others = lanes.split_off(1);
        let all = lanes.iter().chain(&others);
        let figures = all.map(|lane| Arc::clone(&lane.figures)).collect();
        let old = std::mem::replace(&mut *shared.guest.figures(), figures);
        self.others.extend(old);
        self.others.push(Arc::clone(&urgent.figures));
        self.lanes = lanes;
        self.tell_missing(epoch)?;
        let Some(rest) = &mut self.rest else {
            return Err(Error::new(Kind::Internal, "nothing is missing"));
        };
        (rest.epoch, rest.missing) = (epoch, rest.served.left());
        for lane in &mut self.lanes {
            lane.serve(&rest.served);
        }
        rest.requests.clear();
        rest.start(&shared, others, urgent)?;
        // Whoever waits had asked over the lost connections.
        rest.served.ask_again();
        self.common.stats.recoveries += 1;
        let text = format!(
            "the migration goes on over new connections; {} pages are missing",
            rest.missing
        );
        self.common.vmm.event(EventKind::Recovered, text);
        Ok(())
    }

    /// Tells the source on channel 0 which pages are missing.
    fn tell_missing(&mut self, epoch: u32) -> Result<()> {
        let Some(rest) = &self.rest else {
            return Err(Error::new(Kind::Internal, "nothing is missing"));
        };
        let (served, blocks) = (Arc::clone(&rest.served), rest.blocks.clone());
        let pages = served.left();
        let reply = Record::RecoverReply(RecoverReply { epoch, pages });
        self.with_lane(|lane, waits| lane.send(waits, &reply))?;
        for (id, block) in &blocks {
            if served.next_absent(block, Pages(0)..block.pages()).is_none() {
                continue;
            }
            let mut missing = Bitmap::new(block.pages().index())?;
            let mut at = Pages(0);
            while let Some(run) = served.next_absent(block, at..block.pages()) {
                missing.set_range(run.start.index(), (run.end - run.start).index());
                at = run.end;
            }
            self.with_lane(|lane, waits| {
                let words = missing.words();
                let told = wire::describe(*id, words, block.pages(), |missing| {
                    lane.send(waits, &Record::Missing(missing.clone()))
                });
                told.map(drop)
            })?;
        }
        let end = Record::MissingEnd(MissingEnd { pages, epoch });
        self.with_lane(|lane, waits| lane.send(waits, &end))?;
        self.limit = Limit::never();
        Ok(())
    }
}
