//! A migration over a [`Link`].

use crate::support::link::Link;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::LONG;
use brant::error::Result;
use brant::migrate::{AcceptFrom, ConnectTo, Incoming, Outgoing, Params};
use std::sync::Arc;

/// Both sides, started over `link`.
pub fn start(pair: &Pair, link: &Link, params: &Params) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (near, far) = link.connect_all(params.channels as usize);
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start(ConnectTo::ConnectedAll(near)).unwrap();
    (out, inc)
}

/// Migrates over `link`. Returns the source's side and how it ended.
pub fn migrate(pair: &Pair, link: &Link, params: &Params) -> (Arc<Outgoing>, Result<()>) {
    let (out, inc) = start(pair, link, params);
    let ended = out.wait(Some(LONG));
    let there = inc.wait(Some(LONG));
    pair.assert_sound("over a link");
    assert_eq!(ended.is_ok(), there.is_ok(), "{ended:?}, {there:?}");
    let runs = (ended.is_err(), ended.is_ok());
    assert_eq!(pair.world.who(), runs, "{ended:?}");
    (out, ended)
}
