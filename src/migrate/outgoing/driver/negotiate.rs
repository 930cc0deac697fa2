//! The beginning of a session at the source: the connection, and what both sides agree on before
//! the first page. `docs/wire.md` has the order of the records, `docs/limits.md` the limit of each
//! wait.

use super::hand_over::file_of;
use super::{no_connection, Driver};
use crate::channel::{wait_for_channels, Channel, Io};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::handed::by_descriptor;
use crate::migrate::control::{self, Blobs};
use crate::migrate::layout::describe;
use crate::migrate::outgoing::encode::Agreed;
use crate::migrate::outgoing::lane::Lane;
use crate::migrate::outgoing::lanes::Lanes;
use crate::migrate::outgoing::packing::Packing;
use crate::migrate::params::Side;
use crate::runtime::Wake;
use crate::sys::mem;
use crate::units::PAGE_SHIFT;
use crate::wire::{self, Hello, HelloReply, NamedDevice, Record};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One call sends at most about this many bytes of BLOCK records.
const LAYOUT_BYTES: usize = 32 << 10;

impl Driver {
    /// Makes the connection. The VMM is asked for its early configuration before that, because a
    /// destination that watches several connections takes the first one on which something is said.
    /// When the connection exists already and the VMM fails, the destination is told why there is
    /// no configuration.
    pub(super) fn connect(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        mem::random(&mut self.token)?;
        let mut early = Blobs::default();
        let urgent = shared.params.postcopy;
        let channels = shared.params.channels as usize + usize::from(urgent);
        let pacer = &shared.guest.pacer;
        let over = |channels: Vec<Channel>| {
            Lanes::over(
                channels,
                urgent,
                pacer,
                &shared.params,
                &shared.handle.cancel,
            )
        };
        self.lanes = self.route.ready(channels).map(over).transpose()?;
        self.common
            .vmm
            .call("early_save", |vmm| vmm.early_save(&mut early))?;
        self.blobs = early;
        let limit = shared.params.connect().from_now().earlier(self.total());
        if self.lanes.is_none() {
            let cancel = &shared.handle.cancel;
            let connected = self.route.connect(channels, cancel, limit)?;
            self.lanes = Some(over(connected)?);
        }
        Ok(())
    }

    /// Says HELLO on each channel, and checks each answer. All HELLOs go out before the first wait,
    /// because a destination may answer none before it has all.
    ///
    /// In a recovery, RECOVER follows each HELLO with the recovery's number, and the answers are those of
    /// the beginning. Returns whether both sides take descriptors.
    pub(super) fn greet(&mut self, io: &Io<'_>, recovery: Option<u32>) -> Result<bool> {
        let descriptors = self.offers_descriptors()?;
        let shared = Arc::clone(&self.common.shared);
        let devices = shared.guest.devices.any();
        let ours = shared.params.ours(Side::Source, devices, descriptors);
        let token = self.token;
        let begun = Instant::now();
        self.unread = shared.params.verify.then(Arc::default);
        let unread = self.unread.clone();
        let loaded = Arc::clone(&self.loaded);
        let mut first = self.agreed.clone();
        let lanes = self.lanes()?;
        if devices {
            lanes.hear_of_devices(&loaded);
        }
        for (channel, lane) in (0..).zip(lanes.all()) {
            let hello = Hello {
                version_min: ours.version_min,
                version_max: ours.version_max,
                features_offered: ours.offered,
                features_required: ours.required,
                token,
                channel,
                channels: shared.params.channels as u16,
                page_shift: PAGE_SHIFT as u8,
                role: match u32::from(channel) < shared.params.channels {
                    true => wire::ROLE_BULK,
                    false => wire::ROLE_URGENT,
                },
                software: control::software(),
            };
            lane.say(&Record::Hello(hello), &io.of("HELLO"))?;
            if let Some(epoch) = recovery {
                let recover = wire::Recover { epoch };
                lane.say(&Record::Recover(recover), &io.of("RECOVER"))?;
            }
        }
        let mut greeted = Duration::MAX;
        let heard = || greeted = greeted.min(begun.elapsed());
        let replies = hear_replies(lanes, &io.of("HELLO_REPLY"), heard)?;
        for (lane, reply) in lanes.all().zip(replies) {
            lane.named(wire::check_reply(&reply, &ours))?;
            let packing = match reply.features & wire::FEATURE_ZSTD {
                0 => None,
                _ => Packing::of(&shared.params)?,
            };
            lane.agree(Agreed::of(reply.features), packing);
            if let Some(unread) = &unread {
                lane.note_unread(Arc::clone(unread));
            }
            if let Some(cache) = shared
                .params
                .delta_cache_bytes
                .filter(|_| recovery.is_none())
            {
                lane.use_deltas(cache / u64::from(shared.params.channels))?;
            }
            match &first {
                None => first = Some(reply),
                Some(first) if *first == reply => {}
                Some(first) => return lane.named(Err(unlike(first, &reply))),
            }
        }
        let features = first.as_ref().map_or(0, |reply| reply.features);
        self.agreed = first;
        if recovery.is_none() {
            self.greeted = greeted;
        }
        Ok(features & wire::FEATURE_DESCRIPTORS != 0)
    }

