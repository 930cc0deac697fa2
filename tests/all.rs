//! The tests of whole scenarios through the public API, in one program: a directory, or a file here,
//! is one subject. `cargo test --test all hotplug::` runs one subject.
//!
//! One program, because each program is linked with the whole library. A test that changes or counts
//! something of its whole process, such as a limit or its mappings, runs in a process of its own
//! (`support::alone`). `counted.rs` has the tests for which an allocator counts.

mod support;

mod background;
mod ballooned;
mod channels;
mod converge;
mod cut;
mod devices;
mod dirty_limit;
mod downtime;
mod embedding;
mod gate;
mod hand_over;
mod hotplug;
mod integrity;
mod kvm_log;
mod kvm_measure;
#[cfg(target_arch = "x86_64")]
mod kvm_state;
mod limits;
mod link;
mod migration;
mod policies;
mod postcopy;
mod proven;
mod recording;
mod simulate;
mod standstill;
mod unreadable;
mod userfault;
mod verify;
mod vfio;
mod vhost_user;
mod wire_example;
