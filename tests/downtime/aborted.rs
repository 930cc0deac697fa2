//! A pause that would exceed the limit is aborted: the guest runs on, and the destination notices
//! nothing.

use crate::support::link::Link;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{migrate_over, start_over};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{blob, failure};
use brant::dirty::tracker::StartWith;
use brant::dirty::When;
use brant::error::Kind;
use brant::migrate::{DestinationState, Overrun, Params, SourceState};
use brant::units::{Bytes, PAGE_SIZE};
use brant::vmm::EventKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: usize = 256;

fn link() -> Link {
    Link::of(10_000_000, Duration::ZERO, 1 << 20)
}

fn params() -> Params {
    Params {
        downtime_limit: MS * 300,
        ..Params::default()
    }
}

/// A guest of 8 MiB, most of it idle. In the first `times` calls of `operation`, 6 MiB are written,
/// which take 630 ms.
fn written_in(operation: &str, times: usize) -> Pair {
    let pair = Pair::new(&[ram("ram", 8 * MIB)]);
    pair.source.fill(1);
    pair.source.writer_within("ram", 0..16, MS * 5);
    pair.source.track();
    let source = Arc::clone(&pair.source);
    let calls = AtomicUsize::new(0);
    pair.from.at(operation, move || {
        if calls.fetch_add(1, Ordering::SeqCst) < times {
            let block = source.memory.find_block("ram").unwrap();
            let ram = source.ram("ram");
            for page in 2 * MIB..8 * MIB {
                let word = ram.word(page * PAGE_SIZE as usize + 64);
                word.fetch_add(1, Ordering::Relaxed);
            }
            let from = Bytes(2 * MIB as u64 * PAGE_SIZE);
            source
                .tracker
                .mark_block(block, from, 6 * MIB as u64 * PAGE_SIZE);
        }
        Ok(())
    });
    pair
}

fn told(pair: &Pair) -> Vec<String> {
    let mut told = pair.from.events(EventKind::Downtime);
    told.retain(|text| text.contains("the pause was aborted after"));
    told
}

#[test]
fn a_pause_in_which_too_much_was_written_is_aborted_and_the_migration_goes_on() {
    for (operation, saves) in [("pause", 1), ("save", 2)] {
        let link = link();
        let pair = written_in(operation, 1);
        let (out, inc) = start_over(&pair, &link, &params());
        // While the guest is resumed, the destination still waits for memory.
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (there, states) = (Arc::downgrade(&inc), Arc::clone(&seen));
        pair.from.at("resume", move || {
            let there = there.upgrade().unwrap();
            states.lock().unwrap().push(there.state());
            Ok(())
        });
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        pair.assert_sound(operation);
        assert_eq!(pair.world.who(), (false, true), "{operation}");
        assert_eq!(*seen.lock().unwrap(), [DestinationState::Receiving]);
        let calls = |name| pair.from.calls(name);
        assert_eq!(
            (calls("pause"), calls("resume"), calls("save")),
            (2, 1, saves),
            "{operation}"
        );
        // The state of the aborted pause was never sent.
        assert_eq!(pair.to.loaded_blobs().len(), 1, "{operation}");
        let stats = out.stats();
        assert_eq!(stats.aborted_pauses, 1, "{stats:?}");
        assert!(stats.aborted_pause[0] > Duration::ZERO, "{stats:?}");
        assert_eq!(stats.aborted_pause[1..], [Duration::ZERO; 2]);
        assert!(stats.promised_downtime.unwrap() <= MS * 300, "{stats:?}");
        let told = told(&pair);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("sending pages"), "{told:?}");
        let states = pair.from.states();
        let aborting = states
            .iter()
            .position(|s| s == "aborting the pause")
            .unwrap();
        assert_eq!(states[aborting + 1], "copying");
    }
}

#[test]
fn slack_lets_a_longer_pause_go_through() {
    let pair = written_in("pause", 1);
    let params = Params {
        downtime_slack: Duration::from_secs(20),
        ..params()
    };
    let (out, ended) = migrate_over(&pair, &link(), &params);
    ended.unwrap();
    let stats = out.stats();
    assert_eq!((stats.aborted_pauses, pair.from.calls("resume")), (0, 0));
    assert!(stats.downtime.unwrap() >= MS * 600, "{stats:?}");
    assert_eq!(stats.overrun, stats.downtime.unwrap() - MS * 300);
}

