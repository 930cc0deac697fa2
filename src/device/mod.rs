//! Devices whose state is a stream and whose protocol brant knows: implementations of
//! [`Device`](crate::vmm::device::Device) for them.
//!
//! - [`vfio`]: a device that is passed through, by the kernel's migration protocol;
//! - [`vhost_user`]: the internal state of a vhost-user back end.
//!
//! Everything else, such as a GPU that the VMM emulates, implements the trait itself.

mod patience;
pub mod vfio;
pub mod vhost_user;
