//! That what is answered is on disk before, shown by a trace of the system calls.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline_tests::binary::{Dev, PATIENCE, binary, part};
use serde_json::json;

/// A system call that succeeded, with the lines of the trace where it began and ended.
struct Call {
    begun: usize,
    ended: usize,
    text: String,
}

impl Call {
    fn is_sync_of(&self, path: &Path) -> bool {
        let is_sync = self.text.starts_with("fsync(") || self.text.starts_with("fdatasync(");
        is_sync && self.text.contains(&format!("<{}>", path.display()))
    }

    /// The socket that it reads from or writes to.
    fn socket(&self) -> Option<&str> {
        let (descriptor, _) = self.text.split_once('(')?.1.split_once('>')?;
        descriptor.contains("<socket:").then_some(descriptor)
    }
}

/// `contextflow dev` under strace.
struct Traced {
    dev: Dev,
    folder: tempfile::TempDir,
}

impl Traced {
    fn start() -> Option<Self> {
        let strace = part("strace", "strace")?;
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(strace);
        // -D: the tracer is the one that stands aside, so that killing the child ends the pipeline.
        let calls = "trace=fsync,fdatasync,linkat,mkdir,read,recvfrom,write,writev,sendto";
        command.args(["-D", "-f", "-y", "-s", "48", "-e", calls, "-o"]).arg(folder.path().join("trace"));
        command.arg(binary());
        Some(Self { dev: Dev::start_under(command, &[]), folder })
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("trace")).unwrap()
    }

    /// Waits until the trace says something.
    fn wait_for(&self, holds: impl Fn(&str) -> bool) {
        let started = Instant::now();
        while !holds(&self.text()) {
            assert!(started.elapsed() < PATIENCE, "not in the trace");
            sleep(Duration::from_millis(100));
        }
    }

    /// The calls so far, in the order of their ends.
    fn calls(&self) -> Vec<Call> {
        let (mut calls, mut open) = (Vec::new(), HashMap::new());
        for (number, line) in self.text().lines().enumerate() {
            let Some((thread, text)) = line.split_once(' ') else { continue };
            let text = text.trim_start();
            let (begun, text) = if let Some(begin) = text.strip_suffix("<unfinished ...>") {
                open.insert(thread.to_string(), (number, begin.to_string()));
                continue;
            } else if text.starts_with("<... ") {
                let Some((begun, head)) = open.remove(thread) else { continue };
                (begun, format!("{head}{}", text.split_once("resumed>").map_or("", |(_, rest)| rest)))
            } else {
                (number, text.to_string())
            };
            if text.rsplit_once("= ").is_some_and(|(_, result)| !result.starts_with('-')) {
                calls.push(Call { begun, ended: number, text });
            }
        }
        calls
    }
}

/// Where the answer to a request begins to be written, of the first one that was read after the line `from`.
fn answered(calls: &[Call], request: &str, status: u16, from: usize) -> (usize, usize) {
    let is_read = |call: &&Call| call.text.starts_with("recvfrom(") || call.text.starts_with("read(");
    let asked = |call: &&Call| call.begun >= from && call.text.contains(request);
    let read = calls.iter().filter(is_read).find(asked).expect(request);
    let socket = read.socket().expect("a socket");
    let status = format!("HTTP/1.1 {status} ");
    let answer = calls
        .iter()
        .find(|call| call.ended > read.ended && call.socket() == Some(socket) && call.text.contains(&status));
    (read.ended, answer.unwrap_or_else(|| panic!("{request} is not answered {status}")).begun)
}

/// Checks that a file, and every folder that leads to it from the folder of the data, was synced before the line `by`.
fn assert_durable(calls: &[Call], data: &Path, file: &Path, written_as: &Path, by: usize) {
    let synced = |path: &Path, from: usize| {
        calls.iter().find(|call| call.begun >= from && call.ended < by && call.is_sync_of(path)).map(|call| call.ended)
    };
    let written = synced(written_as, 0).unwrap_or_else(|| panic!("{} is not synced", written_as.display()));
    for folder in file.ancestors().skip(1).take_while(|folder| folder.starts_with(data)) {
        // The folder that names the file after the file has its bytes; those above once they exist.
        let from = if Some(folder) == file.parent() { written } else { 0 };
        assert!(synced(folder, from).is_some(), "{} is not synced before the answer", folder.display());
    }
}

