//! The logs of VFIO and iommufd, tried with a model of the kernel's side of their ioctls: which
//! calls are made, what errors lead to, and that no write of a device is missed. There was no
//! hardware to try them with.

use super::*;
use crate::dirty::consumer::Consumer;
use crate::dirty::iommufd::IommufdLog;
use crate::dirty::iova::{DmaRange, DmaTarget};
use crate::dirty::testing::dma::Kernel;
use crate::dirty::testing::{sync_all, take_all, Guest};
use crate::dirty::tracker::StartWith;
use crate::memory::BlockId;
use crate::units::Bytes;
use proptest::prelude::*;
use std::collections::BTreeSet;
use vm_memory::GuestAddress;

const P: u64 = PAGE_SIZE;

/// 100 pages at guest page 0 and 30 at guest page 1000, which is page 100 of the block.
fn guest() -> Guest {
    let guest = Guest::new(300);
    guest.block("ram", 200);
    guest.slot("ram", 0, 100, 0).unwrap();
    guest.slot("ram", 100, 30, 1000).unwrap();
    guest
}

fn device(guest: &Guest, kernel: &Kernel, iovas: Iovas, page: u64) -> Consumer {
    let log = VfioDeviceLog::new(kernel.device(), iovas, page).unwrap();
    guest.tracker(Box::new(log))
}

fn pages(of: impl IntoIterator<Item = u64>) -> BTreeSet<(u32, u64)> {
    of.into_iter().map(|p| (0, p)).collect()
}

fn to_block(iova: u64, pages: u64, offset: u64) -> DmaRange {
    DmaRange {
        iova,
        length: Bytes(pages * P),
        target: DmaTarget::Block {
            block: BlockId(0),
            offset: Bytes(offset * P),
        },
    }
}

/// Page sizes above 64 pages would be a bitmap of one bit.
fn everything() -> BTreeSet<(u32, u64)> {
    pages(0..130)
}

#[test]
fn a_device_s_log_is_probed_started_reported_and_stopped_by_these_calls() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    assert_eq!(kernel.calls(), ["probe"]);
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(kernel.calls(), ["start 4096 [0..64000, 3e8000..406000]"]);
    kernel.write(5 * P + 17);
    kernel.write(1029 * P);
    assert_eq!(sync_all(&consumer), pages([5, 129]));
    let reports = ["report 0+64000 4096", "report 3e8000+1e000 4096"];
    assert_eq!(kernel.calls(), reports);
    // The log was read and cleared, and the bitmap is zeroed before each call.
    assert!(sync_all(&consumer).is_empty());
    kernel.calls();
    consumer.stop().unwrap();
    assert_eq!(kernel.calls(), [reports[0], reports[1], "stop"]);
}

#[test]
fn a_page_larger_than_ours_is_all_of_the_pages_in_it() {
    let (guest, kernel) = (guest(), Kernel::default());
    kernel.lock().driver_page = Some(16 * P);
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.calls();
    kernel.write(3 * P);
    // The device's last page reaches past the first slot, and begins before the second.
    kernel.write(99 * P);
    kernel.write(1001 * P);
    assert_eq!(
        sync_all(&consumer),
        pages((0..16).chain(96..100).chain(100..108))
    );
    assert_eq!(
        kernel.calls(),
        ["report 0+70000 65536", "report 3e0000+30000 65536"]
    );
}

#[test]
fn what_is_asked_for_is_rounded_out_to_the_page_size_asked_for() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, 2 << 20);
    consumer.start(StartWith::Nothing).unwrap();
    // Guest pages 0 to 511 and 512 to 1535 are adjacent, and are one range.
    assert_eq!(kernel.calls()[1], "start 2097152 [0..600000]");
    kernel.write(1010 * P);
    // Guest pages 512 to 1023, of which 1000 and later are RAM.
    assert_eq!(sync_all(&consumer), pages(100..124));
}

