//! A whole migration of a busy guest, and the checks after each.

use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing};
use crate::support::time::LONG;
use brant::migrate::switchover::source::State;
use brant::migrate::{Incoming, Outgoing, Params};
use brant::vmm::EventKind;
use std::time::Duration;

/// A whole migration, with the checks after each.
pub fn migrates(pair: &Pair, run: impl FnOnce(&Outgoing, &Incoming)) {
    // The bandwidth has to be measured, so a part of the first pass is sent before it can end.
    let params = Params::default();
    let (out, inc) = (outgoing(pair, &params), incoming(pair, &params));
    run(&out, &inc);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("a whole migration");
    assert_eq!(pair.world.who(), (false, true));
    assert_eq!(out.state(), State::Completed);
    for (vmm, wanted) in [
        (&pair.from, vec!["pause", "save", "release"]),
        (&pair.to, vec!["load", "loaded", "run"]),
    ] {
        let calls = vmm.all_calls();
        let of: Vec<&str> = calls.iter().map(String::as_str).collect();
        let mut of: Vec<&str> = of
            .into_iter()
            .filter(|c| !c.starts_with("early") && *c != "thread_start")
            .collect();
        of.dedup();
        assert_eq!(of, wanted);
        assert_eq!(vmm.events(EventKind::Completed).len(), 1);
    }
    assert!(!pair.source.tracker.is_started(), "logged for ever");
}

pub fn busy_pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 3000), shared("shm", 1500)]);
    pair.source.fill(1);
    pair.destination.fill(2);
    pair.source.writers(2, Duration::ZERO);
    pair.source.wait_goes_on(0);
    pair
}