/// The first file below `folder` whose name ends so.
fn find(folder: &Path, end: &str) -> Option<std::path::PathBuf> {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().ends_with(end) {
                return Some(entry.path());
            }
        }
    }
    None
}

/// The name that a file was written under before it got its own by a link.
fn linked_from(calls: &[Call], file: &Path) -> std::path::PathBuf {
    let name = file.file_name().unwrap().to_str().unwrap();
    let folder = file.parent().unwrap();
    let prefix = format!("<{}/", folder.display());
    // strace cuts long strings, so the staged file is known by its sync: `name#number` or `_commit_….tmp` beside it.
    let of_file = |text: &str| {
        let path = text.split_once(&prefix)?.1.split_once('>')?.0;
        (path.starts_with(&format!("{name}#")) || path.starts_with("_commit_")).then(|| folder.join(path))
    };
    let mut synced = calls.iter().filter(|call| call.text.starts_with("fsync("));
    synced.find_map(|call| of_file(&call.text)).unwrap_or_else(|| panic!("{} is not synced", file.display()))
}

#[test]
fn a_publish_is_synced_before_it_is_answered() {
    let Some(mut traced) = Traced::start() else { return };
    let (status, _) = traced.dev.publish(None);
    assert_eq!(status, 200);
    traced.dev.kill();

    let (calls, data) = (traced.calls(), traced.dev.data().canonicalize().unwrap());
    let (request, answer) = answered(&calls, "POST /publish", 200, 0);
    let bus = data.join("bus.redb");
    let synced = calls.iter().any(|call| call.begun >= request && call.ended < answer && call.is_sync_of(&bus));
    assert!(synced, "the bus is synced after the request and before its answer:\n{}", traced.text());
    let named = calls.iter().any(|call| call.ended < answer && call.is_sync_of(&data));
    assert!(named, "the folder that names the bus is synced");
}

#[test]
fn a_push_is_answered_after_its_objects_and_rows_are_synced_with_their_folders() {
    let Some(traced) = Traced::start() else { return };
    let large = format!("{{\"event_id\":\"large\",\"event_name\":[\"{}\"]}}", "x".repeat(300_000));
    traced.dev.publish(Some(&serde_json::from_str(&large).unwrap()));
    traced.dev.publish(Some(&json!({"event_id": "good", "event_name": "click"})));
    let requests = ["POST /batcher HTTP", "POST /batcher/archive", "POST /batcher/dead-letter"];
    traced.wait_for(|text| requests.iter().all(|request| text.contains(request)));
    let data = traced.dev.data().canonicalize().unwrap();
    let (bucket, tables) = (data.join("bucket"), data.join("warehouse/contextflow"));
    let started = Instant::now();
    while find(&bucket.join("clickstream"), ".jsonl.gz").is_none()
        || find(&tables.join("dead_letters"), ".json").is_none()
    {
        assert!(started.elapsed() < PATIENCE, "nothing is archived");
        sleep(Duration::from_millis(100));
    }
    let answers = || traced.text().matches("HTTP/1.1 204 ").count();
    // Raw twice (one message each), enriched to two subscriptions, a dead letter.
    traced.wait_for(|_| answers() >= 5);

    let calls = traced.calls();
    let archived = find(&bucket.join("clickstream"), ".jsonl.gz").unwrap();
    let raw = find(&bucket.join("dead-letter/raw"), ".bin").unwrap();
    let entry = find(&tables.join("clickstream_events/_delta_log"), "00.json").unwrap();
    for (file, request) in [(&archived, requests[1]), (&raw, requests[2]), (&entry, requests[0])] {
        let (_, answer) = answered(&calls, request, 204, 0);
        assert_durable(&calls, &data, file, &linked_from(&calls, file), answer);
    }
    let rows = find(&tables.join("clickstream_events"), ".parquet").unwrap();
    assert_durable(&calls, &data, &rows, &rows, answered(&calls, requests[0], 204, 0).1);
}
