//! Tests of which pages are backed ahead of contents, and which never are.

use super::*;
use crate::channel::{Channel, Io};
use crate::error::Result;
use crate::memory::testing::kinds::{Area, Filler, HugePool, Made, HUGE, PAGE, SMALL};
use crate::memory::{BackingFile, BlockDescription, BlockFlags, HostMemory, PinRecall};
use crate::migrate::incoming::account::Account;
use crate::migrate::incoming::lane::Lane;
use crate::migrate::incoming::placement::Placement;
use crate::migrate::lane_name::LaneName;
use crate::units::{Bytes, STRETCH_PAGES};
use crate::vmm::{Event, Vmm};
use crate::wire::Header;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PAGES: usize = 3 * STRETCH_PAGES as usize;
/// Longer than anything in these tests takes on any machine.
const LONG: Duration = Duration::from_secs(60);

/// A VMM that counts the threads that start, and keeps the events that it is told.
#[derive(Default)]
struct Machine(AtomicU32, Mutex<Vec<String>>);

impl Vmm for Machine {
    fn thread_start(&self, role: Role) {
        assert_eq!(role, Role::Prefault);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn event(&self, event: &Event) {
        assert_eq!(event.kind, EventKind::Warning);
        self.1.lock().unwrap().push(event.message.clone());
    }
}

struct World {
    area: Area,
    memory: Arc<Memory>,
    machine: Arc<Machine>,
    account: LaneAccount,
    lane: Lane,
    placement: Placement,
    recall: Arc<PinRecall>,
    source: UnixStream,
}

impl World {
    fn new(area: Area) -> World {
        let memory = Arc::new(Memory::new().unwrap());
        let file = area.file.as_ref().filter(|_| area.made.is_told());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the area lives as long as the memory does.
                host: unsafe { HostMemory::new(area.at) },
                length: Bytes(area.length as u64),
                page_size: Bytes(area.made.page_size() as u64),
                file: file.map(|file| BackingFile {
                    fd: file.try_clone().unwrap().into(),
                    offset: 0,
                }),
                flags: BlockFlags::default(),
            })
            .unwrap();
        let mut account = Account::new(Arc::clone(&memory));
        account.add(0, &memory.map().blocks()[0]).unwrap();
        let account = account.of_lane();
        let (source, ours) = UnixStream::pair().unwrap();
        let machine = Arc::<Machine>::default();
        let vmm = Callbacks::new(Arc::clone(&machine) as Arc<dyn Vmm>, 1);
        World {
            recall: PinRecall::of(&memory).unwrap(),
            placement: Placement::new(Some(Prefault::new(Arc::clone(&memory), vmm, 1))),
            area,
            memory,
            machine,
            account,
            lane: Lane::new(Channel::from_fd(ours.into()).unwrap(), LaneName::default()),
            source,
        }
    }

    /// Receives a run that is filled with `byte`. `half_way` is called when only the first page of
    /// the run was sent.
    fn place(
        &mut self,
        run: Range<usize>,
        byte: u8,
        half_way: impl FnOnce(&Area, &Memory) + Send,
    ) -> Result<()> {
        let header = Header::pages(0, Pages(run.start as u64), run.len() as u32);
        let World {
            area,
            memory,
            account,
            lane,
            placement,
            recall,
            source,
            ..
        } = self;
        let (area, memory) = (&*area, &**memory);
        let ends = source.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let contents = vec![byte; run.len() * PAGE];
                source.write_all(&contents[..PAGE]).unwrap();
                half_way(area, memory);
                // Nobody reads on after an error.
                let _ = source.write_all(&contents[PAGE..]);
            });
            let placed = placement.place(lane, account, &header, recall, &Io::patient(LONG));
            if placed.is_err() {
                ends.shutdown(std::net::Shutdown::Both).unwrap();
            }
            placed
        })
    }

    fn wants(&mut self, run: Range<usize>) -> bool {
        let (first, count) = (Pages(run.start as u64), Pages(run.len() as u64));
        let block = Arc::clone(&self.memory.map().blocks()[0]);
        let pin = self.memory.pin(&block).unwrap();
        let run = pin.run(first, count).unwrap();
        self.account.refresh();
        self.account.wants_backing(&(pin, run))
    }
}

fn holds(area: &Area, run: Range<usize>, byte: u8) {
    for page in run {
        // SAFETY: a page of the area.
        let bytes = unsafe { std::slice::from_raw_parts(area.page(page), PAGE) };
        assert!(
            bytes.iter().all(|b| *b == byte),
            "{:?}: page {page}",
            area.made
        );
    }
}

/// Waits until the area takes `bytes` bytes of the host's memory.
fn await_backed(area: &Area, bytes: usize) {
    let begun = Instant::now();
    while area.backed() != bytes {
        assert!(begun.elapsed() < LONG, "{} of {bytes}", area.backed());
        std::thread::yield_now();
    }
}

#[test]
fn contents_arrive_whole_and_no_page_beside_their_run_is_backed() {
    for made in SMALL {
        let Some(area) = Area::new(made, PAGES * PAGE) else {
            continue;
        };
        let mut world = World::new(area);
        let (first, second) = (520..920, 1024..1040);
        world.place(first.clone(), 7, |_, _| ()).unwrap();
        world.place(second.clone(), 8, |_, _| ()).unwrap();
        // The page cache of a file system on a disk adds pages of its own.
        if made != Made::Disk {
            // A private copy of a file's page needs the file's page too.
            let private = matches!(made, Made::MemfdPrivate | Made::MemfdPrivateUntold);
            let copies = if private && world.area.file.is_some() {
                2
            } else {
                1
            };
            let pages = copies * (first.len() + second.len());
            assert_eq!(world.area.backed(), pages * PAGE, "{made:?}");
        }
        holds(&world.area, first.clone(), 7);
        holds(&world.area, second, 8);
        // The same run comes again, when all of it is backed.
        world.place(first.clone(), 9, |_, _| ()).unwrap();
        holds(&world.area, first, 9);
    }
}

