//! Every system call and ioctl that brant makes, one file for each subsystem.
//!
//! A wrapper checks only the kernel's answer, and turns it into an [`crate::error::Error`]. The
//! layers above decide what a call is *for*. Kernel interfaces that are newer than the installed
//! headers are defined here.
//!
//! The calls themselves are the functions of `kernel`, where the crate's unit tests can make each
//! of them fail.

pub mod aio;
pub mod clock;
pub mod disk;
pub mod errqueue;
pub mod event;
pub mod fd;
pub mod file;
pub mod guarded;
pub mod ioctl;
pub mod iommufd;
pub(crate) mod kernel;
pub mod kvm;
#[cfg(target_arch = "x86_64")]
pub mod kvm_kind;
#[cfg(target_arch = "x86_64")]
pub mod kvm_machine;
pub mod kvm_ring;
#[cfg(target_arch = "x86_64")]
pub mod kvm_state;
pub mod kvm_vcpu;
pub mod maps;
pub mod mem;
pub mod net;
pub mod own;
pub mod pagemap;
pub mod passing;
pub mod pipe;
pub mod plain;
pub mod seals;
pub mod shm;
pub mod signal;
pub mod thread;
pub mod uffd;
pub mod vfio;
pub mod vfio_migration;
