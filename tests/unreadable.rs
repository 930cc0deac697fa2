//! Guest memory that cannot be read, or written: the migration fails with an error that names
//! block and offset, and the guest runs on. Never a signal.
//!
//! Each test runs again in a process of its own, so that a signal is one failed test and the
//! others still run.

use brant::dirty::consumer::Cursor;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
use brant::dirty::When;
use brant::memory::{BackingFile, BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::switchover::source::State;
use brant::migrate::{
    Blockers, Decider, Decision, Incoming, Outgoing, Params, Source, Stats, Target,
};
use brant::rate::{self, Probe, Way};
use brant::sys::kvm::MEM_LOG_DIRTY_PAGES as LOGGED;
use brant::units::{Bytes, Pages};
use brant::vmm::{Event, EventKind, StateSink, Vmm};
use brant::{Error, Kind, Result};
use kvm_ioctls::Kvm;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::GuestAddress;

const PAGE: usize = 4096;
const PAGES: usize = 256;
const LONG: Duration = Duration::from_secs(30);
/// For a whole test in its own process.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs `body` in a process of its own, which is this program with only the test `name`. A
/// signal, a failed assertion and a hang there fail the test here.
fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var("BRANT_TEST_ALONE").as_deref() == Ok(name) {
        return body();
    }
    let mut said = tempfile::tempfile().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("BRANT_TEST_ALONE", name)
        .stdout(Stdio::null())
        .stderr(said.try_clone().unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name}: no end after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut text).unwrap();
    assert_eq!(status.signal(), None, "ended by a signal: {text}");
    assert!(status.success(), "{status}: {text}");
}

/// How memory is made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Made {
    Private,
    Memfd,
    /// Shared, and brant is not told of the file.
    Unknown,
    MemfdPrivate,
    /// A file on a tmpfs.
    Tmpfs,
}

const ALL: [Made; 5] = [
    Made::Private,
    Made::Memfd,
    Made::Unknown,
    Made::MemfdPrivate,
    Made::Tmpfs,
];

/// What has happened to a page.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    Poisoned,
    Forbidden,
    ReadOnly,
    CutOff,
}

/// One side's memory: a block `ram`.
struct Side {
    host: *mut u8,
    file: Option<File>,
    memory: Arc<Memory>,
    /// What keeps poisoned pages poisoned.
    _poison: Mutex<Vec<OwnedFd>>,
}

// SAFETY: a mapping of the test's own, to which it writes while nobody else does.
unsafe impl Send for Side {}
// SAFETY: as above.
unsafe impl Sync for Side {}

impl Side {
    fn new(made: Made) -> Arc<Side> {
        Side::with(made, false, None)
    }

