//! The destination of a postcopy whose connections are lost.

use super::scripted::{Scripted, BLOCK, COMPLETING, INTERRUPTED};
use crate::support::memory::{ram, PAGE};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{DestinationState, Params};
use brant::vmm::EventKind;
use brant::wire::MARKER_FLAG_FINAL;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

const PAGES: u64 = 1100;

fn missing(source: &Scripted) -> Vec<(String, std::ops::Range<u64>)> {
    let mut runs = Vec::new();
    source.incoming.missing(|block, pages| {
        runs.push((block.name().to_owned(), pages.start.0..pages.end.0));
    });
    runs
}

#[test]
fn before_the_hand_over_no_guest_runs_here_and_the_memory_takes_another_one() {
    let missing = [5..600];
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), 2, &Params::default());
    source.precopy(&missing);
    source.switch(&missing);
    source.bulk[1].pages(512..600);
    source.lose();
    let error = source.incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::PeerGone, "{error}");
    assert_eq!(source.incoming.state(), DestinationState::Failed);
    assert_eq!(source.to.calls("run"), 0);
    assert!(self::missing(&source).is_empty());
    assert_eq!(source.incoming.stats().missing_pages, 0);
    let guest = Arc::clone(&source.guest);
    drop(source);
    let mut source = Scripted::begin_with(&guest, 1, &Params::default());
    source.precopy(&[]);
    source.bulk[0].marked(MARKER_FLAG_FINAL);
    source.hand_over();
    source.assert_whole(&[]);
}

#[test]
fn after_it_the_guest_runs_on_and_what_is_missing_can_be_asked_for_and_given_up() {
    let missing = [5..9, 512..600];
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), 2, &Params::default());
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    source.bulk[1].pages(512..590);
    // An answer tells that those pages have arrived, and no others are asked for.
    let reader = source.reader([7]);
    source.urgent.answer_until(7);
    reader.join().unwrap();
    source.bulk[1].marked(0);
    source.lose();
    source.to.wait_state(INTERRUPTED);
    source.to.wait_event(EventKind::Interrupted);
    let name = || "ram".to_owned();
    let expected = [(name(), 5..7), (name(), 8..9), (name(), 590..600)];
    assert_eq!(self::missing(&source), expected);
    // The guest has what has arrived.
    let here = source.reader([4, 7, 550]);
    assert_eq!(here.join().unwrap(), [4, 7, 550].map(super::scripted::word));
    let error = source.incoming.wait(Some(std::time::Duration::ZERO));
    assert_eq!(error.unwrap_err().kind(), Kind::Pending);
    // A system call that needs a missing page waits, until the page is given up.
    let page = source.ram.word(6 * PAGE).as_ptr() as usize;
    let call = std::thread::spawn(move || {
        let (_out, into) = io::pipe().unwrap();
        // SAFETY: a page of the test's own memory, which outlives the thread.
        let wrote = unsafe { libc::write(into.as_raw_fd(), page as *const _, PAGE) };
        (wrote, io::Error::last_os_error().raw_os_error())
    });
    source.incoming.give_up().unwrap();
    // All is done when the call returns.
    assert_eq!(source.incoming.state(), DestinationState::Incomplete);
    let stats = source.incoming.stats();
    assert_eq!((stats.missing_pages, stats.lost_pages), (0, 13));
    assert_eq!(call.join().unwrap(), (-1, Some(libc::EFAULT)));
    let error = source.incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::PeerGone, "{error}");
    let word = "13 pages of the guest that runs here were given up";
    assert!(error.message().starts_with(word), "{error}");
    let last = source.to.events(EventKind::Failed);
    assert!(last.iter().any(|said| said.starts_with(word)), "{last:?}");
    let lost = source.guest.memory.map().blocks()[0].poisoned().count();
    assert_eq!(lost, 13, "block {BLOCK}");
}

#[test]
fn giving_up_is_refused_while_the_pages_may_come() {
    let missing = [5..9];
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), 1, &Params::default());
    source.precopy(&missing);
    assert_eq!(source.incoming.give_up().unwrap_err().kind(), Kind::State);
    source.switch(&missing);
    source.hand_over();
    source.to.wait_state(COMPLETING);
    assert_eq!(source.incoming.give_up().unwrap_err().kind(), Kind::State);
    source.bulk[0].pages(5..9);
    source.finish();
    source.assert_whole(&[]);
    assert_eq!(source.incoming.give_up().unwrap_err().kind(), Kind::State);
}

#[test]
fn a_source_that_says_it_has_sent_all_and_has_not_is_taken_for_lost() {
    let missing = [5..9];
    let mut source = Scripted::begin(&ram("ram", PAGES as usize), 1, &Params::default());
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    source.bulk[0].pages(5..8);
    source.bulk[0].marked(MARKER_FLAG_FINAL);
    source.urgent.marked(MARKER_FLAG_FINAL);
    source.to.wait_state(INTERRUPTED);
    assert_eq!(self::missing(&source), [("ram".to_owned(), 8..9)]);
}
