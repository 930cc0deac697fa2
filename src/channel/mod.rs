//! Byte transports: the addresses (endpoint), the ways to make a connection (listener and newcomer,
//! connect, a descriptor that was handed in), the transfer of bytes (connection, transfer), and pacing.
//!
//! Code above sends, receives, waits and shuts down, without a descriptor, whatever kind of
//! connection carries the bytes. Nothing in this module knows of records. `migrate` uses it.

mod attached;
mod connect;
mod connection;
mod cursor;
mod descriptors;
pub mod endpoint;
pub mod handed_in;
mod in_flight;
mod io;
mod kind;
pub mod listener;
pub mod listener_limits;
pub mod newcomer;
pub mod pacing;
pub mod parts;
pub mod route;
mod sends_in_place;
mod socket;
pub mod socket_name;
mod transfer;
pub mod waiting;

#[cfg(test)]
mod tests;

pub use connection::{Channel, Counters};
pub use endpoint::Endpoint;
pub use in_flight::{Copying, Keep, ZeroCopy};
pub use io::{Io, Looked, Watch};
pub use listener::Listener;
pub use newcomer::Newcomer;
pub use pacing::Pacer;
pub use parts::{IoPart, Part, PartMut};
pub use route::Route;
pub use socket_name::SocketName;
pub use waiting::{wait_for_any, wait_for_channels};