    /// `tmpfs`: where one is mounted, for [`Made::Tmpfs`]; else /dev/shm.
    fn with(made: Made, rom: bool, tmpfs: Option<&str>) -> Arc<Side> {
        let file = match made {
            Made::Private => None,
            Made::Tmpfs => {
                let dir = tmpfs.unwrap_or("/dev/shm");
                Some(tempfile::tempfile_in(dir).unwrap())
            }
            // SAFETY: makes a descriptor, which is ours.
            _ => Some(unsafe {
                File::from_raw_fd(libc::memfd_create(
                    c"unreadable".as_ptr(),
                    libc::MFD_CLOEXEC,
                ))
            }),
        };
        if let Some(file) = &file {
            file.set_len((PAGES * PAGE) as u64).unwrap();
        }
        let flags = match (made, &file) {
            (_, None) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (Made::MemfdPrivate, _) => libc::MAP_PRIVATE,
            _ => libc::MAP_SHARED,
        };
        // SAFETY: a new mapping where the kernel likes.
        let host = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let fd = file.as_ref().map_or(-1, |file| file.as_raw_fd());
            let host = libc::mmap(std::ptr::null_mut(), PAGES * PAGE, access, flags, fd, 0);
            assert_ne!(host, libc::MAP_FAILED);
            libc::madvise(host, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
            host.cast::<u8>()
        };
        let memory = Memory::new().unwrap();
        let told = file.as_ref().filter(|_| made != Made::Unknown);
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
                host: unsafe { brant::memory::HostMemory::new(host) },
                length: Bytes((PAGES * PAGE) as u64),
                page_size: Bytes(PAGE as u64),
                file: told.map(|file| BackingFile {
                    fd: file.try_clone().unwrap().into(),
                    offset: 0,
                }),
                flags: BlockFlags { rom, zeroed: false },
            })
            .unwrap();
        Arc::new(Side {
            host,
            file,
            memory: Arc::new(memory),
            _poison: Mutex::default(),
        })
    }

    /// The same number in the first byte of every page.
    fn fill(&self, value: u8) {
        for page in 0..PAGES {
            self.set(page, value);
        }
    }

    fn at(&self, page: usize) -> *mut u8 {
        assert!(page < PAGES);
        self.host.wrapping_add(page * PAGE)
    }

    fn set(&self, page: usize, value: u8) {
        // SAFETY: inside our own mapping.
        unsafe { self.at(page).write_volatile(value) };
    }

    fn get(&self, page: usize) -> u8 {
        // SAFETY: inside our own mapping.
        unsafe { self.at(page).read_volatile() }
    }

    fn protect(&self, page: usize, protection: libc::c_int) {
        // SAFETY: a page of our own mapping.
        let done = unsafe { libc::mprotect(self.at(page).cast(), PAGE, protection) };
        assert_eq!(done, 0);
    }

    /// Does it to a page; false where this machine or this memory cannot. A file is cut from
    /// that page on.
    fn make(&self, broken: Broken, page: usize) -> bool {
        match broken {
            Broken::Poisoned => return self.poison(page),
            Broken::Forbidden => self.protect(page, libc::PROT_NONE),
            Broken::ReadOnly => self.protect(page, libc::PROT_READ),
            Broken::CutOff => match &self.file {
                Some(file) => file.set_len((page * PAGE) as u64).unwrap(),
                None => return false,
            },
        }
        true
    }

    /// As the hardware would (`UFFDIO_POISON`).
    fn poison(&self, page: usize) -> bool {
        // SAFETY: a new descriptor, then ioctls with arrays of ours about our own memory.
        unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1);
            if fd < 0 {
                return false;
            }
            let fd = OwnedFd::from_raw_fd(fd as i32);
            let ask = |request: u64, argument: &mut [u64]| {
                libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr())
            };
            let (at, length) = (self.at(page) as u64, PAGE as u64);
            // UFFDIO_API with UFFD_FEATURE_POISON, REGISTER for missing pages, POISON.
            if ask(0xc018_aa3f, &mut [0xaa, 1 << 14, 0]) != 0 {
                eprintln!("no userfaultfd with UFFDIO_POISON");
                return false;
            }
            assert_eq!(ask(0xc020_aa00, &mut [at, length, 1, 0]), 0);
            let advice = libc::MADV_DONTNEED;
            assert_eq!(libc::madvise(self.at(page).cast(), PAGE, advice), 0);
            assert_eq!(ask(0xc020_aa08, &mut [at, length, 0, 0]), 0);
            self._poison.lock().unwrap().push(fd);
        }
        true
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.host.cast(), PAGES * PAGE) };
    }
}

type Hook = Box<dyn Fn() + Send + Sync>;

/// A VMM that counts, keeps what it is warned of, and does something in `save` and after each
/// pass.
#[derive(Default)]
struct Counting {
    stands: AtomicBool,
    runs: AtomicU32,
    in_save: Mutex<Option<Hook>>,
    at_pass: Mutex<Option<Hook>>,
    warnings: Mutex<Vec<String>>,
}

