//! The limits of a listener: what connections of strangers may cost.
//!
//! Anybody who reaches an address can connect to it. So the connections that are looked at, those
//! that are accepted at once, their time and the warnings about them are all bounded, here. The
//! time that a connection has for its HELLO is the VMM's to say (`connect_timeout`), and how many
//! bytes are read of it is the wire's.
//!
//! Numbers only; who acts on them is `listener`, `waiting` and the destination's `gather`.

use std::time::Duration;

/// Connections that may wait to be accepted; the kernel cuts it to its own limit
/// (`net.core.somaxconn`). When the queue is full a source's call is lost for a second: room
/// for many strangers.
pub const BACKLOG: i32 = 4096;

/// Accepted connections that are looked at together. When there is one more, the place that most
/// of them came from loses its oldest.
pub const LOOKED_AT: usize = 128;

/// Connections that are accepted between two looks at those that there are.
pub const ACCEPTED_AT_ONCE: usize = 16;

/// When the process has no descriptor for a connection: until the next try.
pub const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// When the process has no descriptor for a connection: an accepted one that has been silent for
/// so long is closed, and its descriptor is free.
pub const SILENCE: Duration = Duration::from_secs(1);

/// Between two warnings about strangers.
pub const WARNING_PAUSE: Duration = Duration::from_secs(10);
