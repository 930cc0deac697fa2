//! The map, compared with a list of slots that is searched page by page; which changes are refused,
//! with which words; and changes while other threads look at the map or hold a block.

use super::*;
use crate::memory::block::NAME_MAX;
use crate::memory::{BlockFlags, BlockPin};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// An address where nothing is mapped. The memory is never accessed.
const HOST: u64 = 0x2000_0000_0000;

fn block(name: &str, host: u64, length: u64) -> BlockDescription {
    BlockDescription {
        name: name.to_owned(),
        // SAFETY: the test's own memory, or an address that is never accessed.
        host: unsafe { crate::memory::HostMemory::new(host as *mut u8) },
        length: Bytes(length),
        page_size: Bytes(PAGE_SIZE),
        file: None,
        flags: BlockFlags::default(),
    }
}

/// A slot of a block that does not exist, with a number that no block ever has.
fn slot(
    memory: &Memory,
    number: u32,
    block: &str,
    offset: u64,
    length: u64,
    guest: u64,
) -> SlotDescription {
    SlotDescription {
        slot: number,
        flags: 0,
        block: memory.find_block(block).unwrap_or(BlockId(u32::MAX)),
        offset: Bytes(offset),
        length: Bytes(length),
        guest_address: GuestAddress(guest),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_look_up_finds_what_a_search_page_by_page_finds(
        slots in prop::collection::vec((0..3u64, 0..60u64, 1..40u64, 0..150u64, any::<bool>()), 0..12),
        removed in prop::collection::vec(any::<usize>(), 0..3),
        looks in prop::collection::vec((0..220u64, 0..120u64, 0..4096u64), 1..8),
    ) {
        let memory = Memory::new().unwrap();
        for i in 0..3u64 {
            memory.add_block(block(&format!("b{i}"), HOST + (i << 30), 100 * PAGE_SIZE)).unwrap();
        }
        // Guest page, length, block, first page of the block, slot.
        let mut known: Vec<(u64, u64, u64, u64, u32)> = Vec::new();
        for (n, (b, first, pages, guest, smm)) in slots.into_iter().enumerate() {
            let number = u32::from(smm) << 16 | n as u32;
            let overlaps = known
                .iter()
                .any(|k| k.4 >> 16 == number >> 16 && k.0 < guest + pages && guest < k.0 + k.1);
            let added = memory.add_slot(&slot(&memory,
                number,
                &format!("b{b}"),
                first * PAGE_SIZE,
                pages * PAGE_SIZE,
                guest * PAGE_SIZE,
            ));
            prop_assert_eq!(added.is_err(), overlaps);
            if !overlaps {
                known.push((guest, pages, b, first, number));
            }
        }
        for which in removed {
            if !known.is_empty() {
                let gone = known.swap_remove(which % known.len());
                memory.remove_slot(gone.4, GuestAddress(gone.0 * PAGE_SIZE)).unwrap();
                prop_assert!(memory.map().slot(gone.4).is_none());
            }
        }
        let map = memory.map();
        for k in &known {
            prop_assert_eq!(map.slot(k.4).unwrap().guest_address.0, k.0 * PAGE_SIZE);
        }
        for (from, pages, low) in looks {
            // Position in the range, block, page of the block.
            let mut expected = BTreeSet::new();
            for i in 0..pages {
                for &(guest, length, b, first, _) in &known {
                    if (guest..guest + length).contains(&(from + i)) {
                        expected.insert((i, b, first + from + i - guest));
                    }
                }
            }
            let mut found = BTreeSet::new();
            let mut total = 0;
            for part in map.block_parts(GuestAddress(from * PAGE_SIZE + low), Pages(pages)) {
                prop_assert!(part.pages.0 > 0);
                total += part.pages.0;
                for i in 0..part.pages.0 {
                    let b = u64::from(part.block.0);
                    found.insert((part.before.0 + i, b, part.first.0 + i));
                }
            }
            // Two slots of two address spaces may show the same page at the same place.
            prop_assert!(total >= found.len() as u64);
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn what_is_refused_says_what_was_expected_and_what_was_found() {
    let memory = Memory::new().unwrap();
    memory
        .add_block(block("ram", HOST, 100 * PAGE_SIZE))
        .unwrap();
    memory
        .add_slot(&slot(&memory, 7, "ram", 0, 10 * PAGE_SIZE, 0x10_0000))
        .unwrap();
    let far = HOST << 1;
    let sized = |page_size| BlockDescription {
        page_size: Bytes(page_size),
        ..block("x", far, PAGE_SIZE)
    };
    let long = "n".repeat(NAME_MAX + 1);
    let blocks = [
        (
            block("", far, PAGE_SIZE),
            Kind::Invalid,
            vec!["1 to 255 bytes", "has 0"],
        ),
        (
            block(&long, far, PAGE_SIZE),
            Kind::Invalid,
            vec!["1 to 255 bytes", "has 256"],
        ),
        (block("ram", far, PAGE_SIZE), Kind::Exists, vec!["`ram`"]),
        (
            block("x", HOST + 99 * PAGE_SIZE, PAGE_SIZE),
            Kind::Exists,
            vec!["`x`", "`ram`"],
        ),
        (
            block("x", far, 0),
            Kind::Invalid,
            vec!["`x`", "4096", "found 0"],
        ),
        (
            block("x", far, 5000),
            Kind::Invalid,
            vec!["`x`", "4096", "found 5000"],
        ),
        (sized(8192), Kind::Invalid, vec!["8192", "found 4096"]),
        (sized(2048), Kind::Invalid, vec!["power of two", "not 2048"]),
        (
            sized(12288),
            Kind::Invalid,
            vec!["power of two", "not 12288"],
        ),
        (
            sized(1 << 31),
            Kind::Invalid,
            vec!["power of two", "not 2147483648"],
        ),
        (
            block("x", 0, PAGE_SIZE),
            Kind::Invalid,
            vec!["not NULL", "found 0x0"],
        ),
        (
            block("x", far + 1, PAGE_SIZE),
            Kind::Invalid,
            vec!["page-aligned", "0x400000000001"],
        ),
        (
            block("x", far, 1 << 60),
            Kind::Invalid,
            vec!["at most", "found 281474976710656"],
        ),
        (
            block("x", u64::MAX - 4095, PAGE_SIZE),
            Kind::Invalid,
            vec!["wrap"],
        ),
    ];
    for (description, kind, words) in blocks {
        let what = format!("{description:?}");
        let error = memory.add_block(description).expect_err(&what);
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(
                error.message().contains(word),
                "`{error}` does not say {word}"
            );
        }
    }
    let p = PAGE_SIZE;
    let slots = [
        (
            slot(&memory, 8, "rom", 0, p, 0),
            Kind::NotFound,
            vec!["number 4294967295"],
        ),
        (slot(&memory, 7, "ram", 0, p, 0), Kind::Exists, vec!["0x7"]),
        (
            slot(&memory, 8, "ram", 1, p, 0),
            Kind::Invalid,
            vec!["0x8", "offset 1"],
        ),
        (
            slot(&memory, 8, "ram", 0, 0, 0),
            Kind::Invalid,
            vec!["length 0"],
        ),
        (
            slot(&memory, 8, "ram", 0, 77, 0),
            Kind::Invalid,
            vec!["length 77"],
        ),
        (
            slot(&memory, 8, "ram", 99 * p, 2 * p, 0),
            Kind::Invalid,
            vec!["405504", "8192", "409600"],
        ),
        (
            slot(&memory, 8, "ram", u64::MAX - 4095, p, 0),
            Kind::Invalid,
            vec!["past the block's"],
        ),
        (
            slot(&memory, 8, "ram", 0, p, 9),
            Kind::Invalid,
            vec!["0x9", "page-aligned"],
        ),
        (
            slot(&memory, 8, "ram", 0, p, u64::MAX - 4095),
            Kind::Invalid,
            vec!["wrap"],
        ),
        (
            slot(&memory, 8, "ram", 0, p, 1 << 63),
            Kind::Invalid,
            vec!["guest addresses end at", "0x8000000000000000"],
        ),
        (
            slot(
                &memory,
                NO_SLOT,
                "ram",
                0,
                2 * p,
                (1 << GUEST_ADDRESS_BITS) - p,
            ),
            Kind::Invalid,
            vec!["guest addresses end at"],
        ),
        (
            slot(&memory, 8, "ram", 0, p, 0x10_9000),
            Kind::Exists,
            vec!["0x8", "0x7", "0x100000..0x10a000"],
        ),
        (
            slot(&memory, NO_SLOT, "ram", 0, p, 0x10_0000),
            Kind::Exists,
            vec!["0x7"],
        ),
    ];
    for (description, kind, words) in slots {
        let error = memory
            .add_slot(&description)
            .expect_err(&format!("{description:?}"));
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(
                error.message().contains(word),
                "`{error}` does not say {word}"
            );
        }
    }
    for (number, guest) in [(7, 0x10_1000), (8, 0x10_0000)] {
        let error = memory.remove_slot(number, GuestAddress(guest)).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error
            .message()
            .contains(&format!("{number:#x} at guest address {guest:#x}")));
    }
    assert_eq!(memory.find_block("rom").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(
        (memory.map().blocks().len(), memory.map().slots().len()),
        (1, 1)
    );
    // The other address space is another place.
    memory
        .add_slot(&slot(&memory, 0x1_0008, "ram", 0, p, 0x10_0000))
        .unwrap();
}

#[test]
fn the_last_guest_address_of_the_architecture_can_be_mapped() {
    let memory = Memory::new().unwrap();
    memory.add_block(block("ram", HOST, PAGE_SIZE)).unwrap();
    let last = (1 << GUEST_ADDRESS_BITS) - PAGE_SIZE;
    memory
        .add_slot(&slot(&memory, 0, "ram", 0, PAGE_SIZE, last))
        .unwrap();
    assert_eq!(memory.map().guest_end(), 1 << GUEST_ADDRESS_BITS);
    let whole = memory.map();
    let found: Vec<BlockPart> = whole
        .block_parts(GuestAddress(0), Pages(u64::MAX))
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].before, Pages(last / PAGE_SIZE));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Blocks and slots come and go in any order. The differences of two maps are those of their
    /// lists.
    #[test]
    fn two_maps_are_compared_as_if_their_lists_were(
        ops in prop::collection::vec((0..40u64, 0..4u8), 1..120),
        then in 0usize..120,
    ) {
        let memory = Memory::new().unwrap();
        let mut before = memory.map();
        for (i, (n, what)) in ops.into_iter().enumerate() {
            let name = format!("b{n}");
            // Refused if it exists already, or does not exist.
            let _ = match what {
                0 | 1 => memory
                    .add_block(block(&name, HOST + (n << 20), PAGE_SIZE))
                    .and_then(|_| {
                        memory.add_slot(&slot(&memory, n as u32, &name, 0, PAGE_SIZE, n << 20))
                    }),
                2 => memory.find_block(&name).and_then(|id| memory.remove_block(id)),
                _ => memory.remove_slot(n as u32, GuestAddress(n << 20)),
            };
            if i == then {
                before = memory.map();
            }
        }
        let now = memory.map();
        for (a, b) in [(&now, &before), (&before, &now)] {
            let blocks: Vec<BlockId> = a.blocks_not_in(b).unwrap().iter().map(|b| b.id()).collect();
            let lacks = |block: &&Arc<Block>| b.block(block.id()).is_none();
            let expected: Vec<BlockId> =
                a.blocks().iter().filter(lacks).map(|b| b.id()).collect();
            prop_assert_eq!(blocks, expected);
            let slots: Vec<Slot> = a.slots_not_in(b).unwrap().iter().map(|s| Slot::clone(s)).collect();
            let lacks = |slot: &&Slot| b.slots().iter().all(|other| other != *slot);
            let expected: Vec<Slot> = a.slots().iter().filter(lacks).cloned().collect();
            prop_assert_eq!(slots, expected);
            prop_assert_eq!(a.slots() == b.slots(), a.slots().iter().eq(b.slots().iter()));
        }
        prop_assert_eq!(
            now.total().0,
            now.blocks().iter().map(|b| b.length().0).sum::<u64>()
        );
        for block in now.blocks() {
            prop_assert!(now.block_named(block.name()).is_some_and(|b| b.id() == block.id()));
            let shown: Vec<&Slot> = now.slots_of(block.id(), 0..1).map(|s| &**s).collect();
            let expected: Vec<&Slot> =
                now.slots().iter().filter(|s| s.block == block.id()).collect();
            prop_assert_eq!(shown, expected);
        }
    }
}

