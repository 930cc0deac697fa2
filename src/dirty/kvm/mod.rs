//! KVM's own dirty logging. The bitmap of each slot is in [`log`], the ring of each vCPU in
//! [`ring`], which of them is used in [`mod@choose`].

pub mod choose;
pub mod log;
#[cfg(test)]
pub(crate) mod model;
pub mod ring;
mod switch;

pub use choose::{choose, Choice, Offer};
pub use log::{KvmLog, KvmMode};
pub use ring::{KvmRing, Rings};
pub use switch::LogSwitch;

use super::Extent;
use crate::memory::Map;

/// What KVM logs writes to: the slots of a map that are KVM's and writable.
fn logged(map: &Map) -> Vec<Extent> {
    let logged = map.slots().iter().filter(|s| s.is_logged());
    logged
        .map(|s| Extent {
            block: s.block,
            pages: s.first.0..s.first.0 + s.pages.0,
        })
        .collect()
}
