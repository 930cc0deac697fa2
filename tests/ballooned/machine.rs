//! A guest that inflates and deflates its balloon and hints at free pages, with a VMM that knows
//! which pages it uses.

use crate::support::guest::Guest;
use crate::support::memory::{ram, shared, Spec};
use crate::support::random::Random;
use brant::error::Result;
use brant::memory::contents::Contents;
use brant::memory::{host, Block, Memory, SlotDescription, NO_SLOT};
use brant::migrate::{Blockers, Incoming, Outgoing, Params};
use brant::units::{Bytes, Pages, PAGE_SIZE};
use brant::vmm::{Event, Vmm};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use vm_memory::GuestAddress;

pub const PAGE: usize = PAGE_SIZE as usize;

/// The distance between the guest addresses of two blocks.
const APART: u64 = 1 << 32;

/// A guest with its blocks at guest addresses.
fn guest(specs: &[Spec]) -> Arc<Guest> {
    let guest = Guest::new(specs);
    for (n, spec) in specs.iter().enumerate() {
        guest
            .memory
            .add_slot(&SlotDescription {
                slot: NO_SLOT,
                flags: 0,
                block: guest.memory.find_block(spec.name).unwrap(),
                offset: Bytes(0),
                length: Bytes((spec.pages * PAGE) as u64),
                guest_address: GuestAddress(n as u64 * APART),
            })
            .unwrap();
    }
    guest
}

pub fn block(memory: &Memory, n: usize) -> Arc<Block> {
    Arc::clone(&memory.map().blocks()[n])
}

pub fn address(n: usize, page: usize) -> GuestAddress {
    GuestAddress(n as u64 * APART + (page * PAGE) as u64)
}

/// The pages that take memory on the host.
pub fn touched(memory: &Memory, n: usize) -> BTreeSet<usize> {
    let block = block(memory, n);
    let mut contents = Contents::new();
    let mut pages = BTreeSet::new();
    contents
        .touched(&block, Pages(0)..block.pages(), |r| {
            pages.extend(r.start.index()..r.end.index());
        })
        .unwrap();
    pages
}

type Place = (usize, usize);

type Hook = Box<dyn FnMut(&Event) + Send>;

/// The guest's own knowledge of its memory.
#[derive(Default)]
pub struct Knows {
    /// Pages in the balloon.
    pub balloon: BTreeSet<Place>,
    /// Free pages, whose contents do not matter until they are written.
    pub free: BTreeSet<Place>,
    /// Pages on their way to the VMM as hints, with the round that asked for them.
    pub hints: Vec<(u64, Place, usize)>,
}

/// A guest that works, and the VMM's balloon device.
pub struct Machine {
    pub guest: Arc<Guest>,
    pub knows: Mutex<Knows>,
    pub round: AtomicU64,
    pub running: RwLock<bool>,
    pub stop: AtomicBool,
    /// Called at each event.
    pub event: Mutex<Option<Hook>>,
}

impl Vmm for Machine {
    fn pause(&self) -> Result<()> {
        *self.running.write().unwrap() = false;
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        *self.running.write().unwrap() = true;
        Ok(())
    }
    fn loaded(&self) -> Result<()> {
        // As the balloon device's state says after its load.
        self.guest.memory.set_must_tell_host(true);
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.resume()
    }
    fn event(&self, event: &Event) {
        if let Some(each) = &mut *self.event.lock().unwrap() {
            each(event);
        }
    }
}

impl Machine {
    pub fn new(specs: &[Spec]) -> Arc<Machine> {
        Arc::new(Machine {
            guest: guest(specs),
            knows: Mutex::default(),
            round: AtomicU64::new(0),
            running: RwLock::new(true),
            stop: AtomicBool::new(false),
            event: Mutex::default(),
        })
    }

    pub fn inflate(&self, knows: &mut Knows, n: usize, first: usize, count: usize) {
        let block = block(&self.guest.memory, n);
        let range = Pages(first as u64)..Pages((first + count) as u64);
        // Discarded first or last, as VMMs do.
        if first.is_multiple_of(2) {
            host::discard(&mut Contents::new(), &block, range.clone()).unwrap();
        }
        let length = (count * PAGE) as u64;
        self.guest.memory.mark_ballooned(address(n, first), length);
        if first % 2 == 1 {
            host::discard(&mut Contents::new(), &block, range).unwrap();
        }
        for page in first..first + count {
            knows.balloon.insert((n, page));
            knows.free.remove(&(n, page));
        }
    }

