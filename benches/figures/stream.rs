//! How much of the kernel's throughput brant reaches: 1 GiB that does not compress, over TCP on the
//! loopback, compared with plain send and receive calls of 1 MiB (`benches/bare.c`).
//!
//! Source and destination are two processes, the same two for both contenders, and both contenders
//! use the same memory, which was touched before. The clock (`CLOCK_MONOTONIC`, which all processes
//! share) starts at the source when the connection is made: for brant when copying begins, for the
//! bare sender before its first call. It stops at the destination when the last byte of memory is
//! in place. For brant that includes the sync and the pause of an idle guest, and the end marker.
//!
//! Over several connections, the number of connections stands behind the contender's name: brant's
//! channels, or as many bare streams, each with an equal part of the memory and a thread of its own.

use crate::memory::Ram;
use crate::report::{alternate, Report, Runs};
use brant::channel::Endpoint;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::{Blockers, ConnectTo, Incoming, Outgoing, PageChecksums, Params};
use brant::vmm::{Event, EventKind, Vmm};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LENGTH: usize = 1 << 30;
const RUNS: usize = 7;
pub const LONG: Duration = Duration::from_secs(120);

/// Nanoseconds of the clock that all processes share.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure, which is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Memory that is written everywhere, with numbers that depend on `seed`: touched, and incompressible.
pub fn filled(length: usize, seed: u64) -> Ram {
    let ram = Ram::new(length);
    fill(&ram, seed);
    ram
}

fn fill(ram: &Ram, seed: u64) {
    ram.write_all(|at| value(seed, at));
}

fn value(seed: u64, i: usize) -> u64 {
    let mut z = (i as u64 ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

/// A VMM whose guest does nothing, and which notes when each state began.
#[derive(Default)]
pub struct Idle(Mutex<Vec<(String, u64)>>);

impl Idle {
    /// When a state began.
    pub fn when(&self, state: &str) -> u64 {
        let states = self.0.lock().unwrap();
        let found = states.iter().find(|(name, _)| name == state);
        found
            .unwrap_or_else(|| panic!("no state {state} in {states:?}"))
            .1
    }
}

impl Vmm for Idle {
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
        if event.kind == EventKind::State {
            self.0.lock().unwrap().push((event.message.clone(), now()));
        }
    }
}

type BareSend = unsafe extern "C" fn(*const i32, usize, *const u8, usize) -> i32;
type BareReceive = unsafe extern "C" fn(*const i32, usize, *mut u8, usize) -> i32;

/// "brant 2" is brant with two channels, "bare" one bare stream.
fn streams(contender: &str) -> (&str, usize) {
    match contender.split_once(' ') {
        Some((name, count)) => (name, count.parse().unwrap()),
        None => (contender, 1),
    }
}

/// A function of the shared object made from `benches/bare.c`.
pub fn bare(name: &std::ffi::CStr) -> *mut libc::c_void {
    let path = std::env::var("BRANT_BARE").expect("BRANT_BARE, which make bench sets");
    let path = std::ffi::CString::new(path).unwrap();
    // SAFETY: two C strings; the object has no constructors.
    let found = unsafe { libc::dlsym(libc::dlopen(path.as_ptr(), libc::RTLD_NOW), name.as_ptr()) };
    assert!(!found.is_null(), "{name:?} is in {path:?}");
    found
}

/// The other process. For each line on its standard input it receives in the way that the line
/// says, and answers with the port and, at the end, with the time.
pub fn destination() {
    let touched = filled(LENGTH, 1);
    // From now on this kernel has as many free pages that the host has backed.
    drop(filled(LENGTH, 1));
    // The memory into which a cold contender received.
    let mut cold: Option<Ram> = None;
    println!("touched");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let how = match line.strip_prefix("cold ") {
            Some(how) => {
                cold = Some(Ram::new(LENGTH));
                how
            }
            None => &line,
        };
        let ram = cold.as_ref().unwrap_or(&touched);
        let (name, count) = streams(how);
        match name {
            "brant" => {
                let idle = Arc::new(Idle::default());
                let incoming = Incoming::new(
                    ram.guest(),
                    Arc::clone(&idle) as Arc<dyn Vmm>,
                    Params::default(),
                )
                .unwrap();
                let at = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
                match incoming.listen(&at).unwrap() {
                    Endpoint::Tcp(at) => println!("{}", at.port()),
                    _ => unreachable!(),
                }
                incoming.wait(Some(LONG)).unwrap();
                println!("{}", idle.when("loading"));
            }
            "bare" => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                println!("{}", listener.local_addr().unwrap().port());
                let accept = |_| listener.accept().unwrap().0;
                let peers: Vec<TcpStream> = (0..count).map(accept).collect();
                let fds: Vec<i32> = peers.iter().map(|peer| peer.as_raw_fd()).collect();
                // SAFETY: the function has this type in bare.c.
                let receive: BareReceive = unsafe { std::mem::transmute(bare(c"bare_receive")) };
                // SAFETY: the mapping, for its whole length.
                let error = unsafe { receive(fds.as_ptr(), count, ram.host(), LENGTH) };
                assert_eq!(error, 0);
                println!("{}", now());
            }
            seed => {
                let seed = seed.parse().unwrap();
                let arrived = ram.holds(|at| value(seed, at));
                assert!(arrived, "what was sent has arrived");
                // So that old contents cannot be taken for new ones.
                if cold.take().is_none() {
                    fill(&touched, 1);
                }
                println!("right");
            }
        }
    }
}

