//! The destination's side of a session's beginning: what both sides agree on before the first
//! page. Its order is that of `docs/wire.md`; each wait has the limits of `docs/limits.md`.

use super::account::Account;
use super::blobs;
use super::lane::{Incomer, Lane, Waits};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::block::BLOCKS_MAX;
use crate::memory::Map;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::control;
use crate::migrate::layout::layout_difference;
use crate::migrate::params::Side;
use crate::runtime::Limit;
use crate::wire::{self, Header, Hello, Record, RecordType, Token};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// What was agreed on.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Agreed {
    pub(super) token: Token,
    /// Whether BALLOONED records may come.
    pub(super) ballooned: bool,
    /// Whether contents come with a checksum behind them, and none without.
    pub(super) checksums: bool,
}

impl Agreed {
    /// Refuses a run of pages that was not agreed on.
    pub(super) fn check(&self, kind: RecordType, header: &Header) -> Result<()> {
        let (name, agreed) = match kind {
            RecordType::Ballooned if !self.ballooned => ("ballooned", false),
            RecordType::Pages | RecordType::PagesList if header.is_checked() != self.checksums => {
                ("page-checksums", self.checksums)
            }
            _ => return Ok(()),
        };
        let what = match (kind, agreed) {
            (RecordType::Ballooned, _) => "",
            (_, true) => " with no checksum behind its contents",
            (_, false) => " with a checksum behind its contents",
        };
        let agreed = if agreed { "is" } else { "is not" };
        Err(Error::new(
            Kind::Protocol,
            format!(
                "{}: found one{what}, and the feature \"{name}\" {agreed} agreed on",
                kind.name()
            ),
        ))
    }
}

/// Answers the source until its RAM blocks are known to be ours too, and `account` takes their pages.
/// `hello` if it was read before; `map` is asked for once the VMM has built itself.
pub(super) fn negotiate(
    lane: &mut Lane,
    waits: &Waits<'_>,
    hello: Option<Hello>,
    vmm: &Callbacks,
    map: impl FnOnce() -> Arc<Map>,
    account: &mut Account,
) -> Result<Agreed> {
    // One limit for all that the source has to say. What this side's VMM takes to build itself
    // does not count.
    let mut limit = waits.params.connect().from_now();
    let hello = match hello {
        Some(hello) => hello,
        None => match lane.next(waits, limit, "HELLO")? {
            Incomer::Control(Record::Hello(hello)) => hello,
            other => return Err(control::unexpected(other.kind(), "HELLO")),
        },
    };
    let (version, features) = wire::negotiate(&hello, &waits.params.ours(Side::Destination))?;
    if hello.role != wire::ROLE_BULK {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "the source opened a connection of role {}; this version takes bulk ones, {}",
                hello.role,
                wire::ROLE_BULK
            ),
        ));
    }
    if (hello.channel, hello.channels) != (0, 1) {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "the source wants {} channels; this version takes one",
                hello.channels
            ),
        ));
    }
    let reply = wire::HelloReply {
        version,
        features,
        software: control::software(),
    };
    lane.send(waits, &Record::HelloReply(reply))?;
    let early = blobs::receive(lane, waits, RecordType::Early, limit)?;
    let building = Instant::now();
    for stored in &early.list {
        vmm.call_that_makes_threads("early_load", |vmm| vmm.early_load(&stored.as_blob()))?;
        waits.cancel.check("building")?;
    }
    account.built();
    lane.send(waits, &Record::EarlyOk)?;
    limit = limit.extended(building.elapsed());
    let theirs = layout(lane, waits, limit)?;
    let mut names = HashSet::new();
    for block in &theirs {
        if !fallible::add(&mut names, block.name.as_str(), "the source's blocks")? {
            return Err(Error::new(
                Kind::Protocol,
                format!("block `{}` is announced twice", block.name),
            ));
        }
    }
    let map = map();
    // A block that both sides have removed may be in the source's list and not here any more. As
    // the map was looked at first, one that it lacks is known to be removed by now.
    let gone = |name: &str| account.was_removed(name);
    if let Some(difference) = layout_difference(&theirs, &names, &map, gone) {
        return Err(Error::new(Kind::Layout, difference));
    }
    for theirs in &theirs {
        match map.block_named(&theirs.name) {
            Some(ours) => account.add(theirs.id, ours)?,
            None => account.added(theirs)?,
        }
    }
    lane.send(waits, &Record::LayoutOk)?;
    Ok(Agreed {
        token: hello.token,
        ballooned: features & wire::FEATURE_BALLOONED != 0,
        checksums: features & wire::FEATURE_PAGE_CHECKSUMS != 0,
    })
}

/// The source's RAM blocks, as it announces them.
fn layout(lane: &mut Lane, waits: &Waits<'_>, limit: Limit) -> Result<Vec<wire::Block>> {
    let mut blocks: Vec<wire::Block> = Vec::new();
    loop {
        match lane.next(waits, limit, "BLOCK or LAYOUT_END")? {
            Incomer::Control(Record::Block(block)) => {
                if blocks.len() >= BLOCKS_MAX {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!("more than {BLOCKS_MAX} blocks"),
                    ));
                }
                fallible::push(&mut blocks, block, "the source's blocks")?;
            }
            Incomer::Control(Record::LayoutEnd(end)) => {
                let bytes = blocks
                    .iter()
                    .fold(0u64, |sum, b| sum.saturating_add(b.length));
                if (end.blocks as usize, end.bytes) != (blocks.len(), bytes) {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!(
                            "the layout ends with {} blocks of {} bytes, and {} of {bytes} came",
                            end.blocks,
                            end.bytes,
                            blocks.len()
                        ),
                    ));
                }
                return Ok(blocks);
            }
            other => return Err(control::unexpected(other.kind(), "BLOCK or LAYOUT_END")),
        }
    }
}
