//! What may differ is left out: pages that were sent without being read, and what `load` writes.

use super::{assert_equal, pair, verifying};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, socketpair, start};
use crate::support::time::{LONG, MS};
use brant::memory::SlotDescription;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{AcceptFrom, ConnectTo, Decider, Decision, Outgoing};
use brant::units::{Bytes, PAGE_SIZE};
use brant::vm_memory::GuestAddress;
use std::sync::atomic::Ordering;
use std::sync::Arc;

fn address(page: u64) -> GuestAddress {
    GuestAddress(page * PAGE_SIZE)
}

/// A pair whose first block is the guest's memory from address 0 on, and is full of data.
fn addressed() -> Pair {
    let pair = pair();
    pair.source.fill(3);
    pair.destination.fill(4);
    for guest in [&pair.source, &pair.destination] {
        let (id, ram) = guest.rams()[0].clone();
        let length = Bytes(ram.spec.pages as u64 * PAGE_SIZE);
        let slot = SlotDescription::new(id, address(0), length);
        guest.memory.add_slot(&slot).unwrap();
        guest.memory.set_must_tell_host(true);
    }
    pair
}

/// Writes to a page past every log.
fn scribble(guest: &crate::support::guest::Guest, page: usize) {
    let ram = guest.ram("ram");
    ram.word(page * PAGE_SIZE as usize + 256)
        .fetch_add(1, Ordering::SeqCst);
}

fn moved(pair: &Pair) -> Arc<Outgoing> {
    let (out, inc) = start(pair, &verifying());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    out
}

#[test]
fn ballooned_pages_are_left_out_and_their_neighbours_are_not() {
    let pair = addressed();
    pair.source
        .memory
        .mark_ballooned(address(100), 500 * PAGE_SIZE);
    let out = moved(&pair);
    assert_equal(&pair, &out, 500, "ballooned before the start");
}

#[test]
fn pages_that_are_ballooned_or_poisoned_after_they_were_sent_are_left_out() {
    let pair = addressed();
    let source = Arc::clone(&pair.source);
    pair.from.at("pause", move || {
        let memory = &source.memory;
        let (id, _) = source.rams()[0].clone();
        memory.mark_ballooned(address(100), 20 * PAGE_SIZE);
        memory.mark_poisoned(id, Bytes(300 * PAGE_SIZE), Bytes(PAGE_SIZE))?;
        // The host took the memory of the ones, and the contents of the other are lost.
        for page in (100..120).chain([300]) {
            scribble(&source, page);
        }
        Ok(())
    });
    let out = moved(&pair);
    assert_equal(&pair, &out, 21, "after they were sent");
}

#[test]
fn poisoned_pages_are_left_out() {
    let pair = addressed();
    let (id, _) = pair.source.rams()[0].clone();
    let memory = &pair.source.memory;
    memory
        .mark_poisoned(id, Bytes(7 * PAGE_SIZE), Bytes(3 * PAGE_SIZE))
        .unwrap();
    let out = moved(&pair);
    assert_eq!(out.stats().poisoned_pages, 3);
    assert_equal(&pair, &out, 3, "poisoned");
}

#[test]
fn hinted_pages_are_left_out_unless_they_were_written_since() {
    /// Hints before the first page is sent.
    struct Hints(Arc<crate::support::guest::Guest>, bool);
    impl Decider for Hints {
        fn decide(&mut self, facts: &Facts) -> Decision {
            let tracker = &self.0.tracker;
            if !std::mem::replace(&mut self.1, true) {
                let round = tracker.begin_hints().unwrap();
                let hinted = tracker.hint_free(round, address(200), 300 * PAGE_SIZE);
                assert_eq!(hinted.unwrap().0, 300);
                // The guest uses ten of them.
                for page in 250..260 {
                    self.0.poke("ram", page * PAGE_SIZE as usize, 5);
                }
            }
            match facts.moment {
                Moment::Synced => Next::SwitchOver { expected: MS }.into(),
                _ => Next::GoOn.into(),
            }
        }
    }
    let pair = addressed();
    let params = verifying();
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    let decider = Hints(Arc::clone(&pair.source), false);
    out.start_with(ConnectTo::Connected(a), Box::new(decider))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_equal(&pair, &out, 290, "hinted");
}

#[test]
fn what_load_writes_is_no_difference() {
    let pair = pair();
    let destination = Arc::clone(&pair.destination);
    pair.to.at("load", move || {
        for page in [0, 3, 250, 1199] {
            scribble(&destination, page);
        }
        Ok(())
    });
    let out = moved(&pair);
    // The test's VMM, which compares when it runs the guest, saw the writes.
    assert!(!pair.world.wrongs.lock().unwrap().is_empty());
    assert_equal(&pair, &out, 0, "written by `load`");
}

#[test]
fn what_save_writes_has_to_arrive() {
    let pair = pair();
    let source = Arc::clone(&pair.source);
    pair.from.at("save", move || {
        source.poke("ram", 400 * PAGE_SIZE as usize, 77);
        Ok(())
    });
    let out = moved(&pair);
    pair.assert_sound("written by `save`");
    assert_equal(&pair, &out, 0, "written by `save`");
    // A write that nobody marks is lost, and seen.
    let pair = super::pair();
    let source = Arc::clone(&pair.source);
    pair.from.at("release", move || {
        scribble(&source, 400);
        Ok(())
    });
    let out = moved(&pair);
    assert_eq!(out.stats().first_mismatch_page, Some(400));
}

#[test]
fn a_block_that_is_removed_while_the_state_is_loaded_is_left_out() {
    let pair = pair();
    let (source, destination) = (Arc::clone(&pair.source), Arc::clone(&pair.destination));
    pair.to.at("loaded", move || {
        source.remove("shm");
        destination.remove("shm");
        Ok(())
    });
    let out = moved(&pair);
    let stats = out.stats();
    assert_eq!((stats.verified_pages, stats.mismatched_pages), (1200, 0));
}
