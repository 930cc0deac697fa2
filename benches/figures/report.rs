//! Rows of figures: medians of alternating runs, printed as they come, and written as one JSON
//! object a line. This file knows nothing of what is measured; the measuring modules call it.

use serde_json::{json, Value};
use std::fs::File;
use std::io::Write;

/// The destination of figures.
pub struct Report {
    only: Vec<String>,
    out: Option<File>,
    empty: bool,
}

impl Report {
    /// Reports figures whose name begins with one of `only`, or all if that is empty, as one JSON
    /// object a line to `out`.
    pub fn new(only: Vec<String>, out: Option<File>) -> Report {
        Report {
            only,
            out,
            empty: true,
        }
    }

    /// Whether no figure was wanted: none was measured, and none was skipped with a reason.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Whether a figure is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only))
    }

    /// Whether any figure whose name begins with `family` may be wanted.
    pub fn wants_any(&self, family: &str) -> bool {
        self.wants(family) || self.only.iter().any(|only| only.starts_with(family))
    }

    /// Reports a figure and its comparison.
    pub fn compared(&mut self, name: &str, unit: &str, ours: &Runs, peer: &str, theirs: &Runs) {
        let (value, peer_value) = (ours.median(), theirs.median());
        let ratio = value / peer_value;
        self.row(json!({
            "name": name, "value": value, "unit": unit, "peer": peer,
            "peer_value": peer_value, "ratio": ratio, "runs": ours.0.len(),
        }));
    }

    /// Reports a figure and its comparison, with `more` fields of its own.
    pub fn told(&mut self, name: &str, unit: &str, value: f64, peer: (&str, f64), more: Value) {
        let mut row = json!({
            "name": name, "value": value, "unit": unit, "peer": peer.0,
            "peer_value": peer.1, "ratio": value / peer.1, "runs": 1,
        });
        if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
            row.extend(more);
        }
        self.row(row);
    }

    /// Reports how a cost grows: the cost at the larger size and the allowed one; their ratios turn
    /// by turn, and by the clock; and the fixed share of the smaller side, which was subtracted.
    pub fn grown(
        &mut self,
        name: &str,
        unit: &str,
        [cost, allowed]: [&Runs; 2],
        ratios: &Runs,
        by_clock: &Runs,
        fixed: &Runs,
    ) {
        let [low, ratio, high] = ratios.quartiles();
        self.row(json!({
            "name": name, "value": cost.median(), "unit": unit, "peer": "allowed growth",
            "peer_value": allowed.median(), "ratio": ratio, "runs": cost.0.len(),
            "low": low, "high": high, "by_clock": by_clock.median(), "fixed": fixed.median(),
        }));
    }

    /// Reports a figure that could not be measured here.
    pub fn skipped(&mut self, name: &str, reason: &str) {
        if self.wants_any(name) {
            self.empty = false;
            eprintln!("  skipped {name}: {reason}");
        }
    }

    fn row(&mut self, row: Value) {
        let name = row["name"].as_str().unwrap_or("").to_owned();
        if !self.wants(&name) {
            return;
        }
        self.empty = false;
        eprintln!(
            "  {name:40} {:>10.4} {:8} {:>10.4} {:18} ratio {:.4}{}",
            row["value"].as_f64().unwrap_or(0.0),
            row["unit"].as_str().unwrap_or(""),
            row["peer_value"].as_f64().unwrap_or(0.0),
            row["peer"].as_str().unwrap_or(""),
            row["ratio"].as_f64().unwrap_or(0.0),
            match (row["low"].as_f64(), row["high"].as_f64()) {
                (Some(low), Some(high)) => format!(
                    " ({low:.2} to {high:.2}; by the clock {:.2}; fixed {:.0} %)",
                    row["by_clock"].as_f64().unwrap_or(0.0),
                    row["fixed"].as_f64().unwrap_or(0.0) * 100.0
                ),
                _ => String::new(),
            },
        );
        if let Some(out) = &mut self.out {
            writeln!(out, "{row}").expect("the results can be written");
        }
    }
}

/// One contender's figures, run by run.
#[derive(Default, Debug)]
pub struct Runs(Vec<f64>);

impl Runs {
    /// A single figure that is known, or that does not vary.
    pub fn of(value: f64) -> Runs {
        Runs(vec![value])
    }

    /// Adds the figure of one more run.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quartiles()[1]
    }

    /// The lower quartile, the median, and the upper quartile.
    pub fn quartiles(&self) -> [f64; 3] {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        assert!(n > 0, "something was measured");
        let middle = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        [sorted[n / 4], middle, sorted[n - 1 - n / 4]]
    }
}

/// Runs the contenders in turn (A B A B), `runs` times each, after one turn that does not count
/// because it touches the memory. A contender returns its figure.
pub fn alternate<const N: usize>(runs: usize, mut run: impl FnMut(usize) -> f64) -> [Runs; N] {
    let mut all: [Runs; N] = std::array::from_fn(|_| Runs::default());
    for turn in 0..=runs {
        for (contender, runs) in all.iter_mut().enumerate() {
            let figure = run(contender);
            if turn > 0 {
                runs.push(figure);
            }
        }
    }
    all
}
