//! Whole migrations in which one system call fails: each call of each thread of both sides, with
//! each of its plausible errors, with short counts and interruptions.
//!
//! [`guest`] is a small guest under one of several logs, [`case`] one migration of it with what
//! has to be true afterwards, [`sweep`] goes through the calls. Unit tests of the crate, because
//! no other build has anything that could make a call fail.

mod case;
mod guest;
mod sweep;
