//! How soon a guest that is restored from an image runs, and how soon it has read a random hundredth
//! of its pages: started before its memory is here, beside a restore that reads the whole image
//! first, and in a private mapping of the image. All restore into memory that nobody has touched, from
//! an image that is not in the page cache. A bare program that reads the same pages of the file, one after
//! the other past the page cache, shows what the disk alone takes. Each by kind and size of memory.

use crate::kinds::{HugePool, Made, HUGE};
use crate::memory::{Ram, Random, PAGE};
use crate::report::{Report, Runs};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::Blockers;
use brant::snapshot::{Restore, RestoreParams, Save, SaveParams};
use brant::vmm::Vmm;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RUNS: usize = 5;
const LONG: Duration = Duration::from_secs(600);

/// A guest, and what follows the names of its figures.
struct Case {
    name: &'static str,
    made: Made,
    gib: usize,
}

const fn case(name: &'static str, made: Made, gib: usize) -> Case {
    Case { name, made, gib }
}

const CASES: [Case; 5] = [
    case("", Made::Anonymous, 1),
    case("/private-4GiB", Made::Anonymous, 4),
    case("/memfd-1GiB", Made::Memfd, 1),
    case("/memfd-4GiB", Made::Memfd, 4),
    case("/huge-1GiB", Made::Huge, 1),
];

/// How the pages come.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Fault,
    Whole,
    /// No guest: reads of the file.
    Bare,
    Mapped,
}

const HOWS: [How; 4] = [How::Fault, How::Whole, How::Bare, How::Mapped];

/// A VMM that says when its guest runs.
struct Telling(Mutex<Sender<Instant>>);

impl Vmm for Telling {
    fn pause(&self) -> brant::Result<()> {
        Ok(())
    }
    fn resume(&self) -> brant::Result<()> {
        Ok(())
    }
    fn run(&self) -> brant::Result<()> {
        let _ = self.0.lock().unwrap().send(Instant::now());
        Ok(())
    }
}

/// Saves a guest whose page `n` begins with the number `n + 1`.
fn save(ram: &Ram, path: &Path) {
    (0..ram.pages()).for_each(|page| ram.write(page, page as u64 + 1));
    let tracker = Tracker::new(Arc::clone(&ram.memory), Clearing::default()).unwrap();
    let vmm = Arc::new(Telling(Mutex::new(channel().0)));
    let save = Save::new(tracker, Blockers::new(), vmm, SaveParams::default()).unwrap();
    save.start(path).unwrap();
    save.wait(Some(LONG)).unwrap();
}

/// Has the kernel drop what it has of a file in its page cache.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    // SAFETY: touches no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Milliseconds until `run` was called, and until the pages were read.
fn first(case: &Case, path: &Path, how: How, pages: &[usize]) -> [f64; 2] {
    let ram = Ram::of(case.made, case.gib << 30);
    let (tell, told) = channel();
    let vmm = Arc::new(Telling(Mutex::new(tell)));
    let params = RestoreParams {
        lazy: how == How::Fault,
        trusted: how == How::Mapped,
        ..RestoreParams::default()
    };
    forget(path);
    let restore = Restore::new(Arc::clone(&ram.memory), vmm, params).unwrap();
    let begun = Instant::now();
    restore.start(path).unwrap();
    let runs = told.recv_timeout(LONG).unwrap();
    for page in pages {
        assert_eq!(ram.read(*page), *page as u64 + 1);
    }
    let read = begun.elapsed();
    // What is left of this guest is given up.
    restore.cancel();
    drop(restore);
    [(runs - begun).as_secs_f64() * 1e3, read.as_secs_f64() * 1e3]
}

/// The place of a page of the guest in the file of its image.
fn first_page(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    let begins = |place: &usize| {
        let mut words = [0; 8];
        let place = (place * PAGE) as u64;
        file.read_exact_at(&mut words, place).unwrap();
        let mut behind = [0; 8];
        file.read_exact_at(&mut behind, place + PAGE as u64)
            .unwrap();
        (u64::from_le_bytes(words), u64::from_le_bytes(behind)) == (1, 2)
    };
    (0..).find(begins).unwrap()
}

/// Milliseconds that the disk takes for the pages' places in the image, one after the other.
fn bare_reads(path: &Path, pages: &[usize]) -> f64 {
    let first = first_page(path);
    forget(path);
    let mut options = File::options();
    options.read(true);
    let file = options.custom_flags(libc::O_DIRECT).open(path).unwrap();
    let room = Ram::new(PAGE);
    let begun = Instant::now();
    for page in pages {
        let at = ((first + page) * PAGE) as i64;
        // SAFETY: a page of our own mapping.
        let got = unsafe { libc::pread(file.as_raw_fd(), room.host().cast(), PAGE, at) };
        assert_eq!(got, PAGE as isize, "{}", std::io::Error::last_os_error());
        assert_eq!(room.read(0), *page as u64 + 1);
    }
    begun.elapsed().as_secs_f64() * 1e3
}

/// The figures of one guest.
fn measure_case(report: &mut Report, case: &Case, image: &Path) {
    let name = |figure: &str| format!("restore.{figure}{}", case.name);
    let figures = [
        "first_ms",
        "first_over_bare",
        "run_ms",
        "mapped_ms",
        "mapped_run_ms",
    ];
    if !figures.iter().any(|figure| report.wants(&name(figure))) {
        return;
    }
    let huge = case.made.is_huge();
    let pool = huge.then(|| HugePool::new((case.gib << 30) / HUGE));
    if matches!(pool, Some(None)) {
        return report.skipped(&name("first_ms"), "huge pages cannot be reserved");
    }
    let ram = Ram::of(case.made, case.gib << 30);
    save(&ram, image);
    let count = ram.pages();
    drop(ram);
    let mut random = Random(88172645463325252);
    let pages: Vec<usize> = (0..count / 100)
        .map(|_| random.next() as usize % count)
        .collect();
    let possible = |how: &How| match how {
        How::Mapped => case.made == Made::Anonymous,
        // Every huge page has one of them.
        How::Bare => !huge,
        How::Fault | How::Whole => true,
    };
    let mut all: [[Runs; 2]; 4] = Default::default();
    // The first turn does not count.
    for turn in 0..=RUNS {
        for how in HOWS.into_iter().filter(possible) {
            let found = match how {
                How::Bare => [0.0, bare_reads(image, &pages)],
                _ => first(case, image, how, &pages),
            };
            let runs = all[how as usize].iter_mut();
            let counts = runs.zip(found).filter(|_| turn > 0);
            counts.for_each(|(runs, found)| runs.push(found));
        }
    }
    let [[run, read], [whole_run, whole], [_, bare], [mapped_run, mapped]] = &all;
    let peer = "whole image first";
    report.compared(&name("first_ms"), "ms", read, peer, whole);
    report.compared(&name("run_ms"), "ms", run, peer, whole_run);
    if possible(&How::Bare) {
        report.compared(&name("first_over_bare"), "ms", read, "bare O_DIRECT", bare);
    }
    if possible(&How::Mapped) {
        report.compared(&name("mapped_ms"), "ms", mapped, "by fault", read);
        report.compared(&name("mapped_run_ms"), "ms", mapped_run, "by fault", run);
    }
}

/// The figures of fast restores.
pub fn measure(report: &mut Report) {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"));
    std::fs::create_dir_all(&directory).unwrap();
    let image = directory.join("bench.restore");
    CASES
        .iter()
        .for_each(|case| measure_case(report, case, &image));
    let _ = std::fs::remove_file(&image);
}
