//! The door to the kernel: every system call that brant makes is one of these functions.
//!
//! They are the C library's own, under their own names, and a few of the standard library's that
//! make system calls. The crate's unit tests get the same names from `testing::faulty` instead,
//! where each call can be made to fail. `plan` says which call fails, `plausible` says with which
//! error. No other build contains these.
//!
//! Only the files of `sys` call them. A test reads the crate's sources, and fails if a call passes
//! by this door.

mod real;
#[cfg(not(test))]
pub(super) use self::real::*;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(super) use self::testing::faulty::*;
#[cfg(test)]
pub(crate) use self::testing::{plan, plausible};

#[cfg(test)]
mod tests;