/// The other process, which ends when this is dropped.
pub struct Destination(Child, ChildStdin, BufReader<ChildStdout>);

impl Destination {
    /// Starts the process with `argument`.
    pub fn new(argument: &str) -> Destination {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut destination = Destination(child, stdin, stdout);
        assert_eq!(destination.answer(), "touched");
        destination
    }

    /// Sends a line.
    pub fn ask(&mut self, line: &str) {
        writeln!(self.1, "{line}").unwrap();
    }

    /// Waits for a line.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.2.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All figures of streaming.
pub fn measure(report: &mut Report) {
    // Into memory that was touched before, and into freshly mapped memory, in a kernel whose own
    // memory the host has backed.
    for (figure, contenders) in [
        ("stream.bare_fraction", ["brant", "bare"]),
        ("stream.bare2_fraction", ["brant 2", "bare 2"]),
        ("stream.cold_ratio", ["cold brant", "cold bare"]),
    ] {
        if !report.wants(figure) {
            continue;
        }
        if std::env::var_os("BRANT_BARE").is_none() {
            report.skipped(figure, "BRANT_BARE is not set; use make bench");
            continue;
        }
        let [brant, bare] = compare(contenders);
        report.compared(figure, "GB/s", &brant, "send and recv in C", &bare);
    }
    let figure = "stream.checksum_ratio";
    if report.wants(figure) {
        let [checked, plain] = compare(["checked brant", "brant"]);
        report.compared(figure, "GB/s", &checked, "without checksums", &plain);
    }
    // More channels than there are processors for are reported, and nothing is promised of them.
    for channels in [2, 4, 8, 16] {
        let figure = format!("stream.channels/{channels}");
        if report.wants(&figure) {
            let contender = format!("brant {channels}");
            let [many, one] = compare([contender.as_str(), "brant"]);
            report.compared(&figure, "GB/s", &many, "one channel", &one);
        }
    }
}

/// brant and the bare calls in turn, by the destination's names for them.
fn compare(contenders: [&str; 2]) -> [Runs; 2] {
    let mut destination = Destination::new("--stream-destination");
    let seed = 2;
    let ram = filled(LENGTH, seed);
    let memory = Arc::clone(&ram.memory);
    alternate(RUNS, |contender| {
        let begun;
        let how = contenders[contender];
        // The destination does what the source asks for.
        let (how, page_checksums) = match how.strip_prefix("checked ") {
            Some(how) => (how, PageChecksums::On),
            None => (how, PageChecksums::Off),
        };
        destination.ask(how);
        let port: u16 = destination.answer().parse().unwrap();
        let (name, count) = streams(how.trim_start_matches("cold "));
        if name == "brant" {
            // The guest that was handed over before is back, and its copy does not run.
            memory.reclaim().unwrap();
            let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
            let idle = Arc::new(Idle::default());
            let vmm = Arc::clone(&idle) as Arc<dyn Vmm>;
            let params = Params {
                page_checksums,
                channels: count as u32,
                ..Params::default()
            };
            let outgoing = Outgoing::new(tracker, Blockers::new(), vmm, params).unwrap();
            let to = Endpoint::Tcp(([127, 0, 0, 1], port).into());
            outgoing.start(ConnectTo::Endpoint(to)).unwrap();
            outgoing.wait(Some(LONG)).unwrap();
            begun = idle.when("copying");
        } else {
            let connect = |_| TcpStream::connect(("127.0.0.1", port)).unwrap();
            let to: Vec<TcpStream> = (0..count).map(connect).collect();
            let fds: Vec<i32> = to.iter().map(|to| to.as_raw_fd()).collect();
            // SAFETY: the function has this type in bare.c.
            let send: BareSend = unsafe { std::mem::transmute(bare(c"bare_send")) };
            begun = now();
            // SAFETY: the mapping, for its whole length.
            assert_eq!(unsafe { send(fds.as_ptr(), count, ram.host(), LENGTH) }, 0);
        }
        let end: u64 = destination.answer().parse().unwrap();
        destination.ask(&seed.to_string());
        assert_eq!(destination.answer(), "right");
        LENGTH as f64 / (end - begun) as f64
    })
}
