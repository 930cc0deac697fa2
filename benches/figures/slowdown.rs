//! How fast a guest writes while it is tracked, divided by how fast it writes when it is not, for
//! each way of tracking. The guest is a real one: `benches/slowdown.c`, which `make bench` builds.

use crate::report::{alternate, Report, Runs};
use std::process::Command;

const RUNS: usize = 5;
const FAMILY: &str = "guest.slowdown/";
/// The program's names of the ways.
const MODES: [&str; 5] = [
    "get-and-clear",
    "manual",
    "initially-set",
    "initially-set-at-sync",
    "ring",
];

/// All figures of this file.
pub fn measure(report: &mut Report) {
    if !report.wants_any(FAMILY) {
        return;
    }
    let Some(program) = std::env::var_os("BRANT_SLOWDOWN") else {
        return report.skipped(FAMILY, "BRANT_SLOWDOWN is not set; use make bench");
    };
    for mode in MODES {
        let name = format!("{FAMILY}{mode}");
        if !report.wants(&name) {
            continue;
        }
        let mut why = String::new();
        let [tracked, untracked]: [Runs; 2] = alternate(RUNS, |contender| {
            let how = ["untracked", mode][usize::from(contender == 0)];
            let ended = Command::new(&program).arg(how).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            said.trim().parse().unwrap_or_else(|_| {
                why = said.trim().to_owned();
                f64::NAN
            })
        });
        if why.is_empty() {
            report.compared(&name, "pages/s", &tracked, "untracked", &untracked);
        } else {
            report.skipped(&name, &why);
        }
    }
}
