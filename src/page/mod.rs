//! The contents of single pages: whether a page is all zero, what has changed in it, and its
//! compressed form.
//!
//! Nothing in this module knows of blocks, dirty bits or records. The callers are the senders in
//! `migrate`, which ask about a page only after its protection was restored.

pub mod compress;
pub mod delta;
mod level;
pub mod zero;
