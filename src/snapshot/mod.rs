//! A guest at one instant, in a file. [`Save`] writes the file while the guest runs or is paused.
//! [`Restore`] starts the guest from the file, here or on another host.
//!
//! A save writes pages in passes, as a migration sends them, and pauses a running guest for the
//! last pages only. The file holds the guest as it was at that moment. A save can also hold the guest
//! as it was at the start ([`SaveInstant::Start`]). A guest has one migration,
//! save or restore at a time; another one fails with [`crate::Kind::Busy`].
//!
//! | file | what |
//! |---|---|
//! | `save` | the VMM's object, and how a save ends |
//! | `saving` | a save in progress: figures, events, pause, resume |
//! | `passes` | a save whose instant is its end: passes, pause, state, last pages, resume |
//! | `chain` | images that hold what changed since the image before |
//! | `merge` | one full image of an image and those before it, as a job |
//! | `describe` | what is in an image |
//! | `instant` | a save whose instant is its start, by write protection |
//! | `converge` | whether another pass is worth it; pure |
//! | `restore` | memory, state, run |
//! | `layout` | whether an image and a guest have the same blocks; pure |
//! | `lazy` | memory that comes while the guest runs |
//! | `report` | parameters and figures |
//! | `task` | a thread that is started once, waited for and cancelled |
//! | `sequence` | faults that come one behind the other |
//! | `watching` | what the VMM asks of either while it is in progress |

mod chain;
mod converge;
mod describe;
mod devices;
mod instant;
mod layout;
mod lazy;
mod merge;
mod passes;
mod report;
mod restore;
mod save;
mod saving;
mod sequence;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod watching;

pub use crate::image::{BlockFound, Description, LayerFound, StateFound};
pub use chain::Chain;
pub use describe::describe;
pub use merge::{merge, Merge, MergeParams};
pub use report::{RestoreParams, SaveInstant, SaveParams, State, Stats};
pub use restore::Restore;
pub use save::Save;
