//! Promises about *where* a VMM may call brant's functions (inside operations, while the map
//! changes, at a drop), and about what happens to the arguments.

use brant::channel::Endpoint;
use brant::dirty::kvm::{KvmLog, KvmMode, LogSwitch};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::memory::{BlockDescription, BlockFlags, Memory, SlotDescription};
use brant::migrate::steering::{Facts, Next};
use brant::migrate::{
    AcceptFrom, Blockers, ConnectTo, Decider, Decision, Incoming, Outgoing, Params,
};
use brant::sys::kvm::{UserMemoryRegion, Vm};
use brant::units::{Bytes, Pages};
use brant::vmm::{Event, EventKind, Vmm};
use brant::wire::{self, Header, Hello, Record, HEADER_LEN};
use brant::{Kind, Result};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, Arc, Mutex, Weak};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// Memory of one block, "ram", which stays mapped.
fn memory(bytes: u64, zeroed: bool) -> (Arc<Memory>, *mut u8) {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    let memory = Memory::new().unwrap();
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the test's own memory, or an address that is never accessed.
            host: unsafe { brant::memory::HostMemory::new(at.cast()) },
            length: Bytes(bytes),
            page_size: Bytes(4096),
            file: None,
            flags: BlockFlags { rom: false, zeroed },
        })
        .unwrap();
    (Arc::new(memory), at.cast())
}

/// A virtual machine that only remembers whether its slot is logged.
struct Slots(Arc<AtomicU32>);

impl Vm for Slots {
    fn check_extension(&self, _: u32) -> u64 {
        3
    }
    fn enable_cap(&mut self, _: u32, _: u64) -> Result<()> {
        Ok(())
    }
    fn set_region(&mut self, region: &UserMemoryRegion) -> Result<()> {
        self.0.store(region.flags, Ordering::SeqCst);
        Ok(())
    }
    fn get_dirty_log(&mut self, _: u32, words: &mut [u64]) -> Result<()> {
        words.fill(0);
        Ok(())
    }
    fn clear_dirty_log(&mut self, _: u32, _: u64, _: u32, _: &[u64]) -> Result<()> {
        Ok(())
    }
}

type Hook = Box<dyn Fn() + Send + Sync>;

/// A VMM with nothing to stop, and hooks.
#[derive(Default)]
struct Hooks {
    log_on: Mutex<Option<Hook>>,
    failed: Mutex<Option<Hook>>,
}

impl Vmm for Hooks {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
    fn log_on(&self, _: &[u32]) -> Result<()> {
        if let Some(hook) = &*self.log_on.lock().unwrap() {
            hook();
        }
        Ok(())
    }
    fn log_off(&self, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn event(&self, event: &Event) {
        if event.kind == EventKind::Failed {
            if let Some(hook) = &*self.failed.lock().unwrap() {
                hook();
            }
        }
    }
}

/// Never converges.
struct Forever;

impl Decider for Forever {
    fn decide(&mut self, _: &Facts) -> Decision {
        Next::GoOn.into()
    }
}

fn slot(memory: &Memory, bytes: u64) {
    memory
        .add_slot(&SlotDescription {
            slot: 0,
            flags: 0,
            block: memory.find_block("ram").unwrap(),
            offset: Bytes(0),
            length: Bytes(bytes),
            guest_address: vm_memory::GuestAddress(0),
        })
        .unwrap();
}

/// Runs something that must not hang on a thread of its own.
fn in_time<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || tx.send(f()));
    rx.recv_timeout(LONG)
        .unwrap_or_else(|_| panic!("it hangs: {what}"))
}

