//! Pages that are sent again as deltas: the memory at the end, the bytes on the link, and the fate
//! of a delta that was made against another version.

use crate::support::deciders::Scripted;
use crate::support::guest::{lost, Guest};
use crate::support::memory::{ram, shared, Ram, PAGE};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::relay::{Proxy, Verdict};
use crate::support::sides::{incoming, outgoing, socketpair, start};
use crate::support::time::{LONG, MS};
use brant::error::Kind;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{AcceptFrom, Compression, ConnectTo, Decider, PageChecksums, Params, Stats};
use brant::units::{Bytes, Pages};
use brant::wire::{decode_delta, encode_delta, Delta, Header, Record, RecordType, FEATURE_DELTA};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// The smallest cache that the parameters allow: it holds 254 pages.
const SMALL: u64 = 1 << 20;

/// A decider that switches over after `passes` passes.
fn after(passes: u32) -> Box<dyn Decider> {
    Box::new(Scripted(move |facts: &Facts| {
        match facts.moment == Moment::Synced && facts.pass >= passes {
            true => Next::SwitchOver { expected: MS },
            false => Next::GoOn,
        }
    }))
}

/// Migrates `pair` in `passes` passes, and compares the memory of both sides at the end.
fn migrated(pair: &Pair, params: &Params, passes: u32, what: &str) -> Stats {
    let (out, inc) = (outgoing(pair, params), incoming(pair, params));
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..params.channels).map(|_| socketpair()).unzip();
    inc.start(AcceptFrom::ConnectedAll(theirs)).unwrap();
    out.start_with(ConnectTo::ConnectedAll(ours), after(passes))
        .unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound(what);
    assert_eq!(pair.world.who(), (false, true), "{what}");
    out.stats()
}

/// A hot set far larger than the cache, words that become zero again, one channel and several, with
/// checksums of contents and without.
#[test]
fn memory_is_equal_after_deltas_with_a_cache_that_is_too_small() {
    for channels in [1, 3] {
        for page_checksums in [PageChecksums::Default, PageChecksums::On] {
            for cache in [SMALL, 64 << 20] {
                let what = format!("{channels} channels, {page_checksums:?}, {cache} bytes");
                let pair = Pair::new(&[ram("ram", 1500), shared("shm", 700)]);
                pair.source.fill(1);
                pair.destination.fill(2);
                pair.source.writers(2, Duration::from_micros(50));
                pair.source.wait_goes_on(0);
                let params = Params {
                    channels,
                    page_checksums,
                    delta_cache_bytes: Some(cache),
                    ..Params::default()
                };
                let stats = migrated(&pair, &params, 20, &what);
                println!(
                    "{what}: {} deltas saved {} bytes, {} missed, {} overflowed",
                    stats.delta_pages,
                    stats.delta_saved_bytes,
                    stats.delta_missed_pages,
                    stats.delta_overflowed_pages
                );
                assert!(stats.delta_pages > 0, "{what}");
                assert!(stats.delta_saved_bytes > stats.delta_pages * 3000, "{what}");
                assert!(stats.delta_missed_pages > 0, "{what}");
            }
        }
    }
}

/// Has the guest write at each event of the migration while it runs: `write` gets the source and how
/// many times it was called before.
fn writes_at_events(pair: &Pair, write: impl Fn(&Guest, usize) + Send + Sync + 'static) {
    let source = Arc::clone(&pair.source);
    let written = AtomicUsize::new(0);
    pair.from.at("event", move || {
        // The migration's thread makes this call and pauses the guest, so the guest does not stop
        // meanwhile.
        if source.is_running() {
            write(&source, written.fetch_add(1, Ordering::SeqCst));
        }
        Ok(())
    });
}

/// Migrates a guest that writes a word to each of its 300 hot pages between two passes.
fn hot_set(delta_cache_bytes: Option<u64>) -> Stats {
    let pair = Pair::new(&[ram("ram", 2000)]);
    pair.source.fill(1);
    writes_at_events(&pair, |source, n| {
        for page in (0..300).map(|page| page * 5) {
            source.poke("ram", page * PAGE + 8 * (n % 500), n as u64 + 1);
        }
    });
    let params = Params {
        delta_cache_bytes,
        ..Params::default()
    };
    migrated(&pair, &params, 12, "a hot set")
}

#[test]
fn a_hot_set_takes_a_fraction_of_the_bytes() {
    let (without, with) = (hot_set(None), hot_set(Some(16 << 20)));
    assert_eq!((without.delta_pages, without.delta_missed_pages), (0, 0));
    let (first, all) = (2000 * PAGE as u64, without.wire_bytes);
    println!("{all} bytes without deltas, {} with", with.wire_bytes);
    // Both migrations send all pages once. The remaining bytes are those of the hot pages.
    let (left, less) = (all - first, with.wire_bytes - first);
    assert!(less < left / 3, "{less} of {left}");
    assert!(with.delta_pages > 300 * 5, "{}", with.delta_pages);
}