    pub(super) fn negotiate(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.common.shared);
        let params = &shared.params;
        let early = std::mem::take(&mut self.blobs);
        // One limit for the whole negotiation, whatever the destination spends its time on.
        let limit = params.connect().from_now().earlier(self.total());
        let io = Io::until(&shared.handle.cancel, params.io()).within(limit);
        let descriptors = self.greet(&io, None)?;
        let lane = self.first()?;
        lane.send_early(&early, &io.of("EARLY"))?;
        // A destination that builds its guest or looks through its memory says nothing meanwhile.
        let answer = Io::until(&shared.handle.cancel, params.connect()).within(limit);
        match lane.hear(&answer.of("EARLY_OK"))? {
            Record::EarlyOk => {}
            other => return Err(lane.unexpected(other.record_type(), "EARLY_OK")),
        }
        let map = shared.guest.tracker.memory().map();
        let handed = match descriptors {
            true => self.blocks_to_hand_over(&map)?,
            false => HashSet::new(),
        };
        let Driver {
            lanes, announced, ..
        } = self;
        let lane = lanes.as_mut().ok_or_else(no_connection)?.first();
        // Many records in one call: a guest may have thousands of blocks.
        let mut layout = Vec::new();
        for block in map.blocks() {
            Record::Block(describe(block)).encode(&mut layout)?;
            if layout.len() >= LAYOUT_BYTES || handed.contains(&block.id()) {
                lane.say_encoded(&layout, &io.of("BLOCK"))?;
                layout.clear();
            }
            if handed.contains(&block.id()) {
                let (file, part) = by_descriptor(block)?;
                let mut record = Vec::new();
                Record::BlockFd(file_of(block.id(), part.offset, block.length()))
                    .encode(&mut record)?;
                lane.say_with_descriptor(&record, file, &io.of("BLOCK_FD"))?;
            }
            announced.add(block)?;
        }
        for (number, device) in (0..).zip(shared.guest.devices.list()) {
            let named = NamedDevice {
                number,
                instance: device.instance(),
                version: device.version(),
                name: device.name().to_owned(),
            };
            Record::DeviceNamed(named).encode(&mut layout)?;
        }
        lane.say_encoded(&layout, &io.of("BLOCK"))?;
        announced.all_of(&map);
        let end = wire::LayoutEnd {
            blocks: map.blocks().len() as u32,
            bytes: map.total().0,
        };
        lane.say(&Record::LayoutEnd(end), &io.of("LAYOUT_END"))?;
        match lane.hear(&answer.of("LAYOUT_OK"))? {
            Record::LayoutOk => {}
            other => return Err(lane.unexpected(other.record_type(), "LAYOUT_OK")),
        }
        self.share(&map, &handed)?;
        let vmm = &self.common.vmm;
        self.lanes
            .as_mut()
            .ok_or_else(no_connection)?
            .start(shared.guest.tracker.memory(), vmm)
    }
}

/// Waits for the answer to HELLO on each channel. The answers come in any order. The end of any
/// connection ends the wait, also while another channel's answer is still to come. Calls `heard` at
/// each answer.
fn hear_replies(
    lanes: &mut Lanes,
    io: &Io<'_>,
    mut heard: impl FnMut(),
) -> Result<Vec<HelloReply>> {
    let count = lanes.all().count();
    let mut replies: Vec<Option<HelloReply>> = Vec::new();
    fallible::reserve(&mut replies, count, "the answers to HELLO")?;
    replies.resize_with(count, || None);
    let said = |lane: &Lane, record: Record| match record {
        Record::HelloReply(reply) => Ok(reply),
        other => Err(lane.unexpected(other.record_type(), "HELLO_REPLY")),
    };
    loop {
        let missing = replies.iter().filter(|reply| reply.is_none()).count();
        if missing == 0 {
            return fallible::collect(replies.into_iter().flatten(), "the answers to HELLO");
        }
        // The last answer, or the only one, is waited for on its channel alone.
        let woken = match missing {
            1 => Wake::Ready,
            _ => {
                let all = lanes.all().zip(&replies);
                let waiting = all.filter(|(_, reply)| reply.is_none());
                let channels = waiting.map(|(lane, _)| lane.channel());
                let until = io.limit.earlier(io.idle.from_now());
                wait_for_channels(channels, io.cancel, until.at())?
            }
        };
        for (lane, reply) in lanes.all().zip(&mut replies) {
            if reply.is_some() {
                continue;
            }
            let record = if missing == 1 {
                Some(lane.hear(io)?)
            } else if woken == Wake::Ready {
                match lane.hear_at_once() {
                    // The same error, with the name of what was waited for.
                    Err(e) if e.kind() == Kind::PeerGone => Some(lane.hear(io)?),
                    heard => heard?,
                }
            } else {
                // The first channel without an answer says why nobody waits any longer.
                let over = io.within(io.idle.with_left(Duration::ZERO));
                Some(lane.hear(&over)?)
            };
            if let Some(record) = record {
                *reply = Some(said(lane, record)?);
                heard();
            }
        }
    }
}

/// The error when the answer on another channel differs from the one on channel 0.
fn unlike(first: &HelloReply, reply: &HelloReply) -> Error {
    let said = |reply: &HelloReply| {
        format!(
            "version {}, features {:#x}, software `{}`",
            reply.version,
            reply.features,
            reply.software.escape_debug()
        )
    };
    Error::new(
        Kind::Protocol,
        format!(
            "HELLO_REPLY: expected {} as on channel 0, found {}",
            said(first),
            said(reply)
        ),
    )
}
