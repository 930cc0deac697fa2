//! The uses of a block's pages: the counts that [`super::Memory::remove_block`] checks.
//!
//! Uses are of two kinds, by how they end. A thread of a migration ends its use within milliseconds
//! when asked to ([`super::PinRecall`]), and a removal waits for that. A reader of dirty pages ends
//! its use when it is done, and brant cannot make it hurry. If a removal waited for it, and reader
//! and remover are one thread, it would wait for ever. So such a use is *held* under a name, and a
//! removal is refused while there is one.
//!
//! Between this check and the change of the map no use may begin to hold the block. The block is
//! *leaving* then: from the moment when a removal has found no holder until it is done or refused.
//! A take passes over a block that is leaving.

use crate::error::{Error, Kind, Result};
use crate::fallible;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// A holder of pages, and how it ends its use: words for the error of a refused removal.
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
    /// The number of all uses.
    pins: usize,
    /// How many of them each holder has.
    held: Vec<(Arc<Holder>, usize)>,
    leaving: bool,
    /// How many threads wait for the last use to end. Most uses end while nobody waits, and a
    /// wake-up is a system call even then.
    waiting: usize,
}

/// The most holders that one message names.
const NAMED: usize = 4;

impl Uses {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Counts one more use that ends when it is asked to.
    pub fn begin(&self) {
        self.lock().pins += 1;
    }

    /// Counts one more use by `holder`. `false` if the block is leaving.
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

    /// Counts one more use of the same kind as one that exists.
    pub fn again(&self, holder: Option<&Arc<Holder>>) {
        let mut counts = self.lock();
        if let Some(count) = holder.and_then(|holder| counts.of(holder)) {
            *count += 1;
        }
        counts.pins += 1;
    }

    /// Counts one use less.
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

    /// From now on no use begins to hold the block, until [`Uses::stays`].
    ///
    /// # Errors
    /// [`Kind::Busy`] with the names of the holders of its pages.
    pub fn leaves(&self, block: &str) -> Result<()> {
        let mut counts = self.lock();
        if !counts.held.is_empty() {
            return Err(in_use(block, &counts.held));
        }
        counts.leaving = true;
        Ok(())
    }

    /// The removal is done, or was refused.
    pub fn stays(&self) {
        self.lock().leaving = false;
    }

    /// Waits until the block has no use.
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
