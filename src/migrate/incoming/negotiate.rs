//! The destination's side of a session's beginning: what both sides agree on before the first
//! page. Its order is that of `docs/wire.md`; each wait has the limits of `docs/limits.md`.

use super::account::Account;
use super::agreed::Agreed;
use super::authenticate::{check_role, connections, is_urgent, Session};
use super::blobs;
use super::devices;
use super::handed::{self, File};
use super::lane::{Incomer, Lane, Waits};
use super::receiver::Receiver;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::block::BLOCKS_MAX;
use crate::memory::served::{Checked, Served};
use crate::memory::Memory;
use crate::migrate::callbacks::Callbacks;
use crate::migrate::control;
use crate::migrate::layout::layout_difference;
use crate::migrate::params::{Params, Side};
use crate::runtime::{Deadline, Limit};
use crate::sys::uffd::Faults;
use crate::vmm::device::{InUse, Registered};
use crate::wire::{self, Hello, NamedDevice, Record, RecordType};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause between two looks at connections, when any of them may speak next.
const LOOK: Duration = Duration::from_millis(10);

/// The answer to the HELLO of channel 0, which is the same on every channel, and what both sides
/// agree on with it.
///
/// # Errors
/// When versions or features do not go together, or when the source has more channels than this
/// side takes.
///
/// `descriptors`: whether they can travel over the connection and the VMM can map their files.
pub(super) fn answer(
    hello: &Hello,
    params: &Params,
    descriptors: bool,
) -> Result<(Record, Agreed)> {
    // Memory that comes by descriptor is all here, so no fault of it is served. A source that wants
    // both gets postcopy.
    let descriptors = descriptors && hello.features_required & wire::FEATURE_POSTCOPY == 0;
    let (ours, without) = offer(params, descriptors);
    let agreed = wire::negotiate(hello, &ours).map_err(|error| match &without {
        // The source learns why "postcopy" is not offered here.
        Some(why) if hello.features_required & wire::FEATURE_POSTCOPY != 0 => {
            Error::new(error.kind(), format!("{}: {why}", error.message()))
        }
        _ => error,
    });
    let (version, features) = agreed?;
    check_role(hello)?;
    if u32::from(hello.channels) > params.incoming_channels {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "expected a source of at most {} channels, the number in this side's parameters; \
                 found one of {}",
                params.incoming_channels, hello.channels
            ),
        ));
    }
    let reply = wire::HelloReply {
        version,
        features,
        software: control::software(),
    };
    let agreed = Agreed {
        token: hello.token,
        ballooned: features & wire::FEATURE_BALLOONED != 0,
        zstd: features & wire::FEATURE_ZSTD != 0,
        delta: features & wire::FEATURE_DELTA != 0,
        checksums: features & wire::FEATURE_PAGE_CHECKSUMS != 0,
        verify: features & wire::FEATURE_VERIFY != 0,
        devices: features & wire::FEATURE_DEVICE_STREAMS != 0,
        // A source that could do it and does not want it has no urgent lane.
        postcopy: features & hello.features_required & wire::FEATURE_POSTCOPY != 0,
        descriptors: features & wire::FEATURE_DESCRIPTORS != 0,
    };
    Ok((Record::HelloReply(reply), agreed))
}

/// What this side offers, and why not "postcopy" if it does not.
fn offer(params: &Params, descriptors: bool) -> (wire::Ours, Option<Error>) {
    let ours = params.ours(Side::Destination, false, descriptors);
    match Faults::open() {
        Ok(_) => (ours, None),
        Err(why) => (ours.without(wire::FEATURE_POSTCOPY), Some(why)),
    }
}

