//! Which system call fails, and for which participant of a test.
//!
//! A [`Scope`] is one participant, for example the source of a migration. A thread belongs to a
//! scope while it is inside [`Scope::enter`]. The threads that it starts through
//! `runtime::thread::spawn` belong to the scope as well, each under its own role. Calls of threads
//! without a scope are not affected, so that tests can run side by side.
//!
//! A scope counts the calls of each role by name, and makes one of them fail: for example the third
//! `sendmsg` of `brant-migration`, with `ENOBUFS`. The next call works.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The planned result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call does nothing and fails with this errno.
    Error(i32),
    /// The call does its work and fails all the same, as a connect that a signal interrupts.
    Done(i32),
    /// The call moves at most this many bytes, at least one.
    Short(usize),
    /// The call finds the end of the stream.
    End,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |errno: i32| std::io::Error::from_raw_os_error(errno);
        match *self {
            Fault::Error(errno) => write!(f, "{}", name(errno)),
            Fault::Done(errno) => write!(f, "done, but {}", name(errno)),
            Fault::Short(bytes) => write!(f, "a count of {bytes}"),
            Fault::End => write!(f, "the end of the stream"),
        }
    }
}

/// One call of a role: its name, and its number among the calls of that name, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    /// The thread's role; [`CALLER`] for the thread that entered the scope.
    pub role: &'static str,
    /// The system call, or an ioctl's request.
    pub name: &'static str,
    /// How many calls of that name this role made before.
    pub number: u64,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.role, self.name, self.number)
    }
}

/// The role of a thread of the test's that calls into brant as a VMM does.
pub(crate) const CALLER: &str = "caller";

/// A participant of a test.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope(Arc<ScopeState>);

#[derive(Debug, Default)]
struct ScopeState {
    planned: Mutex<Option<(Call, Fault)>>,
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    fired: AtomicBool,
}

thread_local! {
    static HERE: RefCell<Option<(Scope, &'static str)>> = const { RefCell::new(None) };
}

impl Scope {
    /// Plans the call that has to fail. It replaces a planned call that has not come yet.
    pub(crate) fn plan(&self, call: Call, fault: Fault) {
        self.0.fired.store(false, Ordering::SeqCst);
        *lock(&self.0.planned) = Some((call, fault));
    }

    /// Whether the planned call has come and failed.
    pub(crate) fn fired(&self) -> bool {
        self.0.fired.load(Ordering::SeqCst)
    }

    /// The calls made so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let counts = lock(&self.0.counts);
        let each = |(&(role, name), &count): (&(_, _), &u64)| {
            (0..count).map(move |number| Call { role, name, number })
        };
        counts.iter().flat_map(each).collect()
    }

    /// Makes the calling thread belong to this scope while `body` runs.
    pub(crate) fn enter<T>(&self, body: impl FnOnce() -> T) -> T {
        self.enter_as(CALLER, body)
    }

    fn enter_as<T>(&self, role: &'static str, body: impl FnOnce() -> T) -> T {
        /// Ends that also if `body` panics.
        struct Leave(Option<(Scope, &'static str)>);
        impl Drop for Leave {
            fn drop(&mut self) {
                HERE.set(self.0.take());
            }
        }
        let _leave = Leave(HERE.replace(Some((self.clone(), role))));
        body()
    }

    fn next(&self, role: &'static str, name: &'static str) -> Option<Fault> {
        let number = {
            let mut counts = lock(&self.0.counts);
            let count = counts.entry((role, name)).or_default();
            std::mem::replace(count, *count + 1)
        };
        let call = Call { role, name, number };
        let (_, fault) = lock(&self.0.planned).take_if(|(planned, _)| *planned == call)?;
        self.0.fired.store(true, Ordering::SeqCst);
        Some(fault)
    }
}

/// Wraps the body of a thread that the calling one starts, so that it belongs to the same scope.
pub(in crate::sys) fn inherited<T>(
    role: &'static str,
    body: impl FnOnce() -> T,
) -> impl FnOnce() -> T {
    let scope = HERE.with_borrow(|here| here.as_ref().map(|(scope, _)| scope.clone()));
    move || match scope {
        Some(scope) => scope.enter_as(role, body),
        None => body(),
    }
}

/// The planned result of a call of that name on this thread; `None` for the real one.
pub(in crate::sys) fn next(name: &'static str) -> Option<Fault> {
    // The destructor of a thread-local may make calls too.
    let here = HERE.try_with(|here| here.try_borrow().ok()?.clone());
    let (scope, role) = here.ok().flatten()?;
    scope.next(role, name)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
