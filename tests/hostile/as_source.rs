//! A source played to a destination: it speaks correctly up to a step, and then says what the test
//! wants.

use super::records::{block, end, hello, marker, state_end, PAGES};
use crate::support::memory::ram;
use crate::support::pair::Pair;
use crate::support::peer::Raw;
use crate::support::sides::incoming;
use crate::support::time::LONG;
use brant::error::{Error, Kind};
use brant::migrate::{AcceptFrom, Params};
use brant::units::{Pages, PAGE_SIZE};
use brant::wire;
use brant::wire::{Header, Record};
use std::net::Shutdown;

/// The step at which the destination waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Hello,
    Early,
    Layout,
    Passes,
    State,
    Handover,
}

pub const STEPS: [Step; 6] = [
    Step::Hello,
    Step::Early,
    Step::Layout,
    Step::Passes,
    Step::State,
    Step::Handover,
];

/// Speaks as a correct source up to a step.
pub fn reach(raw: &mut Raw, step: Step) {
    if step > Step::Hello {
        raw.say(&Record::Hello(hello()));
        assert!(matches!(raw.hear_record(), Some(Record::HelloReply(_))));
    }
    if step > Step::Early {
        raw.say(&Record::EarlyEnd(end(0, 0)));
        assert_eq!(raw.hear_record(), Some(Record::EarlyOk));
    }
    if step > Step::Layout {
        raw.say(&Record::Block(block(4, "ram", PAGES)));
        raw.say(&Record::LayoutEnd(wire::LayoutEnd {
            blocks: 1,
            bytes: PAGES * PAGE_SIZE,
        }));
        assert_eq!(raw.hear_record(), Some(Record::LayoutOk));
    }
    if step > Step::Passes {
        raw.say_bytes(&Header::zeros(4, Pages(0), 512).encode());
        raw.say(&Record::Marker(marker(1, 1, 1, 0, 512)));
        assert!(matches!(raw.hear_record(), Some(Record::Ack(_))));
    }
    if step > Step::State {
        raw.say(&Record::StateEnd(state_end(0, 0)));
        assert!(matches!(raw.hear_record(), Some(Record::Ready(_))));
    }
}

/// Sends `what` to a destination that waits at `step` and must refuse it. Returns how it refused.
pub fn sent_to_destination(step: Step, what: &[u8], params: Params) -> (Error, Option<String>) {
    let pair = Pair::new(&[ram("ram", PAGES as usize)]);
    let (mut raw, fd) = Raw::pair();
    let inc = incoming(&pair, &params);
    inc.start(AcceptFrom::Connected(fd)).unwrap();
    reach(&mut raw, step);
    raw.say_bytes(what);
    let _ = raw.0.shutdown(Shutdown::Write);
    let told = raw.hear_abort();
    drop(raw);
    let error = inc.wait(Some(LONG)).unwrap_err();
    assert_eq!(pair.to.calls("run"), 0, "{step:?}: {error}");
    assert!(!error.message().contains(char::is_control), "{error:?}");
    assert_ne!(error.kind(), Kind::Internal, "{error}");
    (error, told)
}

/// Speaks as a correct source up to the first page.
pub fn accepted(raw: &mut Raw) {
    reach(raw, Step::Passes);
}

/// Speaks as a correct source up to the hand-over.
pub fn ready(raw: &mut Raw) {
    reach(raw, Step::Handover);
}
