//! A place at which a thread stops until the test lets it go on.

use super::time::LONG;
use std::sync::{Arc, Condvar, Mutex};

/// A place at which threads stop until the test releases them.
#[derive(Default)]
pub struct Hold {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Hold {
    pub fn new() -> Arc<Hold> {
        Arc::default()
    }
    /// Called by the thread that should stop.
    pub fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }
    /// Waits until a thread has come.
    pub fn reached(&self) {
        let state = self.state.lock().unwrap();
        let (_state, out) = self
            .changed
            .wait_timeout_while(state, LONG, |s| !s.0)
            .unwrap();
        assert!(!out.timed_out(), "nobody came to the hold");
    }
    /// Lets every thread go on.
    pub fn go(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}
