//! What an operator looks at: the monitors' queries over tables with known faults, and the files of Cloud Monitoring
//! against the lines that the functions really write.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use pipeline_tests::binary::{program_in_path, text};
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{
    BatcherFixture, ENRICHED_SUB, EnricherFixture, RAW_SUB, ScriptedSink, built_in, parts, push_from,
};
use serde_json::{Value, json};
use shared::catalog::{Answer, BigQuery, Wanted, diff};
use shared::clock::Clock;
use shared::dead_letter::Reason;
use shared::decode::{Code, time};
use shared::schema::Registry;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
use shared::sink::{Batch, Outcome, Sink};
use shared::telemetry;

fn infra(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("infra").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder below `infra`, by their names without ending.
fn files(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(infra(folder)).unwrap().map(|entry| entry.unwrap().path());
    let wanted = entries.filter(|path| path.extension().is_some_and(|found| found == ending));
    wanted.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_string(), read(&path))).collect()
}

/// The monitor's question as it would have been asked at noon of 2024-07-10.
fn asked_then(monitor: &str) -> String {
    let mut sql = read(&infra(&format!("sql/monitors/{monitor}.sql")));
    let clocks = [
        ("CURRENT_DATE('UTC')", "DATE '2024-07-10'"),
        ("CURRENT_DATE('America/Los_Angeles')", "DATE '2024-07-10'"),
        ("CURRENT_TIMESTAMP()", "TIMESTAMP '2024-07-10 12:00:00+00'"),
    ];
    for (clock, then) in clocks {
        sql = sql.replacen(clock, then, 1);
    }
    assert!(!sql.contains("CURRENT_"), "{monitor} asks the clock once, where it declares its parameters");
    sql
}

async fn append(sink: &BigQuerySink, registry: &Registry, event_type: &str, loaded_at: &str, rows: &[Value]) {
    let plan = Arc::clone(registry.get(event_type).unwrap());
    let rows: Vec<_> = rows.iter().map(|row| Bytes::from(row.to_string())).collect();
    let done = vec![Outcome::Done; rows.len()];
    let batch = Batch { plan, rows, loaded_at: time::timestamp(loaded_at).unwrap() };
    assert_eq!(sink.append(&batch).await, done, "{event_type} loaded at {loaded_at}");
}

/// A click that is as it should be, but for what `others` says.
fn click(id: &str, at: &str, received_at: &str, others: &Value) -> Value {
    let mut row = json!({
        "event_timestamp": at, "event_id": id, "received_at": received_at, "schema_version": "1-0-0", "country": "US",
    });
    row.as_object_mut().unwrap().extend(others.as_object().cloned().unwrap_or_default());
    row
}

