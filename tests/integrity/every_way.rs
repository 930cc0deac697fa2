//! Every way in which contents can travel, together: compression, deltas, checksums and several
//! channels, for memory of every kind. A guest scribbles through all passes, and its memory is equal
//! at the end.

use crate::support::deciders::Scripted;
use crate::support::guest::Guest;
use crate::support::kinds::{Area, HugePool, Made, HUGE};
use crate::support::memory::{ram, Ram, Spec, PAGE};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::{incoming, outgoing, socketpair};
use crate::support::time::{LONG, MS};
use crate::support::ways::Way;
use brant::memory::contents::Contents;
use brant::memory::{host, BlockId};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{AcceptFrom, Compression, ConnectTo, Decider, Params, Stats};
use brant::units::{Bytes, Pages};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// Pages of each block: more than a stretch, so that its pages come on several channels.
const PAGES: usize = 560;
const HUGE_PAGES: usize = 2 * HUGE / PAGE;
const PASSES: u32 = 6;

/// Every kind of memory, each with the name of its block.
const KINDS: [(Made, &str); 5] = [
    (Made::Anonymous, "anonymous"),
    (Made::Memfd, "memfd"),
    (Made::MemfdPrivate, "private"),
    (Made::Disk, "file"),
    (Made::Huge, "huge"),
];

