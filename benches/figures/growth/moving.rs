//! Growth with a guest's size, kind of memory and runs when it moves: what is sent, how a
//! destination begins, and the cost of a cancel. From one memory to another in this process, over a
//! pair of sockets.

use super::{backed, block, on_a_processor, row, row_of, Growth, Turn, MIB};
use crate::machine::{Reserved, GIB};
use crate::report::Report;
use brant::dirty::tracker::{Clearing, Tracker};
use brant::memory::{BackingFile, Memory};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::PAGE_SIZE;
use brant::vmm::{Event, EventKind, Vmm};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const HUGE_PAGE: u64 = 2 * MIB;

/// A VMM whose guest is only memory. It reports each new state of its migration, with the
/// nanoseconds for which the migration's thread was on a processor until then.
struct Watched(Mutex<Sender<(String, u64)>>);

impl Vmm for Watched {
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
            // A receiver that is not interested has dropped its end.
            let told = (event.message.clone(), on_a_processor());
            let _ = self.0.lock().unwrap().send(told);
        }
    }
}

/// A migration from one memory to another.
pub struct Migration {
    outgoing: Outgoing,
    incoming: Incoming,
    /// The states that the destination enters.
    entered: Receiver<(String, u64)>,
}

impl Migration {
    pub fn new(here: Arc<Memory>, there: Arc<Memory>) -> Migration {
        Migration::with(here, there, Params::default())
    }

    fn with(here: Arc<Memory>, there: Arc<Memory>, params: Params) -> Migration {
        let tracker = Tracker::new(here, Clearing::default()).unwrap();
        let vmm = |sender| Arc::new(Watched(Mutex::new(sender))) as Arc<dyn Vmm>;
        let blockers = Blockers::new();
        let (unheard, _) = channel();
        let outgoing = Outgoing::new(tracker, blockers, vmm(unheard), params).unwrap();
        let (sender, entered) = channel();
        let incoming = Incoming::new(there, vmm(sender), Params::default()).unwrap();
        Migration {
            outgoing,
            incoming,
            entered,
        }
    }

    pub fn run(&self) {
        self.start();
        self.outgoing.wait(Some(LONG)).unwrap();
        self.incoming.wait(Some(LONG)).unwrap();
    }

    fn start(&self) {
        let (a, b) = UnixStream::pair().unwrap();
        self.incoming
            .start(AcceptFrom::Connected(b.into()))
            .unwrap();
        self.outgoing.start(ConnectTo::Connected(a.into())).unwrap();
    }

    /// Starts the destination, and returns when it has everything that it needs for the first page.
    /// Returns the nanoseconds that its thread needed for that.
    fn start_receiving(&self) -> u64 {
        self.start();
        loop {
            let (state, nanoseconds) = self.entered.recv_timeout(LONG).unwrap();
            if state == "receiving" {
                return nanoseconds;
            }
        }
    }

    fn cancel(&self) {
        self.outgoing.cancel().unwrap();
        assert!(self.outgoing.wait(Some(LONG)).is_err());
        assert!(self.incoming.wait(Some(LONG)).is_err());
    }
}

/// Memory of a kind.
struct Ram {
    address: *mut u8,
    length: u64,
    page_size: u64,
    /// The file of a shared mapping.
    file: Option<OwnedFd>,
}

