//! Who has the guest: one answer for each guest object, for all its migrations, saves and restores.
//!
//! Example: a guest moved from here to host B. Minutes later another migration of the same guest
//! object is started, to host C. Its memory here is whole and nothing looks wrong, but the guest
//! runs at B: a second copy would run at C. So the answer belongs to the guest object and outlives
//! the migration that gave the guest away. A migration, save or restore asks here before it begins.
//! Asking and beginning are one step under one lock.
//!
//! The rules are in `Guest`, a pure value that is tested by table. [`Ownership`] puts it behind a
//! lock. It also makes `pause` wait for kicks (`Ownership::kick`) that have begun. A VMM may kick
//! its vCPUs by stopping and starting the guest, so a kick after the hand-over would start a guest
//! that runs elsewhere.
//!
//! At most one migration, save or restore has a guest at a time. Another one is refused with an
//! error that names the first.
//!
//! A migration, save or restore holds a `Claim` from its start to the end of its object, and
//! reports each `Stage` that it comes to. Dirty logs that kick vCPUs ask here too.

use crate::error::{Error, Kind, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};

/// Who has the guest, as far as this process knows. The numbers are part of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Whose {
    /// Nothing is known yet: the VMM runs the guest, or waits for a guest to arrive.
    Unknown = 0,
    /// The guest runs here.
    Here = 1,
    /// The guest is here and stands still: `resume` or `run` failed, or a save or restore left the
    /// guest paused.
    Stands = 2,
    /// An outgoing migration sends the guest's memory; the guest runs here.
    Leaving = 3,
    /// An outgoing migration has paused the guest, which is still here.
    Paused = 4,
    /// The guest is being handed over: the first byte of the hand-over may be on its way.
    HandingOver = 5,
    /// The destination said that it runs the guest.
    HandedOver = 6,
    /// The guest was handed over without an answer. The VMM has to resolve the migration.
    Unanswered = 7,
    /// The VMM gave the guest up here. Or the guest was handed over, and an incoming migration that
    /// failed has overwritten its memory since.
    GivenUp = 8,
    /// An incoming migration fills the guest's memory.
    Arriving = 9,
    /// An incoming migration came to nothing: no guest is here, unless the VMM has made one since.
    Empty = 10,
    /// A save writes the guest's memory to an image; the guest runs here.
    Saving = 11,
    /// A save has paused the guest, which is here.
    SavePaused = 12,
    /// A restore fills the guest's memory from an image.
    Restoring = 13,
    /// The guest runs here, or may run, and some of its memory has not arrived: it comes from the
    /// source of a postcopy migration, or from an image.
    Incomplete = 14,
}

/// What the state of a migration means for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Source: the guest has not been touched.
    Leaving,
    /// Source: the guest is paused, or may be.
    Paused,
    /// Source: the first byte of the hand-over may be on its way.
    HandingOver,
    /// Source: the destination runs the guest.
    HandedOver,
    /// Source: the guest stays here and runs.
    Kept,
    /// Source: the guest was handed over and nobody said that it runs.
    Unanswered,
    /// Source: the VMM gave the guest up.
    GivenUp,
    /// Destination: nothing has been written to the guest's memory.
    Arriving,
    /// Destination: the guest's memory is being written.
    Filling,
    /// Destination: the guest runs here.
    Arrived,
    /// Destination: no guest came.
    NotArrived,
    /// The guest is here and stands still: the VMM could not start it, or will start it by itself.
    Stands,
    /// Save: the guest is paused, or may be.
    SavePaused,
    /// Save: the guest was paused and runs again, and its memory is still being written.
    SavedRunning,
    /// Save: the guest that the VMM had paused by itself was saved, or not, and stands as before.
    PausedByVmm,
    /// Restore: the guest's memory is being written.
    Restoring,
    /// The guest runs here, and some of its memory has not arrived.
    Incomplete,
    /// The guest is here and stands still, and some of its memory has not arrived.
    IncompleteStands,
    /// All of an incomplete guest's memory is here.
    Whole,
}

