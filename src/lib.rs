//! brant: an embeddable live-migration engine for virtual machine monitors.
//!
//! Three levels, each usable alone:
//! - [`bits`]: bitmaps; a walk or a merge costs as much as there are set bits;
//! - [`dirty::tracker`]: which pages of a guest were written, by the word of every
//!   [`dirty::DirtyLog`]. A page is handed out only after its protection is restored;
//! - [`migrate`]: a running guest moves to another host. The VMM takes part through the operations
//!   of [`vmm::Vmm`].
//!
//! [`snapshot`] saves a running guest to a file and restores it from there.
//!
//! `kvmstate` saves and loads the state of KVM's vCPUs and VMs.
//!
//! [`gate`] pauses vCPU and device threads, for a VMM that has nothing of its own for it.
//!
//! [`rate`] measures how fast a guest writes, without a migration. All levels rest on the guest's
//! [`memory`], the [`dirty`] logs, [`units`] and [`error`]s.
//!
//! C programs use the same levels through `include/brant.h`. The feature `capi`, on by default,
//! exports the C functions. A Rust program needs none of them and can set `default-features =
//! false`.
//!
//! brant re-exports [`kvm_ioctls`], its [`kvm_bindings`], and [`vm_memory`], because its functions
//! take their types.
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
// A library reports failures as errors; only the program prints. Tests may print why they skip.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod bits;
pub mod device;
pub mod dirty;
pub mod error;
pub mod gate;
#[cfg(target_arch = "x86_64")]
pub mod kvmstate;
pub mod memory;
pub mod migrate;
pub mod rate;
pub mod snapshot;
pub mod units;
pub mod vmm;

/// Every level of brant in programs that run.
#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/rust.md")]
pub mod guide {}

mod fallible;
// These modules are public only for the tests, the benchmarks and the fuzz targets, which are
// crates of their own. Their interfaces may change in any version.
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
