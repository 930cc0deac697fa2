//! A source with several connections, played by the test to a real destination.

use crate::support::memory::{ram, PAGE};
use crate::support::pair::Pair;
pub use crate::support::peer::block;
use crate::support::peer::{self, Raw};
use crate::support::random::Random;
use brant::migrate::{AcceptFrom, Incoming, Params};
use brant::units::{Pages, PAGE_SIZE};
use brant::wire::{self, Header, Hello, Record};
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The source's number of the destination's one block.
pub const BLOCK: u32 = 4;
/// The pages of the block: 40 stretches of 512 pages, of which the last one is shorter.
pub const PAGES: u64 = 40 * 512 - 100;
pub const STRETCH: u64 = 512;

pub fn quick() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        ..Params::default()
    }
}

pub fn hello(channel: usize, channels: usize) -> Hello {
    Hello {
        channel: channel as u16,
        channels: channels as u16,
        ..peer::hello()
    }
}

pub fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).unwrap();
    bytes
}

/// The record of a run of pages that are filled with `byte`.
pub fn pages(block: u32, first: u64, count: u32, byte: u8) -> Vec<u8> {
    let header = Header::pages(block, Pages(first), count);
    let mut bytes = header.encode().to_vec();
    bytes.resize(bytes.len() + count as usize * PAGE, byte);
    bytes
}

pub fn zeros(block: u32, first: u64, count: u32) -> Vec<u8> {
    Header::zeros(block, Pages(first), count).encode().to_vec()
}

/// The record of a list with one run, whose pages are filled with `byte`.
pub fn list(block: u32, first: u64, count: u32, byte: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_list(block, [(Pages(first), count)].into_iter(), &mut bytes).unwrap();
    bytes.resize(bytes.len() + count as usize * PAGE, byte);
    bytes
}

/// The counts of a channel's next marker.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub markers: u64,
    pub records: u64,
    pub data: u64,
    pub zero: u64,
}

impl Counts {
    pub fn marker(&mut self, last: bool) -> Vec<u8> {
        self.markers += 1;
        bytes(&Record::Marker(wire::Marker {
            number: self.markers,
            pass: 1,
            flags: if last { wire::MARKER_FLAG_FINAL } else { 0 },
            records: self.records,
            data_pages: self.data,
            zero_pages: self.zero,
        }))
    }
    pub fn data(&mut self, pages: u32) {
        self.records += 1;
        self.data += u64::from(pages);
    }
    pub fn zero(&mut self, pages: u32) {
        self.records += 1;
        self.zero += u64::from(pages);
    }
}

/// A destination, and the source's ends of its connections in the order of the channels.
pub struct Session {
    pub pair: Pair,
    pub inc: Arc<Incoming>,
    pub lanes: Vec<Raw>,
    pub counts: Vec<Counts>,
}

impl Session {
    /// A session over `channels` connections, which the destination gets in an order that depends
    /// on the seed.
    pub fn of(channels: usize, params: &Params, seed: u64) -> Session {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        Session::over(pair, channels, params, seed)
    }

    pub fn over(pair: Pair, channels: usize, params: &Params, seed: u64) -> Session {
        let inc = crate::support::sides::incoming(&pair, params);
        let (lanes, fds): (Vec<Raw>, Vec<OwnedFd>) = (0..channels).map(|_| Raw::pair()).unzip();
        inc.start(AcceptFrom::ConnectedAll(shuffled(fds, seed)))
            .unwrap();
        Session {
            pair,
            inc,
            lanes,
            counts: vec![Counts::default(); channels],
        }
    }

    pub fn channels(&self) -> usize {
        self.lanes.len()
    }

    /// Sends HELLO on every channel, the last one first, and reads the answers.
    pub fn greet(&mut self) {
        let channels = self.channels();
        for (channel, lane) in self.lanes.iter_mut().enumerate().rev() {
            lane.say(&Record::Hello(hello(channel, channels)));
        }
        let mut answers = self.lanes.iter_mut().map(|lane| lane.hear_record());
        let first = answers.next().unwrap();
        assert!(matches!(first, Some(Record::HelloReply(_))), "{first:?}");
        answers.for_each(|other| assert_eq!(other, first, "all replies are alike"));
    }

