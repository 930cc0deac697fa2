//! How long a guest stands still at the switch to postcopy, by its memory and by what is missing,
//! beside an ordinary switchover of the same guest with nothing to send.
//!
//! The memory is reserved. The missing pages are scattered; of them as many as [`TOUCHED`] has were
//! written at the source and sent before, so the destination has to throw them away.

use crate::memory::{Idle, Ram, Random, PAGE};
use crate::report::{alternate, Report, Runs};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Facts, Incoming, Moment, Next, Outgoing,
    Params,
};
use brant::vm_memory::GuestAddress;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const FAMILY: &str = "postcopy.blackout";
const RUNS: usize = 3;
/// Bytes that are touched at most, at either side.
const TOUCHED: usize = 1 << 30;
const LONG: Duration = Duration::from_secs(300);

/// Ends the first pass by a switchover, or marks pages and switches to postcopy.
struct Switches {
    tracker: Arc<Tracker>,
    /// A bit for each page that is written again; `None` switches over.
    missing: Option<Arc<Vec<u64>>>,
    pages: u64,
    marked: bool,
}

impl Decider for Switches {
    fn decide(&mut self, facts: &Facts) -> Decision {
        if facts.moment != Moment::Synced || facts.pass < 2 {
            return Next::GoOn.into();
        }
        let Some(missing) = &self.missing else {
            let expected = Duration::ZERO;
            return Next::SwitchOver { expected }.into();
        };
        if !self.marked {
            self.tracker
                .mark_words(GuestAddress(0), missing, self.pages);
            self.marked = true;
        }
        let why = "the benchmark wants it";
        Next::Postcopy { why }.into()
    }
}

/// The downtime of one migration, in milliseconds.
fn downtime(source: &Ram, missing: Option<&Arc<Vec<u64>>>) -> f64 {
    let there = Ram::new(source.length());
    let params = Params {
        postcopy: true,
        downtime_limit: Duration::from_secs(30),
        downtime_slack: LONG,
        ..Params::default()
    };
    let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
    let decider = Box::new(Switches {
        tracker: Arc::clone(&tracker),
        missing: missing.cloned(),
        pages: source.pages() as u64,
        marked: false,
    });
    let pairs = (0..2).map(|_| UnixStream::pair().unwrap());
    let (near, far) = pairs.map(|(a, b)| (a.into(), b.into())).unzip();
    let inc = Incoming::new(Arc::clone(&there.memory), Arc::new(Idle), params.clone()).unwrap();
    let out = Outgoing::new(tracker, Blockers::new(), Arc::new(Idle), params).unwrap();
    inc.start(AcceptFrom::ConnectedAll(far)).unwrap();
    out.start_with(ConnectTo::ConnectedAll(near), decider)
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let stats = out.stats();
    assert_eq!(stats.urgent_pages + stats.bulk_pages > 0, missing.is_some());
    drop((out, inc));
    source.memory.reclaim().unwrap();
    stats.downtime.unwrap().as_secs_f64() * 1e3
}

/// The figures of the switch.
pub fn measure(report: &mut Report) {
    for gib in [1, 16] {
        for percent in [1, 50] {
            let name = format!("{FAMILY}/{gib}GiB-{percent}%");
            if !report.wants(&name) {
                continue;
            }
            let source = Ram::new(gib << 30);
            let count = source.pages() / 100 * percent;
            let mut missing = vec![0u64; source.pages() / 64];
            let mut pages = Random(88172645463325252).shuffled(source.pages());
            pages.truncate(count);
            pages
                .iter()
                .for_each(|page| missing[page / 64] |= 1 << (page % 64));
            pages.truncate(TOUCHED / PAGE);
            pages.into_iter().for_each(|page| source.fill(page));
            let missing = Arc::new(missing);
            let [ours, theirs]: [Runs; 2] = alternate(RUNS, |contender| match contender {
                0 => downtime(&source, Some(&missing)),
                _ => downtime(&source, None),
            });
            report.compared(&name, "ms", &ours, "nothing missing", &theirs);
        }
    }
}
