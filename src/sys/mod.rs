//! Every system call and ioctl that brant makes, one file a subsystem.
//!
//! A wrapper here checks nothing but the kernel's own answer and turns it into
//! an [`crate::error::Error`]; what a call is *for* is decided above. Newer
//! kernel interfaces than the installed headers know are defined here.
//!
//! The calls themselves are the functions of `kernel`, where the crate's unit tests can make
//! each of them fail.

pub mod clock;
pub mod disk;
pub mod event;
pub mod fd;
pub mod file;
pub mod guarded;
pub mod ioctl;
pub mod iommufd;
pub(crate) mod kernel;
pub mod kvm;
#[cfg(target_arch = "x86_64")]
pub mod kvm_machine;
pub mod kvm_ring;
pub mod maps;
pub mod mem;
pub mod net;
pub mod pagemap;
pub mod shm;
pub mod thread;
pub mod uffd;
pub mod vfio;
