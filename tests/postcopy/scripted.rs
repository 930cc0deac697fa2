//! A source of a postcopy that says what the test tells it to, on all of its connections. The
//! destination is brant's.

use crate::support::guest::Guest;
use crate::support::memory::{Ram, Spec, PAGE};
use crate::support::peer::{block, hello, Raw};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{Side, TestVmm, World};
use brant::error::{Kind, Result};
use brant::migrate::{AcceptFrom, Incoming, Params};
use brant::units::{Pages, PAGE_SIZE};
use brant::wire::{
    self, BlobEnd, Header, Hello, LayoutEnd, Marker, Missing, MissingEnd, Record, StateEnd,
    FEATURE_DELTA, FEATURE_POSTCOPY, FEATURE_ZERO_RUNS, MARKER_FLAG_FINAL, MARKER_FLAG_POSTCOPY,
    ROLE_URGENT,
};
use std::net::Shutdown;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// The source's number of the block.
pub const BLOCK: u32 = 4;

/// The name of the state in which the guest runs and pages arrive.
pub const COMPLETING: &str = "running, memory arrives";
/// The name of the state in which the connections are lost.
pub const INTERRUPTED: &str = "running, interrupted";

/// What the source has in a page when the guest is handed over.
pub fn contents(page: u64) -> Vec<u8> {
    let word = (page + 1) * 0x0101_0101_0101;
    word.to_le_bytes().repeat(PAGE / 8)
}

/// The first word of [`contents`].
pub fn word(page: u64) -> u64 {
    (page + 1) * 0x0101_0101_0101
}

/// A connection of the source, with the counts of what was sent on it.
pub struct Lane {
    pub raw: Raw,
    markers: u64,
    records: u64,
    data_pages: u64,
    zero_pages: u64,
}

impl Lane {
    fn new(raw: Raw) -> Lane {
        Lane {
            raw,
            markers: 0,
            records: 0,
            data_pages: 0,
            zero_pages: 0,
        }
    }

    /// Sends pages with `bytes` as their contents, in records of one stretch.
    pub fn pages_of(&mut self, pages: Range<u64>, bytes: impl Fn(u64) -> Vec<u8>) {
        let mut at = pages.start;
        while at < pages.end {
            let end = pages.end.min((at / 512 + 1) * 512);
            let count = (end - at) as u32;
            let mut record = Header::pages(BLOCK, Pages(at), count).encode().to_vec();
            (at..end).for_each(|page| record.extend(bytes(page)));
            self.raw.say_bytes(&record);
            self.records += 1;
            self.data_pages += end - at;
            at = end;
        }
    }

    /// Sends the pages as they are when the guest is handed over.
    pub fn pages(&mut self, pages: Range<u64>) {
        self.pages_of(pages, contents);
    }

    pub fn zeros(&mut self, pages: Range<u64>) {
        let count = (pages.end - pages.start) as u32;
        let record = Header::zeros(BLOCK, Pages(pages.start), count).encode();
        self.raw.say_bytes(&record);
        self.records += 1;
        self.zero_pages += u64::from(count);
    }

    pub fn marker(&mut self, flags: u32) {
        self.markers += 1;
        self.raw.say(&Record::Marker(Marker {
            number: self.markers,
            pass: 1,
            flags,
            records: self.records,
            data_pages: self.data_pages,
            zero_pages: self.zero_pages,
        }));
    }

    /// Sends a marker and waits for its acknowledgement. Requests that come before it are dropped.
    pub fn marked(&mut self, flags: u32) {
        self.marker(flags);
        loop {
            match self.raw.hear_record() {
                Some(Record::Ack(ack)) if ack.number == self.markers => return,
                Some(Record::Request(_) | Record::Ack(_)) => {}
                other => panic!("{other:?} for marker {}", self.markers),
            }
        }
    }

    /// The pages that the destination asks for next.
    pub fn asked(&mut self) -> Vec<Range<u64>> {
        loop {
            match self.raw.hear_record() {
                Some(Record::Request(request)) => {
                    assert_eq!(request.block, BLOCK);
                    let runs = request.runs.iter();
                    return runs.map(|(at, n)| at.0..at.0 + u64::from(*n)).collect();
                }
                Some(Record::Ack(_)) => {}
                other => panic!("{other:?} for a request"),
            }
        }
    }

    /// Answers requests until `page` was asked for.
    pub fn answer_until(&mut self, page: u64) {
        loop {
            let asked = self.asked();
            for run in &asked {
                self.pages(run.clone());
            }
            if asked.iter().any(|run| run.contains(&page)) {
                return;
            }
        }
    }
}

/// The source, and the destination that it speaks to.
pub struct Scripted {
    pub bulk: Vec<Lane>,
    pub urgent: Lane,
    pub incoming: Arc<Incoming>,
    pub to: Arc<TestVmm>,
    pub guest: Arc<Guest>,
    pub ram: Arc<Ram>,
}

