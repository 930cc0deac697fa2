//! Arbitrary bytes as one record. `tests/support/fuzz.rs` decodes and checks them.
#![no_main]

#[path = "../../tests/support/fuzz.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::decoder(data));
