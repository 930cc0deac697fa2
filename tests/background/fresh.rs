//! Figures and forecast while a link stalls, and the progress of a migration that converges slowly.

use crate::support::link::Link;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, start_over};
use crate::support::time::{LONG, MS};
use brant::migrate::steering::stall::Cause;
use brant::migrate::{AcceptFrom, ConnectTo, Outgoing, Params, Policy};
use std::time::{Duration, Instant};

/// Looks at the migration until `over` says so.
fn until(out: &Outgoing, what: &str, mut over: impl FnMut(&Outgoing) -> bool) {
    let begun = Instant::now();
    while !over(out) {
        assert!(begun.elapsed() < LONG, "{what}: {:?}", out.stats());
        std::thread::sleep(MS * 10);
    }
}

#[test]
fn while_a_link_stalls_elapsed_goes_on_throughput_falls_to_0_and_the_forecast_moves_on() {
    let pair = Pair::new(&[ram("ram", 8192)]);
    pair.source.fill(1);
    let link = Link::of(8 << 20, MS, 64 << 10);
    let (near, far) = link.connect();
    let (out, inc) = (
        outgoing(&pair, &Params::default()),
        incoming(&pair, &Params::default()),
    );
    assert_eq!(out.forecast(), None, "before the start");
    inc.start(AcceptFrom::Connected(far)).unwrap();
    out.start(ConnectTo::Connected(near)).unwrap();
    until(&out, "no forecast", |out| {
        out.forecast().is_some() && out.stats().throughput > 0
    });
    let forecast = out.forecast().unwrap();
    assert!(forecast.converges, "{forecast:?}");
    assert!(forecast.bytes >= 8192.0 * 4096.0, "{forecast:?}");
    link.stop();
    until(&out, "the throughput stays", |out| {
        out.stats().throughput == 0
    });
    let (before, forecast) = (out.stats(), out.forecast().unwrap());
    std::thread::sleep(MS * 300);
    let (after, later) = (out.stats(), out.forecast().unwrap());
    assert!(after.elapsed >= before.elapsed + MS * 300);
    assert_eq!(after.wire_bytes, before.wire_bytes);
    assert!(
        later.time >= forecast.time + MS * 300,
        "{forecast:?} {later:?}"
    );
    link.go_on();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let (stats, last) = (out.stats(), out.forecast().unwrap());
    assert!(last.converges && last.passes == stats.pass, "{last:?}");
    assert_eq!(last.bytes as u64, stats.wire_bytes);
    assert_eq!(Some(last.downtime), stats.downtime);
    assert!(stats.elapsed >= after.elapsed);
}

/// A stall comes after 400 ms.
fn patient(deadline: Option<Duration>) -> Policy {
    Policy {
        patience: MS * 400,
        deadline,
        ..Policy::default()
    }
}

/// A migration over a link that stops in the first pass.
fn over_a_dead_link(then: impl FnOnce(&Pair, &Link, &Outgoing)) {
    let pair = Pair::new(&[ram("ram", 8192)]);
    pair.source.fill(1);
    let params = Params {
        policy: patient(None),
        ..Params::default()
    };
    let link = Link::of(8 << 20, MS, 64 << 10);
    let (out, inc) = start_over(&pair, &link, &params);
    until(&out, "no forecast", |out| out.forecast().is_some());
    assert_eq!(out.stats().stall, None);
    link.stop();
    then(&pair, &link, &out);
    link.go_on();
    let _ = inc.wait(Some(LONG));
}

#[test]
fn a_link_that_stands_still_shows_as_a_stall_in_the_middle_of_a_pass_until_it_goes_on() {
    over_a_dead_link(|_, link, out| {
        until(out, "no stall", |out| out.stats().stall.is_some());
        let stats = out.stats();
        assert_eq!((stats.stall, stats.pass), (Some(Cause::Link), 1));
        let json: serde_json::Value = serde_json::from_str(&out.stats_json().unwrap()).unwrap();
        assert_eq!(json["stall"], 1);
        link.go_on();
        until(out, "the stall stays", |out| out.stats().stall.is_none());
        out.wait(Some(LONG)).unwrap();
    });
}

#[test]
fn a_deadline_over_a_dead_link_says_for_how_long_nothing_was_acknowledged() {
    over_a_dead_link(|pair, _, out| {
        let deadline = out.stats().elapsed + MS * 1800;
        out.set_policy(patient(Some(deadline))).unwrap();
        let error = out.wait(Some(LONG)).unwrap_err();
        let message = error.message();
        let told = message.contains("acknowledged nothing for ")
            || message.contains("nothing was acknowledged for ");
        assert!(told, "{message}");
        assert!(message.contains("the policy's deadline"), "{message}");
        pair.assert_runs_on("a dead link");
    });
}

#[test]
fn a_forecast_is_a_guess_until_a_sync_has_shown_what_the_guest_writes() {
    let pair = Pair::new(&[ram("ram", 4096)]);
    pair.source.fill(1);
    pair.source
        .writer_within("ram", 0..1024, Duration::from_micros(500));
    pair.source.track();
    let params = Params {
        downtime_limit: MS * 50,
        ..Params::default()
    };
    let link = Link::of(16 << 20, MS, 64 << 10);
    let (out, inc) = start_over(&pair, &link, &params);
    until(&out, "no forecast", |out| out.forecast().is_some());
    let (stats, first) = (out.stats(), out.forecast().unwrap());
    assert_eq!(stats.pass, 1, "{stats:?}");
    assert!(first.guessed && first.converges, "{first:?}");
    let json: serde_json::Value = serde_json::from_str(&out.stats_json().unwrap()).unwrap();
    assert!(json["forecast"]["guessed"].is_boolean(), "{json}");
    until(&out, "still a guess", |out| {
        out.forecast().is_some_and(|forecast| !forecast.guessed)
    });
    assert!(out.stats().syncs > 0);
    let _ = out.cancel();
    let _ = inc.wait(Some(LONG));
}

#[test]
fn the_progress_of_a_migration_that_converges_slowly_never_runs_back_and_ends_at_10000() {
    let pair = Pair::new(&[ram("ram", 6144)]);
    pair.source.fill(1);
    pair.source
        .writer_within("ram", 0..1024, Duration::from_micros(500));
    pair.source.track();
    let params = Params {
        downtime_limit: MS * 100,
        ..Params::default()
    };
    let link = Link::of(16 << 20, MS, 64 << 10);
    let (out, inc) = start_over(&pair, &link, &params);
    let (mut last, mut seen) = (0, Vec::new());
    until(&out, "no end", |out| {
        let stats = out.stats();
        assert!(stats.progress >= last, "{} after {last}", stats.progress);
        last = stats.progress;
        seen.push((stats.elapsed, stats.progress));
        out.wait(Some(Duration::ZERO)).is_ok()
    });
    inc.wait(Some(LONG)).unwrap();
    assert_eq!(out.stats().progress, 10_000);
    let end = out.stats().elapsed;
    println!("{} passes, {end:?}: {seen:?}", out.stats().pass);
    // It is neither at the end at once nor at the beginning until the end.
    let at = |time: Duration| seen.iter().rev().find(|(at, _)| *at <= time);
    let (_, quarter) = at(end / 4).expect("it was looked at early");
    let (_, late) = at(end - end / 8).expect("it was looked at late");
    assert!(*quarter < 7_500, "{quarter} after a quarter of the time");
    assert!(*late > 2_500, "{late} after seven parts of eight");
}
