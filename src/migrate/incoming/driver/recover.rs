//! The driver's part of a recovery: new connections of a session whose connections were lost after
//! the guest was handed over.
//!
//! The old lanes are joined, so nothing can arrive that the description does not have. A connection
//! of an earlier recovery may still come to the listener. It is told by its epoch, is refused, and its
//! channel is waited for again.

use super::{no_connection, receiver, waits, Driver};
use crate::bits::Bitmap;
use crate::channel::Channel;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::control;
use crate::migrate::incoming::accepting::Accepting;
use crate::migrate::incoming::authenticate::{connections, is_urgent, Session};
use crate::migrate::incoming::gather::Gathering;
use crate::migrate::incoming::lane::Incomer;
use crate::migrate::incoming::receiver::Receiver;
use crate::migrate::lane_name::LaneName;
use crate::runtime::{Limit, Timeout};
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{self, Hello, MissingEnd, Record, RecoverReply};
use std::sync::Arc;
use std::time::Duration;

/// The limit for RECOVER behind HELLO.
const SOON: Duration = Duration::from_secs(2);

impl Driver {
    /// Takes new connections, tells the source what is missing, and starts the lanes' threads.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        self.limit = shared.params.connect().from_now();
        let accepting = self.accepting.take().ok_or_else(no_connection)?;
        let (opening, reply) = self.opened.clone().ok_or_else(no_connection)?;
        let (mut lanes, epoch) = match accepting {
            Accepting::Listener(listener) => {
                let session = Session::again(opening.clone());
                let gathering = Gathering::again(listener, shared.params.clone(), session);
                self.gather(gathering, &opening, &reply)?
            }
            Accepting::Connected(channels) => self.handed_in(channels, &opening, &reply)?,
        };
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
        Ok(())
    }

    /// Takes the session's connections at a listener.
    fn gather(
        &mut self,
        mut gathering: Gathering,
        opening: &Hello,
        reply: &Record,
    ) -> Result<(Vec<Receiver>, u32)> {
        let shared = Arc::clone(&self.common.shared);
        let vmm = self.common.vmm.clone();
        let mut warn = |message| vmm.event(EventKind::Warning, message);
        let mut lanes: Vec<Receiver> = Vec::new();
        let mut recovery = None;
        loop {
            let come = gathering.some(&shared.handle.cancel, self.limit, &mut warn)?;
            if come.is_empty() {
                let epoch = recovery.ok_or_else(no_connection)?;
                return Ok((lanes, epoch));
            }
            for arrival in come {
                let number = arrival.hello.channel;
                let mut lane = self.lane_of(&arrival.hello, arrival.channel, opening)?;
                match self.recovers(&mut lane, recovery, reply) {
                    Ok(epoch) => {
                        if recovery.is_some_and(|known| known != epoch) {
                            // A newer recovery: the connections of the older one are over.
                            for old in lanes.drain(..) {
                                old.lane.close();
                                gathering.forget(old.channel);
                            }
                        }
                        recovery = Some(epoch);
                        fallible::push(&mut lanes, lane, "lanes")?;
                    }
                    Err(error) => {
                        lane.lane.abort_at_once(&error);
                        lane.lane.close();
                        gathering.forget(number);
                        warn(format!("a connection for a recovery was closed: {error}"));
                    }
                }
            }
        }
    }

    /// Takes the session's connections as the VMM hands them in.
    fn handed_in(
        &mut self,
        channels: Vec<Channel>,
        opening: &Hello,
        reply: &Record,
    ) -> Result<(Vec<Receiver>, u32)> {
        let expected = connections(opening);
        if channels.len() != expected {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "expected {expected} sockets, one for each channel of the session and one for its \
                     urgent lane; found {}",
                    channels.len()
                ),
            ));
        }
        let shared = Arc::clone(&self.common.shared);
        let mut session = Session::again(opening.clone());
        let mut lanes = Vec::new();
        let mut recovery = None;
        for channel in channels {
            let name = LaneName::before_hello(channel.handed_in());
            let mut lane = receiver(&shared, &self.account, 0, name, channel, opening.channels)?;
            let hello = {
                let waits = waits(&shared, self.limit);
                let came = lane.lane.next(&waits, self.limit, "HELLO");
                match lane.lane.named(came)? {
                    Incomer::Control(Record::Hello(hello)) => hello,
                    other => {
                        let error = control::unexpected(other.kind(), "HELLO");
                        return lane.lane.named(Err(error));
                    }
                }
            };
            let admitted = session.admit(&hello);
            lane.lane.named(admitted)?;
            lane.channel = hello.channel;
            match is_urgent(&hello) {
                true => lane.lane.is_urgent(),
                false if opening.channels > 1 => lane.is_channel(hello.channel),
                false => {}
            }
            lane.agreed(self.agreed);
            let epoch = self.recovers(&mut lane, recovery, reply)?;
            if recovery.is_some_and(|known| known != epoch) {
                return Err(Error::new(
                    Kind::Protocol,
                    "the connections belong to different recoveries",
                ));
            }
            recovery = Some(epoch);
            fallible::push(&mut lanes, lane, "lanes")?;
        }
        Ok((lanes, recovery.ok_or_else(no_connection)?))
    }

    fn lane_of(&self, hello: &Hello, channel: Channel, opening: &Hello) -> Result<Receiver> {
        let (shared, number) = (&self.common.shared, hello.channel);
        let name = match is_urgent(hello) {
            true => LaneName::urgent(None),
            false if opening.channels > 1 => LaneName::of(number.into(), None),
            false => LaneName::default(),
        };
        let mut lane = receiver(
            shared,
            &self.account,
            number,
            name,
            channel,
            opening.channels,
        )?;
        lane.agreed(self.agreed);
        Ok(lane)
    }

    /// Reads RECOVER behind HELLO, and answers HELLO. Returns the recovery's epoch. `known` is that of
    /// another connection.
    fn recovers(&self, lane: &mut Receiver, known: Option<u32>, reply: &Record) -> Result<u32> {
        let last = self.rest.as_ref().map_or(0, |rest| rest.epoch);
        let waits = waits(&self.common.shared, self.limit);
        // It comes right behind HELLO. A connection that says nothing more keeps no other one out.
        let soon = self
            .limit
            .earlier(Timeout::new("the time for it", SOON).from_now());
        let came = lane.lane.next(&waits, soon, "RECOVER");
        let epoch = match lane.lane.named(came)? {
            Incomer::Control(Record::Recover(recover)) => recover.epoch,
            other => {
                let error = control::unexpected(other.kind(), "RECOVER");
                return lane.lane.named(Err(error));
            }
        };
        let least = known.unwrap_or(0).max(last + 1);
        if epoch < least {
            return Err(Error::new(
                Kind::Protocol,
                format!("RECOVER: expected recovery {least} or a later one, found {epoch}"),
            ));
        }
        lane.lane.send(&waits, reply)?;
        Ok(epoch)
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
