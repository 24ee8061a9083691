//! Visits as a stream: each event of each visit becomes an event of the clickstream, in the order of the lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use shared::clock::Micros;
use shared::decode::time::timestamp_text;
use shared::event;
use shared::schema::{DEFAULT_TYPE, Plan};

use crate::commands;
use crate::error::Failure;

/// The visits of one file or folder.
pub struct Visits {
    plan: Arc<Plan>,
    files: VecDeque<PathBuf>,
    open: Option<(PathBuf, BufReader<File>)>,
    line: u64,
    ready: VecDeque<Map<String, Value>>,
}

impl Visits {
    /// A file of JSON lines, or every `*.jsonl` of a folder in the order of their names.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let fault = |reason: String| Failure::usage(format!("--from {}: {reason}", path.display()));
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|error| fault(error.to_string()))?;
            files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
            files.sort();
        }
        if files.is_empty() {
            return Err(fault("there is no *.jsonl in it".into()));
        }
        let mut visits = Self {
            plan: commands::plan(DEFAULT_TYPE)?,
            files: files.into(),
            open: None,
            line: 0,
            ready: VecDeque::new(),
        };
        // A file that is not there is wrong usage, said before anything is sent.
        visits.next_file()?;
        Ok(visits)
    }

    /// The next event, as if it happened at `now`; its `event_id` is the same in every run.
    pub fn next(&mut self, now: Micros) -> Result<Option<String>, Failure> {
        loop {
            if let Some(mut event) = self.ready.pop_front() {
                event.insert("event_timestamp".into(), timestamp_text(now).into());
                return Ok(Some(Value::Object(event).to_string()));
            }
            let Some((path, file)) = &mut self.open else { return Ok(None) };
            let mut line = Vec::new();
            let read = file.read_until(b'\n', &mut line);
            if read.map_err(|error| Failure::work(format!("failed to read {}: {error}", path.display())))? == 0 {
                self.next_file()?;
                continue;
            }
            self.line += 1;
            let line = line.trim_ascii();
            match serde_json::from_slice::<Value>(line) {
                Ok(visit) if visit["events"].is_array() => self.ready = events(&self.plan, &visit, line),
                _ if line.is_empty() => {}
                _ => tracing::warn!(file = %path.display(), line = self.line, "not a visit, left out"),
            }
        }
    }

    fn next_file(&mut self) -> Result<(), Failure> {
        self.line = 0;
        self.open = match self.files.pop_front() {
            Some(path) => {
                let file = File::open(&path);
                let file = file.map_err(|error| Failure::usage(format!("--from {}: {error}", path.display())))?;
                Some((path, BufReader::new(file)))
            }
            None => None,
        };
        Ok(())
    }
}

/// The events of a visit with what the clickstream has columns for: of the visit, of the event, of its details.
fn events(plan: &Plan, visit: &Value, line: &[u8]) -> VecDeque<Map<String, Value>> {
    let members = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let nested = visit["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let event = |(index, nested): (usize, &Value)| {
        let given = &nested["event"];
        let mut event = members(visit);
        event.extend(members(&given["details"]));
        event.insert("event_name".into(), given["event_type"].clone());
        event.retain(|name, value| plan.index_of(name).is_some() && !value.is_null());
        event.insert("event_id".into(), json!(event::derived_id(&[line, index.to_string().as_bytes()])));
        event
    };
    nested.iter().enumerate().map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISIT: &str = r#"{"session_id":"s","user_id":"u","device_type":"mobile","events":[
        {"event":{"event_type":"page_view","timestamp":"2024-07-01T09:00:00","details":{"page_url":"https://x","referrer_url":null}}},
        {"event":{"event_type":"purchase","timestamp":"2024-07-01T09:00:00","details":{"order_id":"o","amount":1.5}}}]}"#;

    #[test]
    fn each_event_of_a_visit_is_one_of_the_clickstream_with_the_same_id_in_every_run() {
        let folder = tempfile::tempdir().unwrap();
        let line = VISIT.replace('\n', "");
        std::fs::write(folder.path().join("b.jsonl"), format!("\r\n{line}\r\nno visit\n")).unwrap();
        std::fs::write(folder.path().join("a.jsonl"), line.replace("\"u\"", "\"first\"")).unwrap();
        std::fs::write(folder.path().join("expected.json"), "{}").unwrap();
        let run = |now: Micros| {
            let mut visits = Visits::open(folder.path()).unwrap();
            let mut events: Vec<Value> = Vec::new();
            while let Some(event) = visits.next(now).unwrap() {
                events.push(serde_json::from_str(&event).unwrap());
            }
            events
        };
        let events = run(0);
        let id = events[2]["event_id"].clone();
        assert_eq!(events.len(), 4);
        assert_eq!(events[0]["user_id"], "first");
        assert_eq!(
            events[2],
            json!({"session_id": "s", "user_id": "u", "page_url": "https://x", "event_name": "page_view",
                "event_timestamp": "1970-01-01T00:00:00Z", "event_id": id})
        );
        let ids = |events: &[Value]| events.iter().map(|event| event["event_id"].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&events), ids(&run(1)));
    }
}
