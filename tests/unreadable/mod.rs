//! Guest memory that cannot be read or written: the migration fails with an error that names block
//! and offset, and the guest runs on. There is never a signal.
//!
//! Each test runs in a process of its own, so that a signal fails one test only.

use std::time::Duration;

mod declared;
mod destination;
mod migrate;
mod side;
mod source;

/// The time limit of a test in a process of its own.
const LIMIT: Duration = Duration::from_secs(120);
