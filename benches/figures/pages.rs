//! The cost of pages that are not in long runs of data, in 2 GiB of memory. Touched zero pages are
//! compared with one vector pass that reads them. Every second, sixteenth and sixty-fourth page is
//! compared with a bare `writev` of the same pages, received in blocks of 256 (`benches/bare.c`).
//!
//! The processes and the clock are those of `stream`. Scattered pages are the last that were
//! written: the VMM's `pause` reports them, so they are the last pass, and the clock starts when
//! `pause` returns.

use crate::memory::Ram;
use crate::report::{alternate, Report, Runs};
use crate::stream::{bare, filled, now, Destination, Idle, LONG};
use brant::channel::Endpoint;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::Bytes;
use brant::vmm::{Event, Vmm};
use std::io::BufRead;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

const LENGTH: usize = 2 << 30;
const PAGE: usize = 4096;
const RUNS: usize = 7;
const STRIDES: [usize; 3] = [2, 16, 64];

type ReadZeros = unsafe extern "C" fn(*const u8, usize) -> usize;
type SendPages = unsafe extern "C" fn(i32, *const u8, usize, usize) -> i32;
type ReceivePages = unsafe extern "C" fn(i32, *mut u8, usize, usize) -> i32;

/// The other process.
pub fn destination() {
    // SAFETY: the function has this type in bare.c.
    let receive: ReceivePages = unsafe { std::mem::transmute(bare(c"bare_receive_pages")) };
    let touched = filled(LENGTH, 1);
    println!("touched");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        let (peer, _) = listener.accept().unwrap();
        let end = match line.split_once(' ') {
            Some(("bare", stride)) => {
                let stride: usize = stride.parse().unwrap();
                // SAFETY: the mapping, for its whole length.
                let failed = unsafe { receive(peer.as_raw_fd(), touched.host(), LENGTH, stride) };
                assert_eq!(failed, 0);
                now()
            }
            _ => {
                let idle = Arc::new(Idle::default());
                let vmm = Arc::clone(&idle) as Arc<dyn Vmm>;
                let fresh;
                let ram = match line.as_str() {
                    "zeros" => {
                        fresh = Ram::new(LENGTH);
                        &fresh
                    }
                    _ => &touched,
                };
                let incoming = Incoming::new(ram.guest(), vmm, Params::default()).unwrap();
                incoming
                    .start(AcceptFrom::Connected(OwnedFd::from(peer)))
                    .unwrap();
                incoming.wait(Some(LONG)).unwrap();
                idle.when("loading")
            }
        };
        println!("{end}");
    }
}

/// A VMM whose guest has written pages at its pause.
struct Writes {
    idle: Idle,
    tracker: OnceLock<Arc<Tracker>>,
    /// The distance of the written pages; 0 for none.
    stride: usize,
    paused: AtomicU64,
}

impl Vmm for Writes {
    fn pause(&self) -> brant::Result<()> {
        if self.stride > 0 {
            let tracker = self.tracker.get().unwrap();
            let block = tracker.memory().map().blocks()[0].id();
            for page in (0..LENGTH / PAGE).step_by(self.stride) {
                tracker.mark_block(block, Bytes((page * PAGE) as u64), PAGE as u64);
            }
        }
        self.paused.store(now(), Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn event(&self, event: &Event) {
        self.idle.event(event);
    }
}

/// Sends `ram`. Returns when it began, and when the measured part began.
fn send(ram: &Ram, port: u16, stride: usize) -> [u64; 2] {
    let tracker = Tracker::new(ram.guest(), Clearing::default()).unwrap();
    let vmm = Arc::new(Writes {
        idle: Idle::default(),
        tracker: OnceLock::new(),
        stride,
        paused: AtomicU64::new(0),
    });
    let _ = vmm.tracker.set(Arc::clone(&tracker));
    let theirs = Arc::clone(&vmm) as Arc<dyn Vmm>;
    let params = Params {
        // Up to 1 GiB is written at the pause: more than the usual limit has time for.
        downtime_limit: LONG,
        ..Params::default()
    };
    let outgoing = Outgoing::new(tracker, Blockers::new(), theirs, params).unwrap();
    let to = Endpoint::Tcp(([127, 0, 0, 1], port).into());
    outgoing.start(ConnectTo::Endpoint(to)).unwrap();
    outgoing.wait(Some(LONG)).unwrap();
    [vmm.idle.when("copying"), vmm.paused.load(Ordering::SeqCst)]
}

/// All figures of such pages.
pub fn measure(report: &mut Report) {
    let scattered: Vec<(String, usize)> = STRIDES
        .iter()
        .map(|stride| (format!("scatter.bare_fraction/{stride}"), *stride))
        .filter(|(name, _)| report.wants(name))
        .collect();
    if !report.wants("zero.scan_fraction") && scattered.is_empty() {
        return;
    }
    if std::env::var_os("BRANT_BARE").is_none() {
        return report.skipped(
            "zero.scan_fraction",
            "BRANT_BARE is not set; use make bench",
        );
    }
    let mut destination = Destination::new("--pages-destination");
    if report.wants("zero.scan_fraction") {
        // SAFETY: the function has this type in bare.c.
        let read: ReadZeros = unsafe { std::mem::transmute(bare(c"bare_read_zeros")) };
        let ram = Ram::new(LENGTH);
        ram.write_all(|_| 0);
        let [brant, pass]: [Runs; 2] = alternate(RUNS, |contender| {
            let took = if contender == 0 {
                destination.ask("zeros");
                let port = destination.answer().parse().unwrap();
                let [begun, _] = send(&ram, port, 0);
                destination.answer().parse::<u64>().unwrap() - begun
            } else {
                let begun = now();
                // SAFETY: the mapping, for its whole length.
                assert_eq!(unsafe { read(ram.host(), LENGTH) }, LENGTH);
                now() - begun
            };
            LENGTH as f64 / took as f64
        });
        report.compared(
            "zero.scan_fraction",
            "GB/s",
            &brant,
            "a pass of reading",
            &pass,
        );
    }
    if scattered.is_empty() {
        return;
    }
    // SAFETY: the function has this type in bare.c.
    let bare_send: SendPages = unsafe { std::mem::transmute(bare(c"bare_send_pages")) };
    // The first pass sends everything, and is not measured.
    let ram = filled(LENGTH, 2);
    for (name, stride) in scattered {
        let bytes = (LENGTH / PAGE).div_ceil(stride) * PAGE;
        let [brant, bare]: [Runs; 2] = alternate(RUNS, |contender| {
            let begun;
            if contender == 0 {
                destination.ask("scattered");
                let port = destination.answer().parse().unwrap();
                [_, begun] = send(&ram, port, stride);
            } else {
                destination.ask(&format!("bare {stride}"));
                let port: u16 = destination.answer().parse().unwrap();
                let to = TcpStream::connect(("127.0.0.1", port)).unwrap();
                begun = now();
                // SAFETY: the mapping, for its whole length.
                let failed = unsafe { bare_send(to.as_raw_fd(), ram.host(), LENGTH, stride) };
                assert_eq!(failed, 0);
            }
            let end: u64 = destination.answer().parse().unwrap();
            bytes as f64 / (end - begun) as f64
        });
        report.compared(&name, "GB/s", &brant, "writev and readv in C", &bare);
    }
}
