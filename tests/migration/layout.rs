//! Blocks of both sides: compared by name at the start, and plugged and unplugged while pages are
//! copied.

use crate::support::deciders::until;
use crate::support::guest::Guest;
use crate::support::memory::{ram, shared, Ram, Spec};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::{LONG, MS};
use brant::dirty::tracker::{Clearing, Tracker};
use brant::error::Kind;
use brant::memory::Memory;
use brant::migrate::{AcceptFrom, ConnectTo, Incoming, Outgoing};
use brant::vmm::EventKind;
use brant::wire::{Header, RecordType, MARKER_FLAG_FINAL};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_layout_that_differs_is_refused_by_name_at_both_ends() {
    let base = || vec![ram("ram", 1024), ram("vga", 512)];
    let mut cases: Vec<(&str, Vec<Spec>, Vec<&str>)> = Vec::new();
    let mut with = |what, change: &dyn Fn(&mut Vec<Spec>), words| {
        let mut specs = base();
        change(&mut specs);
        cases.push((what, specs, words));
    };
    with("name", &|s| s[1].name = "gpu", vec!["`vga`", "`gpu`"]);
    with(
        "length",
        &|s| s[1].pages = 1024,
        vec!["`vga`", "2097152", "4194304"],
    );
    with(
        "page size",
        &|s| s[1].page_size = 2 << 20,
        vec!["`vga`", "4096", "2097152"],
    );
    with(
        "missing",
        &|s| s.truncate(1),
        vec!["`vga`", "destination has none"],
    );
    with(
        "extra",
        &|s| s.push(ram("nvdimm", 3)),
        vec!["`nvdimm`", "source has none"],
    );
    with("rom", &|s| s[1].rom = true, vec!["`vga`", "ROM"]);
    with("nothing", &|s| s.clear(), vec!["`ram`", "`vga`"]);
    for (what, theirs, words) in cases {
        let pair = Pair::of(Guest::new(&base()), Guest::new(&theirs));
        pair.source.writers(1, MS);
        let (out, inc) = start(&pair, &quick());
        let here = out.wait(Some(LONG)).unwrap_err();
        let there = inc.wait(Some(LONG)).unwrap_err();
        for error in [&here, &there] {
            assert_eq!(error.kind(), Kind::Layout, "{what}: {error}");
            for word in &words {
                assert!(error.message().contains(word), "{what}: {word} in: {error}");
            }
        }
        assert_eq!(
            pair.to.calls("load") + pair.from.calls("pause"),
            0,
            "{what}"
        );
        pair.assert_runs_on(what);
        pair.source.wait_goes_on(pair.source.counter());
    }
}

#[test]
fn blocks_that_come_and_go_while_copying_end_equal_and_unmapped() {
    let specs = [ram("ram", 600), ram("goes", 1500)];
    let pair = Pair::new(&specs);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    let told: Arc<AtomicBool> = Arc::default();
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&told))
        .unwrap();
    pair.from.wait_passes(1);
    for round in 0..4 {
        let spec = match round % 2 {
            0 => ram("comes", 1030),
            _ => shared("comes", 513),
        };
        let garbage = Ram::new(&spec);
        garbage.fill_all(&mut Random(round));
        pair.destination.add(garbage);
        let fresh = Ram::new(&spec);
        (0..spec.pages)
            .step_by(3)
            .for_each(|p| fresh.fill(p, &mut Random(p as u64)));
        pair.source.add(fresh);
        let passes = pair.from.events(EventKind::Pass).len();
        pair.from.wait_passes(passes + 2);
        if round < 3 {
            // Returns when no thread can access the block any more; it is unmapped right after.
            pair.source.remove("comes");
            pair.destination.remove("comes");
        }
    }
    pair.source.remove("goes");
    pair.destination.remove("goes");
    told.store(true, Ordering::SeqCst);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("hotplug");
    assert_eq!(pair.destination.rams().len(), 2);
    assert_eq!(pair.world.who(), (false, true));
}

