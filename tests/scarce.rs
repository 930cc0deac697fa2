//! Memory that runs out. Every allocation of 8 KiB or more whose size depends on a guest or a peer
//! may fail. The call or the migration then ends with an error, and succeeds when it is tried
//! again. The process never ends.
//!
//! Each operation is tried with its first such allocation failing, then its second, and so on until
//! none fails. Each test runs in a process of its own, because Rust ends a process if an allocation
//! fails that is not checked.

use crate::allocator::{FAILED, LEFT};
use crate::support::alone::alone;
use brant::dirty::consumer::Cursor;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::vhost::{LogMemory, VhostBackEnds, VhostLog};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, Map, MapObserver, Memory, SlotDescription};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::rate::{self, Probe, Way};
use brant::sys::kvm::{UserMemoryRegion, Vm};
use brant::units::{Bytes, Pages};
use brant::vmm::{StateBlob, StateSink, Vmm};
use brant::{Error, Kind, Result};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use vm_memory::GuestAddress;

const LONG: Duration = Duration::from_secs(30);
/// The time limit of a test in a process of its own.
const LIMIT: Duration = Duration::from_secs(180);
const PAGE: u64 = 4096;

/// Does `operation` with its nth large allocation failing, for every n. It either fails for want of
/// memory or goes on without that memory, and it succeeds in the end. Returns how often an
/// allocation failed.
fn scarcely(what: &str, mut operation: impl FnMut() -> Result<()>) -> i64 {
    for n in 0.. {
        eprintln!("{what}: large allocation {n} fails");
        FAILED.store(false, Ordering::Relaxed);
        LEFT.store(n, Ordering::Relaxed);
        let result = operation();
        LEFT.store(-1, Ordering::Relaxed);
        let failed = FAILED.load(Ordering::Relaxed);
        if !failed {
            result.unwrap();
            return n;
        }
        if let Err(e) = result {
            assert!(
                matches!(e.kind(), Kind::NoMemory | Kind::Refused | Kind::Vmm),
                "{what}, {n}: {e}"
            );
            assert!(e.message().contains("allocate"), "{what}, {n}: {e}");
        }
    }
    unreachable!()
}

/// Reserves memory, which only the test touches.
fn reserve(bytes: u64) -> *mut u8 {
    // SAFETY: a new mapping at an address of the kernel's choice; it stays for the life of the process.
    let at = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), bytes as usize, access, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

fn block(name: String, host: *mut u8, bytes: u64) -> BlockDescription {
    BlockDescription {
        name,
        // SAFETY: mappings of the test's own, which stay.
        host: unsafe { brant::memory::HostMemory::new(host) },
        length: Bytes(bytes),
        page_size: Bytes(PAGE),
        file: None,
        flags: BlockFlags::default(),
    }
}

fn slot(memory: &Memory, number: u32, block: &str, bytes: u64) -> SlotDescription {
    SlotDescription {
        slot: number,
        flags: 0,
        block: memory.find_block(block).unwrap(),
        offset: Bytes(0),
        length: Bytes(bytes),
        guest_address: GuestAddress(u64::from(number) << 32),
    }
}

/// How many small blocks a guest has beside the large one.
const BLOCKS: u32 = 1100;
/// The large block: its bitmap has 16 KiB.
const BYTES: u64 = 512 << 20;

/// A guest with a large block, every 4096th page of which is written, and many small ones.
fn guest(bytes: u64) -> Arc<Memory> {
    let memory = Memory::new().unwrap();
    let host = reserve(bytes);
    // SAFETY: advice about, and writes to, our own mapping.
    unsafe {
        libc::madvise(host.cast(), bytes as usize, libc::MADV_NOHUGEPAGE);
        for page in (0..bytes / PAGE).step_by(4096) {
            host.add((page * PAGE) as usize).write_volatile(1);
        }
    }
    memory.add_block(block("ram".into(), host, bytes)).unwrap();
    memory.add_slot(&slot(&memory, 0, "ram", bytes)).unwrap();
    for i in 1..BLOCKS {
        let name = format!("small-{i}");
        memory
            .add_block(block(name.clone(), reserve(PAGE), PAGE))
            .unwrap();
        memory.add_slot(&slot(&memory, i, &name, PAGE)).unwrap();
    }
    Arc::new(memory)
}

