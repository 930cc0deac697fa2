//! The driver's part of a postcopy, from the marker of the switch to the last page.

use super::{no_connection, Driver};
use crate::error::{Error, Kind, Result};
use crate::migrate::control;
use crate::migrate::incoming::arriving::Decision;
use crate::migrate::incoming::lane::Incomer;
use crate::migrate::incoming::late::Whole;
use crate::migrate::incoming::postcopy::described::Description;
use crate::migrate::incoming::postcopy::{urgent, Rest};
use crate::migrate::incoming::workers::Workers;
use crate::migrate::report::RENEW;
use crate::migrate::switchover::destination::Event;
use crate::runtime::{Deadline, Limit};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{self, Record};
use std::sync::Arc;

impl Driver {
    /// Whether the source has switched to postcopy. It does so on all channels or on none.
    pub(super) fn switched(&self) -> Result<bool> {
        let switched = self.lanes.iter().filter(|lane| lane.switched()).count();
        match switched {
            0 => Ok(false),
            _ if switched < self.lanes.len() => Err(Error::new(
                Kind::Protocol,
                format!(
                    "expected a MARKER that begins postcopy on each of {} channels, found one on \
                     {switched} of them, and the final MARKER on the others",
                    self.lanes.len()
                ),
            )),
            _ if self.agreed.verify || self.devices.is_some() => Err(Error::new(
                Kind::Protocol,
                "expected no switch to postcopy in a migration that is verified or streams the state \
                 of devices",
            )),
            _ => Ok(true),
        }
    }

    /// Takes the source's description of what is missing.
    pub(super) fn describe(&mut self) -> Result<()> {
        let targets = self.account.targets();
        let mut description = Description::default();
        self.described = Some(loop {
            match self.next(Limit::never(), "MISSING or MISSING_END")? {
                Incomer::Control(Record::Missing(missing)) => {
                    let taken = description.take(&targets, &missing);
                    self.with_lane(|_, _| taken)?;
                }
                Incomer::Control(Record::MissingEnd(end)) => {
                    let ended = description.end(&end);
                    break self.with_lane(|_, _| ended)?;
                }
                other => {
                    let error = control::unexpected(other.kind(), "MISSING or MISSING_END");
                    return self.with_lane(|_, _| Err(error));
                }
            }
        });
        Ok(())
    }

    /// Discards the missing pages and serves faults on them. From here on every lane but channel 0
    /// takes pages on a thread of its own.
    pub(super) fn serve(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let (Some((lacking, missing)), Some(servable)) =
            (self.described.take(), self.servable.as_ref())
        else {
            return Err(Error::new(Kind::Internal, "no description"));
        };
        let urgent = self.urgent.take().ok_or_else(no_connection)?;
        let mut rest = Rest::serve(&shared, servable, lacking, missing)?;
        let told = shared.guest.serves(&rest.served);
        let others = self.lanes.split_off(1);
        for lane in &mut self.lanes {
            lane.serve(&rest.served);
        }
        let started = told.and_then(|()| rest.start(&shared, others, urgent));
        self.rest = Some(rest);
        started
    }

    /// Takes the rest of the memory: channel 0 here, the others on their threads.
    pub(super) fn take_rest(&mut self) -> Result<()> {
        // The limit for the hand-over has been kept.
        self.limit = Limit::never();
        let workers = self.rest.as_mut().and_then(|rest| rest.workers.take());
        let workers = workers.ok_or_else(no_connection)?;
        let first = self.take_rest_of_first(&workers);
        if let (Err(error), Some(lane)) = (first, self.lanes.first()) {
            workers.offer(lane, error);
        }
        while !workers.wait(RENEW) {
            self.renew(false);
        }
        let (others, failure) = workers.join();
        self.lanes.extend(others);
        if let (Some((_, error)), Some(rest)) = (failure, &self.rest) {
            // The last page may have come before the connections were lost.
            if rest.served.left() > Pages(0) {
                return Err(error);
            }
            let message =
                format!("all of the guest is here, and then a connection failed: {error}");
            self.common.vmm.event(EventKind::Warning, message);
        }
        if let Some(rest) = &self.rest {
            rest.check_complete()?;
            rest.served.finish()?;
            self.common.shared.guest.serves_no_more(&rest.served);
            // Its descriptor of the urgent connection goes, although other processes may be served on.
            rest.requests.clear();
        }
        self.renew(true);
        Ok(())
    }