impl Vmm for Counting {
    fn pause(&self) -> Result<()> {
        self.stands.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        self.stands.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn save(&self, _: &mut dyn StateSink) -> Result<()> {
        if let Some(hook) = &*self.in_save.lock().unwrap() {
            hook();
        }
        Ok(())
    }
    fn run(&self) -> Result<()> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn event(&self, event: &Event) {
        match event.kind {
            EventKind::Warning => self.warnings.lock().unwrap().push(event.message.clone()),
            EventKind::Pass => {
                if let Some(hook) = &*self.at_pass.lock().unwrap() {
                    hook();
                }
            }
            _ => {}
        }
    }
}

/// What became of a migration at both sides.
struct Outcome {
    source: Result<()>,
    destination: Result<()>,
    stats: Stats,
    warnings: Vec<String>,
}

impl Outcome {
    /// It failed at the source, for the page at `page` of block `ram`, with `words`.
    fn assert_source_failed(&self, page: usize, words: &str) {
        assert_names(self.source.as_ref().unwrap_err(), Kind::Memory, page, words);
        assert!(self.destination.is_err());
    }

    /// It failed at the destination, which told the source.
    fn assert_destination_failed(&self, page: usize, words: &str) {
        let error = self.destination.as_ref().unwrap_err();
        assert_names(error, Kind::Memory, page, words);
        let told = self.source.as_ref().unwrap_err();
        assert_names(told, Kind::Refused, page, words);
    }
}

fn assert_names(error: &Error, kind: Kind, page: usize, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    let named = format!("block `ram`: the page at offset {:#x} ", page * PAGE);
    for part in [named.as_str(), words] {
        assert!(error.message().contains(part), "{part} in: {error}");
    }
}

/// Migrates; `save` does something to the source's guest while it stands. However it ends, one
/// guest runs.
fn migrate(source: &Side, destination: &Side, save: Option<Hook>) -> Outcome {
    let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
    migrate_with(tracker, destination, save)
}

fn migrate_with(tracker: Arc<Tracker>, destination: &Side, save: Option<Hook>) -> Outcome {
    migrate_by(tracker, destination, None, save, None)
}

/// The same by a decider of the test's; `pass` does something after each pass.
fn migrate_by(
    tracker: Arc<Tracker>,
    destination: &Side,
    decider: Option<Box<dyn Decider>>,
    save: Option<Hook>,
    pass: Option<Hook>,
) -> Outcome {
    // Some tests migrate the same memory again: the guest is back, and its copy has ended.
    tracker.memory().reclaim().unwrap();
    destination.memory.give_up().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let vmms: [Arc<Counting>; 2] = Default::default();
    *vmms[0].in_save.lock().unwrap() = save;
    *vmms[0].at_pass.lock().unwrap() = pass;
    let vmm = |i: usize| Arc::clone(&vmms[i]) as Arc<dyn Vmm>;
    let memory = Arc::clone(&destination.memory);
    let incoming = Incoming::new(memory, vmm(1), Params::default()).unwrap();
    incoming.start(Source::Connected(there.into())).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), vmm(0), Params::default()).unwrap();
    let to = Target::Connected(here.into());
    match decider {
        Some(decider) => outgoing.start_with(to, decider).unwrap(),
        None => outgoing.start(to).unwrap(),
    }
    let outcome = Outcome {
        source: outgoing.wait(Some(LONG)),
        destination: incoming.wait(Some(LONG)),
        stats: outgoing.stats(),
        warnings: vmms[0].warnings.lock().unwrap().clone(),
    };
    let runs = vmms[1].runs.load(Ordering::SeqCst);
    let stands = vmms[0].stands.load(Ordering::SeqCst);
    let (state, good) = (outgoing.state(), outcome.source.is_ok());
    let expected = if good {
        State::Completed
    } else {
        State::Failed
    };
    assert_eq!((runs, stands, state), (u32::from(good), good, expected));
    outcome
}

