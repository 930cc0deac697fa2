//! Strangers at a listener. Whoever connects without being a source neither ends the wait nor
//! delays it, and a real migration succeeds beside each of them.

use crate::support::guest::differences;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer;
use crate::support::time::LONG;
use brant::channel::Endpoint;
use brant::error::{Kind, Result};
use brant::migrate::{Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::vmm::EventKind;
use brant::wire::{Header, Hello, Record, HEADER_LEN};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A real source waits ten seconds for its answer. A silent stranger once held the listener for as
/// long, so the delay of one stranger would show.
const SOON: Duration = Duration::from_secs(5);

fn params() -> Params {
    Params {
        switchover_bandwidth: Some(1 << 30),
        ..Params::default()
    }
}

fn pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 700)]);
    pair.source.fill(5);
    pair
}

fn incoming(pair: &Pair) -> Incoming {
    let memory = Arc::clone(&pair.destination.memory);
    Incoming::new(memory, Arc::clone(&pair.to) as _, params()).unwrap()
}

fn outgoing(pair: &Pair) -> Outgoing {
    let tracker = Arc::clone(&pair.source.tracker);
    let vmm = Arc::clone(&pair.from) as _;
    Outgoing::new(tracker, Blockers::new(), vmm, params()).unwrap()
}

/// A connection of either kind.
trait Stream: Read + Write + Send {
    fn end(&self);
}
impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}
impl Stream for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

fn call(at: &Endpoint) -> std::io::Result<Box<dyn Stream>> {
    Ok(match at {
        Endpoint::Tcp(at) => {
            let stream = TcpStream::connect(at)?;
            stream.set_read_timeout(Some(LONG))?;
            stream.set_write_timeout(Some(LONG))?;
            Box::new(stream)
        }
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(LONG))?;
            stream.set_write_timeout(Some(LONG))?;
            Box::new(stream)
        }
        other => panic!("{other} is nowhere that these tests listen"),
    })
}

fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).unwrap();
    bytes
}

fn hello() -> Vec<u8> {
    bytes(&Record::Hello(opening()))
}

fn opening() -> Hello {
    Hello {
        software: "a stranger".into(),
        ..peer::hello()
    }
}

/// Calls `each` with a listener's address of each kind.
fn at_each_kind_of_address(each: impl Fn(&Endpoint)) {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [
        Endpoint::parse("tcp:127.0.0.1:0").unwrap(),
        Endpoint::Unix(dir.path().join("s")),
    ] {
        each(&endpoint);
    }
}

/// A whole migration, with `strangers` connected before its source and until its end.
fn migrates_beside<T>(what: &str, endpoint: &Endpoint, strangers: impl FnOnce(&Endpoint) -> T) {
    let pair = pair();
    let inc = incoming(&pair);
    let at = inc.listen(endpoint).unwrap();
    let strangers = strangers(&at);
    let begun = Instant::now();
    let out = outgoing(&pair);
    out.start(ConnectTo::Endpoint(at.clone())).unwrap();
    let left = out.wait(Some(LONG));
    let arrived = inc.wait(Some(LONG));
    let took = begun.elapsed();
    drop(strangers);
    println!("{what} at {at}: {took:?}");
    left.unwrap_or_else(|e| panic!("{what} at {at}: the source: {e}"));
    arrived.unwrap_or_else(|e| panic!("{what} at {at}: the destination: {e}"));
    assert!(took < SOON, "{what} at {at}: {took:?}");
    pair.assert_sound(what);
    pair.destination.pause();
    let differ = differences(&pair.source, &pair.destination);
    assert_eq!(differ, Vec::<String>::new(), "{what} at {at}");
}

/// Connections that say something and then only stay.
fn stay(at: &Endpoint, count: usize, say: &[u8]) -> Vec<Box<dyn Stream>> {
    let one = || {
        let mut stream = call(at).unwrap();
        // It may be closed by now.
        let _ = stream.write_all(say);
        stream
    };
    (0..count).map(|_| one()).collect()
}