#[test]
fn one_device_page_in_two_ranges_is_lost_to_neither() {
    let (guest, kernel) = (Guest::new(40), Kernel::default());
    guest.block("ram", 40);
    // The slots are adjacent, and their border lies inside a page of the device's.
    guest.slot("ram", 0, 10, 0).unwrap();
    guest.slot("ram", 10, 10, 14).unwrap();
    kernel.lock().driver_page = Some(16 * P);
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.write(15 * P);
    let expected: BTreeSet<_> = (0..12).map(|p| (0, p)).collect();
    assert_eq!(sync_all(&consumer), expected);
}

#[test]
fn too_many_ranges_are_joined_where_the_least_lies_between_them() {
    let (guest, kernel) = (Guest::new(600), Kernel::default());
    guest.block("ram", 600);
    let mut at = 0;
    for i in 0..600u64 {
        // Gaps of 1 page; every third one has 50.
        at += if i % 3 == 0 { 51 } else { 2 };
        guest.slot("ram", i, 1, at).unwrap();
    }
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    let ranges = kernel.lock().logging.clone().unwrap();
    assert_eq!(ranges.len(), 256);
    assert!(ranges.iter().all(|r| r.end - r.start <= 5 * P));
    let slots = guest.memory.map();
    let slots = slots.slots();
    for slot in slots {
        kernel.write(slot.guest_address.0);
    }
    // Addresses between the ranges are never asked for.
    assert_eq!(sync_all(&consumer), pages(0..600));
    assert_eq!(kernel.calls().len(), 2 + 600);
}

#[test]
fn after_an_error_everything_is_dirty_and_the_log_is_started_anew() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.calls();
    kernel.fail("report 3e8", libc::EIO);
    let report = consumer.sync(When::Running).unwrap();
    assert!(report.warnings[0].contains("started anew"), "{report:?}");
    assert_eq!(take_all(&consumer), everything());
    let calls = kernel.calls();
    assert_eq!(calls[2], "stop");
    assert!(calls[3].starts_with("start 4096"));
    // Logging goes on as before.
    kernel.write(7 * P);
    assert_eq!(sync_all(&consumer), pages([7]));
}

#[test]
fn a_log_that_does_not_start_again_is_tried_at_each_sync_and_all_is_dirty_until_then() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.fail("report", libc::EIO);
    kernel.fail("start", libc::ENOMEM);
    kernel.fail("start", libc::ENOMEM);
    for _ in 0..2 {
        assert_eq!(sync_all(&consumer), everything());
        assert!(kernel.lock().logging.is_none());
        // This write is not logged.
        kernel.write(7 * P);
    }
    // The log starts now, and earlier writes are unknown.
    assert_eq!(sync_all(&consumer), everything());
    kernel.write(8 * P);
    assert_eq!(sync_all(&consumer), pages([8]));
    consumer.stop().unwrap();
}

#[test]
fn an_error_of_the_last_harvest_is_one() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.fail("report", libc::EIO);
    let error = consumer.sync(When::Stopped).unwrap_err();
    assert!(error.message().contains("last harvest of vfio"), "{error}");
    // The guest runs on, and no write is lost.
    assert_eq!(take_all(&consumer), everything());
}

#[test]
fn a_device_without_a_log_is_refused_with_what_was_expected() {
    for errno in [libc::ENOTTY, libc::EINVAL] {
        let kernel = Kernel::default();
        kernel.fail("probe", errno);
        let error = VfioDeviceLog::new(kernel.device(), Iovas::Guest, P)
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error
            .message()
            .contains("a VFIO device whose driver logs DMA"));
    }
    for page in [0, 1, 4095, 8191, 1 << 31] {
        let kernel = Kernel::default();
        assert!(VfioDeviceLog::new(kernel.device(), Iovas::Guest, page).is_err());
        assert!(kernel.calls().is_empty());
    }
}

#[test]
fn a_driver_that_chooses_nonsense_is_refused_and_stopped() {
    let (guest, kernel) = (guest(), Kernel::default());
    kernel.lock().driver_page = Some(5000);
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    assert!(consumer.start(StartWith::Nothing).is_err());
    assert!(kernel.lock().logging.is_none());
}

