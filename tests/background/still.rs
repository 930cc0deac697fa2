//! A migration that stands still in the middle of a pass: the event, the figures, the descriptor, and
//! orders that are given meanwhile.

use crate::support::link::{Link, Way};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::start_over;
use crate::support::time::{LONG, MS};
use brant::migrate::steering::stall::Cause;
use brant::migrate::{Incoming, Outgoing, Params, Policy};
use brant::runtime::{wait_ready, Deadline, Interest, Wake};
use brant::vmm::EventKind;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RATE: u64 = 8 << 20;

/// A guest of 32 MiB and a little, which stands for seconds in its first pass.
fn pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 8192), ram("other", 16)]);
    pair.source.fill(1);
    pair
}

fn patient(patience: Duration) -> Params {
    Params {
        policy: Policy {
            patience,
            ..Policy::default()
        },
        ..Params::default()
    }
}

fn until(out: &Outgoing, what: &str, mut over: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !over() {
        assert!(begun.elapsed() < LONG, "{what}: {:?}", out.stats());
        std::thread::sleep(MS * 5);
    }
}

/// In the middle of the first pass, over `link`.
fn copying(pair: &Pair, link: &Link, params: &Params) -> (Arc<Outgoing>, Arc<Incoming>) {
    let (out, inc) = start_over(pair, link, params);
    until(&out, "nothing is sent", || {
        out.stats().wire_bytes > 2 << 20 && out.stats().pass == 1
    });
    (out, inc)
}

fn stalls(pair: &Pair) -> Vec<String> {
    pair.from.events(EventKind::Stalled)
}

#[test]
fn a_standstill_in_the_middle_of_a_pass_is_an_event_once_and_again_after_a_recovery() {
    for channels in [1, 2] {
        let pair = pair();
        let link = Link::of(RATE, MS, 64 << 10);
        let params = Params {
            channels,
            ..patient(MS * 300)
        };
        let (out, inc) = copying(&pair, &link, &params);
        assert_eq!(stalls(&pair), Vec::<String>::new());
        for stall in 1..=2 {
            link.stop();
            let stopped = Instant::now();
            until(&out, "no event", || stalls(&pair).len() >= stall);
            assert!(stopped.elapsed() < Duration::from_secs(30), "it came late");
            let told = stalls(&pair).pop().unwrap();
            assert!(told.contains("in the middle of pass 1"), "{told}");
            assert!(told.contains("the link stands still"), "{told}");
            let stats = out.stats();
            assert_eq!((stats.stall, stats.pass), (Some(Cause::Link), 1));
            // It is told once, however long it lasts.
            std::thread::sleep(params.policy.patience * 3);
            assert_eq!(stalls(&pair).len(), stall, "{channels} channels");
            let before = link.carried().0;
            link.go_on();
            until(&out, "it stays", || {
                out.stats().stall.is_none() && link.carried().0 > before
            });
            assert_eq!(out.stats().pass, 1, "the pass was to be longer");
        }
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        pair.assert_sound("two standstills");
    }
}

#[test]
fn the_notify_descriptor_becomes_readable_with_the_event() {
    let pair = pair();
    let link = Link::of(RATE, MS, 64 << 10);
    let (out, inc) = copying(&pair, &link, &patient(MS * 500));
    let own = out.notify_fd().try_clone_to_owned().unwrap();
    let in_event = std::fs::File::from(own.try_clone().unwrap());
    let vmm = Arc::downgrade(&pair.from);
    // In the event the descriptor is emptied: what makes it readable afterwards comes with the event.
    pair.from.at("event", move || {
        let told = vmm.upgrade().unwrap().events(EventKind::Stalled).len();
        if told > 0 {
            let _ = (&in_event).read(&mut [0; 8]);
        }
        Ok(())
    });
    link.stop();
    pair.from.wait_event(EventKind::Stalled);
    let wake = wait_ready(
        out.notify_fd(),
        Interest::Read,
        None,
        Deadline::after(Duration::from_secs(20)),
    );
    assert_eq!(wake.unwrap(), Wake::Ready);
    let _ = out.cancel();
    link.go_on();
    let _ = inc.wait(Some(LONG));
}