/// Reads the HELLO of each connection that the VMM has handed in, in the order in which they come.
/// Puts the connections in the order of their channels. Returns the HELLO of channel 0.
pub(super) fn hellos(lanes: &mut [Receiver], waits: &Waits<'_>, limit: Limit) -> Result<Hello> {
    let count = lanes.len();
    let mut said: Vec<Option<Hello>> = vec![None; count];
    let mut session: Option<Session> = None;
    let limit = limit.earlier(waits.overall);
    while let Some(next) = said.iter().position(Option::is_none) {
        if count > 1 {
            // Each connection gets a short look, because any of them may speak first.
            let soon = Deadline::after(LOOK).earlier(limit.at());
            let lane = &mut lanes[next].lane;
            let waited = lane.wait_for_more(waits.cancel, soon);
            lane.named(waited)?;
            waits.cancel.check("waiting for HELLO")?;
        }
        for (receiver, said) in lanes.iter_mut().zip(&mut said) {
            let lane = &mut receiver.lane;
            if said.is_some() {
                lane.heed_abort(waits)?;
                continue;
            }
            if count > 1 {
                let more = lane.has_more();
                if !lane.named(more)? {
                    continue;
                }
            }
            let hello = heard(lane, waits, limit, count)?;
            let admitted = match &mut session {
                Some(session) => session.admit(&hello),
                None => {
                    session = Some(Session::new(hello.clone()));
                    Ok(())
                }
            };
            lane.named(admitted)?;
            receiver.channel = hello.channel;
            *said = Some(hello);
        }
        if count > 1 && limit.expired() && said.iter().any(Option::is_none) {
            return Err(silent(lanes, &said, &limit));
        }
    }
    lanes.sort_by_key(|receiver| receiver.channel);
    let opening = said.into_iter().flatten().find(|h| h.channel == 0);
    opening.ok_or_else(|| Error::new(Kind::Internal, "no HELLO of channel 0"))
}

/// Reads the HELLO of one of `count` connections.
fn heard(lane: &mut Lane, waits: &Waits<'_>, limit: Limit, count: usize) -> Result<Hello> {
    let came = lane.next(waits, limit, "HELLO");
    let hello = match lane.named(came)? {
        Incomer::Control(Record::Hello(hello)) => hello,
        other => return lane.named(Err(control::unexpected(other.kind(), "HELLO"))),
    };
    lane.named(check_role(&hello))?;
    if connections(&hello) != count {
        let urgent = match connections(&hello) > usize::from(hello.channels) {
            true => " and an urgent lane",
            false => "",
        };
        return lane.named(Err(Error::new(
            Kind::Unsupported,
            format!(
                "expected a source of {count} channels, one for each socket that was handed in \
                 here; found one of {}{urgent}",
                hello.channels
            ),
        )));
    }
    if is_urgent(&hello) {
        lane.is_urgent();
    }
    Ok(hello)
}

/// The error that names the connections on which no HELLO came.
fn silent(lanes: &[Receiver], said: &[Option<Hello>], limit: &Limit) -> Error {
    let all = lanes.iter().zip(said);
    let silent = all.filter(|(_, said)| said.is_none());
    let names: Vec<String> = silent.map(|(r, _)| r.lane.name().to_string()).collect();
    let message = format!("waiting for HELLO on {}: {limit} ran out", names.join(", "));
    Error::new(Kind::Timeout, message)
}

