//! The door to the kernel: every system call that brant makes is one of these functions.
//!
//! They are the C library's own, by their own names, and a few of the standard library's that
//! make system calls. The crate's unit tests get the same names from `faulty` instead, where
//! each call can be made to fail (`plan` says which, `plausible` says with what). No other
//! build contains any of that.
//!
//! Only the files of `sys` call them; a test reads the crate's sources and fails where
//! something passes the door by.

mod real;
#[cfg(not(test))]
pub(super) use self::real::*;

#[cfg(test)]
mod faulty;
#[cfg(test)]
pub(crate) mod plan;
#[cfg(test)]
pub(crate) mod plausible;
#[cfg(test)]
pub(super) use self::faulty::*;

#[cfg(test)]
mod tests;
