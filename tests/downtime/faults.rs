//! Downtimes that were seen, each far beyond its limit and its promise, and the migration that made
//! passes without end.

use crate::support::link::{Link, Way};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::migrate_over;
use crate::support::time::MS;
use crate::support::vmm::blob;
use brant::dirty::{DirtyLog, Extent, Harvested, Initial, LogKind, Sink, When};
use brant::error::{Kind, Result};
use brant::memory::Map;
use brant::migrate::{Operations, Overrun, Params};
use brant::vmm::EventKind;
use std::time::{Duration, Instant};

const MIB: usize = 256;
/// More than any downtime here should be on a busy machine, and less than the faults were.
const FAULT: Duration = Duration::from_millis(1500);

fn limited(limit: Duration) -> Params {
    Params {
        downtime_limit: limit,
        ..Params::default()
    }
}

#[test]
fn an_idle_guest_does_not_stand_still_while_a_buffer_on_the_way_empties() {
    // 300 ms were the limit, 0.0 promised, and 2,114 taken.
    for (rate, buffer) in [(4_000_000, 1 << 20), (20_000_000, 8 << 20)] {
        let link = Link::of(rate, Duration::ZERO, buffer);
        let pair = Pair::new(&[ram("ram", buffer / 4096 * 3 / 2)]);
        pair.source.fill(1);
        let (out, ended) = migrate_over(&pair, &link, &limited(MS * 300));
        ended.unwrap();
        let stats = out.stats();
        let stood = stats.downtime.unwrap();
        assert!(stood < FAULT, "{rate}, {buffer}: {stats:?}");
        // What was measured is the link and not the buffer.
        let measured = stats.bandwidth.expect("it was measured");
        assert!(measured < rate * 3 / 2, "{measured} on a link of {rate}");
        assert_eq!(stats.unacknowledged_bytes, 0);
    }
}

#[test]
fn a_working_set_in_a_buffer_is_not_delivered() {
    // 4 MiB are rewritten all the time. The buffer takes them at once, and the link needs 420 ms.
    let link = Link::of(10_000_000, Duration::ZERO, 8 << 20);
    let pair = Pair::new(&[ram("ram", 4 * MIB)]);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    pair.source.track();
    let params = Params {
        total_timeout: Some(MS * 3000),
        ..limited(MS * 100)
    };
    let (out, ended) = migrate_over(&pair, &link, &params);
    match ended {
        // A busy machine may leave the writer so little that the rest fits.
        Ok(()) => assert!(out.stats().downtime.unwrap() < FAULT, "{:?}", out.stats()),
        Err(error) => assert_eq!(error.kind(), Kind::NotConverged, "{error}"),
    }
}

#[test]
fn device_state_that_alone_exceeds_the_limit_is_refused_by_name_and_size() {
    // 30 MB at 10 MB/s: promised were 134 ms, and 3,747 taken.
    let link = Link::of(10_000_000, Duration::ZERO, 1 << 20);
    let pair = Pair::new(&[ram("ram", 4 * MIB)]);
    pair.source.fill(1);
    *pair.from.state.lock().unwrap() = vec![blob("gpu", 0, &vec![7; 30_000_000])];
    let params = Params {
        expected: Operations {
            state_bytes: Some(30_000_000),
            ..Operations::default()
        },
        ..limited(MS * 300)
    };
    let (_, ended) = migrate_over(&pair, &link, &params);
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged);
    let message = error.message();
    assert!(
        message.contains(
            "the downtime limit of 300 ms cannot be kept: sending the device state alone"
        ),
        "{message}"
    );
    assert!(message.contains("30.0 MB at"), "{message}");
    assert_eq!(pair.from.calls("pause"), 0);
    pair.assert_runs_on("too much state");
}

/// A round trip of 100 ms, and a guest of 4 MiB.
fn far_away() -> (Link, Pair) {
    let way = Way {
        delay: MS * 50,
        ..Way::OPEN
    };
    let pair = Pair::new(&[ram("ram", 4 * MIB)]);
    pair.source.fill(1);
    (Link::new(way, way), pair)
}

#[test]
fn a_limit_below_the_round_trips_is_refused_before_the_first_page() {
    // 100 ms of round trip and a limit of 50: promised were 0.01 ms, and 213 taken.
    let (link, pair) = far_away();
    let (out, ended) = migrate_over(&pair, &link, &limited(MS * 50));
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), Kind::NotConverged);
    let message = error.message();
    assert!(
        message.contains("the round trips alone take 2"),
        "{message}"
    );
    assert_eq!(out.stats().data_pages, 0);
    assert_eq!(pair.from.calls("pause"), 0);
    pair.assert_runs_on("too far");
}

#[test]
fn who_carries_on_over_a_long_way_is_promised_how_long_it_takes_and_told_that_it_was_longer() {
    let (link, pair) = far_away();
    let params = Params {
        overrun: Overrun::CarryOn,
        ..limited(MS * 50)
    };
    let (out, ended) = migrate_over(&pair, &link, &params);
    ended.unwrap();
    let stats = out.stats();
    assert!(stats.promised_downtime.unwrap() >= MS * 200, "{stats:?}");
    assert!(stats.downtime.unwrap() >= MS * 200, "{stats:?}");
    assert_eq!(stats.overrun, stats.downtime.unwrap() - MS * 50);
    let told = pair.from.events(EventKind::Downtime);
    let said = |w: &&String| w.contains("longer than the downtime limit");
    assert_eq!(told.iter().filter(said).count(), 1, "{told:?}");
}

/// A log whose harvest takes as long as that of a huge guest.
struct Huge(Duration);

impl DirtyLog for Huge {
    fn kind(&self) -> LogKind {
        LogKind::Vhost
    }
    fn start(&mut self, _: &Map) -> Result<Initial> {
        Ok(Initial::Clean)
    }
    fn stop(&mut self, _: &Map) -> Result<()> {
        Ok(())
    }
    fn harvest(&mut self, _: &Map, _: When, _: &mut dyn Sink) -> Result<Harvested> {
        std::thread::sleep(self.0);
        Ok(Harvested::Complete)
    }
    fn covered(&self, _: &Map, _: &mut dyn FnMut(Extent)) {}
    fn map_changes(&mut self, _: &Map, _: &Map, _: &mut dyn Sink) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_idle_guest_whose_syncs_exceed_the_limit_is_refused_and_makes_no_empty_passes() {
    // A guest of 512 GiB under a limit of 1 ms made 7,927 empty passes.
    let pair = Pair::new(&[ram("ram", MIB)]);
    pair.source.fill(1);
    pair.source.tracker.add_log(Box::new(Huge(MS * 5))).unwrap();
    let (a, b) = crate::support::sides::socketpair();
    let params = limited(MS);
    let out = crate::support::sides::outgoing(&pair, &params);
    let inc = crate::support::sides::incoming(&pair, &params);
    inc.start(brant::migrate::AcceptFrom::Connected(b)).unwrap();
    let begun = Instant::now();
    out.start(brant::migrate::ConnectTo::Connected(a)).unwrap();
    let error = out.wait(Some(crate::support::time::LONG)).unwrap_err();
    let _ = inc.wait(Some(crate::support::time::LONG));
    assert_eq!(error.kind(), Kind::NotConverged);
    let message = error.message();
    assert!(
        message.contains("the downtime limit of 1 ms cannot be kept"),
        "{message}"
    );
    let passes = pair.from.events(EventKind::Pass).len();
    assert!(
        passes <= 4,
        "{passes} passes in {:?}: {message}",
        begun.elapsed()
    );
    pair.assert_runs_on("a huge guest");
}
