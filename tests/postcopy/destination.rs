//! The destination of a postcopy whose source does what is right.

use super::scripted::{contents, word, Scripted, COMPLETING};
use crate::support::fuzz::blob_bytes;
use crate::support::memory::{ram, shared, Spec, PAGE};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{DestinationState, Params};
use brant::wire::RecordType;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const PAGES: u64 = 1600;

fn kinds() -> [Spec; 2] {
    let pages = PAGES as usize;
    [ram("ram", pages), shared("ram", pages)]
}

#[test]
fn a_page_that_somebody_needs_comes_at_once_and_the_rest_behind_it_on_every_lane() {
    for spec in kinds() {
        let missing = [10..20, 600..1100, 1500..1501];
        let mut source = Scripted::begin(&spec, 2, &Params::default());
        source.precopy(&missing);
        source.switch(&missing);
        source.hand_over();
        let reader = source.reader([3, 700, 12, 1500]);
        for page in [700, 12, 1500] {
            assert_eq!(source.urgent.asked(), [page..page + 1]);
            source.urgent.pages(page..page + 1);
        }
        assert_eq!(reader.join().unwrap(), [3, 700, 12, 1500].map(word));
        // Pages that are here already are sent once more, and do no harm.
        source.bulk[0].pages_of(10..11, contents);
        source.bulk[0].pages(11..20);
        source.bulk[1].pages(600..1024);
        source.bulk[0].zeros(1024..1100);
        source.finish();
        source.assert_whole(&[1024..1100]);
        assert_eq!(source.incoming.state(), DestinationState::Running);
    }
}

#[test]
fn the_bulk_goes_on_while_channel_0_loads_and_hands_over() {
    let missing = [0..PAGES];
    let mut source = Scripted::begin(&kinds()[0], 3, &Params::default());
    source.switch(&missing);
    // Before the state, on the lanes that have threads of their own.
    source.bulk[1].pages(0..512);
    source.bulk[2].pages(512..1024);
    source.hand_over();
    source.bulk[0].pages(1024..PAGES);
    source.finish();
    source.assert_whole(&[]);
}

#[test]
fn load_may_read_a_page_that_is_missing() {
    for spec in kinds() {
        let missing = [5..9];
        let mut source = Scripted::begin(&spec, 1, &Params::default());
        source.precopy(&missing);
        let found = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (ram, seen) = (Arc::clone(&source.ram), Arc::clone(&found));
        source.to.at("load", move || {
            seen.store(ram.word(7 * PAGE).load(Ordering::SeqCst), Ordering::SeqCst);
            Ok(())
        });
        source.switch(&missing);
        source.bulk[0]
            .raw
            .say_bytes(&blob_bytes(RecordType::State, "rings", &[1; 5]));
        source.state_end(1, 5);
        source.urgent.answer_until(7);
        source.ready_to_running();
        assert_eq!(found.load(Ordering::SeqCst), word(7));
        source.bulk[0].pages(5..9);
        source.finish();
        source.assert_whole(&[]);
    }
}

#[test]
fn the_kernel_waits_for_a_missing_page_as_a_vcpu_does() {
    for spec in kinds() {
        let missing = [30..40];
        let mut source = Scripted::begin(&spec, 1, &Params::default());
        source.precopy(&missing);
        source.switch(&missing);
        source.hand_over();
        // A system call reads from one missing page, and another one writes into a part of the
        // next.
        let ram = Arc::clone(&source.ram);
        let calls = std::thread::spawn(move || {
            let (mut out, into) = std::io::pipe().unwrap();
            let at = ram.word(31 * PAGE).as_ptr();
            // SAFETY: a page of the test's own memory.
            let wrote = unsafe { libc::write(into.as_raw_fd(), at.cast(), PAGE) };
            assert_eq!(wrote, PAGE as isize);
            let mut read = vec![0; PAGE];
            out.read_exact(&mut read).unwrap();
            // SAFETY: as above.
            let wrote = unsafe { libc::write(into.as_raw_fd(), [9u8; 8].as_ptr().cast(), 8) };
            assert_eq!(wrote, 8);
            let at = ram.word(33 * PAGE).as_ptr();
            // SAFETY: as above.
            assert_eq!(unsafe { libc::read(out.as_raw_fd(), at.cast(), 8) }, 8);
            let rest = ram.word(33 * PAGE + 8).load(Ordering::SeqCst);
            let first = ram.word(33 * PAGE).swap(word(33), Ordering::SeqCst);
            (read, first, rest)
        });
        source.urgent.answer_until(31);
        source.urgent.answer_until(33);
        let (read, first, rest) = calls.join().unwrap();
        assert_eq!(read, contents(31));
        assert_eq!((first, rest), (u64::from_le_bytes([9; 8]), word(33)));
        source.bulk[0].pages(30..40);
        source.finish();
        source.assert_whole(&[]);
    }
}

#[test]
fn threads_that_need_one_hot_page_ask_for_it_once() {
    let missing = [100..200];
    let mut source = Scripted::begin(&kinds()[0], 1, &Params::default());
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    let readers: Vec<_> = (0..4).map(|_| source.reader([150])).collect();
    assert_eq!(source.urgent.asked(), [150..151]);
    source.urgent.pages(150..151);
    for reader in readers {
        assert_eq!(reader.join().unwrap(), [word(150)]);
    }
    // No request for the hot page came behind the first.
    let last = source.reader([160]);
    assert_eq!(source.urgent.asked(), [160..161]);
    source.urgent.pages(160..161);
    assert_eq!(last.join().unwrap(), [word(160)]);
    source.bulk[0].pages(100..200);
    source.finish();
    source.assert_whole(&[]);
}

#[test]
fn what_was_written_meanwhile_is_not_overwritten_by_a_page_that_comes_late() {
    for spec in kinds() {
        let missing = [40..50];
        let mut source = Scripted::begin(&spec, 1, &Params::default());
        source.precopy(&missing);
        source.switch(&missing);
        source.hand_over();
        let reader = source.reader([44]);
        source.urgent.answer_until(44);
        reader.join().unwrap();
        source.ram.word(44 * PAGE).store(1, Ordering::SeqCst);
        // The bulk brings the page too: it was on its way when it was asked for.
        source.bulk[0].pages(40..50);
        source.finish();
        source.incoming.wait(Some(LONG)).unwrap();
        let now = source.ram.word(44 * PAGE).swap(word(44), Ordering::SeqCst);
        assert_eq!(now, 1);
        source.assert_whole(&[]);
    }
}

#[test]
fn a_guest_that_was_handed_over_cannot_be_cancelled_while_its_memory_arrives() {
    let missing = [1..3];
    let mut source = Scripted::begin(&kinds()[0], 1, &Params::default());
    source.precopy(&missing);
    source.switch(&missing);
    source.hand_over();
    source.to.wait_state(COMPLETING);
    let error = source.incoming.cancel().unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    source.bulk[0].pages(1..3);
    source.finish();
    source.assert_whole(&[]);
}

#[test]
fn a_switch_with_nothing_missing_ends_as_a_precopy_does() {
    let mut source = Scripted::begin(&kinds()[0], 2, &Params::default());
    source.precopy(&[]);
    source.switch(&[]);
    source.hand_over();
    source.finish();
    source.assert_whole(&[]);
}
