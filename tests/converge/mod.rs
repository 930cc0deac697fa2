//! Guests of the real KVM that write faster than a slow link carries, under each policy. They
//! converge, or the migration says why not; and nothing stays slowed.
//!
//! Times are bounded loosely, because the machine may be busy.

mod kept;
mod policies;
mod reader;