/// What an error says of a broken page.
fn words(broken: Broken, made: Made, access: &str) -> String {
    match broken {
        Broken::Poisoned => format!("cannot be {access}: it is poisoned"),
        Broken::Forbidden | Broken::ReadOnly => format!("does not let it be {access}"),
        Broken::CutOff if made == Made::Unknown => "was it cut".into(),
        Broken::CutOff => format!("cannot be {access}: it is byte"),
    }
}

/// Calls `f` with each kind of memory and each of `breakages` that there is of it.
fn each(breakages: &[Broken], mut f: impl FnMut(Made, Broken)) {
    for made in ALL {
        for &broken in breakages {
            if broken != Broken::CutOff || made != Made::Private {
                eprintln!("{made:?}, {broken:?}");
                f(made, broken);
            }
        }
    }
}

const UNREADABLE: [Broken; 3] = [Broken::Poisoned, Broken::Forbidden, Broken::CutOff];

#[test]
fn a_page_that_cannot_be_read_at_the_source_fails_the_migration_and_the_guest_runs_on() {
    let name = "a_page_that_cannot_be_read_at_the_source_fails_the_migration_and_the_guest_runs_on";
    alone(name, || {
        each(&UNREADABLE, |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            if !source.make(broken, 100) {
                return;
            }
            let outcome = migrate(&source, &destination, None);
            outcome.assert_source_failed(100, &words(broken, made, "read"));
            // The destination was told why, in full: nothing was cut short.
            let told = outcome.destination.unwrap_err();
            assert_names(&told, Kind::Refused, 100, "");
            // And the guest's other pages are as they were.
            assert_eq!((source.get(0), source.get(99)), (7, 7));
        });
    });
}

#[test]
fn a_page_that_breaks_while_the_guest_stands_fails_the_migration_and_the_guest_runs_on() {
    let name =
        "a_page_that_breaks_while_the_guest_stands_fails_the_migration_and_the_guest_runs_on";
    alone(name, || {
        each(&UNREADABLE, |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
            let marks = Arc::clone(&tracker);
            let (breaks, id) = (Arc::clone(&source), source.memory.map().blocks()[0].id());
            let can = Arc::new(AtomicBool::new(true));
            let could = Arc::clone(&can);
            let hook = move || {
                could.store(breaks.make(broken, 31), Ordering::SeqCst);
                marks.mark_block(id, Bytes(31 * PAGE as u64), 1);
            };
            let outcome = migrate_with(tracker, &destination, Some(Box::new(hook)));
            if can.load(Ordering::SeqCst) {
                outcome.assert_source_failed(31, &words(broken, made, "read"));
            }
        });
    });
}

#[test]
fn a_page_that_cannot_take_contents_at_the_destination_fails_the_migration() {
    let name = "a_page_that_cannot_take_contents_at_the_destination_fails_the_migration";
    alone(name, || {
        let breakages = [
            Broken::Poisoned,
            Broken::Forbidden,
            Broken::ReadOnly,
            Broken::CutOff,
        ];
        each(&breakages, |made, broken| {
            let (source, destination) = (Side::new(Made::Private), Side::new(made));
            source.fill(7);
            destination.fill(8);
            if !destination.make(broken, 77) {
                return;
            }
            let outcome = migrate(&source, &destination, None);
            outcome.assert_destination_failed(77, &words(broken, made, "written"));
        });
    });
}

#[test]
fn a_page_that_cannot_be_made_zero_at_the_destination_fails_the_migration() {
    let name = "a_page_that_cannot_be_made_zero_at_the_destination_fails_the_migration";
    alone(name, || {
        let breakages = [
            Broken::Poisoned,
            Broken::Forbidden,
            Broken::ReadOnly,
            Broken::CutOff,
        ];
        each(&breakages, |made, broken| {
            let (source, destination) = (Side::new(Made::Private), Side::new(made));
            destination.fill(8);
            if !destination.make(broken, 200) {
                return;
            }
            let outcome = migrate(&source, &destination, None);
            outcome.assert_destination_failed(200, &words(broken, made, "written"));
        });
    });
}

