//! The figures of a migration as one line that a person reads. Pure.

use super::report::Stats;
use super::state::State;
use super::steering::forecast::Forecast;
use super::switchover::{destination, source};
use crate::units::PAGE_SIZE;
use std::time::Duration;

/// The longest line, in bytes. The parts of a line have bounded numbers, so no line is longer.
pub const LINE_MAX: usize = 255;

/// 1234567 as `1.2 MB`.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A time with two or three digits.
fn time(t: Duration) -> String {
    let s = t.as_secs_f64();
    match s {
        _ if s < 0.000_999_5 => format!("{:.0} us", s * 1e6),
        _ if s < 0.009_95 => format!("{:.1} ms", s * 1e3),
        _ if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        _ if s < 9.95 => format!("{s:.1} s"),
        _ if s < 120.0 => format!("{s:.0} s"),
        _ if s < 7200.0 => format!("{:.0} min", s / 60.0),
        _ if s < 1e7 => format!("{:.0} h", s / 3600.0),
        _ => "years".into(),
    }
}

fn downtime(stats: &Stats) -> Option<String> {
    let took = stats.downtime?;
    Some(match stats.downtime_limit {
        Some(limit) => format!("downtime {} of {} allowed", time(took), time(limit)),
        None => format!("downtime {}", time(took)),
    })
}

/// What the forecast says of the rest.
fn outlook(stats: &Stats, forecast: &Forecast) -> String {
    if forecast.converges {
        let left = forecast.time.saturating_sub(stats.elapsed);
        let about = if forecast.guessed {
            "at least "
        } else {
            "about "
        };
        return format!("{about}{} left", time(left));
    }
    let helps = &forecast.remedies;
    let by = match (helps.limit, helps.throttle, helps.bandwidth) {
        (Some(limit), ..) => format!("; a limit of {} would do", time(limit)),
        (None, Some(percent), _) => format!("; slowing the guest by {percent} % would do"),
        (None, None, Some(rate)) => format!("; {}/s would do", bytes(rate as u64)),
        (None, None, None) => String::new(),
    };
    format!("does not converge{by}")
}

fn copying(stats: &Stats, forecast: Option<&Forecast>, parts: &mut Vec<String>) {
    parts.push(format!("{}/s", bytes(stats.throughput)));
    if let Some(pages) = stats.dirty_pages_per_second {
        let rate = bytes(pages.saturating_mul(PAGE_SIZE));
        parts.push(format!("guest writes {rate}/s"));
    }
    if stats.throttle > 0 {
        parts.push(format!("slowed by {} %", stats.throttle.min(99)));
    }
    parts.push(format!("{} to send", bytes(stats.remaining_bytes)));
    if let Some(expected) = stats.expected_downtime {
        let limit = stats.downtime_limit;
        let of = limit.map_or(String::new(), |limit| format!(" of {}", time(limit)));
        parts.push(format!("downtime would be {}{of}", time(expected)));
    }
    if stats.stall.is_some() {
        parts.push("stalled".into());
    }
    if let Some(forecast) = forecast {
        parts.push(outlook(stats, forecast));
    }
}

