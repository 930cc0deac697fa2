//! Progress and figures as the VMM sees them, up to the end or a failure.

use super::whole::busy_pair;
use crate::support::guest::lost;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, socketpair, start};
use crate::support::time::{LONG, MS};
use crate::support::vmm::blob;
use brant::error::{Error, Kind};
use brant::migrate::{AcceptFrom, ConnectTo, Outgoing, Params, SourceState, State};
use brant::units::{Bytes, PAGE_SIZE};
use std::os::fd::AsRawFd;
use std::sync::{mpsc, Mutex};
use std::time::{Duration, Instant};

#[test]
fn a_guest_faster_than_its_link_is_given_up_with_both_rates_and_runs_on() {
    let pair = Pair::new(&[ram("ram", 1500)]);
    pair.source.fill(1);
    pair.source.writers(1, Duration::ZERO);
    pair.source.track();
    // Faster than the link whatever processor the writer gets: at each event, so before each pass
    // and after it, a thousand pages count as written.
    let tracker = std::sync::Arc::clone(&pair.source.tracker);
    let block = pair.source.memory.find_block("ram").unwrap();
    pair.from.at("event", move || {
        tracker.mark_block(block, Bytes(0), 1000 * PAGE_SIZE);
        Ok(())
    });
    let params = Params {
        max_bandwidth: Some(8 << 20),
        // The bandwidth is that of the cap; the estimate from a socketpair would be higher.
        switchover_bandwidth: Some(8 << 20),
        downtime_limit: MS * 10,
        total_timeout: Some(MS * 2000),
        ..Params::default()
    };
    let begun = Instant::now();
    let (out, inc) = start(&pair, &params);
    let error = out.wait(Some(LONG)).unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind(), Kind::NotConverged, "{error}");
    assert!(took >= MS * 2000 && took < LONG, "{took:?}");
    let rates = error.message().matches("MB/s").count();
    assert!(rates >= 2 && error.message().contains("pages/s"), "{error}");
    assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Refused);
    // The cap was kept, with a socket's worth of slack.
    let sent = out.stats().wire_bytes as f64 / took.as_secs_f64();
    println!("{error}; {sent:.0} bytes/s");
    assert!(sent < 1.25 * (8 << 20) as f64, "{sent}");
    assert_eq!(pair.from.calls("pause"), 0);
    pair.assert_runs_on("not converged");
    pair.source.wait_goes_on(pair.source.counter());
    pair.source.pause();
    assert_eq!(lost(&pair.source, &pair.destination), Vec::<String>::new());
}

/// Waits until the figures are renewed.
fn look(fd: std::os::fd::BorrowedFd<'_>) {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, with a count of one.
    unsafe { libc::poll(&mut poll, 1, 100) };
    let mut value = [0u8; 8];
    if poll.revents & libc::POLLIN != 0 {
        // SAFETY: reads 8 bytes into 8.
        unsafe { libc::read(fd.as_raw_fd(), value.as_mut_ptr().cast(), 8) };
    }
}

