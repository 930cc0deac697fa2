//! The limits of a listener: how much the connections of strangers may cost.
//!
//! Anybody who reaches an address can connect to it. So this file bounds how many connections are
//! looked at, how many are accepted at once, how long they may be silent, and how often a warning
//! comes. The VMM sets the time that a connection has for its HELLO (`connect_timeout`), and the
//! wire sets how many bytes of it are read.
//!
//! There are only numbers here. `listener`, `waiting` and the destination's `gather` apply them.

use std::time::Duration;

/// The most connections that wait to be accepted; the kernel cuts it to its own limit
/// (`net.core.somaxconn`). It has room for many strangers, because a source's call is lost for a
/// second when the queue is full.
pub const BACKLOG: i32 = 4096;

/// How many accepted connections are looked at together. When one more comes, the network with the
/// most of them loses its oldest.
pub const LOOKED_AT: usize = 128;

/// How many connections are accepted between two looks at the accepted ones.
pub const ACCEPTED_AT_ONCE: usize = 16;

/// The pause before the next accept when the process has no descriptor for a connection.
pub const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// When the process has no descriptor for a connection, an accepted one that has been silent for
/// this long is closed to free one.
pub const SILENCE: Duration = Duration::from_secs(1);

/// The shortest time between two warnings about strangers.
pub const WARNING_PAUSE: Duration = Duration::from_secs(10);