    fn take_rest_of_first(&mut self, workers: &Workers) -> Result<()> {
        let waits = workers.waits();
        loop {
            let begins = waits.patience().from_now();
            while !begins.expired() {
                waits.cancel.check("waiting for pages or a marker")?;
                let soon = Deadline::after(RENEW).earlier(begins.at());
                let first = self.lanes.first_mut().ok_or_else(no_connection)?;
                let came = first.lane.wait_for_more(waits.cancel, soon);
                if first.lane.named(came)? {
                    break;
                }
                self.renew(false);
            }
            let first = self.lanes.first_mut().ok_or_else(no_connection)?;
            if urgent::one(first, &waits)? {
                return first.lane.flush_all(&waits);
            }
            self.renew(false);
        }
    }

    /// Tells the source that every page is here.
    pub(super) fn send_complete(&mut self) {
        let (Some(rest), Some(first)) = (self.rest.take(), self.lanes.first_mut()) else {
            return;
        };
        let complete = Record::Complete(wire::Complete {
            pages: rest.missing,
            epoch: rest.epoch,
        });
        let shared = &self.common.shared;
        if let Some((opening, reply)) = self.opened.clone() {
            // The source may not hear of it.
            shared.guest.late.keep(Whole {
                opening,
                reply,
                agreed: self.agreed,
                epoch: rest.epoch,
            });
        }
        let params = &shared.params;
        if let Err(e) = first.lane.send_last(params, &complete) {
            self.common.vmm.event(
                EventKind::Warning,
                format!("all of the guest is here, and the source could not be told: {e}"),
            );
        }
        self.account.free();
    }

    /// The connections are lost. Waits for the VMM's decision, and carries it out.
    pub(super) fn await_recovery(&mut self) -> Result<Event> {
        let shared = Arc::clone(&self.common.shared);
        let Some(rest) = &mut self.rest else {
            return Err(Error::new(Kind::Internal, "nothing is missing"));
        };
        if let Some(workers) = rest.workers.take() {
            self.lanes.extend(workers.end());
        }
        // Whoever still has an end of them learns that they are over.
        for lane in self.lanes.drain(..) {
            lane.lane.close();
        }
        rest.requests.clear();
        let left = rest.served.left();
        self.renew(true);
        let why = self.common.error.as_ref().map_or("", Error::message);
        self.common.vmm.event(
            EventKind::Interrupted,
            format!(
                "the guest runs here without {left} pages of its memory, and the connections to the \
                 source are lost: what needs one of these pages waits for it ({why})"
            ),
        );
        let decision = shared.guest.decision();
        let Some(rest) = &self.rest else {
            return Err(Error::new(Kind::Internal, "nothing is missing"));
        };
        match decision {
            Decision::Recover(accepting) => {
                self.accepting = Some(accepting);
                self.common.error = None;
                Ok(Event::Recover)
            }
            Decision::GiveUp => {
                let lost = self.common.error.take();
                let (kind, why) = lost.as_ref().map_or((Kind::PeerGone, ""), |error| {
                    (error.kind(), error.message())
                });
                self.common.error = Some(Error::new(
                    kind,
                    format!(
                        "{left} pages of the guest that runs here were given up: they had not come \
                         when the connections to the source were lost ({why})"
                    ),
                ));
                for (_, block) in &rest.blocks {
                    rest.served.lose(block, Pages(0)..block.pages())?;
                }
                rest.served.finish()?;
                shared.guest.serves_no_more(&rest.served);
                self.renew(true);
                self.rest = None;
                self.account.free();
                Ok(Event::GiveUp)
            }
        }
    }
}