#[test]
fn progress_never_goes_back_and_what_was_promised_stays_as_it_was() {
    let pair = busy_pair();
    let capped = Params {
        max_bandwidth: Some(64 << 20),
        ..Params::default()
    };
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &capped), incoming(&pair, &capped));
    let before = out.stats();
    assert_eq!(
        (before.state, before.progress, before.promised_downtime),
        (State::Source(SourceState::Idle), 0, None)
    );
    assert_eq!(before.bandwidth, None);
    assert_eq!((before.time_left, before.expected_downtime), (None, None));
    assert!(json(&out)["bandwidth"].is_null());
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    let (mut last, mut there) = (out.stats(), inc.stats());
    let done = State::Source(SourceState::Completed);
    let mut samples = 0;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LONG, "never at 100 %: {last:?}");
        look(out.notify_fd());
        let (now, other) = (out.stats(), inc.stats());
        samples += 1;
        assert!(
            now.progress >= last.progress,
            "{} after {}",
            now.progress,
            last.progress
        );
        assert!(other.progress >= there.progress);
        assert!(now.state.number() >= last.state.number());
        assert!(other.state.number() >= there.state.number());
        assert!(now.pass >= last.pass && now.elapsed >= last.elapsed);
        assert!(now.wire_bytes >= last.wire_bytes && now.data_pages >= last.data_pages);
        assert!(now.progress < 10_000 || now.state == done);
        if last.promised_downtime.is_some() {
            assert_eq!(now.promised_downtime, last.promised_downtime);
        }
        (last, there) = (now, other);
        if now.state == done && now.progress == 10_000 {
            break;
        }
        assert!(now.error.is_none(), "{:?}", out.wait(None));
    }
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    println!("{samples} samples, {:?}", out.stats());
    assert!(samples >= 5);
    let stats = out.stats();
    assert_eq!(stats.progress, 10_000);
    assert_eq!(
        (stats.remaining_bytes, stats.time_left),
        (0, Some(Duration::ZERO))
    );
    assert_eq!(stats.total_bytes, 4500 * PAGE_SIZE);
    let downtime = stats.downtime.expect("it stood");
    assert!(stats.promised_downtime.is_some());
    let parts = [
        stats.pause,
        stats.save,
        stats.last_sync,
        stats.last_send,
        stats.ready,
        stats.release,
        stats.handover,
    ]
    .map(|part| part.expect("all that comes before the end has been"));
    assert!(parts.iter().sum::<Duration>() <= downtime, "{parts:?}");
    assert_eq!(inc.stats().data_pages, stats.data_pages);
    assert_eq!(inc.stats().zero_pages, stats.zero_pages);
    let wanted = [
        "connecting",
        "negotiating",
        "copying",
        "pausing",
        "saving",
        "last sync",
        "sending the last pages",
        "awaiting ready",
        "releasing",
        "committing",
        "handing over",
        "awaiting running",
        "completed",
    ];
    assert_eq!(pair.from.states(), wanted);
    let object = json(&out);
    assert_eq!(object["state"], "completed");
    let nanos = |time: Option<Duration>| time.unwrap().as_nanos() as u64;
    for (name, value) in [
        ("progress", u64::from(stats.progress)),
        ("data_pages", stats.data_pages),
        ("downtime_ns", nanos(stats.downtime)),
        ("promised_downtime_ns", nanos(stats.promised_downtime)),
        ("wire_bytes", stats.wire_bytes),
        ("elapsed_ns", nanos(Some(stats.elapsed))),
        ("bandwidth", stats.bandwidth.expect("it was measured")),
        ("load_ns", nanos(stats.load)),
    ] {
        assert_eq!(object[name], value, "{name}");
    }
}

#[test]
fn the_bandwidth_is_a_measurement_and_before_the_first_pass_all_memory_remains() {
    // What is stated about the switchover is no measurement.
    const STATED: u64 = 1 << 40;
    let stated = [(Some(STATED), None), (None, Some(STATED)), (None, None)];
    for ((switchover_bandwidth, switchover_max_bandwidth), refused) in
        stated.into_iter().zip([false, false, true])
    {
        let pair = Pair::new(&[ram("ram", 300)]);
        pair.source.fill(1);
        let params = Params {
            switchover_bandwidth,
            switchover_max_bandwidth,
            ..Params::default()
        };
        // Without one `early_load` is not called.
        *pair.from.early.lock().unwrap() = vec![blob("cfg", 0, b"x")];
        let (at, reached) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let may_go = Mutex::new(may_go);
        pair.to.at("early_load", move || {
            at.send(()).unwrap();
            may_go.lock().unwrap().recv_timeout(LONG).unwrap();
            match refused {
                true => Err(Error::new(Kind::Invalid, "no such machine")),
                false => Ok(()),
            }
        });
        let (out, inc) = start(&pair, &params);
        reached.recv_timeout(LONG).unwrap();
        let early = out.stats();
        go.send(()).unwrap();
        assert_eq!(early.state, State::Source(SourceState::Negotiating));
        assert_eq!((early.bandwidth, early.expected_downtime), (None, None));
        assert_eq!(early.total_bytes, 300 * PAGE_SIZE);
        assert_eq!(early.remaining_bytes, early.total_bytes);
        assert_eq!(out.wait(Some(LONG)).is_err(), refused);
        let _ = inc.wait(Some(LONG));
        let stats = out.stats();
        if refused {
            assert_eq!(stats.remaining_bytes, stats.total_bytes);
            assert_eq!((stats.progress, stats.expected_downtime), (0, None));
        } else {
            assert!(
                stats.bandwidth.is_none_or(|rate| rate < STATED),
                "{stats:?}"
            );
            assert!(stats.expected_downtime.is_some(), "{stats:?}");
            assert_eq!(stats.remaining_bytes, 0);
        }
    }
}

fn json(out: &Outgoing) -> serde_json::Value {
    serde_json::from_str(&out.stats_json().unwrap()).unwrap()
}
