//! Whole migrations of guests that balloon and hint at free pages while they move: what they use is
//! never lost; what is in the balloon reads as zero at the destination, costs no memory there, and is
//! ballooned there too.

#[path = "../support/mod.rs"]
mod support;

mod busy;
mod destination;
mod machine;
mod peers;
mod unsent;
