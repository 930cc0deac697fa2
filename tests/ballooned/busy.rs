//! Guests that balloon and hint while they move, or whose migration is cancelled: no page that they
//! use is lost.

use super::machine::{address, specs, touched, Machine};
use crate::support::deciders::until;
use crate::support::random::Random;
use crate::support::sides::{quick, socketpair};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, Compression, ConnectTo, Incoming, Outgoing, Params};
use brant::units::PAGE_SIZE;
use brant::vmm::{EventKind, Vmm};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// Checks a destination whose guest has not been written since it arrived.
fn assert_arrived(source: &Machine, destination: &Machine, what: &str) {
    let knows = source.knows.lock().unwrap();
    let (theirs, ours) = (source.guest.rams(), destination.guest.rams());
    for n in 0..theirs.len() {
        // Asked before any read, because reading fills the holes of a memfd.
        let resident = touched(&destination.guest.memory, n);
        let pages = theirs[n].1.spec.pages;
        for page in 0..pages {
            let place = (n, page);
            let ballooned = destination
                .guest
                .memory
                .count_ballooned(address(n, page), PAGE_SIZE);
            let has = ours[n].1.page(page);
            if knows.balloon.contains(&place) {
                assert!(!resident.contains(&page), "{what}: {place:?} costs memory");
                assert!(has.iter().all(|b| *b == 0), "{what}: {place:?} is not zero");
                assert_eq!(ballooned, 1, "{what}: {place:?} is not known as ballooned");
                continue;
            }
            assert_eq!(ballooned, 0, "{what}: {place:?} is in use");
            let zero = has.iter().all(|b| *b == 0);
            let fine = has == theirs[n].1.page(page) || (zero && knows.free.contains(&place));
            assert!(fine, "{what}: {place:?} is lost");
        }
    }
}

fn busy(seed: u64, hints: bool) -> (Arc<Machine>, Vec<std::thread::JoinHandle<()>>) {
    let machine = Machine::new(&specs());
    machine.guest.memory.set_must_tell_host(true);
    machine.guest.fill(seed);
    {
        let mut knows = machine.knows.lock().unwrap();
        // Long before any migration.
        machine.inflate(&mut knows, 0, 500, 1000);
        machine.inflate(&mut knows, 1, 1, 512);
    }
    let threads = (0..2)
        .map(|n| {
            let machine = Arc::clone(&machine);
            std::thread::spawn(move || machine.work(seed * 10 + n, hints))
        })
        .collect();
    (machine, threads)
}

fn end(machine: &Machine, threads: Vec<std::thread::JoinHandle<()>>) {
    machine.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// The guest writes a word to each of its hot pages that is not in the balloon.
fn hot(machine: &Machine) {
    let running = machine.running.read().unwrap();
    let mut knows = machine.knows.lock().unwrap();
    let mut random = Random(knows.hints.len() as u64);
    for page in (0..300).filter(|_| *running) {
        if !knows.balloon.contains(&(0, page)) {
            machine.write(&mut knows, &mut random, 0, page);
        }
    }
}

/// Migrates `from` to a new machine, after some passes.
fn moves(from: &Arc<Machine>, params: &Params) -> (Arc<Machine>, Arc<Outgoing>, Incoming) {
    let to = Machine::new(&specs());
    // Its memory is not empty before.
    to.guest.fill(77);
    let told = Arc::new(AtomicBool::new(false));
    let passes = AtomicU64::new(0);
    let (tell, writes) = (Arc::clone(&told), Arc::clone(from));
    *from.event.lock().unwrap() = Some(Box::new(move |event| {
        if event.kind == EventKind::Pass {
            hot(&writes);
        }
        if event.kind == EventKind::Pass && passes.fetch_add(1, Ordering::SeqCst) == 4 {
            tell.store(true, Ordering::SeqCst);
        }
    }));
    // Slow enough that something can happen during the passes.
    let params = Params {
        max_bandwidth: Some(256 << 20),
        ..params.clone()
    };
    let (out, inc) = (from.outgoing(&params), to.incoming(&quick()));
    let (a, b) = socketpair();
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&told))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    *from.event.lock().unwrap() = None;
    (to, out, inc)
}

