//! The `BigQuery` sink against bqemulator: gRPC in, SQL out.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use pipeline_tests::bigquery::BigQueryApi;
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{built_in, parts, registry_with};
use serde_json::{Value, json};
use shared::clock::Clock;
use shared::schema::Plan;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
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
        "e1", "datetime 2026-10-20 00:15:03.500000+00:00", loaded_at, "1-0-0"
    ]);
    let second =
        json!([1, null, null, null, null, null, null, null, null, null, null, null, "e2", null, loaded_at, null]);
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
