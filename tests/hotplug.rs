//! Memory that is plugged, unplugged and moved during a migration, with a whole VMM at work: eight
//! threads that write and then mark, and eight that mark any memory that exists, existed or will
//! exist, by guest address and by block. `tests/migration` has the promises on each change alone.
//!
//! A removed block is unmapped as soon as the call has returned, so a later access is a crash. The
//! order between the two sides is the one that the header asks for: a block comes at the
//! destination first, and goes at the source first.

use crate::support::guest::{differences, lost, Guest};
use crate::support::memory::{ram, shared, Ram};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::time::LONG;
use brant::channel::Endpoint;
use brant::error::Kind;
use brant::memory::map::{SlotDescription, NO_SLOT};
use brant::memory::BlockId;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing, Params,
};
use brant::units::{Bytes, PAGE_SIZE};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

const MS: Duration = Duration::from_millis(1);
/// The pause between two bursts of a thread. Sixteen threads on few processors should not keep the
/// migration from its work.
const PAUSE: Duration = Duration::from_micros(50);
const WRITERS: u64 = 8;
const MARKERS: u64 = 8;
/// Changes of the memory in one migration.
const CHANGES: usize = 30;
/// Guest addresses are assigned in pieces of 8 MiB, more than the length of a block.
const APART: u64 = 8 << 20;
const PLACES: usize = 24;

/// A slot: pages of a block from `first` on, at a guest address.
#[derive(Clone, Copy)]
struct Slot {
    first: u64,
    pages: u64,
    address: u64,
}

/// The part of the source's VMM that is not in `support`.
struct Machine {
    guest: Arc<Guest>,
    /// The slots of each block. A thread that writes by guest address holds the lock from the write
    /// to the mark, as a VMM must: a slot is removed when no thread is between the two.
    slots: RwLock<HashMap<BlockId, Vec<Slot>>>,
    newest: AtomicU32,
    written: AtomicU64,
    stop: AtomicBool,
}

impl Machine {
    fn write(&self, number: u64, seed: u64) {
        let mut random = Random(seed);
        let by_address = number.is_multiple_of(2);
        while !self.stop.load(Ordering::SeqCst)
            && self.guest.while_running(|targets| {
                for _ in 0..8 {
                    let (id, ram) = &targets[random.below(targets.len())];
                    let page = random.below(ram.spec.pages) as u64;
                    let offset = page * PAGE_SIZE + random.next() % 512 * 8;
                    let value = random.next();
                    let store = || ram.word(offset as usize).store(value, Ordering::Relaxed);
                    let slots = self.slots.read().unwrap();
                    let of = slots.get(id).filter(|_| by_address);
                    let holds = |s: &&Slot| (s.first..s.first + s.pages).contains(&page);
                    let slot = of.and_then(|of| of.iter().find(holds)).copied();
                    if let Some(slot) = slot {
                        store();
                        let address = slot.address + offset - slot.first * PAGE_SIZE;
                        self.guest.tracker.mark_guest(GuestAddress(address), 8);
                    } else {
                        // From here on slots may move.
                        drop(slots);
                        store();
                        self.guest.tracker.mark_block(*id, Bytes(offset), 8);
                    }
                }
                self.written.fetch_add(8, Ordering::SeqCst);
            })
        {
            std::thread::sleep(PAUSE);
        }
    }

