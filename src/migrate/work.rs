//! The loop of both drivers: the machine gives an action, the driver carries it out, and the
//! outcome is the machine's next event.

use super::callbacks::Callbacks;
use super::common::Common;
use super::handle::Ending;
use super::state::Side;
use super::switchover::{Failure, Machine};
use crate::error::{Error, Kind, Result};
use crate::runtime::probes;
use crate::runtime::thread::{catch, Role};
use crate::vmm::EventKind;
use std::sync::Arc;

/// What a driver can do.
pub(super) trait Work {
    /// The side's machine.
    type Machine: Side;
    /// The guest, in the type of this side.
    type Guest;

    /// The data that drivers of both sides have.
    fn common(&mut self) -> &mut Common<Self::Guest, Self::Machine>;
    /// Enters a state: brings the figures up to date.
    fn enter(&mut self, state: Self::Machine);
    /// Carries out an action. `None`: the outcome is no event for the machine.
    fn perform(
        &mut self,
        action: <Self::Machine as Machine>::Action,
    ) -> Result<Option<<Self::Machine as Machine>::Event>>;
    /// A sentence about a successful migration.
    fn success(&self) -> String;
}

/// Runs the whole migration, on the migration's thread.
pub(super) fn run<W: Work>(mut driver: W) {
    let shared = Arc::clone(&driver.common().shared);
    // Threads that wait for the end are woken last, when consumer, connection and pins are gone.
    // That holds whatever happens before.
    let _end = Ending(&shared.handle);
    work(driver);
}

fn work<W: Work>(mut driver: W) {
    let vmm = driver.common().vmm.clone();
    let shared = Arc::clone(&driver.common().shared);
    let _inside = vmm.enter();
    let mut state = W::Machine::IDLE;
    let mut event = match vmm.thread_start(Role::Migration) {
        Ok(()) => W::Machine::START,
        Err(error) => failed(&mut driver, None, error),
    };
    loop {
        let next = state.step(event);
        state = next.state;
        let error = driver.common().error.clone();
        shared.handle.enter(state, error);
        probes::state(state.into().number(), state.name());
        let entered = catch(|| {
            #[cfg(test)]
            let _planted = super::planted::point(&format!("entering {state:?}"));
            driver.enter(state);
        });
        vmm.event(EventKind::State, state.name().to_owned());
        if let Err(error) = entered {
            warn(&vmm, state, &error);
        }
        let mut outcome = None;
        for action in next.actions {
            // A defect of brant's in an action is a failure like any other: the machine makes sure
            // that the guest runs on.
            let result = catch(|| {
                #[cfg(test)]
                let _planted = super::planted::point(&format!("{action:?}"));
                driver.perform(*action)
            });
            let done = driver.common().done.take();
            match (result.and_then(|result| result), done) {
                (Ok(event), _) => outcome = event.or(outcome),
                (Err(error), Some(event)) => {
                    warn(&vmm, state, &error);
                    outcome = Some(event);
                }
                // The migration is over, and a later error does not change its outcome.
                (Err(error), None) if state.is_over() => warn(&vmm, state, &error),
                (Err(error), None) => outcome = Some(failed(&mut driver, Some(*action), error)),
            }
        }
        match outcome {
            Some(next) if !state.is_over() => event = next,
            _ if state.is_over() => break,
            _ => event = W::Machine::failed(Failure::Other, None),
        }
    }
    let message = match shared.handle.error() {
        Some(error) => error.message().to_owned(),
        None => driver.success(),
    };
    vmm.event(state.ending(), message);
}

/// Tells the VMM of an error that changes nothing.
fn warn(vmm: &Callbacks, state: impl Machine, error: &Error) {
    let message = format!("the migration is `{}` all the same: {error}", state.name());
    vmm.event(EventKind::Warning, message);
}

fn failed<W: Work>(
    driver: &mut W,
    action: Option<<W::Machine as Machine>::Action>,
    error: Error,
) -> <W::Machine as Machine>::Event {
    let failure = match error.kind() {
        Kind::Cancelled => Failure::Cancelled,
        Kind::Timeout | Kind::NotConverged => Failure::Timeout,
        Kind::PeerGone | Kind::Io => Failure::PeerGone,
        Kind::Refused | Kind::Layout | Kind::Version => Failure::Refused,
        _ => Failure::Other,
    };
    // When this side was cancelled, the place of the interruption is of no interest. When the peer
    // cancelled, it is.
    let ours = driver.common().shared.handle.cancel.is_cancelled();
    let error = match error.kind() {
        Kind::Cancelled if ours => Error::new(Kind::Cancelled, "the migration was cancelled"),
        _ => error,
    };
    driver.common().error.get_or_insert(error);
    W::Machine::failed(failure, action)
}
