//! Answers a source that recovers when its guest is whole here already: the last pages had come, and
//! their acknowledgements and the word that all is there were lost with the connections. The source
//! cannot know that, and keeps the memory.
//!
//! The answer is that of any recovery with nothing missing. It is given on a thread of its own, because
//! the migration is over here. No page is taken: the account has no block.

use super::no_connection;
use super::rejoin::Rejoining;
use crate::error::Result;
use crate::migrate::common::Migration;
use crate::migrate::incoming::accepting::Accepting;
use crate::migrate::incoming::account::Account;
use crate::migrate::incoming::arriving::Arriving;
use crate::migrate::incoming::late::Whole;
use crate::migrate::incoming::postcopy::urgent;
use crate::migrate::switchover::destination::State;
use crate::runtime::thread::{catch, Role};
use crate::runtime::Cancel;
use crate::units::Pages;
use crate::vmm::EventKind;
use crate::wire::{Complete, MissingEnd, Record, RecoverReply};
use std::sync::Arc;

/// The body of the thread. `stop` ends it.
pub(in crate::migrate::incoming) fn answer(
    shared: &Migration<Arriving, State>,
    accepting: Accepting,
    whole: &Whole,
    stop: &Cancel,
) {
    let vmm = shared.callbacks();
    let _inside = vmm.enter();
    let answered = catch(|| {
        vmm.thread_start(Role::Migration)?;
        tell_whole(shared, accepting, whole, stop)
    });
    let answered = answered.and_then(|answered| answered);
    match &answered {
        Ok(_) => vmm.event(
            EventKind::Recovered,
            "the source has recovered, and knows that all of the guest is here".to_owned(),
        ),
        Err(error) => vmm.event(
            EventKind::Warning,
            format!(
                "a source that was to recover was not told that all of the guest is here: {error}"
            ),
        ),
    }
    shared.guest.late.answered(answered.ok());
    shared.handle.notify.raise();
}

/// Returns the number of the recovery.
fn tell_whole(
    shared: &Migration<Arriving, State>,
    accepting: Accepting,
    whole: &Whole,
    stop: &Cancel,
) -> Result<u32> {
    let account = Account::new(Arc::clone(&shared.guest.memory));
    let rejoining = Rejoining {
        shared,
        cancel: stop,
        account: &account,
        agreed: whole.agreed,
        opening: &whole.opening,
        reply: &whole.reply,
        last: whole.epoch,
        limit: shared.params.connect().from_now(),
    };
    let (mut lanes, epoch) = rejoining.connections(accepting)?;
    lanes.sort_by_key(|lane| lane.channel);
    lanes.iter_mut().for_each(|lane| lane.is_switched());
    let waits = rejoining.waits();
    let pages = Pages(0);
    let first = lanes.first_mut().ok_or_else(no_connection)?;
    let reply = Record::RecoverReply(RecoverReply { epoch, pages });
    first.lane.send(&waits, &reply)?;
    let end = Record::MissingEnd(MissingEnd { pages, epoch });
    first.lane.send(&waits, &end)?;
    // Each has nothing but its final marker.
    for lane in &mut lanes {
        urgent::bulk(lane, &waits)?;
    }
    let complete = Record::Complete(Complete { pages, epoch });
    let first = lanes.first_mut().ok_or_else(no_connection)?;
    first.lane.send_last(&shared.params, &complete)?;
    Ok(epoch)
}