#[test]
fn a_cancel_inside_log_on_only_asks() {
    let (here, _) = memory(MIB, false);
    slot(&here, MIB);
    let tracker = Tracker::new(here, Clearing::default()).unwrap();
    let vmm = Arc::new(Hooks::default());
    let vm = Box::new(Slots(Arc::default()));
    let switch = LogSwitch::Vmm(vmm.clone());
    tracker
        .add_log(Box::new(KvmLog::new(vm, KvmMode::Auto, switch)))
        .unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let there = memory(MIB, false).0;
    let incoming = Incoming::new(there, Arc::new(Hooks::default()), Params::default()).unwrap();
    incoming.start(AcceptFrom::Connected(b.into())).unwrap();
    let outgoing = Outgoing::new(tracker, Blockers::new(), vmm.clone(), Params::default());
    let outgoing = Arc::new(outgoing.unwrap());
    let inside: Weak<Outgoing> = Arc::downgrade(&outgoing);
    let (called, calls) = mpsc::channel();
    *vmm.log_on.lock().unwrap() = Some(Box::new(move || {
        let outgoing = inside.upgrade().unwrap();
        assert!(outgoing.in_callback());
        outgoing.cancel().unwrap();
        called.send(()).unwrap();
    }));
    outgoing
        .start_with(ConnectTo::Connected(a.into()), Box::new(Forever))
        .unwrap();
    calls.recv_timeout(LONG).expect("cancel returns in log_on");
    let error = outgoing.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
}

#[test]
fn a_destination_may_take_its_memory_away_as_soon_as_it_hears_that_it_failed() {
    let (here, at) = memory(16 * MIB, false);
    // SAFETY: inside the block.
    unsafe { at.write_bytes(1, 16 << 20) };
    let tracker = Tracker::new(here, Clearing::default()).unwrap();
    let (there, _) = memory(16 * MIB, false);
    let vmm = Arc::new(Hooks::default());
    let (removed, removals) = mpsc::channel();
    let its = Arc::clone(&there);
    *vmm.failed.lock().unwrap() = Some(Box::new(move || {
        its.remove_block(its.find_block("ram").unwrap()).unwrap();
        removed.send(()).unwrap();
    }));
    let (a, b) = UnixStream::pair().unwrap();
    let incoming = Incoming::new(there, vmm, Params::default()).unwrap();
    incoming.start(AcceptFrom::Connected(b.into())).unwrap();
    let outgoing = Outgoing::new(
        tracker,
        Blockers::new(),
        Arc::new(Hooks::default()),
        Params::default(),
    )
    .unwrap();
    outgoing
        .start_with(ConnectTo::Connected(a.into()), Box::new(Forever))
        .unwrap();
    while incoming.stats().data_pages == 0 {
        std::thread::yield_now();
    }
    in_time("cancel", move || outgoing.cancel()).unwrap();
    removals
        .recv_timeout(LONG)
        .expect("remove_block returns inside the event");
    assert!(incoming.wait(Some(LONG)).is_err());
}

/// A source made of records.
struct Raw(UnixStream);

impl Raw {
    /// Speaks up to the first page, to a destination with one block "ram", which is announced as 1.
    fn accepted(bytes: u64, incoming: &Incoming) -> Raw {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_read_timeout(Some(LONG)).unwrap();
        incoming.start(AcceptFrom::Connected(b.into())).unwrap();
        let mut raw = Raw(a);
        let ours = wire::Ours::default();
        raw.say(Record::Hello(Hello {
            version_min: ours.version_min,
            version_max: ours.version_max,
            // Contents go as they are: without checksums, for one.
            features_offered: ours.required,
            features_required: ours.required,
            token: [7; 16],
            channel: 0,
            channels: 1,
            page_shift: 12,
            role: brant::wire::ROLE_BULK,
            software: String::new(),
        }));
        raw.hear();
        raw.say(Record::EarlyEnd(wire::BlobEnd { count: 0, bytes: 0 }));
        raw.hear();
        raw.say(Record::Block(block(1, bytes)));
        raw.say(Record::LayoutEnd(wire::LayoutEnd { blocks: 1, bytes }));
        assert_eq!(raw.hear(), Record::LayoutOk);
        raw
    }

    fn say(&mut self, record: Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        self.0.write_all(&bytes).unwrap();
    }

    fn hear(&mut self) -> Record {
        let mut head = [0; HEADER_LEN];
        self.0.read_exact(&mut head).unwrap();
        let header = Header::decode(&head).unwrap();
        let mut payload = vec![0; header.payload as usize];
        self.0.read_exact(&mut payload).unwrap();
        Record::decode(&header, &payload).unwrap()
    }
}

fn block(id: u32, bytes: u64) -> wire::Block {
    wire::Block {
        id,
        length: bytes,
        page_size: 4096,
        flags: 0,
        name: "ram".into(),
    }
}

