//! Reasons why a guest can be neither migrated nor saved now. The VMM gives each and withdraws it.

use crate::error::{Error, Kind, Result};
use std::sync::{Arc, Mutex, Weak};

#[derive(Debug, Default)]
struct List {
    next: u64,
    reasons: Vec<(u64, String)>,
}

/// The reasons of one guest, for its migrations and its saves. May be used on any thread.
///
/// ```
/// use brant::error::Kind;
/// use brant::migrate::Blockers;
///
/// let blockers = Blockers::new();
/// let reason = blockers.block("the disk is local");
/// assert_eq!(blockers.check().unwrap_err().kind(), Kind::Blocked);
/// drop(reason);
/// assert!(blockers.check().is_ok());
/// ```
#[derive(Debug, Default, Clone)]
pub struct Blockers(Arc<Mutex<List>>);

/// A reason that counts until this is dropped.
#[derive(Debug)]
pub struct Blocker {
    list: Weak<Mutex<List>>,
    number: u64,
}

impl Blockers {
    /// No reasons.
    pub fn new() -> Self {
        Blockers::default()
    }

    /// Adds a reason. While it counts, no migration and no save starts. A migration or save that is
    /// running fails with it before it would pause the guest. One that has paused the guest goes
    /// on.
    pub fn block(&self, reason: &str) -> Blocker {
        let mut list = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let number = list.next;
        list.next += 1;
        list.reasons.push((number, reason.to_owned()));
        Blocker {
            list: Arc::downgrade(&self.0),
            number,
        }
    }

    /// [`Kind::Blocked`] with every reason, if there is any.
    pub fn check(&self) -> Result<()> {
        let list = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if list.reasons.is_empty() {
            return Ok(());
        }
        let reasons: Vec<&str> = list.reasons.iter().map(|(_, r)| r.as_str()).collect();
        Err(Error::new(
            Kind::Blocked,
            format!(
                "the guest can be neither migrated nor saved: {}",
                reasons.join("; ")
            ),
        ))
    }
}

impl Blocker {
    /// Lets the reason count as long as the guest exists.
    pub fn keep(mut self) {
        self.list = Weak::new();
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        if let Some(list) = self.list.upgrade() {
            let mut list = list.lock().unwrap_or_else(|e| e.into_inner());
            list.reasons.retain(|(n, _)| *n != self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_guest_is_refused_with_every_reason_until_each_is_taken_back() {
        let blockers = Blockers::new();
        blockers.check().unwrap();
        let disk = blockers.block("the disk is local");
        let gpu = blockers.block("a GPU is passed through");
        let error = blockers.check().unwrap_err();
        assert_eq!(error.kind(), Kind::Blocked);
        assert!(error
            .message()
            .contains("the disk is local; a GPU is passed through"));
        drop(disk);
        assert!(!blockers.check().unwrap_err().message().contains("disk"));
        drop(gpu);
        blockers.check().unwrap();
    }

    #[test]
    fn a_reason_that_is_kept_stands_without_a_handle() {
        let blockers = Blockers::new();
        blockers.block("a device is passed through").keep();
        assert_eq!(blockers.check().unwrap_err().kind(), Kind::Blocked);
    }
}