/// The link changes each delta so that it names another version.
#[test]
fn a_delta_of_another_version_is_an_error_and_the_guest_runs_on() {
    let pair = Pair::new(&[ram("ram", 300)]);
    pair.source.fill(1);
    pair.source.track();
    let tracker = Arc::clone(&pair.source.tracker);
    let block = pair.source.memory.find_block("ram").unwrap();
    pair.from.at("event", move || {
        tracker.mark_block(block, Bytes(0), 40 * PAGE as u64);
        Ok(())
    });
    let params = Params {
        delta_cache_bytes: Some(SMALL),
        ..Params::default()
    };
    let (_proxy, from, to) = Proxy::new(Box::new(|header: &Header, payload: &[u8]| {
        if header.record_type() != Ok(Some(RecordType::Delta)) {
            return Verdict::Forward;
        }
        let pages = decode_delta(header, payload, Pages(u64::MAX)).unwrap();
        let others: Vec<Delta<'_>> = pages
            .map(|delta| Delta {
                base: delta.base ^ 1,
                ..delta
            })
            .collect();
        let mut bytes = Vec::new();
        encode_delta(header.block, others.into_iter(), &mut bytes).unwrap();
        Verdict::Replace(bytes)
    }));
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(to)).unwrap();
    out.start_with(ConnectTo::Connected(from), after(8))
        .unwrap();
    let left = out.wait(Some(LONG)).unwrap_err();
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    for word in [
        "DELTA",
        "block `ram`",
        "page 0",
        "something else has written",
    ] {
        assert!(error.message().contains(word), "no {word} in {error}");
    }
    assert!(left.message().contains("block `ram`"), "{left}");
    pair.assert_runs_on("another version");
    pair.source.pause();
    assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
}

#[test]
fn a_destination_without_deltas_is_refused_by_their_name() {
    let pair = Pair::new(&[ram("ram", 10)]);
    let params = Params {
        delta_cache_bytes: Some(SMALL),
        ..Params::default()
    };
    // The link removes the feature from the source's offer.
    let (_proxy, from, to) = Proxy::new(Box::new(|header: &Header, payload: &[u8]| {
        if header.record_type() != Ok(Some(RecordType::HelloReply)) {
            return Verdict::Forward;
        }
        let record = Record::decode(header, payload).unwrap();
        let Record::HelloReply(mut reply) = record else {
            unreachable!()
        };
        reply.features &= !FEATURE_DELTA;
        let mut bytes = Vec::new();
        let reply = Record::HelloReply(reply);
        reply.encode(&mut bytes).unwrap();
        Verdict::Replace(bytes)
    }));
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    inc.start(AcceptFrom::Connected(to)).unwrap();
    out.start(ConnectTo::Connected(from)).unwrap();
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Version, "{error}");
    assert!(error.message().contains("delta (bit 3)"), "{error}");
    inc.wait(Some(LONG)).unwrap_err();
    // A destination that agrees to deltas takes them.
    let (out, inc) = start(&pair, &params);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
}

/// The guest clears the only word of each page that is not zero, and sets it again.
#[test]
fn pages_that_became_zero_are_not_encoded_against_what_they_were_before() {
    let pair = Pair::new(&[ram("ram", 600)]);
    pair.destination.fill(2);
    writes_at_events(&pair, |source, n| {
        for page in (0..100).map(|page| page * 3) {
            // One value in four is zero, at another time for each page.
            let value = match (n + page) % 4 {
                0 => 0,
                _ => n as u64 + 1,
            };
            source.poke("ram", page * PAGE + 64, value);
        }
    });
    let params = Params {
        delta_cache_bytes: Some(16 << 20),
        ..Params::default()
    };
    let stats = migrated(&pair, &params, 24, "pages that become zero");
    assert!(stats.delta_pages > 0 && stats.zero_pages > 600);
}

/// The destination's block has the contents of the source's old one, and the cache has versions of
/// its pages. Neither says anything of the new block.
#[test]
fn a_block_that_goes_and_comes_again_under_its_name_has_no_deltas_of_what_it_was() {
    for (channels, compression) in [(1, Compression::Off), (2, Compression::Always)] {
        let what = format!("{channels} channels, {compression:?}");
        let pair = Pair::new(&[ram("ram", 300), ram("dimm", 700)]);
        pair.source.fill(1);
        pair.destination.fill(2);
        let source = Arc::downgrade(&pair.source);
        let script = Scripted(move |facts: &Facts| {
            if facts.moment != Moment::Synced {
                return Next::GoOn;
            }
            let source = source.upgrade().unwrap();
            match facts.pass {
                4 => source.remove("dimm"),
                5 => {
                    // Every other page is another one, the rest is zero.
                    let new = Ram::new(&ram("dimm", 700));
                    let mut random = Random(3);
                    (0..700)
                        .step_by(2)
                        .for_each(|page| new.fill(page, &mut random));
                    source.add(new);
                }
                10.. => return Next::SwitchOver { expected: MS },
                pass => {
                    for page in 0..200 {
                        let offset = page * 3 * PAGE + 8 * pass as usize;
                        source.poke("dimm", offset, u64::from(pass));
                    }
                }
            }
            Next::GoOn
        });
        let params = Params {
            channels,
            compression,
            delta_cache_bytes: Some(16 << 20),
            ..Params::default()
        };
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..channels).map(|_| socketpair()).unzip();
        inc.start(AcceptFrom::ConnectedAll(theirs)).unwrap();
        out.start_with(ConnectTo::ConnectedAll(ours), Box::new(script))
            .unwrap();
        for end in [out.wait(Some(LONG)), inc.wait(Some(LONG))] {
            end.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        pair.assert_sound(&what);
        assert_eq!(pair.world.who(), (false, true), "{what}");
        // Two passes of each block had deltas.
        let deltas = out.stats().delta_pages;
        assert!(deltas >= 200 * 3, "{what}: {deltas}");
    }
}
