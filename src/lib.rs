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
//! [`kvm_ioctls`] and [`vm_memory`] are re-exported: brant's functions take their types.
//!
//! # A guest moves
//!
//! ```
//! use brant::memory::{BlockDescription, BlockFlags, HostMemory, Memory};
//! use brant::migrate::{Blockers, Incoming, Outgoing, Params, Source, Target};
//! use brant::dirty::tracker::{Clearing, Tracker};
//! use brant::units::Bytes;
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
//! # fn pages(n: usize) -> *mut u8 {
//! #     let layout = std::alloc::Layout::from_size_align(n * 4096, 4096).unwrap();
//! #     unsafe { std::alloc::alloc_zeroed(layout) }
//! # }
//! # fn main() -> brant::Result<()> {
//! let guest = |host: *mut u8| -> brant::Result<Arc<Memory>> {
//!     let memory = Memory::new()?;
//!     memory.add_block(BlockDescription {
//!         name: "ram".into(),
//!         // SAFETY: 16 pages that stay until the program ends.
//!         host: unsafe { HostMemory::new(host) },
//!         length: Bytes(16 * 4096),
//!         page_size: Bytes(4096),
//!         file: None,
//!         flags: BlockFlags::default(),
//!     })?;
//!     Ok(Arc::new(memory))
//! };
//! let (here, there) = (pages(16), pages(16));
//! // SAFETY: inside the block.
//! unsafe { here.add(4096).write_volatile(42) };
//!
//! let tracker = Tracker::new(guest(here)?, Clearing::default())?;
//! // A VMM with KVM adds its log: tracker.add_log(Box::new(KvmLog::from_vm(&vm, …)?))?
//! let outgoing = Outgoing::new(tracker, Blockers::new(), Arc::new(Nothing), Params::default())?;
//! let incoming = Incoming::new(guest(there)?, Arc::new(Nothing), Params::default())?;
//!
//! let (a, b) = UnixStream::pair().unwrap();
//! incoming.start(Source::Connected(b.into()))?;
//! outgoing.start(Target::Connected(a.into()))?;
//! outgoing.wait(None)?;
//! // SAFETY: inside the block.
//! assert_eq!(unsafe { there.add(4096).read_volatile() }, 42);
//! # Ok(())
//! # }
//! ```
#![deny(rustdoc::broken_intra_doc_links)]

pub mod bits;
pub mod dirty;
pub mod error;
pub mod memory;
pub mod migrate;
pub mod rate;
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
pub use {kvm_ioctls, vm_memory};
