//! Tests of the tracker with its logs together.

mod misaligned;
