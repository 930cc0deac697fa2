//! A guest of 1 GiB with contents on every page, saved to a file and restored from it. It is
//! compared with a bare program that writes and reads as many bytes one after another past the page
//! cache (`O_DIRECT`), 2 MiB at a time, and syncs. Also the gain of going past the page cache.

use crate::memory::{Idle, Ram, Random};
use crate::report::{alternate, Report, Runs};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::migrate::Blockers;
use brant::snapshot::{Restore, RestoreParams, Save, SaveInstant, SaveParams};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LENGTH: usize = 1 << 30;
const STEP: usize = 2 << 20;
const RUNS: usize = 7;
const LONG: Duration = Duration::from_secs(300);

/// Memory that was touched: with contents on every page, or one word on each.
struct Touched(Ram);

impl Touched {
    fn new(full: bool) -> Touched {
        let ram = Ram::new(LENGTH);
        let mut random = Random(88172645463325252);
        match full {
            true => ram.write_all(|_| random.next()),
            false => (0..ram.pages()).for_each(|page| ram.write(page, random.next())),
        }
        Touched(ram)
    }

    /// Seconds to save it.
    fn save(&self, path: &Path, params: SaveParams) -> f64 {
        let tracker = Tracker::new(Arc::clone(&self.0.memory), Clearing::default()).unwrap();
        let save = Save::new(tracker, Blockers::new(), Arc::new(Idle), params).unwrap();
        let begun = Instant::now();
        save.start(path).unwrap();
        save.wait(Some(LONG)).unwrap();
        begun.elapsed().as_secs_f64()
    }

    /// Which part of its rate a guest loses while it is saved: a thread that writes a number to one
    /// page after another, with a step that visits all of them.
    fn lost_by(&self, path: &Path, params: SaveParams) -> f64 {
        let stop = AtomicBool::new(false);
        let written = AtomicU64::new(0);
        let rate = |during: &dyn Fn()| {
            let (begun, before) = (Instant::now(), written.load(Relaxed));
            during();
            (written.load(Relaxed) - before) as f64 / begun.elapsed().as_secs_f64()
        };
        std::thread::scope(|scope| {
            let host = self.0.host() as usize;
            let (stop, written) = (&stop, &written);
            scope.spawn(move || {
                let mut at = 0;
                while !stop.load(Relaxed) {
                    at = (at + 4096 * 1_000_003) % LENGTH;
                    // SAFETY: inside our own mapping, aligned.
                    unsafe { (host as *mut u8).add(at).cast::<u64>().write_volatile(7) };
                    written.fetch_add(1, Relaxed);
                }
            });
            let alone = rate(&|| std::thread::sleep(Duration::from_millis(500)));
            let saved = rate(&|| {
                self.save(path, params);
            });
            stop.store(true, Relaxed);
            1.0 - saved / alone
        })
    }

    /// Seconds to restore into it.
    fn restore(&self, path: &Path, params: RestoreParams) -> f64 {
        // The guest of the turn before has ended.
        self.0.memory.give_up().unwrap();
        let memory = Arc::clone(&self.0.memory);
        let restore = Restore::new(memory, Arc::new(Idle), params).unwrap();
        let begun = Instant::now();
        restore.start(path).unwrap();
        restore.wait(Some(LONG)).unwrap();
        begun.elapsed().as_secs_f64()
    }

    /// Seconds to write the same bytes to a new file and sync it.
    fn write(&self, path: &Path) -> f64 {
        let begun = Instant::now();
        let mut options = File::options();
        options.write(true).create_new(true);
        let file = options.custom_flags(libc::O_DIRECT).open(path).unwrap();
        for at in (0..LENGTH).step_by(STEP) {
            // SAFETY: inside our own mapping.
            let put = unsafe {
                libc::pwrite(
                    file.as_raw_fd(),
                    self.0.host().add(at).cast(),
                    STEP,
                    at as i64,
                )
            };
            assert_eq!(put, STEP as isize, "{}", std::io::Error::last_os_error());
        }
        file.sync_all().unwrap();
        begun.elapsed().as_secs_f64()
    }

    /// Seconds to read them back.
    fn read(&self, path: &Path) -> f64 {
        let begun = Instant::now();
        let mut options = File::options();
        options.read(true);
        let file = options.custom_flags(libc::O_DIRECT).open(path).unwrap();
        for at in (0..LENGTH).step_by(STEP) {
            // SAFETY: inside our own mapping.
            let got = unsafe {
                libc::pread(
                    file.as_raw_fd(),
                    self.0.host().add(at).cast(),
                    STEP,
                    at as i64,
                )
            };
            assert_eq!(got, STEP as isize, "{}", std::io::Error::last_os_error());
        }
        begun.elapsed().as_secs_f64()
    }
}

/// Bytes a second, from seconds.
fn rate(seconds: f64) -> f64 {
    LENGTH as f64 / seconds / 1e9
}

/// All figures of images.
pub fn measure(report: &mut Report) {
    if !report.wants_any("image.") && !report.wants_any("snapshot.") {
        return;
    }
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"));
    std::fs::create_dir_all(&directory).unwrap();
    let (image, bare) = (directory.join("bench.image"), directory.join("bench.bare"));
    let remove = |path: &Path| drop(std::fs::remove_file(path));
    let (from, to) = (Touched::new(true), Touched::new(false));
    let (direct, mut cached) = (SaveParams::default(), SaveParams::default());
    cached.direct = false;
    let peer = "bare O_DIRECT";
    if report.wants_any("image.write") {
        let [ours, theirs, cached]: [Runs; 3] = alternate(RUNS, |contender| {
            remove(&image);
            remove(&bare);
            rate(match contender {
                0 => from.save(&image, direct),
                1 => from.write(&bare),
                _ => from.save(&image, cached),
            })
        });
        report.compared("image.write_fraction", "GB/s", &ours, peer, &theirs);
        report.compared("image.write_direct", "GB/s", &ours, "page cache", &cached);
    }
    if report.wants("snapshot.write_fraction") {
        let at_start = SaveParams {
            instant: SaveInstant::Start,
            ..direct
        };
        let [ours, theirs]: [Runs; 2] = alternate(RUNS, |contender| {
            remove(&image);
            remove(&bare);
            rate(match contender {
                0 => from.save(&image, at_start),
                _ => from.write(&bare),
            })
        });
        report.compared("snapshot.write_fraction", "GB/s", &ours, peer, &theirs);
    }
    if report.wants("snapshot.guest_loss") {
        let lost = |instant| {
            let params = SaveParams { instant, ..direct };
            remove(&image);
            from.lost_by(&image, params)
        };
        let [ours, theirs]: [Runs; 2] = alternate(RUNS, |contender| {
            lost(match contender {
                0 => SaveInstant::Start,
                _ => SaveInstant::End,
            })
        });
        let peer = "the dirty-log save";
        report.compared("snapshot.guest_loss", "of its rate", &ours, peer, &theirs);
    }
    if !report.wants("image.read_fraction") {
        remove(&image);
        return remove(&bare);
    }
    remove(&image);
    remove(&bare);
    from.save(&image, direct);
    from.write(&bare);
    let [ours, theirs]: [Runs; 2] = alternate(RUNS, |contender| {
        rate(match contender {
            0 => to.restore(&image, RestoreParams::default()),
            _ => to.read(&bare),
        })
    });
    report.compared("image.read_fraction", "GB/s", &ours, peer, &theirs);
    remove(&image);
    remove(&bare);
}
