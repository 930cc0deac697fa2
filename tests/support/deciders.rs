//! Deciders on when a migration switches over: a closure, a flag, or never.

use super::time::MS;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{Decider, Decision};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Decides by a closure.
pub struct Scripted<F>(pub F);

impl<F: FnMut(&Facts) -> Next + Send> Decider for Scripted<F> {
    fn decide(&mut self, facts: &Facts) -> Decision {
        (self.0)(facts).into()
    }
}

/// Goes on copying until it is told to switch over.
pub fn until(told: &Arc<AtomicBool>) -> Box<dyn Decider> {
    let told = Arc::clone(told);
    Box::new(Scripted(move |facts: &Facts| {
        if facts.moment == Moment::Synced && told.load(Ordering::SeqCst) {
            let expected = MS;
            Next::SwitchOver { expected }
        } else {
            Next::GoOn
        }
    }))
}

/// Goes on copying for ever.
pub struct Never;

impl Decider for Never {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}