    pub fn write(&self, knows: &mut Knows, random: &mut Random, n: usize, page: usize) {
        let (id, ram) = self.guest.rams()[n].clone();
        knows.free.remove(&(n, page));
        let offset = page * PAGE + random.below(512) * 8;
        ram.word(offset).store(random.next(), Ordering::Relaxed);
        self.guest.tracker.mark_block(id, Bytes(offset as u64), 8);
    }

    pub fn work(&self, seed: u64, hints: bool) {
        let mut random = Random(seed);
        let blocks = self.guest.rams().len();
        while !self.stop.load(Ordering::SeqCst) {
            let running = self.running.read().unwrap();
            if !*running {
                drop(running);
                std::thread::yield_now();
                continue;
            }
            let n = random.below(blocks);
            let pages = self.guest.rams()[n].1.spec.pages;
            let first = random.below(pages);
            let count = (1 + random.below(40)).min(pages - first);
            let mut knows = self.knows.lock().unwrap();
            let all = |set: &BTreeSet<Place>| {
                let set = set.range((n, first)..(n, first + count)).count();
                (set == count, set == 0)
            };
            match random.below(if hints { 20 } else { 6 }) {
                0..=2 => {
                    if !knows.balloon.contains(&(n, first)) {
                        self.write(&mut knows, &mut random, n, first);
                    }
                }
                3 => {
                    if all(&knows.balloon).1 {
                        self.inflate(&mut knows, n, first, count);
                    }
                }
                4 => {
                    // The guest deflates by the pages and, once the VMM has allowed it, uses them
                    // at once or later.
                    for page in first..first + count {
                        if knows.balloon.remove(&(n, page)) {
                            self.guest
                                .memory
                                .clear_ballooned(address(n, page), PAGE_SIZE);
                            if random.below(2) == 0 {
                                self.write(&mut knows, &mut random, n, page);
                            }
                        }
                    }
                }
                5 => std::thread::yield_now(),
                6 => {
                    // Some hints of the last round are still on their way.
                    if let Ok(round) = self.guest.tracker.begin_hints() {
                        self.round.store(round, Ordering::SeqCst);
                        knows.hints.truncate(3);
                    }
                }
                7..=13 => {
                    let round = self.round.load(Ordering::SeqCst);
                    if round != 0 && all(&knows.balloon).1 {
                        knows.hints.push((round, (n, first), count));
                        // From now on their contents do not matter.
                        knows.free.extend((first..first + count).map(|p| (n, p)));
                    }
                }
                _ => {
                    let waiting = knows.hints.len();
                    if waiting > 0 {
                        let (round, (n, page), count) =
                            knows.hints.swap_remove(random.below(waiting));
                        let length = (count * PAGE) as u64;
                        // The round may be over by now, and then nothing happens.
                        let _ = self
                            .guest
                            .tracker
                            .hint_free(round, address(n, page), length);
                    }
                }
            }
        }
    }

    pub fn outgoing(self: &Arc<Self>, params: &Params) -> Arc<Outgoing> {
        self.guest.outgoing(&Blockers::new(), self.clone(), params)
    }

    pub fn incoming(self: &Arc<Self>, params: &Params) -> Incoming {
        let memory = Arc::clone(&self.guest.memory);
        Incoming::new(memory, self.clone(), params.clone()).unwrap()
    }
}

pub fn specs() -> [Spec; 2] {
    [ram("ram", 3000), shared("shm", 1500)]
}

/// A guest that stands still, with pages 100 to 1099 in the balloon, which have old contents.
pub fn still(told_first: bool) -> Arc<Machine> {
    let machine = Machine::new(&[ram("ram", 2000)]);
    machine.guest.memory.set_must_tell_host(told_first);
    machine.guest.fill(3);
    machine
        .guest
        .memory
        .mark_ballooned(address(0, 100), 1000 * PAGE_SIZE);
    machine
}
