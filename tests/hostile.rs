//! Peers that do not keep to the protocol: each kind of record where it has no place, fields
//! that lie, bytes that trickle, floods, a second caller, and some thousand mutations of a
//! session that was recorded. Each is refused with a reason, within the limits of time and
//! memory, without a panic, and nobody runs a guest that was not handed over.
//!
//! The few that depend on the VMM and on cancelling are in `migrate.rs`.

#[path = "support/fuzz.rs"]
mod fuzz;
mod support;

use brant::channel::Endpoint;
use brant::error::{Error, Kind, Result};
use brant::migrate::steering::{Facts, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{Blockers, Decider, Decision, Incoming, Outgoing, Params, Resolution};
use brant::migrate::{Source, Target};
use brant::units::{Pages, PAGE_SIZE};
use brant::vmm::EventKind;
use brant::wire::{self, Header, Record, RecordType, HEADER_LEN};
use fuzz::{blob_bytes, bytes, mend_all, page_bytes};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use support::*;

const MS: Duration = Duration::from_millis(1);
/// What a limit of the tests below is; and what may come on top of it on a busy machine, with
/// the second for which a destination listens after it has said why.
const LIMIT: Duration = Duration::from_millis(400);
const SLACK: Duration = Duration::from_millis(4000);

// --- memory and panics, of the whole process --------------------------------------------------

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn grown(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
    LARGEST.fetch_max(size, Ordering::Relaxed);
}

// SAFETY: all of it is the system's allocator's; this only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// No allocation is larger than this: the list of as many blobs as there can be, about 100 bytes
/// each, is the largest. No test of this file makes a larger one either.
const ONE_ALLOCATION: usize = 8 << 20;
/// All tests at once, and all that they migrate.
const AT_ONCE: usize = 64 << 20;

static PANICS: AtomicUsize = AtomicUsize::new(0);
/// Also those of failed assertions: what is printed then takes memory of its own.
static ANY_PANICS: AtomicUsize = AtomicUsize::new(0);

/// To be called first and last in each test.
fn bounded() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Brant's own, caught or not; a failed assertion of a test's is another matter.
            let ours = info
                .location()
                .is_some_and(|at| !at.file().contains("tests/"));
            PANICS.fetch_add(usize::from(ours), Ordering::SeqCst);
            ANY_PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "panics inside brant");
    if ANY_PANICS.load(Ordering::SeqCst) > 0 {
        return;
    }
    let (largest, peak) = (
        LARGEST.load(Ordering::Relaxed),
        PEAK.load(Ordering::Relaxed),
    );
    assert!(
        largest <= ONE_ALLOCATION,
        "one allocation of {largest} bytes"
    );
    assert!(peak <= AT_ONCE, "{peak} bytes at once");
}

// --- the destination's peer: a source ---------------------------------------------------------

const TOKEN: [u8; 16] = [5; 16];
/// The destination's one block, which the source here calls 4.
const PAGES: u64 = 600;

fn quick() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        max_state: 1 << 20,
        // An answer that does not come is waited for, so long and a second.
        handover_timeout: MS * 1000,
        ..Params::default()
    }
}

/// Does something with each of many, several at a time: most of them wait for a limit.
fn each<T: Sync>(all: &[T], what: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::SeqCst)) {
                    what(one);
                }
            });
        }
    });
}

fn strict() -> Params {
    Params {
        connect_timeout: LIMIT,
        io_timeout: LIMIT,
        switchover_timeout: LIMIT,
        handover_timeout: LIMIT,
        ..quick()
    }
}

fn incoming(pair: &Pair, params: Params) -> Incoming {
    let memory = Arc::clone(&pair.destination.memory);
    Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap()
}

fn outgoing(pair: &Pair, params: Params) -> Arc<Outgoing> {
    let vmm = Arc::clone(&pair.from) as _;
    pair.source.outgoing(&Blockers::new(), vmm, &params)
}

fn hello() -> wire::Hello {
    wire::Hello {
        version_min: 1,
        version_max: 1,
        features_offered: 1,
        features_required: 1,
        token: TOKEN,
        channel: 0,
        channels: 1,
        page_shift: 12,
        software: "hostile".into(),
    }
}

fn block(id: u32, name: &str, pages: u64) -> wire::Block {
    wire::Block {
        id,
        length: pages * PAGE_SIZE,
        page_size: PAGE_SIZE,
        flags: 0,
        name: name.into(),
    }
}

fn end(count: u32, bytes: u64) -> wire::BlobEnd {
    wire::BlobEnd { count, bytes }
}

fn state_end(count: u32, bytes: u64) -> wire::StateEnd {
    wire::StateEnd {
        blobs: end(count, bytes),
        handover_millis: 30_000,
    }
}

fn marker(number: u64, flags: u32, records: u64, data_pages: u64, zero_pages: u64) -> wire::Marker {
    wire::Marker {
        number,
        pass: 1,
        flags,
        records,
        data_pages,
        zero_pages,
    }
}

/// What the destination is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Hello,
    Early,
    Layout,
    Passes,
    State,
    Handover,
}

const STEPS: [Step; 6] = [
    Step::Hello,
    Step::Early,
    Step::Layout,
    Step::Passes,
    Step::State,
    Step::Handover,
];

/// A source that does as it should up to a step.
fn reach(raw: &mut Raw, step: Step) {
    if step > Step::Hello {
        raw.say(&Record::Hello(hello()));
        assert!(matches!(raw.hear_record(), Some(Record::HelloReply(_))));
    }
    if step > Step::Early {
        raw.say(&Record::EarlyEnd(end(0, 0)));
        assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    }
    if step > Step::Layout {
        raw.say(&Record::Block(block(4, "ram", PAGES)));
        raw.say(&Record::LayoutEnd(wire::LayoutEnd {
            blocks: 1,
            bytes: PAGES * PAGE_SIZE,
        }));
        assert_eq!(raw.hear_record(), Some(Record::LayoutOk));
    }
    if step > Step::Passes {
        raw.say_bytes(&Header::zeros(4, Pages(0), 512).encode());
        raw.say(&Record::Marker(marker(1, 1, 1, 0, 512)));
        assert!(matches!(raw.hear_record(), Some(Record::Ack(_))));
    }
    if step > Step::State {
        raw.say(&Record::StateEnd(state_end(0, 0)));
        assert!(matches!(raw.hear_record(), Some(Record::Ready(_))));
    }
}

/// What a well-formed record of each type looks like.
fn sample(kind: RecordType) -> Vec<u8> {
    use RecordType as R;
    bytes(&match kind {
        R::Hello => Record::Hello(hello()),
        R::HelloReply => Record::HelloReply(wire::HelloReply {
            version: 1,
            features: 1,
            software: "hostile".into(),
        }),
        R::Block => Record::Block(block(4, "ram", PAGES)),
        R::LayoutEnd => Record::LayoutEnd(wire::LayoutEnd {
            blocks: 1,
            bytes: PAGES * PAGE_SIZE,
        }),
        R::LayoutOk => Record::LayoutOk,
        R::Pages => return page_bytes(4, 1, 1),
        R::Zeros => return Header::zeros(4, Pages(1), 1).encode().to_vec(),
        R::Discard => return Header::discard(4, Pages(1), 1).encode().to_vec(),
        R::Marker => Record::Marker(marker(1, 0, 0, 0, 0)),
        R::Ack => Record::Ack(wire::Ack { number: 1 }),
        R::State | R::Early => return blob_bytes(kind, "x", &[1; 5]),
        R::StateEnd => Record::StateEnd(state_end(0, 0)),
        R::EarlyEnd => Record::EarlyEnd(end(0, 0)),
        R::EarlyOk => Record::EarlyOk,
        R::Ready => Record::Ready(wire::Ready { load_micros: 1 }),
        R::Handover => Record::Handover(wire::Handover { token: TOKEN }),
        R::Running => Record::Running(wire::Running { run_micros: 1 }),
        R::Abort => Record::Abort(wire::Abort {
            code: -1,
            reason: "no\u{1b}[2J\nmore".into(),
        }),
        R::Keepalive => Record::Keepalive,
        R::BlockAdded => Record::BlockAdded(block(9, "ram", PAGES)),
        R::BlockRemoved => Record::BlockRemoved { id: 4 },
    })
}