/// Who has one guest, and the rules by which that changes, without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Guest {
    whose: Whose,
    /// Who had the guest before the migration in progress.
    before: Whose,
    /// An incoming migration wrote to the memory and failed. A guest that was handed over from here
    /// before cannot be taken back, and counts as given up.
    overwritten: bool,
    /// Another process has the guest's memory (it was handed over by descriptor), and has not said
    /// that it never ran the guest. Once the guest was handed over, its memory is no guest's that
    /// could go on here.
    shared: bool,
}

impl Default for Guest {
    fn default() -> Self {
        Guest {
            whose: Whose::Unknown,
            before: Whose::Unknown,
            overwritten: false,
            shared: false,
        }
    }
}

fn refused(kind: Kind, what: &str, why: &str) -> Error {
    Error::new(kind, format!("{what}: {why}"))
}

const HANDED_OVER: &str = "the guest was handed over and runs at another place; when that copy is \
                           known to be gone, reclaim the guest";
const UNANSWERED: &str = "the guest was handed over without an answer and may run at another \
                          place; resolve that migration first";
const GIVEN_UP: &str = "the guest was given up here; when no copy of it runs anywhere, \
                        reclaim it";
const OVERWRITTEN: &str =
    "its memory here was overwritten by an incoming migration that failed: a \
                           whole guest may arrive in it; for another one make a new guest";
const SHARED: &str =
    "its memory was handed over by descriptor, and the process that got it has not \
                      said that it never ran the guest: what it wrote is in the memory here too, \
                      and vCPUs and devices here do not fit it; another guest may arrive in it";
const LEAVING: &str = "an outgoing migration of this guest is in progress";
const ARRIVING: &str = "an incoming migration fills this guest's memory";
const SAVING: &str = "this guest is being saved to an image";
const RESTORING: &str = "this guest is being restored from an image";
const INCOMPLETE: &str = "some of this guest's memory has not arrived";

