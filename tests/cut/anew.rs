//! A link is cut inside a record that only makes sense after others, and the migration is begun anew
//! to the same destination. Nothing of the first session counts in the second: neither the cache of
//! sent pages at the source, nor anything that the destination remembers.

use super::middle::{Cut, Wire, UNUSED};
use crate::support::guest::lost;
use crate::support::memory::{ram, shared, PAGE};
use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::sides::{incoming, outgoing, socketpair};
use crate::support::time::LONG;
use crate::support::ways::hot_pages;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, Compression, ConnectTo, Decider, PageChecksums, Params};
use brant::wire::{RecordType, HEADER_LEN};
use std::sync::atomic::Ordering;

fn script(pair: &Pair, seed: u64) -> Box<dyn Decider> {
    hot_pages(pair, seed, 6, 40, [("ram", 7), ("shm", 7)])
}

/// A guest whose pages compress: they hold words of a few values.
fn guest(seed: u64) -> Pair {
    let pair = Pair::new(&[ram("ram", 700), shared("shm", 400)]);
    let mut random = Random(seed);
    for (_, ram) in pair.source.rams() {
        for page in 0..ram.spec.pages {
            let value = random.next() & 0xff;
            for word in 0..PAGE / 8 {
                let at = page * PAGE + word * 8;
                ram.word(at)
                    .store(value + word as u64 % 3, Ordering::Relaxed);
            }
        }
    }
    pair.destination.fill(seed + 1);
    pair.source.track();
    pair
}

#[test]
fn a_migration_cut_inside_a_delta_or_a_frame_is_begun_anew_and_memory_is_right() {
    let kinds = [
        RecordType::Delta,
        RecordType::Compressed,
        RecordType::CompressedList,
    ];
    for (n, kind) in kinds.into_iter().cycle().take(15).enumerate() {
        // Inside the header, behind it, in the table or list, in its checksum, before the last byte.
        let length = [HEADER_LEN / 2, HEADER_LEN, HEADER_LEN + 9, 77, usize::MAX][n / 3];
        let what = format!("cut inside {} behind {length} bytes", kind.name());
        let pair = guest(n as u64);
        let params = Params {
            io_timeout: UNUSED,
            delta_cache_bytes: Some(1 << 20),
            compression: Compression::Always,
            page_checksums: match n % 2 {
                0 => PageChecksums::On,
                _ => PageChecksums::Default,
            },
            ..Params::default()
        };
        let (wire, a, b) = Wire::new(Cut::Inside(kind, length));
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start_with(ConnectTo::Connected(a), script(&pair, n as u64))
            .unwrap();
        for end in [out.wait(Some(LONG)), inc.wait(Some(LONG))] {
            let error = end.expect_err(&what);
            let gone = matches!(error.kind(), Kind::PeerGone | Kind::Io);
            assert!(gone, "{what}: {:?} {error}", error.kind());
        }
        let log = wire.finish();
        assert!(log.cut_after.is_some(), "{what}: never came to that");
        pair.assert_runs_on(&what);
        pair.source.pause();
        let lost = lost(&pair.source, &pair.destination);
        assert_eq!(lost, Vec::<String>::new(), "{what}");
        pair.source.resume();
        drop((out, inc));

        let (a, b) = socketpair();
        let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start_with(ConnectTo::Connected(a), script(&pair, n as u64 + 99))
            .unwrap();
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        // The memory was compared when the state was loaded.
        pair.assert_sound(&what);
        assert_eq!(pair.world.who(), (false, true), "{what}");
        let stats = out.stats();
        assert!(
            stats.delta_pages > 0 && stats.compressed_pages > 0,
            "{what}"
        );
    }
}