    /// Marks without a write: for blocks that exist, that are just going, that are gone or will
    /// come, and past their ends.
    fn mark(&self, number: u64, seed: u64) {
        let mut random = Random(seed);
        let tracker = &self.guest.tracker;
        while !self.stop.load(Ordering::SeqCst) {
            for _ in 0..16 {
                let length = match random.below(50) {
                    0 => u64::MAX,
                    1 => 1200 * PAGE_SIZE,
                    _ => 1 + random.next() % (3 * PAGE_SIZE),
                };
                if number.is_multiple_of(2) {
                    let address = random.next() % ((PLACES as u64 + 1) * APART);
                    tracker.mark_guest(GuestAddress(address), length.min(APART));
                } else {
                    let newest = self.newest.load(Ordering::SeqCst) + 2;
                    let block = match random.below(3) {
                        0 => random.next() as u32 % newest,
                        _ => newest.saturating_sub(1 + random.next() as u32 % 4),
                    };
                    let offset = random.next() % (1400 * PAGE_SIZE);
                    tracker.mark_block(BlockId(block), Bytes(offset), length.min(APART));
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Changes the memory of both sides.
struct Changer<'a> {
    machine: &'a Machine,
    destination: &'a Guest,
    random: Random,
    /// Unused guest addresses.
    free: Vec<u64>,
    /// Blocks that are gone at the source but not yet at the destination.
    late: Vec<&'static str>,
    done: [usize; 4],
}

const NAMES: [&str; 4] = ["dimm0", "dimm1", "dimm2", "dimm3"];

impl Changer<'_> {
    fn new_slot(&mut self, guest: &Guest, block: &str, first: u64, pages: u64) -> Slot {
        let address = self.free.swap_remove(self.random.below(self.free.len()));
        let slot = SlotDescription {
            slot: NO_SLOT,
            flags: 0,
            block: guest.memory.find_block(block).unwrap(),
            offset: Bytes(first * PAGE_SIZE),
            length: Bytes(pages * PAGE_SIZE),
            guest_address: GuestAddress(address),
        };
        guest.memory.add_slot(&slot).unwrap();
        Slot {
            first,
            pages,
            address,
        }
    }

    /// Maps a block into the guest, by one slot or two.
    fn appear(&mut self, name: &'static str) {
        let guest = Arc::clone(&self.machine.guest);
        let pages = guest.ram(name).spec.pages as u64;
        let id = guest.memory.map().block_named(name).unwrap().id();
        let cut = match pages {
            1 => 1,
            _ => 1 + self.random.next() % (pages - 1),
        };
        let mut slots = vec![self.new_slot(&guest, name, 0, cut)];
        if cut < pages && self.random.below(2) == 0 {
            slots.push(self.new_slot(&guest, name, cut, pages - cut));
        }
        self.machine.slots.write().unwrap().insert(id, slots);
    }

    fn add(&mut self, name: &'static str) {
        self.remove_late(name);
        let pages = [1, 64, 65, 513, 1030][self.random.below(5)];
        let spec = match self.random.below(2) {
            0 => ram(name, pages),
            _ => shared(name, pages),
        };
        let garbage = Ram::new(&spec);
        (0..pages)
            .step_by(7)
            .for_each(|page| garbage.fill(page, &mut self.random));
        self.destination.add(garbage);
        let fresh = Ram::new(&spec);
        (0..pages)
            .step_by(3)
            .for_each(|page| fresh.fill(page, &mut self.random));
        self.machine.guest.add(fresh);
        self.machine.newest.fetch_add(1, Ordering::SeqCst);
        if self.random.below(4) > 0 {
            self.appear(name);
        }
        self.done[0] += 1;
    }

    fn remove(&mut self, name: &'static str) {
        let guest = &self.machine.guest;
        let id = guest.memory.map().block_named(name).unwrap().id();
        // Unmapped in here, right after brant's call has returned.
        guest.remove(name);
        let slots = self.machine.slots.write().unwrap().remove(&id);
        self.free
            .extend(slots.iter().flatten().map(|slot| slot.address));
        match self.random.below(3) {
            0 => self.late.push(name),
            _ => self.destination.remove(name),
        }
        self.done[1] += 1;
    }

    fn remove_late(&mut self, name: &str) {
        if let Some(at) = self.late.iter().position(|late| *late == name) {
            self.destination.remove(self.late.swap_remove(at));
        }
    }

    /// Moves a slot to another guest address, or maps a block that has no slot.
    fn move_slot(&mut self) {
        let rams = self.machine.guest.rams();
        let (id, name) = {
            let (id, ram) = &rams[self.random.below(rams.len())];
            (*id, ram.spec.name)
        };
        drop(rams);
        let machine = self.machine;
        let guest = Arc::clone(&machine.guest);
        let mut slots = machine.slots.write().unwrap();
        let Some(slot) = slots.get_mut(&id).map(|of| {
            let at = self.random.below(of.len());
            &mut of[at]
        }) else {
            drop(slots);
            return self.appear(name);
        };
        guest
            .memory
            .remove_slot(NO_SLOT, GuestAddress(slot.address))
            .unwrap();
        let old = slot.address;
        *slot = self.new_slot(&guest, name, slot.first, slot.pages);
        self.free.push(old);
        self.done[2] += 1;
    }

    /// One change, at a random moment.
    fn change(&mut self) {
        let begun = Instant::now();
        let until = self.machine.written.load(Ordering::SeqCst) + self.random.next() % 2000;
        while self.machine.written.load(Ordering::SeqCst) < until {
            assert!(begun.elapsed() < LONG, "the writers stand still");
            std::thread::yield_now();
        }
        let here = |name: &str| {
            let map = self.machine.guest.memory.map();
            map.block_named(name).is_some()
        };
        let (some, none): (Vec<_>, Vec<_>) = NAMES.iter().copied().partition(|name| here(name));
        let any = self.random.below(NAMES.len());
        let one = |of: &[&'static str]| of.get(any % of.len().max(1)).copied();
        match (self.random.below(6), one(&some), one(&none)) {
            (0 | 1, _, Some(name)) => self.add(name),
            (2, Some(name), _) => self.remove(name),
            // A block that came just before.
            (3, _, Some(name)) => {
                self.add(name);
                self.remove(name);
                self.done[3] += 1;
            }
            (4, ..) => {
                if let Some(name) = self.late.last().copied() {
                    self.remove_late(name);
                }
            }
            _ => self.move_slot(),
        }
    }
}

/// Goes on copying until it is told to switch over.
struct Until(Arc<AtomicBool>);

impl Decider for Until {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let now = facts.moment == Moment::Synced && self.0.load(Ordering::SeqCst);
        match now {
            true => Next::SwitchOver { expected: MS }.into(),
            false => Next::GoOn.into(),
        }
    }
}

fn sides(pair: &Pair) -> (Arc<Outgoing>, Incoming) {
    let params = Params {
        switchover_bandwidth: Some(1 << 30),
        ..Params::default()
    };
    let from = Arc::clone(&pair.from) as _;
    let out = pair.source.outgoing(&Blockers::new(), from, &params);
    let memory = Arc::clone(&pair.destination.memory);
    let inc = Incoming::new(memory, Arc::clone(&pair.to) as _, params).unwrap();
    (out, inc)
}

fn seed() -> u64 {
    let seed = std::env::var("BRANT_SEED").ok();
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = seed.map_or_else(now, |s| s.parse().unwrap());
    println!("seed {seed} (BRANT_SEED)");
    seed
}

/// One migration, over TCP or a pair of sockets, cancelled on the way or completed.
fn round(random: &mut Random, tcp: bool, cancelled: bool) -> [usize; 4] {
    let pair = Pair::new(&[ram("ram", 600), shared("shm", 1025)]);
    pair.source.fill(random.next());
    pair.destination.fill(random.next());
    pair.source.track();
    let machine = Machine {
        guest: Arc::clone(&pair.source),
        slots: RwLock::default(),
        newest: AtomicU32::new(1),
        written: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let told: Arc<AtomicBool> = Arc::default();
    let (out, inc) = sides(&pair);
    let mut changer = Changer {
        machine: &machine,
        destination: &pair.destination,
        random: random.clone(),
        free: (0..PLACES as u64).map(|place| place * APART).collect(),
        late: Vec::new(),
        done: [0; 4],
    };
    changer.appear("ram");
    changer.appear("shm");
    let done = std::thread::scope(|scope| {
        for number in 0..WRITERS {
            let (machine, seed) = (&machine, random.next());
            scope.spawn(move || machine.write(number, seed));
        }
        for number in 0..MARKERS {
            let (machine, seed) = (&machine, random.next());
            scope.spawn(move || machine.mark(number, seed));
        }
        // The threads end, whatever fails below.
        struct Stop<'a>(&'a Machine);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::SeqCst);
                self.0.guest.resume();
            }
        }
        let stop = Stop(&machine);
        if tcp {
            let any = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
            let at = inc.listen(&any).unwrap();
            out.start_with(ConnectTo::Endpoint(at), Box::new(Until(Arc::clone(&told))))
                .unwrap();
        } else {
            let (a, b) = UnixStream::pair().unwrap();
            inc.start(AcceptFrom::Connected(b.into())).unwrap();
            out.start_with(
                ConnectTo::Connected(a.into()),
                Box::new(Until(Arc::clone(&told))),
            )
            .unwrap();
        }
        // Before that the two sides compare their layouts.
        pair.from.wait_state("copying");
        for _ in 0..CHANGES {
            changer.change();
        }
        if cancelled {
            out.cancel().unwrap();
            // The changes go on when the migration has ended.
            for _ in 0..4 {
                changer.change();
            }
        }
        for name in std::mem::take(&mut changer.late) {
            changer.destination.remove(name);
        }
        told.store(true, Ordering::SeqCst);
        let (here, there) = (out.wait(Some(LONG)), inc.wait(Some(LONG)));
        pair.assert_sound("memory that comes and goes");
        if cancelled {
            assert_eq!(here.unwrap_err().kind(), Kind::Cancelled);
            there.unwrap_err();
            pair.assert_runs_on("cancelled");
            pair.source.pause();
            assert_eq!(
                lost(&pair.source, &pair.destination),
                Vec::<String>::new(),
                "neither pending nor there"
            );
        } else {
            here.unwrap();
            there.unwrap();
            assert_eq!(out.state(), State::Completed);
            assert_eq!(pair.world.who(), (false, true));
        }
        let done = changer.done;
        let names = |guest: &Guest| {
            let mut names: Vec<_> = guest.rams().iter().map(|(_, r)| r.spec.name).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&pair.source), names(&pair.destination));
        if !cancelled {
            // The source's guest stands still, so nothing was written since.
            let differ = differences(&pair.source, &pair.destination);
            assert_eq!(differ, Vec::<String>::new());
            pair.destination.pause();
        }
        machine.stop.store(true, Ordering::SeqCst);
        drop(stop);
        done
    });
    *random = Random(random.next());
    done
}

