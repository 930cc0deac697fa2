//! A task: work on a thread of its own, which the VMM starts once, waits for and cancels. The task
//! holds the figures and the result.

use super::report::{State, Stats};
use crate::error::{Error, Kind, Result};
use crate::runtime::{spawn, Cancel, Join, Notify, Role};
use crate::vmm::callbacks::{check_not_inside, inside};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// The path of an image, which must not be empty.
///
/// # Errors
/// [`Kind::Invalid`] for an empty path.
pub(super) fn image_path(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        let what = "expected the path of an image, found an empty one";
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(path.to_owned())
}

struct Public {
    stats: Stats,
    error: Option<Error>,
    started: bool,
    over: bool,
}

/// See the file's description.
pub(super) struct Task {
    /// The task's name in messages.
    what: &'static str,
    pub(super) cancel: Cancel,
    pub(super) notify: Notify,
    public: Mutex<Public>,
    ended: Condvar,
    thread: Mutex<Option<Join<()>>>,
}

/// Wakes all waiting threads when it is dropped: the task's thread has done all its work.
pub(super) struct Ending<'a>(pub(super) &'a Task);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut public = self.0.lock();
        public.over = true;
        drop(public);
        self.0.ended.notify_all();
        self.0.notify.raise();
    }
}

impl Task {
    pub(super) fn new(what: &'static str) -> Result<Task> {
        Ok(Task {
            what,
            cancel: Cancel::new()?,
            notify: Notify::new()?,
            public: Mutex::new(Public {
                stats: Stats::default(),
                error: None,
                started: false,
                over: false,
            }),
            ended: Condvar::new(),
            thread: Mutex::new(None),
        })
    }

    /// A number that tells the task from others: its address, which an `Arc` keeps constant.
    pub(super) fn owner(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn lock(&self) -> MutexGuard<'_, Public> {
        self.public.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn thread(&self) -> MutexGuard<'_, Option<Join<()>>> {
        self.thread.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts the task, if it was not started before. `prepare` decides whether it may begin, and
    /// makes the value that `work` gets.
    pub(super) fn start<P: Send + 'static>(
        &self,
        prepare: impl FnOnce() -> Result<P>,
        work: impl FnOnce(P) + Send + 'static,
    ) -> Result<()> {
        check_not_inside(self.owner(), "start")?;
        let mut thread = self.thread();
        if self.lock().started {
            let what = format!("this {} was started before; make a new one", self.what);
            return Err(Error::new(Kind::State, what));
        }
        self.cancel.check("starting it")?;
        let prepared = prepare()?;
        self.lock().stats.state = State::Preparing;
        match spawn(Role::Snapshot, |_| (), move || work(prepared)) {
            Ok(spawned) => {
                *thread = Some(spawned);
                self.lock().started = true;
                Ok(())
            }
            Err(e) => {
                // The refused start leaves the task as it was.
                self.lock().stats.state = State::Idle;
                Err(e)
            }
        }
    }

    /// Cancels the task. Waits for its end unless this thread is inside an operation that the task
    /// called. The first cancel calls `wake`, which ends calls of devices that the task's thread is in.
    pub(super) fn cancel(&self, wake: impl FnOnce()) {
        if self.cancel.cancel() {
            wake();
        }
        if !inside(self.owner()) {
            self.wait_ended(None);
        }
    }

    pub(super) fn wait(&self, limit: Option<Duration>) -> Result<()> {
        check_not_inside(self.owner(), "wait")?;
        if self.thread().is_none() {
            let what = format!("this {} was not started", self.what);
            return Err(Error::new(Kind::State, what));
        }
        if !self.wait_ended(limit) {
            let what = format!("the {} is still going on", self.what);
            return Err(Error::new(Kind::Pending, what));
        }
        self.lock().error.clone().map_or(Ok(()), Err)
    }

    fn wait_ended(&self, limit: Option<Duration>) -> bool {
        if self.thread().is_none() {
            return true;
        }
        let public = self.lock();
        let going_on = |public: &mut Public| !public.over;
        match limit {
            None => {
                let waited = self.ended.wait_while(public, going_on);
                drop(waited.unwrap_or_else(|e| e.into_inner()));
                true
            }
            Some(limit) => {
                let waited = self.ended.wait_timeout_while(public, limit, going_on);
                !waited.unwrap_or_else(|e| e.into_inner()).1.timed_out()
            }
        }
    }

    /// Renews the figures and notifies the VMM.
    pub(super) fn publish(&self, stats: &Stats) {
        let mut public = self.lock();
        let error = public.stats.error;
        public.stats = Stats { error, ..*stats };
        drop(public);
        self.notify.raise();
    }

    /// The task ends with these figures.
    pub(super) fn ends(&self, stats: &Stats, error: Option<Error>) {
        let mut public = self.lock();
        public.stats = Stats {
            error: error.as_ref().map(Error::kind),
            state: match error {
                None => State::Completed,
                Some(_) => State::Failed,
            },
            ..*stats
        };
        public.error = error;
    }

    pub(super) fn stats(&self) -> Stats {
        self.lock().stats
    }

    pub(super) fn in_callback(&self) -> bool {
        inside(self.owner())
    }

    /// Cancels the task and joins its thread, when the VMM's object is dropped.
    pub(super) fn shut_down(&self, wake: impl FnOnce()) {
        self.cancel(wake);
        let thread = self.thread().take();
        if let Some(thread) = thread {
            if !inside(self.owner()) {
                let _ = thread.join();
            }
        }
    }
}
