//! Dirty traces: what a guest wrote, interval by interval, in lines of JSON.
//!
//! ```text
//! {"name":"sweep","pages":16384,"interval_ms":100}
//! {"distinct":[900,1700,1700]}
//! {"distinct":[910,1720,1720]}
//! ```
//!
//! The first line has the guest's pages and the length of an interval. Each further line is one
//! interval: how many distinct pages were written in it, in the two intervals that end with it, in
//! the four, and so on. So a line is a curve: it tells a guest that writes 900 new pages in each
//! interval from one that writes the same 900 again.

use super::model::{Guest, Phase};
use brant::migrate::steering::working_set::WorkingSet;
use serde_json::{json, Value};
use std::time::Duration;

/// How many windows a line has: 1, 2, 4, … intervals.
pub const WINDOWS: u32 = 6;

/// A trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub name: String,
    pub pages: u64,
    pub interval: Duration,
    /// Distinct pages of each interval's windows.
    pub lines: Vec<Vec<u64>>,
}

impl Trace {
    /// Reads a trace. The error names the line.
    pub fn parse(text: &str) -> Result<Trace, String> {
        let mut lines = text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty());
        let value = |line: Option<(usize, &str)>| -> Result<(usize, Value), String> {
            let (number, text) = line.ok_or("an empty trace")?;
            let value = serde_json::from_str(text);
            Ok((
                number,
                value.map_err(|e| format!("line {}: {e}", number + 1))?,
            ))
        };
        let (_, head) = value(lines.next())?;
        let number = |key: &str| head[key].as_u64().filter(|n| *n > 0);
        let missing = |key: &str| format!("line 1: `{key}` is missing or 0");
        let mut trace = Trace {
            name: head["name"].as_str().unwrap_or("trace").to_owned(),
            pages: number("pages").ok_or_else(|| missing("pages"))?,
            interval: Duration::from_millis(
                number("interval_ms").ok_or_else(|| missing("interval_ms"))?,
            ),
            lines: Vec::new(),
        };
        for line in lines {
            let (number, line) = value(Some(line))?;
            let list = line["distinct"].as_array();
            let pages: Option<Vec<u64>> =
                list.and_then(|list| list.iter().map(Value::as_u64).collect());
            let rises = |list: &Vec<u64>| {
                !list.is_empty()
                    && list.is_sorted()
                    && list.iter().all(|pages| *pages <= trace.pages)
            };
            let pages = pages.filter(rises).ok_or_else(|| {
                format!(
                    "line {}: `distinct` is not a rising list of at most {} pages",
                    number + 1,
                    trace.pages
                )
            })?;
            trace.lines.push(pages);
        }
        match trace.lines.is_empty() {
            true => Err("a trace without intervals".into()),
            false => Ok(trace),
        }
    }

    /// The text of a trace.
    pub fn to_text(&self) -> String {
        let interval = self.interval.as_millis() as u64;
        let head = json!({"name": self.name, "pages": self.pages, "interval_ms": interval});
        let lines = self
            .lines
            .iter()
            .map(|line| json!({ "distinct": line }).to_string());
        let mut text = head.to_string() + "\n";
        lines.for_each(|line| text += &(line + "\n"));
        text
    }

    /// A guest of `pages` pages and `vcpus` vCPUs that writes as the trace says, in proportion to
    /// its size; its time is `slower` times that of the trace.
    pub fn guest(&self, pages: f64, vcpus: usize, slower: f64) -> Guest {
        let scale = pages / self.pages as f64;
        let interval = self.interval.as_secs_f64() * slower;
        let phase = |line: &Vec<u64>| {
            let mut curve = WorkingSet::default();
            for (window, distinct) in line.iter().enumerate() {
                let window = Duration::from_secs_f64(interval * f64::from(1 << window));
                curve.observe(window, *distinct as f64 * scale);
            }
            Phase {
                seconds: interval,
                pools: curve.pools(pages),
            }
        };
        Guest {
            pages,
            data: 1.0,
            vcpus,
            writers: vcpus.div_ceil(2),
            phases: self.lines.iter().map(phase).collect(),
        }
    }
}

/// Makes a trace's lines of what syncs find: each page's last interval is remembered.
#[derive(Debug, Default)]
pub struct Recording {
    /// The number of the last interval in which each page was written; 0: never.
    last: Vec<u32>,
    interval: u32,
    pub lines: Vec<Vec<u64>>,
}

impl Recording {
    pub fn new(pages: usize) -> Self {
        Recording {
            last: vec![0; pages],
            ..Recording::default()
        }
    }

    /// Records the pages that were written in the next interval.
    pub fn interval(&mut self, written: impl IntoIterator<Item = usize>) {
        self.interval += 1;
        for page in written {
            self.last[page] = self.interval;
        }
        let line = (0..WINDOWS).map(|window| {
            let since = (self.interval + 1).saturating_sub(1 << window).max(1);
            self.last.iter().filter(|last| **last >= since).count() as u64
        });
        self.lines.push(line.collect());
    }
}
