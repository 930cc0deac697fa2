//! How the service begins and ends, and what is refused meanwhile.

use super::{marks, quiet, Asked, Guest, KINDS};
use crate::error::{Error, Kind};
use crate::memory::ownership::Stage;
use crate::memory::served::{Absent, How, Served};
use crate::memory::testing::kinds::{Area, Made, PAGE};
use crate::memory::{BlockDescription, BlockId, Memory, Whose, WrittenObserver};
use crate::units::Pages;
use std::ops::Range;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

/// Whether an access of a page raises a signal, as the kernel says: it answers EFAULT to a write(2)
/// of such a page.
fn raises(area: &Area, page: usize) -> bool {
    use std::os::fd::AsRawFd;
    let (_reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the kernel reads one byte there, or says that it cannot.
    let put = unsafe { libc::write(writer.as_raw_fd(), area.page(page).cast(), 1) };
    put < 0
}

#[test]
fn a_page_that_is_given_up_raises_a_signal_also_after_the_end() {
    for made in KINDS {
        let old = |area: &Area| (0..8).for_each(|page| area.write(page, 0xee));
        let guest = Guest::new(made, 8, &[0..4], How::default(), old).unwrap();
        let waits = {
            let area = Arc::clone(&guest.area);
            std::thread::spawn(move || raises(&area, 1))
        };
        assert_eq!(guest.wanted.recv().unwrap(), 1..2);
        let lost = guest
            .served()
            .lose(&guest.block, Pages(1)..Pages(3))
            .unwrap();
        assert_eq!(lost, Pages(2));
        assert!(waits.join().unwrap(), "{made:?}");
        assert!(raises(&guest.area, 2), "{made:?}");
        assert_eq!(guest.served().left(), Pages(2));
        guest.place(0, 4, 5);
        assert!(raises(&guest.area, 2), "{made:?}: it is given up for good");
        guest.all_here.recv().unwrap();
        guest.served().finish().unwrap();
        assert!(raises(&guest.area, 1), "{made:?}");
        assert_eq!((guest.area.read(0), guest.area.read(7)), (5, 0xee));
        assert_eq!(guest.block.poisoned().count(), 2);
        assert_eq!(guest.served().figures().lost, 2);
    }
}

#[test]
fn what_has_not_arrived_when_the_service_is_dropped_raises_a_signal_and_is_never_zeros() {
    for made in KINDS {
        let old = |area: &Area| (0..8).for_each(|page| area.write(page, 0xee));
        let mut guest = Guest::new(made, 8, &[0..4], How::default(), old).unwrap();
        guest.place(0, 1, 5);
        let waits = {
            let area = Arc::clone(&guest.area);
            std::thread::spawn(move || raises(&area, 3))
        };
        guest.wanted.recv().unwrap();
        drop(guest.served.take());
        assert!(waits.join().unwrap(), "{made:?}");
        assert!((1..4).all(|page| raises(&guest.area, page)), "{made:?}");
        assert_eq!(
            (guest.area.read(0), guest.area.read(7)),
            (5, 0xee),
            "{made:?}"
        );
    }
}

#[test]
fn the_end_is_refused_while_pages_are_absent_and_may_be_repeated() {
    let guest = Guest::new(Made::Anonymous, 8, &[2..4], How::default(), |_| ()).unwrap();
    let error = guest.served().finish().unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.message().contains("2 pages"), "{error}");
    assert!(guest.all_here.try_recv().is_err());
    guest.place(2, 2, 3);
    guest.all_here.recv().unwrap();
    assert!(guest.all_here.try_recv().is_err(), "told once");
    guest.served().finish().unwrap();
    guest.served().finish().unwrap();
    // Nobody watches any more.
    Served::check(&guest.memory).unwrap();
    assert_eq!((guest.area.read(2), guest.area.read(5)), (3, 0));
}

