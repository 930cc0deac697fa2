//! KVM's own dirty logging. The bitmap of each slot is in [`log`].

pub mod log;

pub use log::{KvmLog, KvmMode, LogSwitch};