#[test]
fn after_three_aborted_pauses_the_migration_fails_and_the_guest_runs_on() {
    let pair = written_in("pause", usize::MAX);
    let (out, ended) = migrate_over(&pair, &link(), &params());
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    let message = error.message();
    assert!(message.contains("3 pauses were aborted"), "{message}");
    let calls = |name| pair.from.calls(name);
    assert_eq!((calls("pause"), calls("resume"), calls("save")), (4, 4, 0));
    let stats = out.stats();
    assert_eq!(stats.aborted_pauses, 3);
    assert!(
        stats.aborted_pause.iter().all(|stood| !stood.is_zero()),
        "{stats:?}"
    );
    assert_eq!(told(&pair).len(), 3);
    pair.source.wait_goes_on(pair.source.counter());
}

#[test]
fn who_carries_on_is_switched_over_at_the_fourth_pause_and_told_how_much_longer_it_took() {
    let pair = written_in("pause", usize::MAX);
    let params = Params {
        overrun: Overrun::CarryOn,
        ..params()
    };
    let (out, ended) = migrate_over(&pair, &link(), &params);
    ended.unwrap();
    let stats = out.stats();
    assert_eq!((stats.aborted_pauses, pair.from.calls("pause")), (3, 4));
    assert!(stats.overrun >= MS * 300, "{stats:?}");
    let events = pair.from.events(EventKind::Downtime);
    assert!(events[3].contains("sending pages took"), "{events:?}");
}

#[test]
fn state_whose_size_only_save_tells_aborts_one_pause_and_is_then_refused_by_name() {
    let pair = Pair::new(&[ram("ram", 4 * MIB)]);
    pair.source.fill(1);
    *pair.from.state.lock().unwrap() = vec![blob("gpu", 0, &vec![7; 8_000_000])];
    let (out, ended) = migrate_over(&pair, &link(), &params());
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    let message = error.message();
    assert!(
        message.contains("sending the device state alone"),
        "{message}"
    );
    assert!(message.contains("8.0 MB at"), "{message}");
    let calls = |name| pair.from.calls(name);
    assert_eq!((calls("pause"), calls("resume"), calls("save")), (1, 1, 1));
    assert_eq!(out.stats().aborted_pauses, 1);
    assert_eq!(pair.to.calls("load"), 0);
    pair.assert_runs_on("too much state");
}

#[test]
fn a_guest_that_cannot_be_resumed_after_an_aborted_pause_ends_the_migration() {
    let pair = written_in("save", 1);
    pair.from.at("resume", || Err(failure()));
    let link = link();
    let (out, inc) = start_over(&pair, &link, &params());
    out.wait(Some(LONG)).unwrap_err();
    let _ = inc.wait(Some(LONG));
    assert_eq!(out.state(), SourceState::ResumeFailed);
    assert_eq!(
        (pair.from.calls("pause"), pair.from.calls("resume")),
        (1, 1)
    );
    assert_eq!(pair.world.who(), (false, false));
    assert!(out.stats().downtime.is_some());
    // For the guest's threads.
    pair.source.resume();
}

#[test]
fn a_cancel_while_a_pause_is_aborted_leaves_the_guest_running() {
    let pair = written_in("pause", 1);
    let link = link();
    let (out, inc) = start_over(&pair, &link, &params());
    let weak = Arc::downgrade(&out);
    pair.from.at("resume", move || {
        // A cancel inside an operation does not wait for the end.
        let _ = weak.upgrade().unwrap().cancel();
        Ok(())
    });
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
    let _ = inc.wait(Some(LONG));
    pair.assert_runs_on("cancelled while a pause was aborted");
    pair.source.wait_goes_on(pair.source.counter());
}

/// A VMM may write while the guest stands still, and mark it, as a debugger does.
#[test]
fn what_another_consumer_finds_while_a_pause_is_aborted_arrives_too() {
    let link = link();
    let pair = written_in("save", 1);
    let other = pair.source.tracker.consumer();
    other.start(StartWith::Nothing).unwrap();
    let source = Arc::clone(&pair.source);
    pair.from.at("aborting the pause", move || {
        let block = source.memory.find_block("ram").unwrap();
        let page = MIB;
        let ram = source.ram("ram");
        let word = ram.word(page * PAGE_SIZE as usize + 8);
        word.fetch_add(1, Ordering::Relaxed);
        let at = Bytes(page as u64 * PAGE_SIZE);
        source.tracker.mark_block(block, at, PAGE_SIZE);
        other.sync(When::Running).map(drop)
    });
    let (out, inc) = start_over(&pair, &link, &params());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().aborted_pauses, 1);
    pair.assert_sound("a write while the pause was aborted");
}
