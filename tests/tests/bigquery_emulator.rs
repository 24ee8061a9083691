//! The `BigQuery` sink against bqemulator: gRPC in, SQL out.

use std::sync::Arc;

use bytes::Bytes;
use pipeline_tests::bigquery::BigQueryApi;
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{built_in, parts};
use shared::schema::Plan;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
use shared::sink::contract;

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
    let sink = Arc::new(BigQuerySink::new(&settings).unwrap());

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

/// The emulator's JSON of a row with its times as `BigQuery` writes them: `2026-10-20 00:15:03+00` is
/// `2026-10-20T00:15:03Z`. As text, since a JSON number would lose digits of a NUMERIC on its way through a float.
fn rfc3339(row: &str) -> String {
    let time = |text: &str| match (text.split_once(' '), text.strip_suffix("+00")) {
        (Some((date, _)), Some(all)) if date.len() == 10 && date.as_bytes()[4] == b'-' => all.replace(' ', "T") + "Z",
        _ => text.to_string(),
    };
    row.split('"').map(time).collect::<Vec<_>>().join("\"")
}
