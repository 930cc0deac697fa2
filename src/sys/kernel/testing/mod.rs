//! The door to the kernel for unit tests, where each call can be made to fail.

pub(in crate::sys) mod faulty;
pub(crate) mod plan;
pub(crate) mod plausible;
