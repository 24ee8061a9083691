//! The monitors' queries over tables with known faults.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use pipeline_tests::infra::{files, infra, read};
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{built_in, parts};
use serde_json::{Value, json};
use shared::catalog::{Answer, BigQuery, Wanted, diff};
use shared::clock::Clock;
use shared::decode::time;
use shared::schema::Registry;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
use shared::sink::{Batch, Outcome, Sink};

#[test]
fn every_streaming_table_is_watched() {
    for plan in Registry::built_in().unwrap().plans().filter(|plan| plan.system.is_some()) {
        let table = format!("FROM `{}`", plan.table.full_name());
        let partitions = format!("FROM `{}.INFORMATION_SCHEMA.PARTITIONS`", plan.table.dataset);
        for (monitor, source) in [
            ("latency_by_minute", &table),
            ("partitions_by_day", &table),
            ("validation", &table),
            ("bytes_by_partition", &partitions),
        ] {
            let sql = read(&infra().join(format!("sql/monitors/{monitor}.sql")));
            assert!(sql.contains(source.as_str()), "{monitor} lacks {source}");
        }
        let columns = format!("FROM `{}.INFORMATION_SCHEMA.COLUMNS`", plan.table.dataset);
        assert!(read(&infra().join("sql/deduplicate.sql")).contains(&columns), "deduplicate.sql lacks {columns}");
    }
}

/// The monitor's question as it would have been asked at noon of 2024-07-10.
fn asked_then(monitor: &str) -> String {
    let mut sql = read(&infra().join(format!("sql/monitors/{monitor}.sql")));
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
    // Few rows, but not too few: one event twice, of two versions, from nowhere; its id at another time is another row. And an
    // event with its copy and with other content under its id.
    let (at, received) = ("2024-07-09T10:00:00Z", "2024-07-09T10:00:01Z");
    let rows = [
        click("twice", at, received, &json!({"country": "Unknown"})),
        click("twice", at, received, &json!({"country": null, "schema_version": "1-0-1"})),
        click("twice", "2024-07-09T10:00:00.000001Z", received, &json!({})),
        click("claimed", at, received, &json!({"fingerprint": 1})),
        click("claimed", at, received, &json!({"fingerprint": 1})),
        click("claimed", at, received, &json!({"fingerprint": 2, "country": "DE"})),
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
                [clicks, "2024-07-09", 6, "2024-07-09T10:00:02Z", "ok"],
                [clicks, "2024-07-10", 101, "2024-07-10T11:49:59.999Z", "ok"],
                [clicks, "2024-07-12", 1, "2024-07-10T11:58:00.250Z", "future"],
            ]),
        ),
        (
            "validation",
            json!([
                [stock, "2024-07-09", 20, 0, null, null, 0, 0, 0, "1-0-0"],
                [stock, "2024-07-10", 1, 0, null, null, 0, 0, 0, "1-0-0"],
                [orders, null, 1, 2, "order_date, schema_version", null, 0, 0, 0, null],
                [orders, "2024-07-09", 1, 0, null, null, 0, 0, 0, "1-0-0"],
                [activities, "2024-07-10", 1, 0, null, 1.0, 0, 0, 0, "1-0-0"],
                [clicks, "2024-07-04", 20, 0, null, 0.0, 0, 0, 0, "1-0-0"],
                [clicks, "2024-07-05", 20, 0, null, 0.0, 0, 0, 0, "1-0-0"],
                [clicks, "2024-07-07", 20, 0, null, 0.0, 0, 0, 0, "1-0-0"],
                [clicks, "2024-07-08", 1, 2, "event_id, received_at", 0.0, 0, 0, 0, "1-0-0"],
                [clicks, "2024-07-09", 6, 0, null, 1.0 / 3.0, 2, 1, 0, "1-0-0, 1-0-1"],
                [clicks, "2024-07-10", 101, 0, null, 0.0, 0, 0, 1, "1-0-0"],
                [clicks, "2024-07-12", 1, 0, null, 0.0, 0, 0, 0, "1-0-0"],
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
    copies_go_by_night(&bigquery).await;
    view_of_the_last_days(&bigquery).await;
}

/// Asks them as an operator does, the files unchanged: each is among those that were checked, and says what it answers.
async fn as_they_are(bigquery: &BigQuery, checked: &BTreeSet<&str>) {
    let monitors = files("sql/monitors", "sql");
    assert_eq!(monitors.keys().map(String::as_str).collect::<BTreeSet<_>>(), *checked, "each monitor is checked");
    let listed = read(&infra().join("sql/README.md"));
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

/// The nightly job removes the copy of the row with a fingerprint once its day is closed, and nothing else.
async fn copies_go_by_night(bigquery: &BigQuery) {
    let run = async |today: &str| {
        let sql =
            read(&infra().join("sql/deduplicate.sql")).replacen("CURRENT_DATE('UTC')", &format!("DATE '{today}'"), 1);
        bigquery.query(&sql).await.unwrap();
        let rows = "SELECT event_id, fingerprint, country FROM contextflow.clickstream_events \
                    WHERE DATE(event_timestamp) = '2024-07-09' ORDER BY event_id, fingerprint, country";
        let shown = "SELECT event_id, fingerprint, country FROM contextflow.v_clickstream_events \
                     WHERE event_timestamp = TIMESTAMP '2024-07-09 10:00:00+00' ORDER BY event_id";
        let conflicts = "SELECT event_id, fingerprint FROM contextflow.v_clickstream_events_conflicts \
                         WHERE event_timestamp >= TIMESTAMP '2024-07-01 00:00:00+00' ORDER BY fingerprint";
        let report = "SELECT table_name, day, removed FROM contextflow.deduplications";
        let mut answers = Vec::new();
        for query in [rows, shown, conflicts, report] {
            answers.push(json!(bigquery.query(query).await.unwrap().rows));
        }
        answers
    };
    let before = run("2024-07-10").await;
    assert_eq!((before[0].as_array().unwrap().len(), &before[3]), (6, &json!([])), "the day is not closed");
    let after = run("2024-07-11").await;
    assert_eq!(after[0].as_array().unwrap().len(), 5);
    assert_eq!(after[1], before[1], "the view shows the same");
    assert_eq!(after[2], json!([["claimed", 1], ["claimed", 2]]));
    assert_eq!(before[2].as_array().unwrap().len(), 3);
    assert_eq!(after[3], json!([["contextflow.clickstream_events", "2024-07-09", 1]]));
    assert_eq!(run("2024-07-11").await, after, "a second run changes nothing");
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
    let sql = read(&infra().join("sql/monitors/bytes_by_partition.sql"));
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
        [clicks, "20240709", 6],
        [clicks, "20240710", 101],
        [clicks, "20240712", 1],
    ])
}
