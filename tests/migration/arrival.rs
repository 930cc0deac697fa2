//! What arrives: the memory of a busy guest byte for byte, over each kind of connection; and no
//! page of untouched memory.

use super::whole::{busy_pair, migrates};
use crate::support::guest::{differences, Guest};
use crate::support::memory::{ram, rom, shared, Spec};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::{incoming, quick, socketpair};
use crate::support::time::LONG;
use brant::channel::{Endpoint, Listener};
use brant::error::{Kind, Result};
use brant::memory::contents::Contents;
use brant::migrate::{AcceptFrom, Blockers, ConnectTo, Incoming, Outgoing, Params};
use brant::units::Pages;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

fn goes_on_at_the_destination(pair: &Pair) {
    let left_at = pair.source.counter();
    pair.destination.writers(2, Duration::ZERO);
    pair.destination.wait_goes_on(left_at);
    assert_eq!(
        pair.source.counter(),
        left_at,
        "the source's guest stands still"
    );
}

#[test]
fn a_busy_guest_moves_over_tcp_and_goes_on_where_it_was() {
    let pair = busy_pair();
    migrates(&pair, |out, inc| {
        let at = inc
            .listen(&Endpoint::parse("tcp:127.0.0.1:0").unwrap())
            .unwrap();
        out.start(ConnectTo::Endpoint(at)).unwrap();
    });
    goes_on_at_the_destination(&pair);
}

#[test]
fn a_busy_guest_moves_over_a_unix_socket_and_goes_on_where_it_was() {
    let pair = busy_pair();
    let dir = tempfile::tempdir().unwrap();
    let at = Endpoint::Unix(dir.path().join("s"));
    migrates(&pair, |out, inc| {
        let listener = Arc::new(Listener::bind(&at).unwrap());
        inc.start(AcceptFrom::Listener(listener)).unwrap();
        out.start(ConnectTo::Endpoint(at.clone())).unwrap();
    });
    goes_on_at_the_destination(&pair);
}

#[test]
fn where_it_listens_is_told_from_the_start_on_and_stays_the_same() {
    let pair = busy_pair();
    let dir = tempfile::tempdir().unwrap();
    let unix = Endpoint::Unix(dir.path().join("s"));
    for asked in [Endpoint::parse("tcp:localhost:0").unwrap(), unix] {
        let inc = incoming(&pair, &Params::default());
        let error = inc.endpoint().unwrap_err();
        assert_eq!(error.kind(), Kind::State);
        assert!(error.message().contains("not started"), "{error}");
        let bound = inc.listen(&asked).unwrap();
        assert!(!bound.to_string().ends_with(":0"), "{bound}");
        assert_eq!(inc.endpoint().unwrap(), bound);
        inc.cancel().unwrap();
        assert_eq!(inc.endpoint().unwrap(), bound);
    }
    let (_a, b) = socketpair();
    let inc = incoming(&pair, &Params::default());
    inc.start(AcceptFrom::Connected(b)).unwrap();
    let error = inc.endpoint().unwrap_err();
    assert!(error.message().contains("handed in"), "{error}");
    inc.cancel().unwrap();
}

#[test]
fn one_listener_awaits_one_migration_after_another() {
    let any = Endpoint::parse("tcp:127.0.0.1:0").unwrap();
    let listener = Arc::new(Listener::bind(&any).unwrap());
    for _ in 0..2 {
        let pair = busy_pair();
        migrates(&pair, |out, inc| {
            inc.start(AcceptFrom::Listener(Arc::clone(&listener)))
                .unwrap();
            let at = listener.local_endpoint().clone();
            out.start(ConnectTo::Endpoint(at)).unwrap();
        });
        goes_on_at_the_destination(&pair);
    }
}

#[test]
fn a_busy_guest_moves_over_descriptors_and_goes_on_where_it_was() {
    let pair = busy_pair();
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start(ConnectTo::Connected(a)).unwrap();
    });
    goes_on_at_the_destination(&pair);
}

