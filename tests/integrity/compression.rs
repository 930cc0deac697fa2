//! Compressed contents: they arrive as they were sent, and a frame that is not valid is refused.

use super::damage::damaged;
use crate::support::memory::{ram, shared, PAGE};
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::random::Random;
use crate::support::sides::{outgoing, quick, start};
use crate::support::time::LONG;
use brant::error::Kind;
use brant::migrate::{Compression, ConnectTo, PageChecksums, Params, Stats};
use brant::vm_memory::GuestAddress;
use brant::wire::{Header, HelloReply, Record, RecordType, HEADER_LEN};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn packed(compression: Compression) -> Params {
    Params {
        compression,
        ..quick()
    }
}

/// A guest with pages that compress well, pages that do not compress, and zero pages, in runs and
/// apart.
fn pair() -> Pair {
    let pair = Pair::new(&[ram("ram", 900), shared("shm", 500)]);
    let mut random = Random(5);
    for (_, ram) in pair.source.rams() {
        for page in 0..ram.spec.pages {
            match page % 300 {
                0..100 => {
                    for word in 0..PAGE / 8 {
                        let value = ((page as u64) << 8) | (word as u64 % 7);
                        ram.word(page * PAGE + word * 8)
                            .store(value, Ordering::Relaxed);
                    }
                }
                100..200 => ram.fill(page, &mut random),
                // Zero pages, with a page now and then that is not zero.
                at if at % 9 == 0 => ram.word(page * PAGE).store(1, Ordering::Relaxed),
                _ => {}
            }
        }
    }
    pair
}

/// Migrates the guest. Returns the figures of both sides.
fn migrated(pair: &Pair, params: &Params) -> [Stats; 2] {
    let (out, inc) = start(pair, params);
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    pair.assert_sound("compressed");
    assert_eq!(pair.world.who(), (false, true));
    [out.stats(), inc.stats()]
}

#[test]
fn a_mixture_of_contents_arrives_whole_while_the_guest_writes() {
    for page_checksums in [PageChecksums::Off, PageChecksums::On] {
        let pair = pair();
        pair.destination.fill(2);
        pair.source.writers(2, Duration::from_micros(300));
        pair.source.wait_goes_on(0);
        let params = Params {
            page_checksums,
            ..packed(Compression::Always)
        };
        let stats = migrated(&pair, &params);
        for stats in stats {
            assert!(stats.compressed_pages >= 400, "{stats:?}");
            assert!(
                stats.compressed_pages + 300 <= stats.data_pages,
                "{stats:?}"
            );
            assert!(stats.compressed_bytes * 2 < stats.compressed_pages * PAGE as u64);
        }
        let [left, arrived] = stats;
        assert_eq!(left.compressed_pages, arrived.compressed_pages);
        assert_eq!(left.compressed_bytes, arrived.compressed_bytes);
    }
}

#[test]
fn ballooned_pages_among_compressed_ones_read_as_zero() {
    let pair = pair();
    for guest in [&pair.source, &pair.destination] {
        guest.memory.set_must_tell_host(true);
    }
    pair.destination.fill(2);
    // The ballooned pages are zero at the source, so that both sides are equal although they are
    // not sent.
    let block = pair.source.memory.find_block("ram").unwrap();
    let slot = brant::memory::SlotDescription {
        slot: brant::memory::NO_SLOT,
        flags: 0,
        block,
        offset: brant::units::Bytes(0),
        length: brant::units::Bytes(900 * PAGE as u64),
        guest_address: GuestAddress(0),
    };
    pair.source.memory.add_slot(&slot).unwrap();
    let first = GuestAddress(201 * PAGE as u64);
    pair.source.memory.mark_ballooned(first, 6 * PAGE as u64);
    let [left, arrived] = migrated(&pair, &packed(Compression::Always));
    assert!(left.ballooned_pages >= 6 && arrived.ballooned_pages >= 6);
    assert!(left.compressed_pages > 0);
}

#[test]
fn each_level_arrives() {
    for compression_level in [1, 3, 9, 19] {
        let params = Params {
            compression_level,
            ..packed(Compression::Always)
        };
        migrated(&pair(), &params);
    }
}

#[test]
fn an_adaptive_lane_arrives_while_the_guest_writes() {
    let pair = pair();
    pair.source.writers(1, Duration::from_micros(300));
    pair.source.wait_goes_on(0);
    migrated(&pair, &packed(Compression::Adaptive));
}

