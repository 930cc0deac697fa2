//! Which ballooned pages a destination remembers, which it forgets, and which it is told before the
//! pause.

use super::machine::{address, still, touched, Machine};
use crate::support::memory::ram;
use crate::support::sides::{quick, socketpair};
use crate::support::time::{LONG, MS};
use brant::error::Result;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing};
use brant::units::{Bytes, PAGE_SIZE};
use brant::vmm::Vmm;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

#[test]
fn a_destination_whose_guest_does_not_come_forgets_what_was_ballooned() {
    struct Cancels(Arc<Mutex<Option<Arc<Outgoing>>>>);
    impl Decider for Cancels {
        fn decide(&mut self, facts: &Facts) -> Decision {
            if facts.moment == Moment::Synced {
                let out = self.0.lock().unwrap();
                out.as_ref().unwrap().cancel().unwrap();
            }
            Next::GoOn.into()
        }
    }
    let from = still(true);
    let to = Machine::new(&[ram("ram", 2000)]);
    let out = Arc::new(Mutex::new(Some(from.outgoing(&quick()))));
    let inc = to.incoming(&quick());
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    let decider = Box::new(Cancels(Arc::clone(&out)));
    out.lock()
        .unwrap()
        .as_ref()
        .unwrap()
        .start_with(ConnectTo::Connected(a), decider)
        .unwrap();
    inc.wait(Some(LONG)).unwrap_err();
    let out = out.lock().unwrap().take().unwrap();
    out.wait(Some(LONG)).unwrap_err();
    assert_eq!(out.stats().ballooned_pages, 1000);
    // Another guest boots in that memory, with a balloon of its own.
    let memory = &to.guest.memory;
    memory.set_must_tell_host(true);
    assert_eq!(memory.count_ballooned(address(0, 0), 2000 * PAGE_SIZE), 0);
}

#[test]
fn a_destination_that_is_not_told_of_the_promise_forgets_what_was_ballooned() {
    struct Plain(Arc<Machine>);
    impl Vmm for Plain {
        fn run(&self) -> Result<()> {
            // The guest begins to run with no page ballooned.
            self.0.run()
        }
    }
    let from = still(true);
    let to = Machine::new(&[ram("ram", 2000)]);
    let memory = Arc::clone(&to.guest.memory);
    let plain = Arc::new(Plain(Arc::clone(&to)));
    let inc = Incoming::new(Arc::clone(&memory), plain, quick()).unwrap();
    let out = from.outgoing(&quick());
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().ballooned_pages, 1000);
    memory.set_must_tell_host(true);
    assert_eq!(memory.count_ballooned(address(0, 0), 2000 * PAGE_SIZE), 0);
}

#[test]
fn what_is_ballooned_during_the_last_pass_is_told_before_the_pause() {
    struct Gives(Arc<Machine>, bool);
    impl Decider for Gives {
        fn decide(&mut self, facts: &Facts) -> Decision {
            // In the middle of the second pass; the sync behind it finds the pages.
            if facts.pass == 2 && facts.moment == Moment::Walking && !self.1 {
                self.1 = true;
                let memory = &self.0.guest.memory;
                memory.mark_ballooned(address(0, 1200), 700 * PAGE_SIZE);
            }
            match (facts.moment, facts.pass) {
                // Later than in pass 2 if naming the pages took long, on a busy machine.
                (Moment::Synced, 2..) => {
                    assert_eq!(facts.remaining, Bytes(0), "ballooned is not left to send");
                    Next::SwitchOver { expected: MS }.into()
                }
                _ => Next::GoOn.into(),
            }
        }
    }
    /// Checks at the pause whether the destination has taken all of them.
    struct Looks(Arc<Machine>, OnceLock<Weak<Outgoing>>, AtomicU64);
    impl Vmm for Looks {
        fn pause(&self) -> Result<()> {
            let out = self.1.get().unwrap().upgrade().unwrap();
            let left = out.stats().unacknowledged_pages;
            self.2.store(left, Ordering::SeqCst);
            self.0.pause()
        }
        fn resume(&self) -> Result<()> {
            self.0.resume()
        }
    }
    let from = still(true);
    let to = Machine::new(&[ram("ram", 2000)]);
    let looks = Arc::new(Looks(
        Arc::clone(&from),
        OnceLock::new(),
        AtomicU64::new(u64::MAX),
    ));
    let tracker = Arc::clone(&from.guest.tracker);
    let out = Outgoing::new(tracker, Blockers::new(), looks.clone(), quick()).unwrap();
    let out = Arc::new(out);
    looks.1.set(Arc::downgrade(&out)).unwrap();
    let inc = to.incoming(&quick());
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(
        ConnectTo::Connected(a),
        Box::new(Gives(Arc::clone(&from), false)),
    )
    .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let stats = out.stats();
    assert_eq!(stats.ballooned_pages, 1700);
    assert_eq!(looks.2.load(Ordering::SeqCst), 0, "and acknowledged");
    assert_eq!(stats.last_pages, 0, "nothing of it in the downtime");
    assert_eq!(
        touched(&to.guest.memory, 0),
        (0..100).chain(1100..1200).chain(1900..2000).collect()
    );
}