#[test]
fn a_rom_that_is_mapped_read_only_is_left_alone_where_it_holds_what_is_sent() {
    let name = "a_rom_that_is_mapped_read_only_is_left_alone_where_it_holds_what_is_sent";
    alone(name, || {
        for made in ALL {
            let source = Side::with(Made::Private, true, None);
            let destination = Side::with(made, true, None);
            for page in 0..PAGES {
                destination.set(page, 0);
                destination.protect(page, libc::PROT_READ);
            }
            // Zeros onto zeros: nothing has to be written.
            let outcome = migrate(&source, &destination, None);
            outcome.source.unwrap();
            outcome.destination.unwrap();
            // Contents have to be.
            source.set(9, 1);
            let outcome = migrate(&source, &destination, None);
            outcome.assert_destination_failed(9, "does not let it be written");
        }
    });
}

/// A tmpfs of `pages` that only this process sees; it goes with it. `None` without the right.
fn small_tmpfs(pages: usize) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let target = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let options = std::ffi::CString::new(format!("size={}", pages * PAGE)).unwrap();
    // SAFETY: strings that end; this process alone gets the mount, and it goes with it.
    let mounted = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(
                c"tmpfs".as_ptr(),
                target.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            ) == 0
    };
    if !mounted {
        eprintln!("skipped: no right to mount a tmpfs");
    }
    mounted.then_some(dir)
}

