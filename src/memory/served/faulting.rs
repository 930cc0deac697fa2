//! The thread that serves faults: it reads them, answers those of pages that are not absent, and
//! asks the supplier for the others. It waits for nothing but faults.

use super::placing::{Inner, Other};
use crate::error::{Error, Kind, Result};
use crate::fallible;
use crate::runtime::Cancel;
use crate::sys::event::{self, Poll, READABLE};
use crate::sys::uffd::Fault;
use crate::units::Pages;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a fault that could not be answered waits for the next attempt.
const AGAIN: Duration = Duration::from_millis(10);

/// Runs until `stop`. `changed` is raised when a userfaultfd was added.
pub(super) fn serve(inner: &Inner, stop: &Cancel, changed: &OwnedFd) {
    let mut asks = Asks::default();
    let mut again: Vec<(usize, Fault)> = Vec::new();
    let mut polls: Vec<Poll> = Vec::new();
    while !stop.is_cancelled() {
        let others = inner.others();
        polls.clear();
        let on = |fd| Poll::new(fd, READABLE);
        let coming = inner.supplier.coming().map_or(Poll::none(), on);
        let fds = [
            on(stop.fd()),
            on(changed.as_fd()),
            coming,
            on(inner.own.as_fd()),
        ];
        let all = fds
            .into_iter()
            .chain(others.iter().map(|it| on(it.faults.as_fd())));
        for poll in all {
            if fallible::push(&mut polls, poll, "descriptors").is_err() {
                // Those behind it are looked at in the next round.
                break;
            }
        }
        let limit = (!again.is_empty()).then_some(AGAIN);
        // After an error (a signal, no memory) every descriptor is looked at.
        let polled = event::poll(&mut polls, limit).is_ok();
        if polls.get(1).is_some_and(|it| it.found() != 0) {
            let _ = event::eventfd_take(changed.as_fd());
        }
        if !polled || polls.get(2).is_some_and(|it| it.found() != 0) {
            inner.supplier.came(inner);
        }
        for (source, fault) in std::mem::take(&mut again) {
            answer(inner, &others, source, &[fault], &mut asks, &mut again);
        }
        for source in 0..=others.len() {
            if polled && polls.get(3 + source).is_none_or(|it| it.found() == 0) {
                continue;
            }
            let fd = match source {
                0 => &inner.own,
                other => &others[other - 1].faults,
            };
            let mut faults = std::mem::take(&mut asks.faults);
            faults.clear();
            let read = fd.read(&mut faults);
            answer(inner, &others, source, &faults, &mut asks, &mut again);
            asks.faults = faults;
            if let Err(error) = read {
                inner.supplier.failed(&error);
                // Nothing is gained by asking a descriptor that fails again and again.
                stop.wait(AGAIN);
            }
        }
        asks.send(inner);
    }
}

/// Pages to ask for, in the order of their faults.
#[derive(Default)]
struct Asks {
    runs: Vec<(usize, Range<u64>)>,
    /// Room for the faults of one read.
    faults: Vec<Fault>,
}

impl Asks {
    fn add(&mut self, block: usize, pages: Range<u64>) -> Result<()> {
        match self.runs.last_mut() {
            Some((last, run)) if *last == block && run.end == pages.start => run.end = pages.end,
            _ => fallible::push(&mut self.runs, (block, pages), "faults")?,
        }
        Ok(())
    }

    fn send(&mut self, inner: &Inner) {
        let mut some = false;
        for (block, run) in self.runs.drain(..) {
            let pages = Pages(run.start)..Pages(run.end);
            let block = &inner.blocks[block].shared;
            if !inner.supplier.at_once(inner, block, &pages) {
                inner.supplier.wanted(block, pages);
                some = true;
            }
        }
        if some {
            inner.supplier.all_wanted();
        }
    }
}

/// Answers faults of one userfaultfd: 0 is our own. Those that cannot be answered now go to `again`.
fn answer(
    inner: &Inner,
    others: &[Arc<Other>],
    source: usize,
    faults: &[Fault],
    asks: &mut Asks,
    again: &mut Vec<(usize, Fault)>,
) {
    let now = Instant::now();
    for fault in faults {
        let found = match source {
            0 => inner.fault(fault, now),
            other => inner.fault_of(&others[other - 1], fault, now),
        };
        let asked = found.and_then(|found| match found {
            Some((block, pages)) => asks.add(block, pages.clone()).inspect_err(|_| {
                // It is asked for at once instead.
                asks.send(inner);
                let pages = Pages(pages.start)..Pages(pages.end);
                inner.supplier.wanted(&inner.blocks[block].shared, pages);
                inner.supplier.all_wanted();
            }),
            None => Ok(()),
        });
        if let Err(error) = asked {
            tell(inner, &error);
            if !matches!(error.kind(), Kind::Internal | Kind::Invalid) {
                let _ = fallible::push(again, (source, *fault), "faults");
            }
        }
    }
}

fn tell(inner: &Inner, error: &Error) {
    inner.supplier.failed(error);
}
