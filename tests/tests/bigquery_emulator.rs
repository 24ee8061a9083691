//! The `BigQuery` sink and bulk loads against bqemulator: gRPC in, SQL out.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use pipeline_tests::bigquery::BigQueryApi;
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{built_in, parts, registry_with};
use serde_json::{Value, json};
use shared::clock::{Clock, SECOND};
use shared::decode;
use shared::decode::time::{self, timestamp_text};
use shared::load::{self, Load, Loader as _, Mode};
use shared::row::Row;
use shared::schema::Plan;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
use shared::sink::bigquery::load::BigQueryLoader;
use shared::sink::contract::{self, batch};
use shared::sink::{Outcome, Sink};

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_of_a_sink() {
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let rest = server.rest.clone();
    let tables = tokio::task::spawn_blocking(move || {
        let tables = BigQueryApi::at(&rest);
        built_in().plans().for_each(|plan| tables.create(plan));
        Arc::new(tables)
    });
    let tables = tables.await.unwrap();
    let settings = Settings::from_iter([("GOOGLE_CLOUD_PROJECT", PROJECT), ("BIGQUERY_GRPC_ENDPOINT", &server.grpc)]);
    let sink = Arc::new(BigQuerySink::new(&settings, Clock::system()).unwrap());

    let read = |plan: Arc<Plan>| {
        let tables = Arc::clone(&tables);
        async move {
            let sql = format!("SELECT TO_JSON_STRING(t) AS row FROM `{}` AS t", plan.table.full_name());
            let rows = tokio::task::spawn_blocking(move || tables.query(&sql)).await.unwrap();
            let text = |row: &serde_json::Value| Bytes::from(rfc3339(row["row"].as_str().unwrap_or_default()));
            rows.iter().map(text).collect()
        }
    };
    contract::holds(sink, read).await;
    // Its blocking client may not end inside the runtime.
    tokio::task::spawn_blocking(move || drop(tables)).await.unwrap();
}

