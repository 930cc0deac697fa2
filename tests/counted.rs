//! Tests of how much memory brant takes and of memory that runs out, for which an allocator counts.
//! So they are a program apart from `all.rs`. `cargo test --test counted hostile::` runs one subject.

#[path = "support/allocator.rs"]
mod allocator;
mod support;

mod growth;
mod hostile;
mod scarce;