#[test]
fn the_slots_that_show_pages_of_a_block_are_found_among_many() {
    let memory = Memory::new().unwrap();
    for b in 0..3u64 {
        let name = format!("b{b}");
        memory
            .add_block(block(&name, HOST + (b << 32), 100 * PAGE_SIZE))
            .unwrap();
        // The whole block in the second address space, and then each ten pages.
        let number = |i: u32| b as u32 * 100 + i;
        memory
            .add_slot(&slot(
                &memory,
                1 << 16 | number(0),
                &name,
                0,
                100 * PAGE_SIZE,
                b << 32,
            ))
            .unwrap();
        for i in 0..10u32 {
            let at = u64::from(i) * 10 * PAGE_SIZE;
            memory
                .add_slot(&slot(
                    &memory,
                    number(i),
                    &name,
                    at,
                    10 * PAGE_SIZE,
                    (b << 32) + at,
                ))
                .unwrap();
        }
    }
    let map = memory.map();
    let of = |pages| -> Vec<u32> { map.slots_of(BlockId(1), pages).map(|s| s.slot).collect() };
    assert_eq!(of(25..26), [1 << 16 | 100, 102]);
    assert_eq!(of(19..31), [1 << 16 | 100, 101, 102, 103]);
    assert_eq!(of(99..1000), [1 << 16 | 100, 109]);
    assert!(of(100..1000).is_empty());
    assert_eq!(of(0..u64::MAX).len(), 11);
}

