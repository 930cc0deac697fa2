//! What is inside a page: for now, whether it is all zero.
//!
//! Nothing in here knows of blocks, dirty bits or records. The senders in
//! `migrate` ask, about pages whose protection has been restored before.

pub mod zero;
