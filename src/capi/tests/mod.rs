//! Tests of the whole C interface, from inside the crate.

mod panics;
