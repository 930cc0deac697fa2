//! Limits of 50 and 300 ms, over buffers of 0, 1 and 8 MiB and round trips of 0, 10 and 100 ms.

use crate::support::link::Link;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::migrate_over;
use crate::support::time::MS;
use brant::error::Kind;
use brant::migrate::Params;

const MIB: usize = 256;

/// Migrates a guest that writes a few pages a millisecond, over a link of 20 MB/s.
fn kept(buffer: usize, round_trip: u32, limit: u32, channels: u32) {
    let link = Link::of(20_000_000, MS * round_trip, buffer);
    let pair = Pair::new(&[ram("ram", 4 * MIB)]);
    pair.source.fill(1);
    pair.source.writer_within("ram", 0..64, MS);
    pair.source.track();
    let params = Params {
        downtime_limit: MS * limit,
        channels,
        ..Params::default()
    };
    let what = format!("{buffer} bytes, {round_trip} ms, limit {limit} ms");
    let (out, ended) = migrate_over(&pair, &link, &params);
    let stats = out.stats();
    if 2 * round_trip > limit {
        let error = ended.unwrap_err();
        assert_eq!(error.kind(), Kind::NotConverged, "{what}");
        assert!(
            error.message().contains("the round trips alone"),
            "{what}: {error}"
        );
        assert_eq!(pair.from.calls("pause"), 0, "{what}");
        return;
    }
    ended.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (stood, promised) = (stats.downtime.unwrap(), stats.promised_downtime.unwrap());
    println!("{what}: {stood:?} of {promised:?}");
    assert!(promised <= MS * limit, "{what}: {stats:?}");
    assert!(promised >= MS * (2 * round_trip), "{what}: {stats:?}");
    assert!(stood < MS * limit + MS * 1000, "{what}: {stats:?}");
}

#[test]
fn the_limit_is_kept_or_refused_whatever_buffers_and_delay_the_link_has() {
    for buffer in [0, 1 << 20, 8 << 20] {
        for round_trip in [0, 10, 100] {
            for limit in [50, 300] {
                kept(buffer, round_trip, limit, 1);
            }
        }
    }
}

#[test]
fn several_channels_share_a_link_and_its_buffer() {
    for buffer in [0, 8 << 20] {
        kept(buffer, 10, 300, 4);
    }
}
