//! A guest's memory in a file.
//!
//! Each page has one place in the file, so a page that is written twice overwrites itself. The file
//! is at most as long as the guest's memory, 0.1 % of it for checksums, and the VMM's blobs
//! together. Zero pages are holes of the file. The writer is an outlet of a walk
//! ([`crate::walk::Outlet`]), as lanes are, and knows nothing of pauses or passes. The reader knows
//! nothing of running a guest. [`crate::snapshot`] uses both.
//!
//! | file | what |
//! |---|---|
//! | `format` | header and index, bytes and values; pure |
//! | `identity` | which image this is, and of which it holds the changes; pure |
//! | `table` | which pages are in the file, and their checksums, while the file is written |
//! | `unfinished` | the file under its temporary name |
//! | `pool` | threads that write, and buffers |
//! | `writer` | the outlet |
//! | `draft` | pages that come from elsewhere than a walk |
//! | `deal` | which reader thread gets which pages; pure |
//! | `layer` | one image's file, checked |
//! | `reader` | an image and those before it, brought into guest memory |
//! | `private` | memory that is mapped from the file |
//! | `merge` | one full image of an image and those before it |
//! | `describe` | what is in an image, for a person or a program that looks at it |
//! | `picker` | any pages of the file in any order, checked |
//! | `single` | single pages of it, for which no thread waits |

mod buffer;
mod deal;
mod describe;
mod draft;
pub mod format;
pub mod identity;
mod layer;
mod merge;
mod picker;
mod pool;
mod private;
mod reader;
mod single;
mod table;
mod unfinished;
mod writer;

pub use describe::{describe, BlockFound, Description, LayerFound, StateFound};
pub use draft::Draft;
pub use merge::{file_at, merge, Merged};
pub use picker::{Picked, Picker, Room};
pub use pool::Announce;
pub use private::Mapped;
pub use reader::{Filled, Image};
pub use single::{Begun, Singles};
pub use writer::{Base, Blobs, Target, Writer, WRITERS_MAX};
