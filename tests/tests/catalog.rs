//! BigQuery follows the schemas: on bqemulator, read back by Google's own `bq`, and on a server that does what an emulator
//! does not.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use pipeline_tests::{built_in, parts};
use serde_json::{Value, json};
use shared::catalog::{ApiError, BigQuery, Diff, Verdict, Wanted, diff};
use shared::schema::Registry;
use shared::settings::Settings;
use shared::views;

const PROJECT: &str = "demo-project";

async fn client(endpoint: &str) -> BigQuery {
    let settings = Settings::from_iter([("BIGQUERY_REST_ENDPOINT", endpoint)]);
    BigQuery::new(&settings, PROJECT, None).await.unwrap()
}

/// What differs between BigQuery and a registry.
async fn difference(bigquery: &BigQuery, registry: &Registry) -> Diff {
    let wanted = Wanted::of(registry, PROJECT, None);
    diff(&wanted, &bigquery.read(&wanted).await.unwrap())
}

/// Makes BigQuery follow a registry; how many differences were ended.
async fn apply(bigquery: &BigQuery, registry: &Registry) -> usize {
    let differences = difference(bigquery, registry).await;
    bigquery.apply(&differences).await.unwrap();
    differences.changes()
}

fn lines(diff: &Diff) -> Vec<String> {
    diff.differences.iter().map(ToString::to_string).collect()
}

/// A schema of the table `lab.visits` with columns beside `seen_at` and `visit`.
fn visits(version: &str, columns: &str) -> Registry {
    registry(&format!(
        r#"{{"event_type":"visit","version":"{version}","ingest":"public","description":"Visits to the lab",
            "table":{{"dataset":"lab","name":"visits","time_partitioning":{{"type":"HOUR","field":"seen_at"}},
                "require_partition_filter":true,"clustering":["visit"]}},
            "columns":[{{"name":"seen_at","type":"TIMESTAMP","mode":"REQUIRED","description":"When"}},
                {{"name":"visit","type":"STRING"}}{columns}]}}"#
    ))
}