/// The line: "copying, pass 3, 87.1 %, 1.2 GB/s, guest writes 310 MB/s, 2.1 GB to send, downtime would be
/// 120 ms of 300 ms, about 12 s left".
pub(super) fn line(stats: &Stats, forecast: Option<&Forecast>) -> String {
    let mut parts = vec![stats.state.name().to_owned()];
    let is_copying = stats.state == State::Source(source::State::Copying);
    if is_copying && stats.pass > 0 {
        parts.push(format!("pass {}", stats.pass));
    }
    // Never rounded up: 100 % is the end.
    let tenths = stats.progress.min(10_000) / 10;
    parts.push(format!("{}.{} %", tenths / 10, tenths % 10));
    if is_copying {
        copying(stats, forecast, &mut parts);
    } else if stats.state == State::Destination(destination::State::Receiving) {
        parts.push(format!("{}/s", bytes(stats.throughput)));
    } else if stats.state.is_over() {
        if let Some(kind) = stats.error {
            parts.push(kind.name().to_owned());
        }
        parts.push(format!(
            "{} in {}",
            bytes(stats.wire_bytes),
            time(stats.elapsed)
        ));
        parts.extend(downtime(stats));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::migrate::steering::forecast::Remedies;
    use crate::migrate::steering::stall::Cause;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_pass_is_told_with_rates_rest_downtime_and_what_comes() {
        let mut stats = Stats {
            state: source::State::Copying.into(),
            pass: 3,
            progress: 8712,
            throughput: 1_234_567_890,
            dirty_pages_per_second: Some(75_000),
            remaining_bytes: 2_100_000_000,
            expected_downtime: Some(ms(120)),
            downtime_limit: Some(ms(300)),
            elapsed: ms(8_000),
            ..Stats::default()
        };
        let mut forecast = Forecast {
            converges: true,
            time: ms(20_300),
            ..Forecast::default()
        };
        assert_eq!(
            line(&stats, Some(&forecast)),
            "copying, pass 3, 87.1 %, 1.2 GB/s, guest writes 307 MB/s, 2.1 GB to send, downtime would \
             be 120 ms of 300 ms, about 12 s left"
        );
        forecast.converges = false;
        forecast.remedies.throttle = Some(40);
        (stats.throttle, stats.stall) = (20, Some(Cause::Dirtying));
        assert!(line(&stats, Some(&forecast))
            .ends_with("stalled, does not converge; slowing the guest by 40 % would do"));
    }

    #[test]
    fn an_end_is_told_with_its_downtime_or_its_reason() {
        let mut stats = Stats {
            state: source::State::Completed.into(),
            progress: 10_000,
            wire_bytes: 987_654,
            elapsed: ms(90_500),
            downtime: Some(Duration::from_micros(45_200)),
            downtime_limit: Some(ms(300)),
            ..Stats::default()
        };
        assert_eq!(
            line(&stats, None),
            "completed, 100.0 %, 988 kB in 90 s, downtime 45 ms of 300 ms allowed"
        );
        stats.state = source::State::Failed.into();
        (stats.error, stats.downtime, stats.progress) = (Some(Kind::Timeout), None, 1);
        assert_eq!(
            line(&stats, None),
            "failed, 0.0 %, timed out, 988 kB in 90 s"
        );
        assert_eq!(line(&Stats::default(), None), "idle, 0.0 %");
    }

    #[test]
    fn no_line_is_longer_than_the_longest() {
        let remedies = [
            Remedies {
                limit: Some(Duration::MAX),
                ..Remedies::default()
            },
            Remedies {
                throttle: Some(u8::MAX),
                ..Remedies::default()
            },
            Remedies {
                bandwidth: Some(f64::MAX),
                ..Remedies::default()
            },
            Remedies::default(),
        ];
        let mut longest = 0;
        let sources = [source::State::Copying, source::State::ResumeFailed];
        for state in sources.map(State::from) {
            for (remedies, n) in remedies
                .iter()
                .flat_map(|r| [(r, u64::MAX), (r, 999_499), (r, 0)])
            {
                let t = Duration::from_secs(n.min(9_999_999));
                let forecast = Forecast {
                    remedies: *remedies,
                    ..Forecast::default()
                };
                let stats = Stats {
                    state,
                    pass: n as u32,
                    progress: n as u32,
                    throughput: n,
                    dirty_pages_per_second: Some(n),
                    throttle: n,
                    remaining_bytes: n,
                    expected_downtime: Some(t),
                    downtime_limit: Some(t),
                    downtime: Some(t),
                    wire_bytes: n,
                    elapsed: t,
                    stall: Some(Cause::Link),
                    error: Some(Kind::Unanswered),
                    ..Stats::default()
                };
                longest = longest.max(line(&stats, Some(&forecast)).len());
            }
        }
        println!("{longest}");
        assert!((LINE_MAX / 2..=LINE_MAX).contains(&longest), "{longest}");
    }
}
