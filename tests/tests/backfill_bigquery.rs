//! The backfill job as it is deployed, into bqemulator: the visits of a real site, against figures made by other means.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backfill::config::{Options, wire};
use clap::Parser;
use pipeline_tests::bigquery::BigQueryApi;
use pipeline_tests::parts;
use pipeline_tests::pubsub::PROJECT;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use shared::settings::Settings;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// The folder of the visits with `expected.json`, which lies beside the repository.
fn visits() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/visits");
    let found = std::fs::canonicalize(&folder).ok();
    if found.is_none() {
        eprintln!("not loaded: there are no visits at {}", folder.display());
    }
    found
}

/// Runs the job.
async fn load(source: &Path, state: &Path, server: &parts::BigQuery) {
    let settings = Settings::from_iter([
        ("GOOGLE_CLOUD_PROJECT", PROJECT),
        ("BIGQUERY_GRPC_ENDPOINT", &server.grpc),
        ("BIGQUERY_REST_ENDPOINT", &server.rest),
    ]);
    let pattern = format!("{}/*.jsonl", source.display());
    let flags =
        ["backfill", "--source", &pattern, "--state", &state.to_string_lossy(), "--checkpoint-bytes", "3000000"];
    let cli = Cli::try_parse_from(flags).unwrap();
    let (deps, request) = wire(&cli.options, settings).await.unwrap();
    backfill::run(deps, request, Arc::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_visits_of_fifty_days_have_the_right_figures_however_often_they_are_loaded() {
    let Some(source) = visits() else { return };
    let Some(server) = tokio::task::spawn_blocking(parts::bqemulator).await.unwrap() else { return };
    let expected: Json = serde_json::from_slice(&std::fs::read(source.join("expected.json")).unwrap()).unwrap();
    let state = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        load(&source, state.path(), &server).await;
        let (rest, expected) = (server.rest.clone(), expected.clone());
        tokio::task::spawn_blocking(move || check(&BigQueryApi::at(&rest), &expected)).await.unwrap();
    }
}

/// The tables have the figures that are expected.
fn check(tables: &BigQueryApi, expected: &Json) {
    let column = |sql: &str, name: &str| -> Vec<String> {
        tables.query(sql).iter().map(|row| row[name].as_str().unwrap_or_default().to_string()).collect()
    };
    let one = |sql: &str| column(&format!("SELECT {sql}"), "x").concat();
    let rows = [
        ("visits", "clickstream_lake.visits"),
        ("sessions", "clickstream_dw.sessions"),
        ("pageview_events", "clickstream_dw.pageview_events"),
        ("addtocart_events", "clickstream_dw.addtocart_events"),
        ("purchase_events", "clickstream_dw.purchase_events"),
        ("purchase_items", "clickstream_dw.purchase_events, UNNEST(items) AS item"),
    ];
    for (name, table) in rows {
        assert_eq!(one(&format!("COUNT(*) AS x FROM {table}")), expected["rows"][name].to_string(), "{name}");
    }
    let keys = column("SELECT DISTINCT session_key AS x FROM clickstream_dw.sessions ORDER BY x", "x");
    assert_eq!(keys.len().to_string(), expected["distinct_session_keys"].to_string());
    let digest = shared::event::hex(&Sha256::digest(keys.join("\n")));
    assert_eq!(digest, expected["sha256_of_sorted_session_keys"]);
    let text = |time: &str| format!("FORMAT_TIMESTAMP('%Y-%m-%dT%H:%M:%S', {time})");
    let events = "SELECT timestamp FROM clickstream_dw.pageview_events UNION ALL
                  SELECT timestamp FROM clickstream_dw.addtocart_events UNION ALL
                  SELECT timestamp FROM clickstream_dw.purchase_events";
    let figures = [
        (
            "sum_purchase_amount",
            "CAST(SUM(amount) AS STRING) AS x FROM clickstream_dw.purchase_events".into(),
        ),
        (
            "sum_purchase_amount",
            "CAST(SUM(item.price * item.quantity) AS STRING) AS x FROM clickstream_dw.purchase_events, UNNEST(items) AS item"
                .into(),
        ),
        ("sum_cart_quantity", "SUM(quantity) AS x FROM clickstream_dw.addtocart_events".into()),
        ("first_event", format!("{} AS x FROM ({events})", text("MIN(timestamp)"))),
        ("last_event", format!("{} AS x FROM ({events})", text("MAX(timestamp)"))),
    ];
    for (name, sql) in figures {
        assert_eq!(plain(&one(&sql)), expected[name].to_string().replace('"', ""), "{name}");
    }
    let groups = [
        ("visits_by_device_type", "device_type AS k, COUNT(*) AS x FROM clickstream_lake.visits"),
        ("page_views_by_url", "page_url AS k, COUNT(*) AS x FROM clickstream_dw.pageview_events"),
        (
            "sales_by_category",
            "item.category AS k, CAST(SUM(item.price * item.quantity) AS STRING) AS x
             FROM clickstream_dw.purchase_events, UNNEST(items) AS item",
        ),
    ];
    for (name, sql) in groups {
        let rows = tables.query(&format!("SELECT {sql} GROUP BY k"));
        let text = |value: &Json| value.to_string().replace('"', "");
        let seen: BTreeMap<_, _> = rows.iter().map(|row| (text(&row["k"]), plain(&text(&row["x"])))).collect();
        let wanted: BTreeMap<_, _> =
            expected[name].as_object().unwrap().iter().map(|(key, value)| (key.clone(), text(value))).collect();
        assert_eq!(seen, wanted, "{name}");
    }
}

/// A number without the zeros behind its cents.
fn plain(number: &str) -> String {
    match number.split_once('.') {
        Some((whole, rest)) => format!("{whole}.{:0<2}", rest.trim_end_matches('0')),
        None => number.to_string(),
    }
}