#[test]
fn while_memory_is_incomplete_blocks_stay_and_other_users_of_the_guest_are_told_how_much_is_left() {
    let guest = Guest::new(Made::Anonymous, 8, &[2..5], How::default(), |_| ()).unwrap();
    let ownership = guest.memory.ownership();
    let claim = ownership.restore().unwrap();
    claim.comes_to(Stage::Restoring);
    claim.comes_to(Stage::Incomplete);
    assert_eq!(ownership.whose(), Whose::Incomplete);
    let more = Area::new(Made::Anonymous, PAGE).unwrap();
    let more = || BlockDescription {
        name: "more".into(),
        ..super::describe(&more)
    };
    let left = |what: &str, error: Error, pages: u64| {
        assert_eq!(error.kind(), Kind::Busy, "{what}: {error}");
        let words = format!("{pages} pages are left");
        assert!(error.message().contains(&words), "{what}: {error}");
    };
    let all = |pages: u64| {
        left("leave", ownership.leave().unwrap_err(), pages);
        left("arrive", ownership.arrive().unwrap_err(), pages);
        left("save", ownership.save().unwrap_err(), pages);
        left("restore", ownership.restore().unwrap_err(), pages);
        left("give up", ownership.give_up().unwrap_err(), pages);
        left("track", ownership.is_whole("tracking").unwrap_err(), pages);
        left("add", guest.memory.add_block(more()).unwrap_err(), pages);
        left(
            "remove",
            guest.memory.remove_block(guest.block.id()).unwrap_err(),
            pages,
        );
    };
    all(3);
    guest.memory.runs_here().unwrap();
    guest.place(2, 2, 1);
    all(1);
    guest.place(4, 1, 1);
    guest.served().finish().unwrap();
    claim.comes_to(Stage::Arrived);
    // The block stays as long as the service exists.
    let error = guest.memory.remove_block(guest.block.id()).unwrap_err();
    assert!(error.message().contains("still arriving"), "{error}");
    let mut guest = guest;
    drop(guest.served.take());
    guest.memory.add_block(more()).unwrap();
    guest.memory.remove_block(guest.block.id()).unwrap();
    assert_eq!(guest.memory.ownership().whose(), Whose::Here);
}

#[test]
fn a_thread_that_the_vmm_refuses_ends_the_beginning_and_every_page_stays() {
    let area = Area::new(Made::Anonymous, 8 * PAGE).unwrap();
    area.write(1, 5);
    let memory = Arc::new(Memory::new().unwrap());
    let id = memory.add_block(super::describe(&area)).unwrap();
    let block = Arc::clone(memory.map().block(id).unwrap());
    let absent = || {
        vec![Absent {
            block: Arc::clone(&block),
            pages: marks(8, &[0..8]),
        }]
    };
    let supplier = || {
        Arc::new(Asked {
            wanted: Mutex::new(channel().0),
            all_here: Mutex::new(channel().0),
        })
    };
    let checked = Served::check(&memory).unwrap();
    let no = Box::new(|_| Err(Error::new(Kind::Callback, "no seccomp")));
    let begun = Served::begin(&memory, &checked, absent(), How::default(), supplier(), no);
    assert!(begun.unwrap_err().message().contains("no seccomp"));
    let panics = Box::new(|_| panic!("no affinity"));
    let begun = Served::begin(
        &memory,
        &checked,
        absent(),
        How::default(),
        supplier(),
        panics,
    );
    assert_eq!(begun.unwrap_err().kind(), Kind::Internal);
    assert_eq!(area.read(1), 5);
    // And it may begin afterwards.
    let how = How::default();
    drop(Served::begin(&memory, &checked, absent(), how, supplier(), quiet()).unwrap());
}

#[test]
fn what_is_placed_counts_as_written_and_is_no_longer_ballooned_or_lost() {
    #[derive(Default)]
    struct Told(Mutex<Vec<Range<u64>>>);
    impl WrittenObserver for Told {
        fn written(&self, _: BlockId, first: Pages, count: Pages) {
            self.0.lock().unwrap().push(first.0..first.0 + count.0);
        }
    }
    let guest = Guest::new(Made::Anonymous, 8, &[2..5], How::default(), |_| ()).unwrap();
    let told = Arc::new(Told::default());
    let weak = Arc::downgrade(&told);
    guest.memory.observe_written(weak);
    let declared = guest.memory.mark_poisoned(
        guest.block.id(),
        crate::units::Bytes(2 * PAGE as u64),
        crate::units::Bytes(PAGE as u64),
    );
    declared.unwrap();
    guest.place(2, 2, 1);
    guest.zeros(4..5);
    assert_eq!(*told.0.lock().unwrap(), [2..4, 4..5]);
    assert_eq!(guest.block.poisoned().count(), 0);
}

#[test]
fn bad_pieces_are_refused() {
    let guest = Guest::new(Made::Anonymous, 8, &[0..8], How::default(), |_| ()).unwrap();
    let served = guest.served();
    let kinds = [
        served
            .place(&guest.block, Pages(0), &[0; 100])
            .unwrap_err()
            .kind(),
        served
            .place(&guest.block, Pages(7), &[0; 2 * PAGE])
            .unwrap_err()
            .kind(),
        served
            .place_zeros(&guest.block, Pages(8)..Pages(9))
            .unwrap_err()
            .kind(),
        served
            .lose(&guest.block, Pages(5)..Pages(4))
            .unwrap_err()
            .kind(),
    ];
    assert_eq!(kinds, [Kind::Invalid; 4]);
    assert!(!served.is_absent(&guest.block, Pages(8)));
    assert_eq!(
        served.next_absent(&guest.block, Pages(2)..Pages(90)),
        Some(Pages(2)..Pages(8))
    );
    assert_eq!(served.place(&guest.block, Pages(8), &[]).unwrap(), Pages(0));
}