#[test]
fn a_guest_that_gives_back_takes_back_and_hints_while_it_moves_arrives_whole() {
    let (mut ballooned, mut hinted, mut again) = (0, 0, 0);
    for seed in 1..=6 {
        let what = format!("seed {seed}");
        let (from, threads) = busy(seed, seed % 3 != 0);
        let (to, out, inc) = moves(&from, &quick());
        // Both guests stand still from now on.
        assert_arrived(&from, &to, &what);
        let (sent, got) = (out.stats(), inc.stats());
        assert_eq!(sent.ballooned_pages, got.ballooned_pages, "{what}");
        assert_eq!(sent.zero_pages, got.zero_pages, "{what}");
        assert!(sent.zero_pages >= sent.ballooned_pages, "{what}");
        ballooned += sent.ballooned_pages;
        hinted += sent.hinted_pages;
        end(&from, threads);
        // The guest moves on from there, and its ballooned pages are named again at once.
        {
            let mut theirs = to.knows.lock().unwrap();
            let knows = from.knows.lock().unwrap();
            theirs.balloon.clone_from(&knows.balloon);
            theirs.free.clone_from(&knows.free);
        }
        let (third, out, _inc) = moves(&to, &quick());
        assert_arrived(&to, &third, &format!("{what}, a second time"));
        assert!(out.stats().ballooned_pages as usize >= to.knows.lock().unwrap().balloon.len());
        again += out.stats().ballooned_pages;
    }
    assert!(ballooned > 6 * 1500, "{ballooned} pages ballooned");
    assert!(hinted > 0, "no hint was ever used");
    assert!(again > 0);
}

/// A page that leaves the balloon, or that was free, has no version that a delta could change.
#[test]
fn pages_that_come_and_go_arrive_whole_where_others_go_as_deltas_and_frames() {
    let (mut deltas, mut ballooned, mut hinted) = (0, 0, 0);
    for seed in 11..=14 {
        let what = format!("seed {seed}, with deltas and frames");
        let params = Params {
            delta_cache_bytes: Some(16 << 20),
            compression: [Compression::Always, Compression::Off][seed as usize % 2],
            ..quick()
        };
        let (from, threads) = busy(seed, seed > 11);
        let (to, out, _inc) = moves(&from, &params);
        assert_arrived(&from, &to, &what);
        end(&from, threads);
        let stats = out.stats();
        assert_eq!(stats.compressed_pages > 0, seed % 2 == 0, "{what}");
        deltas += stats.delta_pages;
        ballooned += stats.ballooned_pages;
        hinted += stats.hinted_pages;
    }
    assert!(deltas > 300, "{deltas} deltas");
    assert!(ballooned > 4 * 1500, "{ballooned} pages ballooned");
    assert!(hinted > 0, "no hint was ever used");
}

#[test]
fn a_migration_that_is_cancelled_loses_nothing_of_what_comes_and_goes() {
    for seed in 1..=4u64 {
        let (from, threads) = busy(seed, true);
        let to = Machine::new(&specs());
        // A consumer tracks already, so that writes after the cancel are known too.
        from.guest.track();
        let (out, inc) = (from.outgoing(&quick()), to.incoming(&quick()));
        let (a, b) = socketpair();
        inc.start(AcceptFrom::Connected(b)).unwrap();
        let never = Arc::new(AtomicBool::new(false));
        let (heard, passed) = std::sync::mpsc::channel();
        *from.event.lock().unwrap() = Some(Box::new(move |event| {
            if event.kind == EventKind::Pass {
                let _ = heard.send(());
            }
        }));
        out.start_with(ConnectTo::Connected(a), until(&never))
            .unwrap();
        for _ in 0..seed {
            passed.recv_timeout(LONG).unwrap();
        }
        out.cancel().unwrap();
        assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Cancelled);
        inc.wait(Some(LONG)).unwrap_err();
        from.pause().unwrap();
        // A page that neither equals the destination's nor is pending is lost.
        {
            let pending = from.guest.pending();
            let knows = from.knows.lock().unwrap();
            for (n, (_, ram)) in from.guest.rams().into_iter().enumerate() {
                let other = &to.guest.rams()[n].1;
                for page in 0..ram.spec.pages {
                    let cares =
                        !knows.balloon.contains(&(n, page)) && !knows.free.contains(&(n, page));
                    let same = ram.page(page) == other.page(page);
                    let waits = pending.contains(&(ram.spec.name.to_owned(), page));
                    assert!(!cares || same || waits, "seed {seed}: {n}, {page} is lost");
                }
            }
        }
        from.resume().unwrap();
        let (to, _out, _inc) = moves(&from, &quick());
        assert_arrived(&from, &to, &format!("seed {seed}, after a cancel"));
        end(&from, threads);
    }
}
