//! What a run says at its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::decode::Code;

use crate::lines::Position;
use crate::{Error, Limit};

/// How often something occurred, and where first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How often.
    pub count: u64,
    /// `file:line`.
    pub first: String,
}

impl Count {
    /// Once more, in line `at` of `file`.
    pub fn add(&mut self, file: &str, at: Position) {
        self.count += 1;
        if self.first.is_empty() {
            self.first = format!("{file}:{}", at.line);
        }
    }
}

/// What a run has counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Lines that are not blank.
    pub lines: u64,
    /// By table, in the mapping's order.
    pub rows: Vec<u64>,
    /// Rows of an archive that came again.
    pub duplicates: u64,
    /// By reason.
    pub dead_letters: BTreeMap<Code, Count>,
    /// By name.
    pub findings: BTreeMap<String, Count>,
}

impl Tally {
    /// Dead letters of every reason.
    pub fn buried(&self) -> u64 {
        self.dead_letters.values().map(|count| count.count).sum()
    }

    /// Why the run may not be shown, if there are more dead letters than `limit`.
    pub fn over(&self, limit: Option<Limit>) -> Option<String> {
        let buried = self.buried();
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        let is_over = match limit? {
            Limit::Number(most) => buried > most,
            Limit::Share(share) => buried as f64 > share * self.lines as f64,
        };
        let limit = match limit? {
            Limit::Number(most) => most.to_string(),
            Limit::Share(share) => format!("{}%", share * 100.0),
        };
        let lines = self.lines;
        is_over.then(|| format!("{buried} dead letters of {lines} lines, over --max-dead-letters {limit}"))
    }
}

/// The end of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The run's id; empty where nothing was recorded.
    pub run: String,
    /// The tables' names, in the order of [`Tally::rows`].
    pub tables: Vec<String>,
    /// What was counted.
    pub tally: Tally,
    /// How many files were read.
    pub files: u64,
    /// Bytes of them, as they lie there.
    pub bytes: u64,
    /// What was passed over or done beside the load, a sentence each.
    pub remarks: Vec<String>,
    /// Where the dead letters lie, if there are any.
    pub dead_letters_at: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Why the tables stay as they were.
    pub failure: Option<String>,
}

impl Report {
    /// Prints the report to standard output; the error is why the tables stay as they were.
    pub fn print(&self, json: bool) -> Result<(), Error> {
        if json {
            println!("{}", self.json());
        } else {
            println!("{}", self.text());
        }
        self.failure.clone().map_or(Ok(()), |failure| Err(Error::Work(failure)))
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let name = |full: &String| full.rsplit('.').next().unwrap_or(full).to_string();
        let rows: serde_json::Map<_, _> =
            self.tables.iter().zip(&self.tally.rows).map(|(table, rows)| (name(table), (*rows).into())).collect();
        let findings: BTreeMap<_, _> = self.tally.findings.iter().map(|(name, count)| (name, count.count)).collect();
        json!({
            "run": self.run,
            "rows": rows,
            "dead_letters": self.tally.buried(),
            "dead_letters_by_reason": self.tally.dead_letters,
            "dead_letters_at": self.dead_letters_at,
            "findings": findings,
            "findings_first": self.tally.findings,
            "files": self.files,
            "bytes": self.bytes,
            "lines": self.tally.lines,
            "duplicates": self.tally.duplicates,
            "remarks": self.remarks,
            "failure": self.failure,
            "seconds": self.seconds,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for remark in &self.remarks {
            let _ = writeln!(text, "{remark}");
        }
        let _ = writeln!(text, "{:<44} {:>12}", "table", "rows");
        for (table, rows) in self.tables.iter().zip(&self.tally.rows) {
            let _ = writeln!(text, "{table:<44} {rows:>12}");
        }
        let codes = self.tally.dead_letters.iter().map(|(code, count)| (code.as_str(), count));
        section(&mut text, "dead letters by reason", codes);
        section(
            &mut text,
            "findings (the rows landed)",
            self.tally.findings.iter().map(|(name, count)| (&**name, count)),
        );
        if let Some(place) = &self.dead_letters_at {
            let _ = writeln!(text, "the dead letters lie in {place}");
        }
        if self.tally.duplicates > 0 {
            let _ = writeln!(text, "{} rows came again and were left out", self.tally.duplicates);
        }
        let Self { files, bytes, seconds, .. } = self;
        let lines = self.tally.lines;
        #[expect(clippy::cast_precision_loss, reason = "rates for people")]
        let (rate, size) = (lines as f64 / seconds.max(1e-9), *bytes as f64 / 1e6);
        let _ = write!(text, "{lines} lines of {files} files, {size:.1} MB, in {seconds:.2} s: {rate:.0} lines/s");
        text
    }
}

fn section<'c>(text: &mut String, title: &str, counts: impl Iterator<Item = (&'c str, &'c Count)>) {
    let mut title = Some(title);
    for (name, count) in counts {
        if let Some(title) = title.take() {
            let _ = writeln!(text, "{title:<44} {:>12}  first", "number");
        }
        let _ = writeln!(text, "  {name:<42} {:>12}  {}", count.count, count.first);
    }
}
