//! Peers that break the protocol. Each is refused with a reason, within the limits of time and
//! memory, without a panic. No side runs a guest that was not handed over.
//!
//! A process of its own, because an allocator counts all of its memory (`bounds`).

#[path = "../support/fuzz.rs"]
mod fuzz;
#[path = "../support/mod.rs"]
mod support;

mod as_destination;
mod as_source;
mod blocks;
mod bounds;
mod callers;
mod changed;
mod damaged;
mod destination_fields;
mod floods;
mod fuzz_targets;
mod misplaced;
mod params;
mod records;
mod sessions;
mod slow;
mod source_fields;
mod while_copying;
