//! Both sides of a postcopy as processes of their own: one of them is this one. For what happens to a
//! process: it is stopped, or has too little memory.
//!
//! A side goes on by itself: when its connections are lost, the destination listens anew and leaves the
//! address in a file, and the source connects to it. Both tell what they see, line by line.

use crate::support::guest::Guest;
use crate::support::memory::{ram, Ram, PAGE};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::{incoming, outgoing, quick};
use crate::support::time::{LONG, MS};
use crate::support::vmm::{Side, TestVmm};
use brant::error::{Kind, Result};
use brant::migrate::{
    AcceptFrom, ConnectTo, DestinationState, Endpoint, Listener, Outgoing, Params, Resolution,
    SourceState, Stats,
};
use brant::vmm::EventKind;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::Duration;

/// What both sides know of a migration.
#[derive(Debug, Clone)]
pub struct Plan {
    pub pages: usize,
    /// The limits for a peer that is silent.
    pub limit: Duration,
    /// Bytes a second.
    pub bandwidth: u64,
}

/// The word at the beginning and at the end of a page.
fn mark(page: usize) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(ram: &Ram) {
    for page in 0..ram.spec.pages {
        for word in (0..PAGE).step_by(8) {
            let value = if word == PAGE - 8 {
                !mark(page)
            } else {
                mark(page)
            };
            ram.word(page * PAGE + word).store(value, Ordering::Relaxed);
        }
    }
}

fn is_right(ram: &Ram, page: usize) -> bool {
    ram.word(page * PAGE).load(Ordering::SeqCst) == mark(page)
        && ram.word(page * PAGE + PAGE - 8).load(Ordering::SeqCst) == !mark(page)
}

impl Plan {
    fn params(&self) -> Params {
        Params {
            postcopy: true,
            channels: 2,
            max_bandwidth: Some(self.bandwidth),
            switchover_max_bandwidth: Some(self.bandwidth),
            io_timeout: self.limit,
            switchover_timeout: self.limit,
            connect_timeout: MS * 3000,
            ..quick()
        }
    }

    fn words(&self) -> String {
        format!(
            "{} {} {}",
            self.pages,
            self.limit.as_millis(),
            self.bandwidth
        )
    }

    fn of(words: &str) -> Plan {
        let mut words = words.split(' ').map(|word| word.parse::<u64>().unwrap());
        let mut next = || words.next().unwrap();
        Plan {
            pages: next() as usize,
            limit: Duration::from_millis(next()),
            bandwidth: next(),
        }
    }
}

/// The file with the destination's address: how often it has listened, and where.
fn tell_address(directory: &Path, times: usize, at: &Endpoint) {
    let new = directory.join("new");
    std::fs::write(&new, format!("{times} {at}")).unwrap();
    std::fs::rename(new, directory.join("address")).unwrap();
}

fn address(directory: &Path) -> Option<(usize, Endpoint)> {
    let text = std::fs::read_to_string(directory.join("address")).ok()?;
    let (times, at) = text.split_once(' ')?;
    Some((times.parse().unwrap(), Endpoint::parse(at).unwrap()))
}

/// The source's side. When the other process is gone for good (`gone`), the session is given up.
pub fn source(
    plan: &Plan,
    directory: &Path,
    gone: &AtomicBool,
    say: &dyn Fn(&str),
) -> (Result<()>, Arc<Outgoing>) {
    let specs = [ram("ram", plan.pages)];
    let pair = Pair::of(Guest::new(&specs), Guest::new(&[]));
    fill(&pair.source.ram("ram"));
    let at = loop {
        match address(directory) {
            Some((_, at)) => break at,
            None => std::thread::sleep(MS * 5),
        }
    };
    let out = outgoing(&pair, &plan.params());
    let copies_on = Box::new(super::whole::CopiesOn);
    out.start_with(ConnectTo::Endpoint(at), copies_on).unwrap();
    while out.state() != SourceState::Copying && !out.state().is_over() {
        let _ = out.wait(Some(MS));
    }
    let _ = out.start_postcopy();
    let mut before = SourceState::Copying;
    loop {
        match out.wait(Some(MS * 5)) {
            Err(error) if error.kind() == Kind::Pending => {}
            ended => {
                say(&format!("source ended {:?}", out.state()));
                return (ended, out);
            }
        }
        let state = out.state();
        if state != before {
            say(&format!("source {state:?}"));
        }
        before = state;
        if state == SourceState::Interrupted {
            if gone.load(Ordering::SeqCst) {
                out.resolve(Resolution::Destroy).unwrap();
                continue;
            }
            // Where the destination listens once more.
            std::thread::sleep(MS * 50);
            if let Some((1.., at)) = address(directory) {
                let told = || pair.from.events(EventKind::Interrupted).len();
                let earlier = told();
                out.recover(ConnectTo::Endpoint(at)).unwrap();
                while out.state() == SourceState::Interrupted && told() == earlier {
                    let _ = out.wait(Some(MS));
                }
                before = SourceState::Copying;
            }
        }
    }
}

