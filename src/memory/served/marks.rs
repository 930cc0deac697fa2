//! The marks of one block's pages: absent, placing, waiting.
//!
//! All marks of a part of the block change under one lock, so each change is one step: a fault that
//! finds its page absent has set *waiting* before anybody can make the page present, and whoever
//! makes it present finds that mark. No lock is held during a system call.

use crate::bits::Stretches;
use crate::error::Result;
use crate::fallible;
use crate::units::{Pages, STRETCH_PAGES};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// Locks of a block. Parts of the block share them in turn.
const LOCKS: u64 = 64;

/// See the file's description. Any thread.
#[derive(Debug)]
pub(super) struct Marks {
    absent: Stretches,
    placing: Stretches,
    waiting: Stretches,
    /// Pages whose marks change under one lock: a stretch, or a host page that is larger.
    part: u64,
    locks: Vec<Mutex<()>>,
}

/// What a fault has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The page is not absent.
    Here,
    /// The page is absent, and this fault is the first for it: ask the supplier.
    First,
    /// The page is absent, and was asked for, or is being filled.
    Coming,
}

/// Pages that are no longer absent.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// How many.
    pub(super) pages: u64,
    /// Those that a thread waits for.
    pub(super) waited: Vec<Range<u64>>,
    /// Threads wait for more pages in here, of which there was no memory for a list. Pages in between
    /// may be absent.
    pub(super) among: Option<Range<u64>>,
}

impl Arrived {
    fn add(&mut self, run: Range<u64>) {
        if let Some(last) = self.waited.last_mut().filter(|it| it.end == run.start) {
            last.end = run.end;
            return;
        }
        let added = fallible::push(&mut self.waited, run.clone(), "pages that threads wait for");
        if added.is_err() {
            let among = self.among.get_or_insert(run.clone());
            among.end = run.end;
        }
    }
}

impl Marks {
    /// The pages in `absent` are absent. `unit` is the size of a host page.
    pub(super) fn new(absent: Stretches, unit: Pages) -> Result<Marks> {
        let len = absent.len();
        Ok(Marks {
            placing: Stretches::new(len)?,
            waiting: Stretches::new(len)?,
            absent,
            part: unit.0.max(STRETCH_PAGES),
            locks: fallible::collect((0..LOCKS).map(|_| Mutex::new(())), "locks of a block")?,
        })
    }

    /// Whether a page is absent.
    pub(super) fn is_absent(&self, page: u64) -> bool {
        self.absent.is_set(page as usize)
    }

    /// The first run of absent pages in `range`.
    pub(super) fn next_absent(&self, range: Range<u64>) -> Option<Range<u64>> {
        next(&self.absent, range)
    }

    /// The first run of absent pages in `range` that a thread waits for.
    pub(super) fn next_waiting(&self, range: Range<u64>) -> Option<Range<u64>> {
        next(&self.waiting, range)
    }

    /// A thread waits for a host page.
    pub(super) fn fault(&self, unit: Range<u64>) -> Found {
        let _lock = self.lock(unit.start);
        if self.next_absent(unit.clone()).is_none() {
            return Found::Here;
        }
        let (start, count) = (unit.start as usize, (unit.end - unit.start) as usize);
        let asked = self.waiting.is_set(start);
        self.waiting.set_range(start, count);
        match asked || self.placing.is_set(start) {
            true => Found::Coming,
            false => Found::First,
        }
    }

    /// The first pages of `range` that are absent and that nobody places, at most those of one part
    /// of the block. From now on the caller places them. `None`: there are no more.
    pub(super) fn claim(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / self.part + 1) * self.part);
            let _lock = self.lock(at);
            if let Some(run) = self.next_free(at..end) {
                set(&self.placing, &run);
                return Some(run);
            }
            at = end;
        }
        None
    }

    /// Claimed pages are here.
    pub(super) fn placed(&self, range: Range<u64>) -> Arrived {
        let mut arrived = Arrived::default();
        self.parts(range, |part| {
            clear(&self.placing, &part);
            arrived.pages += part.end - part.start;
            self.arrive(&part, &mut arrived);
        });
        arrived
    }

    /// Claimed pages could not be placed, and are absent as before.
    pub(super) fn give_back(&self, range: Range<u64>) {
        self.parts(range, |part| clear(&self.placing, &part));
    }

    /// Those pages of `range` that are absent and that nobody places are no longer absent, without
    /// anything being written: they read as zero. The caller gives the pages to those who wait.
    pub(super) fn skip(&self, range: Range<u64>) -> Arrived {
        let mut arrived = Arrived::default();
        self.parts(range, |part| {
            let mut at = part.start;
            while let Some(run) = self.next_free(at..part.end) {
                at = run.end;
                arrived.pages += run.end - run.start;
                self.arrive(&run, &mut arrived);
            }
        });
        arrived
    }

    fn arrive(&self, run: &Range<u64>, arrived: &mut Arrived) {
        let mut at = run.start;
        while let Some(waited) = self.next_waiting(at..run.end) {
            at = waited.end;
            arrived.add(waited);
        }
        clear(&self.absent, run);
        clear(&self.waiting, run);
    }

    /// The first run of pages that are absent and not being placed.
    fn next_free(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        loop {
            let absent = self.next_absent(at..range.end)?;
            match next(&self.placing, absent.clone()) {
                None => return Some(absent),
                Some(placing) if placing.start > absent.start => {
                    return Some(absent.start..placing.start)
                }
                Some(placing) => at = placing.end,
            }
        }
    }

    /// Calls `each` with every part of `range`, under the part's lock.
    fn parts(&self, range: Range<u64>, mut each: impl FnMut(Range<u64>)) {
        let mut at = range.start;
        let end = range.end.min(self.absent.len() as u64);
        while at < end {
            let part = at..end.min((at / self.part + 1) * self.part);
            let _lock = self.lock(at);
            at = part.end;
            each(part);
        }
    }

    fn lock(&self, page: u64) -> MutexGuard<'_, ()> {
        let lock = &self.locks[(page / self.part % LOCKS) as usize];
        lock.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn set(bits: &Stretches, run: &Range<u64>) {
    bits.set_range(run.start as usize, (run.end - run.start) as usize);
}

fn clear(bits: &Stretches, run: &Range<u64>) {
    bits.clear_range(run.start as usize, (run.end - run.start) as usize);
}

fn next(bits: &Stretches, range: Range<u64>) -> Option<Range<u64>> {
    let run = bits.next_run(range.start as usize..range.end as usize)?;
    Some(run.start as u64..run.end as u64)
}
