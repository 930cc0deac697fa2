//! Somebody in the middle of a link, who changes the stream of pages of a migration of any kind:
//! compression, deltas, checksums and several channels, each on or off. Each change ends the
//! migration with a reason and leaves the guest at the source, or does no harm. It never gives a
//! guest with other memory.
//!
//! Where contents of PAGES and PAGES_LIST have no checksum, a flipped bit in them cannot be found.
//! Such bits are left alone here.

use super::bounds::bounded;
use super::params::{each, quick, seed};
use crate::support::fuzz::{crc32, mend};
use crate::support::guest::lost;
use crate::support::memory::{ram, shared, PAGE};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, socketpair};
use crate::support::time::{LONG, MS};
use crate::support::ways::{hot_pages, Way};
use brant::error::Kind;
use brant::migrate::{AcceptFrom, Compression, ConnectTo, Decider, Params};
use brant::units::Pages;
use brant::wire::{
    self, decode_delta, encode_delta, list_len, Delta, Header, RecordType, CHECKSUM_LEN, HEADER_LEN,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// One page of zeros as often as it takes, in blocks of at most 128 KiB: a zstd frame by hand.
/// `window` is its window descriptor.
fn frame_of_zeros(window: u8, mut length: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    while length > 0 {
        let block = length.min(128 << 10);
        length -= block;
        // One byte, repeated; and whether it is the last block.
        let header = block << 3 | 1 << 1 | u32::from(length == 0);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// Window descriptors: of 1 MiB, of 2 GiB, and of more than any decoder takes.
const WINDOW: u8 = 10 << 3;
const GIANT: u8 = 21 << 3;
const TOO_LARGE: u8 = 0xff;

/// What is done to one record, or to one and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    Flip,
    Drop,
    Twice,
    /// The record comes after the next one.
    Swapped,
    /// The connection ends inside it.
    Cut,
    /// Its last bytes are left out, and its header says so.
    Shorter,
    /// It says that it is for other pages.
    OtherPages,
    /// A DELTA comes a second time, when others have come.
    Replay,
    /// A DELTA names another version of its pages.
    OtherBase,
    /// The frame becomes a page more, or very many.
    Longer,
    Bomb,
    /// The frame wants a window of 2 GiB, or more than there can be.
    GiantWindow,
    TooLargeWindow,
    /// The frame becomes pages, but others.
    OtherFrame,
}

use Attack::*;

const ALL: [Attack; 14] = [
    Flip,
    Drop,
    Twice,
    Swapped,
    Cut,
    Shorter,
    OtherPages,
    Replay,
    OtherBase,
    Longer,
    Bomb,
    GiantWindow,
    TooLargeWindow,
    OtherFrame,
];

impl Attack {
    /// Whether it can be done to a record of this type.
    fn suits(self, kind: RecordType) -> bool {
        let packed = matches!(kind, RecordType::Compressed | RecordType::CompressedList);
        match self {
            Flip | Drop | Twice | Swapped | Cut => kind.is_page_run() || kind == RecordType::Marker,
            Shorter => kind.is_page_run() && kind.payload_limits().1 > 0,
            OtherPages => kind.is_page_run(),
            Replay | OtherBase => kind == RecordType::Delta,
            _ => packed,
        }
    }

    /// Whether memory can be equal afterwards all the same.
    fn may_do_no_harm(self) -> bool {
        matches!(self, Swapped)
    }
}

fn params(way: Way) -> Params {
    way.set(Params {
        // What a dropped marker costs.
        io_timeout: MS * 3000,
        switchover_timeout: MS * 3000,
        ..quick()
    })
}

/// Whether a migration in this way sends records that the attack needs.
fn has(way: Way, attack: Attack) -> bool {
    match attack {
        Replay | OtherBase => way.delta,
        Longer | Bomb | GiantWindow | TooLargeWindow | OtherFrame => {
            way.compression == Compression::Always
        }
        _ => true,
    }
}

/// Pages that compress, apart and side by side, pages that do not, and zero pages.
fn guest(seed: u64) -> Pair {
    let pair = Pair::new(&[ram("ram", 1100), shared("shm", 600)]);
    let mut random = Random(seed);
    for (_, ram) in pair.source.rams() {
        for page in 0..ram.spec.pages {
            let value = random.next() & 0xff;
            match page % 100 {
                0..30 => (0..PAGE / 8).for_each(|word| {
                    let at = page * PAGE + word * 8;
                    ram.word(at)
                        .store(value + word as u64 % 3, Ordering::Relaxed);
                }),
                30..50 => ram.fill(page, &mut random),
                at if at % 3 == 0 => ram.word(page * PAGE).store(value, Ordering::Relaxed),
                _ => {}
            }
        }
    }
    pair.destination.fill(seed + 1);
    pair.source.track();
    pair
}

fn script(pair: &Pair, seed: u64) -> Box<dyn Decider> {
    hot_pages(pair, seed, 5, 50, [("ram", 22), ("shm", 11)])
}

/// The beginning of the frame's checksum in the payload of a compressed record.
fn packed_at(header: &Header) -> usize {
    match header.record_type() {
        Ok(Some(RecordType::CompressedList)) => list_len(header.count),
        _ => 0,
    }
}

/// The pages that a compressed record says it has.
fn pages_of(header: &Header, payload: &[u8]) -> u64 {
    match packed_at(header) {
        0 => u64::from(header.count),
        list => wire::listed_pages(&payload[..list]),
    }
}

/// The record with another frame, and the checksum of so many zeros.
fn with_frame(header: &Header, payload: &[u8], frame: &[u8], zeros: usize) -> Vec<u8> {
    let at = packed_at(header);
    let sum = crc32(&vec![0; zeros]).to_le_bytes();
    let other = Header {
        payload: (at + CHECKSUM_LEN + frame.len()) as u32,
        ..*header
    };
    [&other.encode()[..], &payload[..at], &sum, frame].concat()
}

/// The somebody: what was seen so far on one channel, and what is kept for later.
struct Middle {
    attack: Attack,
    /// How many records that suit are let through before.
    skip: usize,
    random: Random,
    held: Option<Vec<u8>>,
    done: Arc<Mutex<Option<String>>>,
}

impl Middle {
    fn rule(&mut self, header: &Header, payload: &[u8]) -> Verdict {
        let Ok(Some(kind)) = header.record_type() else {
            return Verdict::Forward;
        };
        let whole = || [&header.encode()[..], payload].concat();
        let is_run = kind.is_page_run() || kind == RecordType::Marker;
        if self.done.lock().unwrap().is_some() {
            return match self.held.take() {
                // Behind the next record of the same direction.
                Some(held) if is_run => Verdict::Replace([whole(), held].concat()),
                Some(held) => {
                    self.held = Some(held);
                    Verdict::Forward
                }
                None => Verdict::Forward,
            };
        }
        if !self.attack.suits(kind) {
            return Verdict::Forward;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Verdict::Forward;
        }
        let Some(verdict) = self.act(kind, header, payload, whole()) else {
            return Verdict::Forward;
        };
        let said = format!("{} with {} of payload", kind.name(), header.payload);
        *self.done.lock().unwrap() = Some(said);
        verdict
    }

    fn act(
        &mut self,
        kind: RecordType,
        header: &Header,
        payload: &[u8],
        mut whole: Vec<u8>,
    ) -> Option<Verdict> {
        let changed = match self.attack {
            Flip => {
                let unchecked = match kind {
                    RecordType::Pages if !header.is_checked() => 0,
                    RecordType::PagesList if !header.is_checked() => list_len(header.count),
                    _ => payload.len(),
                };
                let bit = self.random.below((HEADER_LEN + unchecked) * 8);
                whole[bit / 8] ^= 1 << (bit % 8);
                whole
            }
            Drop => return Some(Verdict::Drop),
            Twice => [&whole[..], &whole].concat(),
            Swapped => {
                self.held = Some(whole);
                return Some(Verdict::Drop);
            }
            Replay => {
                self.held = Some(whole);
                return Some(Verdict::Forward);
            }
            Cut => return Some(Verdict::CutMid),
            Shorter => {
                if payload.is_empty() {
                    return None;
                }
                let by = 1 + self.random.below(payload.len().min(5000));
                whole.truncate(whole.len() - by);
                let shorter = Header {
                    payload: header.payload - by as u32,
                    ..*header
                };
                whole[..HEADER_LEN].copy_from_slice(&shorter.encode());
                whole
            }
            OtherPages => {
                // Past the end of its block, however long that is.
                let other = Header {
                    first_page: header.first_page + 4096,
                    ..*header
                };
                whole[..HEADER_LEN].copy_from_slice(&other.encode());
                mend(&mut whole);
                whole
            }
            OtherBase => {
                let pages = decode_delta(header, payload, Pages(u64::MAX)).unwrap();
                let hit = self.random.below(header.count as usize);
                let others: Vec<Delta<'_>> = pages
                    .enumerate()
                    .map(|(n, delta)| Delta {
                        base: delta.base ^ u32::from(n == hit),
                        ..delta
                    })
                    .collect();
                let mut bytes = Vec::new();
                encode_delta(header.block, others.into_iter(), &mut bytes).unwrap();
                bytes
            }
            Longer | Bomb | GiantWindow | TooLargeWindow | OtherFrame => {
                let pages = pages_of(header, payload) as usize * PAGE;
                let (window, length) = match self.attack {
                    Longer => (WINDOW, pages + PAGE),
                    Bomb => (WINDOW, 256 << 20),
                    GiantWindow => (GIANT, pages),
                    TooLargeWindow => (TOO_LARGE, pages),
                    _ => (WINDOW, pages),
                };
                let frame = frame_of_zeros(window, length as u32);
                if frame.len() >= pages {
                    return None;
                }
                let zeros = match self.attack {
                    // Right in all but the window.
                    TooLargeWindow => pages,
                    // The checksum is that of other contents.
                    _ => pages + 1,
                };
                with_frame(header, payload, &frame, zeros)
            }
        };
        Some(Verdict::Replace(changed))
    }
}

/// How often an attack was made, and how it ended.
type Sum = Mutex<BTreeMap<Attack, BTreeMap<&'static str, usize>>>;

fn attacked(way: Way, attack: Attack, seed: u64, sum: &Sum) {
    let mut random = Random(seed);
    let pair = guest(seed);
    let hit = random.below(way.channels as usize);
    let done: Arc<Mutex<Option<String>>> = Arc::default();
    let mut middle = Middle {
        attack,
        skip: random.below(if way.channels == 1 { 12 } else { 3 }),
        random: random.clone(),
        held: None,
        done: Arc::clone(&done),
    };
    let (proxy, from, to) = Proxy::new(Box::new(move |header, payload| {
        middle.rule(header, payload)
    }));
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (1..way.channels).map(|_| socketpair()).unzip();
    ours.insert(hit, from);
    theirs.insert(hit, to);
    let params = params(way);
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::ConnectedAll(theirs)).unwrap();
    out.start_with(ConnectTo::ConnectedAll(ours), script(&pair, seed))
        .unwrap();
    let (left, arrived) = (out.wait(Some(LONG)), inc.wait(Some(LONG)));
    drop(proxy);
    let done = done.lock().unwrap().clone();
    let what = format!("{attack:?} of {done:?} in {way:?}, seed {seed}: {left:?}, {arrived:?}");
    // Also: memory that the guest was run with, or devices loaded from, was equal.
    pair.assert_sound(&what);
    let end = match (&left, &arrived) {
        (Ok(()), Ok(())) => {
            assert_eq!(pair.world.who(), (false, true), "{what}");
            assert!(done.is_none() || attack.may_do_no_harm(), "{what}");
            "arrived"
        }
        (Err(_), Err(error)) => {
            assert!(done.is_some(), "{what}");
            let expected: &[Kind] = match attack {
                // The source may have noticed first, and said so on another channel.
                Cut => &[Kind::PeerGone, Kind::Io, Kind::Refused],
                // Without a marker both sides wait on a channel that has nothing else to carry.
                Drop | Swapped => &[Kind::Protocol, Kind::Timeout, Kind::Refused],
                _ => &[Kind::Protocol],
            };
            assert!(expected.contains(&error.kind()), "{what}");
            assert!(!error.message().contains(char::is_control), "{what}");
            pair.assert_runs_on(&what);
            pair.source.pause();
            let lost = lost(&pair.source, &pair.destination);
            assert!(lost.is_empty(), "{what}: not pending: {lost:?}");
            error.kind().name()
        }
        _ => panic!("{what}: the sides disagree"),
    };
    let end = if done.is_none() { "not met" } else { end };
    *sum.lock()
        .unwrap()
        .entry(attack)
        .or_default()
        .entry(end)
        .or_default() += 1;
}

#[test]
fn whatever_somebody_in_the_middle_does_memory_is_never_wrong_and_the_guest_is_never_lost() {
    bounded();
    let seed = seed();
    let sum = Sum::default();
    let mut cases = Vec::new();
    for (n, way) in Way::all().into_iter().enumerate() {
        for (m, attack) in ALL
            .into_iter()
            .enumerate()
            .filter(|(m, attack)| has(way, *attack) && (n + m) % 2 == 0)
        {
            cases.push((way, attack, seed.wrapping_add((n * 100 + m) as u64)));
        }
    }
    let wrong = Mutex::new(Vec::new());
    each(&cases, |&(way, attack, seed)| {
        let one = || attacked(way, attack, seed, &sum);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(one)).is_err() {
            wrong.lock().unwrap().push((way, attack, seed));
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{} cases: {sum:#?}", cases.len());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for attack in ALL {
        let met = sum[&attack].iter().filter(|(end, _)| **end != "not met");
        let met: usize = met.map(|(_, count)| count).sum();
        assert!(met > 0, "{attack:?} was never made");
    }
    bounded();
}
