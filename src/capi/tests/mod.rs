//! Tests of the C face as a whole, from inside the crate.

mod panics;
