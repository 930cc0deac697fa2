//! Calls of the VMM's operations by a migration, a save or a restore: the *owner* of the call. A
//! panic in an operation becomes an error. While an operation runs, its thread is noted as inside
//! it. If the operation then waits for its owner, the wait is an error and not a deadlock.

use crate::error::{Error, Kind, Result};
use crate::runtime::probes;
use crate::runtime::thread::{catch, with_starters_mask};
use crate::vmm::{Event, EventKind, Vmm};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// The owners of the operations that this thread is inside of.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread is inside an operation that `owner` called.
pub(crate) fn inside(owner: usize) -> bool {
    INSIDE.with_borrow(|list| list.contains(&owner))
}

/// Refuses `what` where it would wait for its own caller: [`Kind::Callback`].
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

/// Hears of events beside the VMM. Must not wait.
pub(crate) trait Ear: Send + Sync {
    fn hears(&self, kind: EventKind, message: &str);
}

/// The VMM as `owner` calls it.
#[derive(Clone)]
pub(crate) struct Callbacks {
    vmm: Arc<dyn Vmm>,
    owner: usize,
    ear: Option<Arc<dyn Ear>>,
}

impl Callbacks {
    pub(crate) fn new(vmm: Arc<dyn Vmm>, owner: usize) -> Self {
        Callbacks {
            vmm,
            owner,
            ear: None,
        }
    }

    /// The same, whose events `ear` hears before the VMM.
    pub(crate) fn heard_by(self, ear: Arc<dyn Ear>) -> Self {
        Callbacks {
            ear: Some(ear),
            ..self
        }
    }

    /// Makes this thread count as inside an operation for as long as the guard lives.
    pub(crate) fn enter(&self) -> Entered {
        Entered::new(self.owner)
    }

    /// Calls one operation. Its error becomes the VMM's, with the operation's name.
    pub(crate) fn call<T>(
        &self,
        name: &str,
        operation: impl FnOnce(&dyn Vmm) -> Result<T>,
    ) -> Result<T> {
        let _entered = Entered::new(self.owner);
        probes::operation_begin(name);
        let result = catch(|| operation(&*self.vmm)).and_then(|result| result);
        probes::operation_end(name, result.is_err());
        result.map_err(|e| e.context(format_args!("`{name}`")).into_kind(Kind::Vmm))
    }

    /// [`Callbacks::call`] for an operation that may start threads which outlive it, such as vCPU
    /// threads. They inherit the signal mask of the thread that started the migration.
    pub(crate) fn call_that_makes_threads<T>(
        &self,
        name: &str,
        operation: impl FnOnce(&dyn Vmm) -> Result<T>,
    ) -> Result<T> {
        with_starters_mask(|| self.call(name, operation))
    }

    pub(crate) fn event(&self, kind: EventKind, message: String) {
        if let Some(ear) = &self.ear {
            ear.hears(kind, &message);
        }
        let _entered = Entered::new(self.owner);
        // A panic in the VMM's `event` is dropped: the migration does not depend on it.
        let _ = catch(|| self.vmm.event(&Event { kind, message }));
    }

    /// Calls the VMM's `thread_start`. A panic in it is an error, which the new thread reports
    /// before it ends.
    pub(crate) fn thread_start(&self, role: crate::vmm::Role) -> Result<()> {
        self.call("thread_start", |vmm| {
            vmm.thread_start(role);
            Ok(())
        })
    }
}