#[test]
fn silent_strangers_delay_nothing_however_many_there_are() {
    at_each_kind_of_address(|endpoint| {
        for count in [1, 2, 300] {
            migrates_beside(&format!("{count} silent"), endpoint, |at| {
                stay(at, count, b"")
            });
        }
    });
}

#[test]
fn a_port_scanner_ends_nothing() {
    at_each_kind_of_address(|endpoint| {
        migrates_beside("one byte, and gone", endpoint, |at| {
            drop(stay(at, 20, b"x"));
        });
        migrates_beside("one byte", endpoint, |at| stay(at, 20, b"x"));
        migrates_beside("nothing, and gone", endpoint, |at| drop(stay(at, 20, b"")));
        migrates_beside("no more to say", endpoint, |at| {
            let strangers = stay(at, 20, b"");
            strangers.iter().for_each(|s| s.end());
            strangers
        });
        migrates_beside("a web browser", endpoint, |at| {
            stay(at, 3, b"GET / HTTP/1.1\r\nHost: vm\r\n\r\n")
        });
    });
}

#[test]
fn half_a_hello_and_what_is_none_end_nothing() {
    let whole = hello();
    let mut flipped = whole.clone();
    flipped[9] ^= 4;
    let mut lies = whole.clone();
    // Versions 9 to 1.
    lies[HEADER_LEN] = 9;
    let sealed = Header {
        count: crc32fast::hash(&lies[HEADER_LEN..]),
        ..Header::decode(whole[..HEADER_LEN].try_into().unwrap()).unwrap()
    };
    lies[..HEADER_LEN].copy_from_slice(&sealed.encode());
    let mut long = Header::decode(whole[..HEADER_LEN].try_into().unwrap()).unwrap();
    long.payload = 1 << 30;
    let long = long.encode().to_vec();
    // Connections of a session that was not opened here.
    let second = bytes(&Record::Hello(Hello {
        channel: 1,
        channels: 2,
        ..opening()
    }));
    let urgent = bytes(&Record::Hello(Hello {
        channel: 1,
        channels: 2,
        role: brant::wire::ROLE_URGENT,
        ..opening()
    }));
    let cases: [(&str, &[u8]); 8] = [
        ("a second channel", &second),
        ("an urgent channel", &urgent),
        ("half a header", &whole[..16]),
        ("a header", &whole[..HEADER_LEN]),
        ("all but a byte", &whole[..whole.len() - 1]),
        ("a flipped bit", &flipped),
        ("a HELLO that lies", &lies),
        ("a HELLO of a GiB", &long),
    ];
    at_each_kind_of_address(|endpoint| {
        for (what, say) in cases {
            migrates_beside(what, endpoint, |at| stay(at, 3, say));
            migrates_beside(what, endpoint, |at| drop(stay(at, 3, say)));
        }
        let other = bytes(&Record::LayoutOk);
        migrates_beside("another record", endpoint, |at| stay(at, 3, &other));
    });
}

