//! Tests of whole migrations that need a test build of the crate.

mod faults;
