//! A guest that stands still: its ballooned pages are neither read nor sent, unless that is
//! switched off or the guest deflates without telling first.

use super::machine::{address, block, still, touched, Machine, PAGE};
use crate::support::deciders::until;
use crate::support::guest::differences;
use crate::support::memory::{ram, Spec};
use crate::support::sides::{quick, socketpair};
use crate::support::time::{LONG, MS};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{AcceptFrom, ConnectTo, Decider, Decision, Outgoing, Params};
use brant::units::PAGE_SIZE;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

fn move_still(
    from: &Arc<Machine>,
    source: &Params,
    destination: &Params,
) -> (Arc<Machine>, Arc<Outgoing>) {
    let to = Machine::new(&[ram("ram", 2000)]);
    to.guest.fill(4);
    let (out, inc) = (from.outgoing(source), to.incoming(destination));
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    // Switches over after one whole pass.
    let told = Arc::new(AtomicBool::new(true));
    out.start_with(ConnectTo::Connected(a), until(&told))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    (to, out)
}

#[test]
fn a_ballooned_page_is_neither_read_nor_sent_whatever_the_host_left_in_it() {
    let from = still(true);
    let (to, out) = move_still(&from, &quick(), &quick());
    let stats = out.stats();
    assert_eq!((stats.ballooned_pages, stats.data_pages), (1000, 1000));
    assert_eq!(stats.last_pages, 0, "nothing of it in the downtime");
    assert!(stats.wire_bytes < 1000 * PAGE_SIZE + 10_000);
    let resident = touched(&to.guest.memory, 0);
    assert_eq!(resident, (0..100).chain(1100..2000).collect());
    assert_eq!(
        to.guest
            .memory
            .count_ballooned(address(0, 0), 2000 * PAGE_SIZE),
        1000
    );
}

#[test]
fn no_page_is_ballooned_for_a_guest_that_need_not_tell_first() {
    let from = still(false);
    let (to, out) = move_still(&from, &quick(), &quick());
    assert_eq!(
        (out.stats().ballooned_pages, out.stats().data_pages),
        (0, 2000)
    );
    assert_eq!(differences(&from.guest, &to.guest), Vec::<String>::new());
}

#[test]
fn ballooned_pages_are_sent_when_that_is_asked_for() {
    let off = Params {
        skip_ballooned: false,
        ..quick()
    };
    let from = still(true);
    let (to, out) = move_still(&from, &off, &quick());
    assert_eq!(
        (out.stats().ballooned_pages, out.stats().data_pages),
        (0, 2000)
    );
    assert_eq!(differences(&from.guest, &to.guest), Vec::<String>::new());
    // Switched off at the destination alone: the pages are sent as zeros, and the host keeps their
    // memory.
    let from = still(true);
    let (to, out) = move_still(&from, &quick(), &off);
    assert_eq!(
        (out.stats().ballooned_pages, out.stats().data_pages),
        (1000, 1000)
    );
    assert_eq!(touched(&to.guest.memory, 0).len(), 2000);
    let ram = to.guest.ram("ram");
    assert!((100..1100).all(|page| ram.page(page).iter().all(|b| *b == 0)));
    assert_eq!(
        to.guest
            .memory
            .count_ballooned(address(0, 0), 2000 * PAGE_SIZE),
        0
    );
}

#[test]
fn a_hint_leaves_no_rubbish_behind_where_ballooned_pages_are_sent() {
    // Switched off at the destination, at the source, or at neither.
    for (source, destination) in [(false, true), (true, false), (true, true)] {
        /// Hints before the first page is sent.
        struct Hints(Arc<Machine>, bool);
        impl Decider for Hints {
            fn decide(&mut self, facts: &Facts) -> Decision {
                let tracker = &self.0.guest.tracker;
                if !std::mem::replace(&mut self.1, true) {
                    let round = tracker.begin_hints().unwrap();
                    tracker
                        .hint_free(round, address(0, 200), 300 * PAGE_SIZE)
                        .unwrap();
                }
                match facts.moment {
                    Moment::Synced => Next::SwitchOver { expected: MS }.into(),
                    _ => Next::GoOn.into(),
                }
            }
        }
        let params = |skip_ballooned| Params {
            skip_ballooned,
            ..quick()
        };
        let (from, to) = (
            Machine::new(&[ram("ram", 2000)]),
            Machine::new(&[ram("ram", 2000)]),
        );
        from.guest.fill(3);
        to.guest.fill(4);
        let out = from.outgoing(&params(source));
        let inc = to.incoming(&params(destination));
        let (a, b) = socketpair();
        inc.start(AcceptFrom::Connected(b)).unwrap();
        let decider = Hints(Arc::clone(&from), false);
        out.start_with(ConnectTo::Connected(a), Box::new(decider))
            .unwrap();
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        let (theirs, ours) = (from.guest.ram("ram"), to.guest.ram("ram"));
        for page in 0..2000 {
            let zero = source && (200..500).contains(&page);
            let has = ours.page(page);
            let right = match zero {
                true => has.iter().all(|b| *b == 0),
                false => has == theirs.page(page),
            };
            assert!(right, "page {page}, {source} at the source, {destination}");
        }
    }
}

#[test]
fn of_larger_host_pages_only_whole_ones_are_ballooned_and_arrive_as_such() {
    let spec = Spec {
        page_size: 2 << 20,
        ..ram("ram", 2048)
    };
    let specs = [spec];
    let (from, to) = (Machine::new(&specs), Machine::new(&specs));
    from.guest.memory.set_must_tell_host(true);
    from.guest.fill(3);
    to.guest.fill(4);
    let phase = |machine: &Machine| block(&machine.guest.memory, 0).host() as usize / PAGE % 512;
    // All but 4 KiB of one host page, one whole one, and two halves, wherever the memory lies.
    let begins = (512 - phase(&from)) % 512;
    for page in 0..511 {
        from.guest
            .memory
            .mark_ballooned(address(0, begins + page), PAGE_SIZE);
    }
    for page in (512..1024).rev() {
        from.guest
            .memory
            .mark_ballooned(address(0, begins + page), PAGE_SIZE);
    }
    let (out, inc) = (from.outgoing(&quick()), to.incoming(&quick()));
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().ballooned_pages, 512);
    let (theirs, ours) = (from.guest.ram("ram"), to.guest.ram("ram"));
    for page in 0..2048 {
        let whole = (begins + 512..begins + 1024).contains(&page);
        let has = ours.page(page);
        if whole {
            assert!(has.iter().all(|b| *b == 0), "page {page}");
        } else {
            assert!(has == theirs.page(page), "page {page}");
        }
    }
}