#[test]
fn new_memory_restarts_a_device_s_log_and_all_counts_as_dirty() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.calls();
    guest.slot("ram", 130, 10, 2000).unwrap();
    let calls = kernel.calls();
    assert_eq!(calls[2], "stop");
    assert_eq!(
        calls[3],
        "start 4096 [0..64000, 3e8000..406000, 7d0000..7da000]"
    );
    assert_eq!(sync_all(&consumer), pages(0..140));
    kernel.write(2003 * P);
    assert_eq!(sync_all(&consumer), pages([133]));
    // The mapping that goes is read first, and nothing is restarted.
    kernel.calls();
    kernel.write(2004 * P);
    kernel.write(3 * P);
    guest
        .memory
        .remove_slot(crate::memory::NO_SLOT, GuestAddress(2000 * P))
        .unwrap();
    assert_eq!(kernel.calls().len(), 3);
    assert_eq!(sync_all(&consumer), pages([3, 134]));
    assert_eq!(kernel.calls().len(), 2);
    // The same place, added again, restarts nothing either.
    guest.slot("ram", 130, 10, 2000).unwrap();
    assert!(kernel.calls().iter().all(|c| c.starts_with("report")));
}

#[test]
fn new_memory_that_a_device_cannot_log_is_refused_and_the_log_goes_on() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.fail("start", libc::E2BIG);
    let error = guest.slot("ram", 130, 10, 2000).unwrap_err();
    assert!(error.message().contains("3 ranges"), "{error}");
    let found = sync_all(&consumer);
    assert!(found.is_superset(&everything()), "{found:?}");
    kernel.write(4 * P);
    assert_eq!(sync_all(&consumer), pages([4]));
}

#[test]
fn explicit_ranges_lead_to_blocks_and_to_guest_addresses() {
    let (guest, kernel) = (guest(), Kernel::default());
    let iovas = Iovas::ranges(vec![
        // Out of order, and beginning inside a word of the bitmap that they share.
        to_block((1 << 40) + 100 * P, 70, 3),
        to_block(1 << 40, 100, 100),
        DmaRange {
            iova: 1 << 20,
            length: Bytes(30 * P),
            target: DmaTarget::Guest(GuestAddress(1000 * P)),
        },
    ])
    .unwrap();
    let consumer = device(&guest, &kernel, iovas, P);
    consumer.start(StartWith::Nothing).unwrap();
    let page = |n: u64| (1 << 40) + n * P;
    for iova in [
        page(0),
        page(99),
        page(100),
        page(127),
        page(128),
        page(169),
    ] {
        kernel.write(iova);
    }
    kernel.write((1 << 20) + 2 * P);
    // Not mapped, so no log covers it.
    kernel.write(5 * P);
    assert_eq!(sync_all(&consumer), pages([100, 199, 3, 30, 31, 72, 102]));
    kernel.fail("report", libc::EIO);
    assert_eq!(sync_all(&consumer), pages((3..73).chain(100..200)));
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let good = to_block(P, 1, 0);
    let with = |change: fn(&mut DmaRange)| {
        let mut range = good;
        change(&mut range);
        Iovas::ranges(vec![range])
    };
    assert!(Iovas::ranges(vec![good]).is_ok());
    assert!(Iovas::ranges(Vec::new()).is_err());
    assert!(with(|r| r.iova = 1).is_err());
    assert!(with(|r| r.length = Bytes(0)).is_err());
    assert!(with(|r| r.length = Bytes(5)).is_err());
    assert!(with(|r| r.iova = 0u64.wrapping_sub(P)).is_err());
    assert!(with(|r| r.target = DmaTarget::Guest(GuestAddress(0u64.wrapping_sub(P)))).is_err());
    assert!(Iovas::ranges(vec![good, to_block(P, 1, 7)]).is_err());
}

#[test]
fn ranges_past_the_end_of_their_block_harm_nothing() {
    let (guest, kernel) = (guest(), Kernel::default());
    let iovas = Iovas::ranges(vec![
        to_block(0, 1000, 190),
        DmaRange {
            iova: 1 << 40,
            length: Bytes(10 * P),
            target: DmaTarget::Block {
                block: BlockId(77),
                offset: Bytes(0),
            },
        },
    ]);
    let consumer = device(&guest, &kernel, iovas.unwrap(), P);
    consumer.start(StartWith::Nothing).unwrap();
    for page in 0..1000 {
        kernel.write(page * P);
    }
    kernel.write(1 << 40);
    assert_eq!(sync_all(&consumer), pages(190..200));
    kernel.fail("report", libc::EIO);
    assert_eq!(sync_all(&consumer), pages(190..200));
}