/// One schema and no other.
fn registry(schema: &str) -> Registry {
    let mut registry = Registry::default();
    registry.add("test.json", schema).unwrap();
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_schemas_are_applied_once_and_then_nothing_differs() {
    let Some(emulator) = parts::bqemulator() else { return };
    let bigquery = client(&emulator.rest).await;
    let registry = built_in();
    let datasets: BTreeSet<_> = registry.plans().map(|plan| &plan.table.dataset).collect();
    let identities = registry.plans().filter(|plan| plan.identity.is_some()).count();
    let streams = registry.plans().filter(|plan| plan.system.is_some()).count();
    let objects = datasets.len() + registry.plans().count() + identities + streams + views::all().count();

    assert_eq!(apply(&bigquery, &registry).await, objects, "datasets, tables, their views, the analysts' views");
    let again = difference(&bigquery, &registry).await;

    assert!(again.is_empty() && again.differences.is_empty(), "{:#?}", lines(&again));
    assert_eq!(apply(&bigquery, &registry).await, 0);

    if let Some(table) = emulator.bq(PROJECT, &["show", "contextflow.clickstream_events"]) {
        assert_eq!(table["timePartitioning"]["type"], "DAY");
        assert_eq!(table["timePartitioning"]["field"], "event_timestamp");
        assert_eq!(table["timePartitioning"]["requirePartitionFilter"], true);
        assert_eq!(table["clustering"], json!({"fields": ["event_name", "country"]}));
        assert_eq!(table["labels"], json!({"schema_version": "1-0-0"}));
        assert_eq!(table["description"], "What visitors do on the site, one row an event");
        let fields = table["schema"]["fields"].as_array().unwrap();
        let time = fields.iter().find(|field| field["name"] == "event_timestamp").unwrap();
        assert_eq!((&time["type"], &time["mode"]), (&json!("TIMESTAMP"), &json!("REQUIRED")));
        assert_eq!(time["description"], "When it happened, by the client's clock");
    }
    if let Some(orders) = emulator.bq(PROJECT, &["show", "backend_events.orders"]) {
        let items = &orders["schema"]["fields"][4];
        assert_eq!((&items["type"], &items["mode"]), (&json!("RECORD"), &json!("REPEATED")));
        assert_eq!(items["fields"][3]["description"], "Price of one");
    }

    let insert = |id: &str, age: &str, loaded: &str| {
        format!(
            "INSERT INTO `contextflow.clickstream_events` (`event_timestamp`, `event_name`, `country`, `city`, `event_id`, `loaded_at`) \
             SELECT TIMESTAMP_SUB(TIMESTAMP_TRUNC(CURRENT_TIMESTAMP(), DAY), INTERVAL {age}), 'click', 'DE', 'Bonn', {id}, TIMESTAMP '{loaded}'"
        )
    };
    for statement in [
        insert("'a'", "1 HOUR", "2026-10-20 00:00:02+00"),
        insert("'a'", "1 HOUR", "2026-10-20 00:00:01+00"),
        insert("'b'", "1 HOUR", "2026-10-20 00:00:03+00"),
        insert("NULL", "1 HOUR", "2026-10-20 00:00:04+00"),
        insert("NULL", "1 HOUR", "2026-10-20 00:00:05+00"),
        insert("'old'", "192 HOUR", "2026-10-20 00:00:06+00"),
    ] {
        bigquery.query(&statement).await.unwrap();
    }

    let view = "SELECT event_id, loaded_at FROM contextflow.v_clickstream_events ORDER BY loaded_at";
    let rows = bigquery.query(view).await.unwrap().rows;
    let once = [("a", 1), ("b", 3), ("", 4), ("", 5), ("old", 6)].map(|(id, second)| {
        let id = if id.is_empty() { Value::Null } else { id.into() };
        vec![id, format!("2026-10-20T00:00:0{second}Z").into()]
    });
    assert_eq!(rows, once, "of two copies the one loaded first; rows without an identity are nobody's copies");

    let report = bigquery.query("SELECT country, city, event_name, events FROM contextflow.v_events_per_city").await;
    assert_eq!(
        report.unwrap().rows,
        [[json!("DE"), json!("Bonn"), json!("click"), json!(4)]],
        "a week, each event once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_and_whatever_loses_data_is_refused() {
    let Some(emulator) = parts::bqemulator() else { return };
    let bigquery = client(&emulator.rest).await;
    apply(&bigquery, &visits("1-0-0", "")).await;
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO `lab.visits` (`seen_at`, {columns}) SELECT TIMESTAMP '2026-10-20 00:15:02.920001+00', {values}"
        )
    };
    bigquery.query(&insert("`event_id`", "'e-1'")).await.unwrap();

    let wider = visits(
        "1-1-0",
        r#",{"name":"note","type":"STRING","mode":"REQUIRED","description":"Says \"why\""},{"name":"steps","type":"INTEGER"},
            {"name":"parts","type":"RECORD","mode":"REPEATED","fields":[{"name":"sku","type":"STRING","description":"Part"}]}"#,
    );
    let planned = difference(&bigquery, &wider).await;
    bigquery.apply(&planned).await.unwrap();

    insta::assert_snapshot!(lines(&planned).join("\n"));
    let left = difference(&bigquery, &wider).await;
    assert!(left.is_empty(), "{:#?}", lines(&left));
    assert_eq!(left.count(Verdict::Note), 1, "that `note` is NULLABLE is told");
    bigquery
        .query(&insert("`event_id`, `note`, `steps`, `parts`", "'e-2', 'because', 7, [STRUCT('x' AS sku)]"))
        .await
        .unwrap();
    let rows = bigquery.query("SELECT event_id, note, steps, parts FROM lab.v_visits ORDER BY event_id").await.unwrap();
    let expected = [json!(["e-1", null, null, []]), json!(["e-2", "because", 7, [{"sku": "x"}]])];
    assert_eq!(json!(rows.rows), json!(expected), "the view has the new columns");
    if let Some(table) = emulator.bq(PROJECT, &["show", "lab.visits"]) {
        assert_eq!(
            table["timePartitioning"],
            json!({"type": "HOUR", "field": "seen_at", "requirePartitionFilter": true})
        );
        assert_eq!(table["clustering"], json!({"fields": ["visit"]}));
        assert_eq!(table["labels"], json!({"schema_version": "1-1-0"}));
        let fields = table["schema"]["fields"].as_array().unwrap();
        let note = fields.iter().find(|field| field["name"] == "note").unwrap();
        assert_eq!(*note, json!({"name": "note", "type": "STRING", "mode": "NULLABLE", "description": "Says \"why\""}));
    }

    let narrower = visits("2-0-0", r#",{"name":"note","type":"INTEGER"}"#);
    let refused = difference(&bigquery, &narrower).await;
    insta::assert_snapshot!(lines(&refused).join("\n"));
    assert_eq!(refused.count(Verdict::Refuse), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_whole_and_exact_and_a_fault_is_in_bigquerys_words() {
    let Some(emulator) = parts::bqemulator() else { return };
    let bigquery = client(&emulator.rest).await;

    let many =
        bigquery.query("SELECT x, x * 2 AS y FROM UNNEST(GENERATE_ARRAY(1, 25000)) AS x ORDER BY x").await.unwrap();
    assert_eq!((many.rows.len(), many.columns), (25_000, vec!["x".to_string(), "y".to_string()]));
    assert_eq!(many.rows[24_999], [json!(25_000), json!(50_000)]);

    let exact = bigquery
        .query(
            "SELECT PARSE_NUMERIC('12345678901234567890.123456789') AS n, TIMESTAMP '2026-10-20 00:15:02.920001+00' AS t, \
             DATE '2026-10-20' AS d, [STRUCT(1 AS a, [TRUE] AS b)] AS s, CAST(NULL AS STRING) AS nothing, 0.1 AS f",
        )
        .await
        .unwrap();
    let expected = json!([
        "12345678901234567890.123456789", "2026-10-20T00:15:02.920001Z", "2026-10-20", [{"a": 1, "b": [true]}], null, 0.1
    ]);
    assert_eq!(json!(exact.rows), json!([expected]));

    let empty = bigquery.query("SELECT 1 AS x FROM UNNEST([1]) WHERE FALSE").await.unwrap();
    assert_eq!((empty.columns, empty.rows.len()), (vec!["x".to_string()], 0));

    let error = bigquery.query("SELECT 1 / 0").await.unwrap_err();
    assert!(matches!(&error, ApiError::Refused { reason, .. } if reason == "invalidQuery"), "{error:?}");
    assert!(error.to_string().starts_with("division by zero"), "{error}");
}

/// By path, what is answered: status and body, in their order.
type Answers = BTreeMap<String, Vec<(u16, Value)>>;

/// Answers as scripted, one a path, and keeps what it was asked.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Script {
    fn on(self, path: &str, answers: impl IntoIterator<Item = (u16, Value)>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        self.answers.lock().unwrap().insert(path.into(), answers);
        self
    }

    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(scripted).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }
}

async fn scripted(State(script): State<Script>, request: Request) -> Response {
    assert!(!request.headers().contains_key("authorization"), "an emulator is asked without a token");
    let call = format!("{} {}", request.method(), request.uri());
    let path = format!("{} {}", request.method(), request.uri().path());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    script.asked.lock().unwrap().push((call, serde_json::from_slice(&body).unwrap_or_default()));
    let answer = script.answers.lock().unwrap().get_mut(&path).and_then(Vec::pop);
    let (status, json) = answer.unwrap_or((404, json!({"error": {"code": 404, "message": "Not found"}})));
    (StatusCode::from_u16(status).unwrap(), json.to_string()).into_response()
}

#[tokio::test]
async fn a_query_is_waited_for_in_its_location_and_a_full_quota_tried_again() {
    let queries = format!("POST /bigquery/v2/projects/{PROJECT}/queries");
    let results = format!("GET /bigquery/v2/projects/{PROJECT}/queries/job_1");
    let error = |status: u16, reason: &str| {
        (status, json!({"error": {"code": status, "message": "slow down", "errors": [{"reason": reason}]}}))
    };
    let job = json!({"projectId": PROJECT, "jobId": "job_1", "location": "europe-west1"});
    let schema = json!({"fields": [{"name": "x", "type": "INTEGER"}]});
    let script = Script::default()
        .on(
            &queries,
            [
                error(403, "rateLimitExceeded"),
                error(503, "backendError"),
                (200, json!({"jobReference": job, "jobComplete": false})),
            ],
        )
        .on(
            &results,
            [
                (200, json!({"jobReference": job, "jobComplete": false})),
                (
                    200,
                    json!({"jobReference": job, "jobComplete": true, "schema": schema, "rows": [{"f": [{"v": "1"}]}],
                "pageToken": "a+b/c=", "errors": [{"reason": "warning", "message": "one shard was slow"}]}),
                ),
                (
                    200,
                    json!({"jobReference": job, "jobComplete": true, "schema": schema, "rows": [{"f": [{"v": "2"}]}]}),
                ),
            ],
        );
    let settings = Settings::from_iter([("BIGQUERY_REST_ENDPOINT", script.serve().await)]);
    let bigquery = BigQuery::new(&settings, PROJECT, Some("europe-west1".into())).await.unwrap();

    let answer = bigquery.query("SELECT x").await.unwrap();

    assert_eq!(answer.rows, [[json!(1)], [json!(2)]]);
    let asked = script.asked.lock().unwrap();
    let (first, last) = (&asked[0], &asked[5]);
    assert_eq!(first.1["location"], "europe-west1");
    assert_eq!(
        (&first.1["useLegacySql"], &first.1["formatOptions"]),
        (&json!(false), &json!({"useInt64Timestamp": true}))
    );
    let ids: Vec<_> = asked[..3].iter().map(|(_, body)| &body["requestId"]).collect();
    assert!(ids.iter().all(|id| id.is_string() && *id == ids[0]), "a request tried again is the same request: {ids:?}");
    for part in ["location=europe-west1", "pageToken=a%2Bb%2Fc%3D", "formatOptions.useInt64Timestamp=true"] {
        assert!(last.0.contains(part), "{}", last.0);
    }
}

#[tokio::test]
async fn what_bigquery_refuses_is_not_tried_again_and_told_in_its_words() {
    let path = format!("POST /bigquery/v2/projects/{PROJECT}/queries");
    let words = "Access Denied: Project demo-project: User does not have bigquery.jobs.create permission";
    let refusal = json!({"error": {"code": 403, "message": words, "errors": [{"reason": "accessDenied"}]}});
    let script = Script::default().on(&path, [(403, refusal)]);
    let bigquery = client(&script.serve().await).await;

    let error = bigquery.query("SELECT 1").await.unwrap_err();

    assert_eq!(error.to_string(), words);
    assert_eq!(script.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_failed_step_ends_the_work_and_names_its_object() {
    let base = format!("/bigquery/v2/projects/{PROJECT}");
    let denied = json!({"error": {"code": 403, "message": "Access Denied", "errors": [{"reason": "accessDenied"}]}});
    let exists = json!({"error": {"code": 409, "message": "Already Exists", "errors": [{"reason": "duplicate"}]}});
    let script = Script::default()
        .on(&format!("POST {base}/datasets"), [(409, exists), (200, json!({}))])
        .on(&format!("POST {base}/datasets/lab/tables"), [(403, denied)]);
    let bigquery = client(&script.serve().await).await;
    let schema = r#"{"event_type":"visit","version":"1-0-0","ingest":"batch","table":{"dataset":"lab","name":"visits"},
        "columns":[{"name":"code","type":"STRING","maxLength":"9"}]}"#;

    let planned = difference(&bigquery, &registry(schema)).await;
    let (object, error) = bigquery.apply(&planned).await.unwrap_err();

    assert_eq!((object.as_str(), error.to_string().as_str()), ("table lab.visits", "Access Denied"));
    let asked = script.asked.lock().unwrap();
    let (_, table) = asked.last().unwrap();
    assert_eq!(table["schema"]["fields"][0]["maxLength"], "9", "a number of 64 bits is a string in this API");
}