impl Ram {
    fn new(kind: &str, length: u64) -> Ram {
        let huge = kind == "hugetlb";
        let memfd = |flags| {
            // SAFETY: a name, and a descriptor of our own.
            let fd = unsafe { libc::memfd_create(c"growth".as_ptr(), libc::MFD_CLOEXEC | flags) };
            assert!(fd >= 0);
            // SAFETY: as above.
            Some(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let file = match kind {
            "anonymous" => None,
            "file" => Some(OwnedFd::from(tempfile::tempfile().unwrap())),
            "hugetlb" => memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB),
            _ => memfd(0),
        };
        if let Some(fd) = &file {
            File::from(fd.try_clone().unwrap()).set_len(length).unwrap();
        }
        let shared = file.is_some() && kind != "memfd-private";
        let flags = match (&file, shared) {
            (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (_, true) => libc::MAP_SHARED,
            (_, false) => libc::MAP_PRIVATE,
        };
        let fd = file.as_ref().map_or(-1, |fd| fd.as_raw_fd());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length as usize, access, flags, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Ram {
            address: at.cast(),
            length,
            page_size: if huge { HUGE_PAGE } else { PAGE_SIZE },
            file: file.filter(|_| shared),
        }
    }

    /// A guest whose memory is a part of this.
    fn memory(&self, offset: u64, length: u64) -> Arc<Memory> {
        let file = self.file.as_ref().map(|fd| BackingFile {
            fd: fd.try_clone().unwrap(),
            offset,
        });
        let memory = Memory::new().unwrap();
        let host = self.address.wrapping_add(offset as usize);
        backed(&memory, "ram", host, length, self.page_size, file);
        Arc::new(memory)
    }

    fn fill(&self, from: u64, length: u64, byte: u8) {
        assert!(from + length <= self.length);
        let at = self.address.wrapping_add(from as usize);
        // SAFETY: inside our own mapping.
        unsafe { std::ptr::write_bytes(at, byte, length as usize) };
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping; who used it is gone.
        unsafe { libc::munmap(self.address.cast(), self.length as usize) };
    }
}

/// Huge pages as long as this exists, from the machine's own if it has enough.
struct HugePages(Option<String>);

impl HugePages {
    const PATH: &'static str = "/proc/sys/vm/nr_hugepages";

    fn new(bytes: u64) -> Result<HugePages, String> {
        let wanted = bytes / HUGE_PAGE;
        let free = || {
            let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let of = |name| {
                let line = text.lines().find(|line| line.starts_with(name))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            };
            match of("Hugepagesize:") {
                Some(2048) => of("HugePages_Free:").unwrap_or(0),
                _ => 0,
            }
        };
        if free() >= wanted {
            return Ok(HugePages(None));
        }
        let before = std::fs::read_to_string(Self::PATH).map_err(|e| e.to_string())?;
        let held: u64 = before.trim().parse().unwrap_or(0);
        std::fs::write(Self::PATH, (held + wanted).to_string())
            .map_err(|e| format!("no huge pages are free, and {} says {e}", Self::PATH))?;
        let pages = HugePages(Some(before));
        match free() >= wanted {
            true => Ok(pages),
            false => Err(format!(
                "no {bytes} bytes of huge pages of 2 MiB can be had"
            )),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(Self::PATH, before);
        }
    }
}

fn sending(report: &mut Report) {
    for kind in ["anonymous", "memfd", "memfd-private", "file", "hugetlb"] {
        for what in ["data", "zeros", "holes"] {
            let name = format!("send_{what}/{kind}");
            if !report.wants(&format!("growth.{name}")) {
                continue;
            }
            let (small, nothing) = match (kind, what) {
                // Both sides together: 128 MiB.
                ("hugetlb", _) => (8 * MIB, HUGE_PAGE),
                // An almost free operation needs a large size, or all of its cost is fixed. A
                // file's length is limited by its file system.
                ("file", "holes") => (256 * MIB, PAGE_SIZE),
                (_, "holes") => (8 * GIB, PAGE_SIZE),
                _ => (32 * MIB, PAGE_SIZE),
            };
            let length = small * super::APART;
            let _pages = match kind {
                "hugetlb" => match HugePages::new(2 * length) {
                    Ok(pages) => Some(pages),
                    Err(reason) => {
                        report.skipped(&format!("growth.{name}"), &reason);
                        continue;
                    }
                },
                _ => None,
            };
            let [here, there] = [Ram::new(kind, length), Ram::new(kind, length)];
            if what != "holes" {
                let byte = [7, 0][usize::from(what == "zeros")];
                here.fill(0, length, byte);
            }
            // Both sizes send the same pages, in one run or in eight.
            let mut at = 0u64;
            let piece = |size| {
                let offset = at.next_multiple_of(size) % length;
                at = offset + size;
                Migration::new(here.memory(offset, size), there.memory(offset, size))
            };
            let growth = Growth::Beside(nothing);
            row(report, &name, small, growth, piece, |_, it| it.run());
        }
    }
}

/// The same number of pages, with holes between them: each page and each hole is a run.
fn sending_runs(report: &mut Report) {
    const PIECES: u64 = 2048;
    let length = 2 * super::APART * PIECES * PAGE_SIZE;
    for kind in ["anonymous", "memfd"] {
        let name = format!("send_data/{kind}/runs");
        if !report.wants(&format!("growth.{name}")) {
            continue;
        }
        let [here, there] = [Ram::new(kind, length), Ram::new(kind, length)];
        for i in 0..super::APART * PIECES {
            here.fill(2 * i * PAGE_SIZE, PAGE_SIZE, 7);
        }
        let mut at = 0u64;
        let piece = |pieces| {
            let size = 2 * pieces * PAGE_SIZE;
            let offset = at.next_multiple_of(size) % length;
            at = offset + size;
            Migration::new(here.memory(offset, size), there.memory(offset, size))
        };
        let growth = Growth::Beside(1);
        row(report, &name, PIECES, growth, piece, |_, it| it.run());
    }
}

/// Two memories whose first 16 MiB are touched, and a source that sends them slowly: it stays in
/// the middle of its first pass.
fn slow(length: u64) -> (Migration, [Reserved; 2]) {
    const TOUCHED: u64 = 16 * MIB;
    let sides = [Reserved::new(length), Reserved::new(length)];
    let made = sides.each_ref().map(|side| {
        let memory = Arc::new(Memory::new().unwrap());
        block(&memory, "ram", side.address(), length);
        memory
    });
    // SAFETY: inside a mapping of our own.
    unsafe { std::ptr::write_bytes(sides[0].address(), 7, TOUCHED as usize) };
    let [here, there] = made;
    let params = Params {
        max_bandwidth: Some(1 << 20),
        ..Params::default()
    };
    (Migration::with(here, there, params), sides)
}

fn beginning_and_end(report: &mut Report) {
    const SMALL: u64 = 512 * GIB;
    let growth = || Growth::Beside(GIB);
    let (name, begin) = ("destination_start", |_, made: &mut [(Migration, _)]| {
        let begun = Instant::now();
        let nanoseconds = made.iter().map(|it| it.0.start_receiving()).sum::<u64>();
        Turn {
            cpu: nanoseconds as f64 / 1e3,
            wall: begun.elapsed().as_secs_f64() * 1e6,
        }
    });
    row_of(report, name, SMALL, growth(), slow, begin);
    let begun = |length| {
        let made = slow(length);
        made.0.start_receiving();
        // Both sides are in the middle once pages have arrived.
        while made.0.incoming.stats().data_pages == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        made
    };
    let end = |_, it: &mut (Migration, _)| it.0.cancel();
    row(report, "cancel", SMALL, growth(), begun, end);
}

/// All figures of this file.
pub fn measure(report: &mut Report) {
    sending(report);
    sending_runs(report);
    beginning_and_end(report);
}
