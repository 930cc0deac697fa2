//! The destination of a postcopy in a control group with too little memory for its guest, and with just
//! enough. Without swap the kernel ends a process that exceeds its limit: the guest ran there, so it is
//! lost. The source is told by its connections, keeps the guest's memory and says so.

use super::processes::{source, Other, Plan};
use crate::support::time::MS;
use brant::error::Kind;
use brant::migrate::SourceState;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

const PAGES: usize = 8192;
const MIB: u64 = 1 << 20;

/// A control group of the memory controller, removed at the end.
struct Group {
    path: PathBuf,
    /// What the controller's version calls the limit.
    limit: &'static str,
}

impl Group {
    /// `None`, with a message, where none can be made.
    fn new(bytes: u64) -> Option<Group> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let name = format!("brant-test-{}-{number}", std::process::id());
        let roots = [
            ("/sys/fs/cgroup", "memory.max", "memory.swap.max", "0"),
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.swappiness",
                "0",
            ),
        ];
        let mut why = "no memory controller".to_owned();
        for (root, limit, swap, none) in roots {
            let path = Path::new(root).join(&name);
            if let Err(error) = std::fs::create_dir(&path) {
                why = format!("{}: {error}", path.display());
                continue;
            }
            let group = Group { path, limit };
            // Elsewhere it is a directory as any other, or of a hierarchy without this controller.
            if !group.path.join(limit).exists() {
                continue;
            }
            if let Err(error) = std::fs::write(group.path.join(limit), bytes.to_string()) {
                why = format!("{limit}: {error}");
                continue;
            }
            // A kernel without swap has no such file.
            let _ = std::fs::write(group.path.join(swap), none);
            return Some(group);
        }
        eprintln!("skipped: no control group for memory: {why}");
        None
    }

    fn number(&self, file: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.path.join(file)).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its process has ended, and the kernel may still be at it.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(MS * 5);
        }
    }
}

fn plan() -> Plan {
    Plan {
        pages: PAGES,
        limit: MS * 20_000,
        bandwidth: 16 * MIB,
    }
}

#[test]
fn a_destination_without_memory_for_its_guest_is_lost_and_the_source_says_so_at_once() {
    let Some(group) = Group::new(PAGES as u64 * 4096 / 2) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let procs = group.path.join("cgroup.procs");
    let mut other = Other::start("destination", &plan(), directory.path(), Some(&procs));
    let here = {
        let (gone, at) = (Arc::clone(&gone), directory.path().to_owned());
        let say = |what: &str| println!("{what}");
        std::thread::spawn(move || source(&plan(), &at, &gone, &say))
    };
    other.wait_said("destination Completing");
    let status = other.ended();
    println!("the destination: {status}");
    // Killed by the kernel, or an error of its own: never a success.
    assert!(
        status.signal() == Some(libc::SIGKILL) || status.code().is_some_and(|code| code != 0),
        "{status}"
    );
    gone.store(true, Ordering::SeqCst);
    let (ended, out) = here.join().unwrap();
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::Unanswered, "{error}");
    assert_eq!(out.state(), SourceState::GivenUp, "{error}");
    assert!(out.stats().missing_pages > 0);
}

#[test]
fn a_destination_with_just_enough_memory_for_its_guest_gets_all_of_it() {
    let limit = PAGES as u64 * 4096 + 12 * MIB;
    let Some(group) = Group::new(limit) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let procs = group.path.join("cgroup.procs");
    let mut other = Other::start("destination", &plan(), directory.path(), Some(&procs));
    let (ended, out) = source(&plan(), directory.path(), &AtomicBool::new(false), &|_| ());
    ended.unwrap();
    other.wait_said("whole");
    assert!(other.ended().success());
    assert_eq!(out.stats().recoveries, 0);
    let most = ["memory.peak", "memory.max_usage_in_bytes"]
        .iter()
        .find_map(|file| group.number(file));
    println!("at most {most:?} of {limit} bytes, {}", group.limit);
    assert!(most.is_none_or(|most| most > PAGES as u64 * 4096 && most <= limit));
}
