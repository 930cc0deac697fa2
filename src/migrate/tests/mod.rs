//! Tests of whole migrations that need what only a test build has.

mod faults;