#[test]
fn blocks_and_slots_come_go_and_move_under_all_marks_and_every_page_arrives() {
    let mut random = Random(seed());
    let mut done = [0; 4];
    for number in 0..6 {
        let this = round(&mut random, number % 2 == 0, number % 3 == 2);
        for (sum, n) in done.iter_mut().zip(this) {
            *sum += n;
        }
    }
    println!(
        "{} blocks added ({} gone at once) and {} removed, {} slots moved",
        done[0], done[3], done[1], done[2]
    );
    assert!(done.iter().all(|n| *n > 5), "{done:?}");
}

#[test]
fn a_block_added_while_the_guest_stands_still_arrives_or_the_guest_stays_here() {
    for (at, arrives) in [
        ("pause", true),
        ("save", true),
        ("last sync", true),
        ("releasing", false),
        ("release", false),
    ] {
        let pair = Pair::new(&[ram("ram", 600)]);
        pair.source.fill(1);
        pair.source.track();
        let (source, destination) = (
            Arc::downgrade(&pair.source),
            Arc::downgrade(&pair.destination),
        );
        pair.from.at(at, move || {
            let late = |seed| {
                let late = Ram::new(&ram("late", 65));
                late.fill_all(&mut Random(seed));
                late
            };
            destination.upgrade().unwrap().add(late(2));
            source.upgrade().unwrap().add(late(3));
            Ok(())
        });
        let (out, inc) = sides(&pair);
        let (a, b) = UnixStream::pair().unwrap();
        inc.start(AcceptFrom::Connected(b.into())).unwrap();
        let told = Arc::new(AtomicBool::new(true));
        out.start_with(ConnectTo::Connected(a.into()), Box::new(Until(told)))
            .unwrap();
        let (here, there) = (out.wait(Some(LONG)), inc.wait(Some(LONG)));
        pair.assert_sound(at);
        if arrives {
            here.unwrap();
            there.unwrap();
            let differ = differences(&pair.source, &pair.destination);
            assert_eq!(differ, Vec::<String>::new(), "{at}");
            continue;
        }
        let error = here.unwrap_err();
        assert_eq!(error.kind(), Kind::State, "{at}: {error}");
        assert!(error.message().contains("65 pages"), "{at}: {error}");
        there.unwrap_err();
        pair.assert_runs_on(at);
        pair.source.pause();
        assert_eq!(
            lost(&pair.source, &pair.destination),
            Vec::<String>::new(),
            "{at}"
        );
    }
}
