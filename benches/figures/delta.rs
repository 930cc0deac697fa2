//! Changed pages: how fast they are encoded and how long the encodings are, beside an encoder in C
//! that compares a word at a time (`benches/xbzrle.c`).
//!
//! The pages are more than a processor's cache holds, as re-sent pages are. And a whole migration of
//! a guest with a hot set: the bytes on the link with deltas, over those without.

use crate::memory::Ram;
use crate::report::{alternate, Report, Runs};
use crate::stream::{bare, filled, LONG};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing, Params,
};
use brant::page::delta::{self, PAGE};
use brant::units::Bytes;
use brant::vmm::{Event, EventKind, Vmm};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const PAGES: usize = 16 << 10;
const RUNS: usize = 7;

type Encode = unsafe extern "C" fn(*const u8, *const u8, usize, *mut u8, usize) -> libc::c_long;

/// A way in which guests write: its name, how many places in a page, and how many bytes at each.
const CHANGES: [(&str, usize, usize); 8] = [
    ("none", 0, 0),
    ("1-byte", 1, 1),
    ("1-word", 1, 8),
    ("8-words", 8, 8),
    ("64-words", 64, 8),
    ("256-bytes", 256, 1),
    ("1-kib", 1, 1024),
    ("all", 1, PAGE),
];

/// Aligned to a cache line, as kept copies are.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Page([u8; PAGE]);

struct Pages {
    base: Vec<Page>,
    now: Vec<Page>,
}

impl Pages {
    fn new(places: usize, length: usize) -> Pages {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut base = vec![Page([0; PAGE]); PAGES];
        for page in &mut base {
            for word in page.0.chunks_exact_mut(8) {
                word.copy_from_slice(&random().to_le_bytes());
            }
        }
        let mut now = base.clone();
        for page in &mut now {
            for _ in 0..places {
                let at = random() as usize % (PAGE - length + 1) / length.min(8) * length.min(8);
                page.0[at..at + length].iter_mut().for_each(|b| *b = !*b);
            }
        }
        Pages { base, now }
    }
}

/// The processor time of this thread: encoding waits for nobody, and other work on the machine does
/// not count.
fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills one structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// All figures of changed pages.
pub fn measure(report: &mut Report) {
    encoding(report);
    hot_set(report);
}

fn encoding(report: &mut Report) {
    let wanted: Vec<_> = CHANGES
        .iter()
        .filter(|(name, ..)| {
            report.wants(&format!("delta.gbps/{name}"))
                || report.wants(&format!("delta.size/{name}"))
        })
        .collect();
    if wanted.is_empty() {
        return;
    }
    if std::env::var_os("BRANT_BARE").is_none() {
        return report.skipped("delta.gbps/", "BRANT_BARE is not set; use make bench");
    }
    // SAFETY: the function has this type in xbzrle.c.
    let theirs: Encode = unsafe { std::mem::transmute(bare(c"xbzrle_encode")) };
    for (name, places, length) in wanted {
        let pages = Pages::new(*places, *length);
        // What does not fit is sent as a page.
        let mut out = [0; PAGE];
        let mut sizes = [0; 2];
        let [ours, scalar]: [Runs; 2] = alternate(RUNS, |contender| {
            let begun = processor_time();
            let mut size = 0;
            for (base, page) in pages.base.iter().zip(&pages.now) {
                let length = match contender {
                    0 => delta::encode(&base.0, &page.0, &mut out),
                    // SAFETY: two pages, and room as long as is said.
                    _ => usize::try_from(unsafe {
                        theirs(
                            base.0.as_ptr(),
                            page.0.as_ptr(),
                            PAGE,
                            out.as_mut_ptr(),
                            PAGE,
                        )
                    })
                    .ok(),
                };
                size += length.unwrap_or(PAGE);
                std::hint::black_box(&mut out);
            }
            sizes[contender] = size;
            (PAGES * PAGE) as f64 / (processor_time() - begun).as_nanos() as f64
        });
        let peer = "a scalar encoder in C";
        report.compared(&format!("delta.gbps/{name}"), "GB/s", &ours, peer, &scalar);
        // An unchanged page is nothing to both.
        if sizes[1] > 0 {
            let [ours, theirs] = sizes.map(|size| Runs::of(size as f64 / PAGES as f64));
            report.compared(
                &format!("delta.size/{name}"),
                "B/page",
                &ours,
                peer,
                &theirs,
            );
        }
    }
}

/// The guest's memory, and its pages that are written between two passes: a word each.
const MEMORY: usize = 256 << 20;
const HOT: usize = 4096;
const PASSES: u32 = 12;

/// A VMM whose guest writes its hot set whenever a pass has ended.
struct Writes {
    /// The address of the memory.
    ram: usize,
    tracker: OnceLock<Arc<Tracker>>,
    round: AtomicU64,
}

impl Vmm for Writes {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        Ok(())
    }
    fn event(&self, event: &Event) {
        if event.kind != EventKind::Pass {
            return;
        }
        let round = self.round.fetch_add(1, Ordering::SeqCst);
        let tracker = self.tracker.get().unwrap();
        let block = tracker.memory().map().blocks()[0].id();
        for page in (0..HOT).map(|page| page * 11) {
            let at = page * PAGE + (round as usize * 8) % PAGE;
            // SAFETY: inside the memory, which outlives the migration.
            unsafe { (self.ram as *mut u64).byte_add(at).write_volatile(round) };
            tracker.mark_block(block, Bytes(at as u64), 8);
        }
    }
}

/// Switches over after so many passes.
struct After;

impl Decider for After {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let now = facts.moment == Moment::Synced && facts.pass >= PASSES;
        let expected = Duration::from_millis(1);
        match now {
            true => Next::SwitchOver { expected }.into(),
            false => Next::GoOn.into(),
        }
    }
}

/// The bytes that a migration takes.
fn migrated(ram: &Ram, there: &Ram, delta_cache_bytes: Option<u64>) -> f64 {
    let params = Params {
        delta_cache_bytes,
        ..Params::default()
    };
    let tracker = Tracker::new(ram.guest(), Clearing::default()).unwrap();
    let vmm = || {
        Arc::new(Writes {
            ram: ram.host() as usize,
            tracker: OnceLock::new(),
            round: AtomicU64::new(1),
        })
    };
    let (here, other) = (vmm(), vmm());
    let _ = here.tracker.set(Arc::clone(&tracker));
    let outgoing = Outgoing::new(tracker, Blockers::new(), here, params.clone()).unwrap();
    let incoming = Incoming::new(there.guest(), other, params).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    incoming.start(AcceptFrom::Connected(b.into())).unwrap();
    outgoing
        .start_with(ConnectTo::Connected(a.into()), Box::new(After))
        .unwrap();
    outgoing.wait(Some(LONG)).unwrap();
    incoming.wait(Some(LONG)).unwrap();
    outgoing.stats().wire_bytes as f64 / 1e6
}

fn hot_set(report: &mut Report) {
    if !report.wants("delta.sent_bytes") {
        return;
    }
    let (ram, there) = (filled(MEMORY, 1), filled(MEMORY, 2));
    // What every migration sends once.
    let once = MEMORY as f64 / 1e6;
    let [with, without]: [Runs; 2] = alternate(3, |contender| {
        let cache = [Some(64 << 20), None][contender];
        migrated(&ram, &there, cache) - once
    });
    report.compared("delta.sent_bytes", "MB", &with, "without deltas", &without);
}
