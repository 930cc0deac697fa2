//! The part of an incoming migration that the VMM's object and the migration's threads share.

use super::accepting::Accepting;
use super::devices::Devices;
use super::figures::Figures;
use super::late::Late;
use crate::channel::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::memory::served::{Blocked, Served, Theirs};
use crate::memory::Memory;
use crate::migrate::switchover::destination::State;
use crate::runtime::Cancel;
use crate::sys::uffd::Faults;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// What the VMM decides about a guest that runs here without some of its memory, when the
/// connections are lost.
pub(super) enum Decision {
    /// They come over new connections.
    Recover(Accepting),
    /// The missing pages will not come.
    GiveUp,
}

/// How far a decision has come.
#[derive(Default)]
enum Asked {
    /// Nothing is interrupted.
    #[default]
    No,
    /// The migration is interrupted.
    Yes,
    Decided(Decision),
    /// The decision is being carried out.
    Taken,
}

/// The decision, for which the migration's thread waits.
#[derive(Default)]
struct Deciding {
    asked: Asked,
    /// The VMM drops the migration: the answer is to give up.
    dropped: bool,
    /// Ends the wait for new connections.
    rejoining: Option<Cancel>,
}

/// The shared part of an incoming migration.
pub(super) struct Arriving {
    pub(super) memory: Arc<Memory>,
    /// The endpoint that the migration listens at, or has listened at.
    endpoint: Mutex<Option<Endpoint>>,
    /// The figures of each channel, in the order of the channels.
    figures: Mutex<Vec<Arc<Figures>>>,
    /// The guest's devices, as long as the migration's thread has them.
    devices: Mutex<Weak<Devices>>,
    /// What serves the missing pages of a postcopy, as long as pages are missing.
    served: Mutex<Weak<Served>>,
    deciding: Mutex<Deciding>,
    decided: Condvar,
    others: Mutex<Others>,
    /// How long threads waited, when the service has ended.
    blocked: Mutex<Vec<Blocked>>,
    /// For a source that recovers when the guest is whole.
    pub(super) late: Late,
}

/// The userfaultfds of other processes that share the guest's memory.
#[derive(Default)]
struct Others {
    /// Those that came before the switch.
    early: Vec<(Faults, Vec<Theirs>)>,
    /// Once memory is served: whether old contents were punched out of files, so that other processes
    /// fault on all that is missing.
    punched: Option<bool>,
    /// Their faults are served as long as the VMM keeps the migration.
    kept: Option<Arc<Served>>,
}

impl Arriving {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        Arriving {
            memory,
            endpoint: Mutex::default(),
            figures: Mutex::default(),
            devices: Mutex::default(),
            served: Mutex::default(),
            deciding: Mutex::default(),
            decided: Condvar::new(),
            others: Mutex::default(),
            blocked: Mutex::default(),
            late: Late::default(),
        }
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds another process's userfaultfd.
    ///
    /// # Errors
    /// `Invalid` for a region that is not inside a block; `State` when it comes too late; those of
    /// [`Served::add_uffd`].
    pub(super) fn add_uffd(&self, faults: Faults, map: Vec<Theirs>) -> Result<()> {
        self.memory.with_map(|blocks| {
            map.iter().try_for_each(|theirs| {
                let length = theirs.addresses.end.saturating_sub(theirs.addresses.start);
                let end = theirs.first.bytes().0.checked_add(length);
                let block = blocks.block(theirs.block);
                let inside = block.is_some_and(|block| end.is_some_and(|e| e <= block.length().0));
                match inside && length > 0 {
                    true => Ok(()),
                    false => Err(Error::new(
                        Kind::Invalid,
                        format!(
                            "expected a region inside a block of the guest, found {length} bytes from \
                             page {} of block number {} on",
                            theirs.first, theirs.block
                        ),
                    )),
                }
            })
        })?;
        let mut others = self.others();
        match others.punched {
            None => fallible::push(&mut others.early, (faults, map), "userfaultfds"),
            Some(false) => Err(Error::new(
                Kind::State,
                "another process's userfaultfd: expected it before the switch to postcopy, because \
                 old contents of missing pages are still in the files of shared memory",
            )),
            Some(true) => {
                let served = self.served().ok_or_else(|| {
                    Error::new(Kind::State, "another process's userfaultfd: nothing is missing")
                })?;
                served.add_uffd(faults, map)?;
                others.kept = Some(served);
                Ok(())
            }
        }
    }

    /// Whether other processes share the memory that is about to be served.
    pub(super) fn has_others(&self) -> bool {
        let mut others = self.others();
        let some = !others.early.is_empty();
        others.punched = Some(some);
        some
    }

