//! What arrives is what was sent: contents of pages with checksums and compressed, over a
//! link that damages them.
//!
//! Whole migrations in one process, through the public API, of guests that write meanwhile. The link
//! is a man in the middle who reads records.

#[path = "../support/mod.rs"]
mod support;

mod checksums;
mod compression;
mod damage;
