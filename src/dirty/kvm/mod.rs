//! KVM's own dirty logging. The bitmap of each slot is in [`log`], the ring of each vCPU in
//! [`ring`]. [`mod@choose`] decides which of them is used. `open` asks the VM what it offers, and
//! makes the log. [`mod@measure`] finds what each log costs, before a VMM enables rings.

#[doc(hidden)]
pub mod choose;
pub mod log;
#[doc(hidden)]
pub mod measure;
mod mode;
mod open;
pub mod ring;
mod switch;
#[cfg(test)]
pub(crate) mod testing;

#[doc(hidden)]
pub use choose::{choose, Offer};
pub use log::KvmLog;
#[doc(inline)]
pub use measure::{measure, Cost, Costs, Measured, Workload};
pub use mode::{Choice, KvmMode};
pub use open::{Opened, Request, Used};
pub use ring::{KvmRing, Rings};
pub use switch::LogSwitch;

use super::Extent;
use crate::error::Result;
use crate::fallible;
use crate::memory::{Map, Slot};
use std::sync::Arc;

/// What an error about memory calls a list of slots.
const SLOTS: &str = "memory slots";

/// The slots of a map whose writes KVM can log.
fn slots(map: &Map) -> Result<Vec<&Slot>> {
    let logged = map.slots().iter().filter(|s| s.is_logged());
    fallible::collect(logged, SLOTS)
}

/// Those of the given slots whose writes KVM can log.
fn of_kvm(slots: &[Arc<Slot>]) -> Result<Vec<&Slot>> {
    let slots = slots.iter().map(|slot| &**slot);
    fallible::collect(slots.filter(|s| s.is_logged()), SLOTS)
}

/// Passes on the extents whose writes KVM logs: the map's writable slots that are KVM's.
fn logged(map: &Map, each: &mut dyn FnMut(Extent)) {
    for slot in map.slots().iter().filter(|s| s.is_logged()) {
        each(Extent::of(slot));
    }
}
