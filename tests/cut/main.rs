//! The link is cut everywhere, and the peer is killed everywhere: a 16 MiB guest whose migration
//! holds every type of record, cut at each boundary between two records, at 200 bytes in between,
//! silenced without a word, and with the other process gone in each of its phases.
//!
//! After each of them exactly the right side has the guest, it was over in time, and what the
//! tracker holds covers every page that was not acknowledged. `tests/migration/faults.rs` has the
//! faults that are not the network's.

#[path = "../support/mod.rs"]
mod support;

mod afterwards;
mod cases;
mod cutting;
mod guests;
mod killing;
mod middle;
