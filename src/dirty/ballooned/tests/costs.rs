//! The cost of ballooning and hinting grows with the named pages, not with the guest's size.

use super::*;

/// 16 TiB, of which no page is ever touched.
fn huge() -> (Arc<Memory>, Consumer) {
    let memory = Arc::new(Memory::new().unwrap());
    let length = Bytes(16 << 40);
    memory
        .add_block(BlockDescription {
            name: "ram".into(),
            // SAFETY: the memory is never accessed.
            host: unsafe { HostMemory::new((1u64 << 45) as *mut u8) },
            length,
            page_size: Bytes(PAGE_SIZE),
            file: None,
            flags: BlockFlags::default(),
        })
        .unwrap();
    memory
        .add_slot(&SlotDescription {
            slot: crate::memory::NO_SLOT,
            flags: 0,
            block: memory.find_block("ram").unwrap(),
            offset: Bytes(0),
            length,
            guest_address: GuestAddress(0),
        })
        .unwrap();
    memory.set_must_tell_host(true);
    let tracker = Tracker::new(Arc::clone(&memory), Clearing::default()).unwrap();
    let consumer = tracker.consumer();
    consumer.skip_ballooned(true);
    (memory, consumer)
}

/// Runs `f` a thousand times. If one run cost the guest's size, this would take a thousand times
/// milliseconds.
fn a_thousand_times(what: &str, mut f: impl FnMut(u64)) {
    let begun = std::time::Instant::now();
    (0..1000).for_each(&mut f);
    let took = begun.elapsed();
    assert!(took.as_millis() < 2000, "{what}: {took:?}");
}

#[test]
fn what_the_guest_tells_of_its_balloon_costs_the_pages_told() {
    let (memory, consumer) = huge();
    let inflate = |page: u64| memory.mark_ballooned(GuestAddress(page * PAGE_SIZE), PAGE_SIZE);
    let deflate = |page: u64| memory.clear_ballooned(GuestAddress(page * PAGE_SIZE), PAGE_SIZE);
    // 1 TiB at one end, so that a search for a page that is not ballooned goes far.
    memory.mark_ballooned(GuestAddress(0), 1 << 40);
    a_thousand_times("telling again", |i| inflate(i * 7));
    a_thousand_times("inflating more, ascending", |i| inflate((1 << 30) + i));
    a_thousand_times("inflating more, descending", |i| inflate((1 << 31) - i));
    a_thousand_times("deflating and inflating again", |i| {
        deflate(i);
        inflate(i);
    });
    assert_eq!(
        memory.count_ballooned(GuestAddress(0), u64::MAX),
        (1 << 28) + 2000
    );
    drop(consumer);
}

#[test]
fn a_hint_costs_the_pages_hinted_at() {
    let (_memory, consumer) = huge();
    consumer.start(StartWith::Nothing).unwrap();
    let last = (16 << 28) - 1;
    consumer.put_back(BlockId(0), Pages(last), Pages(1));
    let round = consumer.begin_hints().unwrap();
    a_thousand_times("hints of what is not pending", |i| {
        let at = GuestAddress(i * PAGE_SIZE);
        assert_eq!(consumer.hint_free(round, at, PAGE_SIZE).unwrap(), Pages(0));
    });
    consumer.put_back(BlockId(0), Pages(0), Pages(10));
    // All of the guest, and more.
    let all = consumer
        .hint_free(round, GuestAddress(0), u64::MAX)
        .unwrap();
    assert_eq!(all, Pages(11));
    assert_eq!(consumer.stats().hinted, Pages(11));
}

#[test]
fn handing_out_what_is_free_costs_what_is_free() {
    let (_memory, consumer) = huge();
    consumer.start(StartWith::Nothing).unwrap();
    // Every other page of 2 MiB is free, and the next used page after that is the very last one.
    for i in 0..1000 {
        consumer.put_back(BlockId(0), Pages(i * 512), Pages(1));
    }
    let round = consumer.begin_hints().unwrap();
    consumer
        .hint_free(round, GuestAddress(0), 1000 << 21)
        .unwrap();
    consumer.put_back(BlockId(0), Pages((16 << 28) - 1), Pages(1));
    let (mut cursor, mut found) = (Cursor::default(), Vec::new());
    a_thousand_times("taking a run", |_| {
        let taken = consumer.take(&mut cursor, 1, Pages(u64::MAX)).unwrap();
        found.extend(taken.runs().map(|run| (run.pages.first().0, run.content)));
        taken.delivered();
    });
    let free: Vec<_> = (0..1000).map(|i| (i * 512, Content::Free)).collect();
    assert_eq!(found, free);
    let taken = consumer.take(&mut cursor, 9, Pages(u64::MAX)).unwrap();
    let last = taken.runs().next();
    let last = last.map(|run| (run.pages.first().0, run.content));
    assert_eq!(last, Some(((16 << 28) - 1, Content::Used)));
}