#[test]
fn a_region_that_cannot_get_its_slot_leaves_no_block() {
    let memory = Memory::new().unwrap();
    let region =
        |at| vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(at), 0x4000)]).unwrap();
    let (first, second) = (region(0), region(0x2000));
    memory
        .add_region("a", &first, GuestAddress(0), 0, 0)
        .unwrap();
    let refused = memory.add_region("b", &second, GuestAddress(0x2000), 1, 0);
    assert_eq!(refused.unwrap_err().kind(), Kind::Exists);
    assert!(memory.map().block_named("b").is_none());
}

#[test]
fn a_region_that_its_owner_drops_stays_mapped_as_long_as_its_block() {
    let memory = Memory::new().unwrap();
    let owner =
        vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    memory
        .add_region("ram", &owner, GuestAddress(0), NO_SLOT, 0)
        .unwrap();
    let missing = memory.add_region("x", &owner, GuestAddress(0x1000), NO_SLOT, 0);
    assert_eq!(missing.unwrap_err().kind(), Kind::NotFound);
    drop(owner);
    let map = memory.map();
    let block = map.block_named("ram").unwrap();
    // An access to an unmapped page would raise a signal here.
    let mut copy = [9u8; 0x4000];
    let slice = block.slice(Pages(0), Pages(4)).unwrap();
    slice.copy_to(&mut copy[..]);
    assert_eq!(copy, [0; 0x4000]);
}

