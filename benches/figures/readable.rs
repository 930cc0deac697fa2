//! The cost of asking first whether pages can be read, before brant's own code reads them. It is
//! compared with a whole migration of the same pages, of which it is a part.
//!
//! There are two ways. `readable.share` is what a migration asks (`Contents::readable`: which pages
//! are holes, and one question a run if pages are present). `readable.each` lets the kernel read
//! each page (`access::readable`), which is for pages that are not present. The first way does more
//! than the check, because a migration has to know the holes in any case.
//!
//! Both are processor time of this process, which is source and destination, over a socket pair, so
//! other load on the machine counts for neither. Memory was touched before on both sides.

use crate::kinds::Made;
use crate::memory::{Idle, Ram, PAGE};
use crate::report::{alternate, Report};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::access;
use brant::memory::contents::Contents;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::Pages;
use brant::vmm::Vmm;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const PAGES: usize = 128 << 10;
const RUNS: usize = 7;
const LONG: Duration = Duration::from_secs(120);

/// Seconds for which processors have worked for this process.
fn processor() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure, which is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// One side's memory, every `step`th page of which is written.
struct Side {
    ram: Ram,
    step: usize,
}

impl Side {
    fn new(made: Made, huge: bool, step: usize) -> Side {
        let ram = Ram::of(made, PAGES * PAGE);
        if huge {
            // SAFETY: advice about the object's own mapping.
            unsafe { libc::madvise(ram.host().cast(), ram.length(), libc::MADV_HUGEPAGE) };
        }
        let written = (0..PAGES).step_by(step);
        written.for_each(|page| ram.write(page, page as u64 + 1));
        Side { ram, step }
    }

    /// Seconds to ask about every written page, in the runs that a migration reads: page by page,
    /// or run by run.
    fn ask(&self, each: bool) -> f64 {
        let mut contents = Contents::new();
        let map = self.ram.memory.map();
        let block = &map.blocks()[0];
        let begun = processor();
        for stretch in (0..PAGES as u64).step_by(512) {
            if !each {
                contents.refresh();
                let range = Pages(stretch)..Pages(stretch + 512);
                contents.readable(block, range).unwrap();
                continue;
            }
            let run = if self.step == 1 { 512 } else { 1 };
            for page in (stretch..stretch + 512).step_by(self.step.max(run as usize)) {
                access::readable(block, Pages(page)..Pages(page + run)).unwrap();
            }
        }
        processor() - begun
    }

    /// Seconds to migrate it.
    fn send(&self, to: &Side) -> f64 {
        // The guest of the turn before is back, and its copy has ended.
        self.ram.memory.reclaim().unwrap();
        to.ram.memory.give_up().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let vmm = || Arc::new(Idle) as Arc<dyn Vmm>;
        let memory = Arc::clone(&to.ram.memory);
        let incoming = Incoming::new(memory, vmm(), Params::default()).unwrap();
        let tracker = Tracker::new(Arc::clone(&self.ram.memory), Clearing::default()).unwrap();
        let outgoing = Outgoing::new(tracker, Blockers::new(), vmm(), Params::default()).unwrap();
        incoming.start(AcceptFrom::Connected(there.into())).unwrap();
        let begun = processor();
        outgoing.start(ConnectTo::Connected(here.into())).unwrap();
        outgoing.wait(Some(LONG)).unwrap();
        incoming.wait(Some(LONG)).unwrap();
        processor() - begun
    }
}

/// All figures of asking first.
pub fn measure(report: &mut Report) {
    for (kind, made, huge, step) in [
        ("anonymous", Made::Anonymous, false, 1),
        ("huge", Made::Anonymous, true, 1),
        ("memfd", Made::Memfd, false, 1),
        ("every 8th page", Made::Anonymous, false, 8),
    ] {
        let (share, each) = (
            format!("readable.share/{kind}"),
            format!("readable.each/{kind}"),
        );
        if !report.wants(&share) && !report.wants(&each) {
            continue;
        }
        let ours = || Side::new(made, huge, step);
        let (from, to) = (ours(), ours());
        let [run, page, sending] = alternate(RUNS, |contender| match contender {
            0 => from.ask(false),
            1 => from.ask(true),
            _ => from.send(&to),
        });
        report.compared(&share, "s", &run, "the migration", &sending);
        report.compared(&each, "s", &page, "the migration", &sending);
    }
}
