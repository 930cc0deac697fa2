//! A guest, two VMMs and a network for tests of whole migrations, all in one process.
//!
//! They use brant's public API and know nothing of its inside. A test imports what it uses by the
//! name of the file.
#![allow(dead_code)]

pub mod alone;
pub mod busy;
pub mod deciders;
pub mod fuzz;
pub mod guest;
pub mod hold;
pub mod kinds;
pub mod link;
pub mod memory;
pub mod pair;
pub mod peer;
pub mod random;
pub mod relay;
pub mod sides;
pub mod time;
pub mod vmm;
pub mod ways;
