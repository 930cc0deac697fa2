//! Simulated migrations of guests that no test machine has, steered by brant's own deciders:
//!
//! ```text
//! cargo run --release --example simulate                 a table of guests, links, loads, policies
//! cargo run --release --example simulate -- TRACE...     the same for dirty traces
//! cargo run --release --example simulate -- record DIR   record traces of KVM guests (needs /dev/kvm)
//! ```

mod model;
mod record;
mod scenarios;
mod trace;

use model::{migrate, Guest, Outcome};
use scenarios::{guests, loads, policies, GBIT};
use std::time::Duration;
use trace::Trace;

/// The downtime limit of all migrations.
const LIMIT: Duration = Duration::from_millis(300);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == "record" => {
            let directory = rest.first().ok_or("record needs a directory")?;
            record::record(std::path::Path::new(directory))?;
        }
        Some(_) => {
            heading();
            for path in &arguments {
                let trace = Trace::parse(&std::fs::read_to_string(path)?)?;
                for (name, memory, vcpus) in guests() {
                    for link in [10.0, 100.0, 400.0] {
                        let guest = trace.guest(memory, vcpus, scenarios::slower(memory, link));
                        table(name, link, &trace.name, &guest);
                    }
                }
            }
        }
        None => {
            heading();
            for (name, memory, vcpus) in guests() {
                for link in [10.0, 100.0, 400.0] {
                    for (load, guest) in loads(memory, vcpus, link * GBIT) {
                        table(name, link, load, &guest);
                    }
                }
            }
        }
    }
    Ok(())
}

fn heading() {
    println!(
        "{:<18} {:>5} {:<10} {:<8} {:>6} {:>8} {:>7} {:>8} {:>9} {:>9} {:>5}  forecast off by",
        "guest",
        "Gb/s",
        "load",
        "policy",
        "passes",
        "throttle",
        "limited",
        "downtime",
        "time",
        "bytes",
        "work"
    );
}

fn table(name: &str, link: f64, load: &str, guest: &Guest) {
    for (policy, plan) in policies(guest, link * GBIT, LIMIT) {
        let outcome = migrate(guest, &plan);
        println!(
            "{name:<18} {link:>5} {load:<10} {policy:<8} {}",
            row(&outcome)
        );
    }
}

fn row(outcome: &Outcome) -> String {
    let converged = match outcome.converged {
        true => format!("{:>6.0} ms", outcome.downtime * 1e3),
        false => "never".into(),
    };
    let percent = |error: f64| format!("{:.0} %", error * 100.0);
    let errors = match outcome.errors() {
        Some([time, bytes, passes]) => format!(
            "{} time, {} bytes, {} passes",
            percent(time),
            percent(bytes),
            percent(passes)
        ),
        None => match outcome.forecast {
            Some(forecast) if forecast.converges == outcome.converged => "right: never".into(),
            Some(_) => "WRONG".into(),
            None => "none".into(),
        },
    };
    format!(
        "{:>6} {:>6} % {:>7} {:>9} {:>7.0} s {:>6.2} T {:>4.0}%  {errors}",
        outcome.passes,
        outcome.throttle,
        outcome.limited,
        converged,
        outcome.time,
        outcome.bytes / 1e12,
        outcome.work * 100.0,
    )
}
