//! Arbitrary bytes as the stream of a source to a whole incoming migration. `tests/support/fuzz.rs`
//! sends and checks them.
#![no_main]

#[path = "../../tests/support/fuzz.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(
    init: {
        // libFuzzer's main is not Rust's, which would ignore it: a destination that has had
        // enough closes while the target still writes.
        // SAFETY: sets the disposition of a signal before there are threads.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    },
    |data: &[u8]| drop(fuzz::incoming(data))
);
