//! A guest's memory in a file.
//!
//! Each page has one place in the file, so a page that is written twice overwrites itself, and the
//! file is never longer than the guest's memory, 0.1 % for checksums and what the VMM saved. Pages that
//! are zero are holes. The writer is an outlet of a walk ([`crate::walk::Outlet`]), as lanes are: it
//! knows nothing of pauses or passes. The reader knows nothing of running a guest. Both are put to
//! use by [`crate::snapshot`].
//!
//! | file | what |
//! |---|---|
//! | `format` | header and index, bytes and values; pure |
//! | `table` | which pages are in the file, and their checksums, while it is written |
//! | `unfinished` | the file under its temporary name |
//! | `pool` | threads that write, and buffers |
//! | `writer` | the outlet |
//! | `reader` | the file checked, and brought into guest memory |

mod buffer;
pub mod format;
mod pool;
mod reader;
mod table;
mod unfinished;
mod writer;

pub use pool::Announce;
pub use reader::{Filled, Image};
pub use writer::{Blobs, Writer, WRITERS_MAX};
