//! The commands as a user types them: results, wrong flags, broken files.

#![expect(clippy::unwrap_used, reason = "a helper of a test may stop it")]

use std::io::Write;
use std::process::{Command, Stdio};

use pipeline_tests::binary::{binary, json_of, run, text};
use serde_json::{Value, json};

const GOOD: &str = r#"{"userId":"u","ipAddress":"8.8.8.8","eventTimestamp":"2026-10-20T02:15:02.92+02:00","extra":1}"#;

fn enrich(input: &[u8], arguments: &[&str]) -> std::process::Output {
    let mut child = Command::new(binary())
        .arg("enrich")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn enrich_is_a_filter() {
    let output = enrich(GOOD.as_bytes(), &[]);
    assert!(output.status.success());
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({"user_id": "u", "ip_address": "8.8.8.8", "event_timestamp": "2026-10-20T00:15:02.920Z", "country": "US", "city": "Monroe"});
    assert_eq!(row, expected);
}

#[test]
fn enrich_adds_system_columns_when_asked() {
    let output = enrich(GOOD.as_bytes(), &["--system-columns"]);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    for column in ["event_id", "received_at", "loaded_at", "schema_version"] {
        assert!(row[column].is_string(), "{column}: {row}");
    }
}

#[test]
fn enrich_names_the_line_of_what_it_cannot_use() {
    let folder = tempfile::tempdir().unwrap();
    let letters = folder.path().join("letters");
    let input = format!("{GOOD}\r\n\n{{\"broken\n{GOOD}\nnull\n\u{feff}{GOOD}");
    let arguments = ["--to", "null", "--json", "--dead-letters", &letters.display().to_string()];
    let output = enrich(input.as_bytes(), &arguments);
    let mut summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    summary.as_object_mut().unwrap().remove("seconds");
    let expected = json!({"read": 5, "written": 2, "dead_lettered": 3, "unknown_geo": 0, "max_timestamp": "2026-10-20T00:15:02.920Z"});
    assert_eq!(summary, expected);
    let letters = std::fs::read_to_string(letters).unwrap();
    let letters: Vec<Value> = letters.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = letters
        .iter()
        .map(|letter| (letter["line"].clone(), letter["reason"].clone(), letter["raw"].clone()))
        .collect();
    assert_eq!(found[0], (json!(3), json!("bad_json"), json!("{\"broken")));
    assert_eq!(found[1], (json!(5), json!("not_an_object"), json!("null")));
    assert_eq!(found[2].1, "bad_json");
}

#[test]
fn enrich_fails_when_nothing_could_be_used() {
    assert_eq!(enrich(b"nonsense\n", &["--to", "null"]).status.code(), Some(1));
    assert_eq!(enrich(b"", &["--to", "null"]).status.code(), Some(0));
}

#[test]
fn enrich_writes_parquet() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("rows.parquet");
    let output =
        enrich(format!("{GOOD}\n{GOOD}\n").as_bytes(), &["--to", "parquet", "--out", &out.display().to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = std::fs::read(out).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
}

#[test]
fn the_same_seed_makes_the_same_visits() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, seed: &str| {
        let path = folder.path().join(name).display().to_string();
        let summary = json_of(["generate", "--count", "50", "--seed", seed, "--to", &path, "--json"]);
        assert_eq!((&summary["sent"], &summary["accepted"], &summary["failed"]), (&json!(50), &json!(50), &json!(0)));
        let lines = std::fs::read_to_string(path).unwrap();
        let field =
            |event: &Value, names: [&str; 2]| names.iter().find_map(|name| event[name].as_str().map(str::to_string));
        let users = lines.lines().map(|line| field(&serde_json::from_str(line).unwrap(), ["user_id", "userId"]));
        users.collect::<Vec<_>>()
    };
    assert_eq!(make("a", "1"), make("b", "1"));
    assert_ne!(make("a", "1"), make("c", "2"));
}

#[test]
fn visits_become_a_stream_with_the_same_ids_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let visits = folder.path().join("visits");
    std::fs::create_dir(&visits).unwrap();
    let visit = json!({"session_id": "s", "user_id": "u", "device_type": "mobile", "events": [
        {"event": {"event_type": "page_view", "timestamp": "2024-07-01T09:00:00", "details": {"page_url": "https://x"}}},
        {"event": {"event_type": "purchase", "timestamp": "2024-07-01T09:01:00", "details": {"order_id": "o"}}},
    ]});
    std::fs::write(visits.join("visits-2024-07-01.jsonl"), format!("{visit}\nno visit\n")).unwrap();
    let make = |name: &str| {
        let path = folder.path().join(name).display().to_string();
        let from = visits.display().to_string();
        let summary = json_of(["generate", "--from", &from, "--rate", "1000", "--to", &path, "--json"]);
        assert_eq!((&summary["sent"], &summary["failed"]), (&json!(2), &json!(0)));
        let events = std::fs::read_to_string(path).unwrap();
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let (first, second) = (make("a"), make("b"));
    let ids = |events: &[Value]| events.iter().map(|event| event["event_id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(first[1]["event_name"], "purchase");
    assert!(first[0]["event_timestamp"].as_str() > Some("2026"));
}

#[test]
fn schemas_are_listed_checked_and_printed() {
    let list = run(["schema", "list"]);
    assert!(text(&list.stdout).contains("contextflow.clickstream_events"));
    let ddl = run(["schema", "ddl", "clickstream"]);
    assert!(text(&ddl.stdout).contains("PARTITION BY DATE(`event_timestamp`)\nCLUSTER BY `event_name`, `country`"));
    let json = json_of(["schema", "ddl", "order", "--json"]);
    assert_eq!(
        json[4]["fields"][3],
        json!({"name": "price", "type": "NUMERIC", "mode": "NULLABLE", "description": "Price of one"})
    );

    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json").display().to_string();
    std::fs::write(
        &broken,
        r#"{"event_type":"x","version":"1-0-0","ingest":"public","table":{"dataset":"d","name":"t"},
        "columns":[{"name":"a","type":"TEXT"}]}"#,
    )
    .unwrap();
    let check = run(["schema", "check", &broken]);
    assert_eq!(check.status.code(), Some(2));
    let error = text(&check.stderr);
    assert!(
        error.contains(&broken) && error.contains("columns.a") && error.contains("`TEXT` is not supported"),
        "{error}"
    );
}

#[test]
fn wrong_usage_says_what_to_do() {
    let missing = tempfile::tempdir().unwrap();
    let nowhere = missing.path().join("nothing").display().to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["enrich", "--in", &nowhere], "No such file"),
        (&["enrich", "--schema", "nonsense"], "neither a file nor one of"),
        (&["enrich", "--to", "parquet"], "--out PATH"),
        (&["enrich", "--geo", &nowhere], "--geo"),
        (&["query", "--data-dir", &nowhere, "SELECT 1"], "run `contextflow dev` first"),
        (&["generate", "--to", &nowhere], "--count N"),
        (&["generate", "--rate", "fast"], "invalid value"),
        (&["nonsense"], "unrecognized subcommand"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn an_unreachable_publisher_fails_the_generator() {
    let arguments = ["generate", "--count", "3", "--retry-for", "300ms", "--to", "http://127.0.0.1:9", "--json"];
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["failed"], &summary["accepted"]), (&json!(3), &json!(0)));
}
