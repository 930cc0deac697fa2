//! brant: an embeddable live-migration engine.
#![warn(missing_docs)]

pub mod bits;
pub mod capi;
pub mod channel;
pub mod dirty;
pub mod error;
pub mod memory;
pub mod migrate;
pub mod page;
pub mod runtime;
pub mod sys;
pub mod units;
pub mod vmm;
pub mod wire;

pub use error::{Error, Kind, Result};
