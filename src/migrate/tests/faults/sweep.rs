//! Goes through the system calls of a migration, one case after another.
//!
//! Each case runs in a child process of its own, made by fork. So values that brant finds out once
//! per process are found out anew, a descriptor that is left open shows, and a case that hangs is
//! ended without harm to the next one. There must be no other threads at the fork. So the test
//! starts its own program again, for this test alone.
//!
//! `BRANT_FAULTS` says which cases run. When it is not set, a random selection runs for as long as
//! [`SHORT`]; its seed is printed, and `BRANT_SEED` repeats it. `each` runs one case of each sort,
//! chosen by the seed. `all` runs all cases. Any other text runs the cases whose name contains it.

use super::case::{play, Kinds, Link, Planned, Side};
use super::guest::{is_here, Log};
use crate::sys::kernel::plan::{Call, Fault};
use crate::sys::kernel::plausible::faults;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

/// How long the selection may run.
const SHORT: Duration = Duration::from_secs(10);
/// The limit of one case. Unless it hangs, nothing waits for three seconds more than twice.
const CASE: Duration = Duration::from_secs(30);
/// The number of cases that run at a time.
const AT_ONCE: usize = 2;

const KINDS: [Kinds; 6] = [
    kinds(Log::Marks, Link::Pair),
    kinds(Log::Marks, Link::Pairs),
    kinds(Log::Userfault, Link::Tcp),
    kinds(Log::Kvm, Link::Tcp),
    kinds(Log::Ring, Link::Pair),
    kinds(Log::Marks, Link::Unix),
];

const fn kinds(log: Log, link: Link) -> Kinds {
    Kinds { log, link }
}

#[derive(Clone, Copy)]
struct Case {
    kinds: Kinds,
    planned: Planned,
}

impl Case {
    /// Whether the fault is no failure: the call has to be made again, or made for the rest. The
    /// migration has to go on.
    fn is_harmless(&self) -> bool {
        const AGAIN: &[&str] = &[
            "accept4",
            "connect",
            "getrandom",
            "ppoll",
            "pread",
            "read",
            "read_file",
            "recvmsg",
            "sendmsg",
            "write",
        ];
        let again = AGAIN.contains(&self.planned.call.name);
        let on_a_socket = ["accept4", "recvmsg", "sendmsg"].contains(&self.planned.call.name);
        match self.planned.fault {
            Fault::Short(_) => true,
            Fault::Error(libc::EINTR) | Fault::Done(libc::EINTR) => again,
            Fault::Error(libc::EAGAIN) => on_a_socket,
            _ => false,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Planned { side, call, fault } = self.planned;
        let Kinds { log, link } = self.kinds;
        write!(f, "{log:?} {link:?} {side:?} {call}: {fault}")
    }
}

/// A child process that plays one case.
struct Child {
    name: String,
    pid: libc::pid_t,
    begun: Instant,
    report: File,
    text: Vec<u8>,
}

/// The report of a child: a word, and the rest.
enum Report {
    Played {
        fired: bool,
        end: String,
        calls: Vec<String>,
    },
    Wrong(String),
}

impl Child {
    fn start(name: String, kinds: Kinds, planned: Option<Planned>) -> Child {
        let mut ends = [0; 2];
        // SAFETY: the kernel fills two integers.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        assert_eq!(made, 0);
        // SAFETY: the descriptors were just made and belong to nobody else.
        let [reader, writer] = ends.map(|fd| unsafe { File::from_raw_fd(fd) });
        // SAFETY: this process has no other thread that could hold a lock.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            let mut writer = writer;
            drop(reader);
            let played = std::panic::catch_unwind(|| play(kinds, planned));
            let text = match played {
                Ok(Ok(played)) => {
                    let mut text = format!("{}\n{}\n", played.fired, played.end.replace('\n', " "));
                    for (side, call) in played.calls {
                        text += &format!("{side:?} {call}\n");
                    }
                    text
                }
                Ok(Err(wrong)) => format!("wrong\n{wrong}"),
                Err(_) => "wrong\nthe test panicked".to_owned(),
            };
            let _ = writer.write_all(text.as_bytes());
            // SAFETY: ends this child, without the parent's destructors.
            unsafe { libc::_exit(0) };
        }
        Child {
            name,
            pid,
            begun: Instant::now(),
            report: reader,
            text: Vec::new(),
        }
    }

