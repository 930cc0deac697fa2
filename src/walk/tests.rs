//! The seam between walk and outlet, shown with an outlet that is no connection: a recorder, which
//! keeps the pages in memory and can fail at any call.

use super::*;
use crate::dirty::testing::Guest;
use crate::dirty::tracker::{Clearing, StartWith, Tracker};
use crate::error::{Error, Kind};
use crate::runtime::Recall;
use crate::units::PAGE_SIZE;
use std::collections::HashMap;

const PAGES: u64 = 1000;

/// Keeps the pages that it is given. They arrive at a barrier, as with a peer.
#[derive(Default)]
struct Recorder {
    /// The first byte of each page, by its block's number and its own number.
    kept: HashMap<(u32, u64), u8>,
    waiting: Vec<Taken>,
    calls: usize,
    /// The call that fails, counted from 0.
    fails_at: Option<usize>,
    finished: bool,
}

impl Recorder {
    fn call(&mut self) -> Result<()> {
        let call = self.calls;
        self.calls += 1;
        match self.fails_at {
            Some(at) if at == call => Err(Error::new(Kind::Io, "the recorder is full")),
            _ => Ok(()),
        }
    }
}

impl Outlet for Recorder {
    fn put(&mut self, mut taken: Taken, _: &Recall) -> Result<Put> {
        self.call()?;
        let mut put = Put::default();
        for run in taken.runs() {
            for page in run.pages.range().start.0..run.pages.range().end.0 {
                let slice = run.block.slice(Pages(page), Pages(1))?;
                let mut contents = [0u8; PAGE_SIZE as usize];
                slice.copy_to(&mut contents[..]);
                self.kept.insert((run.block.id().0, page), contents[0]);
                put.data_pages += 1;
            }
        }
        put.bytes = put.data_pages * PAGE_SIZE;
        taken.unpin();
        self.waiting.push(taken);
        Ok(put)
    }

    fn progress(&mut self) -> Result<()> {
        self.call()
    }

    fn barrier(&mut self) -> Result<()> {
        self.call()?;
        self.waiting.drain(..).for_each(Taken::delivered);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.call()?;
        self.finished = true;
        Ok(())
    }
}

/// A whole pass: every pending page, and the wait for their arrival.
fn pass(walk: &mut Walk, consumer: &Consumer, outlet: &mut impl Outlet) -> Result<Put> {
    let mut all = Put::default();
    loop {
        outlet.progress()?;
        match walk.step(consumer, Pages(64), outlet)? {
            Some(put) => all += put,
            None => break,
        }
    }
    outlet.barrier()?;
    outlet.finish()?;
    Ok(all)
}

struct World {
    guest: Guest,
    consumer: Consumer,
    walk: Walk,
}

fn world() -> World {
    let guest = Guest::new(PAGES as usize);
    guest.block("ram", PAGES);
    let tracker = Tracker::new(Arc::clone(&guest.memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    let walk = Walk::over(&guest.memory).unwrap();
    World {
        guest,
        consumer,
        walk,
    }
}

impl World {
    fn write(&self, page: u64, value: u8) {
        let map = self.guest.memory.map();
        // SAFETY: inside the block, whose memory the guest keeps.
        unsafe {
            map.blocks()[0]
                .page_address(Pages(page))
                .write_volatile(value)
        };
    }
}

#[test]
fn a_walk_gives_every_pending_page_to_its_outlet_once() {
    let mut world = world();
    for page in 0..PAGES {
        world.write(page, page as u8);
    }
    let mut recorder = Recorder::default();
    let put = pass(&mut world.walk, &world.consumer, &mut recorder).unwrap();
    assert_eq!(put.data_pages, PAGES);
    assert_eq!(recorder.kept.len() as u64, PAGES);
    assert!(recorder.finished);
    for ((_, page), value) in &recorder.kept {
        assert_eq!(*value, *page as u8);
    }
    assert_eq!(world.consumer.pending(), Pages(0));
    assert_eq!(world.consumer.stats().put_back, Pages(0));
}

#[test]
fn an_outlet_that_fails_at_any_call_loses_no_page() {
    let mut whole = Recorder::default();
    let mut first = world();
    pass(&mut first.walk, &first.consumer, &mut whole).unwrap();
    assert!(whole.calls > 30);
    for fails_at in 0..whole.calls {
        let mut world = world();
        let mut recorder = Recorder {
            fails_at: Some(fails_at),
            ..Recorder::default()
        };
        let error = pass(&mut world.walk, &world.consumer, &mut recorder).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        // Kept pages may have arrived: pages are no longer pending only if the recorder delivered
        // them.
        let delivered = recorder.waiting.is_empty() && fails_at + 1 == whole.calls;
        drop(recorder);
        let expected = if delivered { 0 } else { PAGES };
        assert_eq!(world.consumer.pending(), Pages(expected), "call {fails_at}");
        // The next outlet gets the other pages.
        let mut next = Recorder::default();
        world.walk.restart();
        pass(&mut world.walk, &world.consumer, &mut next).unwrap();
        assert_eq!(next.kept.len() as u64, expected, "call {fails_at}");
    }
}

#[test]
fn a_removed_block_does_not_wait_for_pages_that_an_outlet_has_unpinned() {
    let mut world = world();
    let mut recorder = Recorder::default();
    world
        .walk
        .step(&world.consumer, Pages(64), &mut recorder)
        .unwrap();
    // This would wait without end if the recorder still had pins.
    world
        .guest
        .memory
        .remove_block(world.guest.memory.find_block("ram").unwrap())
        .unwrap();
    drop(recorder);
    assert_eq!(world.consumer.pending(), Pages(0));
}