    /// The missing pages of the guest are served from now on, to other processes too.
    ///
    /// # Errors
    /// Those of [`Served::add_uffd`].
    pub(super) fn serves(&self, served: &Arc<Served>) -> Result<()> {
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(served);
        let mut others = self.others();
        for (faults, map) in std::mem::take(&mut others.early) {
            served.add_uffd(faults, map)?;
            others.kept = Some(Arc::clone(served));
        }
        Ok(())
    }

    /// The service of this process's memory has ended.
    pub(super) fn serves_no_more(&self, served: &Served) {
        let threads = served.figures().threads;
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }

    /// No guest has come: nothing is served to anybody.
    pub(super) fn serves_nobody(&self) {
        let kept = self.others().kept.take();
        drop(kept);
    }

    /// How long each thread has waited for pages.
    pub(super) fn blocked(&self) -> Vec<Blocked> {
        match self.served() {
            Some(served) => served.figures().threads,
            None => {
                let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
                blocked.clone()
            }
        }
    }

    /// What serves the missing pages; `None` when none is missing.
    pub(super) fn served(&self) -> Option<Arc<Served>> {
        let place = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        place.upgrade()
    }

    fn deciding(&self) -> MutexGuard<'_, Deciding> {
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called when the migration's state changes. From the state on in which it is interrupted, the
    /// VMM may decide.
    pub(super) fn is_interrupted(&self, interrupted: bool) {
        let mut deciding = self.deciding();
        deciding.asked = match interrupted {
            true => Asked::Yes,
            false => Asked::No,
        };
        drop(deciding);
        self.decided.notify_all();
    }

    /// Waits for the VMM's decision.
    pub(super) fn decision(&self) -> Decision {
        let mut deciding = self.deciding();
        loop {
            if let Asked::Decided(_) = deciding.asked {
                if let Asked::Decided(decision) =
                    std::mem::replace(&mut deciding.asked, Asked::Taken)
                {
                    return decision;
                }
            }
            if deciding.dropped {
                deciding.asked = Asked::Taken;
                return Decision::GiveUp;
            }
            deciding = self
                .decided
                .wait(deciding)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The VMM has decided. `state` is the migration's: [`State::Interrupted`] may be seen a moment before
    /// the decision is waited for.
    ///
    /// # Errors
    /// `State` when no decision is waited for.
    pub(super) fn decide(
        &self,
        decision: Decision,
        what: &str,
        state: impl Fn() -> State,
    ) -> Result<()> {
        let mut deciding = self.deciding();
        loop {
            match deciding.asked {
                Asked::Yes => break,
                Asked::No if state() == State::Interrupted => {
                    let moment = Duration::from_millis(1);
                    let waited = self.decided.wait_timeout(deciding, moment);
                    deciding = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                _ => return Err(Arriving::undecidable(what, state())),
            }
        }
        deciding.asked = Asked::Decided(decision);
        drop(deciding);
        self.decided.notify_all();
        Ok(())
    }

    /// Waits until the migration's thread carries out what was decided, and the state shows it.
    pub(super) fn await_begun(&self) {
        let deciding = self.deciding();
        let going_on = |d: &mut Deciding| matches!(d.asked, Asked::Decided(_) | Asked::Taken);
        let waited = self.decided.wait_while(deciding, going_on);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The error for a decision that nobody waits for.
    pub(super) fn undecidable(what: &str, found: State) -> Error {
        Error::new(
            Kind::State,
            format!(
                "{what}: expected a migration that was interrupted after the guest was handed over, and \
                 for which nothing was decided yet; this one is `{}`",
                found.name()
            ),
        )
    }

    /// The VMM drops the migration.
    pub(super) fn is_dropped(&self) {
        let mut deciding = self.deciding();
        deciding.dropped = true;
        if let Some(rejoining) = &deciding.rejoining {
            rejoining.cancel();
        }
        drop(deciding);
        self.decided.notify_all();
    }

    /// New connections are waited for until `rejoining` is cancelled; `None`: not any more.
    pub(super) fn is_rejoining(&self, rejoining: Option<Cancel>) {
        let mut deciding = self.deciding();
        if let (Some(rejoining), true) = (&rejoining, deciding.dropped) {
            rejoining.cancel();
        }
        deciding.rejoining = rejoining;
    }

    /// Both sides have agreed on the devices.
    pub(super) fn has_devices(&self, devices: &Arc<Devices>) {
        let mut place = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Arc::downgrade(devices);
    }

    /// The migration is cancelled: asks every device to end the call that it is in.
    pub(super) fn cancel_devices(&self) {
        let place = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = place.upgrade();
        drop(place);
        if let Some(devices) = devices {
            devices.cancel();
        }
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Vec<Arc<Figures>>> {
        self.figures.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn endpoint(&self) -> MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(|e| e.into_inner())
    }
}
