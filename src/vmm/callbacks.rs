//! Calls into the VMM by whoever works on its guest: a migration, a save, a restore. A panic in one
//! becomes an error, and while it runs this thread is known to be inside it, so that waiting for the
//! caller from there is an error and not a deadlock.

use crate::error::{Error, Kind, Result};
use crate::runtime::thread::{catch, with_starters_mask};
use crate::vmm::{Event, EventKind, Vmm};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// Those whose callbacks this thread is in.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread is inside a callback of `owner`.
pub(crate) fn inside(owner: usize) -> bool {
    INSIDE.with_borrow(|list| list.contains(&owner))
}

/// An error instead of a deadlock.
pub(crate) fn check_not_inside(owner: usize, what: &str) -> Result<()> {
    if inside(owner) {
        return Err(Error::new(
            Kind::Callback,
            format!("{what} was called inside one of its own callbacks"),
        ));
    }
    Ok(())
}

pub(crate) struct Entered;

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

/// The VMM as `owner` calls it.
#[derive(Clone)]
pub(crate) struct Callbacks {
    vmm: Arc<dyn Vmm>,
    owner: usize,
}

impl Callbacks {
    pub(crate) fn new(vmm: Arc<dyn Vmm>, owner: usize) -> Self {
        Callbacks { vmm, owner }
    }

    /// Makes this thread count as inside for as long as the guard lives: the migration's own
    /// thread, from wherever it calls out.
    pub(crate) fn enter(&self) -> Entered {
        Entered::new(self.owner)
    }

    /// Calls one operation; its error is told as the VMM's, by name.
    pub(crate) fn call<T>(
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
    pub(crate) fn call_that_makes_threads<T>(
        &self,
        name: &str,
        operation: impl FnOnce(&dyn Vmm) -> Result<T>,
    ) -> Result<T> {
        with_starters_mask(|| self.call(name, operation))
    }

    pub(crate) fn event(&self, kind: EventKind, message: String) {
        let _entered = Entered::new(self.owner);
        // A panic in there is the VMM's own; the migration does not depend on it.
        let _ = catch(|| self.vmm.event(&Event { kind, message }));
    }

    /// A panic in there is an error too: the thread goes on only to say so.
    pub(crate) fn thread_start(&self, role: crate::vmm::Role) -> Result<()> {
        self.call("thread_start", |vmm| {
            vmm.thread_start(role);
            Ok(())
        })
    }
}
