//! What the migration's thread looks at while it waits for its peer in the middle of a pass: whether
//! nothing moves, and whether the policy's deadline has passed.
//!
//! Example: the link carries nothing for ten seconds, and the thread waits in a send. The pass does
//! not end, so nobody asks the policy. The thread wakes now and then, and tells the VMM by an event
//! that nothing moves. A policy that was set meanwhile cancels the migration at its own deadline.

use super::leaving::Leaving;
use crate::channel::{Looked, Watch};
use crate::migrate::common::Migration;
use crate::migrate::steering::policies::{OnDeadline, Policy};
use crate::migrate::steering::stall::Cause;
use crate::migrate::switchover::source::State;
use crate::runtime::{Deadline, Limit, Timeout};
use crate::vmm::callbacks::Callbacks;
use crate::vmm::EventKind;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time between two looks. A policy that was set counts from the next look on.
const LOOK: Duration = Duration::from_millis(100);

/// A thread that has not looked for so long did something else than wait.
const AWAY: Duration = Duration::from_secs(1);

/// See the file's description.
pub(super) struct StillWatch {
    shared: Arc<Migration<Leaving, State>>,
    vmm: Callbacks,
    /// When the migration began, and the number of the pass.
    begun: Instant,
    pass: u32,
    /// The time of the last look, and since when one has followed the other.
    looked: Cell<Instant>,
    since: Cell<Instant>,
    /// A standstill that is to be told: the time of its last byte, and its cause.
    news: Cell<Option<(Duration, Cause)>>,
}

impl fmt::Debug for StillWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StillWatch").finish_non_exhaustive()
    }
}

/// When `policy` cancels a migration that began at `begun`.
fn cancels_at(policy: &Policy, begun: Instant) -> Limit {
    let cancels = policy.on_deadline == OnDeadline::Cancel;
    match policy.deadline.filter(|_| cancels) {
        Some(deadline) => Timeout::new("the policy's deadline", deadline).since(begun),
        None => Limit::never(),
    }
}

impl StillWatch {
    /// A watch over waits that begin now, in pass `pass` of a migration that began at `begun`.
    pub(super) fn new(
        shared: &Arc<Migration<Leaving, State>>,
        begun: Instant,
        pass: u32,
    ) -> StillWatch {
        let now = Instant::now();
        StillWatch {
            shared: Arc::clone(shared),
            vmm: shared.callbacks(),
            begun,
            pass,
            looked: Cell::new(now),
            since: Cell::new(now),
            news: Cell::new(None),
        }
    }

    /// When the policy cancels the migration, by the orders of now.
    pub(super) fn cancels(&self) -> Limit {
        cancels_at(&self.shared.guest.orders.lock().policy, self.begun)
    }

    fn patience(&self) -> Duration {
        self.shared.guest.orders.lock().policy.patience
    }

    /// How long this thread has waited without a byte's moving.
    fn still(&self) -> Duration {
        let since = self.since.get().elapsed();
        since.min(self.shared.guest.pacer.still())
    }
}

impl Watch for StillWatch {
    fn due(&self) -> Deadline {
        match self.news.get() {
            Some(_) => Deadline::at(self.looked.get()),
            None => Deadline::at(self.looked.get() + LOOK),
        }
    }

    fn look(&self, held: Option<u64>) -> Looked {
        let now = Instant::now();
        if now - self.looked.replace(now) >= AWAY {
            self.since.set(now);
        }
        let cancels = self.cancels();
        if cancels.expired() {
            return Looked::Over(cancels);
        }
        let guest = &self.shared.guest;
        let moved_at = guest.pacer.moved_at();
        let found = guest
            .standstill()
            .judge(self.still(), moved_at, held, self.patience());
        self.news.set(found.map(|cause| (moved_at, cause)));
        match found {
            Some(_) => Looked::News,
            None => Looked::Nothing,
        }
    }

    fn tell(&self) {
        let Some((moved_at, cause)) = self.news.take() else {
            return;
        };
        // Whoever reads the figures inside the event sees the stall.
        self.shared.guest.standstill().told(moved_at, cause);
        let why = match cause {
            Cause::Destination => {
                "the destination has received all that was sent and acknowledges nothing"
            }
            _ => "the link stands still",
        };
        let text = format!(
            "nothing has moved for {:.1} s in the middle of pass {}: {why}",
            self.still().as_secs_f64(),
            self.pass
        );
        self.vmm.event(EventKind::Stalled, text);
        self.shared.handle.notify.raise();
        // The time that the VMM took is no standstill.
        self.looked.set(Instant::now());
    }
}