fn seed() -> u64 {
    let seed = std::env::var("BRANT_SEED").ok();
    let seed = seed.map_or(0x3a7c, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    seed
}

/// A guest with a block of each kind. Huge pages only when there is a pool of them.
fn guest(pool: Option<&HugePool>) -> Arc<Guest> {
    let guest = Guest::new(&[]);
    for (made, name) in KINDS
        .into_iter()
        .filter(|(made, _)| pool.is_some() || !made.is_huge())
    {
        let pages = if made.is_huge() { HUGE_PAGES } else { PAGES };
        let spec = Spec {
            page_size: made.page_size() as u64,
            ..ram(name, pages)
        };
        let area = Area::new(made, pages * PAGE).expect("memory of this kind");
        let file = area.file.as_ref().filter(|_| made.is_told());
        let fd = file.map(|file| file.try_clone().unwrap().into());
        guest.add(Ram::over(&spec, area.at, fd, area));
    }
    guest
}

/// What a guest does to its memory, one thing at a time.
struct Scribbler(Random);

impl Scribbler {
    /// Pages that the guest writes again and again.
    fn hot(&mut self, pages: usize) -> usize {
        self.0.below(pages / 5) * 5
    }

    fn words(&mut self, ram: &Ram, page: usize, mut word: impl FnMut(&mut Random, usize) -> u64) {
        for at in 0..PAGE / 8 {
            let value = word(&mut self.0, at);
            ram.word(page * PAGE + at * 8)
                .store(value, Ordering::Relaxed);
        }
    }

    /// One change of a block of `guest`, and then its mark.
    fn scribble(&mut self, guest: &Guest, id: BlockId, ram: &Ram) {
        let pages = ram.spec.pages;
        let page = self.0.below(pages);
        let (page, count) = match self.0.below(20) {
            // A word or a few in a hot page.
            0..=13 => {
                let page = self.hot(pages);
                for _ in 0..1 + self.0.below(4) {
                    let at = page * PAGE + self.0.below(PAGE / 8) * 8;
                    ram.word(at).store(self.0.next() & 0xff, Ordering::Relaxed);
                }
                (page, 1)
            }
            // A page of noise, one that compresses, and one that becomes zero.
            14 => {
                self.words(ram, page, |random, _| random.next());
                (page, 1)
            }
            15 | 16 => {
                let value = self.0.next() & 0xff;
                self.words(ram, page, |_, at| value + at as u64 % 5);
                (page, 1)
            }
            17 => {
                self.words(ram, page, |_, _| 0);
                (page, 1)
            }
            // A run that is rewritten, and one that is discarded.
            18 => {
                let count = (1 + self.0.below(30)).min(pages - page);
                let value = self.0.next();
                for page in page..page + count {
                    self.words(ram, page, |_, at| value ^ (at as u64 & 0xf));
                }
                (page, count)
            }
            _ => {
                let host_page = ram.spec.page_size as usize / PAGE;
                let page = page / host_page * host_page;
                let count = (1 + self.0.below(20)).min(pages - page);
                let count = count.next_multiple_of(host_page);
                let block = Arc::clone(guest.memory.map().block(id).unwrap());
                let range = Pages(page as u64)..Pages((page + count) as u64);
                // What cannot be discarded is left as it was.
                let _ = host::discard(&mut Contents::new(), &block, range);
                (page, count)
            }
        };
        let (offset, length) = ((page * PAGE) as u64, (count * PAGE) as u64);
        guest.tracker.mark_block(id, Bytes(offset), length);
    }

    /// `changes` changes anywhere, while the guest runs. Returns false when it is stopped for good.
    fn work(&mut self, guest: &Guest, changes: usize) -> bool {
        guest.while_running(|blocks| {
            for _ in 0..changes {
                let (id, ram) = &blocks[self.0.below(blocks.len())];
                self.scribble(guest, *id, ram);
            }
        })
    }
}

/// Switches over after [`PASSES`] passes, between which the guest scribbles.
fn passes(guest: &Arc<Guest>, seed: u64) -> Box<dyn Decider> {
    let guest = Arc::downgrade(guest);
    let mut scribbler = Scribbler(Random(seed));
    Box::new(Scripted(move |facts: &Facts| {
        if facts.moment != Moment::Synced {
            return Next::GoOn;
        }
        let guest = guest.upgrade().unwrap();
        if guest.is_running() {
            scribbler.work(&guest, 300);
        }
        match facts.pass >= PASSES {
            true => Next::SwitchOver { expected: MS },
            false => Next::GoOn,
        }
    }))
}

/// Migrates a guest in one way while it scribbles. Memory is compared when the state is loaded, and
/// before the guest runs on.
fn migrated(way: Way, pool: Option<&HugePool>, seed: u64) -> [Stats; 2] {
    let what = format!("{way:?}, seed {seed}");
    let pair = Pair::of(guest(pool), guest(pool));
    let mut scribbler = Scribbler(Random(seed));
    scribbler.work(&pair.source, 1500);
    // The destination's memory is not empty before.
    pair.destination.resume();
    scribbler.work(&pair.destination, 300);
    pair.destination.pause();
    let params = way.set(Params::default());
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..way.channels).map(|_| socketpair()).unzip();
    // And a thread of the guest's that stands still at no pass.
    let (writing, source) = (Arc::new(()), Arc::downgrade(&pair.source));
    let writes = Arc::downgrade(&writing);
    let writer = std::thread::spawn(move || {
        let mut scribbler = Scribbler(Random(seed ^ 0xffff));
        while let (Some(source), Some(_)) = (source.upgrade(), writes.upgrade()) {
            if source.is_running() {
                scribbler.work(&source, 8);
            }
            drop(source);
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    inc.start(AcceptFrom::ConnectedAll(theirs)).unwrap();
    out.start_with(
        ConnectTo::ConnectedAll(ours),
        passes(&pair.source, seed + 1),
    )
    .unwrap();
    let ends = [out.wait(Some(LONG)), inc.wait(Some(LONG))];
    drop(writing);
    // It may wait for the guest, which the end of the migration has stopped.
    pair.source.resume();
    writer.join().unwrap();
    for end in ends {
        end.unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    pair.assert_sound(&what);
    assert_eq!(pair.world.who(), (false, true), "{what}");
    [out.stats(), inc.stats()]
}

#[test]
fn memory_is_equal_whichever_way_contents_travel_and_whatever_the_guest_writes() {
    // Two more than the memory of both sides: a huge page that was just discarded may not be free
    // yet when the guest writes there again.
    let pool = HugePool::new(2 * HUGE_PAGES * PAGE / HUGE + 2);
    let seed = seed();
    for (n, way) in Way::all().into_iter().enumerate() {
        let [left, arrived] = migrated(way, pool.as_ref(), seed.wrapping_add(1000 * n as u64));
        let what = format!("{way:?}, seed {seed}");
        let counts = |s: &Stats| (s.data_pages, s.zero_pages, s.compressed_pages);
        assert_eq!(counts(&left), counts(&arrived), "{what}");
        assert_eq!(left.compressed_bytes, arrived.compressed_bytes, "{what}");
        // Each way was really gone.
        assert_eq!(left.delta_pages > 0, way.delta, "{what}: {left:?}");
        assert_eq!(left.delta_missed_pages > 0, way.delta, "{what}: {left:?}");
        match way.compression {
            Compression::Off => assert_eq!(left.compressed_pages, 0, "{what}"),
            Compression::Always => assert!(left.compressed_pages > 500, "{what}: {left:?}"),
            Compression::Adaptive => {}
        }
    }
}
