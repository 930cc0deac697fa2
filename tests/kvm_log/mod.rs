//! The dirty log on the real KVM: what the kernel must do for the model in the unit tests to be
//! right, and the tracker with a guest that really writes.
//!
//! The guest runs a few real-mode instructions for each page that it writes, so these tests are
//! about exactness and not about speed. Without `/dev/kvm` they say so and pass.

mod guest;
mod kernel;
mod slots;
mod switching;
mod tracked;
mod vm;
