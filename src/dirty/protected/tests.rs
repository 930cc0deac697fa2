//! Which pages are protected, which are noted, and which leave the note.

use super::*;
use crate::memory::testing::kinds::{Area, Made, HUGE};
use crate::memory::{BlockDescription, BlockFlags, HostMemory, Memory};
use crate::sys::uffd::Userfault;
use crate::units::Bytes;
use std::collections::BTreeSet;

struct Tracked {
    area: Area,
    block: Arc<Block>,
    userfault: Userfault,
    pagemap: Pagemap,
    regions: Vec<PageRegion>,
}

impl Tracked {
    fn new(made: Made, length: usize) -> Option<Tracked> {
        let userfault = match Userfault::write_protect_async() {
            Ok(userfault) => userfault,
            Err(e) => {
                eprintln!("skipped: {e}");
                return None;
            }
        };
        let area = Area::new(made, length)?;
        let memory = Memory::new().unwrap();
        memory
            .add_block(BlockDescription {
                name: "ram".into(),
                // SAFETY: the area lives as long as the block.
                host: unsafe { HostMemory::new(area.at) },
                length: Bytes(area.length as u64),
                page_size: Bytes(PAGE_SIZE),
                file: None,
                flags: BlockFlags::default(),
            })
            .unwrap();
        Some(Tracked {
            block: Arc::clone(&memory.map().blocks()[0]),
            area,
            userfault,
            pagemap: Pagemap::open().unwrap(),
            regions: vec![PageRegion::default(); 64],
        })
    }

    fn begin(&self) -> Protected {
        let start = self.area.at as u64;
        let range = start..start + self.area.length as u64;
        self.userfault.register(range).unwrap();
        Protected::new(&self.block, &self.pagemap).unwrap()
    }

    fn collect(&mut self, protected: &mut Protected) -> BTreeSet<usize> {
        let mut pending = Bitmap::new(self.area.pages()).unwrap();
        protected
            .collect(&self.pagemap, &mut self.regions, &mut pending)
            .unwrap();
        (0..pending.len()).filter(|i| pending.test(*i)).collect()
    }
}

fn noted(protected: &Protected) -> BTreeSet<usize> {
    let all = Pages(0)..protected.block.pages();
    let mut pages = BTreeSet::new();
    protected
        .hidden_holes
        .runs(all, |run| pages.extend(run.start.index()..run.end.index()));
    pages
}

#[test]
fn a_page_is_noted_when_it_is_protected_empty_and_leaves_the_note_when_it_is_found_written() {
    for made in [Made::Anonymous, Made::MemfdPrivate] {
        let Some(mut t) = Tracked::new(made, 5 * HUGE) else {
            return;
        };
        let piece_of = |page: usize| {
            let address = t.area.at as usize + page * 4096;
            (address / HUGE * HUGE).saturating_sub(t.area.at as usize) / 4096
                ..((address / HUGE + 1) * HUGE - t.area.at as usize) / 4096
        };
        let (first, second) = (piece_of(700), piece_of(1800));
        t.area.write(700, 1);
        // A read maps the kernel's page of zeros or, in a private file mapping, the file's page.
        t.area.read(701);
        let mut protected = t.begin();
        let mut expected: BTreeSet<usize> = first.collect();
        expected.remove(&700);
        assert_eq!(
            noted(&protected),
            expected,
            "{made:?}: the others stay as they are"
        );
        assert_eq!(t.collect(&mut protected), BTreeSet::new());
        t.area.write(702, 1);
        t.area.write(1800, 1);
        t.area.read(1801);
        assert_eq!(
            t.collect(&mut protected),
            BTreeSet::from([702, 1800]),
            "{made:?}"
        );
        expected.remove(&702);
        expected.extend(second);
        expected.remove(&1800);
        assert_eq!(noted(&protected), expected, "{made:?}");
        t.area.write(701, 1);
        t.area.write(1801, 1);
        t.area.write(700, 2);
        let written = BTreeSet::from([700, 701, 1801]);
        assert_eq!(t.collect(&mut protected), written, "{made:?}");
        expected = &expected - &written;
        assert_eq!(noted(&protected), expected, "{made:?}");
        assert!(protected.heap_bytes() > 0);
        protected.end();
        assert!(t.block.hidden_holes().is_none());
    }
}

#[test]
fn shared_memory_is_protected_whole_and_nothing_is_noted() {
    let Some(mut t) = Tracked::new(Made::Memfd, 3 * HUGE) else {
        return;
    };
    let mut protected = t.begin();
    assert!(protected.pieces.is_none() && noted(&protected).is_empty());
    t.area.write(600, 1);
    // The page's entry goes and its contents stay, so only the mark in the entry tells that it was
    // written.
    // SAFETY: inside this test's own mapping.
    unsafe { libc::madvise(t.area.page(600).cast(), 4096, libc::MADV_DONTNEED) };
    assert!(t.collect(&mut protected).contains(&600));
}

#[test]
fn a_call_that_takes_long_is_followed_by_shorter_ones_and_none_ends_inside_a_piece() {
    for piece in [PIECE, 1 << 30, 4 << 30] {
        let pace = Pace::new(piece);
        let mut ends = BTreeSet::new();
        let mut at = 5 * piece;
        let mut call = |took: Duration| {
            let begun = Instant::now();
            let done = pace.call(at, |end| {
                while begun.elapsed() < took {
                    std::hint::spin_loop();
                }
                Ok(end)
            });
            let end = done.unwrap();
            assert!(end > at && end.is_multiple_of(piece), "{at:#x} to {end:#x}");
            ends.insert(end - at);
            at = end;
        };
        for _ in 0..20 {
            call(CALL + CALL / 10);
        }
        assert_eq!(pace.step.get(), piece);
        let begun = Instant::now();
        // On a busy machine any call may take long now and then.
        while pace.step.get() < STEP_MAX.max(piece) {
            assert!(begun.elapsed() < Duration::from_secs(30));
            call(Duration::ZERO);
        }
        assert!(ends.iter().all(|bytes| *bytes <= STEP_MAX.max(piece)));
    }
}