#[test]
fn nothing_is_compressed_unless_the_source_is_told_to() {
    let pair = pair();
    let [left, arrived] = migrated(&pair, &quick());
    assert_eq!((left.compressed_pages, arrived.compressed_pages), (0, 0));
}

/// Changes the first, the third or the seventh frame. The frame is refused, and the guest runs on.
fn refused(what: &str, change: impl FnMut(&Header, &mut Vec<u8>) + Send + 'static) {
    let change = Arc::new(Mutex::new(change));
    for n in [1, 3, 7] {
        let pair = pair();
        let change = Arc::clone(&change);
        let change = move |header: &Header, bytes: &mut Vec<u8>| {
            (change.lock().unwrap())(header, bytes);
        };
        let params = packed(Compression::Always);
        let (left, arrived) = damaged(&pair, &params, (RecordType::Compressed, n), change);
        let error = arrived.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{what}: {error}");
        for word in ["COMPRESSED", "block `", "page"] {
            assert!(error.message().contains(word), "{what}: no {word}: {error}");
        }
        assert!(left.is_err());
        pair.assert_runs_on(what);
    }
}

#[test]
fn a_flipped_bit_in_a_frame_or_its_checksum_is_refused() {
    let seed = 21;
    println!("seed {seed}");
    let mut random = Random(seed);
    for _ in 0..4 {
        let (at, bit) = (random.next() as usize, random.below(8));
        refused("a flipped bit", move |_, bytes| {
            let payload = bytes.len() - HEADER_LEN;
            bytes[HEADER_LEN + at % payload] ^= 1 << bit;
        });
    }
}

/// Cuts bytes off the record, and makes its header agree.
fn cut(header: &Header, bytes: &mut Vec<u8>, by: usize) {
    bytes.truncate(bytes.len() - by);
    let shorter = Header {
        payload: header.payload - by as u32,
        ..*header
    };
    bytes[..HEADER_LEN].copy_from_slice(&shorter.encode());
}

#[test]
fn a_frame_cut_short_is_refused() {
    for by in [1, 7, 20] {
        refused("a frame cut short", move |header, bytes| {
            // A checksum and one byte of the frame stay. With less, the header alone would be
            // refused.
            cut(header, bytes, by.min(header.payload as usize - 5));
        });
    }
}

#[test]
fn a_frame_that_becomes_more_or_fewer_pages_than_its_run_has_is_refused() {
    for by in [-1, 1] {
        refused("a frame of other pages", move |header, bytes| {
            let count = header.count.wrapping_add_signed(by);
            // A run of one page does not become a run of none, which would be refused for its
            // header alone.
            let count = if count == 0 { 2 } else { count };
            let other = Header { count, ..*header };
            bytes[..HEADER_LEN].copy_from_slice(&other.encode());
        });
    }
}

/// A peer that plays a destination without zstd.
fn peer_without_zstd(compression: Compression) -> (Pair, Raw, Arc<brant::migrate::Outgoing>) {
    let pair = pair();
    let (mut raw, theirs) = Raw::pair();
    let out = outgoing(&pair, &packed(compression));
    out.start(ConnectTo::Connected(theirs)).unwrap();
    let Some(Record::Hello(hello)) = raw.hear_record() else {
        panic!("no HELLO");
    };
    assert_ne!(hello.features_offered & 1 << 2, 0);
    raw.say(&Record::HelloReply(HelloReply {
        version: 1,
        features: 1,
        software: String::new(),
    }));
    (pair, raw, out)
}

#[test]
fn a_destination_that_cannot_decompress_is_refused_by_name_where_all_is_to_be_compressed() {
    let (pair, _raw, out) = peer_without_zstd(Compression::Always);
    let error = out.wait(Some(LONG)).unwrap_err();
    assert_eq!(error.kind(), Kind::Version);
    assert!(error.message().contains("zstd (bit 2)"), "{error}");
    pair.assert_runs_on("no codec there");
}

#[test]
fn a_destination_that_cannot_decompress_gets_plain_contents_from_an_adaptive_source() {
    let (_pair, mut raw, out) = peer_without_zstd(Compression::Adaptive);
    // The source goes on with the next record.
    assert!(matches!(raw.hear_record(), Some(Record::EarlyEnd(_))));
    drop(raw);
    assert!(out.wait(Some(LONG)).is_err());
}
