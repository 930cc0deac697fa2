//! New connections of a session whose connections were lost after the guest was handed over: each says
//! HELLO as at the beginning, and which recovery it belongs to.
//!
//! A connection of an earlier recovery may still come to the listener. It is told by its epoch, is
//! refused, and its channel is waited for again. And one may be here already when the source tries anew,
//! because the others were lost on their way: the newer recovery's connections take the place of all.
//!
//! Called by the migration's thread for a recovery, and for a source that recovers when the guest is
//! whole here.

use super::{no_connection, receiver};
use crate::channel::Channel;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::migrate::common::Migration;
use crate::migrate::control;
use crate::migrate::incoming::accepting::Accepting;
use crate::migrate::incoming::account::Account;
use crate::migrate::incoming::agreed::Agreed;
use crate::migrate::incoming::arriving::Arriving;
use crate::migrate::incoming::authenticate::{connections, is_urgent, Session};
use crate::migrate::incoming::gather::Gathering;
use crate::migrate::incoming::lane::{Incomer, Waits};
use crate::migrate::incoming::receiver::Receiver;
use crate::migrate::lane_name::LaneName;
use crate::migrate::switchover::destination::State;
use crate::runtime::{Cancel, Limit, Timeout};
use crate::vmm::EventKind;
use crate::wire::{Hello, Record};
use std::time::Duration;

/// The limit for RECOVER behind HELLO.
const SOON: Duration = Duration::from_secs(2);

/// What new connections are checked against, as the file's description says.
pub(super) struct Rejoining<'a> {
    pub(super) shared: &'a Migration<Arriving, State>,
    pub(super) cancel: &'a Cancel,
    pub(super) account: &'a Account,
    pub(super) agreed: Agreed,
    /// The HELLO that opened the session, and the answer to it. Those of a recovery are the same.
    pub(super) opening: &'a Hello,
    pub(super) reply: &'a Record,
    /// The last recovery so far.
    pub(super) last: u32,
    /// All connections have to come by then.
    pub(super) limit: Limit,
}

impl Rejoining<'_> {
    pub(super) fn waits(&self) -> Waits<'_> {
        Waits {
            cancel: self.cancel,
            params: &self.shared.params,
            overall: self.limit,
        }
    }

    /// All connections of the session, each with HELLO answered, and the number of their recovery.
    ///
    /// # Errors
    /// `Timeout` when some do not come; `Protocol` for one that was handed in and belongs to another
    /// session or recovery.
    pub(super) fn connections(&self, accepting: Accepting) -> Result<(Vec<Receiver>, u32)> {
        match accepting {
            Accepting::Listener(listener) => {
                let session = Session::again_at_listener(self.opening.clone());
                let params = self.shared.params.clone();
                self.gather(Gathering::again(listener, params, session))
            }
            Accepting::Connected(channels) => self.handed_in(channels),
        }
    }

    /// Takes the session's connections at a listener.
    fn gather(&self, mut gathering: Gathering) -> Result<(Vec<Receiver>, u32)> {
        let vmm = self.shared.callbacks();
        let mut warn = |message| vmm.event(EventKind::Warning, message);
        let mut lanes: Vec<Receiver> = Vec::new();
        let mut recovery = None;
        loop {
            let come = gathering.some(self.cancel, self.limit, &mut warn)?;
            if come.is_empty() {
                let epoch = recovery.ok_or_else(no_connection)?;
                return Ok((lanes, epoch));
            }
            for arrival in come {
                let number = arrival.hello.channel;
                let mut lane = self.lane_of(&arrival.hello, arrival.channel)?;
                match self.recovers(&mut lane, recovery) {
                    Ok(epoch) => {
                        let newer = recovery.is_some_and(|known| known != epoch);
                        let (over, kept) = lanes
                            .drain(..)
                            .partition(|old| newer || old.channel == number);
                        lanes = kept;
                        for old in over {
                            old.lane.close();
                            gathering.forget(old.channel);
                        }
                        gathering.note(number);
                        recovery = Some(epoch);
                        fallible::push(&mut lanes, lane, "lanes")?;
                    }
                    Err(error) => {
                        lane.lane.abort_at_once(&error);
                        lane.lane.close();
                        if !lanes.iter().any(|there| there.channel == number) {
                            gathering.forget(number);
                        }
                        warn(format!("a connection for a recovery was closed: {error}"));
                    }
                }
            }
        }
    }

    /// Takes the session's connections as the VMM hands them in.
    fn handed_in(&self, channels: Vec<Channel>) -> Result<(Vec<Receiver>, u32)> {
        let opening = self.opening;
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
        let mut session = Session::again(opening.clone());
        let mut lanes = Vec::new();
        let mut recovery = None;
        for channel in channels {
            let name = LaneName::before_hello(channel.handed_in());
            let mut lane = receiver(
                self.shared,
                self.account,
                0,
                name,
                channel,
                opening.channels,
            )?;
            let hello = {
                let came = lane.lane.next(&self.waits(), self.limit, "HELLO");
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
            let epoch = self.recovers(&mut lane, recovery)?;
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

    fn lane_of(&self, hello: &Hello, channel: Channel) -> Result<Receiver> {
        let (number, channels) = (hello.channel, self.opening.channels);
        let name = match is_urgent(hello) {
            true => LaneName::urgent(None),
            false if channels > 1 => LaneName::of(number.into(), None),
            false => LaneName::default(),
        };
        let mut lane = receiver(self.shared, self.account, number, name, channel, channels)?;
        lane.agreed(self.agreed);
        Ok(lane)
    }

    /// Reads RECOVER behind HELLO, and answers HELLO. Returns the recovery's epoch. `known` is that of
    /// another connection.
    fn recovers(&self, lane: &mut Receiver, known: Option<u32>) -> Result<u32> {
        let waits = self.waits();
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
        let least = known.unwrap_or(0).max(self.last + 1);
        if epoch < least {
            return Err(Error::new(
                Kind::Protocol,
                format!("RECOVER: expected recovery {least} or a later one, found {epoch}"),
            ));
        }
        lane.lane.send(&waits, self.reply)?;
        Ok(epoch)
    }
}
