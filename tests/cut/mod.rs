//! The link is cut and the peer is killed at every place. A 16 MiB guest's migration with every
//! type of record is cut at each boundary between two records and at 200 bytes in between; it is
//! silenced; and the other process is killed in each of its phases.
//!
//! After each case exactly the right side has the guest, the end came in time, and the tracker's
//! pending covers every unacknowledged page. `tests/migration/faults.rs` has the faults that are
//! not the network's.

mod afterwards;
mod anew;
mod cases;
mod cutting;
mod guests;
mod killing;
mod middle;
