//! A guest at one instant, in a file: [`Save`] writes one that runs or is paused, [`Restore`] starts one
//! from the file, here or at another host.
//!
//! A guest is saved while it runs: pages are written in passes, as a migration sends them, and the
//! guest stands still for the last ones only. What is in the file is the guest at that moment. Of a
//! guest, migrations, saves and restores exclude each other ([`crate::Kind::Busy`]).
//!
//! | file | what |
//! |---|---|
//! | `save` | passes, pause, state, last pages, resume |
//! | `converge` | whether another pass is worth it; pure |
//! | `restore` | layout, memory, state, run |
//! | `report` | parameters and figures |
//! | `task` | a thread that is started once, waited for and cancelled |

mod converge;
mod report;
mod restore;
mod save;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use report::{RestoreParams, SaveParams, State, Stats};
pub use restore::Restore;
pub use save::Save;