impl Guest {
    /// Why a guest that was given up may not run on here.
    fn why_given_up(self) -> &'static str {
        match self.overwritten {
            true => OVERWRITTEN,
            false => GIVEN_UP,
        }
    }

    /// Who has the guest when the migration in progress has changed nothing.
    fn as_before(self) -> Whose {
        match self.before {
            Whose::HandedOver if self.overwritten => Whose::GivenUp,
            before => before,
        }
    }

    /// Who has the guest.
    pub fn whose(self) -> Whose {
        self.whose
    }

    /// Whether the VMM's `kick` may be called. It may start the guest, so it must not be called
    /// while the guest is paused for a migration or a save, nor where another copy of the guest may
    /// run.
    pub fn may_kick(self) -> bool {
        match self.whose {
            Whose::Unknown | Whose::Here => true,
            Whose::Leaving | Whose::Saving => self.before != Whose::Stands,
            _ => false,
        }
    }

    /// An outgoing migration begins.
    pub fn leaves(self) -> Result<Guest> {
        self.read_by("outgoing migration", Whose::Leaving)
    }

    /// A save begins.
    pub fn is_saved(self) -> Result<Guest> {
        self.read_by("save to an image", Whose::Saving)
    }

    /// Something begins that needs the guest to be here.
    fn read_by(self, what: &str, whose: Whose) -> Result<Guest> {
        let no = |kind, why| Err(refused(kind, what, why));
        match self.whose {
            Whose::Unknown | Whose::Here | Whose::Stands | Whose::Empty => Ok(Guest {
                whose,
                before: self.whose,
                overwritten: false,
                shared: false,
            }),
            Whose::Saving | Whose::SavePaused => no(Kind::Busy, SAVING),
            Whose::Restoring => no(Kind::Busy, RESTORING),
            Whose::Incomplete => no(Kind::Busy, INCOMPLETE),
            Whose::Leaving | Whose::Paused | Whose::HandingOver => no(Kind::Busy, LEAVING),
            Whose::Arriving => no(Kind::Busy, ARRIVING),
            Whose::HandedOver => no(Kind::State, HANDED_OVER),
            Whose::Unanswered => no(Kind::State, UNANSWERED),
            Whose::GivenUp => no(Kind::State, self.why_given_up()),
        }
    }

    /// An incoming migration begins.
    pub fn arrives(self) -> Result<Guest> {
        self.filled_by("incoming migration", Whose::Arriving)
    }

    /// A restore begins.
    pub fn is_restored(self) -> Result<Guest> {
        self.filled_by("restore from an image", Whose::Restoring)
    }

    /// Something begins that overwrites the memory.
    fn filled_by(self, what: &str, whose: Whose) -> Result<Guest> {
        let no = |kind, why| Err(refused(kind, what, why));
        match self.whose {
            Whose::Unknown | Whose::Empty | Whose::HandedOver | Whose::GivenUp => Ok(Guest {
                whose,
                before: self.whose,
                ..self
            }),
            Whose::Saving | Whose::SavePaused => no(Kind::Busy, SAVING),
            Whose::Restoring => no(Kind::Busy, RESTORING),
            Whose::Incomplete => no(Kind::Busy, INCOMPLETE),
            Whose::Arriving => no(Kind::Busy, ARRIVING),
            Whose::Leaving | Whose::Paused | Whose::HandingOver => no(Kind::Busy, LEAVING),
            Whose::Unanswered => no(Kind::State, UNANSWERED),
            Whose::Here => no(
                Kind::State,
                "the guest runs here, and its memory would be overwritten; make a new guest, or \
                 give this one up once it has ended",
            ),
            Whose::Stands => no(
                Kind::State,
                "a guest that could not be started stands here, and its memory would be \
                 overwritten; make a new guest, or give this one up",
            ),
        }
    }

    /// The migration in progress has come to `stage`.
    #[must_use]
    pub fn comes_to(self, stage: Stage) -> Guest {
        let to = |whose| Guest { whose, ..self };
        let whole = |whose| Guest {
            whose,
            overwritten: false,
            shared: false,
            ..self
        };
        match stage {
            Stage::Leaving => to(Whose::Leaving),
            Stage::Paused => to(Whose::Paused),
            Stage::HandingOver => to(Whose::HandingOver),
            Stage::HandedOver => to(Whose::HandedOver),
            // A guest that stood before and was not touched still stands.
            Stage::Kept
                if matches!(self.whose, Whose::Leaving | Whose::Saving)
                    && self.before == Whose::Stands =>
            {
                to(Whose::Stands)
            }
            Stage::Kept => Guest {
                shared: false,
                ..to(Whose::Here)
            },
            Stage::Unanswered => to(Whose::Unanswered),
            Stage::GivenUp => to(Whose::GivenUp),
            Stage::Arriving => to(Whose::Arriving),
            Stage::Filling => Guest {
                overwritten: true,
                ..to(Whose::Arriving)
            },
            Stage::Arrived => whole(Whose::Here),
            Stage::NotArrived if self.before == Whose::Unknown => to(Whose::Empty),
            Stage::NotArrived => to(self.as_before()),
            Stage::Stands => whole(Whose::Stands),
            Stage::SavePaused => to(Whose::SavePaused),
            Stage::SavedRunning => Guest {
                before: Whose::Here,
                ..to(Whose::Saving)
            },
            // Example: a VMM never calls `runs_here`, pauses its guest, saves it and starts it
            // again. If the guest now counted as standing, its vCPUs would never be kicked again.
            // The VMM paused it without a word here, and starts it without one.
            Stage::PausedByVmm if matches!(self.before, Whose::Unknown | Whose::Here) => {
                to(self.before)
            }
            Stage::PausedByVmm => to(Whose::Stands),
            Stage::Restoring => Guest {
                overwritten: true,
                ..to(Whose::Restoring)
            },
            Stage::Incomplete => Guest {
                before: Whose::Here,
                ..whole(Whose::Incomplete)
            },
            Stage::IncompleteStands => Guest {
                before: Whose::Stands,
                ..whole(Whose::Incomplete)
            },
            Stage::Whole => to(self.before),
        }
    }

    /// The object of the migration in progress is dropped; the migration may be unfinished.
    #[must_use]
    pub fn let_go(self) -> Guest {
        let whose = match self.whose {
            Whose::Leaving | Whose::Arriving | Whose::Saving | Whose::Restoring => self.as_before(),
            // The migration can no longer be resolved. The guest comes back only by the VMM's word
            // that the other copy is gone.
            Whose::Unanswered | Whose::HandingOver => Whose::HandedOver,
            // The guest was paused, and nobody resumed it.
            Whose::Paused | Whose::SavePaused => Whose::Stands,
            // What did not arrive is lost, and raises a signal. The rest of the guest is here.
            Whose::Incomplete => self.before,
            whose => whose,
        };
        Guest { whose, ..self }
    }

    /// The VMM says that the guest runs here.
    pub fn runs_here(self) -> Result<Guest> {
        let no = |kind, why| Err(refused(kind, "the guest may not run here", why));
        match self.whose {
            Whose::Unknown | Whose::Empty | Whose::Here | Whose::Stands => Ok(Guest {
                whose: Whose::Here,
                overwritten: false,
                ..self
            }),
            Whose::Leaving | Whose::Saving => Ok(Guest {
                before: Whose::Here,
                ..self
            }),
            Whose::Incomplete => Ok(Guest {
                before: Whose::Here,
                ..self
            }),
            Whose::SavePaused => no(
                Kind::Busy,
                "a save to an image needs it to stand still; wait for the end of the save",
            ),
            Whose::Restoring => no(Kind::Busy, RESTORING),
            Whose::Paused => no(
                Kind::Busy,
                "an outgoing migration has paused it and will call `resume`, or hand it over",
            ),
            Whose::HandingOver => no(Kind::Busy, "it is being handed over"),
            Whose::Arriving => no(
                Kind::Busy,
                "an incoming migration fills its memory and will call `run`",
            ),
            Whose::HandedOver => no(Kind::State, HANDED_OVER),
            Whose::Unanswered => no(Kind::State, UNANSWERED),
            Whose::GivenUp => no(Kind::State, self.why_given_up()),
        }
    }

    /// The VMM says that no other copy of the guest runs or ever will.
    pub fn reclaimed(self) -> Result<Guest> {
        let no = |kind, why| Err(refused(kind, "taking the guest back", why));
        match self.whose {
            Whose::GivenUp if self.overwritten => no(Kind::State, OVERWRITTEN),
            Whose::HandedOver | Whose::GivenUp if self.shared => no(Kind::State, SHARED),
            Whose::HandedOver | Whose::GivenUp => Ok(Guest {
                whose: Whose::Here,
                ..self
            }),
            Whose::Unknown | Whose::Empty | Whose::Here | Whose::Stands => self.runs_here(),
            Whose::Incomplete => no(Kind::Busy, INCOMPLETE),
            Whose::Leaving | Whose::Paused | Whose::HandingOver => no(Kind::Busy, LEAVING),
            Whose::Arriving => no(Kind::Busy, ARRIVING),
            Whose::Saving | Whose::SavePaused => no(Kind::Busy, SAVING),
            Whose::Restoring => no(Kind::Busy, RESTORING),
            Whose::Unanswered => no(Kind::State, UNANSWERED),
        }
    }

    /// The VMM says that the guest has ended here, or never was.
    pub fn given_up(self) -> Result<Guest> {
        let no = |kind, why| Err(refused(kind, "giving the guest up", why));
        match self.whose {
            Whose::Unknown | Whose::Empty | Whose::Here | Whose::Stands => Ok(Guest {
                whose: Whose::GivenUp,
                overwritten: false,
                ..self
            }),
            // The guest has left already. Whether an incoming migration overwrote its memory does
            // not change.
            Whose::HandedOver | Whose::GivenUp => Ok(Guest {
                whose: Whose::GivenUp,
                ..self
            }),
            Whose::Leaving | Whose::Paused | Whose::HandingOver => no(Kind::Busy, LEAVING),
            Whose::Arriving => no(Kind::Busy, ARRIVING),
            Whose::Saving | Whose::SavePaused => no(Kind::Busy, SAVING),
            Whose::Restoring => no(Kind::Busy, RESTORING),
            Whose::Incomplete => no(Kind::Busy, INCOMPLETE),
            Whose::Unanswered => no(Kind::State, UNANSWERED),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    guest: Guest,
    /// The number of the newest claim. Reports through older claims are ignored.
    claims: u64,
    /// Calls of `kick` in progress.
    kicks: u64,
}

/// Keeps vCPU threads waiting inside brant: a dirty log that limits what a vCPU may write.
pub(crate) trait KeepsWaiting: Send + Sync {
    /// Ends each wait at once. The VMM is about to be asked for these threads.
    fn end_waits(&self);
}

/// Who has the guest: one answer for all migrations, saves and restores of a guest object, which
/// exclude each other by it. Any thread.
#[derive(Default)]
pub struct Ownership {
    inner: Mutex<Inner>,
    /// A kick has ended.
    kicked: Condvar,
    /// Pages that have not arrived.
    left: AtomicU64,
    /// The guest is being sent ahead of its memory, which is still here.
    follows: AtomicBool,
    /// How often memory began to be filled from elsewhere.
    fills: AtomicU64,
    keep_waiting: Mutex<Vec<Weak<dyn KeepsWaiting>>>,
}

impl std::fmt::Debug for Ownership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ownership")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Ownership {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Who has the guest now.
    pub fn whose(&self) -> Whose {
        self.lock().guest.whose()
    }

    /// Makes `change` if it is allowed, and then waits for the kicks in progress if kicks are not
    /// allowed any more.
    fn change(&self, change: impl FnOnce(&mut Inner) -> Result<()>) -> Result<()> {
        let mut inner = self.lock();
        change(&mut inner)?;
        if !inner.guest.may_kick() {
            // The guest may be paused next, and a vCPU's thread must not be kept from it.
            drop(inner);
            self.end_waits();
            inner = self.lock();
        }
        while inner.kicks > 0 && !inner.guest.may_kick() {
            inner = self.kicked.wait(inner).unwrap_or_else(|e| e.into_inner());
        }
        Ok(())
    }

    fn claim(self: &Arc<Self>, begin: impl FnOnce(Guest) -> Result<Guest>) -> Result<Claim> {
        let mut number = 0;
        self.change(|inner| {
            inner.guest = begin(inner.guest).map_err(|e| self.with_left(inner.guest, e))?;
            inner.claims += 1;
            number = inner.claims;
            Ok(())
        })?;
        Ok(Claim {
            ownership: Arc::clone(self),
            number,
        })
    }

    /// An outgoing migration begins, if the guest is here and nothing else is going on with it.
    pub(crate) fn leave(self: &Arc<Self>) -> Result<Claim> {
        self.claim(Guest::leaves)
    }

    /// An incoming migration begins, if no guest is here and nothing else is going on.
    pub(crate) fn arrive(self: &Arc<Self>) -> Result<Claim> {
        let claim = self.claim(Guest::arrives)?;
        self.fills.fetch_add(1, Relaxed);
        Ok(claim)
    }

    /// A save begins, if the guest is here and nothing else is going on with it.
    pub(crate) fn save(self: &Arc<Self>) -> Result<Claim> {
        self.claim(Guest::is_saved)
    }

    /// A restore begins, if no guest is here and nothing else is going on.
    pub(crate) fn restore(self: &Arc<Self>) -> Result<Claim> {
        let claim = self.claim(Guest::is_restored)?;
        self.fills.fetch_add(1, Relaxed);
        Ok(claim)
    }

    /// How often memory began to be filled from elsewhere: by a migration that arrived, or a restore.
    pub(crate) fn fills(&self) -> u64 {
        self.fills.load(Relaxed)
    }

    /// The VMM says that the guest runs here: see `Guest::runs_here`.
    pub(crate) fn runs_here(&self) -> Result<()> {
        self.say(Guest::runs_here)
    }

    /// The VMM says that no other copy of the guest runs or ever will: it is here again.
    pub(crate) fn reclaim(&self) -> Result<()> {
        self.say(Guest::reclaimed)
    }

    /// The VMM says that the guest has ended here: another may arrive in its memory.
    pub(crate) fn give_up(&self) -> Result<()> {
        self.say(Guest::given_up)
    }

    /// Another process has the guest's memory from here on, or has said that it never ran the guest.
    /// The migration that holds the guest says this.
    pub(crate) fn memory_is_shared(&self, shared: bool) {
        self.lock().guest.shared = shared;
    }

    fn say(&self, word: impl FnOnce(Guest) -> Result<Guest>) -> Result<()> {
        self.change(|inner| {
            inner.guest = word(inner.guest).map_err(|e| self.with_left(inner.guest, e))?;
            Ok(())
        })
    }

    /// So many pages of the guest's memory have not arrived, for messages.
    pub(crate) fn set_left(&self, pages: u64) {
        self.left.store(pages, Relaxed);
    }

    /// From here on the guest's memory follows the guest to another place, or does not any more.
    pub(crate) fn memory_follows(&self, follows: bool) {
        self.follows.store(follows, Relaxed);
    }

    /// Whether blocks may come and go. `what` is what is to be done.
    ///
    /// # Errors
    /// [`Kind::Busy`] while memory has not arrived here, and while it follows the guest elsewhere: both
    /// sides have agreed on the pages that are missing.
    pub(crate) fn may_change_blocks(&self, what: &str) -> Result<()> {
        if self.follows.load(Relaxed) {
            let why =
                "the guest is being sent ahead of its memory (postcopy), and the memory follows it";
            return Err(refused(Kind::Busy, what, why));
        }
        self.is_whole(what)
    }

    /// Whether all of the guest's memory is here. `what` is what needs it.
    ///
    /// # Errors
    /// [`Kind::Busy`] with the number of pages that are missing.
    pub(crate) fn is_whole(&self, what: &str) -> Result<()> {
        let guest = self.lock().guest;
        match guest.whose() {
            Whose::Incomplete => Err(self.with_left(guest, refused(Kind::Busy, what, INCOMPLETE))),
            _ => Ok(()),
        }
    }

    /// `error` with the number of pages that are missing, if that is its reason.
    fn with_left(&self, guest: Guest, error: Error) -> Error {
        match guest.whose() {
            Whose::Incomplete => {
                let left = self.left.load(Relaxed);
                Error::new(
                    error.kind(),
                    format!("{}; {left} pages are left", error.message()),
                )
            }
            _ => error,
        }
    }

    /// Whether a vCPU's thread may be kept waiting: the guest is not being paused or kicked. Ask this
    /// under the lock that [`KeepsWaiting::end_waits`] takes. Then a wait that begins after a
    /// yes is ended by the next pause or kick.
    pub(crate) fn may_keep_waiting(&self) -> bool {
        let inner = self.lock();
        inner.kicks == 0 && inner.guest.may_kick()
    }

    /// Has the waits of `who` ended before each pause and kick, as long as it exists.
    pub(crate) fn ends_waits_of(&self, who: Weak<dyn KeepsWaiting>) {
        let mut all = self.waiters();
        all.retain(|other| other.strong_count() > 0);
        all.push(who);
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Weak<dyn KeepsWaiting>>> {
        self.keep_waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn end_waits(&self) {
        // No lock of this object is held meanwhile: those who wait ask `may_keep_waiting` under
        // theirs.
        let all: Vec<_> = self.waiters().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|who| who.end_waits());
    }

    /// Calls the VMM's `kick` if that is allowed now; else returns `None`. No migration pauses the
    /// guest while a `kick` is in progress.
    pub(crate) fn kick<R>(&self, kick: impl FnOnce() -> R) -> Option<R> {
        /// Counts down also when the VMM panics.
        struct Kicking<'a>(&'a Ownership);
        impl Drop for Kicking<'_> {
            fn drop(&mut self) {
                self.0.lock().kicks -= 1;
                self.0.kicked.notify_all();
            }
        }
        let kicking = {
            let mut inner = self.lock();
            if !inner.guest.may_kick() {
                return None;
            }
            inner.kicks += 1;
            Kicking(self)
        };
        self.end_waits();
        let result = kick();
        drop(kicking);
        Some(result)
    }
}

/// A migration's hold of a guest, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    ownership: Arc<Ownership>,
    number: u64,
}

impl Claim {
    /// The migration has come to `stage`. If the guest is paused in that stage, this returns when
    /// the kicks in progress have ended. Ignored once another claim on the guest was made.
    pub fn comes_to(&self, stage: Stage) {
        let _ = self.ownership.change(|inner| {
            if inner.claims == self.number {
                inner.guest = inner.guest.comes_to(stage);
            }
            Ok(())
        });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = self.ownership.change(|inner| {
            if inner.claims == self.number {
                inner.guest = inner.guest.let_go();
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests;