#[test]
fn one_block_cannot_be_announced_under_many_numbers() {
    let (there, _) = memory(MIB, true);
    let incoming = Incoming::new(there, Arc::new(Hooks::default()), Params::default()).unwrap();
    let mut raw = Raw::accepted(MIB, &incoming);
    raw.say(Record::BlockAdded(block(2, MIB)));
    let error = incoming.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
    assert!(
        error.message().contains("`ram` is announced again"),
        "{error}"
    );
}

#[test]
fn a_block_that_comes_again_is_not_taken_to_be_as_zero_as_at_first() {
    let (there, at) = memory(MIB, true);
    let incoming = Incoming::new(there, Arc::new(Hooks::default()), Params::default()).unwrap();
    let mut raw = Raw::accepted(MIB, &incoming);
    raw.0
        .write_all(&Header::pages(1, Pages(0), 1).encode())
        .unwrap();
    raw.0.write_all(&[0xaa; 4096]).unwrap();
    raw.say(Record::BlockRemoved { id: 1 });
    raw.say(Record::BlockAdded(block(2, MIB)));
    raw.0
        .write_all(&Header::zeros(2, Pages(0), 256).encode())
        .unwrap();
    raw.say(Record::Marker(wire::Marker {
        number: 1,
        pass: 1,
        flags: 0,
        records: 2,
        data_pages: 1,
        zero_pages: 256,
    }));
    assert_eq!(raw.hear(), Record::Ack(wire::Ack { number: 1 }));
    // SAFETY: inside the block.
    assert_eq!(unsafe { at.read_volatile() }, 0, "it was sent as zero last");
}

#[test]
fn a_connection_that_says_nothing_does_not_end_the_listening() {
    let (there, there_at) = memory(MIB, false);
    let incoming = Incoming::new(there, Arc::new(Hooks::default()), Params::default()).unwrap();
    let bound = incoming
        .listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
        .unwrap();
    let Endpoint::Tcp(address) = bound else {
        panic!("not a TCP endpoint: {bound}");
    };
    for _ in 0..3 {
        drop(TcpStream::connect(address).unwrap());
    }
    let (here, at) = memory(MIB, false);
    // SAFETY: inside the block.
    unsafe { at.write_volatile(7) };
    let outgoing = Outgoing::new(
        Tracker::new(here, Clearing::default()).unwrap(),
        Blockers::new(),
        Arc::new(Hooks::default()),
        Params::default(),
    )
    .unwrap();
    outgoing.start(ConnectTo::Endpoint(bound)).unwrap();
    outgoing.wait(Some(LONG)).unwrap();
    incoming.wait(Some(LONG)).unwrap();
    // SAFETY: inside the block.
    assert_eq!(unsafe { there_at.read_volatile() }, 7);
}

#[test]
fn a_wait_that_runs_out_is_told_from_a_migration_that_timed_out() {
    let (here, _) = memory(MIB, false);
    let params = Params {
        connect_timeout: Duration::from_millis(300),
        ..Params::default()
    };
    let outgoing = Outgoing::new(
        Tracker::new(here, Clearing::default()).unwrap(),
        Blockers::new(),
        Arc::new(Hooks::default()),
        params,
    )
    .unwrap();
    // A peer that accepts and stays silent.
    let (a, _mute) = UnixStream::pair().unwrap();
    outgoing.start(ConnectTo::Connected(a.into())).unwrap();
    let error = outgoing.wait(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(error.kind(), Kind::Pending, "{error}");
    let error = outgoing.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
}

#[test]
fn a_tracker_that_is_dropped_leaves_no_logging_behind() {
    let (here, _) = memory(MIB, false);
    slot(&here, MIB);
    let flags = Arc::new(AtomicU32::new(0));
    let tracker = Tracker::new(here, Clearing::default()).unwrap();
    let vm = Box::new(Slots(Arc::clone(&flags)));
    tracker
        .add_log(Box::new(KvmLog::new(vm, KvmMode::Auto, LogSwitch::Brant)))
        .unwrap();
    let consumer = tracker.consumer();
    consumer.start(StartWith::Everything).unwrap();
    assert_eq!(flags.load(Ordering::SeqCst), 1);
    drop(consumer);
    drop(tracker);
    assert_eq!(flags.load(Ordering::SeqCst), 0);
}
