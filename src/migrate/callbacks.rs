//! Calls into the VMM: each is timed, a panic in it becomes an error, and while it runs this
//! thread is known to be inside it, so that waiting for the migration from there is an error
//! and not a deadlock.

use crate::error::{Error, Kind, Result};
use crate::runtime::thread::{catch, with_starters_mask};
use crate::vmm::{Event, EventKind, Vmm};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// The migrations whose callbacks this thread is in.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread is inside a callback of the migration `owner`.
pub(super) fn inside(owner: usize) -> bool {
    INSIDE.with_borrow(|list| list.contains(&owner))
}

/// An error instead of a deadlock.
pub(super) fn check_not_inside(owner: usize, what: &str) -> Result<()> {
    if inside(owner) {
        return Err(Error::new(
            Kind::Callback,
            format!("{what} was called inside one of this migration's own callbacks"),
        ));
    }
    Ok(())
}

pub(super) struct Entered;

impl Entered {
    fn new(owner: usize) -> Self {
        INSIDE.with_borrow_mut(|list| list.push(owner));
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        INSIDE.with_borrow_mut(|list| list.pop());
    }
}

/// The VMM as a migration calls it.
#[derive(Clone)]
pub(super) struct Callbacks {
    vmm: Arc<dyn Vmm>,
    owner: usize,
}

impl Callbacks {
    pub(super) fn new(vmm: Arc<dyn Vmm>, owner: usize) -> Self {
        Callbacks { vmm, owner }
    }

    /// Makes this thread count as inside for as long as the guard lives: the migration's own
    /// thread, from wherever it calls out.
    pub(super) fn enter(&self) -> Entered {
        Entered::new(self.owner)
    }

    /// Calls one operation; its error is told as the VMM's, by name.
    pub(super) fn call<T>(
        &self,
        name: &str,
        operation: impl FnOnce(&dyn Vmm) -> Result<T>,
    ) -> Result<T> {
        let _entered = Entered::new(self.owner);
        catch(|| operation(&*self.vmm))
            .and_then(|result| result)
            .map_err(|e| e.context(format_args!("`{name}`")).into_kind(Kind::Vmm))
    }

    /// [`Callbacks::call`] of an operation that may make threads which outlive it, vCPUs' above
    /// all: they get the signal mask of whoever started the migration.
    pub(super) fn call_that_makes_threads<T>(
        &self,
        name: &str,
        operation: impl FnOnce(&dyn Vmm) -> Result<T>,
    ) -> Result<T> {
        with_starters_mask(|| self.call(name, operation))
    }

    pub(super) fn event(&self, kind: EventKind, message: String) {
        let _entered = Entered::new(self.owner);
        // A panic in there is the VMM's own; the migration does not depend on it.
        let _ = catch(|| self.vmm.event(&Event { kind, message }));
    }

    /// A panic in there is an error too: the thread goes on only to say so.
    pub(super) fn thread_start(&self, role: crate::vmm::Role) -> Result<()> {
        self.call("thread_start", |vmm| {
            vmm.thread_start(role);
            Ok(())
        })
    }
}
