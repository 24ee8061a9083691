//! `contextflow dev`: one event from the button to SQL, and what must not stop it.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use pipeline_tests::binary::{Dev, binary, run, text};
use serde_json::{Value, json};

fn ids(answer: &Value) -> Vec<String> {
    let accepted = answer["accepted"].as_array().cloned().unwrap_or_default();
    accepted.iter().map(|event| event["event_id"].as_str().unwrap_or_default().to_string()).collect()
}

#[test]
fn one_event_goes_from_the_button_to_sql() {
    let mut dev = Dev::start(&[]);
    let (status, answer) = dev.publish(None);
    assert_eq!(status, 200);
    let id = &ids(&answer)[0];

    let sql = "SELECT * FROM contextflow.clickstream_events";
    let rows = dev.wait_for(sql, |rows| rows.len() == 1);
    assert_eq!(rows[0]["event_id"], **id);
    assert_eq!(rows[0]["schema_version"], "1-0-0");
    assert!(rows[0]["country"].is_string() && rows[0]["loaded_at"].is_string());
    let columns: Vec<_> = rows[0].as_object().map(|row| row.keys().cloned().collect()).unwrap_or_default();
    assert!(!columns.contains(&"_partition_date".to_string()), "{columns:?}");

    let trace = dev.get(&format!("/api/trace/{id}"));
    let stages: Vec<_> = trace["stages"]
        .as_array()
        .map(|stages| stages.iter().map(|stage| stage["stage"].clone()).collect())
        .unwrap_or_default();
    assert_eq!(
        (trace["status"].as_str(), stages),
        (Some("landed"), vec![json!("received"), json!("published"), json!("enriched"), json!("landed")])
    );
    assert_eq!(trace["row"]["event_id"], **id);

    assert_eq!(dev.query("SELECT count(*) AS n FROM v_events_per_city"), [json!({"n": 1})]);
    assert!(dev.interrupt() < Duration::from_secs(10));
    assert_eq!(dev.query(sql).len(), 1, "asked while nothing runs");
}

#[test]
fn the_report_says_what_query_says() {
    let dev = Dev::start(&[]);
    let event = json!({"event_id": "twin", "event_name": "click", "event_timestamp": 1_790_000_000});
    let poison = json!({"event_id": "poison", "event_timestamp": "1970-01-01T00:00:00Z"});
    dev.publish(Some(&json!([event, poison, {"event_name": "view"}])));
    dev.wait_for(
        "SELECT (SELECT count(*) FROM clickstream_events) AS rows, (SELECT count(*) FROM dead_letters) AS dead",
        |rows| rows == [json!({"rows": 2, "dead": 1})],
    );
    // The same event after the batcher has forgotten it: it lands again, and the view shows it once.
    let mut dev = dev;
    dev.interrupt();
    dev.start_again();
    dev.publish(Some(&event));
    dev.wait_for("SELECT count(*) AS n FROM clickstream_events", |rows| rows == [json!({"n": 3})]);
    assert_eq!(dev.query("SELECT count(*) AS n FROM contextflow.v_clickstream_events"), [json!({"n": 2})]);
    let counts = &dev.get("/api/report")["counts"];
    assert_eq!(*counts, json!({"landed": 2, "dead_lettered": 1, "duplicates": 1}));
    let letters = dev.query("SELECT reason, stage, event_id, raw FROM dead_letters");
    assert_eq!(letters[0]["reason"], "outside_window");
    assert_eq!((letters[0]["stage"].as_str(), letters[0]["event_id"].as_str()), (Some("enricher"), Some("poison")));
    assert!(letters[0]["raw"].as_str().is_some_and(|raw| raw.contains("1970-01-01")));
}

#[test]
fn a_new_event_type_is_one_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let schema = json!({
        "event_type": "signup", "version": "1-0-0", "ingest": "stream",
        "table": {"dataset": "growth", "name": "signups", "time_partitioning": {"type": "DAY", "field": "at"}},
        "columns": [
            {"name": "at", "type": "TIMESTAMP", "mode": "REQUIRED"},
            {"name": "plan_name", "type": "STRING", "maxLength": "10"},
            {"name": "price", "type": "NUMERIC"},
            {"name": "tags", "type": "STRING", "mode": "REPEATED"},
        ],
    });
    std::fs::write(folder.path().join("signup.json"), schema.to_string()).unwrap();
    let dev = Dev::start(&["--schemas", &folder.path().display().to_string()]);
    let event = json!({"event_type": "signup", "at": "2026-11-20T10:00:00+02:00", "planName": "team", "price": 12.5, "tags": ["a", "b"]});
    let (status, _) = dev.publish(Some(&event));
    assert_eq!(status, 200);
    let rows = dev
        .wait_for("SELECT at, plan_name, CAST(price AS VARCHAR) AS price, tags FROM growth.signups", |rows| {
            rows.len() == 1
        });
    assert_eq!(
        rows[0],
        json!({"at": "2026-11-20T08:00:00Z", "plan_name": "team", "price": "12.500000000", "tags": ["a", "b"]})
    );
}

