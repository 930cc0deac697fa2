//! KVM's own dirty logging. The bitmap of each slot is in [`log`].

pub mod log;
#[cfg(test)]
pub(crate) mod model;

pub use log::{KvmLog, KvmMode, LogSwitch};
