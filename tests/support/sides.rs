//! The two sides of a migration of a [`Pair`], made and started.

use super::pair::Pair;
use super::time::{LONG, MS};
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
