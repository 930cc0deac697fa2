//! Each type of record at a wrong place is refused by its name, on both sides.

use super::as_destination::{sound, source_against, ANSWERS};
use super::as_source::{sent_to_destination, Step, STEPS};
use super::bounds::bounded;
use super::params::{each, quick};
use super::records::sample;
use crate::support::time::LONG;
use brant::error::Kind;
use brant::wire::RecordType;

#[test]
fn a_record_in_a_place_that_is_not_its_own_is_refused_by_name_at_the_destination() {
    use RecordType as R;
    bounded();
    let mut refused = 0;
    for step in STEPS {
        let allowed: &[R] = match step {
            Step::Hello => &[R::Hello],
            Step::Early => &[R::Early, R::EarlyEnd],
            Step::Layout => &[R::Block, R::LayoutEnd],
            Step::Passes => &[
                R::Pages,
                R::Zeros,
                R::Ballooned,
                R::PagesList,
                R::ZerosList,
                R::Marker,
                R::BlockAdded,
                R::BlockRemoved,
            ],
            Step::State => &[R::State, R::StateEnd],
            // The removal was on its way when this side became ready.
            Step::Handover => &[R::Handover, R::BlockRemoved],
        };
        for kind in RecordType::ALL {
            if allowed.contains(kind) || *kind == R::Keepalive {
                continue;
            }
            let (error, told) = sent_to_destination(step, &sample(*kind), quick());
            let what = format!("{} at {step:?}: {error}", kind.name());
            if *kind == R::Abort {
                assert_eq!(error.kind(), Kind::Refused, "{what}");
                assert!(error.message().contains("no [2J more"), "{what}");
            } else {
                assert_eq!(error.kind(), Kind::Protocol, "{what}");
                assert!(error.message().contains(kind.name()), "{what}");
                assert_eq!(told.as_deref(), Some(error.message()), "{what}");
            }
            refused += 1;
        }
    }
    println!("{refused} records refused");
    assert!(refused > 100);
    bounded();
}

#[test]
fn a_record_in_a_place_that_is_not_its_own_is_refused_by_name_at_the_source() {
    use RecordType as R;
    bounded();
    let mut cases = Vec::new();
    for (question, right) in ANSWERS {
        cases.extend(RecordType::ALL.iter().map(|kind| (question, right, kind)));
    }
    each(&cases, |&(question, right, kind)| {
        let allowed = *kind == right || *kind == R::Keepalive;
        // An acknowledgement may come before READY, but not for a marker that was not sent.
        if allowed || (right, *kind) == (R::Ready, R::Ack) {
            return;
        }
        let what = format!("{} for {}", kind.name(), right.name());
        let wrong = sample(*kind);
        let (pair, out, result) =
            source_against(quick(), right == R::Ack, LONG, |raw, asked, right| {
                let here = asked == question;
                raw.say_bytes(if here { &wrong } else { &right });
                (!here).then_some(())
            });
        let error = result.clone().unwrap_err();
        let after = right == R::Running;
        let expected = match (after, kind) {
            (true, _) => Kind::Unanswered,
            (_, R::Abort) => Kind::Refused,
            _ => Kind::Protocol,
        };
        assert_eq!(error.kind(), expected, "{what}: {error}");
        let word = match kind {
            R::Abort => "no [2J more",
            // Too long for every record of a destination, or refused by name.
            _ => kind.name(),
        };
        assert!(error.message().contains(word), "{what}: {error}");
        sound(&pair, &out, &result, &what);
    });
    bounded();
}
