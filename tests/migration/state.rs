//! Device state, early and late: it arrives once, in order, and within its limit.

use super::whole::migrates;
use crate::support::guest::Guest;
use crate::support::memory::{ram, shared};
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::LONG;
use crate::support::vmm::blob;
use brant::error::Kind;
use brant::migrate::{AcceptFrom, ConnectTo, Params};

#[test]
fn state_blobs_of_nothing_and_of_megabytes_arrive_once_each_and_in_order() {
    let big: Vec<u8> = (0..5 << 20).map(|i: u32| (i >> 3) as u8).collect();
    for blobs in [
        vec![],
        vec![blob("empty", 0, &[])],
        vec![
            blob("vcpu", 0, &[1]),
            blob("vcpu", 1, &[]),
            blob("gpu", 9, &big),
            blob("net", 0, &[0; 4096]),
        ],
    ] {
        let pair = Pair::new(&[ram("ram", 600)]);
        pair.source.fill(1);
        *pair.from.state.lock().unwrap() = blobs.clone();
        let (out, inc) = start(&pair, &quick());
        out.wait(Some(LONG)).unwrap();
        inc.wait(Some(LONG)).unwrap();
        pair.assert_sound("state");
        assert_eq!(pair.to.loaded_blobs(), blobs);
        assert_eq!(pair.to.calls("loaded"), 1);
        let bytes: usize = blobs.iter().map(|b| b.data.len()).sum();
        assert_eq!(out.stats().state_bytes, bytes as u64);
    }
}

#[test]
fn state_past_the_destinations_limit_is_refused_and_the_guest_runs_on() {
    let pair = Pair::new(&[ram("ram", 600)]);
    *pair.from.state.lock().unwrap() = vec![blob("a", 0, &[7; 5000])];
    let small = Params {
        max_state_bytes: 4096,
        ..quick()
    };
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &small));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    out.start(ConnectTo::Connected(a)).unwrap();
    let error = out.wait(Some(LONG)).unwrap_err();
    assert!(error.message().contains("4096 bytes allowed"), "{error}");
    assert_eq!(inc.wait(Some(LONG)).unwrap_err().kind(), Kind::Protocol);
    assert_eq!(pair.to.calls("load"), 0);
    pair.assert_runs_on("too much state");
}

#[test]
fn early_blobs_come_before_the_layout_so_that_the_destination_builds_itself() {
    let specs = [ram("ram", 600), shared("late", 513)];
    let pair = Pair::of(Guest::new(&specs), Guest::new(&[]));
    pair.source.fill(6);
    *pair.from.early.lock().unwrap() = specs.iter().map(|s| blob(s.name, 1, b"x")).collect();
    for spec in &specs {
        pair.to
            .builds
            .lock()
            .unwrap()
            .insert(spec.name.to_owned(), spec.clone());
    }
    let (a, b) = socketpair();
    migrates(&pair, |out, inc| {
        inc.start(AcceptFrom::Connected(b)).unwrap();
        out.start(ConnectTo::Connected(a)).unwrap();
    });
    assert_eq!(pair.to.early_loaded(), *pair.from.early.lock().unwrap());
}
