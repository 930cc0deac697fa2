//! The pages that a thread of the guest waits for, on their way to the urgent lane.
//!
//! The fault thread puts them here, and asks the source for all that there are at once, in as few
//! records as possible: by an [`Asker`], which never waits for the connection. What does not go at once
//! is left to the urgent lane's thread, and so is everything while there is no asker. A page is put here
//! once: the fault thread keeps a bit for each page that was asked for.

use crate::error::{Error, Result};
use crate::fallible;
use crate::memory::served::Supplier;
use crate::memory::{Block, BlockId};
use crate::migrate::callbacks::Callbacks;
use crate::migrate::incoming::asker::Asker;
use crate::runtime::Recall;
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{Record, Request, MISSING_PAGES_MAX, REQUEST_RUNS_MAX};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Some pages of one of the source's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::migrate::incoming) struct Wanted {
    /// The source's number of the block.
    pub(in crate::migrate::incoming) block: u32,
    pub(in crate::migrate::incoming) pages: Range<Pages>,
}

/// The requests, as the file's description says.
pub(in crate::migrate::incoming) struct Requests {
    /// The source's numbers of our blocks.
    numbers: HashMap<BlockId, u32>,
    wanted: Mutex<Vec<Wanted>>,
    /// The way to the source while there is a connection. Held while pages are taken out of `wanted` and
    /// asked for: pages that are wanted anew for a recovery must not go to the connection before it.
    asker: Mutex<Option<Asker>>,
    /// Raised when the urgent lane's thread has something to ask for, or to send.
    some: Recall,
    /// Whether some request was lost, because there was no memory for it or it could not be sent.
    lost: AtomicBool,
    vmm: Callbacks,
    /// Whether the VMM was told that a fault cannot be answered.
    told: AtomicBool,
}

