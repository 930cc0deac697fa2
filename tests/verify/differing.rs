//! A page that differs at the destination is an event that names it, and the migration succeeds.

use super::{pair, verifying, PAGES};
use crate::integrity::damage::damaged;
use crate::support::pair::Pair;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing};
use crate::support::time::LONG;
use brant::migrate::{AcceptFrom, ConnectTo};
use brant::units::PAGE_SIZE;
use brant::vmm::EventKind;
use brant::wire::{RecordType, HEADER_LEN};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[test]
fn a_flipped_bit_is_an_event_with_its_block_and_page_and_the_migration_succeeds() {
    for n in [1, 2, 3] {
        let pair = pair();
        let flipped = Arc::new(Mutex::new(0));
        let page = Arc::clone(&flipped);
        let flip = move |header: &brant::wire::Header, bytes: &mut Vec<u8>| {
            *bytes.last_mut().unwrap() ^= 1;
            *page.lock().unwrap() = header.first_page + u64::from(header.count) - 1;
        };
        let (left, arrived) = damaged(&pair, &verifying(), (RecordType::Pages, n), flip);
        assert_eq!((left, arrived), (Ok(()), Ok(())));
        assert_eq!(pair.world.who(), (false, true));
        let events = pair.from.events(EventKind::Mismatch);
        let page = *flipped.lock().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        let what = &events[0];
        assert!(what.contains("1 in all"), "{what}");
        let first = format!(
            "the first is page {page}, at offset {:#x}",
            page * PAGE_SIZE
        );
        assert!(what.contains(&first), "{first} in: {what}");
        assert!(pair.from.events(EventKind::Warning).is_empty());
    }
}

/// Flips one bit of each of these pages, given by block and page, in whatever record they come.
fn flip_all(pair: &Pair, wanted: &[(u32, u64)]) -> brant::migrate::Stats {
    let wanted = wanted.to_vec();
    let (_proxy, from, to) = Proxy::new(Box::new(move |header, payload| {
        if header.record_type() != Ok(Some(RecordType::Pages)) {
            return Verdict::Forward;
        }
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        for (block, page) in &wanted {
            let here = header.first_page..header.first_page + u64::from(header.count);
            if *block == header.block && here.contains(page) {
                let at = HEADER_LEN + ((page - here.start) * PAGE_SIZE) as usize;
                bytes[at + 100] ^= 0x10;
            }
        }
        Verdict::Replace(bytes)
    }));
    let params = verifying();
    let (out, inc) = (outgoing(pair, &params), incoming(pair, &params));
    inc.start(AcceptFrom::Connected(to)).unwrap();
    out.start(ConnectTo::Connected(from)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    out.stats()
}

#[test]
fn each_block_has_one_event_and_the_figures_count_all_pages() {
    let pair = pair();
    let rams = pair.source.rams();
    let id = |n: usize| rams[n].0 .0;
    let pages = [
        (id(0), 30),
        (id(0), 31),
        (id(0), 199),
        (id(1), 5),
        (id(1), 170),
    ];
    let stats = flip_all(&pair, &pages);
    assert_eq!(stats.mismatched_pages, 5);
    assert_eq!(stats.verified_pages, PAGES);
    let first = (stats.first_mismatch_block, stats.first_mismatch_page);
    assert_eq!(first, (Some(id(0)), Some(30)));
    let events = pair.from.events(EventKind::Mismatch);
    let of = |name: &str| {
        let mut of = events.iter().filter(|e| e.contains(name));
        (of.next().cloned().unwrap(), of.count())
    };
    let by_block: BTreeMap<_, _> = ["block `ram`", "block `shm`"]
        .map(|name| (name, of(name)))
        .into();
    for ((_, (event, more)), (count, page)) in by_block.into_iter().zip([(3, 30), (2, 5)]) {
        assert_eq!(more, 0);
        assert!(event.contains(&format!("{count} in all")), "{event}");
        assert!(event.contains(&format!("first is page {page},")), "{event}");
    }
    let end = pair.from.events(EventKind::Completed);
    assert!(end[0].contains("5 of them differ"), "{end:?}");
    assert!(out_json_has(&stats, "\"mismatched_pages\":5"));
}

fn out_json_has(stats: &brant::migrate::Stats, part: &str) -> bool {
    stats.to_json().unwrap().contains(part)
}