fn container(guest: &Guest, kernel: &Kernel, page: u64) -> Consumer {
    kernel.lock().mapped = vec![0..100 * P, 1000 * P..1030 * P];
    let log = VfioContainerLog::new(kernel.container(page), Iovas::Guest).unwrap();
    guest.tracker(Box::new(log))
}

#[test]
fn a_container_s_log_is_asked_mapping_by_mapping_in_its_smallest_pages() {
    let (guest, kernel) = (guest(), Kernel::default());
    let consumer = container(&guest, &kernel, P);
    assert_eq!(kernel.calls(), ["info", "info"]);
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(kernel.calls(), ["start"]);
    kernel.write(99 * P);
    kernel.write(1000 * P);
    assert_eq!(sync_all(&consumer), pages([99, 100]));
    assert_eq!(
        kernel.calls(),
        ["get 0+64000 4096", "get 3e8000+1e000 4096"]
    );
    assert!(sync_all(&consumer).is_empty());
    kernel.fail("get", libc::EFAULT);
    assert_eq!(sync_all(&consumer), everything());
    kernel.write(5 * P);
    assert_eq!(sync_all(&consumer), pages([5]));
    kernel.calls();
    consumer.stop().unwrap();
    assert_eq!(kernel.calls()[2], "stop");
}

#[test]
fn a_slot_that_touches_another_is_still_asked_for_alone() {
    let (guest, kernel) = (guest(), Kernel::default());
    guest.slot("ram", 130, 5, 1030).unwrap();
    let consumer = container(&guest, &kernel, P);
    kernel.lock().mapped.push(1030 * P..1035 * P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.write(1034 * P);
    assert_eq!(sync_all(&consumer), pages([134]));
}

#[test]
fn a_container_s_larger_pages_are_all_of_ours_in_them() {
    let (guest, kernel) = (Guest::new(67), Kernel::default());
    guest.block("ram", 64);
    guest.slot("ram", 0, 64, 16).unwrap();
    let log = VfioContainerLog::new(kernel.container(16 * P), Iovas::Guest).unwrap();
    let consumer = guest.tracker(Box::new(log));
    consumer.start(StartWith::Nothing).unwrap();
    kernel.write(40 * P);
    kernel.write(79 * P);
    assert_eq!(sync_all(&consumer), pages((16..32).chain(48..64)));
    // A slot that cannot be a mapping of such pages refuses the change of the map.
    guest.block("odd", 3);
    assert_eq!(sync_all(&consumer).len(), 3);
    assert!(guest.slot("odd", 0, 3, 1000).is_err());
    assert!(sync_all(&consumer).is_empty());
}

#[test]
fn a_container_s_mapping_is_never_split_and_a_device_s_log_is_read_in_pieces() {
    let all = (1 << 24) + 100;
    let (guest, kernel) = (Guest::new(all as usize), Kernel::default());
    guest.block("ram", all);
    guest.slot("ram", 0, all, 0).unwrap();
    let log = VfioContainerLog::new(kernel.container(P), Iovas::Guest).unwrap();
    kernel.lock().mapped.push(0..all * P);
    let consumer = guest.tracker(Box::new(log));
    consumer.start(StartWith::Nothing).unwrap();
    kernel.write((all - 1) * P);
    assert_eq!(sync_all(&consumer), pages([all - 1]));
    consumer.stop().unwrap();
    kernel.lock().mapped.clear();
    kernel.calls();
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    kernel.write(((1 << 24) - 1) * P);
    kernel.write((1 << 24) * P);
    assert_eq!(sync_all(&consumer), pages([(1 << 24) - 1, 1 << 24]));
    assert_eq!(kernel.calls().len(), 4);
}

#[test]
fn a_mapping_that_needs_too_long_a_bitmap_is_refused_with_what_to_do() {
    let (guest, kernel) = (guest(), Kernel::default());
    let io = kernel.container(P);
    kernel.lock().bitmap_max = 8;
    let consumer = guest.tracker(Box::new(VfioContainerLog::new(io, Iovas::Guest).unwrap()));
    let error = consumer.start(StartWith::Nothing).unwrap_err();
    assert!(error.message().contains("map it in parts"), "{error}");
    assert!(kernel.lock().logging.is_none());
}

#[test]
fn a_page_table_s_log_is_switched_and_asked_mapping_by_mapping() {
    let (guest, kernel) = (guest(), Kernel::default());
    kernel.lock().mapped = vec![0..100 * P, 1000 * P..1030 * P];
    let log = IommufdLog::new(kernel.iommufd(), 7, Iovas::Guest).unwrap();
    let consumer = guest.tracker(Box::new(log));
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(kernel.calls(), ["set 0 of 7", "set 1 of 7"]);
    kernel.write(99 * P);
    kernel.write(1000 * P);
    let report = consumer.sync(When::Running).unwrap();
    let log = report.logs.iter().find(|l| l.kind == LogKind::Iommufd);
    assert_eq!(log.unwrap().found.0, 2);
    assert_eq!(take_all(&consumer), pages([99, 100]));
    assert_eq!(
        kernel.calls(),
        ["get 0+64000 4096 of 7", "get 3e8000+1e000 4096 of 7"]
    );
    assert!(sync_all(&consumer).is_empty());
    // For memory that is no longer mapped the harvest fails, and the memory counts as dirty.
    kernel.lock().mapped.truncate(1);
    assert_eq!(sync_all(&consumer), everything());
    kernel.lock().mapped.push(1000 * P..1030 * P);
    kernel.write(6 * P);
    assert_eq!(sync_all(&consumer), pages([6]));
    kernel.calls();
    consumer.stop().unwrap();
    assert_eq!(kernel.calls()[2], "set 0 of 7");
    kernel.fail("set", libc::EOPNOTSUPP);
    let error = IommufdLog::new(kernel.iommufd(), 7, Iovas::Guest)
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Unsupported);
}