/// The HELLO of a source that wants postcopy.
pub fn postcopy_hello(channel: u16, channels: u16) -> Hello {
    let features = FEATURE_ZERO_RUNS | FEATURE_POSTCOPY;
    Hello {
        features_offered: features | FEATURE_DELTA,
        features_required: features,
        channel,
        channels,
        role: if channel == channels { ROLE_URGENT } else { 0 },
        ..hello()
    }
}

impl Scripted {
    /// Begins a session, up to the first page.
    pub fn begin(spec: &Spec, channels: u16, params: &Params) -> Scripted {
        let guest = Guest::new(std::slice::from_ref(spec));
        Scripted::begin_with(&guest, channels, params)
    }

    /// The same for a guest that is there already.
    pub fn begin_with(guest: &Arc<Guest>, channels: u16, params: &Params) -> Scripted {
        let ram = Arc::clone(&guest.rams()[0].1);
        let world = Arc::new(World::default());
        let to = TestVmm::new(guest, None, &world, Side::Destination);
        let vmm = Arc::clone(&to);
        let incoming = Incoming::new(Arc::clone(&guest.memory), vmm, params.clone()).unwrap();
        let (mut lanes, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..=channels {
            let (raw, fd) = Raw::pair();
            lanes.push(Lane::new(raw));
            theirs.push(fd);
        }
        incoming.start(AcceptFrom::ConnectedAll(theirs)).unwrap();
        for (channel, lane) in (0..).zip(&mut lanes) {
            let hello = postcopy_hello(channel, channels);
            lane.raw.say(&Record::Hello(hello));
        }
        for lane in &mut lanes {
            match lane.raw.hear_record() {
                Some(Record::HelloReply(reply)) => {
                    assert_ne!(reply.features & FEATURE_POSTCOPY, 0);
                }
                other => panic!("{other:?} for HELLO"),
            }
        }
        let first = &mut lanes[0].raw;
        first.say(&Record::EarlyEnd(BlobEnd { count: 0, bytes: 0 }));
        assert_eq!(first.hear_record(), Some(Record::EarlyOk));
        let pages = ram.spec.pages as u64;
        let announced = wire::Block {
            page_size: ram.spec.page_size,
            ..block(BLOCK, ram.spec.name, pages)
        };
        first.say(&Record::Block(announced));
        first.say(&Record::LayoutEnd(LayoutEnd {
            blocks: 1,
            bytes: pages * PAGE_SIZE,
        }));
        assert_eq!(first.hear_record(), Some(Record::LayoutOk));
        Scripted {
            urgent: lanes.pop().unwrap(),
            bulk: lanes,
            incoming: Arc::new(incoming),
            to,
            guest: Arc::clone(guest),
            ram,
        }
    }

    /// Sends what a precopy leaves: old contents in the pages of `missing`, and the newest in all
    /// others.
    pub fn precopy(&mut self, missing: &[Range<u64>]) {
        let old = |page: u64| match missing.iter().any(|run| run.contains(&page)) {
            true => vec![0xee; PAGE],
            false => contents(page),
        };
        let pages = self.ram.spec.pages as u64;
        let lanes = self.bulk.len() as u64;
        for stretch in 0..pages.div_ceil(512) {
            let lane = &mut self.bulk[(stretch % lanes) as usize];
            lane.pages_of(stretch * 512..pages.min((stretch + 1) * 512), old);
        }
    }

    /// Ends the precopy on all channels, and describes what is missing.
    pub fn switch(&mut self, missing: &[Range<u64>]) {
        for lane in &mut self.bulk {
            lane.marked(MARKER_FLAG_POSTCOPY);
        }
        self.describe(missing);
    }

    pub fn describe(&mut self, missing: &[Range<u64>]) {
        for record in missing_records(self.ram.spec.pages as u64, missing) {
            self.bulk[0].raw.say(&Record::Missing(record));
        }
        let pages = missing.iter().map(|run| run.end - run.start).sum();
        self.bulk[0].raw.say(&Record::MissingEnd(MissingEnd {
            pages: Pages(pages),
            epoch: 0,
        }));
    }

    /// Breaks all connections.
    pub fn lose(&mut self) {
        let lanes = self.bulk.iter().chain([&self.urgent]);
        for lane in lanes {
            let _ = lane.raw.0.shutdown(Shutdown::Both);
        }
    }

    /// Hands new connections to a destination that is interrupted, and says on each that they are of
    /// recovery `epoch`.
    pub fn reconnect(&mut self, epoch: u32) {
        let begun = Instant::now();
        while let Err(error) = self.try_to_reconnect(epoch) {
            // An answer to an earlier recovery, of which an event has told, ends a moment later.
            assert_eq!(error.kind(), Kind::Busy, "{error}");
            assert!(begun.elapsed() < LONG, "{error}");
            std::thread::sleep(MS);
        }
    }

    fn try_to_reconnect(&mut self, epoch: u32) -> Result<()> {
        let channels = self.bulk.len() as u16;
        let (mut lanes, mut theirs) = (Vec::new(), Vec::new());
        for channel in 0..=channels {
            let (mut raw, fd) = Raw::pair();
            raw.say(&Record::Hello(postcopy_hello(channel, channels)));
            raw.say(&Record::Recover(wire::Recover { epoch }));
            lanes.push(Lane::new(raw));
            theirs.push(fd);
        }
        let from = AcceptFrom::ConnectedAll(theirs);
        self.incoming.recover(from)?;
        self.urgent = lanes.pop().unwrap();
        self.bulk = lanes;
        Ok(())
    }

    /// Hears the answers to [`Scripted::reconnect`], and returns the pages that the destination says
    /// are missing.
    pub fn told(&mut self, epoch: u32) -> Vec<Range<u64>> {
        for lane in self.bulk.iter_mut().chain([&mut self.urgent]) {
            let reply = lane.raw.hear_record();
            assert!(matches!(reply, Some(Record::HelloReply(_))), "{reply:?}");
        }
        let first = &mut self.bulk[0].raw;
        let Some(Record::RecoverReply(reply)) = first.hear_record() else {
            panic!("no RECOVER_REPLY");
        };
        assert_eq!(reply.epoch, epoch);
        let mut missing = Vec::new();
        loop {
            match first.hear_record() {
                Some(Record::Missing(record)) => {
                    assert_eq!(record.block, BLOCK);
                    missing.extend(record.runs().map(|run| run.start.0..run.end.0));
                }
                Some(Record::MissingEnd(end)) => {
                    assert_eq!((end.epoch, end.pages), (epoch, reply.pages));
                    let pages: u64 = missing.iter().map(|run| run.end - run.start).sum();
                    assert_eq!(end.pages, Pages(pages));
                    return missing;
                }
                other => panic!("{other:?} in a description"),
            }
        }
    }

    /// Says that there is no more state.
    pub fn state_end(&mut self, blobs: u32, bytes: u64) {
        self.bulk[0].raw.say(&Record::StateEnd(StateEnd {
            blobs: BlobEnd {
                count: blobs,
                bytes,
            },
            handover_millis: 30_000,
        }));
    }

    /// Has the destination load nothing, and hands the guest over.
    pub fn hand_over(&mut self) {
        self.state_end(0, 0);
        self.ready_to_running();
    }

    pub fn ready_to_running(&mut self) {
        let first = &mut self.bulk[0].raw;
        let ready = first.hear_record();
        assert!(matches!(ready, Some(Record::Ready(_))), "{ready:?}");
        first.say(&Record::Handover(wire::Handover {
            token: hello().token,
        }));
        let running = first.hear_record();
        assert!(matches!(running, Some(Record::Running(_))), "{running:?}");
    }

    /// All pages are sent: ends every lane, and waits for COMPLETE.
    pub fn finish(&mut self) {
        let lanes = self.bulk.iter_mut().chain([&mut self.urgent]);
        for lane in lanes {
            lane.marked(MARKER_FLAG_FINAL);
        }
        let complete = self.bulk[0].raw.hear_record();
        assert!(
            matches!(complete, Some(Record::Complete(_))),
            "{complete:?}"
        );
    }

    /// A thread that reads the first word of each of `pages`, as a vCPU does.
    pub fn reader(
        &self,
        pages: impl IntoIterator<Item = u64>,
    ) -> std::thread::JoinHandle<Vec<u64>> {
        let ram = Arc::clone(&self.ram);
        let pages: Vec<u64> = pages.into_iter().collect();
        std::thread::spawn(move || {
            let read = |page: &u64| {
                let word = ram.word(*page as usize * PAGE);
                word.load(std::sync::atomic::Ordering::SeqCst)
            };
            pages.iter().map(read).collect()
        })
    }

    /// The migration is over and nothing is missing: compares all of the memory.
    pub fn assert_whole(&self, zeros: &[Range<u64>]) {
        self.incoming.wait(Some(LONG)).unwrap();
        for page in 0..self.ram.spec.pages {
            let zero = zeros.iter().any(|run| run.contains(&(page as u64)));
            let expected = if zero {
                vec![0; PAGE]
            } else {
                contents(page as u64)
            };
            assert!(self.ram.page(page) == expected, "page {page} differs");
        }
    }
}

/// The records that describe the pages of `missing`.
pub fn missing_records(pages: u64, missing: &[Range<u64>]) -> Vec<Missing> {
    let mut words = vec![0u64; pages.div_ceil(64) as usize];
    for page in missing.iter().cloned().flatten() {
        words[page as usize / 64] |= 1 << (page % 64);
    }
    let mut records = Vec::new();
    wire::describe(BLOCK, &words, Pages(pages), |record| {
        records.push(record.clone());
        Ok(())
    })
    .unwrap();
    records
}