/// All types but BIGNUMERIC, of which the emulator makes no column.
const EVERY_TYPE: &str = r#"{
    "event_type": "every_type", "version": "1-0-0", "ingest": "stream",
    "table": {"dataset": "tests", "name": "every_type"},
    "columns": [
        {"name": "number", "type": "INTEGER", "mode": "REQUIRED"},
        {"name": "text", "type": "STRING"},
        {"name": "bytes", "type": "BYTES"},
        {"name": "float", "type": "FLOAT"},
        {"name": "amount", "type": "NUMERIC"},
        {"name": "flag", "type": "BOOLEAN"},
        {"name": "moment", "type": "TIMESTAMP"},
        {"name": "day", "type": "DATE"},
        {"name": "day_time", "type": "DATETIME"},
        {"name": "time_of_day", "type": "TIME"},
        {"name": "json", "type": "JSON"},
        {"name": "nested", "type": "RECORD", "fields": [
            {"name": "days", "type": "DATE", "mode": "REPEATED"},
            {"name": "deep", "type": "RECORD", "mode": "REPEATED", "fields": [
                {"name": "amount", "type": "NUMERIC"}, {"name": "moment", "type": "TIMESTAMP"}
            ]}
        ]}
    ]
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_read_exactly_by_googles_own_clients() {
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let registry = registry_with(&[EVERY_TYPE]);
    let plan = Arc::clone(registry.get("every_type").unwrap());
    let (rest, table) = (server.rest.clone(), Arc::clone(&plan));
    tokio::task::spawn_blocking(move || BigQueryApi::at(&rest).create(&table)).await.unwrap();
    let settings = Settings::from_iter([("GOOGLE_CLOUD_PROJECT", PROJECT), ("BIGQUERY_GRPC_ENDPOINT", &server.grpc)]);
    let sink = BigQuerySink::new(&settings, Clock::system()).unwrap();
    let rows = [
        r#"{"number":-9223372036854775808,"text":"Zürich \"Ω\"","bytes":"AP8=","float":-0.1,
            "amount":-99999999999999999999999999999.999999999,
            "flag":false,
            "moment":"0001-01-01T00:00:00.000001Z","day":"1969-12-31","day_time":"9999-12-31T23:59:59.999999",
            "time_of_day":"23:59:59.000001","json":{"a": [1, null]},
            "nested":{"days":["0001-01-01","9999-12-31"],
                      "deep":[{"amount":0.000000001,"moment":"9999-12-31T23:59:59.999999Z"},
                              {"moment":"2026-10-20T00:15:02.920001Z"},{}]},
            "event_id":"e1","received_at":"2026-10-20T00:15:03.5Z","schema_version":"1-0-0"}"#,
        r#"{"number":1,"event_id":"e2"}"#,
    ];
    assert_eq!(sink.append(&batch(&plan, rows.map(String::from))).await, vec![Outcome::Done; 2]);
    assert!(sink.ready().await.unwrap_err().contains("dead_letters does not exist"));

    let sql = "SELECT * FROM `tests.every_type` ORDER BY number";
    let rest = server.rest.clone();
    let read = tokio::task::spawn_blocking(move || read_rows(&rest, sql)).await.unwrap();
    let loaded_at = "datetime 2026-10-20 00:15:02.920000+00:00";
    let first = json!([
        i64::MIN, "Zürich \"Ω\"", "bytes b'\\x00\\xff'", "float -0.1",
        "Decimal -99999999999999999999999999999.999999999",
        false,
        "datetime 0001-01-01 00:00:00.000001+00:00", "date 1969-12-31", "datetime 9999-12-31 23:59:59.999999",
        "time 23:59:59.000001", {"a": [1, null]},
        {
            "days": ["date 0001-01-01", "date 9999-12-31"],
            "deep": [
                {"amount": "Decimal 1E-9", "moment": "datetime 9999-12-31 23:59:59.999999+00:00"},
                {"amount": null, "moment": "datetime 2026-10-20 00:15:02.920001+00:00"},
                {"amount": null, "moment": null}
            ]
        },
        "e1", "datetime 2026-10-20 00:15:03.500000+00:00", loaded_at, "1-0-0", null
    ]);
    let second =
        json!([1, null, null, null, null, null, null, null, null, null, null, null, "e2", null, loaded_at, null, null]);
    assert_eq!(read, [first, second]);

    // Times in microseconds: `bq` does not read the emulator's form of a TIMESTAMP.
    let sql = "SELECT number, text, amount, UNIX_MICROS(received_at) AS received_at, nested.days, \
        ARRAY(SELECT AS STRUCT deep.amount, UNIX_MICROS(deep.moment) AS moment FROM UNNEST(nested.deep) AS deep) AS deep \
        FROM `tests.every_type` WHERE flag IS NOT NULL";
    let query = ["query", "--use_legacy_sql=false", sql];
    if let Some(rows) = tokio::task::spawn_blocking(move || server.bq(PROJECT, &query)).await.unwrap() {
        let expected = json!([{
            "number": "-9223372036854775808", "text": "Zürich \"Ω\"",
            "amount": "-99999999999999999999999999999.999999999", "received_at": "1792455303500000",
            "days": ["0001-01-01", "9999-12-31"],
            "deep": [
                {"amount": "1E-9", "moment": "253402300799999999"},
                {"amount": null, "moment": "1792455302920001"},
                {"amount": null, "moment": null}
            ]
        }]);
        assert_eq!(rows, expected);
    }
}

async fn loader(server: &parts::BigQuery) -> BigQueryLoader {
    let settings = Settings::from_iter([
        ("GOOGLE_CLOUD_PROJECT", PROJECT),
        ("BIGQUERY_GRPC_ENDPOINT", &server.grpc),
        ("BIGQUERY_REST_ENDPOINT", &server.rest),
    ]);
    BigQueryLoader::new(&settings, Clock::system()).await.unwrap()
}

