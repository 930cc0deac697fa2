//! The lanes of a session beside channel 0, while memory arrives. Each lane has a thread of its own
//! from the first page run to its final marker. The first error of a lane ends all of them.
//!
//! Channel 0 stays with the migration's thread, which waits here for the other threads and takes
//! all lanes back. So everything that follows the passes has one owner and needs no lock.
//!
//! A switch to postcopy ends the threads too: every lane is the migration's thread's while pages are
//! discarded. Then new threads take the rest, and the urgent lane has one as well.

use super::arriving::Arriving;
use super::lane::Waits;
use super::receiver::{Came, Receiver};
use crate::error::{Error, Result};
use crate::migrate::callbacks::Callbacks;
use crate::migrate::common::Migration;
use crate::migrate::control;
use crate::migrate::failure::{Cause, Failure};
use crate::migrate::switchover::destination::State;
use crate::runtime::thread::{catch, spawn, Join, Role};
use crate::runtime::{Cancel, Limit};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What the lanes' threads share.
struct Shared {
    migration: Arc<Migration<Arriving, State>>,
    overall: Limit,
    failure: Failure,
    /// The number of threads that have not ended.
    left: Mutex<usize>,
    ended: Condvar,
}

impl Shared {
    fn left(&self) -> MutexGuard<'_, usize> {
        self.left.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A guard that counts this thread as ended when it is dropped, also in a panic.
    fn leave(&self) -> impl Drop + '_ {
        struct Leaving<'a>(&'a Shared);
        impl Drop for Leaving<'_> {
            fn drop(&mut self) {
                *self.0.left() -= 1;
                self.0.ended.notify_all();
            }
        }
        Leaving(self)
    }

    fn waits(&self) -> Waits<'_> {
        Waits {
            cancel: self.failure.stop(),
            params: &self.migration.params,
            overall: self.overall,
        }
    }
}

/// The threads, as the file's description says. When this value is dropped, it ends the threads and
/// waits for them.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<Join<Receiver>>,
}

impl Workers {
    /// Starts a thread for each of `lanes`. All of them belong to the session of channel 0.
    ///
    /// # Errors
    /// When no thread or no descriptor can be had.
    pub(super) fn start(
        migration: &Arc<Migration<Arriving, State>>,
        overall: Limit,
        lanes: Vec<Receiver>,
    ) -> Result<Workers> {
        let stop = Cancel::under(&migration.handle.cancel)?;
        let mut workers = Workers {
            shared: Arc::new(Shared {
                migration: Arc::clone(migration),
                overall,
                failure: Failure::new(stop),
                left: Mutex::new(0),
                ended: Condvar::new(),
            }),
            threads: Vec::with_capacity(lanes.len()),
        };
        for lane in lanes {
            workers.add(lane, receive)?;
        }
        Ok(workers)
    }

    /// Starts a thread for `lane`, whose work is `receive`.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn add(
        &mut self,
        lane: Receiver,
        receive: impl FnOnce(&mut Receiver, &Waits<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let vmm = shared.migration.callbacks();
        *self.shared.left() += 1;
        let spawned = spawn(
            Role::Channel,
            |_| (),
            move || work(lane, &shared, &vmm, receive),
        );
        match spawned {
            Ok(thread) => {
                self.threads.push(thread);
                Ok(())
            }
            Err(error) => {
                *self.shared.left() -= 1;
                Err(error)
            }
        }
    }

    /// Why the lanes have failed, if they have.
    pub(super) fn failed(&self) -> Option<Error> {
        self.shared.failure.reason().map(|(_, error)| error)
    }

    /// What ends the waits of all lanes.
    pub(super) fn stop(&self) -> &Cancel {
        self.shared.failure.stop()
    }

    /// Ends the threads, and returns their lanes.
    pub(super) fn end(self) -> Vec<Receiver> {
        self.shared.failure.stop().cancel();
        self.join().0
    }

    /// The limits of channel 0's waits, which also end with the first error of any lane.
    pub(super) fn waits(&self) -> Waits<'_> {
        self.shared.waits()
    }

    /// Reports that channel 0, the lane `first`, has failed with `error`.
    pub(super) fn offer(&self, first: &Receiver, error: Error) {
        let cause = Cause::of(&error, first.lane.was_told());
        self.shared.failure.offer_beside_others(cause, error);
    }

    /// Waits until all threads have ended, but no longer than `limit`. Returns whether they have.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let ended = &self.shared.ended;
        let waited = ended.wait_timeout_while(self.shared.left(), limit, |left| *left > 0);
        *waited.unwrap_or_else(|e| e.into_inner()).0 == 0
    }

    /// Waits for the threads. Returns the lanes, and the first error with its cause.
    pub(super) fn join(mut self) -> (Vec<Receiver>, Option<(Cause, Error)>) {
        let mut lanes = Vec::with_capacity(self.threads.len());
        for thread in std::mem::take(&mut self.threads) {
            match thread.join() {
                Ok(lane) => lanes.push(lane),
                Err(error) => self.shared.failure.offer(Cause::Found, error),
            }
        }
        lanes.sort_by_key(|lane| lane.channel);
        (lanes, self.shared.failure.reason())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.shared.failure.stop().cancel();
        }
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

/// The work of one lane's thread. Returns the lane in every case.
fn work(
    mut lane: Receiver,
    shared: &Shared,
    vmm: &Callbacks,
    receive: impl FnOnce(&mut Receiver, &Waits<'_>) -> Result<()>,
) -> Receiver {
    let _leaving = shared.leave();
    let received = catch(|| {
        vmm.thread_start(Role::Channel)?;
        receive(&mut lane, &shared.waits())
    });
    if let Err(error) = lane.lane.named(received.and_then(|received| received)) {
        let cause = Cause::of(&error, lane.lane.was_told());
        shared.failure.offer_beside_others(cause, error);
    }
    lane
}

/// Takes memory until the final marker, or the marker of a switch, and sends the acknowledgement of
/// that marker.
fn receive(lane: &mut Receiver, waits: &Waits<'_>) -> Result<()> {
    loop {
        match lane.take(waits, waits.patience().from_now())? {
            Came::Pages | Came::Piece | Came::PagesEnd => {}
            Came::Switch => return lane.lane.flush_all(waits),
            Came::Marker(marker) if marker.is_final() => {
                lane.finish();
                return lane.lane.flush_all(waits);
            }
            Came::Marker(_) => {}
            Came::Other(other) => {
                return Err(control::unexpected(other.kind(), "pages or a marker"));
            }
        }
    }
}
