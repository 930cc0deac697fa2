//! A guest, two VMMs and a network for the tests of whole migrations, all in one process.
//!
//! Everything here uses brant's public API and knows nothing of how brant does what it does. A
//! test imports what it uses by the name of its file.
#![allow(dead_code)]

pub mod deciders;
pub mod guest;
pub mod hold;
pub mod memory;
pub mod pair;
pub mod peer;
pub mod random;
pub mod relay;
pub mod sides;
pub mod time;
pub mod vmm;