/// Threads that do something again and again until this is dropped.
struct Again {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Again {
    fn new(threads: usize, at: &Endpoint, act: fn(&Endpoint)) -> Again {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let again = || {
            let (stop, done, at) = (Arc::clone(&stop), Arc::clone(&done), at.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    act(&at);
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let threads = (0..threads).map(|_| again()).collect();
        let begun = Instant::now();
        while done.load(Ordering::SeqCst) < 20 {
            assert!(begun.elapsed() < LONG, "no stranger gets in");
            std::thread::yield_now();
        }
        Again { stop, threads }
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

#[test]
fn strangers_that_connect_all_the_time_keep_nobody_out() {
    at_each_kind_of_address(|endpoint| {
        migrates_beside("connects and closes", endpoint, |at| {
            Again::new(2, at, |at| drop(call(at)))
        });
        migrates_beside("connects and talks", endpoint, |at| {
            Again::new(2, at, |at| {
                if let Ok(mut stream) = call(at) {
                    let _ = stream.write_all(&[0x55; 5000]);
                }
            })
        });
    });
}

#[test]
fn of_a_stranger_that_talks_without_end_little_is_read() {
    at_each_kind_of_address(|endpoint| {
        let pair = pair();
        let inc = incoming(&pair);
        let at = inc.listen(endpoint).unwrap();
        let mut stream = call(&at).unwrap();
        let mut written = 0;
        // The connection is closed with bytes unread. As many bytes as a socket holds can be sent.
        while stream.write_all(&[0x55; 1 << 16]).is_ok() {
            written += 1 << 16;
            assert!(written < 256 << 20, "{at}: it is read on and on");
        }
        assert_eq!(inc.stats().wire_bytes, 0);
        inc.cancel().unwrap();
    });
}

#[test]
fn somebody_who_speaks_the_protocol_is_told_what_was_wrong_and_so_is_the_vmm() {
    at_each_kind_of_address(|endpoint| {
        let pair = pair();
        let inc = incoming(&pair);
        let at = inc.listen(endpoint).unwrap();
        let mut stream = call(&at).unwrap();
        stream.write_all(&bytes(&Record::LayoutOk)).unwrap();
        let mut head = [0; HEADER_LEN];
        stream.read_exact(&mut head).unwrap();
        let header = Header::decode(&head).unwrap();
        let mut payload = vec![0; header.payload as usize];
        stream.read_exact(&mut payload).unwrap();
        let Record::Abort(abort) = Record::decode(&header, &payload).unwrap() else {
            panic!("no ABORT");
        };
        assert_eq!(abort.reason, "expected HELLO, found LAYOUT_OK");
        // The warning comes before the stranger's connection is closed, or right after.
        let begun = Instant::now();
        while pair.to.events(EventKind::Warning).is_empty() {
            assert!(begun.elapsed() < LONG, "the VMM is not told");
            std::thread::yield_now();
        }
        let told = pair.to.events(EventKind::Warning).remove(0);
        assert!(told.contains("expected HELLO, found LAYOUT_OK"), "{told}");
        assert_eq!(inc.stats().error, None);
        inc.cancel().unwrap();
    });
}

#[test]
fn a_cancel_beside_strangers_is_prompt() {
    at_each_kind_of_address(|endpoint| {
        let pair = pair();
        let inc = incoming(&pair);
        let at = inc.listen(endpoint).unwrap();
        let _silent = stay(&at, 100, b"x");
        let _more = Again::new(1, &at, |at| drop(call(at)));
        let begun = Instant::now();
        inc.cancel().unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(inc.wait(None).unwrap_err().kind(), Kind::Cancelled);
    });
}

#[test]
fn after_a_migration_that_failed_the_same_address_can_be_listened_at_at_once() {
    at_each_kind_of_address(|endpoint| {
        let pair = pair();
        let inc = incoming(&pair);
        let at = inc.listen(endpoint).unwrap();
        // A whole HELLO begins a session, and this one ends.
        let mut stream = call(&at).unwrap();
        stream.write_all(&hello()).unwrap();
        let mut head = [0; HEADER_LEN];
        stream.read_exact(&mut head).unwrap();
        drop(stream);
        let error = inc.wait(Some(LONG)).unwrap_err();
        assert!(matches!(error.kind(), Kind::PeerGone | Kind::Io), "{error}");
        // The same guest and the same address, port included.
        migrates_again(&pair, &at);
    });
}

fn migrates_again(pair: &Pair, at: &Endpoint) {
    let inc = incoming(pair);
    assert_eq!(inc.listen(at).unwrap(), *at);
    let out = outgoing(pair);
    out.start(ConnectTo::Endpoint(at.clone())).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.destination.pause();
    let differ = differences(&pair.source, &pair.destination);
    assert_eq!(differ, Vec::<String>::new());
}

// --- without descriptors ------------------------------------------------------------------------

const CHILD: &str = "BRANT_STRANGERS_CHILD";

/// Sets how many descriptors this process may have. Returns the earlier limit.
fn descriptors(most: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a structure on this stack frame.
    assert_eq!(
        // SAFETY: the kernel fills the structure, which outlives the call.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) },
        0
    );
    let before = limit.rlim_cur;
    limit.rlim_cur = most;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    before
}

/// How many descriptors this process has.
fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A descriptor with the lowest number that is free.
fn duplicate() -> libc::c_int {
    // SAFETY: duplicates standard input.
    let fd = unsafe { libc::dup(0) };
    assert!(fd > 0);
    fd
}

/// The lowest number above those of all descriptors, and descriptors with all free numbers below
/// it. A limit on descriptors is one on their numbers: with a limit below the number of a
/// connection, closing that connection would let nobody else in.
fn first_above_all() -> (libc::c_int, Vec<OwnedFd>) {
    let names = std::fs::read_dir("/proc/self/fd").unwrap();
    let number = |name: std::ffi::OsString| name.to_str()?.parse::<libc::c_int>().ok();
    let numbers = names.filter_map(|entry| number(entry.unwrap().file_name()));
    let highest = numbers.max().unwrap();
    let mut filled = Vec::new();
    loop {
        // SAFETY: made just now, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(duplicate()) };
        if fd.as_raw_fd() > highest {
            return (fd.as_raw_fd(), filled);
        }
        filled.push(fd);
    }
}

/// The destination's process, which has a limit on descriptors of its own. It reports what it does,
/// one line each.
#[test]
fn the_process_without_descriptors() {
    let Ok(silent) = std::env::var(CHILD) else {
        return;
    };
    let pair = pair();
    let inc = incoming(&pair);
    let at = inc
        .listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
        .unwrap();
    let silent: usize = silent.parse().unwrap();
    let before = open();
    // A number that is free below those of the strangers' connections, as it can be by chance.
    let hole = duplicate();
    let strangers = stay(&at, silent, b"");
    // Both ends of each connection are in this process.
    let begun = Instant::now();
    while open() < before + 1 + 2 * silent {
        assert!(begun.elapsed() < LONG, "the strangers are not let in");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: made above, and used by nobody else.
    unsafe { libc::close(hole) };
    let (free, _filled) = first_above_all();
    let before = descriptors(free as libc::rlim_t);
    println!("\nlistening {at}");
    let begun = Instant::now();
    while pair.to.events(EventKind::Warning).is_empty() {
        assert!(begun.elapsed() < LONG, "no warning came");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("\nshort {}", pair.to.events(EventKind::Warning)[0]);
    // Silent connections hold descriptors that can be freed; without them more come only later.
    if silent == 0 {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        assert_eq!(inc.stats().error, None, "the shortage ended it");
        descriptors(before);
    }
    let arrived = inc.wait(Some(LONG));
    drop(strangers);
    arrived.unwrap();
    assert_eq!(pair.to.calls("run"), 1);
    println!("\narrived");
}

struct Destination {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Destination {
    fn new(silent: usize) -> Destination {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "limits::strangers::the_process_without_descriptors",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, silent.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Destination { child, lines }
    }

    /// The text behind `word` on the next line that begins with it.
    fn hear(&mut self, word: &str) -> String {
        for line in &mut self.lines {
            if let Some(rest) = line.unwrap().strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
        panic!("the destination never said {word:?}");
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_shortage_of_descriptors_is_waited_out_with_a_warning() -> Result<()> {
    let pair = pair();
    let mut destination = Destination::new(0);
    let at = Endpoint::parse(&destination.hear("listening"))?;
    let out = outgoing(&pair);
    out.start(ConnectTo::Endpoint(at.clone()))?;
    let warning = destination.hear("short");
    assert!(warning.contains(&at.to_string()), "{warning}");
    assert!(warning.contains("descriptor"), "{warning}");
    // Only now may the process have more.
    let mut to = destination.child.stdin.take().unwrap();
    to.write_all(b"go on\n").unwrap();
    out.wait(Some(LONG))?;
    destination.hear("arrived");
    Ok(())
}

#[test]
fn silent_strangers_give_up_their_descriptors_to_a_source() -> Result<()> {
    let pair = pair();
    let mut destination = Destination::new(5);
    let at = Endpoint::parse(&destination.hear("listening"))?;
    let out = outgoing(&pair);
    out.start(ConnectTo::Endpoint(at))?;
    // The limit stays.
    out.wait(Some(LONG))?;
    destination.hear("arrived");
    Ok(())
}
