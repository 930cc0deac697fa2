//! A destination of several channels that the test scripts. It answers correctly, stores what it is
//! sent, and checks the rules for several channels. On a channel it does something else when the
//! test says so.

use crate::wire::{self, Header, Record, RecordType, HEADER_LEN};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// So long that it never ends a test that works.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// What a channel does with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Answers correctly.
    Right,
    /// Stores the record, and answers nothing.
    Silent,
    /// Reads no more until the session is over.
    Stall,
    /// Closes this connection.
    Cut,
    /// Says ABORT with this reason, and closes every connection, the ABORT's last.
    Abort(&'static str),
    /// Says this instead of the correct answer.
    Say(Record),
}

/// What the session has shown so far.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The first word of each page that is not zero, by block and page.
    pub(super) pages: BTreeMap<(u32, u64), u64>,
    /// All pages that were sent.
    pub(super) sent: BTreeSet<(u32, u64)>,
    /// The channel of each stretch.
    pub(super) homes: BTreeMap<(u32, u64), usize>,
    /// Violations of the rules.
    pub(super) wrong: Vec<String>,
    pub(super) blocks: BTreeSet<u32>,
    pub(super) names: Vec<String>,
    hellos: BTreeSet<(wire::Token, u16, u16)>,
    /// Channels whose final marker has come.
    pub(super) finals: BTreeSet<usize>,
    /// Markers that were acknowledged, by channel.
    pub(super) acknowledged: BTreeMap<usize, u64>,
    /// Channels on which page runs have come since their last acknowledged marker.
    unsettled: BTreeSet<usize>,
    /// A block was added or removed, and the marker after that is not acknowledged.
    unfollowed: bool,
    /// Channels that take nothing any more.
    pub(super) stalled: BTreeSet<usize>,
    over: bool,
}

type Hook = dyn Fn(usize, RecordType, &Session) -> Act + Send + Sync;

/// See the file's description.
pub(super) struct Session {
    known: Mutex<Known>,
    changed: Condvar,
    hook: Box<Hook>,
    streams: Vec<UnixStream>,
}

