//! Contents of pages arrive as they were sent, or the migration fails: contents with checksums, and
//! compressed ones, over a link that damages them.
//!
//! The tests make whole migrations in one process, through the public API, of guests that write
//! meanwhile. The link is a proxy between the two sides, which reads records.

mod checksums;
mod compression;
pub mod damage;
mod every_way;