/// Asking for every mapping at each change would cost the square of a guest's slots.
#[test]
fn of_a_map_that_changes_only_what_goes_is_asked_for() {
    for in_container in [true, false] {
        let (guest, kernel) = (guest(), Kernel::default());
        let consumer = match in_container {
            true => container(&guest, &kernel, P),
            false => {
                let log = IommufdLog::new(kernel.iommufd(), 7, Iovas::Guest).unwrap();
                guest.tracker(Box::new(log))
            }
        };
        kernel.lock().mapped = vec![0..100 * P, 1000 * P..1030 * P, 2000 * P..2010 * P];
        consumer.start(StartWith::Nothing).unwrap();
        kernel.calls();
        guest.slot("ram", 130, 10, 2000).unwrap();
        assert_eq!(kernel.calls(), [""; 0]);
        assert_eq!(take_all(&consumer), pages(130..140));
        kernel.write(2003 * P);
        kernel.write(1001 * P);
        let gone = |page: u64| {
            let at = GuestAddress(page * P);
            guest
                .memory
                .remove_slot(crate::memory::NO_SLOT, at)
                .unwrap();
        };
        gone(2000);
        let calls = kernel.calls();
        assert!(
            calls.len() == 1 && calls[0].starts_with("get 7d0000+a000"),
            "{calls:?}"
        );
        assert_eq!(take_all(&consumer), pages([133]));
        // The mapping that could not be read counts as dirty, and is gone all the same. The others
        // are still read.
        kernel.fail("get", libc::EIO);
        gone(0);
        assert_eq!(take_all(&consumer), pages(0..100));
        kernel.calls();
        assert_eq!(sync_all(&consumer), pages([101]));
        assert_eq!(kernel.calls().len(), 1);
        consumer.stop().unwrap();
    }
}

