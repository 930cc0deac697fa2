//! Who uses pages of a block, and for how long: the counts that [`super::Memory::remove_block`]
//! looks at.
//!
//! Two kinds of use are told apart by how they end. A migration's thread ends its use within
//! milliseconds when it is asked to ([`super::PinRecall`]): a removal waits for it. A reader of
//! dirty pages ends its use when it is done, and brant cannot make it hurry: a removal that waited
//! for it would hang where reader and remover are one thread. So such a use is *held* under a name,
//! and a removal is refused as long as there is one.
//!
//! Between the look and the change of the map nobody may begin to hold: the block is *leaving*,
//! from when a removal has found nobody until it is through or refused. Whoever takes pages
//! meanwhile passes over the block.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Who holds pages, and how that ends: words for whoever may not remove the block.
#[derive(Debug)]
pub struct Holder {
    /// As in "`consumer 2` has taken pages of it".
    pub who: String,
    /// As in "and uses them until `it takes again`".
    pub until: &'static str,
}

/// The uses of one block.
#[derive(Debug, Default)]
pub(super) struct Uses {
    counts: Mutex<Counts>,
    none: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// All of them.
    pins: usize,
    /// How many of them each holder has.
    held: Vec<(Arc<Holder>, usize)>,
    leaving: bool,
    /// How many wait for the last use to end. Most uses end with nobody waiting, and waking nobody
    /// is a system call too.
    waiting: usize,
}

/// The most holders that one message names.
const NAMED: usize = 4;

impl Uses {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One more that ends when it is asked to.
    pub fn begin(&self) {
        self.lock().pins += 1;
    }

    /// One more of `holder`'s; `false` if the block is leaving.
    pub fn hold(&self, holder: &Arc<Holder>) -> Result<bool> {
        let mut counts = self.lock();
        if counts.leaving {
            return Ok(false);
        }
        match counts.of(holder) {
            Some(count) => *count += 1,
            None => fallible::push(
                &mut counts.held,
                (Arc::clone(holder), 1),
                "holders of a block",
            )?,
        }
        counts.pins += 1;
        Ok(true)
    }

    /// One more of the kind of one that is there.
    pub fn again(&self, holder: Option<&Arc<Holder>>) {
        let mut counts = self.lock();
        if let Some(count) = holder.and_then(|holder| counts.of(holder)) {
            *count += 1;
        }
        counts.pins += 1;
    }

    /// One less.
    pub fn end(&self, holder: Option<&Arc<Holder>>) {
        let mut counts = self.lock();
        if let Some(holder) = holder {
            if let Some(count) = counts.of(holder) {
                *count -= 1;
            }
            counts.held.retain(|(_, count)| *count > 0);
        }
        counts.pins -= 1;
        if counts.pins == 0 && counts.waiting > 0 {
            self.none.notify_all();
        }
    }

    /// From here on nobody begins to hold the block, until [`Uses::stays`].
    ///
    /// # Errors
    /// [`Kind::Busy`] with the names of those who hold pages of it.
    pub fn leaves(&self, block: &str) -> Result<()> {
        let mut counts = self.lock();
        if !counts.held.is_empty() {
            return Err(in_use(block, &counts.held));
        }
        counts.leaving = true;
        Ok(())
    }

    /// It is through, or refused.
    pub fn stays(&self) {
        self.lock().leaving = false;
    }

    /// Waits until there is none.
    pub fn wait(&self) {
        let mut counts = self.lock();
        counts.waiting += 1;
        let none = self.none.wait_while(counts, |counts| counts.pins > 0);
        none.unwrap_or_else(|e| e.into_inner()).waiting -= 1;
    }
}

impl Counts {
    fn of(&mut self, holder: &Arc<Holder>) -> Option<&mut usize> {
        let mut held = self.held.iter_mut();
        let one = held.find(|(other, _)| Arc::ptr_eq(other, holder));
        one.map(|(_, count)| count)
    }
}

fn in_use(block: &str, held: &[(Arc<Holder>, usize)]) -> Error {
    let named = held.iter().take(NAMED).map(|(holder, _)| {
        let Holder { who, until } = &**holder;
        format!("{who} has taken pages of it and uses them until {until}")
    });
    let mut named: Vec<String> = named.collect();
    if held.len() > NAMED {
        named.push(format!("{} more have pages of it", held.len() - NAMED));
    }
    Error::new(
        Kind::Busy,
        format!("block `{block}` is not removed: {}", named.join("; ")),
    )
}