fn unmount(dir: &tempfile::TempDir) {
    let target = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    // SAFETY: the mount of `small_tmpfs`.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}

#[test]
fn a_full_tmpfs_at_the_destination_fails_the_migration() {
    let name = "a_full_tmpfs_at_the_destination_fails_the_migration";
    alone(name, || {
        let Some(dir) = small_tmpfs(64) else {
            return;
        };
        let source = Side::new(Made::Private);
        source.fill(7);
        let destination = Side::with(Made::Tmpfs, false, dir.path().to_str());
        let outcome = migrate(&source, &destination, None);
        let error = outcome.destination.as_ref().unwrap_err();
        assert_eq!(error.kind(), Kind::Memory, "{error}");
        assert!(error.message().contains("is full"), "{error}");
        assert!(
            error
                .message()
                .contains("block `ram`: the page at offset 0x"),
            "{error}"
        );
        assert_eq!(outcome.source.unwrap_err().kind(), Kind::Refused);
        drop(destination);
        // Zeros for memory that nobody touched need no room.
        let source = Side::new(Made::Private);
        let destination = Side::with(Made::Tmpfs, false, dir.path().to_str());
        let outcome = migrate(&source, &destination, None);
        outcome.source.unwrap();
        outcome.destination.unwrap();
        unmount(&dir);
    });
}

/// This thread, and those that it makes, without privileges until this is dropped.
struct Rights([u32; 6]);

const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

impl Rights {
    fn given_up() -> Rights {
        // Effective, permitted and inheritable, twice.
        let mut rights = [0u32; 6];
        // SAFETY: the kernel reads two words and fills six.
        let got =
            unsafe { libc::syscall(libc::SYS_capget, CAPABILITIES.as_ptr(), rights.as_mut_ptr()) };
        assert_eq!(got, 0);
        let mut none = rights;
        (none[0], none[3]) = (0, 0);
        Rights::set(&none);
        Rights(rights)
    }

    fn set(rights: &[u32; 6]) {
        // SAFETY: the kernel reads two words and six.
        let set =
            unsafe { libc::syscall(libc::SYS_capset, CAPABILITIES.as_ptr(), rights.as_ptr()) };
        assert_eq!(set, 0);
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        Rights::set(&self.0);
    }
}

#[test]
fn a_full_tmpfs_at_the_source_is_no_trouble_where_its_holes_are_known_and_an_error_elsewhere() {
    let name =
        "a_full_tmpfs_at_the_source_is_no_trouble_where_its_holes_are_known_and_an_error_elsewhere";
    alone(name, || {
        let Some(dir) = small_tmpfs(64) else {
            return;
        };
        let path = dir.path().to_str();
        let source = Side::with(Made::Tmpfs, false, path);
        for page in 0..64 {
            source.set(page * 4, 7);
        }
        let destination = Side::new(Made::Private);
        let outcome = migrate(&source, &destination, None);
        outcome.source.unwrap();
        assert_eq!((destination.get(0), destination.get(252)), (7, 7));
        // The same memory without its descriptor. Who may look behind mappings finds the file.
        let blind = Memory::new().unwrap();
        blind
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the test's own memory, or an address that nothing looks at.
                host: unsafe { brant::memory::HostMemory::new(source.host) },
                length: Bytes((PAGES * PAGE) as u64),
                page_size: Bytes(PAGE as u64),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        let blind = Arc::new(blind);
        let migrate = || {
            let tracker = Tracker::new(Arc::clone(&blind), Clearing::default()).unwrap();
            migrate_with(tracker, &Side::new(Made::Private), None)
        };
        migrate().source.unwrap();
        // To others every page counts as touched.
        let rights = Rights::given_up();
        let outcome = migrate();
        drop(rights);
        outcome.assert_source_failed(1, "is its file system full");
        unmount(&dir);
    });
}

#[test]
fn a_page_that_cannot_be_read_fails_the_sampling_of_the_dirty_rate() {
    let name = "a_page_that_cannot_be_read_fails_the_sampling_of_the_dirty_rate";
    alone(name, || {
        each(&UNREADABLE, |made, broken| {
            let side = Side::new(made);
            side.fill(7);
            if !side.make(broken, 150) {
                return;
            }
            let tracker = Tracker::new(Arc::clone(&side.memory), Clearing::default()).unwrap();
            let params = rate::Params {
                way: Way::Sample {
                    per_gib: rate::SAMPLES_MAX,
                },
                period: rate::PERIOD_MIN,
            };
            let error = Probe::new(tracker, params).unwrap().measure().unwrap_err();
            assert_names(&error, Kind::Memory, 150, &words(broken, made, "read"));
        });
    });
}

/// Switches over after so many passes.
struct After(u32);

impl Decider for After {
    fn decide(&mut self, facts: &Facts) -> Decision {
        let enough = facts.moment == Moment::Synced && facts.pass >= self.0;
        let over = Next::SwitchOver {
            expected: Duration::ZERO,
        };
        if enough { over } else { Next::GoOn }.into()
    }
}

#[test]
fn a_migration_goes_on_without_pages_that_are_declared_poisoned_however_often_they_are_dirty() {
    let name =
        "a_migration_goes_on_without_pages_that_are_declared_poisoned_however_often_they_are_dirty";
    alone(name, || {
        const PASSES: u32 = 5;
        each(&[Broken::Poisoned, Broken::Forbidden], |made, broken| {
            let (source, destination) = (Side::new(made), Side::new(made));
            source.fill(7);
            destination.fill(8);
            if !source.make(broken, 100) || !source.make(broken, 102) {
                return;
            }
            let (at, length) = (Bytes(100 * PAGE as u64 + 1), Bytes(3 * PAGE as u64 - 2));
            source.memory.mark_poisoned("ram", at, length).unwrap();
            let id = source.memory.map().blocks()[0].id();
            let tracker = Tracker::new(Arc::clone(&source.memory), Clearing::default()).unwrap();
            let marks = Arc::clone(&tracker);
            let dirty = move || marks.mark_block(id, at, length.0);
            let again = dirty.clone();
            let decider = Box::new(After(PASSES));
            let (save, pass): (Hook, Hook) = (Box::new(dirty), Box::new(again));
            let outcome = migrate_by(tracker, &destination, Some(decider), Some(save), Some(pass));
            outcome.source.unwrap();
            outcome.destination.unwrap();
            for page in 0..PAGES {
                let lost = (100..103).contains(&page);
                assert_eq!(
                    destination.get(page),
                    if lost { 0 } else { 7 },
                    "page {page}"
                );
            }
            let told = outcome.stats.poisoned_pages;
            assert!(
                (3 * u64::from(PASSES)..=3 * u64::from(PASSES + 2)).contains(&told),
                "{told}"
            );
            let words =
                "3 pages whose contents are declared lost are not sent: block `ram`, offset \
                         0x64000, 12288 bytes";
            assert_eq!(outcome.warnings, [words]);
        });
    });
}

#[test]
fn a_page_that_arrived_before_it_was_lost_is_what_it_was() {
    let name = "a_page_that_arrived_before_it_was_lost_is_what_it_was";
    alone(name, || {
        let (source, destination) = (Side::new(Made::Private), Side::new(Made::Private));
        source.fill(7);
        let lost = Arc::clone(&source);
        let hook = move || {
            lost.protect(50, libc::PROT_NONE);
            let at = Bytes(50 * PAGE as u64);
            lost.memory.mark_poisoned("ram", at, Bytes(1)).unwrap();
        };
        let outcome = migrate(&source, &destination, Some(Box::new(hook)));
        outcome.source.unwrap();
        assert_eq!((destination.get(50), outcome.stats.poisoned_pages), (7, 0));
    });
}

#[test]
fn a_page_that_has_contents_again_is_sent_again() {
    let name = "a_page_that_has_contents_again_is_sent_again";
    alone(name, || {
        let (source, destination) = (Side::new(Made::Private), Side::new(Made::Private));
        source.fill(7);
        source.protect(50, libc::PROT_NONE);
        let (at, one) = (Bytes(50 * PAGE as u64), Bytes(1));
        source.memory.mark_poisoned("ram", at, one).unwrap();
        // What arrives takes a declaration back at the destination, too.
        destination
            .memory
            .mark_poisoned("ram", Bytes(0), one)
            .unwrap();
        let again = Arc::clone(&source);
        let hook = move || {
            again.protect(50, libc::PROT_READ | libc::PROT_WRITE);
            again.set(50, 9);
            again.memory.clear_poisoned("ram", at, one).unwrap();
        };
        let outcome = migrate(&source, &destination, Some(Box::new(hook)));
        outcome.source.unwrap();
        assert_eq!((destination.get(49), destination.get(50)), (7, 9));
        assert_eq!(destination.memory.poisoned_pages(), 0);
    });
}

#[test]
fn sampling_passes_over_pages_that_are_declared_poisoned() {
    let name = "sampling_passes_over_pages_that_are_declared_poisoned";
    alone(name, || {
        let side = Side::new(Made::Private);
        side.fill(7);
        side.protect(150, libc::PROT_NONE);
        let at = Bytes(150 * PAGE as u64);
        side.memory.mark_poisoned("ram", at, Bytes(1)).unwrap();
        let tracker = Tracker::new(Arc::clone(&side.memory), Clearing::default()).unwrap();
        let params = rate::Params {
            way: Way::Sample {
                per_gib: rate::SAMPLES_MAX,
            },
            period: rate::PERIOD_MIN,
        };
        let rate = Probe::new(tracker, params).unwrap().measure().unwrap();
        assert_eq!(rate.written, Pages(0));
    });
}

#[test]
fn a_slot_that_was_replaced_by_a_larger_one_counts_as_dirty_and_nothing_else_is_written() {
    let name =
        "a_slot_that_was_replaced_by_a_larger_one_counts_as_dirty_and_nothing_else_is_written";
    alone(name, || {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("skipped: /dev/kvm cannot be opened");
            return;
        };
        for mode in [
            KvmMode::GetAndClear,
            KvmMode::ManualProtect,
            KvmMode::InitiallySet,
        ] {
            // A bitmap of 512 bytes and one of 64 KiB and a word, and what KVM has then.
            for (pages, larger) in [(4096, 1 << 20), ((1 << 19) + 64, 1 << 20)] {
                replace_slot(&kvm, mode, pages, larger);
            }
        }
    });
}

