//! What is kept of a postcopy whose guest is whole here, until the VMM frees the migration: enough to
//! tell a source that recovers later that nothing is missing. See [`super::driver::answer`].

use super::agreed::Agreed;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Cancel, Join};
use crate::wire::{Hello, Record};
use std::sync::{Mutex, MutexGuard};

/// The session, as its last connections knew it.
#[derive(Debug, Clone)]
pub(super) struct Whole {
    /// The HELLO that opened the session, and the answer to it.
    pub(super) opening: Hello,
    pub(super) reply: Record,
    pub(super) agreed: Agreed,
    /// The number of the last recovery.
    pub(super) epoch: u32,
}

#[derive(Default)]
struct Kept {
    whole: Option<Whole>,
    /// A source is being answered: ends that.
    under_way: Option<Cancel>,
    thread: Option<Join<()>>,
}

/// See the file's description. Any thread.
#[derive(Default)]
pub(super) struct Late(Mutex<Kept>);

impl Kept {
    fn check_free(&self) -> Result<()> {
        if self.under_way.is_none() {
            return Ok(());
        }
        let what = "a source that recovers late is being answered";
        Err(Error::new(Kind::Busy, what))
    }
}

impl Late {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The guest is whole here.
    pub(super) fn keep(&self, whole: Whole) {
        self.lock().whole = Some(whole);
    }

    /// Whether a guest is whole here that came by postcopy.
    pub(super) fn is_whole(&self) -> bool {
        self.lock().whole.is_some()
    }

    /// Fails with `Busy` while a source is being answered.
    pub(super) fn check_free(&self) -> Result<()> {
        self.lock().check_free()
    }

    /// Starts the thread that `spawn` makes for an answer. [`Late::answered`] is the last that it calls.
    ///
    /// # Errors
    /// `State` when no guest came by postcopy, or it is not whole; `Busy` while a source is being
    /// answered; that of `spawn`.
    pub(super) fn begin(
        &self,
        spawn: impl FnOnce(Whole, Cancel) -> Result<Join<()>>,
    ) -> Result<()> {
        let mut kept = self.lock();
        let Some(whole) = kept.whole.clone() else {
            return Err(Error::new(
                Kind::State,
                "expected a migration that was switched to postcopy, and whose guest runs here",
            ));
        };
        kept.check_free()?;
        if let Some(thread) = kept.thread.take() {
            // It has ended, or does nothing more.
            let _ = thread.join();
        }
        let stop = Cancel::new()?;
        kept.thread = Some(spawn(whole, stop.clone())?);
        kept.under_way = Some(stop);
        Ok(())
    }

    /// The answer is over; `epoch`: it was given to the recovery of this number.
    pub(super) fn answered(&self, epoch: Option<u32>) {
        let mut kept = self.lock();
        kept.under_way = None;
        if let (Some(epoch), Some(whole)) = (epoch, &mut kept.whole) {
            whole.epoch = epoch;
        }
    }

    /// Ends an answer, and waits for its thread unless `here`: this is that thread.
    pub(super) fn end(&self, here: bool) {
        let thread = {
            let mut kept = self.lock();
            kept.whole = None;
            if let Some(stop) = &kept.under_way {
                stop.cancel();
            }
            kept.thread.take()
        };
        if let Some(thread) = thread.filter(|_| !here) {
            let _ = thread.join();
        }
    }
}
