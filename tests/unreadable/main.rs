//! Guest memory that cannot be read, or written: the migration fails with an error that names
//! block and offset, and the guest runs on. Never a signal.
//!
//! Each test runs again in a process of its own, so that a signal is one failed test and the
//! others still run.

use std::time::Duration;

#[path = "../support/alone.rs"]
mod alone;
#[path = "../support/kinds.rs"]
mod kinds;

mod declared;
mod destination;
mod migrate;
mod side;
mod source;

/// For a whole test in its own process.
const LIMIT: Duration = Duration::from_secs(120);
