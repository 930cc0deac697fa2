//! Byte transports: where they lead (endpoint), how they come about (listener and newcomer,
//! connect, a descriptor handed in), moving bytes over them (connection, transfer), and pacing.
//!
//! Verbs, no descriptors: what is above sends, receives, waits and shuts down, whatever kind of
//! connection carries the bytes. Knows nothing of records: bytes in, bytes out. Used by `migrate`.

mod connect;
mod connection;
mod cursor;
pub mod endpoint;
mod io;
mod kind;
pub mod listener;
pub mod listener_limits;
pub mod newcomer;
pub mod pacing;
pub mod parts;
pub mod route;
mod socket;
mod transfer;
pub mod waiting;

#[cfg(test)]
mod tests;

pub use connection::{Channel, Counters};
pub use endpoint::Endpoint;
pub use io::Io;
pub use listener::Listener;
pub use newcomer::Newcomer;
pub use pacing::Pacer;
pub use parts::{IoPart, Part, PartMut};
pub use route::Route;
pub use waiting::wait_for_any;
