//! Whole migrations in which one system call fails. Tried are each call of each thread of both
//! sides, with each of its plausible errors, with short counts and with interruptions.
//!
//! [`guest`] is a small guest under one of several logs. [`case`] is one migration of that guest,
//! with the checks afterwards. [`sweep`] goes through the calls. These tests are unit tests of the
//! crate, because no other build can make a call fail.

mod case;
mod guest;
mod sweep;
