//! The analysts' views: one text, and the same answers from the local warehouse and from BigQuery.

use pipeline_tests::binary::json_of;
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{built_in, parts, visits};
use serde_json::{Map, Value};
use shared::catalog::{BigQuery, Wanted, diff};
use shared::clock::Clock;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
use shared::sink::delta::DeltaSink;
use shared::views;

/// A value as text, a number without zeros at its end.
fn text(value: &Value) -> Value {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match text.split_once('.') {
        Some((whole, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
            let part = part.trim_end_matches('0');
            if part.is_empty() { whole.into() } else { format!("{whole}.{part}").into() }
        }
        _ => text.into(),
    }
}

fn question(view: &str, columns: &str) -> String {
    format!("SELECT {columns} FROM clickstream_dw.{view} ORDER BY 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_warehouse_answers_each_question() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(&folder.path().join("warehouse"), Clock::system()).unwrap();
    visits::fill(&sink, &built_in()).await;
    for (view, columns, expected) in visits::answers() {
        let sql = question(view, columns);
        let answer = json_of(["query", "--json", "--data-dir", &folder.path().display().to_string(), &sql]);
        let row = |row: &Value| {
            let row: &Map<_, _> = row.as_object().unwrap();
            columns.split(", ").map(|column| text(&row[column])).collect::<Value>()
        };
        let rows: Value = answer.as_array().unwrap().iter().map(row).collect();
        assert_eq!(rows, expected, "{view}");
    }
    let names = json_of(["query", "--json", "--data-dir", &folder.path().display().to_string(), "SHOW TABLES"]);
    for view in views::all() {
        let is_listed = names.as_array().unwrap().iter().any(|row| row["table_name"] == view.name);
        assert!(is_listed, "{} is not among {names}", view.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bigquery_answers_each_question() {
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
    visits::fill(&BigQuerySink::new(&settings, Clock::system()).unwrap(), &registry).await;
    for (view, columns, expected) in visits::answers() {
        let answer = bigquery.query(&question(view, columns)).await.unwrap_or_else(|error| panic!("{view}: {error}"));
        let rows: Value = answer.rows.iter().map(|row| row.iter().map(text).collect::<Value>()).collect();
        assert_eq!(rows, expected, "{view}");
    }
}