    /// Plays the session from HELLO up to the first page.
    pub fn agree(&mut self) {
        self.greet();
        self.layout();
    }

    /// Plays the session from the replies to HELLO up to the first page.
    pub fn layout(&mut self) {
        let first = &mut self.lanes[0];
        let blobs = wire::BlobEnd { count: 0, bytes: 0 };
        first.say(&Record::EarlyEnd(blobs));
        assert_eq!(first.hear_record(), Some(Record::EarlyOk));
        first.say(&Record::Block(block(BLOCK, "ram", PAGES)));
        first.say(&Record::LayoutEnd(wire::LayoutEnd {
            blocks: 1,
            bytes: PAGES * PAGE_SIZE,
        }));
        assert_eq!(first.hear_record(), Some(Record::LayoutOk));
    }

    pub fn say(&mut self, channel: usize, bytes: &[u8]) {
        self.lanes[channel].0.write_all(bytes).unwrap();
    }

    pub fn data(&mut self, channel: usize, first: u64, count: u32, byte: u8) {
        self.say(channel, &pages(BLOCK, first, count, byte));
        self.counts[channel].data(count);
    }

    /// Sends a marker, and reads its ACK. `last` says that it is the final one.
    pub fn mark(&mut self, channel: usize, last: bool) {
        let marker = self.counts[channel].marker(last);
        self.say(channel, &marker);
        self.await_ack(channel);
    }

    pub fn await_ack(&mut self, channel: usize) {
        let number = self.counts[channel].markers;
        loop {
            match self.lanes[channel].hear_record() {
                Some(Record::Ack(ack)) if ack.number == number => return,
                Some(Record::Ack(ack)) if ack.number < number => {}
                other => panic!("channel {channel}: {other:?} for the ACK of marker {number}"),
            }
        }
    }

    pub fn state_end(&mut self) {
        self.lanes[0].say(&Record::StateEnd(wire::StateEnd {
            blobs: wire::BlobEnd { count: 0, bytes: 0 },
            handover_millis: 30_000,
        }));
    }

    /// Plays the device state, READY and the hand-over, until the guest runs.
    pub fn hand_over(&mut self) {
        self.state_end();
        let ready = self.lanes[0].hear_record();
        assert!(matches!(ready, Some(Record::Ready(_))), "{ready:?}");
        let token = peer::hello().token;
        self.lanes[0].say(&Record::Handover(wire::Handover { token }));
        let running = self.lanes[0].hear_record();
        assert!(matches!(running, Some(Record::Running(_))), "{running:?}");
        self.inc.wait(Some(crate::support::time::LONG)).unwrap();
        assert_eq!(self.pair.to.calls("run"), 1);
    }

    /// The value that all bytes of a page at the destination have.
    pub fn page(&self, page: u64) -> u8 {
        let ram = self.pair.destination.ram("ram");
        let bytes = ram.page(page as usize);
        assert!(bytes.iter().all(|b| *b == bytes[0]), "page {page} is torn");
        bytes[0]
    }
}

pub fn shuffled<T>(mut all: Vec<T>, seed: u64) -> Vec<T> {
    let mut random = Random(seed);
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at + 1));
    }
    all
}

/// Writes each channel's stream, in pieces that end anywhere. Their order depends on the seed.
pub fn interleaved(lanes: &mut [Raw], streams: Vec<Vec<u8>>, random: &mut Random) {
    let mut streams: Vec<VecDeque<u8>> = streams.into_iter().map(VecDeque::from).collect();
    let mut left: Vec<usize> = (0..lanes.len()).collect();
    while !left.is_empty() {
        let at = random.below(left.len());
        let stream = &mut streams[left[at]];
        let most = [1, 40, 5_000, 200_000][random.below(4)];
        let length = (1 + random.below(most)).min(stream.len());
        let piece: Vec<u8> = stream.drain(..length).collect();
        lanes[left[at]].0.write_all(&piece).unwrap();
        if stream.is_empty() {
            left.swap_remove(at);
        }
    }
}
