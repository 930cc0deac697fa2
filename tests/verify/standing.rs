//! How long the guest stands still for the destination's checksums: a part of the downtime of its own.

use super::{assert_equal, pair, verifying};
use crate::support::sides::{incoming, outgoing, socketpair};
use crate::support::time::{LONG, MS};
use brant::migrate::{AcceptFrom, ConnectTo, Params};
use brant::vmm::EventKind;

#[test]
fn checksums_are_a_part_of_the_downtime_of_their_own_and_an_overrun_names_them() {
    let pair = pair();
    let takes = MS * 300;
    // The destination's second thread for checksums begins late. The other threads are started
    // before the guest is paused.
    pair.to.at("thread_start", move || {
        std::thread::sleep(takes);
        Ok(())
    });
    let params = Params {
        channels: 2,
        downtime_limit: MS * 100,
        ..verifying()
    };
    let (out, inc) = (outgoing(&pair, &params), incoming(&pair, &params));
    let ((a, b), (c, d)) = (socketpair(), socketpair());
    inc.start(AcceptFrom::ConnectedAll(vec![b, d])).unwrap();
    out.start(ConnectTo::ConnectedAll(vec![a, c])).unwrap();
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    let stats = assert_equal(&pair, &out, 0, "slow checksums");

    let digest = stats.digest.unwrap();
    assert!(digest >= takes, "{stats:?}");
    let there = inc.stats().digest.unwrap();
    assert_eq!(digest.as_micros(), there.as_micros());
    assert_eq!(inc.stats().verify, None, "the source compares");
    // What the link took is without them.
    let [pages, state, load, sent, ready] = [
        stats.memory,
        stats.state_sent,
        stats.load,
        stats.last_send,
        stats.ready,
    ]
    .map(Option::unwrap);
    assert!(pages + state + load + digest <= sent + ready, "{stats:?}");
    assert!(stats.overrun >= takes - params.downtime_limit, "{stats:?}");
    let told = pair.from.events(EventKind::Downtime);
    let [told] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(told.contains("verifying took "), "{told}");
    let json: serde_json::Value = serde_json::from_str(&out.stats_json().unwrap()).unwrap();
    assert_eq!(json["digest_ns"], digest.as_nanos() as u64);
}
