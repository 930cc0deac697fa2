//! Peers that break the protocol. Each is refused with a reason, within the limits of time and
//! memory, without a panic. No side runs a guest that was not handed over.
//!
//! The allocator counts the memory of all these tests together (`bounds`).

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
mod in_the_middle;
mod misplaced;
mod params;
mod records;
mod sessions;
mod slow;
mod source_fields;
mod while_copying;
