//! What must be true after a link was cut: who has the guest, and that every unacknowledged page is
//! pending. The latter is checked by the records that the man in the middle has seen.

use super::cases::Case;
use super::middle::{Cut, Log};
use crate::support::guest::Guest;
use crate::support::pair::Pair;
use brant::error::{Kind, Result};
use brant::migrate::switchover::source::State;
use brant::migrate::{Outgoing, Resolution};

/// How many pages were proven to be pending, and how many to have arrived.
#[derive(Default, Clone, Copy)]
pub struct Proved {
    pub pending: usize,
    pub there: usize,
}

/// Checks each page, with the source's guest standing still. It is pending at the source. Or its
/// newest version was sent, a marker after that was acknowledged, the acknowledgement was passed on
/// to the source, and the destination (if there is one to look at) has this version in its memory.
pub fn covered(source: &Guest, destination: Option<&Guest>, log: &Log, what: &str) -> Proved {
    let pending = source.pending();
    let mut proved = Proved::default();
    let theirs = destination.map(Guest::rams);
    for (id, ram) in source.rams() {
        let name = ram.spec.name.to_owned();
        let other = theirs
            .as_ref()
            .map(|t| t.iter().find(|(_, r)| r.spec.name == name).map(|(_, r)| r));
        for page in 0..ram.spec.pages {
            if pending.contains(&(name.clone(), page)) {
                proved.pending += 1;
                continue;
            }
            let sent = log.pages.get(&(id.0, page));
            assert!(
                sent.is_some_and(|marker| *marker <= log.acked),
                "{what}: `{name}` page {page} is lost: not pending, and sent before marker \
                 {sent:?} while {} is acknowledged",
                log.acked
            );
            if let Some(other) = other {
                let same = other.is_some_and(|o| o.page(page) == ram.page(page));
                assert!(
                    same,
                    "{what}: `{name}` page {page} is lost: not pending, acknowledged, and not \
                     the same at the destination"
                );
            }
            proved.there += 1;
        }
    }
    proved
}

/// Checks the source after its end. `ran`: the destination has taken the guest.
pub fn settled(
    pair: &Pair,
    out: &Outgoing,
    result: &Result<()>,
    log: &Log,
    ran: bool,
    case: &Case,
) {
    let what = case.what.as_str();
    pair.assert_sound(what);
    let kind = result.as_ref().err().map(|e| e.kind());
    match out.state() {
        State::Completed => {
            assert!(log.handover && ran, "{what}");
            assert_eq!(pair.from.calls("resume"), 0, "{what}");
            assert!(!pair.source.is_running(), "{what}");
        }
        State::Failed => {
            assert!(
                !log.handover,
                "{what}: taken back after the hand-over: {result:?}"
            );
            let expected: &[Kind] = match case.cut {
                Cut::Silent(..) => &[Kind::Timeout],
                _ => &[Kind::PeerGone, Kind::Io],
            };
            assert!(
                expected.contains(&kind.unwrap()),
                "{what}: {kind:?} {result:?}"
            );
            pair.assert_runs_on(what);
            pair.source.wait_goes_on(pair.source.counter());
            assert!(out.resolve(Resolution::Resume).is_err(), "{what}");
        }
        State::Unanswered => {
            assert_eq!(kind, Some(Kind::Unanswered), "{what}");
            assert_eq!(pair.from.calls("resume"), 0, "{what}: never by itself");
            assert!(!pair.source.is_running(), "{what}");
            assert!(out.cancel().is_err(), "{what}: too late to cancel");
        }
        other => panic!("{what}: ended in {other:?}: {result:?}"),
    }
}

pub fn resolve(pair: &Pair, out: &Outgoing, ran: bool, case: &Case) {
    let what = case.what.as_str();
    let resume = !ran && case.number.is_multiple_of(2);
    let (first, then) = match resume {
        true => (Resolution::Resume, State::TakenBack),
        false => (Resolution::Destroy, State::GivenUp),
    };
    out.resolve(first).unwrap();
    assert_eq!(out.state(), then, "{what}");
    assert_eq!(out.resolve(first).unwrap_err().kind(), Kind::State);
    assert_eq!(pair.source.is_running(), resume, "{what}");
    if resume {
        pair.source.wait_goes_on(pair.source.counter());
    }
    pair.assert_sound(what);
}
