//! How soon a guest that is restored from an image runs, and how soon it has read a random hundredth
//! of its pages: started before its memory is here, beside a restore that reads the whole image
//! first, and in a private mapping of the image. All restore into memory that nobody has touched, from
//! an image that is not in the page cache. A bare program that reads the same pages, one after the other
//! past the page cache, shows what the disk alone takes. `BRANT_BENCH_RESTORE_GIB` is the guest's
//! size (1); the goal is stated for 4.

use crate::report::{alternate, Report, Runs};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::{BlockDescription, HostMemory, Memory};
use brant::migrate::Blockers;
use brant::snapshot::{Restore, RestoreParams, Save, SaveParams};
use brant::units::Bytes;
use brant::vmm::Vmm;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const RUNS: usize = 5;
const LONG: Duration = Duration::from_secs(600);

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

/// Memory that nobody has touched.
struct Ram {
    host: *mut u8,
    length: usize,
    memory: Arc<Memory>,
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whose users have ended.
        unsafe { libc::munmap(self.host.cast(), self.length) };
    }
}

impl Ram {
    fn new(length: usize) -> Ram {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let host = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
        assert_ne!(host, libc::MAP_FAILED);
        let memory = Arc::new(Memory::new().unwrap());
        // SAFETY: mapped until the drop, when nobody uses it any more.
        let at = unsafe { HostMemory::new(host.cast()) };
        let block = BlockDescription::new("ram", at, Bytes(length as u64));
        memory.add_block(block).unwrap();
        Ram {
            host: host.cast(),
            length,
            memory,
        }
    }

    fn save(&self, path: &Path) {
        for page in 0..self.length / PAGE {
            // SAFETY: inside of the mapping, aligned.
            unsafe {
                self.host
                    .add(page * PAGE)
                    .cast::<u64>()
                    .write(page as u64 + 1)
            };
        }
        let tracker = Tracker::new(Arc::clone(&self.memory), Clearing::default()).unwrap();
        let vmm = Arc::new(Telling(Mutex::new(channel().0)));
        let save = Save::new(tracker, Blockers::new(), vmm, SaveParams::default()).unwrap();
        save.start(path).unwrap();
        save.wait(Some(LONG)).unwrap();
    }
}

/// Has the kernel drop what it has of a file in its page cache.
fn forget(path: &Path) {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    // SAFETY: touches no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// A restore that starts its guest at once: by fault, or in a mapping of the image.
fn at_once(mapped: bool) -> RestoreParams {
    RestoreParams {
        lazy: !mapped,
        trusted: mapped,
        ..RestoreParams::default()
    }
}

/// Milliseconds until `run` was called, and until the pages were read.
fn first(path: &Path, length: usize, params: RestoreParams, pages: &[usize]) -> [f64; 2] {
    let ram = Ram::new(length);
    let (tell, told) = channel();
    let vmm = Arc::new(Telling(Mutex::new(tell)));
    forget(path);
    let restore = Restore::new(Arc::clone(&ram.memory), vmm, params).unwrap();
    let begun = Instant::now();
    restore.start(path).unwrap();
    let runs = told.recv_timeout(LONG).unwrap();
    for page in pages {
        // SAFETY: inside of the mapping, aligned.
        let found = unsafe { ram.host.add(page * PAGE).cast::<u64>().read_volatile() };
        assert_eq!(found, *page as u64 + 1);
    }
    let read = begun.elapsed();
    // What is left of this guest is given up.
    restore.cancel();
    drop(restore);
    [(runs - begun).as_secs_f64() * 1e3, read.as_secs_f64() * 1e3]
}

/// Milliseconds that the disk takes for pages of the image, one after the other.
fn bare_reads(path: &Path, pages: &[usize]) -> f64 {
    let mut options = File::options();
    options.read(true);
    let file = options.custom_flags(libc::O_DIRECT).open(path).unwrap();
    let ram = Ram::new(PAGE);
    let begun = Instant::now();
    for page in pages {
        let at = (page * PAGE) as i64;
        // SAFETY: a page of our own mapping.
        let got = unsafe { libc::pread(file.as_raw_fd(), ram.host.cast(), PAGE, at) };
        assert_eq!(got, PAGE as isize, "{}", std::io::Error::last_os_error());
    }
    begun.elapsed().as_secs_f64() * 1e3
}

/// The figures of fast restores.
pub fn measure(report: &mut Report) {
    if !report.wants_any("restore.") {
        return;
    }
    let gib = std::env::var("BRANT_BENCH_RESTORE_GIB");
    let gib: usize = gib.ok().and_then(|gib| gib.parse().ok()).unwrap_or(1);
    let length = gib << 30;
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"));
    std::fs::create_dir_all(&directory).unwrap();
    let image = directory.join("bench.restore");
    Ram::new(length).save(&image);
    let (mut state, count) = (88172645463325252u64, length / PAGE);
    let pages: Vec<usize> = (0..count / 100)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % count
        })
        .collect();
    let mut until_run: [Vec<f64>; 2] = Default::default();
    let [ours, theirs, bare]: [Runs; 3] = alternate(RUNS, |contender| {
        if contender == 2 {
            return bare_reads(&image, &pages);
        }
        let params = match contender {
            0 => at_once(false),
            _ => RestoreParams::default(),
        };
        let [run, read] = first(&image, length, params, &pages);
        until_run[contender].push(run);
        read
    });
    let peer = "whole image first";
    report.compared("restore.first_ms", "ms", &ours, peer, &theirs);
    report.compared(
        "restore.first_ms/bare_reads",
        "ms",
        &ours,
        "bare O_DIRECT",
        &bare,
    );
    let [ours, theirs] = until_run.map(|turns| {
        let mut runs = Runs::default();
        // The first turn does not count here either.
        turns[1..].iter().for_each(|turn| runs.push(*turn));
        runs
    });
    report.compared("restore.run_ms", "ms", &ours, peer, &theirs);
    let [ours, theirs]: [Runs; 2] = alternate(RUNS, |contender| {
        first(&image, length, at_once(contender == 0), &pages)[1]
    });
    report.compared("restore.mapped_ms", "ms", &ours, "by fault", &theirs);
    let _ = std::fs::remove_file(&image);
}
