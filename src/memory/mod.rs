//! The guest's memory: its blocks, their map to guest addresses and KVM slots, what the host knows
//! about their pages, and who has the guest.
//!
//! Writes to guest memory are found in `dirty`; `migrate` decides which pages are sent.

#[doc(hidden)]
pub mod access;
mod address;
mod backing;
mod balloon;
pub mod ballooned;
pub mod block;
#[doc(hidden)]
pub mod blockers;
#[doc(hidden)]
pub mod contents;
mod declared;
#[doc(hidden)]
pub mod digest;
mod discard;
mod ground;
pub(crate) mod handed;
mod hidden_holes;
mod holds;
pub mod host;
pub mod index;
mod leaving;
pub mod map;
mod needed;
mod overview;
pub mod ownership;
mod page_run;
pub mod poisoned;
mod present;
mod recall;
mod regions;
#[doc(hidden)]
pub mod served;
mod slot;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tree;
mod written;

pub use address::HostMemory;
pub use block::{BackingFile, Block, BlockDescription, BlockFlags, BlockId, BlockPin};
pub(crate) use hidden_holes::HiddenHoles;
pub(crate) use holds::Holder;
pub use map::{BlockPart, Map, MapObserver, Memory};
pub(crate) use needed::NeedsContents;
pub(crate) use ownership::KeepsWaiting;
pub use ownership::{Ownership, Whose};
pub use page_run::PageRun;
pub use recall::PinRecall;
pub use slot::{Slot, SlotDescription, NO_SLOT};
pub use written::WrittenObserver;
