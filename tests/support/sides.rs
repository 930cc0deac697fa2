//! The two sides of a migration of a [`Pair`], made and started.

use super::link::Link;
use super::pair::Pair;
use super::time::{LONG, MS};
use brant::error::Result;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Facts, Incoming, Moment, Next, Outgoing,
    Params, Verdict,
};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Parameters for small guests: the bandwidth is known from the start, and a pause that a busy
/// machine makes long goes through.
pub fn quick() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        downtime_slack: LONG,
        ..Params::default()
    }
}

/// The source's side, not started.
pub fn outgoing(pair: &Pair, params: &Params) -> Arc<Outgoing> {
    let vmm = Arc::clone(&pair.from);
    pair.source.outgoing(&Blockers::new(), vmm, params)
}

/// The destination's side, not started.
pub fn incoming(pair: &Pair, params: &Params) -> Arc<Incoming> {
    let memory = Arc::clone(&pair.destination.memory);
    let vmm = Arc::clone(&pair.to);
    Arc::new(Incoming::new(memory, vmm, params.clone()).unwrap())
}

/// Two ends of one connection.
pub fn socketpair() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

/// Both sides, started over a socketpair.
pub fn start(pair: &Pair, params: &Params) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    (out, inc)
}

/// Both sides, started over `link`.
pub fn start_over(pair: &Pair, link: &Link, params: &Params) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (near, far) = link.connect_all(params.channels as usize);
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start(ConnectTo::ConnectedAll(near)).unwrap();
    (out, inc)
}

/// Migrates over `link`. Returns the source's side and how it ended.
pub fn migrate_over(pair: &Pair, link: &Link, params: &Params) -> (Arc<Outgoing>, Result<()>) {
    let (out, inc) = start_over(pair, link, params);
    let ended = out.wait(Some(LONG));
    let there = inc.wait(Some(LONG));
    pair.assert_sound("over a link");
    assert_eq!(ended.is_ok(), there.is_ok(), "{ended:?}, {there:?}");
    let runs = (ended.is_err(), ended.is_ok());
    assert_eq!(pair.world.who(), runs, "{ended:?}");
    (out, ended)
}

/// Pauses at once, and aborts the first pause.
#[derive(Default)]
pub struct AbortsOnce(bool);

impl Decider for AbortsOnce {
    fn decide(&mut self, facts: &Facts) -> Decision {
        match facts.moment {
            Moment::Synced => Next::SwitchOver { expected: MS }.into(),
            _ => Next::GoOn.into(),
        }
    }
    fn judge(&mut self, _: &Facts) -> Verdict {
        match std::mem::replace(&mut self.0, true) {
            false => Verdict::Resume,
            true => Verdict::GoThrough,
        }
    }
}
