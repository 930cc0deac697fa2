//! What is inside a page: whether it is all zero, what has changed in it, and what it is when
//! compressed.
//!
//! Nothing in here knows of blocks, dirty bits or records. The senders in
//! `migrate` ask, about pages whose protection has been restored before.

pub mod compress;
pub mod delta;
pub mod zero;