/// A destination that was waiting for `step` is sent `what`, and refuses it: how.
fn sent_to_destination(step: Step, what: &[u8], params: Params) -> (Error, Option<String>) {
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, params);
    inc.start(Source::Connected(fd)).unwrap();
    reach(&mut raw, step);
    raw.say_bytes(what);
    let _ = raw.0.shutdown(Shutdown::Write);
    let told = raw.hear_abort();
    drop(raw);
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(pair.to.calls("run"), 0, "{step:?}: {error}");
    assert!(!error.message().contains(char::is_control), "{error:?}");
    assert_ne!(error.kind(), Kind::Internal, "{error}");
    (error, told)
}

#[test]
fn a_record_in_a_place_that_is_not_its_own_is_refused_by_name_at_the_destination() {
    use RecordType as R;
    bounded();
    let mut refused = 0;
    for step in STEPS {
        let allowed: &[R] = match step {
            Step::Hello => &[R::Hello],
            Step::Early => &[R::Early, R::EarlyEnd],
            Step::Layout => &[R::Block, R::LayoutEnd],
            Step::Passes => &[
                R::Pages,
                R::Zeros,
                R::Discard,
                R::Marker,
                R::BlockAdded,
                R::BlockRemoved,
            ],
            Step::State => &[R::State, R::StateEnd],
            Step::Handover => &[R::Handover],
        };
        for kind in RecordType::ALL {
            if allowed.contains(kind) || *kind == R::Keepalive {
                continue;
            }
            let (error, told) = sent_to_destination(step, &sample(*kind), quick());
            let what = format!("{} at {step:?}: {error}", kind.name());
            if *kind == R::Abort {
                assert_eq!(error.kind(), Kind::Refused, "{what}");
                assert!(error.message().contains("no [2J more"), "{what}");
            } else {
                assert_eq!(error.kind(), Kind::Protocol, "{what}");
                assert!(error.message().contains(kind.name()), "{what}");
                assert_eq!(told.as_deref(), Some(error.message()), "{what}");
            }
            refused += 1;
        }
    }
    println!("{refused} records refused");
    assert!(refused > 100);
    bounded();
}

/// A record with a field of its header changed, and the checksum right again.
fn with(kind: RecordType, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut record = sample(kind);
    let mut header = Header::decode(record[..HEADER_LEN].try_into().unwrap()).unwrap();
    change(&mut header);
    record[..HEADER_LEN].copy_from_slice(&header.encode());
    record
}

/// A record with bytes of its payload changed, as long as it was.
fn patched(kind: RecordType, at: usize, with: &[u8]) -> Vec<u8> {
    let mut record = sample(kind);
    record[HEADER_LEN + at..HEADER_LEN + at + with.len()].copy_from_slice(with);
    record
}