/// Answers the source on channel 0 until its RAM blocks and devices are known to match ours and
/// `account` takes the pages. The map and the devices of `memory` are looked at once the VMM has built
/// itself.
pub(super) fn negotiate(
    lane: &mut Lane,
    waits: &Waits<'_>,
    mut limit: Limit,
    agreed: &Agreed,
    vmm: &Callbacks,
    memory: &Memory,
    account: &mut Account,
) -> Result<Layout> {
    let postcopy = agreed.postcopy;
    let early = blobs::receive(lane, waits, RecordType::Early, limit)?;
    let building = Instant::now();
    for stored in &early.list {
        vmm.call_that_makes_threads("early_load", |vmm| vmm.early_load(&stored.as_blob()))?;
        waits.cancel.check("building")?;
    }
    account.built();
    let ours = memory.devices().in_use();
    lane.send(waits, &Record::EarlyOk)?;
    limit = limit.extended(building.elapsed());
    lane.keep_descriptors(agreed.descriptors);
    let announced = layout(lane, waits, limit, agreed);
    // Descriptors that nobody has taken are closed.
    lane.keep_descriptors(false);
    let Announced {
        blocks: theirs,
        devices: named,
        mut files,
    } = announced?;
    let mut names = HashSet::new();
    for block in &theirs {
        if !fallible::add(&mut names, block.name.as_str(), "the source's blocks")? {
            return Err(Error::new(
                Kind::Protocol,
                format!("block `{}` is announced twice", block.name),
            ));
        }
    }
    let mut shared = HashSet::new();
    for theirs in &theirs {
        if let Some(file) = files.remove(&theirs.id) {
            handed::take_in(vmm, memory, theirs, file)?;
            waits.cancel.check("mapping memory")?;
            fallible::add(&mut shared, theirs.id, "the source's blocks")?;
        }
    }
    let map = memory.map();
    // When both sides have removed a block, it may be in the source's list and no longer here. The
    // map was read before the list of removals, so a block that the map lacks is in that list by
    // now.
    let gone = |name: &str| account.was_removed(name);
    if let Some(difference) = layout_difference(&theirs, &names, &map, gone) {
        return Err(Error::new(Kind::Layout, difference));
    }
    for theirs in &theirs {
        match map.block_named(&theirs.name) {
            Some(ours) if shared.contains(&theirs.id) => account.add_shared(theirs.id, ours)?,
            Some(ours) => account.add(theirs.id, ours)?,
            None => account.added(theirs)?,
        }
    }
    // Said now and not after the pause.
    let servable = match postcopy {
        true => Some(Served::check(memory).map_err(|e| e.context("postcopy"))?),
        false => None,
    };
    let matched = devices::matched(&named, &ours)?;
    lane.send(waits, &Record::LayoutOk)?;
    Ok(Layout {
        devices: matched,
        in_use: ours,
        servable,
    })
}

/// What the exchange of layouts came to.
pub(super) struct Layout {
    /// The devices, in the source's order.
    pub(super) devices: Vec<Arc<Registered>>,
    pub(super) in_use: InUse,
    /// How each block can be served by fault, where postcopy was agreed on.
    pub(super) servable: Option<Checked>,
}

/// What the source announces.
#[derive(Default)]
struct Announced {
    blocks: Vec<wire::Block>,
    devices: Vec<NamedDevice>,
    /// The files that came by descriptor, by the numbers of their blocks.
    files: HashMap<u32, File>,
}

/// The source's RAM blocks, their files and its devices, as it announces them.
fn layout(lane: &mut Lane, waits: &Waits<'_>, limit: Limit, agreed: &Agreed) -> Result<Announced> {
    let mut announced = Announced::default();
    loop {
        match lane.next(waits, limit, "BLOCK or LAYOUT_END")? {
            Incomer::Control(Record::Block(block)) => {
                let blocks = &mut announced.blocks;
                if blocks.len() >= BLOCKS_MAX {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!("more than {BLOCKS_MAX} blocks"),
                    ));
                }
                fallible::push(blocks, block, "the source's blocks")?;
            }
            Incomer::Control(Record::BlockFd(said)) if agreed.descriptors => {
                let file = File {
                    fd: lane.take_descriptor()?,
                    offset: said.offset,
                };
                handed::check_place(&said, announced.blocks.last())?;
                let (files, what) = (&mut announced.files, "the source's blocks");
                if fallible::insert(files, said.id, file, what)?.is_some() {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!("a second BLOCK_FD of block {}", said.id),
                    ));
                }
            }
            Incomer::Control(Record::DeviceNamed(device)) if agreed.devices => {
                let devices = &mut announced.devices;
                if devices.len() >= wire::DEVICES_MAX as usize {
                    return Err(Error::new(
                        Kind::Protocol,
                        format!("more than {} devices", wire::DEVICES_MAX),
                    ));
                }
                fallible::push(devices, device, "the source's devices")?;
            }
            Incomer::Control(Record::LayoutEnd(end)) => {
                lane.check_no_descriptor()?;
                let blocks = &announced.blocks;
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
                return Ok(announced);
            }
            other => return Err(control::unexpected(other.kind(), "BLOCK or LAYOUT_END")),
        }
    }
}