impl Session {
    /// A session of `channels` connections, and the source's ends of them.
    pub(super) fn new(
        channels: usize,
        hook: impl Fn(usize, RecordType, &Session) -> Act + Send + Sync + 'static,
    ) -> (Arc<Session>, Vec<OwnedFd>) {
        let (mut streams, mut sources) = (Vec::new(), Vec::new());
        for _ in 0..channels {
            let (a, b) = UnixStream::pair().unwrap();
            a.set_read_timeout(Some(LONG)).unwrap();
            a.set_write_timeout(Some(LONG)).unwrap();
            streams.push(a);
            sources.push(b.into());
        }
        let session = Session {
            known: Mutex::default(),
            changed: Condvar::new(),
            hook: Box::new(hook),
            streams,
        };
        (Arc::new(session), sources)
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until `is` holds for what the session has shown.
    pub(super) fn wait(&self, what: &str, is: impl Fn(&Known) -> bool) {
        let begun = Instant::now();
        let mut known = self.known();
        while !is(&known) && !known.over {
            let left = LONG
                .checked_sub(begun.elapsed())
                .unwrap_or_else(|| panic!("{what}"));
            let waited = self.changed.wait_timeout(known, left);
            known = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Ends every connection.
    pub(super) fn end(&self) {
        self.known().over = true;
        self.changed.notify_all();
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Serves all channels on threads of `scope`.
    pub(super) fn serve<'s>(self: &'s Arc<Self>, scope: &'s std::thread::Scope<'s, '_>) {
        for channel in 0..self.streams.len() {
            scope.spawn(move || {
                // Until the source or the script has ended the session.
                while self.one(channel).is_some() {}
                self.changed.notify_all();
            });
        }
    }

    fn read(&self, channel: usize, room: &mut [u8]) -> Option<()> {
        (&self.streams[channel]).read_exact(room).ok()
    }

    fn say(&self, channel: usize, record: &Record) -> Option<()> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        (&self.streams[channel]).write_all(&bytes).ok()
    }

    /// Serves one record of a channel; `None` at the channel's end.
    fn one(&self, channel: usize) -> Option<()> {
        let mut head = [0; HEADER_LEN];
        self.read(channel, &mut head)?;
        let header = Header::decode(&head).unwrap();
        let kind = header.record_type().unwrap().unwrap();
        let act = (self.hook)(channel, kind, self);
        match act {
            Act::Stall => {
                self.known().stalled.insert(channel);
                self.changed.notify_all();
                self.wait("a stalled session's end", |_| false);
                return None;
            }
            Act::Cut => {
                let _ = self.streams[channel].shutdown(Shutdown::Both);
                return None;
            }
            Act::Abort(reason) => {
                let abort = wire::Abort {
                    code: crate::error::Kind::Refused as i32,
                    reason: reason.to_owned(),
                };
                self.say(channel, &Record::Abort(abort));
                for other in (0..self.streams.len()).filter(|other| *other != channel) {
                    let _ = self.streams[other].shutdown(Shutdown::Both);
                }
                let _ = self.streams[channel].shutdown(Shutdown::Write);
                return None;
            }
            Act::Right | Act::Silent | Act::Say(_) => {}
        }
        let mut payload = vec![0; header.payload as usize];
        self.read(channel, &mut payload)?;
        let answer = self.take(channel, &header, kind, &payload);
        let answer = match act {
            Act::Silent => None,
            Act::Say(other) => Some(other),
            _ => answer,
        };
        if let Some(answer) = answer {
            // Stored before the answer is sent, because the source may go on at once.
            if let Record::Ack(ack) = &answer {
                let mut known = self.known();
                known.acknowledged.insert(channel, ack.number);
                known.unsettled.remove(&channel);
                if channel == 0 {
                    known.unfollowed = false;
                }
            }
            self.changed.notify_all();
            self.say(channel, &answer)?;
        }
        self.changed.notify_all();
        Some(())
    }

    /// Stores what a record says. Returns the correct answer.
    fn take(
        &self,
        channel: usize,
        header: &Header,
        kind: RecordType,
        payload: &[u8],
    ) -> Option<Record> {
        use RecordType as R;
        let mut known = self.known();
        if kind.is_page_run() {
            known.run(channel, header, kind, payload);
            return None;
        }
        let record = Record::decode(header, payload).unwrap();
        if channel > 0 && !matches!(kind, R::Hello | R::Marker | R::Abort) {
            known
                .wrong
                .push(format!("{} on channel {channel}", kind.name()));
        }
        match record {
            Record::Hello(hello) => {
                let this = (hello.token, hello.channel, hello.channels);
                let right = (usize::from(hello.channel), usize::from(hello.channels));
                if right != (channel, self.streams.len()) || !known.hellos.insert(this) {
                    known
                        .wrong
                        .push(format!("HELLO of {hello:?} on channel {channel}"));
                }
                Some(Record::HelloReply(reply("script")))
            }
            Record::Block(block) => {
                known.blocks.insert(block.id);
                None
            }
            Record::BlockAdded(block) => {
                known.changes(&format!("BLOCK_ADDED of `{}`", block.name));
                known.blocks.insert(block.id);
                known.names.push(block.name);
                None
            }
            Record::BlockRemoved { id } => {
                known.changes(&format!("BLOCK_REMOVED of {id}"));
                known.blocks.remove(&id);
                None
            }
            Record::EarlyEnd(_) => Some(Record::EarlyOk),
            Record::LayoutEnd(_) => Some(Record::LayoutOk),
            Record::Marker(marker) => {
                if marker.flags & wire::MARKER_FLAG_FINAL != 0 {
                    known.finals.insert(channel);
                }
                let number = marker.number;
                Some(Record::Ack(wire::Ack { number }))
            }
            Record::StateEnd(_) => {
                drop(known);
                let all = self.streams.len();
                self.wait("final markers", |known| known.finals.len() == all);
                if self.known().over {
                    return None;
                }
                Some(Record::Ready(wire::Ready {
                    load_micros: 1,
                    digest_micros: 0,
                }))
            }
            Record::Handover(_) => Some(Record::Running(wire::Running { run_micros: 1 })),
            _ => None,
        }
    }
}

/// The answer to a HELLO.
pub(super) fn reply(software: &str) -> wire::HelloReply {
    wire::HelloReply {
        version: 1,
        features: wire::FEATURE_ZERO_RUNS,
        software: software.to_owned(),
    }
}

impl Known {
    /// Checks that a change of blocks is announced only when all that was sent before is
    /// acknowledged.
    fn changes(&mut self, what: &str) {
        if !self.unsettled.is_empty() && self.homes.values().any(|home| *home > 0) {
            let wrong = format!("{what} before all was acknowledged on {:?}", self.unsettled);
            self.wrong.push(wrong);
        }
        self.unfollowed = true;
    }

    fn run(&mut self, channel: usize, header: &Header, kind: RecordType, payload: &[u8]) {
        if self.unfollowed || !self.blocks.contains(&header.block) {
            let wrong = format!("pages of block {} before it is followed", header.block);
            self.wrong.push(wrong);
        }
        if self.finals.contains(&channel) {
            self.wrong
                .push(format!("pages after the final marker of channel {channel}"));
        }
        self.unsettled.insert(channel);
        let (runs, contents) = match kind {
            RecordType::PagesList | RecordType::ZerosList => {
                let (list, contents) = payload.split_at(header.count as usize * 8 + 4);
                let field = |at: usize| u32::from_le_bytes(list[at..at + 4].try_into().unwrap());
                let runs = (0..header.count as usize).map(|run| {
                    let first = header.first_page + u64::from(field(run * 8));
                    (first, u64::from(field(run * 8 + 4)))
                });
                (runs.collect(), contents)
            }
            _ => (vec![(header.first_page, u64::from(header.count))], payload),
        };
        let mut contents = contents.chunks(4096);
        for page in runs
            .into_iter()
            .flat_map(|(first, count)| first..first + count)
        {
            let key = (header.block, page);
            let home = *self
                .homes
                .entry((header.block, page / 512))
                .or_insert(channel);
            if home != channel {
                let wrong = format!("page {key:?} on channel {channel}, its stretch on {home}");
                self.wrong.push(wrong);
            }
            self.sent.insert(key);
            match contents.next() {
                Some(page) => {
                    let word = u64::from_le_bytes(page[..8].try_into().unwrap());
                    self.pages.insert(key, word);
                }
                None => {
                    self.pages.remove(&key);
                }
            }
        }
    }
}
