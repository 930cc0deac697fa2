//! A test in a process of its own. It is for promises that nothing ends the process, where a broken
//! promise must not end the other tests.

use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// The environment variable with the name of the test that this process runs.
const VARIABLE: &str = "BRANT_TEST_ALONE";

/// Runs `body`, a closure in a test, in a process of its own: this program with only that test. The
/// test here fails after a signal, a failed assertion, or if that process does not end within
/// `limit`. What it reports as skipped is reported here too.
pub fn alone<F: FnOnce()>(limit: Duration, body: F) {
    // `program::module::test::{{closure}}`. If it had another form no test would run, which is
    // noticed below.
    let whole = std::any::type_name::<F>();
    let (_, path) = whole.split_once("::").unwrap();
    let name = path.trim_end_matches("::{{closure}}");
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        return body();
    }
    let mut said = tempfile::tempfile().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .stdout(said.try_clone().unwrap())
        .stderr(said.try_clone().unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut text).unwrap();
    for line in text.lines().filter(|line| line.starts_with("skipped")) {
        eprintln!("{line}");
    }
    let Some(status) = ended else {
        panic!("{name}: no end after {limit:?}: {text}");
    };
    assert_eq!(status.signal(), None, "ended by a signal: {text}");
    assert!(status.success(), "{status}: {text}");
    // A name without a test would run nothing, and pass.
    assert!(text.contains("1 passed"), "{name} is no test: {text}");
}
