//! Byte transports: where they lead (endpoint), how they come about (listener,
//! connect, a descriptor handed in), moving bytes over them, and pacing.
//!
//! Knows nothing of records: bytes in, bytes out. Used by `migrate`.

pub mod endpoint;
pub mod listener;
pub mod pacing;
pub mod parts;
pub mod socket;

pub use endpoint::Endpoint;
pub use listener::Listener;
pub use pacing::Pacer;
pub use parts::{Part, PartMut, Piece};
pub use socket::{Channel, Counters, Io};
