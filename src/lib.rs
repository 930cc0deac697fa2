//! brant: an embeddable live-migration engine for virtual machine monitors.
//!
//! Three levels, each usable alone:
//! - [`bits`]: bitmaps that are walked and merged at the cost of what is set;
//! - [`dirty::tracker`]: which pages of a guest were written, merged from every
//!   [`dirty::DirtyLog`], and handed out only after their protection is restored;
//! - [`migrate`]: a running guest moves, over the operations of [`vmm::Vmm`].
//!
//! [`rate`] says how fast a guest writes, without a migration. What all of it stands on: the guest's
//! [`memory`] and the [`dirty`] logs, [`units`] and [`error`]s.
//!
//! C programs use the same through `include/brant.h`. The feature `capi`, which is on by default,
//! exports it; a Rust program needs none of it: `default-features = false`.
//!
//! [`kvm_ioctls`], with its [`kvm_bindings`], and [`vm_memory`] are re-exported: brant's functions take their types.
//!
//! # A guest moves
//!
//! ```
//! use brant::dirty::tracker::{Clearing, Tracker};
//! use brant::dirty::WriteMarks;
//! use brant::memory::{Memory, NO_SLOT};
//! use brant::migrate::{Blockers, Incoming, Outgoing, Params, AcceptFrom, ConnectTo};
//! use brant::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//! use brant::vmm::Vmm;
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//!
//! /// Stops and starts vCPUs, saves and loads their state. This one has none.
//! struct Nothing;
//! impl Vmm for Nothing {
//!     fn pause(&self) -> brant::Result<()> { Ok(()) }
//!     fn resume(&self) -> brant::Result<()> { Ok(()) }
//!     fn run(&self) -> brant::Result<()> { Ok(()) }
//! }
//!
//! # fn main() -> brant::Result<()> {
//! // On each side: the guest's memory. Its bitmap tells brant what the VMM itself writes to it.
//! let ram = || GuestMemoryMmap::<WriteMarks>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
//! let (here, there) = (ram()?, ram()?);
//! let guest = |ram: &GuestMemoryMmap<WriteMarks>| -> brant::Result<Arc<Memory>> {
//!     let memory = Memory::new()?;
//!     // A VMM with KVM gives the number of its first slot.
//!     memory.add_guest_memory(ram, NO_SLOT)?;
//!     Ok(Arc::new(memory))
//! };
//! here.write_obj(42u8, GuestAddress(4096))?;
//!
//! let tracker = Tracker::new(guest(&here)?, Clearing::default())?;
//! WriteMarks::connect(&here, &tracker);
//! // And it adds KVM's log of what the guest writes: dirty::kvm::Request.
//! let outgoing = Outgoing::new(tracker, Blockers::new(), Arc::new(Nothing), Params::default())?;
//! let incoming = Incoming::new(guest(&there)?, Arc::new(Nothing), Params::default())?;
//!
//! let (a, b) = UnixStream::pair()?;
//! incoming.start(AcceptFrom::Connected(b.into()))?;
//! outgoing.start(ConnectTo::Connected(a.into()))?;
//! outgoing.wait(None)?;
//! assert_eq!(there.read_obj::<u8>(GuestAddress(4096))?, 42);
//! # Ok(())
//! # }
//! ```
#![deny(rustdoc::broken_intra_doc_links)]
// What went wrong is an error; output is the program's. Tests say why they skip.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod bits;
pub mod dirty;
pub mod error;
pub mod memory;
pub mod migrate;
pub mod rate;
pub mod snapshot;
pub mod units;
pub mod vmm;

mod fallible;
// No promises are made of these. They can be reached because the tests, the benchmarks and the fuzz
// targets, which are crates of their own, need some of them.
#[cfg(feature = "capi")]
#[doc(hidden)]
pub mod capi;
#[doc(hidden)]
pub mod channel;
#[doc(hidden)]
pub mod image;
#[doc(hidden)]
pub mod page;
#[doc(hidden)]
pub mod runtime;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod walk;
#[doc(hidden)]
pub mod wire;

pub use error::{Error, Kind, Result};
pub use {kvm_bindings, kvm_ioctls, vm_memory};