/// Starts a migration through a relay. When the relay sees `here`, it does `then`, and only then
/// passes the record on.
fn with_relay(
    pair: &Pair,
    here: impl Fn(&Header, &[u8]) -> bool + Send + 'static,
    then: impl Fn() + Send + 'static,
) -> (Proxy, Arc<Outgoing>, Arc<Incoming>) {
    let mut once = false;
    let (proxy, a, b) = Proxy::new(Box::new(move |header, payload| {
        if !once && here(header, payload) {
            once = true;
            then();
        }
        Verdict::Forward
    }));
    let (out, inc) = (outgoing(pair, &quick()), incoming(pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    (proxy, out, inc)
}

fn is(kind: RecordType) -> impl Fn(&Header, &[u8]) -> bool + Send + 'static {
    move |header, _| header.record_type() == Ok(Some(kind))
}

fn final_marker(header: &Header, payload: &[u8]) -> bool {
    is(RecordType::Marker)(header, payload) && payload[12] & MARKER_FLAG_FINAL as u8 != 0
}

type Here = Box<dyn Fn(&Header, &[u8]) -> bool + Send>;

#[test]
fn a_block_that_goes_at_both_sides_between_any_two_records_ends_nothing() {
    use RecordType as R;
    let points: Vec<(&str, Here)> = vec![
        (
            "before the layouts are compared",
            Box::new(is(R::LayoutEnd)),
        ),
        ("once they are equal", Box::new(is(R::LayoutOk))),
        ("in the first pass", Box::new(is(R::Marker))),
        ("when the last page is sent", Box::new(final_marker)),
        ("before the state", Box::new(is(R::State))),
        ("after the state", Box::new(is(R::StateEnd))),
        ("when the destination is ready", Box::new(is(R::Ready))),
        ("at the hand-over", Box::new(is(R::Handover))),
    ];
    for (what, here) in points {
        let pair = Pair::new(&[ram("ram", 600), ram("goes", 700), shared("stays", 65)]);
        pair.source.fill(1);
        let (source, destination) = (Arc::clone(&pair.source), Arc::clone(&pair.destination));
        let (_proxy, out, inc) = with_relay(&pair, here, move || {
            // Unmapped in here, right after brant's call has returned.
            source.remove("goes");
            destination.remove("goes");
        });
        let results = (out.wait(Some(LONG)), inc.wait(Some(LONG)));
        assert_eq!(results, (Ok(()), Ok(())), "{what}");
        assert_eq!(pair.destination.rams().len(), 2, "{what}");
        pair.assert_sound(what);
        assert_eq!(pair.world.who(), (false, true), "{what}");
    }
}

#[test]
fn a_block_that_goes_at_the_destination_only_ends_the_migration_before_ready() {
    let points: Vec<(&str, Here)> = vec![
        ("while negotiating", Box::new(is(RecordType::LayoutEnd))),
        ("when the last page is sent", Box::new(final_marker)),
        ("after the state", Box::new(is(RecordType::StateEnd))),
    ];
    std::thread::scope(|scope| {
        for (what, here) in points {
            scope.spawn(move || {
                let pair = Pair::new(&[ram("ram", 600), ram("goes", 700)]);
                let destination = Arc::clone(&pair.destination);
                let (_proxy, out, inc) = with_relay(&pair, here, move || {
                    destination.remove("goes");
                });
                let error = inc.wait(Some(LONG)).unwrap_err();
                assert_eq!(error.kind(), Kind::Layout, "{what}: {error}");
                let words = "`goes` was removed at the destination while the source still has it";
                assert!(error.message().contains(words), "{what}: {error}");
                let told = out.wait(Some(LONG)).unwrap_err();
                assert_eq!(told.kind(), Kind::Layout, "{what}: {told}");
                assert_eq!(pair.world.who(), (true, false), "{what}");
                assert_eq!(pair.from.calls("release"), 0, "{what}");
                assert_eq!(pair.to.calls("run"), 0, "{what}");
            });
        }
    });
}

#[test]
fn a_block_added_here_only_ends_the_migration_by_its_name() {
    let pair = Pair::new(&[ram("ram", 600)]);
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start_with(ConnectTo::Connected(a), until(&Arc::default()))
        .unwrap();
    pair.from.wait_passes(1);
    pair.source.add(Ram::new(&ram("dimm7", 65)));
    for error in [
        out.wait(Some(LONG)).unwrap_err(),
        inc.wait(Some(LONG)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Layout, "{error}");
        assert!(error.message().contains("`dimm7`"), "{error}");
    }
    pair.assert_runs_on("a block too many");
}

#[test]
fn a_tracker_without_memory_and_a_guest_without_blocks_are_migrated_or_refused_but_never_hang() {
    let pair = Pair::of(Guest::new(&[]), Guest::new(&[]));
    let (out, inc) = start(&pair, &quick());
    let result = out.wait(Some(LONG));
    let there = inc.wait(Some(LONG));
    assert_eq!(result.is_ok(), there.is_ok(), "{result:?} {there:?}");
    pair.assert_sound("no memory");
    let memory = Arc::new(Memory::new().unwrap());
    Tracker::new(memory, Clearing::AtSync).unwrap();
}