/// KVM's slot 0 becomes larger behind brant's back, and then what it was.
fn replace_slot(kvm: &Kvm, mode: KvmMode, pages: u64, larger: u64) {
    let vm = kvm.create_vm().unwrap();
    let reserved = (larger * PAGE as u64) as usize;
    // SAFETY: a new mapping where the kernel likes; nothing of it is touched.
    let host = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), reserved, access, flags, -1, 0)
    };
    assert_ne!(host, libc::MAP_FAILED);
    let set = |pages: u64, flags: u32| {
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: pages * PAGE as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping outlives the machine.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    };
    set(pages, 0);
    let memory = Arc::new(Memory::new().unwrap());
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that nothing looks at.
            host: unsafe { brant::memory::HostMemory::new(host.cast()) },
            length: Bytes(pages * PAGE as u64),
            page_size: Bytes(PAGE as u64),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    let slot = SlotDescription {
        slot: 0,
        flags: 0,
        block: "ram".into(),
        offset: Bytes(0),
        length: Bytes(pages * PAGE as u64),
        guest_address: GuestAddress(0),
    };
    memory.add_slot(&slot).unwrap();
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    let log = KvmLog::from_vm(&vm, mode, LogSwitch::Brant).unwrap();
    tracker.add_log(Box::new(log)).unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Nothing).unwrap();
    let named = format!("{mode:?}, {pages} pages");
    let take_all = || {
        let (mut cursor, mut all) = (Cursor::default(), 0);
        loop {
            let taken = consumer.take(&mut cursor, 1024, Pages(1 << 20)).unwrap();
            if taken.is_empty() {
                return all;
            }
            all += taken.pages().0;
            taken.delivered();
        }
    };
    consumer.sync(When::Running).unwrap();
    take_all();
    set(0, 0);
    set(larger, LOGGED);
    for _ in 0..2 {
        let report = consumer.sync(When::Running).unwrap();
        assert!(
            report.warnings.iter().any(|w| w.contains("slot 0x0")),
            "{named}: {report:?}"
        );
        assert_eq!(take_all(), pages, "{named}");
    }
    // In the right order all is well again.
    memory.remove_slot(0, GuestAddress(0)).unwrap();
    set(0, 0);
    set(pages, 0);
    memory.add_slot(&slot).unwrap();
    let report = consumer.sync(When::Running).unwrap();
    assert_eq!(report.warnings, [""; 0], "{named}");
    take_all();
    assert_eq!(
        consumer.sync(When::Running).unwrap().found,
        Pages(0),
        "{named}"
    );
    consumer.stop().unwrap();
    // SAFETY: our own mapping; the machine does not run.
    unsafe { libc::munmap(host, reserved) };
}

/// Back ends that write nothing.
struct NoBackEnds;

impl VhostBackEnds for NoBackEnds {
    fn log_on(&self, _: &LogMemory) -> Result<()> {
        Ok(())
    }
    fn log_off(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_of_the_vhost_log_and_no_signal() {
    let name = "a_limit_on_the_size_of_files_is_an_error_of_the_vhost_log_and_no_signal";
    alone(name, || {
        let side = Side::new(Made::Private);
        let tracker = Tracker::new(Arc::clone(&side.memory), Clearing::default()).unwrap();
        let log = VhostLog::new(Arc::new(NoBackEnds), 1 << 32).unwrap();
        tracker.add_log(Box::new(log)).unwrap();
        let limit = libc::rlimit {
            rlim_cur: 4096,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: reads the structure; this process alone has the limit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        let consumer = tracker.consumer();
        let error = consumer.start(StartWith::Everything).unwrap_err();
        assert_eq!(error.kind(), Kind::NoMemory, "{error}");
        assert!(error.message().contains("RLIMIT_FSIZE"), "{error}");
        let limit = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        consumer.start(StartWith::Everything).unwrap();
        consumer.stop().unwrap();
    });
}
