//! A panic in any operation of the VMM fails the migration, and nothing is printed.

use crate::support::deciders::Scripted;
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::sides::{incoming, outgoing, quick, socketpair, start};
use crate::support::time::{LONG, MS};
use crate::support::vmm::blob;
use brant::error::Kind;
use brant::migrate::steering::{Facts, Moment, Next};
use brant::migrate::{AcceptFrom, ConnectTo};

#[test]
fn a_panic_in_any_operation_fails_the_migration_and_nothing_is_printed() {
    let test =
        "migration::panics::a_panic_in_any_operation_fails_the_migration_and_nothing_is_printed";
    if std::env::var_os("BRANT_TEST_CHILD").is_none() {
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env("BRANT_TEST_CHILD", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success() && text.contains("1 passed"),
            "{text}\n{out:?}"
        );
        assert_eq!(String::from_utf8_lossy(&out.stderr), "");
        return;
    }
    for op in ["thread_start", "early_save", "pause", "save", "release"] {
        let pair = Pair::new(&[ram("ram", 65)]);
        pair.source.writers(1, MS);
        pair.from.at(op, || panic!("planted"));
        let (out, inc) = start(&pair, &quick());
        let error = out.wait(Some(MS * 5000)).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{op}: {error}");
        assert!(
            error.message().contains(op) && error.message().contains("planted"),
            "{error}"
        );
        let _ = inc.wait(Some(LONG));
        pair.assert_runs_on(op);
        pair.source.wait_goes_on(pair.source.counter());
        assert!(!pair.source.tracker.is_started(), "{op}: logged for ever");
    }
    for op in ["thread_start", "early_load", "load", "loaded", "run"] {
        let pair = Pair::new(&[ram("ram", 65)]);
        *pair.from.early.lock().unwrap() = vec![blob("cfg", 0, b"x")];
        pair.to.at(op, || panic!("planted"));
        let (out, inc) = start(&pair, &quick());
        let error = inc.wait(Some(MS * 5000)).unwrap_err();
        assert_eq!(error.kind(), Kind::Vmm, "{op}: {error}");
        let error = out.wait(Some(LONG)).unwrap_err();
        assert_eq!(
            error.kind() == Kind::Unanswered,
            op == "run",
            "{op}: {error}"
        );
        assert_eq!(pair.world.who(), (op != "run", false), "{op}");
    }
    // A panic in an event's operation changes nothing for the migration.
    let pair = Pair::new(&[ram("ram", 65)]);
    pair.from.at("event", || panic!("planted"));
    pair.to.at("event", || panic!("planted"));
    let (out, inc) = start(&pair, &quick());
    out.wait(Some(LONG)).unwrap();
    inc.wait(Some(LONG)).unwrap();
    // A decider is code of the caller too.
    let pair = Pair::new(&[ram("ram", 65)]);
    let (a, b) = socketpair();
    let (out, inc) = (outgoing(&pair, &quick()), incoming(&pair, &quick()));
    inc.start(AcceptFrom::Connected(b)).unwrap();
    let decider = Scripted(|facts: &Facts| match facts.moment {
        Moment::Synced => panic!("planted"),
        _ => Next::GoOn,
    });
    out.start_with(ConnectTo::Connected(a), Box::new(decider))
        .unwrap();
    assert_eq!(out.wait(Some(LONG)).unwrap_err().kind(), Kind::Vmm);
    let _ = inc.wait(Some(LONG));
    pair.assert_runs_on("decider");
}
