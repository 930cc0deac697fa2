//! What an incoming migration means for objects that knew the memory before: consumers of a tracker
//! of the same guest, and a block's promise to read as zero.

use brant::dirty::consumer::{Consumer, Cursor};
use brant::dirty::tracker::{Clearing, StartWith, Tracker};
use brant::dirty::When;
use brant::memory::{BlockDescription, BlockFlags, HostMemory, Memory};
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::{Bytes, Pages};
use brant::vmm::Vmm;
use brant::Result;
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const PAGES: u64 = 1024;
const PAGE: usize = 4096;
const LONG: Option<Duration> = Some(Duration::from_secs(60));

struct Nothing;

impl Vmm for Nothing {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn run(&self) -> Result<()> {
        Ok(())
    }
}

/// A guest of one block. The test is its "vCPU".
struct Guest {
    at: *mut u8,
    memory: Arc<Memory>,
    tracker: Arc<Tracker>,
}

impl Guest {
    fn new(zeroed: bool) -> Guest {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES as usize * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        let memory = Arc::new(Memory::new().unwrap());
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: unmapped when the guest is dropped, after every object that uses it.
                host: unsafe { HostMemory::new(at.cast()) },
                length: Pages(PAGES).bytes(),
                page_size: Bytes(PAGE as u64),
                file: None,
                flags: BlockFlags { rom: false, zeroed },
            })
            .unwrap();
        Guest {
            at: at.cast(),
            tracker: Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap(),
            memory,
        }
    }

    /// Writes a page, and marks it.
    fn write(&self, page: u64, byte: u8) {
        let id = self.memory.map().block_named("ram").unwrap().id();
        // SAFETY: inside the mapping, to which there are no references.
        unsafe {
            std::ptr::write_bytes(self.at.add(page as usize * PAGE), byte, PAGE);
        }
        self.tracker
            .mark_block(id, Pages(page).bytes(), PAGE as u64);
    }

    fn byte(&self, page: u64) -> u8 {
        // SAFETY: inside the mapping.
        unsafe { self.at.add(page as usize * PAGE + 100).read_volatile() }
    }

    fn moves_to(&self, to: &Guest) {
        let (a, b) = UnixStream::pair().unwrap();
        let incoming =
            Incoming::new(Arc::clone(&to.memory), Arc::new(Nothing), Params::default()).unwrap();
        let outgoing = Outgoing::new(
            Arc::clone(&self.tracker),
            Blockers::new(),
            Arc::new(Nothing),
            Params::default(),
        )
        .unwrap();
        incoming.start(AcceptFrom::Connected(b.into())).unwrap();
        outgoing.start(ConnectTo::Connected(a.into())).unwrap();
        outgoing.wait(LONG).unwrap();
        incoming.wait(LONG).unwrap();
        for page in 0..PAGES {
            assert_eq!(self.byte(page), to.byte(page), "page {page}");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; migrations and consumers are gone.
        unsafe { libc::munmap(self.at.cast(), PAGES as usize * PAGE) };
    }
}

/// All pending pages.
fn taken(consumer: &Consumer) -> BTreeSet<u64> {
    let (mut cursor, mut found) = (Cursor::default(), BTreeSet::new());
    loop {
        let taken = consumer.take(&mut cursor, 64, Pages(PAGES)).unwrap();
        if taken.is_empty() {
            return found;
        }
        for run in taken.runs() {
            found.extend(run.pages.first().0..run.pages.end().0);
        }
        taken.delivered();
    }
}

#[test]
fn what_arrives_counts_as_written_for_whoever_follows_the_memory() {
    let (here, there) = (Guest::new(false), Guest::new(false));
    for page in 0..100 {
        here.write(page, 1);
    }
    let backup = here.tracker.consumer();
    backup.start(StartWith::Everything).unwrap();
    assert_eq!(taken(&backup).len() as u64, PAGES);

    here.moves_to(&there);
    // The guest goes on there: new contents, and a page that becomes zero.
    there.write(3, 7);
    there.write(500, 8);
    there.write(50, 0);
    there.moves_to(&here);

    backup.sync(When::Stopped).unwrap();
    let found = taken(&backup);
    for page in [3, 500, 50] {
        assert!(found.contains(&page), "page {page} of {found:?}");
    }
    backup.stop().unwrap();
}

#[test]
fn a_block_in_which_a_guest_ran_is_not_taken_for_zeroed() {
    let said: [fn(&Guest); 3] = [
        |g| g.memory.runs_here().unwrap(),
        |g| g.memory.reclaim().unwrap(),
        |_| (),
    ];
    for (case, runs) in said.into_iter().enumerate() {
        let (from, to) = (Guest::new(false), Guest::new(true));
        from.write(1, 9);
        runs(&to);
        // An earlier guest, which ends.
        to.write(5, 6);
        to.memory.give_up().unwrap();
        from.moves_to(&to);
        assert_eq!(to.byte(5), 0, "case {case}");
    }
}