#[test]
fn a_destination_that_acknowledges_nothing_is_the_cause() {
    let pair = Pair::new(&[ram("ram", 512)]);
    pair.source.fill(1);
    let link = Link::of(RATE, MS, 64 << 10);
    let (out, inc) = start_over(&pair, &link, &patient(MS * 300));
    pair.from.wait_state("copying");
    // What the destination says from now on takes an hour.
    let way = |delay| Way { delay, ..Way::OPEN };
    link.set(way(MS), way(Duration::from_secs(3600)));
    pair.from.wait_event(EventKind::Stalled);
    let told = stalls(&pair).pop().unwrap();
    assert!(told.contains("acknowledges nothing"), "{told}");
    assert_eq!(out.stats().stall, Some(Cause::Destination));
    let _ = out.cancel();
    link.cut();
    let _ = inc.wait(Some(LONG));
}

#[test]
fn the_block_that_is_being_sent_can_be_removed_inside_the_event() {
    let pair = pair();
    let link = Link::of(RATE, MS, 64 << 10);
    let (out, inc) = copying(&pair, &link, &patient(MS * 300));
    let removed = Arc::new(AtomicBool::new(false));
    let (vmm, guest, done) = (
        Arc::downgrade(&pair.from),
        Arc::clone(&pair.source),
        Arc::clone(&removed),
    );
    pair.from.at("event", move || {
        let told = vmm.upgrade().unwrap().events(EventKind::Stalled).len();
        if told == 1 && !done.load(Ordering::SeqCst) {
            guest.remove("ram");
            done.store(true, Ordering::SeqCst);
        }
        Ok(())
    });
    link.stop();
    let begun = Instant::now();
    while !removed.load(Ordering::SeqCst) {
        if begun.elapsed() > Duration::from_secs(20) {
            // Its thread waits for ever.
            std::mem::forget(out);
            panic!("the removal waits for the link");
        }
        std::thread::sleep(MS * 5);
    }
    let _ = out.cancel();
    link.go_on();
    let _ = inc.wait(Some(LONG));
    pair.assert_sound("a removal inside the event");
}

#[test]
fn a_deadline_that_is_put_off_in_the_middle_of_a_pass_does_not_end_it() {
    let pair = pair();
    let link = Link::of(RATE, MS, 64 << 10);
    let params = |deadline| {
        let mut params = patient(Duration::from_secs(60));
        params.policy.deadline = Some(deadline);
        params
    };
    // The pass takes 4 s.
    let (out, inc) = copying(&pair, &link, &params(Duration::from_millis(2500)));
    let later = params(Duration::from_secs(600)).policy;
    out.set_policy(later).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert!(out.stats().elapsed > Duration::from_millis(2500));
    pair.assert_sound("a deadline that was put off");
}

#[test]
fn a_deadline_that_is_set_while_the_link_stands_still_ends_the_migration() {
    let pair = pair();
    let link = Link::of(RATE, MS, 64 << 10);
    let (out, inc) = copying(&pair, &link, &patient(MS * 300));
    link.stop();
    pair.from.wait_event(EventKind::Stalled);
    let mut policy = patient(MS * 300).policy;
    policy.deadline = Some(out.stats().elapsed + MS * 200);
    let set = Instant::now();
    out.set_policy(policy).unwrap();
    let error = out.wait(Some(LONG)).unwrap_err();
    // Every other limit is 30 s or more.
    assert!(set.elapsed() < Duration::from_secs(15), "{error}");
    assert!(error.message().contains("deadline"), "{error}");
    link.cut();
    let _ = inc.wait(Some(LONG));
    pair.assert_runs_on("a deadline that was set while the link stood still");
}