#[test]
fn the_rest_of_a_run_is_backed_while_its_beginning_arrives() {
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        eprintln!("skipped: there is one processor");
        return;
    }
    let mut world = World::new(Area::new(Made::Anonymous, PAGES * PAGE).unwrap());
    let run = 512..1024;
    let all = run.len() * PAGE;
    let backed = move |area: &Area, _: &Memory| await_backed(area, all);
    world.place(run.clone(), 7, backed).unwrap();
    holds(&world.area, run, 7);
    assert_eq!(world.area.backed(), all);
    // One thread starts and is announced, however many runs come.
    world.place(0..512, 7, |_, _| ()).unwrap();
    assert_eq!(world.machine.0.load(Ordering::SeqCst), 1);
}

#[test]
fn memory_that_is_backed_or_that_a_userfaultfd_watches_is_left_alone() {
    let mut world = World::new(Area::new(Made::Anonymous, PAGES * PAGE).unwrap());
    assert!(world.wants(0..512));
    (0..512).for_each(|page| world.area.write(page, 1));
    assert!(!world.wants(0..512));
    // A page that was only read maps the kernel's page of zeros, which does not back it.
    (512..1024).for_each(|page| assert_eq!(world.area.read(page), 0));
    assert!(world.wants(512..1024));
    // A hole in the middle of backed pages is not backed either.
    world.area.write(1024, 1);
    world.area.write(1026, 1);
    assert!(world.wants(1024..1027));

    world.place(0..512, 7, |_, _| ()).unwrap();
    holds(&world.area, 0..512, 7);
    assert_eq!(world.machine.0.load(Ordering::SeqCst), 0, "no helper");

    let mut world = World::new(Area::new(Made::Anonymous, PAGES * PAGE).unwrap());
    let Some(filler) = Filler::new(&world.area, 0..PAGES, 0) else {
        return;
    };
    assert!(!world.wants(0..512));
    world.place(3..4, 7, |_, _| ()).unwrap();
    holds(&world.area, 3..4, 7);
    assert_eq!(world.area.backed(), PAGE);
    drop(filler);
}

#[test]
fn a_block_is_removed_while_its_run_is_backed_and_its_source_says_nothing() {
    let mut world = World::new(Area::new(Made::Anonymous, PAGES * PAGE).unwrap());
    let removed = |_: &Area, memory: &Memory| {
        // The removal returns when no thread of brant's can touch the block. The source is silent
        // until then.
        memory
            .remove_block(memory.find_block("ram").unwrap())
            .unwrap();
    };
    world.place(0..512, 7, removed).unwrap();
    // After the removal no further page is backed.
    let backed = world.area.backed();
    world.place(512..1024, 7, |_, _| ()).unwrap();
    assert_eq!(world.area.backed(), backed);
}

#[test]
fn a_page_that_cannot_be_backed_is_an_error_with_words() {
    let mut world = World::new(Area::new(Made::Anonymous, PAGES * PAGE).unwrap());
    let at = world.area.page(300).cast();
    // SAFETY: a page of the area, which only the kernel touches from here on.
    assert_eq!(unsafe { libc::mprotect(at, PAGE, libc::PROT_NONE) }, 0);
    let error = world.place(0..512, 7, |_, _| ()).unwrap_err();
    let wanted = "block `ram`: the page at offset 0x12c000 cannot be written";
    assert!(error.message().contains(wanted), "{error}");
    assert_eq!(world.placement.prefaulted().failures, 1);
    // The VMM hears of the failure once, and nothing is backed ahead after it.
    world.placement.finish();
    world.placement.finish();
    let told = world.machine.1.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("memory is no longer backed ahead"),
        "{told:?}"
    );
    assert!(told[0].contains(wanted), "{told:?}");
}

#[test]
fn pages_that_were_backed_ahead_are_counted_and_no_others() {
    let mut world = World::new(Area::new(Made::Anonymous, PAGES * PAGE).unwrap());
    let counted = |world: &World| {
        let done = world.placement.prefaulted();
        assert_eq!(done.failures, 0);
        done.pages
    };
    world.place(0..512, 7, |_, _| ()).unwrap();
    assert_eq!(counted(&world), 512);
    // The run is backed by now.
    world.place(0..512, 8, |_, _| ()).unwrap();
    assert_eq!(counted(&world), 512);
    // A short run is backed by the copy, not ahead of it.
    world.place(600..603, 9, |_, _| ()).unwrap();
    assert_eq!(counted(&world), 512);
    world.place(1024..1124, 9, |_, _| ()).unwrap();
    assert_eq!(counted(&world), 612);
    assert!(world.machine.1.lock().unwrap().is_empty());
}

#[test]
fn a_huge_page_is_backed_whole_and_no_other() {
    let Some(_pool) = HugePool::new(3) else {
        return;
    };
    let Some(area) = Area::new(Made::HugeMemfd, 3 * HUGE) else {
        return;
    };
    let mut world = World::new(area);
    assert!(world.wants(512..1024));
    world.place(512..1024, 7, |_, _| ()).unwrap();
    assert_eq!(HugePool::free(), 2);
    assert!(!world.wants(512..1024));
    holds(&world.area, 512..1024, 7);
}