#[test]
fn ten_blocks_of_odd_sizes_arrive_byte_for_byte() {
    let specs = [
        ram("one", 1),
        ram("two", 2),
        shared("65", 65),
        ram("511+513", 1024),
        ram("511", 511),
        shared("513", 513),
        rom("rom", 3),
        shared("1023", 1023),
        ram("64", 64),
        Spec {
            page_size: 2 << 20,
            ..ram("big", 1024)
        },
    ];
    let pair = Pair::new(&specs);
    pair.source.fill(3);
    pair.destination.fill(4);
    pair.source.writers(1, Duration::ZERO);
    pair.source.wait_goes_on(0);
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start(ConnectTo::Connected(a)).unwrap();
    });
}

fn touched(guest: &Guest, name: &str) -> Vec<std::ops::Range<u64>> {
    let map = guest.memory.map();
    let block = map.block_named(name).unwrap();
    let mut contents = Contents::new();
    let mut runs = Vec::new();
    contents
        .touched(block, Pages(0)..block.pages(), |r| {
            runs.push(r.start.0..r.end.0)
        })
        .unwrap();
    runs
}

#[test]
fn what_was_never_touched_stays_untouched_and_garbage_becomes_zero() {
    let pair = Pair::new(&[ram("ram", 2000), shared("shm", 2000)]);
    let mut random = Random(5);
    for name in ["ram", "shm"] {
        // Only these pages of the source are ever touched.
        for page in [0, 700, 701, 1999] {
            pair.source.ram(name).fill(page, &mut random);
        }
        // One of them is zero by now.
        for word in 0..512 {
            pair.source
                .ram(name)
                .word(701 * 4096 + word * 8)
                .store(0, Ordering::Relaxed);
        }
        // The destination has old contents here.
        for page in 100..200 {
            pair.destination.ram(name).fill(page, &mut random);
        }
    }
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start(ConnectTo::Connected(a)).unwrap();
        out.wait(Some(LONG)).unwrap();
        let stats = out.stats();
        assert!(stats.hole_pages >= 2 * 1996, "{stats:?}");
        assert!(stats.data_pages < 20, "{stats:?}");
        inc.wait(Some(LONG)).unwrap();
        // 4 pages that the source touched, of which 701 is zero and need not be written; and the
        // 100 with old contents. (The comparison has read every page, which fills a memfd's holes,
        // so a test of its own is for that block.)
        let runs = touched(&pair.destination, "ram");
        let pages: u64 = runs.iter().map(|r| r.end - r.start).sum();
        assert!((103..=104).contains(&pages), "{pages} pages touched");
    });
    let ram = pair.destination.ram("ram");
    assert!((100..200).all(|page| ram.page(page).iter().all(|b| *b == 0)));
}

#[test]
fn the_holes_of_a_memfd_stay_holes_at_the_destination() {
    // Without a VMM that compares, because a read of a memfd's hole through a mapping fills it.
    let specs = [shared("shm", 4096)];
    let (source, destination) = (Guest::new(&specs), Guest::new(&specs));
    source.ram("shm").fill(9, &mut Random(1));
    source.ram("shm").fill(4000, &mut Random(2));
    let (a, b) = socketpair();
    struct Quiet;
    impl brant::vmm::Vmm for Quiet {
        fn pause(&self) -> Result<()> {
            Ok(())
        }
        fn run(&self) -> Result<()> {
            Ok(())
        }
    }
    let inc = Incoming::new(Arc::clone(&destination.memory), Arc::new(Quiet), quick()).unwrap();
    let out = Outgoing::new(
        Arc::clone(&source.tracker),
        Blockers::new(),
        Arc::new(Quiet),
        quick(),
    )
    .unwrap();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(touched(&destination, "shm"), [9..10, 4000..4001]);
    assert_eq!(touched(&source, "shm"), [9..10, 4000..4001]);
    assert_eq!(differences(&source, &destination), Vec::<String>::new());
}
