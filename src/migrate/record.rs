//! A migration recorded as JSON lines on a descriptor: its figures at an interval, and each event. For
//! pictures, and for who wants to know afterwards what happened.
//!
//! **A recording never holds up its migration.** The migration's threads put events into a bounded list,
//! and a thread of the recording's own reads the figures and writes. When nobody reads the other end, lines
//! wait in a bounded buffer, and then lines are dropped and counted. A descriptor that fails ends the
//! recording, and nothing else.
//!
//! | file | what |
//! |---|---|
//! | here | beginning, the thread, the end |
//! | `lines` | the lines as text; pure |
//! | `outlet` | whole lines on a descriptor, without waiting for its reader |
//! | `params` | what a recording is asked for, and what became of it |
//! | `tape` | events that wait to be written |

mod lines;
mod outlet;
mod params;
mod tape;

use super::callbacks::{check_not_inside, inside, Callbacks};
use super::handle::Handle;
use super::report::Stats;
use super::state::Side;
use crate::error::{Error, Kind, Result};
use crate::runtime::thread::{catch, spawn, Join, Role};
use crate::runtime::{Cancel, Deadline};
use crate::sys::fd;
use lines::Line;
use outlet::Outlet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tape::Tape;

pub(super) use params::Frame;
pub use params::{RecordParams, Recorded, RECORD_VERSION, RECORD_WHAT_MAX};

/// How long the end of a recording waits for a reader that takes nothing.
const FLUSH: Duration = Duration::from_secs(1);

/// A migration, as its recording sees it.
pub(super) trait Recordable: Send + Sync + 'static {
    type State: Side;

    fn handle(&self) -> &Handle<Self::State>;
    fn callbacks(&self) -> Callbacks;
    fn record(&self) -> &Record;
    fn frame(&self) -> Frame;
}

struct Running {
    stop: Cancel,
    /// `None`: it is being ended, and its thread is waited for.
    thread: Option<Join<Recorded>>,
}

/// The recording of a migration, if there is one.
#[derive(Default)]
pub(super) struct Record {
    tape: Arc<Tape>,
    running: Mutex<Option<Running>>,
}

impl Record {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Hears the migration's events.
    pub(super) fn ear(&self) -> Arc<Tape> {
        Arc::clone(&self.tape)
    }
}

/// Begins to record a migration to `to`.
pub(super) fn begin<M: Recordable>(of: &Arc<M>, to: OwnedFd, params: RecordParams) -> Result<()> {
    params.check()?;
    if !fd::is_writable(to.as_fd()) && !fd::is_write_only(to.as_fd()) {
        let found = fd::what_is(to.as_fd());
        let why =
            format!("expected a descriptor that is open for writing, found {found} that is not");
        return Err(Error::new(Kind::Invalid, why));
    }
    let mut running = of.record().running();
    if running.is_some() {
        let why = "this migration is recorded already; end that recording before";
        return Err(Error::new(Kind::Exists, why));
    }
    let begun = Instant::now();
    let mut outlet = Outlet::new(to);
    outlet.add(&lines::begin(&params))?;
    let stop = Cancel::new()?;
    of.record().tape.open();
    let (ours, stopped) = (Arc::clone(of), stop.clone());
    let body = move || run(&*ours, begun, outlet, params.interval, &stopped);
    match spawn(Role::Record, |_| (), body) {
        Ok(thread) => {
            let thread = Some(thread);
            *running = Some(Running { stop, thread });
            Ok(())
        }
        Err(e) => {
            of.record().tape.close();
            Err(e)
        }
    }
}

/// Ends the recording of a migration, when what is known by now is written.
pub(super) fn end<M: Recordable>(of: &M) -> Result<Recorded> {
    check_not_inside(of.handle().owner(), "the end of a recording")?;
    let taken = of.record().running().as_mut().and_then(|running| {
        let thread = running.thread.take()?;
        Some((running.stop.clone(), thread))
    });
    let Some((stop, thread)) = taken else {
        return Err(Error::new(Kind::State, "this migration is not recorded"));
    };
    stop.cancel();
    of.handle().look_again();
    let done = thread.join();
    // Until here no other recording begins: the thread takes events, and at its end closes the tape.
    *of.record().running() = None;
    done
}

/// Ends a recording when its migration is dropped.
pub(super) fn shut_down<M: Recordable>(of: &M) {
    if inside(of.handle().owner()) {
        // The thread ends by itself, because the migration is over or will be.
        if let Some(running) = of.record().running().take() {
            running.stop.cancel();
        }
    } else {
        let _ = end(of);
    }
}

/// The body of a recording's thread.
fn run<M: Recordable>(
    of: &M,
    begun: Instant,
    mut to: Outlet,
    interval: Duration,
    stop: &Cancel,
) -> Recorded {
    let announced = catch(|| of.callbacks().thread_start(Role::Record)).and_then(|told| told);
    let result = announced.and_then(|()| {
        let mut before = None;
        loop {
            // Asked first, so that the figures below are the last ones.
            let over = of.handle().is_over();
            let ends = over || stop.is_cancelled();
            write_down(of, begun, &mut to, &mut before)?;
            if over {
                to.add(&lines::end(
                    begun,
                    of.handle().error().as_ref(),
                    to.dropped(),
                ))?;
            }
            if ends {
                return to.flush(Deadline::after(FLUSH));
            }
            to.push()?;
            of.handle().wait_over_or(interval, stop);
        }
    });
    of.record().tape.close();
    to.settle(result.err())
}

/// Adds what is new: events, and figures that have changed.
fn write_down<M: Recordable>(
    of: &M,
    begun: Instant,
    to: &mut Outlet,
    before: &mut Option<Stats>,
) -> Result<()> {
    let (heard, lost) = of.record().tape.take();
    to.lost(lost);
    for event in heard {
        to.add(&Line::event(begun, &event))?;
    }
    let frame = of.frame();
    let same = Stats {
        elapsed: Duration::ZERO,
        ..frame.stats
    };
    if before.as_ref() == Some(&same) {
        return Ok(());
    }
    *before = Some(same);
    to.add(&lines::stats(begun, &frame, to.dropped()))
}

#[cfg(test)]
mod tests;