    /// Reads more of the report. Returns whether that was the end of it.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.report.read(&mut buffer) {
            Ok(0) => true,
            Ok(n) => {
                self.text.extend_from_slice(&buffer[..n]);
                false
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn end(self, hangs: bool) -> Report {
        if hangs {
            // SAFETY: a child of ours that was not waited for yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        let mut status = 0;
        // SAFETY: the kernel fills an integer.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        if hangs {
            return Report::Wrong(format!("not ended after {CASE:?}"));
        }
        if !libc::WIFEXITED(status) {
            return Report::Wrong(format!("ended by signal {}", libc::WTERMSIG(status)));
        }
        let text = String::from_utf8(self.text).unwrap();
        let mut lines = text.lines().map(str::to_owned);
        match lines.next().as_deref() {
            Some(fired @ ("true" | "false")) => Report::Played {
                fired: fired == "true",
                end: lines.next().unwrap_or_default(),
                calls: lines.collect(),
            },
            Some(_) => Report::Wrong(lines.collect::<Vec<_>>().join("; ")),
            None => Report::Wrong("ended without a word".to_owned()),
        }
    }
}

/// Plays cases, a few at a time, until `more` gives none.
fn play_all(
    mut more: impl FnMut() -> Option<(String, Kinds, Option<Planned>)>,
    mut done: impl FnMut(&str, Report),
) {
    let mut children: Vec<Child> = Vec::new();
    loop {
        while children.len() < AT_ONCE {
            let Some((name, kinds, planned)) = more() else {
                break;
            };
            children.push(Child::start(name, kinds, planned));
        }
        if children.is_empty() {
            return;
        }
        let poll = |child: &Child| libc::pollfd {
            fd: child.report.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polls: Vec<libc::pollfd> = children.iter().map(poll).collect();
        // SAFETY: the array is ours and has `polls.len()` entries.
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as _, 200) };
        let mut left = Vec::new();
        for (mut child, poll) in children.into_iter().zip(polls) {
            let all = poll.revents != 0 && child.read();
            let hangs = child.begun.elapsed() > CASE;
            if all || hangs {
                let name = child.name.clone();
                done(&name, child.end(hangs && !all));
            } else {
                left.push(child);
            }
        }
        children = left;
    }
}

/// Every call of a migration in which nothing fails, with each fault that it can have.
fn cases(kinds: Kinds) -> Vec<Case> {
    let mut first = Some((format!("{kinds:?}"), kinds, None));
    let mut found = Vec::new();
    play_all(
        || first.take(),
        |name, report| match report {
            Report::Played { end, calls, .. } if end == "completed" => found = calls,
            Report::Played { end, .. } => panic!("{name}, without any fault: {end}"),
            Report::Wrong(wrong) => panic!("{name}, without any fault: {wrong}"),
        },
    );
    let mut cases = Vec::new();
    for line in found {
        let [side, role, name, number] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let forever = |text: &str| -> &'static str { Box::leak(text.to_owned().into()) };
        let call = Call {
            role: forever(role),
            name: forever(name),
            number: number.parse().unwrap(),
        };
        let side = match side {
            "Source" => Side::Source,
            _ => Side::Destination,
        };
        cases.extend(faults(name).iter().map(|&fault: &Fault| Case {
            kinds,
            planned: Planned { side, call, fault },
        }));
    }
    cases
}