/// Makes the rows of lines of the enriched message and adds them.
fn add(load: &mut dyn Load, table: usize, plan: &Plan, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        let mut row = Row::default();
        decode::row(plan, line.as_bytes(), &mut row).unwrap();
        assert_eq!(*row.problems, [], "{line}");
        load.add(table, &row.values);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_of_a_load() {
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let rest = server.rest.clone();
    let tables = tokio::task::spawn_blocking(move || Arc::new(BigQueryApi::at(&rest))).await.unwrap();
    let loader = loader(&server).await;

    let rows = async |plan: &Plan| {
        let tables = Arc::clone(&tables);
        let sql = format!("SELECT TO_JSON_STRING(t) AS row FROM `{}` AS t", plan.table.full_name());
        let rows = tokio::task::spawn_blocking(move || tables.query(&sql)).await.unwrap();
        let row = |row: &Value| serde_json::from_str(&rfc3339(row["row"].as_str().unwrap_or_default())).unwrap();
        rows.iter().map(row).collect()
    };
    load::contract::suite(&loader, rows).await;

    // What was staged is gone, and the runs are recorded.
    let left = tokio::task::spawn_blocking(move || {
        let tables_left = "SELECT table_name FROM clickstream_dw.INFORMATION_SCHEMA.TABLES ORDER BY table_name";
        let unpublished = "SELECT run FROM contextflow.loads WHERE published_at IS NULL";
        (tables.query(tables_left), tables.query(unpublished))
    });
    let (tables_left, unpublished) = left.await.unwrap();
    let names = ["load_contract", "load_days", "purchase_events", "sessions"].map(|name| json!({"table_name": name}));
    assert_eq!(tables_left, names);
    assert_eq!(unpublished, [json!({"run": "abandoned"})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_takes_the_place_of_what_it_can_know_of_a_stream() {
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let loader = loader(&server).await;
    let plan = Arc::clone(built_in().get("clickstream").unwrap());
    let plans = std::slice::from_ref(&plan);
    let now = Clock::system().now();
    let minutes_ago = |minutes: i64| timestamp_text(now - minutes * 60 * SECOND);
    let row = |id: &str, day: u32, loaded_at: Option<String>| {
        let mut row = json!({"event_id": id, "event_timestamp": format!("2026-10-{day}T01:00:00Z"), "loaded_at": loaded_at,
                             "received_at": format!("2026-10-{day}T01:00:01Z")});
        row.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        row.to_string()
    };
    let ids = async || {
        let rest = server.rest.clone();
        let sql = "SELECT event_id FROM contextflow.clickstream_events WHERE event_timestamp > TIMESTAMP '2026-01-01' ORDER BY 1";
        let rows = tokio::task::spawn_blocking(move || BigQueryApi::at(&rest).query(sql)).await.unwrap();
        rows.iter().map(|row| row["event_id"].as_str().unwrap().to_string()).collect::<Vec<_>>().join(" ")
    };
    let mut stream = loader.begin("stream", plans, Mode::Append, None).await.unwrap();
    let streamed = [
        row("another_day", 22, Some(minutes_ago(180))),
        row("of_old", 20, Some(minutes_ago(61))),
        row("of_unknown_time", 20, None),
        row("in_both", 20, Some(minutes_ago(10))),
        row("not_yet_archived", 20, Some(minutes_ago(50))),
    ];
    add(&mut *stream, 0, &plan, streamed);
    stream.publish().await.unwrap();

    let load = async |run: &str, mode: Mode| {
        let mut load = loader.begin(run, plans, mode, None).await.unwrap();
        let archived = |id: &str| row(id, 20, Some(minutes_ago(0)));
        add(&mut *load, 0, &plan, [archived("in_both"), archived("archived")]);
        let checkpoint = load.checkpoint().await.unwrap();
        drop(load);
        // Copies come after a new start too.
        let mut load = loader.begin(run, plans, mode, Some(&checkpoint)).await.unwrap();
        add(&mut *load, 0, &plan, [archived("in_both"), archived("in_both")]);
        load.publish().await.unwrap();
    };
    let day = time::date("2026-10-20").unwrap();
    for run in ["days", "days_again"] {
        load(run, Mode::ReplaceDays { first: day, last: day }).await;
        assert_eq!(ids().await, "another_day archived in_both not_yet_archived", "{run}");
    }
    load("all", Mode::Replace).await;
    assert_eq!(ids().await, "archived in_both not_yet_archived");
    load("anew", Mode::Recreate).await;
    assert_eq!(ids().await, "archived in_both");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_keeps_every_digit_and_readers_see_all_tables_change_at_once() {
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let loader = loader(&server).await;
    let plans: Vec<_> = ["visit", "session", "pageview_event", "addtocart_event", "purchase_event"]
        .iter()
        .map(|name| Arc::clone(built_in().get(name).unwrap()))
        .collect();
    let moment = "2024-07-01T09:00:00.000001Z";
    let session = |number: usize| format!(r#""session_id":"s{number}","user_id":"u","device_type":"mobile""#);
    let fill = |load: &mut dyn Load, numbers: std::ops::Range<usize>| {
        let numbers = || numbers.clone();
        let details =
            r#"{"amount":3859.9399999999996,"items":[{"price":0.1,"quantity":9007199254740993},{"price":1929.97}]}"#;
        let visit = |number| {
            let session = session(number);
            format!(
                r#"{{{session},"events":[{{"event":{{"event_type":"purchase","timestamp":"{moment}","details":{details}}}}}]}}"#
            )
        };
        add(load, 0, &plans[0], numbers().map(visit));
        add(load, 1, &plans[1], numbers().map(|number| format!(r#"{{"session_key":"k",{}}}"#, session(number))));
        let event = |more: &str| format!(r#"{{"session_key":"k","timestamp":"{moment}"{more}}}"#);
        add(load, 2, &plans[2], numbers().map(|_| event(r#","page_url":"/ä","referrer_url":"/b""#)));
        add(load, 3, &plans[3], numbers().map(|_| event(r#","price":"1234567890.123456789","quantity":2"#)));
        let items = r#","amount":3859.94,"items":[{"quantity":1,"price":1929.97},{"price":"-0.000000001"}]"#;
        add(load, 4, &plans[4], numbers().map(|_| event(items)));
    };

    let mut load = loader.begin("first", &plans, Mode::Replace, None).await.unwrap();
    fill(&mut *load, 0..1);
    load.publish().await.unwrap();
    let sql = "SELECT v.session_id, v.geolocation, v.events, a.price, a.quantity, p.amount, p.items, g.page_url,
                      g.timestamp
               FROM clickstream_lake.visits AS v, clickstream_dw.addtocart_events AS a,
                    clickstream_dw.purchase_events AS p, clickstream_dw.pageview_events AS g";
    let rest = server.rest.clone();
    let read = tokio::task::spawn_blocking(move || read_rows(&rest, sql)).await.unwrap();
    let moment = "datetime 2024-07-01 09:00:00.000001+00:00";
    let Value::Array(row) = &read[0] else { panic!("{read:?}") };
    let event = &row[2][0]["event"];
    assert_eq!(
        (&row[0], &row[1], &event["timestamp"], &row[8]),
        (&json!("s0"), &Value::Null, &json!(moment), &json!(moment))
    );
    let details = &event["details"];
    assert_eq!(details["amount"], "float 3859.9399999999996");
    assert_eq!(details["items"][0]["price"], "float 0.1");
    assert_eq!(details["items"][0]["quantity"], 9_007_199_254_740_993_i64);
    assert_eq!((&row[3], &row[4]), (&json!("Decimal 1234567890.123456789"), &json!(2)));
    assert_eq!(row[5], "Decimal 3859.940000000");
    let product = json!({"category": null, "product_name": null, "product_id": null});
    let item = |quantity: Value, price: &str| {
        let mut item = product.clone();
        item["quantity"] = quantity;
        item["price"] = price.into();
        item
    };
    assert_eq!(row[6], json!([item(json!(1), "Decimal 1929.970000000"), item(Value::Null, "Decimal -1E-9")]));
    assert_eq!(row[7], "/ä");

    // All tables in one query, again and again while others take their place.
    let is_over = Arc::new(AtomicBool::new(false));
    let (rest, until) = (server.rest.clone(), Arc::clone(&is_over));
    let reading = tokio::task::spawn_blocking(move || {
        let tables = BigQueryApi::at(&rest);
        let count = |table: &&str| format!("CAST((SELECT COUNT(*) FROM {table}) AS STRING)");
        let tables_of_run = ["clickstream_lake.visits", "clickstream_dw.sessions", "clickstream_dw.purchase_events"];
        let counts: Vec<_> = tables_of_run.iter().map(count).collect();
        let sql = format!("SELECT CONCAT({}) AS counts", counts.join(", ' ', "));
        let mut seen = Vec::new();
        while !until.load(Ordering::Relaxed) {
            let counts = tables.query(&sql)[0]["counts"].as_str().unwrap_or_default().to_string();
            if seen.last() != Some(&counts) {
                seen.push(counts);
            }
        }
        seen
    });
    for (run, rows) in [("second", 400), ("third", 700)] {
        let mut load = loader.begin(run, &plans, Mode::Replace, None).await.unwrap();
        fill(&mut *load, 0..rows);
        load.publish().await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(reading.await.unwrap(), ["1 1 1", "400 400 400", "700 700 700"]);
}

/// The rows of a query by `tests/parts/read_rows.py`.
fn read_rows(rest: &str, sql: &str) -> Vec<Value> {
    let python = parts::program("python").expect("bqemulator runs in it");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/read_rows.py");
    let output = Command::new(python).arg(script).args([rest, PROJECT, sql]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The emulator's JSON of a row with its times as `BigQuery` writes them: `2026-10-20 00:15:03+00` is
/// `2026-10-20T00:15:03Z`. As text, since a JSON number would lose digits of a NUMERIC on its way through a float.
fn rfc3339(row: &str) -> String {
    let time = |text: &str| match (text.split_once(' '), text.strip_suffix("+00")) {
        (Some((date, _)), Some(all)) if date.len() == 10 && date.as_bytes()[4] == b'-' => all.replace(' ', "T") + "Z",
        _ => text.to_string(),
    };
    row.split('"').map(time).collect::<Vec<_>>().join("\"")
}