/// Fills the streaming tables with what a fortnight may bring.
async fn fill(sink: &BigQuerySink, registry: &Registry) {
    let add = async |loaded_at: &str, rows: &[Value]| append(sink, registry, "clickstream", loaded_at, rows).await;
    // Before what the monitors look at.
    let (at, received) = ("2024-06-25T23:59:59Z", "2024-06-25T23:59:59Z");
    add("2024-06-26T00:00:00Z", &[click("old", at, received, &json!({}))]).await;
    // Three full days, with a day between them that has no row.
    for day in ["2024-07-04", "2024-07-05", "2024-07-07"] {
        let (at, received) = (format!("{day}T10:00:00Z"), format!("{day}T10:00:01Z"));
        let rows: Vec<_> = (0..20).map(|n| click(&format!("{day}-{n}"), &at, &received, &json!({}))).collect();
        add(&format!("{day}T10:00:02Z"), &rows).await;
    }
    // A tiny day; its row has no id and no receipt.
    let tiny = click("", "2024-07-08T10:00:00Z", "", &json!({"event_id": null, "received_at": null}));
    add("2024-07-08T10:00:02Z", &[tiny]).await;
    // Few rows, but not too few: one event twice, of two versions, from nowhere; its id at another time is another row.
    let (at, received) = ("2024-07-09T10:00:00Z", "2024-07-09T10:00:01Z");
    let rows = [
        click("twice", at, received, &json!({"country": "Unknown"})),
        click("twice", at, received, &json!({"country": null, "schema_version": "1-0-1"})),
        click("twice", "2024-07-09T10:00:00.000001Z", received, &json!({})),
    ];
    add("2024-07-09T10:00:02Z", &rows).await;
    // Today: 101 rows that took 0 to 100 ms, the last one late by a second, the one before not.
    let received: Vec<_> = (0..=100).map(|millis| format!("2024-07-10T11:49:59.{:03}Z", 999 - millis)).collect();
    let mut rows: Vec<_> = received.iter().map(|at| click(at, at, at, &json!({}))).collect();
    rows[99]["event_timestamp"] = json!("2024-07-10T11:39:59.900Z");
    rows[100]["event_timestamp"] = json!("2024-07-10T11:39:58.899Z");
    add("2024-07-10T11:49:59.999Z", &rows).await;
    // Tomorrow but one.
    let future = click("future", "2024-07-12T00:00:00Z", "2024-07-10T11:58:00Z", &json!({}));
    add("2024-07-10T11:58:00.250Z", &[future]).await;

    let orders = [
        json!({"order_date": "2024-07-09T10:00:00Z", "event_id": "o1", "received_at": "2024-07-09T10:00:01Z",
            "schema_version": "1-0-0"}),
        json!({"event_id": "o2", "received_at": "2024-07-09T10:00:01Z"}),
    ];
    append(sink, registry, "order", "2024-07-09T10:00:02Z", &orders).await;
    // Few rows so far today, which is no fault.
    let moved =
        |id: &str, at: &str| json!({"timestamp": at, "event_id": id, "received_at": at, "schema_version": "1-0-0"});
    let yesterday: Vec<_> = (0..20).map(|n| moved(&n.to_string(), "2024-07-09T10:00:00Z")).collect();
    append(sink, registry, "inventory", "2024-07-09T10:00:02Z", &yesterday).await;
    let today = [moved("20", "2024-07-10T11:58:00Z")];
    append(sink, registry, "inventory", "2024-07-10T11:58:00.1Z", &today).await;
    let activity = json!({"timestamp": "2024-07-10T11:58:00Z", "country": "Unknown", "event_id": "a1",
        "received_at": "2024-07-10T11:58:00Z", "schema_version": "1-0-0"});
    append(sink, registry, "user_activity", "2024-07-10T11:58:00.150Z", &[activity]).await;
}

/// What Cloud Billing exports, in its form.
async fn fill_billing(bigquery: &BigQuery) {
    let statements = [
        "CREATE SCHEMA billing",
        "CREATE TABLE billing.gcp_billing_export_v1_0X0X0X_0X0X0X_0X0X0X (
            billing_account_id STRING, service STRUCT<id STRING, description STRING>,
            sku STRUCT<id STRING, description STRING>, usage_start_time TIMESTAMP, usage_end_time TIMESTAMP,
            project STRUCT<id STRING, number STRING, name STRING>, labels ARRAY<STRUCT<key STRING, value STRING>>,
            location STRUCT<location STRING, country STRING, region STRING, zone STRING>, export_time TIMESTAMP,
            cost FLOAT64, currency STRING, currency_conversion_rate FLOAT64,
            usage STRUCT<amount FLOAT64, unit STRING>, credits ARRAY<STRUCT<name STRING, amount FLOAT64>>,
            invoice STRUCT<month STRING>, cost_type STRING)",
        "INSERT INTO billing.gcp_billing_export_v1_0X0X0X_0X0X0X_0X0X0X
            (service, usage_start_time, project, cost, currency, credits) VALUES
            (STRUCT('1', 'BigQuery'), TIMESTAMP '2024-07-10 03:00:00+00', STRUCT('demo', '1', 'd'), 1.25, 'USD',
             [STRUCT('a', -0.25), STRUCT('b', -0.5)]),
            (STRUCT('1', 'BigQuery'), TIMESTAMP '2024-07-09 20:00:00+00', STRUCT('demo', '1', 'd'), 0.5, 'USD', []),
            (STRUCT('2', 'Cloud Run'), TIMESTAMP '2024-07-10 08:00:00+00', STRUCT('demo', '1', 'd'), 2.0, 'USD', []),
            (STRUCT('3', 'Support'), TIMESTAMP '2024-07-10 08:00:00+00', NULL, 9.0, 'USD', []),
            (STRUCT('1', 'BigQuery'), TIMESTAMP '2024-06-09 08:00:00+00', STRUCT('demo', '1', 'd'), 99.0, 'USD', [])",
    ];
    for statement in statements {
        bigquery.query(statement).await.unwrap();
    }
}

