//! A save that still needs contents of guest memory, and whom discards wait for ([`super::discard`]).

use crate::error::Result;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// A save that still needs contents of guest memory.
pub(crate) trait NeedsContents: Send + Sync {
    /// Waits until the memory at these addresses of the process is not needed any more.
    fn let_go_of(&self, memory: &Range<u64>) -> Result<()>;
}

/// At most one save of a guest is in progress.
#[derive(Default)]
pub(super) struct Needed(Mutex<Option<Weak<dyn NeedsContents>>>);

impl Needed {
    fn lock(&self) -> MutexGuard<'_, Option<Weak<dyn NeedsContents>>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn get(&self) -> Option<Arc<dyn NeedsContents>> {
        self.lock().as_ref().and_then(Weak::upgrade)
    }

    pub(super) fn set(&self, who: Weak<dyn NeedsContents>) {
        *self.lock() = Some(who);
    }
}