/// A virtual machine that writes a page of each slot between two harvests.
#[derive(Default)]
struct Writing(Arc<AtomicU64>);

impl Vm for Writing {
    fn check_extension(&self, _: u32) -> u64 {
        3
    }
    fn enable_cap(&mut self, _: u32, _: u64) -> Result<()> {
        Ok(())
    }
    fn set_region(&mut self, _: &UserMemoryRegion) -> Result<()> {
        Ok(())
    }
    fn get_dirty_log(&mut self, _: u32, words: &mut [u64]) -> Result<()> {
        words.fill(0);
        let at = self.0.fetch_add(1, Ordering::Relaxed) as usize;
        words[at % words.len()] = 1;
        Ok(())
    }
    fn clear_dirty_log(&mut self, _: u32, _: u64, _: u32, _: &[u64]) -> Result<()> {
        Ok(())
    }
}

fn tracker(memory: &Arc<Memory>) -> Result<Arc<Tracker>> {
    let tracker = Tracker::new(Arc::clone(memory), Clearing::default())?;
    let log = KvmLog::new(
        Box::new(Writing::default()),
        KvmMode::Auto,
        LogSwitch::Brant,
    );
    tracker.add_log(Box::new(log))?;
    Ok(tracker)
}

/// A VMM with state of 1 MiB, whose guest does not run.
struct Standing;

impl Vmm for Standing {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn save(&self, sink: &mut dyn StateSink) -> Result<()> {
        static DATA: [u8; 1 << 20] = [7; 1 << 20];
        sink.put(&StateBlob {
            name: "device",
            instance: 0,
            version: 1,
            data: &DATA,
        })
    }
    fn load(&self, _: &StateBlob<'_>) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn blocks_and_slots_come_and_go() {
    alone(LIMIT, || {
        let memory = guest(BYTES);
        let tracker = tracker(&memory).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Everything).unwrap();
        let host = reserve(BYTES);
        let failed = scarcely("adding a block", || {
            memory.add_block(block("more".into(), host, BYTES))?;
            memory
                .add_slot(&slot(&memory, BLOCKS, "more", BYTES))
                .inspect_err(|_| {
                    memory
                        .remove_block(memory.find_block("more").unwrap())
                        .unwrap();
                })
        });
        assert!(failed > 0);
        scarcely("removing a slot", || {
            memory.remove_slot(BLOCKS, GuestAddress(u64::from(BLOCKS) << 32))
        });
        scarcely("removing a block", || {
            memory.remove_block(memory.find_block("more").unwrap())
        });
        consumer.sync(When::Running).unwrap();
    });
}

/// Refuses every change of the map.
struct Refuses;

impl MapObserver for Refuses {
    fn map_changes(&self, _: &Arc<Map>, _: &Arc<Map>) -> Result<()> {
        Err(Error::new(Kind::Busy, "not now"))
    }
}

/// A log that cannot be led back for want of memory does not watch the block that stays.
#[test]
fn a_removal_that_is_refused_loses_no_write() {
    alone(LIMIT, || {
        let memory = guest(BYTES);
        let tracker = tracker(&memory).unwrap();
        let consumer = tracker.consumer();
        consumer.start(StartWith::Nothing).unwrap();
        let refuses: Arc<dyn MapObserver> = Arc::new(Refuses);
        memory.observe(Arc::downgrade(&refuses));
        let block = memory.find_block("ram").unwrap();
        let take_all = || {
            let (mut cursor, mut found) = (Cursor::default(), false);
            loop {
                let taken = consumer.take(&mut cursor, 4096, Pages(u64::MAX)).unwrap();
                if taken.is_empty() {
                    return found;
                }
                found |= taken.runs().any(|run| {
                    let pages = run.pages.first().0..run.pages.end().0;
                    run.block.id() == block && pages.contains(&5)
                });
                taken.delivered();
            }
        };
        let failed = scarcely("a removal that is refused", || {
            let error = memory.remove_block(block).unwrap_err();
            LEFT.store(-1, Ordering::Relaxed);
            take_all();
            tracker.mark_block(block, Bytes(5 * PAGE), 1);
            consumer.sync(When::Running).unwrap();
            assert!(take_all(), "page 5 is lost after: {error}");
            Ok(())
        });
        assert!(failed > 0);
    });
}