impl Requests {
    /// Requests for pages of `blocks`, by the source's numbers of them.
    pub(in crate::migrate::incoming) fn new<'a>(
        blocks: impl Iterator<Item = (u32, &'a Arc<Block>)>,
        vmm: Callbacks,
    ) -> Result<Requests> {
        let mut numbers = HashMap::new();
        for (number, block) in blocks {
            fallible::insert(
                &mut numbers,
                block.id(),
                number,
                "blocks with missing pages",
            )?;
        }
        Ok(Requests {
            numbers,
            wanted: Mutex::default(),
            asker: Mutex::default(),
            some: Recall::new()?,
            lost: AtomicBool::new(false),
            vmm,
            told: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wanted>> {
        self.wanted.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn asker(&self) -> MutexGuard<'_, Option<Asker>> {
        self.asker.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// There is a connection to ask on.
    pub(in crate::migrate::incoming) fn ask_by(&self, asker: Asker) {
        *self.asker() = Some(asker);
    }

    /// Raised when the urgent lane's thread has something to ask for, or to send. [`Requests::take`]
    /// lowers it.
    pub(in crate::migrate::incoming) fn some(&self) -> &Recall {
        &self.some
    }

    /// All that is to be asked for, ascending. Of a page that is in the list twice, one stays.
    pub(in crate::migrate::incoming) fn take(&self) -> Vec<Wanted> {
        // Lowered before the list is taken: a page that comes in between raises it again.
        self.some.lower();
        let mut wanted = std::mem::take(&mut *self.lock());
        merge(&mut wanted);
        wanted
    }

    /// Whether a request was lost since the last call. All unanswered faults have to be asked for
    /// again then.
    pub(in crate::migrate::incoming) fn was_lost(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }

    /// Forgets what was not asked for yet. Called when the connections are gone.
    pub(in crate::migrate::incoming) fn clear(&self) {
        *self.asker() = None;
        self.lock().clear();
        self.some.lower();
    }
}

impl Supplier for Requests {
    fn wanted(&self, block: &Arc<Block>, pages: Range<Pages>) {
        let Some(number) = self.numbers.get(&block.id()) else {
            return;
        };
        let wanted = Wanted {
            block: *number,
            pages,
        };
        if fallible::push(&mut self.lock(), wanted, "requests for pages").is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    fn all_wanted(&self) {
        let asker = self.asker();
        let Some(asker) = &*asker else {
            return self.some.raise();
        };
        let wanted = self.take();
        match asked(&wanted).and_then(|records| asker.say(&records)) {
            Ok(true) if !self.lost.load(Ordering::Relaxed) => {}
            // The lane's thread waits for room, or has all asked for again. It may not have seen yet that a
            // request was lost: `take` has lowered what would wake it.
            Ok(_) => self.some.raise(),
            Err(_) => {
                self.lost.store(true, Ordering::Relaxed);
                self.some.raise();
            }
        }
    }

    fn failed(&self, error: &Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            self.vmm.event(
                EventKind::Warning,
                format!("a page fault of the guest cannot be answered at this moment: {error}"),
            );
        }
    }
}

/// The records that ask for `wanted`, which ascends.
pub(super) fn asked(wanted: &[Wanted]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for of_block in wanted.chunk_by(|one, next| one.block == next.block) {
        let mut runs: Vec<(Pages, u32)> = Vec::new();
        let block = of_block[0].block;
        let mut put = |runs: &mut Vec<(Pages, u32)>| {
            let runs = std::mem::take(runs);
            match runs.is_empty() {
                true => Ok(()),
                false => {
                    let record = Record::Request(Request { block, runs });
                    fallible::push(&mut records, record, "requests for pages")
                }
            }
        };
        for run in of_block {
            let mut at = run.pages.start;
            while at < run.pages.end {
                let end = run.pages.end.min(at + Pages(MISSING_PAGES_MAX.into()));
                fallible::push(&mut runs, (at, (end - at).0 as u32), "requested pages")?;
                if runs.len() == REQUEST_RUNS_MAX as usize {
                    put(&mut runs)?;
                }
                at = end;
            }
        }
        put(&mut runs)?;
    }
    Ok(records)
}

/// Sorts `wanted`, and makes one of runs that touch.
fn merge(wanted: &mut Vec<Wanted>) {
    wanted.sort_unstable_by_key(|it| (it.block, it.pages.start));
    wanted.dedup_by(|next, one| {
        let touch = next.block == one.block && next.pages.start <= one.pages.end;
        if touch {
            one.pages.end = one.pages.end.max(next.pages.end);
        }
        touch
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::dirty::testing::Guest;
    use std::os::unix::net::UnixStream;

    struct Nothing;

    impl crate::vmm::Vmm for Nothing {}

    fn wanted(block: u32, pages: Range<u64>) -> Wanted {
        Wanted {
            block,
            pages: Pages(pages.start)..Pages(pages.end),
        }
    }

    #[test]
    fn faults_become_few_runs_that_ascend_and_no_page_is_in_two() {
        let mut list = vec![
            wanted(3, 9..10),
            wanted(1, 4..5),
            wanted(3, 2..4),
            wanted(3, 10..12),
            wanted(3, 3..4),
            wanted(1, 4..5),
        ];
        merge(&mut list);
        assert_eq!(list, [wanted(1, 4..5), wanted(3, 2..4), wanted(3, 9..12)]);
    }

    #[test]
    fn a_page_that_is_wanted_raises_the_recall_until_it_is_taken() {
        let guest = Guest::new(8);
        guest.block("ram", 8);
        let block = Arc::clone(&guest.memory.map().blocks()[0]);
        let vmm = Callbacks::new(Arc::new(Nothing), 1);
        let requests = Requests::new([(77, &block)].into_iter(), vmm).unwrap();
        assert!(!requests.some().is_raised());
        requests.wanted(&block, Pages(3)..Pages(4));
        requests.wanted(&block, Pages(4)..Pages(5));
        assert!(!requests.some().is_raised());
        requests.all_wanted();
        assert!(requests.some().is_raised());
        assert_eq!(requests.take(), [wanted(77, 3..5)]);
        assert!(!requests.some().is_raised());
        assert_eq!(requests.take(), []);
        requests.wanted(&block, Pages(1)..Pages(2));
        requests.all_wanted();
        requests.clear();
        assert!(!requests.some().is_raised() && requests.take().is_empty());
    }

    #[test]
    fn a_lost_request_wakes_the_lanes_thread_whatever_is_asked_for_directly() {
        let guest = Guest::new(8);
        guest.block("ram", 8);
        let block = Arc::clone(&guest.memory.map().blocks()[0]);
        let vmm = Callbacks::new(Arc::new(Nothing), 1);
        let requests = Requests::new([(77, &block)].into_iter(), vmm).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let twin = Channel::from_fd(ours.into()).unwrap();
        requests.ask_by(Asker::new(twin, &Arc::default()));
        requests.wanted(&block, Pages(3)..Pages(4));
        requests.all_wanted();
        assert!(
            !requests.some().is_raised(),
            "asked for, and nobody is woken"
        );
        requests.lost.store(true, Ordering::Relaxed);
        requests.wanted(&block, Pages(4)..Pages(5));
        requests.all_wanted();
        assert!(requests.some().is_raised() && requests.was_lost());
    }

    fn runs(record: &Record) -> (u32, &[(Pages, u32)]) {
        match record {
            Record::Request(request) => (request.block, &request.runs),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_wanted_pages_of_a_block_are_asked_for_in_one_record() {
        let records = asked(&[wanted(1, 3..4), wanted(1, 9..12), wanted(5, 0..1)]).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(runs(&records[0]), (1, &[(Pages(3), 1), (Pages(9), 3)][..]));
        assert_eq!(runs(&records[1]), (5, &[(Pages(0), 1)][..]));
        assert!(asked(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_record_of_requests_never_exceeds_its_limits() {
        let many: Vec<Wanted> = (0..600).map(|i| wanted(1, 2 * i..2 * i + 1)).collect();
        let records = asked(&many).unwrap();
        let counts: Vec<usize> = records.iter().map(|r| runs(r).1.len()).collect();
        assert_eq!(counts, [256, 256, 88]);
        let most = u64::from(MISSING_PAGES_MAX);
        let records = asked(&[wanted(1, 5..5 + 2 * most + 7)]).unwrap();
        let lengths: Vec<u32> = runs(&records[0]).1.iter().map(|(_, n)| *n).collect();
        assert_eq!(lengths, [MISSING_PAGES_MAX, MISSING_PAGES_MAX, 7]);
        for record in records {
            record.encode(&mut Vec::new()).unwrap();
        }
    }
}