#[test]
fn removing_a_block_waits_for_whoever_holds_it() {
    let memory = Arc::new(Memory::new().unwrap());
    memory.add_block(block("ram", HOST, PAGE_SIZE)).unwrap();
    let pin = BlockPin::new(memory.map().block_named("ram").unwrap());
    let second = pin.clone();
    let (done, removed) = mpsc::channel();
    let thread = {
        let memory = Arc::clone(&memory);
        std::thread::spawn(move || {
            memory
                .remove_block(memory.find_block("ram").unwrap())
                .unwrap();
            done.send(()).unwrap();
        })
    };
    // The block leaves the map first, so that no new thread finds it.
    while memory.with_map(|map| map.block_named("ram").is_some()) {
        std::thread::yield_now();
    }
    drop(pin);
    assert_eq!(removed.try_recv(), Err(mpsc::TryRecvError::Empty));
    assert_eq!(second.pages(), Pages(1));
    drop(second);
    removed.recv().unwrap();
    thread.join().unwrap();
}

#[test]
fn whoever_looks_while_the_map_changes_sees_one_map_or_the_other() {
    let memory = Arc::new(Memory::new().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    memory.with_map(|map| {
                        assert!(map.generation() >= last);
                        last = map.generation();
                        for part in map.block_parts(GuestAddress(0), Pages(100)) {
                            assert!(map.block(part.block).is_some());
                        }
                    });
                }
            })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        assert!(ids.insert(memory.add_block(block("a", HOST, 10 * PAGE_SIZE)).unwrap()));
        memory
            .add_slot(&slot(&memory, 1, "a", 0, 10 * PAGE_SIZE, 0x3000))
            .unwrap();
        memory
            .remove_block(memory.find_block("a").unwrap())
            .unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for looker in lookers {
        looker.join().unwrap();
    }
    assert!(memory.map().slots().is_empty());
}

/// Example: a VMM keeps the number of a memory module, unplugs the module, and plugs another one of
/// the same name. The old number names nothing any more, so no call by that number reaches the
/// second module.
#[test]
fn the_number_of_a_removed_block_is_no_other_blocks() {
    let memory = Memory::new().unwrap();
    let mut numbers = std::collections::HashSet::new();
    for round in 0..40 {
        let id = memory
            .add_block(block("dimm", HOST, 10 * PAGE_SIZE))
            .unwrap();
        assert!(numbers.insert(id), "{id:?} in round {round}");
        assert_eq!(memory.find_block("dimm").unwrap(), id);
        memory.remove_block(id).unwrap();
        // A refused block may have used up a number, which is not used again either.
        let bad = memory.add_block(block("dimm", HOST, 1));
        assert_eq!(bad.unwrap_err().kind(), Kind::Invalid);
    }
    let here = memory
        .add_block(block("dimm", HOST, 10 * PAGE_SIZE))
        .unwrap();
    for gone in numbers {
        let slot = SlotDescription::new(gone, GuestAddress(0), Bytes(PAGE_SIZE));
        for refused in [
            memory.remove_block(gone),
            memory.mark_poisoned(gone, Bytes(0), Bytes(1)),
            memory.clear_poisoned(gone, Bytes(0), Bytes(1)),
            memory.add_slot(&slot),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound);
            assert!(
                error.message().contains(&format!("number {gone}")),
                "{error}"
            );
        }
    }
    assert_eq!(memory.map().blocks().len(), 1);
    assert_eq!(memory.poisoned_pages(), 0);
    memory.remove_block(here).unwrap();
    assert_eq!(
        memory.find_block("dimm").unwrap_err().kind(),
        Kind::NotFound
    );
}
