//! Ends calls of a guest's devices that outlast a time limit of the migration.
//!
//! Example: the total timeout is 500 ms, and `read_running` of a device waits for hardware that never
//! answers. The thread that would notice the end of the time is the one inside the call. So another
//! thread waits for the limit ([`Role::Watch`]), and asks the devices to end their calls, as a cancel
//! of the migration does.
//!
//! The thread is made with the first call that has a limit, and lives as long as the [`Watch`]. A
//! further call costs two short holds of a lock: the thread sleeps to the earliest limit that it knows
//! and is woken only for an earlier one.

use super::callbacks::Callbacks;
use crate::error::{Error, Kind, Result};
use crate::runtime::{spawn, Join, Limit, Role};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// Asks all devices to end the calls that they are in.
type End = Box<dyn Fn() + Send + Sync>;

/// See the file's description.
pub(crate) struct Watch {
    vmm: Callbacks,
    shared: Arc<Shared>,
    thread: Mutex<Option<Join<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    end: End,
}

#[derive(Default)]
struct State {
    /// The limits of the calls in progress, each with a number of its own.
    limits: Vec<(u64, Limit)>,
    next: u64,
    /// When the thread looks next by itself.
    looks_at: Option<Instant>,
    /// A limit has passed during a call, and the devices were asked.
    asked: bool,
    /// The thread is to end.
    over: bool,
}

/// One or more calls that the watch ends when their limit passes. They are over when this is dropped.
pub(crate) struct Watched<'a> {
    watch: &'a Watch,
    number: u64,
    limit: Limit,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.over {
            let left = |(_, limit): &(u64, Limit)| limit.at().remaining();
            let earliest = state.limits.iter().filter_map(left).min();
            if earliest.is_some_and(|left| left.is_zero()) && !state.asked {
                state.asked = true;
                drop(state);
                (self.end)();
                state = self.lock();
                continue;
            }
            let wait = earliest.filter(|_| !state.asked);
            state = match wait {
                Some(wait) => {
                    state.looks_at = Instant::now().checked_add(wait);
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.unwrap_or_else(|e| e.into_inner()).0
                }
                None => {
                    state.looks_at = None;
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(|e| e.into_inner())
                }
            };
        }
    }
}

impl Watch {
    /// A watch that has `end` called, once, when the limit of a call passes.
    pub(crate) fn new(vmm: Callbacks, end: impl Fn() + Send + Sync + 'static) -> Watch {
        Watch {
            vmm,
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                end: Box::new(end),
            }),
            thread: Mutex::new(None),
        }
    }

    /// The calls that follow, on this thread, are to end at `limit`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn within(&self, limit: Limit) -> Result<Watched<'_>> {
        let mut watched = Watched {
            watch: self,
            number: 0,
            limit,
        };
        let Some(left) = limit.at().remaining() else {
            return Ok(watched);
        };
        self.start()?;
        let mut state = self.shared.lock();
        state.next += 1;
        watched.number = state.next;
        let number = state.next;
        state.limits.push((number, limit));
        let at = Instant::now().checked_add(left);
        let sleeps_too_long = match (state.looks_at, at) {
            (Some(looks), Some(at)) => at < looks,
            _ => true,
        };
        if sleeps_too_long {
            self.shared.changed.notify_all();
        }
        Ok(watched)
    }

    fn start(&self) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(|e| e.into_inner());
        if thread.is_none() {
            let (shared, vmm) = (Arc::clone(&self.shared), self.vmm.clone());
            *thread = Some(spawn(
                Role::Watch,
                |_| (),
                move || {
                    // A VMM whose `thread_start` panics is told elsewhere; the limits hold all the same.
                    let _ = vmm.thread_start(Role::Watch);
                    shared.run();
                },
            )?);
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        let thread = self.thread.get_mut().unwrap_or_else(|e| e.into_inner());
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

/// In the message of a call that its limit has ended.
const LATE: &str = "ran out in a call of a device";

/// Whether a call of a device at this side was ended by its limit, and `error` says so.
pub(crate) fn is_of_a_late_call(error: &Error) -> bool {
    error.kind() == Kind::Timeout && error.message().contains(LATE)
}

impl Watched<'_> {
    /// `error` of the calls, or that their time is over when that has ended them.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let asked = self.watch.shared.lock().asked;
        match asked && self.limit.expired() {
            true => Error::new(Kind::Timeout, format!("{} {LATE}: {error}", self.limit)),
            false => error,
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if self.number > 0 {
            let limits = &mut self.watch.shared.lock().limits;
            limits.retain(|(number, _)| *number != self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Timeout;
    use crate::vmm::Vmm;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    struct Machine;
    impl Vmm for Machine {}

    fn limit(ms: u64) -> Limit {
        Timeout::new("the total timeout", Duration::from_millis(ms)).from_now()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_call_that_outlasts_its_limit_is_ended_once_and_the_error_says_which_limit_it_was() {
        let (tell, hear) = channel();
        let tell = Mutex::new(tell);
        let vmm = Callbacks::new(Arc::new(Machine), 0);
        let watch = Watch::new(vmm, move || tell.lock().unwrap().send(()).unwrap());
        let failed = || Error::new(Kind::Vmm, "device `gpu`: `read_running`: interrupted");
        // A call without a limit, one with a far one, and one that ends in time.
        drop(watch.within(Limit::never()).unwrap());
        let far = watch.within(limit(3_600_000)).unwrap();
        drop(watch.within(limit(1_000_000)).unwrap());
        assert!(hear.try_recv().is_err());
        let near = watch.within(limit(20)).unwrap();
        hear.recv_timeout(LONG).unwrap();
        let error = near.explain(failed());
        assert_eq!(error.kind(), Kind::Timeout);
        assert_eq!(
            error.message(),
            "the total timeout of 20 ms ran out in a call of a device: device `gpu`: \
             `read_running`: interrupted"
        );
        assert_eq!(far.explain(failed()).kind(), Kind::Vmm);
        drop((near, far));
        // The devices were asked already.
        let _late = watch.within(limit(0)).unwrap();
        assert!(hear.recv_timeout(Duration::from_millis(50)).is_err());
    }
}