/// Puts the list into an order that depends on the seed only.
fn shuffle<T>(list: &mut [T], mut seed: u64) {
    for i in (1..list.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        list.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
    }
}

/// Brings one case of each sort to the front, and returns the number of sorts. Calls of the same
/// name on the same thread are one sort, because they fail in the same way.
fn one_of_each_first(cases: &mut [Case]) -> usize {
    let mut seen = BTreeMap::new();
    let mut ranks = cases.iter().map(|case| {
        let Planned { side, call, fault } = case.planned;
        let sort = format!(
            "{:?} {side:?} {} {} {fault}",
            case.kinds, call.role, call.name
        );
        let rank: &mut usize = seen.entry(sort).or_default();
        *rank += 1;
        *rank
    });
    let mut ranked: Vec<(usize, Case)> =
        cases.iter().map(|c| (ranks.next().unwrap(), *c)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    for (place, (_, case)) in cases.iter_mut().zip(&ranked) {
        *place = *case;
    }
    ranked.iter().take_while(|(rank, _)| *rank == 1).count()
}

fn sweep() {
    let wanted = std::env::var("BRANT_FAULTS").unwrap_or_default();
    let seed = std::env::var("BRANT_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let mut all = Vec::new();
    for kinds in KINDS {
        if is_here(kinds.log) {
            all.extend(cases(kinds));
        } else {
            println!("skipped: {kinds:?}: not on this machine");
        }
    }
    println!("{} cases", all.len());
    let begun = Instant::now();
    match wanted.as_str() {
        "" => {
            println!("BRANT_SEED={seed}, for {SHORT:?}");
            shuffle(&mut all, seed);
            one_of_each_first(&mut all);
        }
        "each" => {
            println!("BRANT_SEED={seed}");
            shuffle(&mut all, seed);
            let kinds = one_of_each_first(&mut all);
            all.truncate(kinds);
        }
        "all" => {}
        part => all.retain(|case| case.to_string().contains(part)),
    }
    let loud = !matches!(wanted.as_str(), "" | "each" | "all");
    let harmless = all.iter().filter(|case| case.is_harmless());
    let harmless: BTreeSet<String> = harmless.map(Case::to_string).collect();
    let mut queue = all.iter();
    let (mut ends, mut missed, mut wrong) = (BTreeMap::new(), 0, Vec::new());
    play_all(
        || {
            if wanted.is_empty() && begun.elapsed() > SHORT {
                return None;
            }
            let case = queue.next()?;
            Some((case.to_string(), case.kinds, Some(case.planned)))
        },
        |name, report| match report {
            Report::Played { fired, end, .. } => {
                if end != "completed" && fired && harmless.contains(name) {
                    println!("WRONG {name}\n    ends a migration: {end}");
                    wrong.push(format!("{name}: ends a migration: {end}"));
                }
                if loud {
                    println!("{name}\n    {end}");
                }
                missed += u32::from(!fired);
                let completed = end == "completed";
                *ends
                    .entry(if completed { "completed" } else { "failed" })
                    .or_insert(0) += 1;
            }
            Report::Wrong(what) => {
                println!("WRONG {name}\n    {what}");
                wrong.push(format!("{name}: {what}"));
            }
        },
    );
    let seconds = begun.elapsed().as_secs();
    println!(
        "{ends:?}, {missed} not reached, {} wrong, {seconds} s",
        wrong.len()
    );
    assert!(!ends.is_empty(), "nothing was tried");
    assert!(wrong.is_empty(), "BRANT_SEED={seed}: {wrong:#?}");
}

#[test]
fn whichever_system_call_fails_the_guest_runs_once_and_nothing_is_lost_or_left() {
    const ALONE: &str = "BRANT_FAULTS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return sweep();
    }
    let name = "whichever_system_call_fails_the_guest_runs_once_and_nothing_is_lost_or_left";
    let (_, module) = module_path!().split_once("::").unwrap();
    let name = format!("{module}::{name}");
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name.as_str(), "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}