#[test]
fn no_acknowledged_event_is_lost_by_kill_9() {
    let mut dev = Dev::start(&[]);
    let target = dev.url("");
    let accepted = dev.data().join("accepted");
    let arguments = ["generate", "--rate", "500", "--duration", "9s", "--to", &target, "--accepted-ids"];
    let mut generator = Command::new(binary()).args(arguments).arg(&accepted).spawn().unwrap();
    for pause in [1_700, 2_300, 2_900] {
        sleep(Duration::from_millis(pause));
        dev.kill();
        dev.start_again();
    }
    assert!(generator.wait().unwrap().success());

    let accepted: BTreeSet<String> = std::fs::read_to_string(&accepted).unwrap().lines().map(str::to_string).collect();
    assert_eq!(accepted.len(), 4_500);
    let landed =
        dev.wait_for("SELECT event_id FROM contextflow.v_clickstream_events", |rows| rows.len() >= accepted.len());
    assert_eq!(landed.len(), accepted.len(), "once in the view");
    let landed: BTreeSet<String> =
        landed.iter().map(|row| row["event_id"].as_str().unwrap_or_default().to_string()).collect();
    assert_eq!(landed, accepted);
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(["dev", "--ephemeral", "--port", &port]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains(&format!("port {port} is taken")), "{}", text(&output.stderr));
}

#[test]
fn a_data_folder_that_cannot_be_written_is_a_clear_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = file.path().join("below a file");
    let output = run(["dev", "--port", "0", "--data-dir", &folder.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--data-dir"), "{}", text(&output.stderr));
}

#[test]
fn a_second_pipeline_on_the_same_folder_is_refused() {
    let dev = Dev::start(&[]);
    let output = run(["dev", "--port", "0", "--data-dir", &dev.data().display().to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("another `contextflow dev` runs on this data folder"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    // A limit of the size of each file stands for a full disk; `trap` lets writes fail instead of killing the process.
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 3072; exec \"$0\" \"$@\""]).arg(binary());
    let mut dev = Dev::start_under(limited, &[]);
    let padding = "x".repeat(200_000);
    let mut acknowledged = BTreeSet::new();
    let mut refused = 0;
    for _ in 0..40 {
        let (status, answer) = dev.publish(Some(&json!({"event_name": "big", "user_id": padding})));
        match status {
            200 => acknowledged.extend(ids(&answer)),
            503 => refused += 1,
            other => panic!("{other}: {answer}"),
        }
    }
    assert!(refused > 0, "the limit was not reached");
    dev.kill();
    dev.start_again();
    let all = |rows: &[Value]| {
        let landed: BTreeSet<_> = rows.iter().filter_map(|row| row["event_id"].as_str()).map(str::to_string).collect();
        acknowledged.is_subset(&landed)
    };
    dev.wait_for("SELECT event_id FROM clickstream_events", all);
}

#[test]
fn a_broken_lookup_is_refused_at_start_and_on_reload_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("geo.csv");
    let path = csv.display().to_string();
    std::fs::write(&csv, "first_octet,country,city\n8,US\n").unwrap();
    let output = run(["dev", "--ephemeral", "--port", "0", "--geo", &path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("line 2"), "{}", text(&output.stderr));

    std::fs::write(&csv, "first_octet,country,city\n8,US,Monroe\n").unwrap();
    let dev = Dev::start(&["--geo", &path]);
    let city_of = |id: &str| {
        dev.publish(Some(&json!({"event_id": id, "ip_address": "8.8.8.8"})));
        let sql = format!("SELECT city FROM clickstream_events WHERE event_id = '{id}'");
        dev.wait_for(&sql, |rows| rows.len() == 1)[0]["city"].clone()
    };
    assert_eq!(city_of("first"), "Monroe");
    std::fs::write(&csv, "first_octet,country,city\n8,US,Springfield\n").unwrap();
    sleep(Duration::from_secs(6));
    assert_eq!(city_of("reloaded"), "Springfield");
    std::fs::write(&csv, "first_octet,country,city\n8,US\n").unwrap();
    sleep(Duration::from_secs(6));
    assert_eq!(city_of("broken"), "Springfield");
}

#[test]
fn every_naughty_string_comes_back_byte_for_byte() {
    let dev = Dev::start(&[]);
    let strings = pipeline_tests::naughty_strings();
    for (batch, strings) in strings.chunks(200).enumerate() {
        let events: Vec<_> = strings
            .iter()
            .enumerate()
            .map(|(index, string)| json!({"event_id": format!("s-{}", batch * 200 + index), "event_name": "naughty", "page_url": string}))
            .collect();
        let (status, answer) = dev.publish(Some(&json!(events)));
        assert_eq!((status, ids(&answer).len()), (200, events.len()));
    }
    let rows = dev.wait_for("SELECT event_id, page_url FROM clickstream_events", |rows| rows.len() >= strings.len());
    for row in rows {
        let index: usize = row["event_id"].as_str().and_then(|id| id.strip_prefix("s-")?.parse().ok()).unwrap();
        assert_eq!(row["page_url"], strings[index], "string {index}");
    }
}