#[test]
fn fields_that_lie_are_refused_with_what_was_expected_at_the_destination() {
    use RecordType as R;
    bounded();
    let layout = |records: &[Record]| records.iter().flat_map(bytes).collect::<Vec<u8>>();
    let layout_end = |blocks, bytes| Record::LayoutEnd(wire::LayoutEnd { blocks, bytes });
    let size = PAGES * PAGE_SIZE;
    let unknown = |flags, payload: u32| {
        let mut header = Header::control(R::Keepalive, 0, payload);
        (header.kind, header.flags) = (999, flags);
        header.encode().to_vec()
    };
    let (s, p) = (Step::State, Step::Passes);
    let cases: Vec<(&str, Step, Vec<u8>, Kind, &str)> = vec![
        // The header.
        ("magic", p, vec![0; 64], Kind::Protocol, "magic"),
        (
            "a flag",
            p,
            with(R::Zeros, |h| h.flags = 1),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "another flag",
            p,
            {
                let mut x = sample(R::Zeros);
                x[6] = 2;
                mend_all(&mut x);
                x
            },
            Kind::Protocol,
            "flags",
        ),
        (
            "a type that nobody knows",
            p,
            unknown(0, 0),
            Kind::Protocol,
            "999",
        ),
        (
            "one to skip, too long",
            p,
            unknown(1, 65_537),
            Kind::Protocol,
            "65536",
        ),
        (
            "a field that is not used",
            p,
            with(R::Marker, |h| h.first_page = 1),
            Kind::Protocol,
            "MARKER",
        ),
        (
            "a block where none is",
            p,
            with(R::Marker, |h| h.block = 4),
            Kind::Protocol,
            "MARKER",
        ),
        // Runs of pages.
        (
            "no pages",
            p,
            with(R::Pages, |h| h.count = 0),
            Kind::Protocol,
            "512",
        ),
        (
            "no zeros",
            p,
            with(R::Zeros, |h| h.count = 0),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "513 pages",
            p,
            with(R::Pages, |h| (h.count, h.payload) = (513, 513 * 4096)),
            Kind::Protocol,
            "512",
        ),
        (
            "2^32 - 1 zeros",
            p,
            with(R::Zeros, |h| h.count = u32::MAX),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "fewer bytes than pages",
            p,
            with(R::Pages, |h| h.count = 2),
            Kind::Protocol,
            "8192",
        ),
        (
            "more bytes than pages",
            p,
            with(R::Pages, |h| h.payload = 8192),
            Kind::Protocol,
            "4096",
        ),
        (
            "a huge payload",
            p,
            with(R::Pages, |h| h.payload = u32::MAX),
            Kind::Protocol,
            "PAGES",
        ),
        (
            "zeros with contents",
            p,
            with(R::Zeros, |h| h.payload = 4096),
            Kind::Protocol,
            "ZEROS",
        ),
        (
            "across a stretch",
            p,
            with(R::Zeros, |h| (h.first_page, h.count) = (510, 3)),
            Kind::Protocol,
            "512",
        ),
        (
            "contents across a stretch",
            p,
            page_bytes(4, 511, 2),
            Kind::Protocol,
            "one aligned stretch of 512",
        ),
        (
            "contents over the end",
            p,
            page_bytes(4, 599, 2),
            Kind::Protocol,
            "600",
        ),
        (
            "over the end",
            p,
            with(R::Zeros, |h| (h.first_page, h.count) = (599, 2)),
            Kind::Protocol,
            "600",
        ),
        (
            "past the end",
            p,
            with(R::Pages, |h| h.first_page = 600),
            Kind::Protocol,
            "600",
        ),
        (
            "around the end of numbers",
            p,
            with(R::Zeros, |h| (h.first_page, h.count) = (u64::MAX, 2)),
            Kind::Protocol,
            "600",
        ),
        (
            "a block that nobody knows",
            p,
            with(R::Pages, |h| h.block = 5),
            Kind::Protocol,
            "block 5",
        ),
        (
            "zeros of such a block",
            p,
            with(R::Zeros, |h| h.block = 0),
            Kind::Protocol,
            "block 0",
        ),
        (
            "a block that is gone",
            p,
            [sample(R::BlockRemoved), sample(R::Zeros)].concat(),
            Kind::Protocol,
            "block 4",
        ),
        (
            "removed twice",
            p,
            sample(R::BlockRemoved).repeat(2),
            Kind::Protocol,
            "block 4",
        ),
        (
            "added under a number that is taken",
            p,
            bytes(&Record::BlockAdded(block(4, "ram", PAGES))),
            Kind::Protocol,
            "block 4",
        ),
        (
            "added, and not here",
            p,
            bytes(&Record::BlockAdded(block(9, "gpu", PAGES))),
            Kind::Layout,
            "`gpu`",
        ),
        (
            "added with another length",
            p,
            bytes(&Record::BlockAdded(block(9, "ram", 7))),
            Kind::Layout,
            "28672",
        ),
        // Markers that lie.
        (
            "a marker: number",
            p,
            bytes(&Record::Marker(marker(2, 0, 0, 0, 0))),
            Kind::Protocol,
            "marker 2",
        ),
        (
            "a marker: number 0",
            p,
            patched(R::Marker, 0, &[0; 8]),
            Kind::Protocol,
            "MARKER",
        ),
        (
            "a marker: records",
            p,
            bytes(&Record::Marker(marker(1, 0, 1, 0, 0))),
            Kind::Protocol,
            "1 records",
        ),
        (
            "a marker: data pages",
            p,
            bytes(&Record::Marker(marker(1, 0, 0, u64::MAX, 0))),
            Kind::Protocol,
            "data pages",
        ),
        (
            "a marker: zero pages",
            p,
            bytes(&Record::Marker(marker(1, 1, 0, 0, 1))),
            Kind::Protocol,
            "1 zero pages",
        ),
        (
            "a marker: flags",
            p,
            patched(R::Marker, 12, &[2]),
            Kind::Protocol,
            "flags",
        ),
        (
            "a marker twice",
            p,
            sample(R::Marker).repeat(2),
            Kind::Protocol,
            "marker 1",
        ),
        // HELLO.
        (
            "no version in common",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                version_min: 7,
                version_max: 9,
                ..hello()
            })),
            Kind::Version,
            "7",
        ),
        (
            "versions upside down",
            Step::Hello,
            patched(R::Hello, 0, &[9, 0, 1, 0]),
            Kind::Protocol,
            "version",
        ),
        (
            "a feature that nobody knows",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                features_offered: 1 | 1 << 60,
                features_required: 1 | 1 << 60,
                ..hello()
            })),
            Kind::Version,
            "60",
        ),
        (
            "required, not offered",
            Step::Hello,
            patched(R::Hello, 12, &[3]),
            Kind::Protocol,
            "feature",
        ),
        (
            "no channels",
            Step::Hello,
            patched(R::Hello, 38, &[0, 0]),
            Kind::Protocol,
            "channel",
        ),
        (
            "two channels",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                channels: 2,
                ..hello()
            })),
            Kind::Unsupported,
            "2 channels",
        ),
        (
            "the second channel",
            Step::Hello,
            bytes(&Record::Hello(wire::Hello {
                channel: 1,
                channels: 2,
                ..hello()
            })),
            Kind::Unsupported,
            "channels",
        ),
        (
            "other pages",
            Step::Hello,
            patched(R::Hello, 40, &[16]),
            Kind::Unsupported,
            "page",
        ),
        (
            "a long name",
            Step::Hello,
            patched(R::Hello, 41, &[65]),
            Kind::Protocol,
            "HELLO",
        ),
        (
            "a name of bytes",
            Step::Hello,
            patched(R::Hello, 42, &[0xff]),
            Kind::Protocol,
            "HELLO",
        ),
        (
            "HELLO of 2^30",
            Step::Hello,
            with(R::Hello, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "HELLO",
        ),
        // Blobs.
        (
            "more early blobs than said",
            Step::Early,
            [sample(R::Early), bytes(&Record::EarlyEnd(end(0, 0)))].concat(),
            Kind::Protocol,
            "0 blobs",
        ),
        (
            "fewer bytes than said",
            Step::Early,
            [sample(R::Early), bytes(&Record::EarlyEnd(end(1, 6)))].concat(),
            Kind::Protocol,
            "6 bytes",
        ),
        // The sum is right in these; only the count is not.
        (
            "more blobs said than came",
            s,
            [sample(R::State), bytes(&Record::StateEnd(state_end(2, 5)))].concat(),
            Kind::Protocol,
            "2 blobs of 5 bytes, and 1 of 5",
        ),
        (
            "an empty blob that nobody counts",
            s,
            [
                blob_bytes(R::State, "x", &[]),
                bytes(&Record::StateEnd(state_end(0, 0))),
            ]
            .concat(),
            Kind::Protocol,
            "0 blobs of 0 bytes, and 1 of 0",
        ),
        (
            "an early blob that never came",
            Step::Early,
            bytes(&Record::EarlyEnd(end(1, 0))),
            Kind::Protocol,
            "1 blobs of 0 bytes, and 0 of 0",
        ),
        (
            "blobs that overflow",
            s,
            bytes(&Record::StateEnd(state_end(3, u64::MAX))),
            Kind::Protocol,
            "3 blobs",
        ),
        (
            "65,537 blobs said",
            s,
            patched(R::StateEnd, 0, &65_537u32.to_le_bytes()),
            Kind::Protocol,
            "65536",
        ),
        (
            "a blob without a name",
            s,
            patched(R::State, 0, &[0]),
            Kind::Protocol,
            "name",
        ),
        (
            "a blob with a long name",
            s,
            patched(R::State, 0, &[129]),
            Kind::Protocol,
            "name",
        ),
        (
            "a blob with a bell",
            s,
            patched(R::State, 1, &[7]),
            Kind::Protocol,
            "name",
        ),
        (
            "a blob longer than its record",
            s,
            patched(R::State, 10, &6u64.to_le_bytes()),
            Kind::Protocol,
            "5 bytes",
        ),
        (
            "a blob of 2^64 - 1",
            s,
            patched(R::State, 10, &u64::MAX.to_le_bytes()),
            Kind::Protocol,
            "5 bytes",
        ),
        (
            "a blob past 2^30",
            s,
            with(R::State, |h| h.payload = (1 << 30) + 1),
            Kind::Protocol,
            "STATE",
        ),
        (
            "a blob past what is allowed",
            s,
            with(R::State, |h| h.payload = (1 << 20) + 1),
            Kind::Protocol,
            "1048576 bytes allowed",
        ),
        (
            "early, past what is allowed",
            Step::Early,
            with(R::Early, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "1048576 bytes allowed",
        ),
        (
            "a little at a time past it",
            s,
            blob_bytes(R::State, "x", &[0; 700_000]).repeat(2),
            Kind::Protocol,
            "1048576 bytes allowed",
        ),
        // Blocks.
        (
            "a block of nothing",
            Step::Layout,
            patched(R::Block, 0, &[0; 8]),
            Kind::Protocol,
            "length",
        ),
        (
            "half a page",
            Step::Layout,
            patched(R::Block, 0, &2048u64.to_le_bytes()),
            Kind::Protocol,
            "length",
        ),
        (
            "a block of 2^64 - 4096",
            Step::Layout,
            patched(R::Block, 0, &(0u64.wrapping_sub(4096)).to_le_bytes()),
            Kind::Protocol,
            "length",
        ),
        (
            "pages of 3",
            Step::Layout,
            patched(R::Block, 8, &3u64.to_le_bytes()),
            Kind::Protocol,
            "page",
        ),
        (
            "a block's flags",
            Step::Layout,
            patched(R::Block, 16, &[2]),
            Kind::Protocol,
            "flags",
        ),
        (
            "a block's long name",
            Step::Layout,
            patched(R::Block, 20, &[0xff, 0xff]),
            Kind::Protocol,
            "BLOCK",
        ),
        (
            "a block of the greatest length",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", (1 << 51) - 1)),
                layout_end(1, ((1 << 51) - 1) * PAGE_SIZE),
            ]),
            Kind::Layout,
            "`ram`",
        ),
        (
            "two such",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                Record::Block(block(5, "x", (1 << 51) - 1)),
                Record::Block(block(6, "y", (1 << 51) - 1)),
                layout_end(3, 5),
            ]),
            Kind::Protocol,
            "3 blocks",
        ),
        (
            "one name twice",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                Record::Block(block(5, "ram", PAGES)),
                layout_end(2, 2 * size),
            ]),
            Kind::Protocol,
            "`ram`",
        ),
        (
            "one number twice",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                Record::Block(block(4, "gpu", PAGES)),
                layout_end(2, 2 * size),
            ]),
            Kind::Layout,
            "`gpu`",
        ),
        (
            "a layout's number of blocks",
            Step::Layout,
            layout(&[Record::Block(block(4, "ram", PAGES)), layout_end(2, size)]),
            Kind::Protocol,
            "2 blocks",
        ),
        (
            "a layout's bytes",
            Step::Layout,
            layout(&[
                Record::Block(block(4, "ram", PAGES)),
                layout_end(1, size + 1),
            ]),
            Kind::Protocol,
            "1 blocks",
        ),
        (
            "4,097 blocks said",
            Step::Layout,
            patched(R::LayoutEnd, 0, &4097u32.to_le_bytes()),
            Kind::Protocol,
            "4096",
        ),
        // The hand-over.
        (
            "another token",
            Step::Handover,
            bytes(&Record::Handover(wire::Handover { token: [6; 16] })),
            Kind::Protocol,
            "token",
        ),
        (
            "half a token",
            Step::Handover,
            with(R::Handover, |h| h.payload = 8),
            Kind::Protocol,
            "HANDOVER",
        ),
        (
            "a token cut short",
            Step::Handover,
            sample(R::Handover)[..47].to_vec(),
            Kind::PeerGone,
            "",
        ),
    ];
    let count = cases.len();
    let mut wrong = Vec::new();
    for (what, step, bytes, kind, word) in cases {
        let (error, told) = sent_to_destination(step, &bytes, quick());
        if error.kind() != kind || !error.message().contains(word) {
            wrong.push(format!(
                "{what}: {:?} {error}; expected {kind:?}, {word}",
                error.kind()
            ));
        }
        if kind != Kind::PeerGone && told.as_deref() != Some(error.message()) {
            wrong.push(format!("{what}: it was told {told:?}, not: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
    bounded();
}

#[test]
fn more_blobs_or_blocks_than_there_can_be_are_refused_as_they_come() {
    bounded();
    let params = || Params {
        max_state: 1 << 40,
        ..quick()
    };
    let many = |kind: RecordType, count: usize| {
        let one = match kind {
            RecordType::Block => sample(kind),
            _ => blob_bytes(kind, "x", &[]),
        };
        let mut stream = one.repeat(count);
        // The blocks' names are alike; nobody looks at them before the end.
        stream.extend(sample(kind));
        stream
    };
    for (step, kind, count, word) in [
        (Step::Early, RecordType::Early, 65_536, "65536 blobs"),
        (Step::State, RecordType::State, 65_536, "65536 blobs"),
        (Step::Layout, RecordType::Block, 4096, "4096 blocks"),
    ] {
        let (error, _) = sent_to_destination(step, &many(kind, count), params());
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.message().contains(word), "{error}");
    }
    bounded();
}

#[test]
fn a_record_cut_short_at_any_byte_is_refused_at_the_destination() {
    bounded();
    let session = fuzz::session();
    let whole = session.concat();
    let pages: usize = session[..8].iter().map(Vec::len).sum();
    let mut count = 0;
    // Pages of data are long and all alike inside: a byte in a hundred of those.
    for length in (0..whole.len()).filter(|n| !(pages..pages + 12_384).contains(n) || n % 100 == 0)
    {
        let outcome = fuzz::destination(&whole[..length]);
        let error = outcome.result.unwrap_err();
        let gone = matches!(error.kind(), Kind::PeerGone | Kind::Io);
        assert!(gone, "{length}: {:?} {error}", error.kind());
        count += 1;
    }
    assert_eq!(fuzz::destination(&whole).result, Ok(()));
    println!("{count} lengths");
    bounded();
}

#[test]
fn a_flipped_bit_in_a_header_is_always_refused_at_the_destination() {
    bounded();
    let session = fuzz::session();
    let mut random = Random(1);
    for at in 0..session.len() {
        for byte in 0..HEADER_LEN {
            let mut flipped = session.clone();
            flipped[at][byte] ^= 1 << random.below(8);
            let error = fuzz::destination(&flipped.concat()).result.unwrap_err();
            assert_eq!(
                error.kind(),
                Kind::Protocol,
                "record {at}, byte {byte}: {error}"
            );
        }
    }
    bounded();
}

/// What became of a block that the source announced when it was gone here already.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Late {
    Arrives,
    Refused(Kind, &'static str),
}

#[test]
fn a_block_that_is_gone_again_when_it_is_announced_takes_nothing_and_has_to_go() {
    use Late::{Arrives, Refused};
    bounded();
    let added = |id, pages| bytes(&Record::BlockAdded(block(id, "late", pages)));
    let removed = |id| bytes(&Record::BlockRemoved { id });
    let zeros = |first, count| Header::zeros(9, Pages(first), count).encode().to_vec();
    let runs = || [page_bytes(9, 3, 2), zeros(0, 2)].concat();
    let last = |records, data, zero| {
        let last = marker(1, wire::MARKER_FLAG_FINAL, records, data, zero);
        bytes(&Record::Marker(last))
    };
    let removed_here = Refused(Kind::Layout, "`late` was removed at the destination");
    // Whether another of its name has come here since, what the source says, what comes of it.
    let cases: Vec<(bool, Vec<Vec<u8>>, Late)> = vec![
        (
            false,
            vec![added(9, 8), runs(), removed(9), last(2, 2, 2)],
            Arrives,
        ),
        (
            true,
            vec![
                added(9, 8),
                runs(),
                removed(9),
                added(10, 16),
                last(2, 2, 2),
            ],
            Arrives,
        ),
        (
            false,
            vec![added(9, 8), runs(), last(2, 2, 2)],
            removed_here,
        ),
        (true, vec![added(9, 8), last(0, 0, 0)], removed_here),
        // Nothing is believed of it that would not be of one that is here.
        (
            false,
            vec![added(9, 8), zeros(7, 2)],
            Refused(Kind::Protocol, "8 pages"),
        ),
        (
            false,
            vec![added(9, 8), added(9, 8)],
            Refused(Kind::Protocol, "block 9 is announced twice"),
        ),
        (
            false,
            vec![added(9, 8), added(10, 8)],
            Refused(Kind::Protocol, "`late` is announced again, as 10"),
        ),
        (
            true,
            vec![added(9, 8), added(10, 16)],
            Refused(Kind::Protocol, "`late` is announced again, as 10"),
        ),
        (
            false,
            vec![added(9, 8), removed(9), zeros(0, 1)],
            Refused(Kind::Protocol, "block 9"),
        ),
        (
            false,
            vec![bytes(&Record::BlockAdded(block(9, "never", 8)))],
            Refused(Kind::Layout, "none of that name"),
        ),
    ];
    for (number, (another, say, then)) in cases.into_iter().enumerate() {
        let pair = Pair::of(Guest::new(&[]), Guest::new(&[ram("ram", PAGES as usize)]));
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, quick());
        inc.start(Source::Connected(fd)).unwrap();
        reach(&mut raw, Step::Passes);
        pair.destination.add(Ram::new(&ram("late", 8)));
        pair.destination.remove("late");
        if another {
            let other = Ram::new(&ram("late", 16));
            other.fill_all(&mut Random(5));
            pair.destination.add(other);
        }
        raw.say_bytes(&say.concat());
        match then {
            Arrives => {
                assert!(
                    matches!(raw.hear_record(), Some(Record::Ack(_))),
                    "{number}"
                );
                raw.say(&Record::StateEnd(state_end(0, 0)));
                let ready = raw.hear_record();
                assert!(
                    matches!(ready, Some(Record::Ready(_))),
                    "{number}: {ready:?}"
                );
                if another {
                    let other = pair.destination.ram("late");
                    let kept = (0..16).all(|page| other.page(page).iter().any(|b| *b != 0));
                    assert!(kept, "{number}: pages went to another block of that name");
                }
                inc.cancel().unwrap();
            }
            Refused(kind, word) => {
                let told = raw.hear_abort();
                drop(raw);
                let error = inc.wait(Some(LONG)).unwrap_err();
                assert_eq!(error.kind(), kind, "{number}: {error}");
                assert!(
                    error.message().contains(word),
                    "{number}: {word} in {error}"
                );
                assert_eq!(told.as_deref(), Some(error.message()), "{number}");
            }
        }
        assert_eq!(pair.to.calls("run"), 0, "{number}");
    }
    bounded();
}

// --- the source's peer: a destination ---------------------------------------------------------

struct Never;

impl Decider for Never {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}

/// What a destination answers, and to what.
const ANSWERS: [(RecordType, RecordType); 6] = [
    (RecordType::Hello, RecordType::HelloReply),
    (RecordType::EarlyEnd, RecordType::EarlyOk),
    (RecordType::LayoutEnd, RecordType::LayoutOk),
    (RecordType::Marker, RecordType::Ack),
    (RecordType::StateEnd, RecordType::Ready),
    (RecordType::Handover, RecordType::Running),
];

/// The right answer to a record.
fn answer(asked: RecordType, payload: &[u8]) -> Option<Vec<u8>> {
    let (_, kind) = ANSWERS.iter().find(|(question, _)| *question == asked)?;
    let mut right = sample(*kind);
    if *kind == RecordType::Ack {
        right[HEADER_LEN..].copy_from_slice(&payload[..8]);
    }
    Some(right)
}

/// Plays a destination: `say` makes of each right answer what is sent, until it says `None`;
/// then only listens, for at most so long.
fn play(
    mut raw: Raw,
    mut say: impl FnMut(&mut Raw, RecordType, Vec<u8>) -> Option<()>,
    patience: Duration,
) {
    let mut talks = true;
    while let Some((header, payload)) = raw.hear() {
        let kind = header.record_type().unwrap().unwrap();
        if let Some(right) = answer(kind, &payload).filter(|_| talks) {
            talks = say(&mut raw, kind, right).is_some();
            if !talks {
                raw.0.set_read_timeout(Some(patience)).unwrap();
            }
        }
    }
}

/// Starts a source, and has a destination played to it.
fn source_against(
    params: Params,
    goes_on: bool,
    patience: Duration,
    say: impl FnMut(&mut Raw, RecordType, Vec<u8>) -> Option<()> + Send,
) -> (Pair, Arc<Outgoing>, Result<()>) {
    let pair = Pair::new(&[ram("ram", 96)]);
    pair.source.ram("ram").fill(7, &mut Random(1));
    pair.source.track();
    let (raw, fd) = Raw::pair();
    let out = outgoing(&pair, params);
    if goes_on {
        out.start_with(Target::Connected(fd), Box::new(Never))
            .unwrap();
    } else {
        out.start(Target::Connected(fd)).unwrap();
    }
    let result = std::thread::scope(|scope| {
        scope.spawn(|| play(raw, say, patience));
        out.wait(Some(LONG))
    });
    (pair, out, result)
}

/// After whatever a destination did: the guest runs here, or the source says that it cannot know.
fn sound(pair: &Pair, out: &Outgoing, result: &Result<()>, what: &str) {
    pair.assert_sound(what);
    if let Err(e) = result {
        assert_ne!(e.kind(), Kind::Internal, "{what}: {e}");
        assert!(!e.message().contains(char::is_control), "{what}: {e:?}");
    }
    match out.state() {
        State::Failed => {
            pair.assert_runs_on(what);
            assert!(out.resolve(Resolution::Resume).is_err());
        }
        State::Unanswered => {
            assert_eq!(pair.from.calls("resume"), 0, "{what}");
            assert!(!pair.source.is_running(), "{what}");
            out.resolve(Resolution::Resume).unwrap();
            assert!(pair.source.is_running(), "{what}");
        }
        State::Completed => assert!(!pair.source.is_running(), "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn a_record_in_a_place_that_is_not_its_own_is_refused_by_name_at_the_source() {
    use RecordType as R;
    bounded();
    let mut cases = Vec::new();
    for (question, right) in ANSWERS {
        cases.extend(RecordType::ALL.iter().map(|kind| (question, right, kind)));
    }
    each(&cases, |&(question, right, kind)| {
        let allowed = *kind == right || *kind == R::Keepalive;
        // An acknowledgement may come before READY, but not one of what was not sent.
        if allowed || (right, *kind) == (R::Ready, R::Ack) {
            return;
        }
        let what = format!("{} for {}", kind.name(), right.name());
        let wrong = sample(*kind);
        let (pair, out, result) =
            source_against(quick(), right == R::Ack, LONG, |raw, asked, right| {
                let here = asked == question;
                raw.say_bytes(if here { &wrong } else { &right });
                (!here).then_some(())
            });
        let error = result.clone().unwrap_err();
        let after = right == R::Running;
        let expected = match (after, kind) {
            (true, _) => Kind::Unanswered,
            (_, R::Abort) => Kind::Refused,
            _ => Kind::Protocol,
        };
        assert_eq!(error.kind(), expected, "{what}: {error}");
        let word = match kind {
            R::Abort => "no [2J more",
            // Too long for anything that a destination says, or named.
            _ => kind.name(),
        };
        assert!(error.message().contains(word), "{what}: {error}");
        sound(&pair, &out, &result, &what);
    });
    bounded();
}

#[test]
fn answers_that_lie_are_refused_with_what_was_expected_at_the_source() {
    use RecordType as R;
    bounded();
    let reply = |version, features| {
        bytes(&Record::HelloReply(wire::HelloReply {
            version,
            features,
            software: String::new(),
        }))
    };
    let unknown = |flags, payload: u32| {
        let mut header = Header::control(R::Keepalive, 0, payload);
        (header.kind, header.flags) = (999, flags);
        header.encode().to_vec()
    };
    let ack = |number| bytes(&Record::Ack(wire::Ack { number }));
    let cases: Vec<(&str, R, Vec<u8>, Kind, &str)> = vec![
        (
            "garbage",
            R::HelloReply,
            vec![0x55; 64],
            Kind::Protocol,
            "magic",
        ),
        (
            "version 0",
            R::HelloReply,
            patched(R::HelloReply, 0, &[0, 0]),
            Kind::Protocol,
            "version",
        ),
        ("version 2", R::HelloReply, reply(2, 1), Kind::Version, "2"),
        (
            "without a feature",
            R::HelloReply,
            reply(1, 0),
            Kind::Version,
            "zero-runs",
        ),
        (
            "with one too many",
            R::HelloReply,
            reply(1, 1 | 1 << 50),
            Kind::Version,
            "50",
        ),
        (
            "a long name",
            R::HelloReply,
            patched(R::HelloReply, 10, &[64]),
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "one byte too many",
            R::HelloReply,
            {
                let mut x = with(R::HelloReply, |h| h.payload += 1);
                x.push(0);
                x
            },
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "2^30 announced",
            R::HelloReply,
            with(R::HelloReply, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "HELLO_REPLY",
        ),
        (
            "an EARLY_OK with contents",
            R::EarlyOk,
            with(R::EarlyOk, |h| h.payload = 1),
            Kind::Protocol,
            "EARLY_OK",
        ),
        (
            "an ABORT of 2^30",
            R::EarlyOk,
            with(R::Abort, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "ABORT",
        ),
        (
            "an ABORT with a long reason",
            R::LayoutOk,
            patched(R::Abort, 4, &[0xff, 0xff]),
            Kind::Protocol,
            "ABORT",
        ),
        (
            "a blob of 2^30",
            R::LayoutOk,
            with(R::State, |h| h.payload = 1 << 30),
            Kind::Protocol,
            "1073741856",
        ),
        (
            "a type that nobody knows",
            R::LayoutOk,
            unknown(0, 0),
            Kind::Protocol,
            "999",
        ),
        (
            "one to skip, too long",
            R::LayoutOk,
            unknown(1, 65_537),
            Kind::Protocol,
            "65536",
        ),
        (
            "marker 0",
            R::Ack,
            patched(R::Ack, 0, &[0; 8]),
            Kind::Protocol,
            "ACK",
        ),
        (
            "an unsent marker",
            R::Ack,
            ack(1000),
            Kind::Protocol,
            "marker 1000",
        ),
        (
            "the last of all markers",
            R::Ack,
            ack(u64::MAX),
            Kind::Protocol,
            "acknowledged marker",
        ),
        (
            "a marker twice",
            R::Ack,
            [ack(1), ack(1)].concat(),
            Kind::Protocol,
            "acknowledged marker 1",
        ),
        (
            "a flipped checksum",
            R::Ready,
            {
                let mut x = sample(R::Ready);
                x[30] ^= 4;
                x
            },
            Kind::Protocol,
            "checksum",
        ),
        (
            "READY cut short",
            R::Ready,
            with(R::Ready, |h| h.payload = 7),
            Kind::Protocol,
            "READY",
        ),
        (
            "an unsent marker before READY",
            R::Ready,
            ack(1 << 60),
            Kind::Protocol,
            "acknowledged marker",
        ),
        (
            "READY twice",
            R::Ready,
            sample(R::Ready).repeat(2),
            Kind::Protocol,
            "READY",
        ),
        (
            "RUNNING garbled",
            R::Running,
            vec![1; 40],
            Kind::Unanswered,
            "magic",
        ),
    ];
    for (what, place, wrong, kind, word) in cases {
        let (pair, out, result) =
            source_against(quick(), place == R::Ack, LONG, |raw, asked, right| {
                let here = ANSWERS.contains(&(asked, place));
                raw.say_bytes(if here { &wrong } else { &right });
                (!here).then_some(())
            });
        let error = result.clone().unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.message().contains(word), "{what}: {word} in: {error}");
        sound(&pair, &out, &result, what);
    }
    bounded();
}

#[test]
fn an_answer_cut_short_leaves_the_guest_where_it_belongs() {
    bounded();
    let mut cases = Vec::new();
    for (question, kind) in ANSWERS {
        // Nothing of it, some of the header, all of the header, some of the contents.
        let whole = sample(kind).len();
        let mut lengths = vec![0, 1, 17, 31, 32, 33, whole - 1];
        lengths.retain(|length| *length < whole);
        lengths.dedup();
        cases.extend(lengths.iter().map(|length| (question, kind, *length)));
    }
    each(&cases, |&(question, kind, length)| {
        let what = format!("{} cut to {length} bytes", kind.name());
        let (pair, out, result) = source_against(quick(), false, LONG, |raw, asked, right| {
            let here = asked == question;
            raw.say_bytes(if here { &right[..length] } else { &right });
            if here {
                let _ = raw.0.shutdown(Shutdown::Write);
            }
            (!here).then_some(())
        });
        let error = result.clone().unwrap_err();
        let expected: &[Kind] = match kind {
            RecordType::Running => &[Kind::Unanswered],
            _ => &[Kind::PeerGone, Kind::Io],
        };
        assert!(expected.contains(&error.kind()), "{what}: {error}");
        sound(&pair, &out, &result, &what);
    });
    bounded();
}

#[test]
fn a_flipped_bit_in_an_answers_header_is_always_refused_at_the_source() {
    bounded();
    let mut random = Random(2);
    let mut cases = Vec::new();
    for (number, (question, kind)) in ANSWERS.into_iter().enumerate() {
        // Every byte in two of the answers.
        for byte in (number % 3..HEADER_LEN).step_by(3) {
            cases.push((question, kind, byte, 1 << random.below(8)));
        }
    }
    each(&cases, |&(question, kind, byte, bit)| {
        let bit: u8 = bit;
        let what = format!("{}, byte {byte} ^ {bit}", kind.name());
        let (pair, out, result) = source_against(quick(), false, LONG, |raw, asked, mut right| {
            let here = asked == question;
            if here {
                right[byte] ^= bit;
            }
            raw.say_bytes(&right);
            (!here).then_some(())
        });
        let error = result.clone().unwrap_err();
        let expected = match kind {
            RecordType::Running => Kind::Unanswered,
            _ => Kind::Protocol,
        };
        assert_eq!(error.kind(), expected, "{what}: {error}");
        sound(&pair, &out, &result, &what);
    });
    bounded();
}

#[test]
fn a_destination_that_gives_up_is_heard_in_the_middle_of_a_pass() {
    use RecordType as R;
    bounded();
    let unsent = bytes(&Record::Ack(wire::Ack { number: 1000 }));
    for (what, says, kind) in [
        ("it gives up", sample(R::Abort), Kind::Refused),
        ("an unsent marker", unsent, Kind::Protocol),
        ("READY", sample(R::Ready), Kind::Protocol),
    ] {
        // At this rate a pass takes much longer than anybody waits here.
        let pair = Pair::new(&[ram("ram", 3000)]);
        pair.source.fill(1);
        let params = Params {
            max_bandwidth: Some(64 << 10),
            ..quick()
        };
        let (mut raw, fd) = Raw::pair();
        let out = outgoing(&pair, params);
        out.start_with(Target::Connected(fd), Box::new(Never))
            .unwrap();
        for question in [R::Hello, R::EarlyEnd, R::LayoutEnd] {
            while raw.hear().unwrap().0.record_type() != Ok(Some(question)) {}
            raw.say_bytes(&answer(question, &[]).unwrap());
        }
        // The first page is on its way.
        raw.0.read_exact(&mut [0; HEADER_LEN]).unwrap();
        raw.say_bytes(&says);
        // It goes on reading, so that nothing but its word can be what ends it.
        let mut from = raw.0.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut sink = vec![0; 1 << 16];
            while from.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let result = out.wait(Some(LONG));
        let error = result.clone().unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert_eq!(pair.from.events(EventKind::Pass), Vec::<String>::new());
        assert_eq!(pair.from.calls("pause"), 0, "{what}");
        sound(&pair, &out, &result, what);
        drop(out);
        reader.join().unwrap();
    }
    bounded();
}

#[test]
fn ready_without_an_acknowledgement_is_not_believed() {
    bounded();
    // The idle guest's first pass is acknowledged, which the source waits for, and nothing later.
    let mut markers = 0;
    let (pair, out, result) = source_against(quick(), false, LONG, |raw, asked, right| {
        markers += usize::from(asked == RecordType::Marker);
        if asked != RecordType::Marker || markers == 1 {
            raw.say_bytes(&right);
        }
        (asked != RecordType::StateEnd).then_some(())
    });
    let error = result.clone().unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(error.message().contains("has not acknowledged"), "{error}");
    sound(&pair, &out, &result, "unacknowledged");
    bounded();
}

// --- time -------------------------------------------------------------------------------------

/// Sends bytes one at a time, each well within the limit on idleness, until nobody listens.
fn trickle(socket: &UnixStream, bytes: &[u8]) {
    trickle_every(socket, bytes, LIMIT / 12);
}

fn trickle_every(socket: &UnixStream, bytes: &[u8], pause: Duration) {
    let mut socket = socket;
    for byte in bytes {
        if socket.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(pause);
    }
}

#[test]
fn a_source_that_trickles_is_ended_in_every_step() {
    use RecordType as R;
    bounded();
    // 32 bytes take nearly seven times the limit.
    let cases = [
        (Step::Hello, sample(R::Hello)),
        (Step::Early, sample(R::Early)),
        (Step::Early, sample(R::EarlyEnd)),
        (Step::Layout, sample(R::Block)),
        (Step::Layout, sample(R::LayoutEnd)),
        (Step::Passes, sample(R::Pages)),
        (Step::Passes, sample(R::Zeros)),
        (Step::Passes, sample(R::Discard)),
        (Step::Passes, sample(R::Marker)),
        (Step::Passes, sample(R::BlockAdded)),
        (Step::State, blob_bytes(R::State, "x", &[0; 3000])),
        (Step::State, sample(R::StateEnd)),
        (Step::Handover, sample(R::Handover)),
    ];
    // The limit on one record, where the step has none of its own; and the step's, where
    // much more time is allowed for a record.
    let step_alone = || Params {
        io_timeout: LONG,
        ..strict()
    };
    std::thread::scope(|scope| {
        for (step, record) in &cases {
            // All of it slowly, and the contents slowly.
            for (from, own) in [
                (0, false),
                (HEADER_LEN, false),
                (0, true),
                (HEADER_LEN, true),
            ] {
                scope.spawn(move || {
                    let what = format!("{step:?}, from byte {from}, its own limit: {own}");
                    if record.len() < from + 8 {
                        return;
                    }
                    // These wait for as long as the source goes on.
                    if own && matches!(step, Step::Passes | Step::State) {
                        return;
                    }
                    let params = if own { step_alone() } else { strict() };
                    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
                    let (mut raw, fd) = Raw::pair();
                    let inc = incoming(&pair, params);
                    inc.start(Source::Connected(fd)).unwrap();
                    reach(&mut raw, *step);
                    let begun = Instant::now();
                    raw.say_bytes(&record[..from]);
                    let socket = raw.0.try_clone().unwrap();
                    let slowly = record[from..].iter().copied().cycle().take(200);
                    let slowly: Vec<u8> = slowly.collect();
                    // Few bytes would be over before their time is.
                    let complete = record.len() - from < 14;
                    let bytes = if complete { &slowly[..7] } else { &slowly[..] };
                    let told = std::thread::scope(|scope| {
                        scope.spawn(|| trickle(&socket, bytes));
                        let told = raw.hear_abort();
                        let _ = raw.0.shutdown(Shutdown::Both);
                        told
                    });
                    let took = begun.elapsed();
                    let error = inc.wait(Some(LONG)).unwrap_err();
                    assert_eq!(error.kind(), Kind::Timeout, "{what}: {error}");
                    assert_eq!(told.as_deref(), Some(error.message()), "{what}");
                    assert!(took >= LIMIT / 2, "{what}: {took:?}");
                    assert!(took < LIMIT + SLACK, "{what}: {took:?}");
                    assert_eq!(pair.to.calls("run"), 0, "{what}");
                });
            }
        }
    });
    bounded();
}

#[test]
fn a_destination_that_trickles_is_left_in_every_step() {
    use RecordType as R;
    bounded();
    std::thread::scope(|scope| {
        for (question, kind) in ANSWERS {
            // Nobody waits for an acknowledgement while copying: that of the final marker, then.
            scope.spawn(move || {
                let what = format!("{} trickles", kind.name());
                let begun = std::sync::Mutex::new(Instant::now());
                let (pair, out, result) =
                    source_against(strict(), false, LONG, |raw, asked, right| {
                        if asked != question {
                            raw.say_bytes(&right);
                            return Some(());
                        }
                        *begun.lock().unwrap() = Instant::now();
                        // RUNNING has until a second after the hand-over's limit.
                        let pause = match kind {
                            R::Running => LIMIT / 3,
                            _ => LIMIT / 12,
                        };
                        trickle_every(&raw.0, &right.repeat(4), pause);
                        None
                    });
                let took = begun.lock().unwrap().elapsed();
                let error = result.clone().unwrap_err();
                let expected = match kind {
                    R::Running => Kind::Unanswered,
                    _ => Kind::Timeout,
                };
                assert_eq!(error.kind(), expected, "{what}: {error}");
                // The step that waits for EARLY_OK may take both limits.
                assert!(took < LIMIT * 2 + SLACK, "{what}: {took:?}");
                sound(&pair, &out, &result, &what);
            });
        }
        // One that reads a byte now and then. While the guest runs, the whole migration's limit
        // counts; a connection that takes bytes is not dead.
        scope.spawn(|| {
            let pair = Pair::new(&[ram("ram", 6000)]);
            pair.source.fill(3);
            let (raw, fd) = Raw::pair();
            let params = Params {
                total_timeout: Some(LIMIT * 2),
                ..strict()
            };
            let out = outgoing(&pair, params);
            let begun = Instant::now();
            out.start(Target::Connected(fd)).unwrap();
            let mut from = raw.0.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut raw = raw;
                for question in [R::Hello, R::EarlyEnd, R::LayoutEnd] {
                    while raw.hear().unwrap().0.record_type() != Ok(Some(question)) {}
                    raw.say_bytes(&answer(question, &[]).unwrap());
                }
                while from.read(&mut [0; 3000]).is_ok_and(|n| n > 0) {
                    std::thread::sleep(LIMIT / 40);
                }
            });
            let result = out.wait(Some(LONG));
            let took = begun.elapsed();
            drop(reader);
            let kind = result.as_ref().unwrap_err().kind();
            assert!(
                matches!(kind, Kind::Timeout | Kind::NotConverged),
                "{result:?}"
            );
            assert!(took < LIMIT * 2 + SLACK, "{took:?}");
            sound(&pair, &out, &result, "reads slowly");
        });
    });
    bounded();
}

/// Says KEEPALIVE as fast as the socket takes it, for much longer than the limit.
fn flood(socket: &UnixStream) {
    let many = sample(RecordType::Keepalive).repeat(4096);
    let begun = Instant::now();
    let mut socket = socket;
    while begun.elapsed() < LIMIT + SLACK && socket.write_all(&many).is_ok() {}
}

#[test]
fn a_flood_of_keepalives_extends_no_step_that_has_a_limit() {
    use RecordType as R;
    bounded();
    for step in [Step::Hello, Step::Early, Step::Layout, Step::Handover] {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let (mut raw, fd) = Raw::pair();
        let inc = incoming(&pair, strict());
        inc.start(Source::Connected(fd)).unwrap();
        reach(&mut raw, step);
        let begun = Instant::now();
        let socket = raw.0.try_clone().unwrap();
        let told = std::thread::scope(|scope| {
            scope.spawn(|| flood(&socket));
            let told = raw.hear_abort();
            let _ = raw.0.shutdown(Shutdown::Both);
            told
        });
        let took = begun.elapsed();
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout, "{step:?}: {error}");
        assert!(told.is_some(), "{step:?}");
        assert!(took < LIMIT + SLACK, "{step:?}: {took:?}");
    }
    for (question, kind) in ANSWERS {
        let what = format!("keepalives for {}", kind.name());
        if kind == R::Ack {
            continue;
        }
        let begun = Instant::now();
        let (pair, out, result) = source_against(strict(), false, LONG, |raw, asked, right| {
            if asked != question {
                raw.say_bytes(&right);
                return Some(());
            }
            flood(&raw.0);
            None
        });
        let expected = match kind {
            R::Running => Kind::Unanswered,
            _ => Kind::Timeout,
        };
        assert_eq!(
            result.as_ref().unwrap_err().kind(),
            expected,
            "{what}: {result:?}"
        );
        assert!(
            begun.elapsed() < LIMIT * 2 + SLACK,
            "{what}: {:?}",
            begun.elapsed()
        );
        sound(&pair, &out, &result, &what);
    }
    bounded();
}

// --- a second caller --------------------------------------------------------------------------

#[test]
fn a_listener_takes_one_connection_and_a_second_gets_nowhere() {
    bounded();
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [
        Endpoint::parse("tcp:127.0.0.1:0").unwrap(),
        Endpoint::Unix(dir.path().join("s")),
    ] {
        let pair = Pair::new(&[ram("ram", PAGES as usize)]);
        let inc = incoming(&pair, quick());
        let at = inc.listen(&endpoint).unwrap();
        let call = || -> std::io::Result<Box<dyn Stream>> {
            Ok(match &at {
                Endpoint::Tcp(at) => Box::new(TcpStream::connect(at)?),
                Endpoint::Unix(path) => Box::new(UnixStream::connect(path)?),
            })
        };
        let mut first = call().unwrap();
        first.write_all(&sample(RecordType::Hello)).unwrap();
        let mut head = [0; HEADER_LEN];
        first.read_exact(&mut head).unwrap();
        let kind = Header::decode(&head).unwrap().record_type();
        assert_eq!(kind, Ok(Some(RecordType::HelloReply)));
        // With the same token, with another: nobody is there to look at it.
        for token in [TOKEN, [6; 16]] {
            let Ok(mut second) = call() else {
                continue;
            };
            let hello = Record::Hello(wire::Hello { token, ..hello() });
            let _ = second.write_all(&bytes(&hello));
            let mut answer = Vec::new();
            let _ = second.read_to_end(&mut answer);
            assert_eq!(answer, b"", "{at}: a second session");
        }
        // The first one's session goes on as if nothing had been.
        let mut raw = vec![0; Header::decode(&head).unwrap().payload as usize];
        first.read_exact(&mut raw).unwrap();
        first.write_all(&sample(RecordType::EarlyEnd)).unwrap();
        first.read_exact(&mut head).unwrap();
        let kind = Header::decode(&head).unwrap().record_type();
        assert_eq!(kind, Ok(Some(RecordType::EarlyOk)), "{at}");
        drop(first);
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert!(matches!(error.kind(), Kind::PeerGone | Kind::Io), "{error}");
    }
    bounded();
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

// --- a session, changed -----------------------------------------------------------------------

fn seed() -> u64 {
    let seed = std::env::var("BRANT_SEED").ok();
    let seed = seed.map_or(0xb4a2, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    seed
}

/// A real source's records to a real destination, as they went by; and the destination's.
fn recorded() -> [Vec<Vec<u8>>; 2] {
    let pair = Pair::new(&[ram("ram", fuzz::RAM_PAGES)]);
    let ram = pair.source.ram("ram");
    ram.fill(7, &mut Random(1));
    ram.word(9 * 4096).store(0, Ordering::Relaxed);
    *pair.from.early.lock().unwrap() = vec![blob("cfg", 1, &[1; 33])];
    let log: Arc<std::sync::Mutex<[Vec<Vec<u8>>; 2]>> = Arc::default();
    let taken = Arc::clone(&log);
    let (proxy, a, b) = Proxy::new(Box::new(move |header, payload| {
        let kind = header.record_type().unwrap().unwrap();
        let way = usize::from(kind.direction() == wire::Direction::ToSource);
        let record = [&header.encode()[..], payload].concat();
        taken.lock().unwrap()[way].push(record);
        Verdict::Forward
    }));
    let (out, inc) = (outgoing(&pair, quick()), incoming(&pair, quick()));
    inc.start(Source::Connected(b)).unwrap();
    out.start(Target::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    drop(proxy);
    let log = log.lock().unwrap();
    log.clone()
}

#[test]
fn a_recorded_session_changed_two_thousand_times_is_refused_or_harmless_at_the_destination() {
    bounded();
    let mut random = Random(seed());
    let [recorded, _] = recorded();
    assert_eq!(fuzz::destination(&recorded.concat()).result, Ok(()));
    let made = fuzz::session();
    let (mut kinds, mut longest) = (std::collections::BTreeMap::new(), Duration::ZERO);
    for n in 0..2000 {
        let session = if n % 2 == 0 { &recorded } else { &made };
        let stream = fuzz::mutate(session, || random.next());
        let outcome = fuzz::destination(&stream);
        longest = longest.max(outcome.took);
        let kind = outcome.result.map_or_else(|e| e.kind().name(), |()| "ran");
        *kinds.entry(kind).or_insert(0) += 1;
    }
    println!("{kinds:?}, the longest {longest:?}");
    assert!(kinds.len() >= 4, "{kinds:?}");
    assert!(kinds["protocol error"] > 500, "{kinds:?}");
    bounded();
}

#[test]
fn a_destination_whose_answers_change_is_left_or_harmless() {
    bounded();
    let mut random = Random(seed());
    let params = || Params {
        connect_timeout: MS * 200,
        io_timeout: MS * 200,
        switchover_timeout: MS * 200,
        handover_timeout: MS * 200,
        ..quick()
    };
    let states = std::sync::Mutex::new(std::collections::BTreeMap::new());
    // Which answer is changed: those to HELLO, EARLY_END, LAYOUT_END, two markers and so on.
    let rounds: Vec<_> = (0..600)
        .map(|n| (n, random.below(7), Random(random.next())))
        .collect();
    each(&rounds, |(n, which, random)| {
        let (mut count, mut random) = (0, random.clone());
        let (pair, out, result) = source_against(params(), false, MS * 8, |raw, _, right| {
            count += 1;
            if count <= *which {
                raw.say_bytes(&right);
                return Some(());
            }
            raw.say_bytes(&fuzz::mutate(&[right], || random.next()));
            // It may have been harmless: goes on for as long as the source does.
            raw.0.set_read_timeout(Some(MS * 8)).unwrap();
            Some(())
        });
        sound(&pair, &out, &result, &format!("round {n}: {result:?}"));
        let kind = result.map_or_else(|e| e.kind().name(), |()| "completed");
        *states.lock().unwrap().entry(kind).or_insert(0) += 1;
    });
    let states = states.into_inner().unwrap();
    println!("{states:?}");
    assert!(states["protocol error"] > 100, "{states:?}");
    bounded();
}

// --- the fuzz targets -------------------------------------------------------------------------

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(root.join("fuzz/seeds").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    if target == "decoder" {
        let fixtures = std::fs::read_dir(root.join("tests/fixtures/wire")).unwrap();
        files.extend(fixtures.map(|entry| entry.unwrap().path()));
    }
    files.sort();
    assert!(files.len() >= 3);
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

#[test]
fn the_fuzz_targets_hold_on_their_seeds_and_some_thousand_mutations() {
    bounded();
    let mut random = Random(seed());
    let decoder = seeds("decoder");
    for data in &decoder {
        fuzz::decoder(data);
    }
    for _ in 0..20_000 {
        let data = &decoder[random.below(decoder.len())];
        fuzz::decoder(&fuzz::mutate(std::slice::from_ref(data), || random.next()));
    }
    let incoming = seeds("incoming");
    let mut ran = 0;
    for data in &incoming {
        ran += usize::from(fuzz::incoming(data).is_some_and(|o| o.result.is_ok()));
    }
    assert!(ran > 0, "no seed gets to the end");
    for _ in 0..1500 {
        let data = &incoming[random.below(incoming.len())];
        let mut changed = data.clone();
        for _ in 0..1 + random.below(4) {
            // As a fuzzer does, who knows nothing of records.
            let at = random.below(changed.len());
            match random.below(4) {
                0 => changed.truncate(at.max(1)),
                1 => changed[at] = random.next() as u8,
                2 => changed[at] ^= 1 << random.below(8),
                _ => drop(changed.splice(at..at, vec![random.next() as u8; random.below(9)])),
            }
        }
        changed[0] |= u8::from(random.below(4) > 0);
        fuzz::incoming(&changed);
    }
    bounded();
}

#[test]
fn the_seeds_of_the_fuzz_targets_are_of_this_wire() {
    // BRANT_WRITE_SEEDS writes them anew.
    let anew = std::env::var_os("BRANT_WRITE_SEEDS").is_some();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let write = |target: &str, name: &str, data: &[u8]| {
        let path = root.join(target).join(name);
        if anew {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, data).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(there == data, "{} is another", path.display());
    };
    for kind in RecordType::ALL {
        if !kind.is_page_run() {
            write("decoder", &kind.name().to_lowercase(), &sample(*kind));
        }
    }
    let session = fuzz::session();
    let whole = |records: &[Vec<u8>]| [&[1][..], &records.concat()].concat();
    write("incoming", "session", &whole(&session));
    write("incoming", "handshake", &whole(&session[..5]));
    write("incoming", "copying", &whole(&session[..12]));
    // Without the pages, which are most of it and say nothing to a fuzzer.
    let mut small = session.clone();
    small.retain(|r| !r.starts_with(b"BRNT\x06\x00"));
    for record in &mut small {
        if record.starts_with(b"BRNT\x08\x00") && record[HEADER_LEN] == 2 {
            record[HEADER_LEN + 16] = 2;
            record[HEADER_LEN + 24] = 0;
        }
    }
    write("incoming", "small", &whole(&small));
}