#[test]
fn a_tracker_starts_harvests_and_hands_out() {
    alone(LIMIT, || {
        let memory = guest(BYTES);
        let failed = scarcely("tracking", || {
            let tracker = tracker(&memory)?;
            let consumer = tracker.consumer();
            consumer.start(StartWith::Everything)?;
            let mut cursor = Cursor::default();
            drop(consumer.take(&mut cursor, 64, Pages(1 << 20))?);
            consumer.sync(When::Running)?;
            consumer.stop()
        });
        assert!(failed > 0);
    });
}

#[test]
fn a_dirty_rate_is_measured() {
    alone(LIMIT, || {
        let memory = guest(BYTES);
        for way in [Way::Log, Way::Sample { per_gib: 1 << 16 }] {
            let tracker = tracker(&memory).unwrap();
            let params = rate::Params {
                way,
                period: rate::PERIOD_MIN,
            };
            let probe = Probe::new(tracker, params).unwrap();
            let failed = scarcely("measuring", || probe.measure().map(|_| ()));
            assert!(failed > 0, "{way:?}");
        }
    });
}

#[test]
fn pages_are_ballooned_and_declared_lost() {
    alone(LIMIT, || {
        let memory = guest(BYTES);
        memory.set_must_tell_host(true);
        scarcely("inflating", || {
            memory.mark_ballooned(GuestAddress(0), BYTES);
            memory.clear_ballooned(GuestAddress(0), BYTES);
            Ok(())
        });
        let failed = scarcely("declaring lost", || {
            memory.mark_poisoned(memory.find_block("ram").unwrap(), Bytes(0), Bytes(BYTES))
        });
        assert!(failed > 0);
    });
}

#[test]
fn a_guest_migrates() {
    alone(LIMIT, || {
        // A small guest, because each batch allocates.
        let (here, there) = (guest(16 << 20), guest(16 << 20));
        let tracker = tracker(&here).unwrap();
        let vmm = || Arc::new(Standing) as Arc<dyn Vmm>;
        let failed = scarcely("migrating", || {
            // A migration that succeeded although an allocation failed has handed the guest over.
            let _ = here.reclaim();
            let _ = there.give_up();
            let (a, b) = UnixStream::pair().map_err(|e| Error::os("socketpair", e))?;
            let incoming = Incoming::new(Arc::clone(&there), vmm(), Params::default())?;
            let outgoing = Outgoing::new(
                Arc::clone(&tracker),
                Blockers::new(),
                vmm(),
                Params::default(),
            )?;
            incoming.start(AcceptFrom::Connected(b.into()))?;
            outgoing.start(ConnectTo::Connected(a.into()))?;
            let source = outgoing.wait(Some(LONG));
            source.and(incoming.wait(Some(LONG)))
        });
        assert!(failed > 0);
    });
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
    alone(LIMIT, || {
        let memory = Memory::new().unwrap();
        let ram = block("ram".into(), reserve(256 * PAGE), 256 * PAGE);
        memory.add_block(ram).unwrap();
        let tracker = Tracker::new(Arc::new(memory), Clearing::default()).unwrap();
        let log = VhostLog::new(Arc::new(NoBackEnds), 1 << 32).unwrap();
        tracker.add_log(Box::new(log)).unwrap();
        let limit = libc::rlimit {
            rlim_cur: 4096,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: reads the structure; the limit is this process' own.
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
