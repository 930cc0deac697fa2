//! A place at which a thread is stopped until the test lets it go on.

use super::time::LONG;
use std::sync::{Arc, Condvar, Mutex};

/// A place to stop somebody at until the test says so.
#[derive(Default)]
pub struct Hold {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Hold {
    pub fn new() -> Arc<Hold> {
        Arc::default()
    }
    /// For whoever is to be held.
    pub fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }
    /// Waits until somebody is there.
    pub fn reached(&self) {
        let state = self.state.lock().unwrap();
        let (_state, out) = self
            .changed
            .wait_timeout_while(state, LONG, |s| !s.0)
            .unwrap();
        assert!(!out.timed_out(), "nobody came to the hold");
    }
    /// Lets everybody go on.
    pub fn go(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}
