//! A link that damages one record.

use crate::support::pair::Pair;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing};
use crate::support::time::LONG;
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use brant::wire::{Header, RecordType};

/// Makes a migration in which `damage` changes the `n`th record of a type on the link. Returns the
/// results of the source and of the destination.
pub fn damaged(
    pair: &Pair,
    params: &Params,
    (kind, n): (RecordType, usize),
    mut damage: impl FnMut(&Header, &mut Vec<u8>) + Send + 'static,
) -> (brant::Result<()>, brant::Result<()>) {
    let mut seen = 0;
    let (_proxy, from, to) = Proxy::new(Box::new(move |header, payload| {
        if header.record_type() != Ok(Some(kind)) {
            return Verdict::Forward;
        }
        seen += 1;
        if seen != n {
            return Verdict::Forward;
        }
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        damage(header, &mut bytes);
        Verdict::Replace(bytes)
    }));
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    inc.start(AcceptFrom::Connected(to)).unwrap();
    out.start(ConnectTo::Connected(from)).unwrap();
    (out.wait(Some(LONG)), inc.wait(Some(LONG)))
}