/// What each monitor answers of the rows of [`fill`] and [`fill_billing`].
fn answers() -> [(&'static str, Value); 4] {
    let clicks = "contextflow.clickstream_events";
    let (stock, orders) = ("backend_events.inventory", "backend_events.orders");
    let activities = "backend_events.user_activity";
    [
        (
            "latency_by_minute",
            json!([
                [stock, "2024-07-10T11:58:00Z", 1, 100, 100, 100],
                [activities, "2024-07-10T11:58:00Z", 1, 150, 150, 150],
                [clicks, "2024-07-10T11:49:00Z", 101, 50, 99, 100],
                [clicks, "2024-07-10T11:58:00Z", 1, 250, 250, 250],
            ]),
        ),
        (
            "partitions_by_day",
            json!([
                [stock, "2024-07-09", 20, "2024-07-09T10:00:02Z", "ok"],
                [stock, "2024-07-10", 1, "2024-07-10T11:58:00.100Z", "ok"],
                [orders, null, 1, "2024-07-09T10:00:02Z", "no day"],
                [orders, "2024-07-09", 1, "2024-07-09T10:00:02Z", "ok"],
                [orders, "2024-07-10", 0, null, "missing"],
                [activities, "2024-07-10", 1, "2024-07-10T11:58:00.150Z", "ok"],
                [clicks, "2024-07-04", 20, "2024-07-04T10:00:02Z", "ok"],
                [clicks, "2024-07-05", 20, "2024-07-05T10:00:02Z", "ok"],
                [clicks, "2024-07-06", 0, null, "missing"],
                [clicks, "2024-07-07", 20, "2024-07-07T10:00:02Z", "ok"],
                [clicks, "2024-07-08", 1, "2024-07-08T10:00:02Z", "small"],
                [clicks, "2024-07-09", 3, "2024-07-09T10:00:02Z", "ok"],
                [clicks, "2024-07-10", 101, "2024-07-10T11:49:59.999Z", "ok"],
                [clicks, "2024-07-12", 1, "2024-07-10T11:58:00.250Z", "future"],
            ]),
        ),
        (
            "validation",
            json!([
                [stock, "2024-07-09", 20, 0, null, null, 0, 0, "1-0-0"],
                [stock, "2024-07-10", 1, 0, null, null, 0, 0, "1-0-0"],
                [orders, null, 1, 2, "order_date, schema_version", null, 0, 0, null],
                [orders, "2024-07-09", 1, 0, null, null, 0, 0, "1-0-0"],
                [activities, "2024-07-10", 1, 0, null, 1.0, 0, 0, "1-0-0"],
                [clicks, "2024-07-04", 20, 0, null, 0.0, 0, 0, "1-0-0"],
                [clicks, "2024-07-05", 20, 0, null, 0.0, 0, 0, "1-0-0"],
                [clicks, "2024-07-07", 20, 0, null, 0.0, 0, 0, "1-0-0"],
                [clicks, "2024-07-08", 1, 2, "event_id, received_at", 0.0, 0, 0, "1-0-0"],
                [clicks, "2024-07-09", 3, 0, null, 2.0 / 3.0, 1, 0, "1-0-0, 1-0-1"],
                [clicks, "2024-07-10", 101, 0, null, 0.0, 0, 1, "1-0-0"],
                [clicks, "2024-07-12", 1, 0, null, 0.0, 0, 0, "1-0-0"],
            ]),
        ),
        (
            "cost_by_day",
            json!([
                ["2024-07-09", "demo", "BigQuery", 1.75, -0.75, 1.0, "USD"],
                ["2024-07-10", null, "Support", 9.0, 0.0, 9.0, "USD"],
                ["2024-07-10", "demo", "Cloud Run", 2.0, 0.0, 2.0, "USD"],
            ]),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_monitor_finds_the_faults_of_the_tables() {
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let settings = Settings::from_iter([
        ("GOOGLE_CLOUD_PROJECT", PROJECT),
        ("BIGQUERY_REST_ENDPOINT", &server.rest),
        ("BIGQUERY_GRPC_ENDPOINT", &server.grpc),
    ]);
    let bigquery = BigQuery::new(&settings, PROJECT, None).await.unwrap();
    let registry = built_in();
    let wanted = Wanted::of(&registry, PROJECT, None);
    bigquery.apply(&diff(&wanted, &bigquery.read(&wanted).await.unwrap())).await.unwrap();
    fill(&BigQuerySink::new(&settings, Clock::system()).unwrap(), &registry).await;
    fill_billing(&bigquery).await;
    let mut checked = BTreeSet::from(["bytes_by_partition"]);
    for (monitor, expected) in answers() {
        let answer = bigquery.query(&asked_then(monitor)).await.unwrap_or_else(|error| panic!("{monitor}: {error}"));
        assert_eq!(json!(answer.rows), expected, "{monitor}");
        checked.insert(monitor);
    }
    let answer = bigquery.query(&asked_then("bytes_by_partition")).await.unwrap();
    assert_eq!(partitions(&answer), partitions_of_the_rows());
    as_they_are(&bigquery, &checked).await;
    view_of_the_last_days(&bigquery).await;
}

/// Asks them as an operator does, the files unchanged: each is among those that were checked, and says what it answers.
async fn as_they_are(bigquery: &BigQuery, checked: &BTreeSet<&str>) {
    let monitors = files("sql/monitors", "sql");
    assert_eq!(monitors.keys().map(String::as_str).collect::<BTreeSet<_>>(), *checked, "each monitor is checked");
    let listed = read(&infra("sql/README.md"));
    for (monitor, sql) in &monitors {
        let answer = bigquery.query(sql).await.unwrap_or_else(|error| panic!("{monitor}: {error}"));
        let head: String = sql.lines().take_while(|line| line.starts_with("--")).collect();
        for column in &answer.columns {
            assert!(head.contains(column.as_str()), "the head of {monitor} says nothing of {column}");
        }
        assert!(head.contains("Reads "), "the head of {monitor} does not say what it costs");
        assert!(listed.contains(&format!("`{monitor}`")), "infra/sql/README.md does not list {monitor}");
    }
}

/// The view looks at the last 7 days by itself, and shows a row once.
async fn view_of_the_last_days(bigquery: &BigQuery) {
    let row = |city: &str, days: u8| {
        let at = format!("TIMESTAMP_SUB(TIMESTAMP_TRUNC(CURRENT_TIMESTAMP(), HOUR), INTERVAL {days} DAY)");
        format!("({at}, 'id', 'page_view', 'US', '{city}')")
    };
    let rows = [row("new", 6), row("new", 6), row("old", 8)].join(", ");
    let insert = "INSERT INTO contextflow.clickstream_events (event_timestamp, event_id, event_name, country, city)";
    bigquery.query(&format!("{insert} VALUES {rows}")).await.unwrap();
    let view = "SELECT country, city, event_name, events FROM contextflow.v_events_per_city";
    assert_eq!(json!(bigquery.query(view).await.unwrap().rows), json!([["US", "new", "page_view", 1]]));
}

/// Table, partition and rows. What bqemulator gets wrong has to stay marked, and not longer.
fn partitions(answer: &Answer) -> Value {
    let (whole, parted): (Vec<_>, Vec<_>) =
        answer.rows.iter().partition(|row| row[0] == "contextflow.dead_letter_replays");
    let is_wrong = [answer.rows.iter().all(|row| row[3] == 0), whole.iter().any(|row| row[1] == "__NULL__")];
    let marks = ["logical_bytes is 0", "partition_id of a table without partitions is __NULL__"];
    let sql = read(&infra("sql/monitors/bytes_by_partition.sql"));
    assert_eq!(is_wrong, marks.map(|mark| sql.contains(mark)), "a mark is out of date: {:?}", answer.rows);
    parted.iter().map(|row| row[..3].to_vec()).collect()
}

fn partitions_of_the_rows() -> Value {
    let clicks = "contextflow.clickstream_events";
    json!([
        ["backend_events.inventory", "20240709", 20],
        ["backend_events.inventory", "20240710", 1],
        ["backend_events.orders", "20240709", 1],
        ["backend_events.orders", "__NULL__", 1],
        ["backend_events.user_activity", "20240710", 1],
        [clicks, "20240625", 1],
        [clicks, "20240704", 20],
        [clicks, "20240705", 20],
        [clicks, "20240707", 20],
        [clicks, "20240708", 1],
        [clicks, "20240709", 3],
        [clicks, "20240710", 101],
        [clicks, "20240712", 1],
    ])
}

/// Logs what the enricher logs of a push with two events and three faults.
#[tokio::test]
#[ignore = "started by the test that reads its log"]
async fn the_enricher_writes_its_log() {
    telemetry::init("info", Some(PROJECT));
    let enricher = EnricherFixture::start().await;
    let good = r#"{"event_timestamp": "2026-10-20T00:15:00Z", "event_name": "page_view"}"#;
    let lines = [good, "no JSON", good, r#"{"event_timestamp": 1.5e300}"#, "nor this"].join("\n");
    let answer = enricher.push(push_from(RAW_SUB, "1", &[], lines)).await;
    assert_eq!((answer.status.as_u16(), enricher.rows().len(), enricher.letters().len()), (204, 2, 3));
}

/// Logs what the batcher logs of a pack of which one row lands, one is refused and one has to wait.
#[tokio::test]
#[ignore = "started by the test that reads its log"]
async fn the_batcher_writes_its_log() {
    telemetry::init("info", Some(PROJECT));
    let batcher = BatcherFixture::<ScriptedSink>::start();
    batcher.sink.answer("wait", Outcome::Retry("busy".into()));
    batcher.sink.answer("bad", Outcome::Poison(Reason { code: Code::WrongType, detail: String::new() }));
    let row = |id| {
        format!(
            r#"{{"event_timestamp":"2026-10-20T00:15:00Z","event_id":"{id}","received_at":"2026-10-20T00:15:00.250Z"}}"#
        )
    };
    let pack = push_from(ENRICHED_SUB, "1", &[("event_type", "clickstream")], ["a", "bad", "wait"].map(row).join("\n"));
    let answer = batcher.push("/", pack).await;
    assert_eq!((answer.status.as_u16(), batcher.letters().len()), (204, 1));
}

/// The entries that Cloud Logging makes of what a service writes to standard error.
fn log_of(service: &str) -> Vec<Value> {
    let test = format!("the_{service}_writes_its_log");
    let mut process = Command::new(std::env::current_exe().unwrap());
    let output = process.args(["--exact", &test, "--ignored", "--nocapture"]).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let lines: Vec<Value> = text(&output.stderr).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(!lines.is_empty(), "{service} logs nothing: {}", text(&output.stdout));
    lines.into_iter().map(|line| entry(service, line)).collect()
}

fn entry(service: &str, mut line: Value) -> Value {
    let severity = line.as_object_mut().unwrap().remove("severity");
    let resource = json!({"type": "cloud_run_revision", "labels": {"service_name": service}});
    json!({"resource": resource, "severity": severity, "jsonPayload": line})
}

/// A member by its path, `jsonPayload.metrics.received`.
fn member<'a>(entry: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(entry, |value, name| &value[name])
}

/// Whether a filter takes an entry. It knows of Logging's language what the files use: comparisons with AND between them,
/// `=("a" OR "b")`, and the order of severities.
fn takes(filter: &str, entry: &Value) -> bool {
    filter.split(" AND ").all(|comparison| {
        let at = comparison.find(['=', '>']).unwrap_or_else(|| panic!("no comparison: {comparison}"));
        let (path, rest) = comparison.split_at(at);
        let value = rest.trim_start_matches(['=', '>']);
        let wanted = value.trim_matches(['(', ')']).split(" OR ");
        let wanted: Vec<Value> = wanted.map(|value| serde_json::from_str(value).expect(value)).collect();
        let found = member(entry, path);
        let severity = |value: &Value| {
            let names = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"];
            names.iter().position(|name| value == name).unwrap_or_else(|| panic!("no severity: {value}"))
        };
        match rest.strip_suffix(value).unwrap() {
            "=" => wanted.contains(found),
            ">" => found.as_f64() > wanted[0].as_f64(),
            ">=" if path == "severity" => severity(found) >= severity(&wanted[0]),
            other => panic!("{other} in {comparison}"),
        }
    })
}

#[test]
fn log_metrics_read_what_the_functions_write() {
    let entries: Vec<Value> = ["enricher", "batcher"].iter().flat_map(|service| log_of(service)).collect();
    let metrics = files("gcp/monitoring/log-metrics", "json");
    let mut values: BTreeMap<String, BTreeMap<&str, f64>> = BTreeMap::new();
    for (name, file) in &metrics {
        let metric: Value = serde_json::from_str(file).unwrap();
        let extract = metric["valueExtractor"].as_str().map(|extractor| {
            extractor.strip_prefix("EXTRACT(").and_then(|rest| rest.strip_suffix(')')).expect("EXTRACT(path)")
        });
        let is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION";
        assert!(metric["metricDescriptor"]["metricKind"] == "DELTA" && is_distribution == extract.is_some(), "{name}");
        for entry in entries.iter().filter(|entry| takes(metric["filter"].as_str().unwrap(), entry)) {
            // A counter counts entries; of a distribution the values are added up.
            let value = extract.map_or(Some(1.0), |path| member(entry, path).as_f64());
            let value = value.unwrap_or_else(|| panic!("{name} extracts no number from {entry}"));
            let service = entry["resource"]["labels"]["service_name"].as_str().unwrap();
            *values.entry(name.clone()).or_default().entry(service).or_default() += value;
        }
    }
    // How often a row is tried again within the budget is a matter of time.
    let tried = ["contextflow_append_errors", "contextflow_retries"].map(|name| values.remove(name).unwrap());
    assert!(tried[0]["batcher"] >= 1.0 && tried[0] == tried[1], "one row a try: {tried:?}");
    let expected = json!({
        "contextflow_received": {"enricher": 5.0, "batcher": 3.0},
        "contextflow_landed": {"enricher": 2.0, "batcher": 1.0},
        "contextflow_dead_letters": {"enricher": 3.0, "batcher": 1.0},
        "contextflow_received_to_loaded_p99": {"batcher": 3000.0},
    });
    assert_eq!(json!(values), expected);
    assert_eq!(values.len() + tried.len(), metrics.len());
}

#[test]
fn the_bound_of_the_latency_alert_lies_between_the_reports_own() {
    let metric: Value =
        serde_json::from_str(&files("gcp/monitoring/log-metrics", "json")["contextflow_received_to_loaded_p99"])
            .unwrap();
    let bounds: Vec<f64> = metric["bucketOptions"]["explicitBuckets"]["bounds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bound| bound.as_f64().unwrap())
        .collect();
    // What the report may say, each in a bucket of its own.
    let metrics = shared::metrics::Metrics::new(Clock::manual(0)).text();
    let reported = metrics.lines().filter_map(|line| {
        line.strip_prefix("contextflow_received_to_loaded_millis_bucket{le=\"")?.split('"').next()?.parse::<f64>().ok()
    });
    let reported: Vec<f64> = reported.filter(|bound| bound.is_finite()).collect();
    let buckets: BTreeSet<_> =
        reported.iter().map(|value| bounds.iter().filter(|bound| *bound <= value).count()).collect();
    assert!(reported.len() > 10 && buckets.len() == reported.len(), "{reported:?} in {bounds:?}");
    assert!(bounds.contains(&2500.0), "received-to-loaded.json asks for what is over 2500");
}

/// The alerts that there are to be, each with what it watches.
const ALERTS: [(&str, &str); 9] = [
    ("oldest-unacked", "pubsub.googleapis.com/subscription/oldest_unacked_message_age"),
    ("dead-letters", "user_contextflow_dead_letters_sum"),
    ("server-errors", "response_code_class=\"5xx\""),
    ("append-errors", "user_contextflow_append_errors{"),
    ("received-to-loaded", "user_contextflow_received_to_loaded_p99_bucket"),
    ("no-events", "[${NO_EVENTS_MINUTES}m]"),
    ("flood", "> ${FLOOD_PER_MINUTE}"),
    ("backstop", "pubsub.googleapis.com/subscription/dead_letter_message_count"),
    ("kill-switch", "service_name=\"kill-switch\" AND severity>=\"ERROR\""),
];

#[test]
fn every_alert_watches_and_says_what_to_do() {
    let mut alerts = files("gcp/monitoring/alerts", "json");
    for (name, watches) in ALERTS {
        let alert: Value = serde_json::from_str(&alerts.remove(name).unwrap_or_else(|| panic!("no {name}"))).unwrap();
        assert!(alert["displayName"].as_str().unwrap().starts_with("ContextFlow: "), "{name}");
        assert_eq!((&alert["combiner"], &alert["enabled"]), (&json!("OR"), &json!(true)), "{name}");
        assert_eq!(alert["notificationChannels"], json!(["${NOTIFICATION_CHANNEL}"]), "{name}");
        let documentation = &alert["documentation"];
        assert_eq!(documentation["mimeType"], "text/markdown", "{name}");
        for part in ["**Means:**", "**Look at:**", "**Do:**"] {
            assert!(documentation["content"].as_str().unwrap().contains(part), "{name} lacks {part}");
        }
        let [condition] = alert["conditions"].as_array().unwrap().as_slice() else { panic!("{name}: one condition") };
        let mut members = condition.as_object().unwrap().iter();
        let (kind, how) = members.find(|(member, _)| member.starts_with("condition")).unwrap();
        let asked = match kind.as_str() {
            "conditionPrometheusQueryLanguage" => {
                assert_eq!(how["disableMetricValidation"], json!(true), "{name} is made before its metric has a value");
                how["query"].as_str().unwrap()
            }
            "conditionThreshold" => {
                assert!(how["thresholdValue"].is_number() && how["comparison"] == "COMPARISON_GT", "{name}");
                how["filter"].as_str().unwrap()
            }
            "conditionMatchedLog" => {
                assert!(
                    alert["alertStrategy"]["notificationRateLimit"].is_object(),
                    "{name}: Google wants a rate limit"
                );
                how["filter"].as_str().unwrap()
            }
            other => panic!("{name}: {other}"),
        };
        assert!(asked.contains(watches), "{name} watches {asked}");
    }
    assert!(alerts.is_empty(), "not expected: {:?}", alerts.keys());
}

#[test]
fn an_error_of_the_kill_switch_alerts() {
    let alert: Value = serde_json::from_str(&files("gcp/monitoring/alerts", "json")["kill-switch"]).unwrap();
    let filter = alert["conditions"][0]["conditionMatchedLog"]["filter"].as_str().unwrap();
    let cases = [("kill-switch", "CRITICAL"), ("kill-switch", "ERROR"), ("kill-switch", "INFO"), ("batcher", "ERROR")];
    let taken = cases.map(|(service, severity)| takes(filter, &entry(service, json!({"severity": severity}))));
    assert_eq!(taken, [true, true, false, false]);
}

/// The queries in `PromQL` of a file.
fn queries(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let own = members.iter().filter(|(name, _)| ["query", "prometheusQuery"].contains(&name.as_str()));
            let own = own.filter_map(|(_, query)| query.as_str().map(str::to_string));
            own.chain(members.values().flat_map(queries)).collect()
        }
        Value::Array(elements) => elements.iter().flat_map(queries).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn dashboard_and_alerts_use_the_metrics_that_are_defined() {
    let defined = files("gcp/monitoring/log-metrics", "json");
    let mut series = BTreeMap::new();
    for (name, file) in &defined {
        let metric: Value = serde_json::from_str(file).unwrap();
        let is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION";
        let suffixes: &[&str] = if is_distribution { &["_sum", "_count", "_bucket"] } else { &[""] };
        series.extend(suffixes.iter().map(|suffix| (format!("{name}{suffix}"), name.as_str())));
    }
    let mut charted = BTreeSet::new();
    let dashboard = read(&infra("gcp/monitoring/dashboard.json"));
    let alerts = files("gcp/monitoring/alerts", "json");
    for (file, text) in alerts.iter().map(|(name, text)| (name.as_str(), text)).chain([("dashboard", &dashboard)]) {
        for query in queries(&serde_json::from_str(text).unwrap()) {
            for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
                assert_eq!(query.matches(open).count(), query.matches(close).count(), "{file}: {query}");
            }
            for rest in query.split("logging_googleapis_com:user_").skip(1) {
                let (name, _) = rest.split_once("{monitored_resource=\"cloud_run_revision\"").expect("its resource");
                let metric = series.get(name).unwrap_or_else(|| panic!("{file} asks for {name}, which is not defined"));
                if file == "dashboard" {
                    charted.insert(*metric);
                }
            }
        }
    }
    assert_eq!(charted, defined.keys().map(String::as_str).collect(), "every metric is on the dashboard");
}

#[test]
fn the_dashboards_tiles_lie_beside_one_another() {
    let dashboard: Value = serde_json::from_str(&read(&infra("gcp/monitoring/dashboard.json"))).unwrap();
    let columns = dashboard["mosaicLayout"]["columns"].as_u64().unwrap();
    let mut taken = BTreeSet::new();
    for tile in dashboard["mosaicLayout"]["tiles"].as_array().unwrap() {
        let of = |name: &str| tile[name].as_u64().unwrap_or_else(|| panic!("{name} of {tile}"));
        let title = tile["widget"]["title"].as_str().unwrap();
        assert!(of("xPos") + of("width") <= columns, "{title} is too wide");
        for (x, y) in (0..of("width")).flat_map(|x| (0..of("height")).map(move |y| (x, y))) {
            assert!(taken.insert((of("xPos") + x, of("yPos") + y)), "{title} lies on another tile");
        }
    }
    assert!(taken.len() > 1_000);
}

#[test]
fn what_deploy_fills_in_is_all_that_stands_open() {
    let mut open = BTreeSet::new();
    for folder in ["gcp/monitoring", "gcp/monitoring/alerts", "gcp/monitoring/log-metrics"] {
        for text in files(folder, "json").values() {
            open.extend(text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap().to_string()));
        }
    }
    let known = ["FLOOD_PER_MINUTE", "GCP_PROJECT", "NOTIFICATION_CHANNEL", "NO_EVENTS_MINUTES"];
    assert_eq!(open, known.map(String::from).into());
}

/// The clients that come with the gcloud CLI are made from Google's own descriptions of its APIs.
#[test]
fn google_knows_every_member_of_the_files() {
    let gcloud = program_in_path("gcloud").and_then(|gcloud| std::fs::canonicalize(gcloud).ok());
    let sdk = gcloud.as_deref().and_then(|gcloud| gcloud.ancestors().nth(2)).map(|sdk| sdk.join("lib"));
    let (Some(sdk), Some(python)) = (sdk.filter(|sdk| sdk.is_dir()), program_in_path("python3")) else {
        eprintln!("not read by Google's clients: the gcloud CLI is not on this machine");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/google_messages.py");
    let output = Command::new(python).arg(script).arg(sdk).arg(infra("gcp/monitoring")).output().unwrap();
    let files = 1 + ALERTS.len() + files("gcp/monitoring/log-metrics", "json").len();
    assert_eq!((text(&output.stdout), text(&output.stderr)), (format!("{files} files\n"), String::new()));
}