#[test]
fn rom_and_other_address_spaces_are_not_asked_for() {
    let (guest, kernel) = (Guest::new(30), Kernel::default());
    guest.block("ram", 30);
    let slot = |slot: u32, flags: u32, page: u64, at: u64| {
        guest.memory.add_slot(&crate::memory::SlotDescription {
            slot,
            flags,
            block: guest.memory.find_block("ram").unwrap(),
            offset: Bytes(page * P),
            length: Bytes(10 * P),
            guest_address: GuestAddress(at * P),
        })
    };
    slot(0, 0, 0, 0).unwrap();
    slot(1, crate::sys::kvm::MEM_READONLY, 10, 100).unwrap();
    slot(1 << 16, 0, 20, 200).unwrap();
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    assert_eq!(kernel.calls()[1], "start 4096 [0..a000]");
    drop(consumer);
}

#[test]
fn a_guest_without_memory_yet_starts_a_log_when_it_gets_some() {
    let (guest, kernel) = (Guest::new(10), Kernel::default());
    guest.block("ram", 10);
    let consumer = device(&guest, &kernel, Iovas::Guest, P);
    consumer.start(StartWith::Nothing).unwrap();
    assert!(sync_all(&consumer).is_empty());
    assert_eq!(kernel.calls(), ["probe"]);
    guest.slot("ram", 0, 10, 0).unwrap();
    assert_eq!(kernel.calls(), ["start 4096 [0..a000]"]);
    kernel.write(P);
    assert!(sync_all(&consumer).contains(&(0, 1)));
    consumer.stop().unwrap();
}

#[derive(Debug, Clone)]
struct Case {
    page_shift: u32,
    /// First page of the block, number of pages, and the hole before it.
    slots: Vec<(u64, u64, u64)>,
    explicit: bool,
    syncs: Vec<Vec<u64>>,
    fail: Vec<bool>,
}

fn cases() -> impl Strategy<Value = Case> {
    (
        0u32..6,
        prop::collection::vec((0u64..200, 1u64..150, 0u64..90), 1..5),
        any::<bool>(),
        prop::collection::vec(prop::collection::vec(0u64..900, 0..30), 1..5),
        prop::collection::vec(prop::bool::weighted(0.2), 5),
    )
        .prop_map(|(page_shift, slots, explicit, syncs, fail)| Case {
            page_shift,
            slots,
            explicit,
            syncs,
            fail,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn no_page_that_a_device_wrote_is_missed_and_no_more_than_its_page_size_says(case in cases()) {
        let (guest, kernel) = (Guest::new(400), Kernel::default());
        guest.block("ram", 400);
        let page = P << case.page_shift;
        kernel.lock().driver_page = Some(page);
        // With ranges, IOVA i shows page p of the block; without, it is guest address i.
        let (mut at, mut shown, mut ranges) = (0, Vec::new(), Vec::new());
        for &(first, n, gap) in &case.slots {
            at += gap;
            shown.push((at, n, first));
            if case.explicit {
                ranges.push(to_block(at * P, n, first));
            } else {
                guest.slot("ram", first, n, at).unwrap();
            }
            at += n;
        }
        let iovas = match case.explicit {
            true => Iovas::ranges(ranges).unwrap(),
            false => Iovas::Guest,
        };
        let consumer = device(&guest, &kernel, iovas, P);
        consumer.start(StartWith::Nothing).unwrap();
        for (writes, fail) in case.syncs.iter().zip(&case.fail) {
            let mut must = BTreeSet::new();
            let mut may = BTreeSet::new();
            for &iova in writes {
                kernel.write(iova * P);
                let whole = iova * P / page * page / P..(iova * P / page + 1) * page / P;
                for &(start, n, first) in &shown {
                    if (start..start + n).contains(&iova) {
                        must.insert((0, first + iova - start));
                    }
                    let of = whole.clone().filter(|i| (start..start + n).contains(i));
                    may.extend(of.map(|i| (0, first + i - start)));
                }
            }
            if *fail {
                kernel.fail("report", libc::EIO);
                let all = shown.iter().flat_map(|&(_, n, first)| first..first + n);
                prop_assert_eq!(sync_all(&consumer), pages(all));
                continue;
            }
            let found = sync_all(&consumer);
            prop_assert!(found.is_superset(&must), "missed {:?}", must.difference(&found));
            prop_assert!(found.is_subset(&may), "too many {:?}", found.difference(&may));
        }
    }
}