/// The destination's side: threads touch all of its memory while it arrives.
pub fn destination(
    plan: &Plan,
    directory: &Path,
    touched: &Arc<AtomicUsize>,
    say: &dyn Fn(&str),
) -> Result<Stats> {
    let specs = [ram("ram", plan.pages)];
    let mut pair = Pair::of(Guest::new(&[]), Guest::new(&specs));
    pair.world.set(Some(false), None);
    pair.to = TestVmm::new(&pair.destination, None, &pair.world, Side::Destination);
    let listener = Listener::bind(&Endpoint::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let at = listener.local_endpoint().clone();
    let inc = incoming(&pair, &plan.params());
    inc.start(AcceptFrom::Listener(Arc::new(listener))).unwrap();
    tell_address(directory, 0, &at);
    let (mut before, mut times) = (DestinationState::Listening, 0);
    let mut threads = Vec::new();
    let ended = loop {
        match inc.wait(Some(MS * 5)) {
            Err(error) if error.kind() == Kind::Pending => {}
            ended => break ended,
        }
        let state = inc.state();
        if state != before {
            say(&format!("destination {state:?}"));
        }
        before = state;
        if pair.world.who().1 && threads.is_empty() {
            for seed in 0..3 {
                let (ram, touched) = (pair.destination.ram("ram"), Arc::clone(touched));
                threads.push(std::thread::spawn(move || touch_all(&ram, seed, &touched)));
            }
        }
        if state == DestinationState::Interrupted {
            times += 1;
            let endpoint = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
            tell_address(directory, times, &inc.recover_at(&endpoint).unwrap());
            while inc.state() == DestinationState::Interrupted {
                std::thread::sleep(MS);
            }
            before = DestinationState::Listening;
        }
    };
    say(&format!("destination ended {:?}: {ended:?}", inc.state()));
    ended?;
    for thread in threads {
        assert_eq!(thread.join().unwrap(), None, "a page with other contents");
    }
    let ram = pair.destination.ram("ram");
    assert!((0..plan.pages).all(|page| is_right(&ram, page)));
    pair.assert_sound("destination");
    Ok(inc.stats())
}

/// Touches every page in an order of its own. Returns the first one that is wrong.
fn touch_all(ram: &Ram, seed: u64, touched: &AtomicUsize) -> Option<usize> {
    let pages = ram.spec.pages;
    let mut order: Vec<usize> = (0..pages).collect();
    let mut random = Random(seed);
    for n in (1..pages).rev() {
        order.swap(n, random.below(n + 1));
    }
    order.into_iter().find(|page| {
        let right = is_right(ram, *page);
        touched.fetch_add(1, Ordering::SeqCst);
        // As slow as a guest that does something with its pages. Otherwise all would have been touched
        // before a test can stop a process.
        std::thread::sleep(MS / 4);
        !right
    })
}

const SIDE: &str = "BRANT_TEST_POSTCOPY_SIDE";
const PLAN: &str = "BRANT_TEST_POSTCOPY_PLAN";
const DIRECTORY: &str = "BRANT_TEST_POSTCOPY_DIRECTORY";

/// No test, but the process that tests start.
#[test]
fn the_other_process() {
    let Ok(side) = std::env::var(SIDE) else {
        return;
    };
    let plan = Plan::of(&std::env::var(PLAN).unwrap());
    let directory = std::path::PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let say = |what: &str| println!("\nsaid {what}");
    if side == "source" {
        let (ended, _) = source(&plan, &directory, &AtomicBool::new(false), &say);
        ended.unwrap();
    } else {
        let stats = destination(&plan, &directory, &Arc::default(), &say).unwrap();
        say(&format!("whole, {} recoveries", stats.recoveries));
    }
}

/// The other process. It is killed when this is dropped.
pub struct Other {
    child: Child,
    pub said: Receiver<String>,
}

impl Other {
    /// Starts one side; `within`: a file that it writes its number to before it begins, that of a
    /// control group.
    pub fn start(side: &str, plan: &Plan, directory: &Path, within: Option<&Path>) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "postcopy::processes::the_other_process";
        command
            .args(["--exact", name, "--nocapture"])
            .env(SIDE, side)
            .env(PLAN, plan.words())
            .env(DIRECTORY, directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if let Some(within) = within {
            let path = std::ffi::CString::new(within.to_str().unwrap()).unwrap();
            let enter = move || {
                // SAFETY: plain system calls, with a path of this closure's.
                let done = unsafe {
                    let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
                    libc::write(fd, c"0".as_ptr().cast(), 1)
                };
                match done {
                    1 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: the closure makes system calls only.
            unsafe { command.pre_exec(enter) };
        }
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, said) = channel();
        std::thread::spawn(move || pass_on(out, &tell));
        Other { child, said }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a child of this process that nobody has waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits until it says so.
    pub fn wait_said(&self, what: &str) {
        loop {
            match self.said.recv_timeout(LONG) {
                Ok(line) if line.starts_with(what) => return,
                Ok(_) => {}
                Err(_) => panic!("the other process never said: {what}"),
            }
        }
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < LONG, "the other process does not end");
            std::thread::sleep(MS * 5);
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(out: impl BufRead, tell: &Sender<String>) {
    for line in out.lines().map_while(std::result::Result::ok) {
        if let Some(said) = line.strip_prefix("said ") {
            println!("{said}");
            let _ = tell.send(said.to_owned());
        }
    }
}
