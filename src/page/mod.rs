//! What is inside a page: whether it is all zero, and what has changed in it.
//!
//! Nothing in here knows of blocks, dirty bits or records. The senders in
//! `migrate` ask, about pages whose protection has been restored before.

pub mod delta;
pub mod zero;
