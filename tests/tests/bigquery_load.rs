//! Bulk loads into `BigQuery`, against a Storage Write server that fails as told and a REST server that keeps what it is
//! asked.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use pipeline_tests::storage_write::{Act, StorageWrite};
use pipeline_tests::{NOW, built_in};
use serde_json::{Value as Json, json};
use shared::clock::Clock;
use shared::load::{Load, Loader as _, Mode};
use shared::row::Value;
use shared::schema::Plan;
use shared::settings::Settings;
use shared::sink::bigquery::Options;
use shared::sink::bigquery::load::BigQueryLoader;
use tonic::Code;

const QUICK: Options = Options {
    in_flight: 4,
    answer_within: Duration::from_secs(5),
    tries: 4,
    pause: Duration::from_millis(1),
    give_up_after: Duration::MAX,
};
const STAGING: &str = "clickstream_dw.sessions__r1";

/// What BigQuery says to a transaction that would change rows which were streamed within the last 30 minutes.
const STREAMED: &str =
    "UPDATE or DELETE statement over table p.d.t would affect rows in the streaming buffer, which is not supported";

/// The REST side: what was made is there, every query works, and the transaction publishes, unless it may delete what was
/// streamed just now to a table of events.
#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    documents: BTreeMap<String, Json>,
    statements: Vec<String>,
    /// What the next transactions fail with.
    refusals: VecDeque<&'static str>,
    is_published: bool,
}

impl Rest {
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    /// Names of the tables and datasets there are.
    fn names(&self) -> Vec<String> {
        let told = self.0.lock().unwrap();
        told.documents.keys().map(|path| path.rsplit_once("projects/p/").unwrap().1.to_string()).collect()
    }

    /// How often a transaction was run.
    fn transactions(&self) -> usize {
        let told = self.0.lock().unwrap();
        told.statements.iter().filter(|sql| sql.starts_with("BEGIN TRANSACTION")).count()
    }
}

async fn answer(State(rest): State<Rest>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Json = serde_json::from_slice(&body).unwrap_or_default();
    let mut told = rest.0.lock().unwrap();
    let not_found = (404, json!({"error": {"code": 404, "message": format!("Not found: {path}")}}));
    let (status, json) = match method {
        Method::GET => told.documents.get(&path).map_or(not_found, |document| (200, document.clone())),
        Method::DELETE => told.documents.remove(&path).map_or(not_found, |_| (204, Json::Null)),
        _ if path.ends_with("/queries") => told.query(body["query"].as_str().unwrap()),
        _ => {
            let id = &body["tableReference"]["tableId"];
            let id = id.as_str().or(body["datasetReference"]["datasetId"].as_str()).unwrap();
            told.documents.insert(format!("{path}/{id}"), body.clone());
            (200, body)
        }
    };
    (StatusCode::from_u16(status).unwrap(), json.to_string()).into_response()
}

impl Told {
    fn query(&mut self, sql: &str) -> (u16, Json) {
        self.statements.push(sql.to_string());
        if sql.starts_with("BEGIN TRANSACTION") {
            let changes_streamed_rows = |statement: &str| {
                let is_mutation = statement.starts_with("DELETE") || statement.starts_with("TRUNCATE");
                is_mutation && statement.contains("clickstream") && !statement.contains("`loaded_at` <")
            };
            let refusal = sql.lines().any(changes_streamed_rows).then_some(STREAMED);
            if let Some(message) = refusal.or_else(|| self.refusals.pop_front()) {
                return (400, json!({"error": {"code": 400, "message": message}}));
            }
            self.is_published = true;
        }
        let rows =
            if sql.starts_with("SELECT") && self.is_published { json!([{"f": [{"v": "r1"}]}]) } else { json!([]) };
        let fields = json!([{"name": "run", "type": "STRING"}]);
        (200, json!({"jobComplete": true, "schema": {"fields": fields}, "rows": rows}))
    }
}

/// Both sides with a loader of them.
struct Fixture {
    server: StorageWrite,
    rest: Rest,
    loader: BigQueryLoader,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(QUICK).await
    }

    async fn with(options: Options) -> Self {
        let (server, rest) = (StorageWrite::start().await, Rest::default());
        let settings = Settings::from_iter([
            ("GOOGLE_CLOUD_PROJECT", "p"),
            ("BIGQUERY_GRPC_ENDPOINT", &server.url),
            ("BIGQUERY_REST_ENDPOINT", &rest.serve().await),
        ]);
        let loader = BigQueryLoader::with(&settings, None, options, Clock::manual(NOW)).await.unwrap();
        Self { server, rest, loader }
    }

    async fn begin(&self, checkpoint: Option<&Json>) -> Result<Box<dyn Load>, String> {
        self.loader.begin("r1", &[sessions()], Mode::Append, checkpoint).await
    }

    /// That exactly these sessions are in the staging table, each once and in their order.
    fn assert_committed(&self, numbers: std::ops::Range<usize>) {
        let line =
            |number| format!(r#"{{"session_key":"k","session_id":"s{number}","user_id":"u","device_type":"d"}}"#);
        let expected: Vec<_> = numbers.map(line).collect();
        assert_eq!(self.server.committed(STAGING), expected);
    }
}

fn sessions() -> Arc<Plan> {
    Arc::clone(built_in().get("session").unwrap())
}

/// Adds sessions by their numbers and sends them, ten a request.
async fn send(load: &mut dyn Load, numbers: std::ops::Range<usize>) -> Result<(), String> {
    for number in numbers {
        let id = format!("s{number}");
        let texts = ["k", &id, "u"].map(Value::borrowed);
        let values: Vec<_> = texts.into_iter().chain([Value::Null, Value::Null, Value::borrowed("d")]).collect();
        load.add(0, &values);
        if number % 10 == 9 {
            load.flush().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_made_and_what_was_staged_is_dropped_at_the_end() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    let expected = [
        "datasets/clickstream_dw",
        "datasets/clickstream_dw/tables/sessions",
        "datasets/clickstream_dw/tables/sessions__r1",
        "datasets/contextflow",
        "datasets/contextflow/tables/loads",
    ];
    assert_eq!(fixture.rest.names(), expected);
    let staged = fixture.rest.0.lock().unwrap().documents.values().nth(2).unwrap().clone();
    assert_eq!(staged["expirationTime"], "1793060102920", "7 days after now");
    assert_eq!(staged["schema"]["fields"][6], json!({"name": "load_segment", "type": "INTEGER", "mode": "REQUIRED"}));

    send(&mut *load, 0..25).await.unwrap();
    assert!(load.held() > 0, "five rows wait");
    load.publish().await.unwrap();

    fixture.assert_committed(0..25);
    assert_eq!((fixture.rest.transactions(), fixture.rest.names().len()), (1, 4));
    fixture.begin(None).await.unwrap().abandon().await.unwrap();
    assert_eq!(fixture.rest.names().len(), 4);
}

#[tokio::test]
async fn after_whatever_may_pass_every_row_is_there_once_and_in_order() {
    for act in [
        Act::Refuse(Code::ResourceExhausted),
        Act::Refuse(Code::Internal),
        Act::End(Code::Unavailable),
        Act::End(Code::Unauthenticated),
        Act::TakeAndEnd(Code::Aborted),
        Act::Reset,
        Act::GoAway,
    ] {
        let fixture = Fixture::start().await;
        let mut load = fixture.begin(None).await.unwrap();
        fixture.server.then([Act::Take, act, Act::Take, act, act]);

        send(&mut *load, 0..100).await.unwrap();
        load.checkpoint().await.unwrap();

        fixture.assert_committed(0..100);
    }
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_sent_again_with_its_number() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    fixture.server.then([Act::TakeAndEnd(Code::Unavailable)]);

    send(&mut *load, 0..10).await.unwrap();
    load.checkpoint().await.unwrap();

    fixture.assert_committed(0..10);
    let offsets: Vec<_> = fixture.server.came().iter().map(|came| came.offset).collect();
    assert_eq!(offsets, [Some(0), Some(0)]);
}

#[tokio::test]
async fn an_answer_that_never_comes_is_not_waited_for() {
    let fixture = Fixture::with(Options { answer_within: Duration::from_millis(200), ..QUICK }).await;
    let mut load = fixture.begin(None).await.unwrap();
    fixture.server.then([Act::Take, Act::Silence]);
    send(&mut *load, 0..30).await.unwrap();
    load.checkpoint().await.unwrap();
    fixture.assert_committed(0..30);
}

#[tokio::test]
async fn several_requests_are_on_their_way_and_not_too_many() {
    let fixture = Fixture::with(Options { in_flight: 2, ..QUICK }).await;
    let mut load = fixture.begin(None).await.unwrap();
    fixture.server.then([Act::TakeAfter(Duration::from_millis(300))]);
    send(&mut *load, 0..20).await.unwrap();
    assert_eq!(fixture.server.committed(STAGING).len(), 0);
    assert!(fixture.server.came().len() < 2, "nobody waited for the first");
    send(&mut *load, 20..100).await.unwrap();
    load.checkpoint().await.unwrap();
    fixture.assert_committed(0..100);
    assert_eq!((fixture.server.came().len(), fixture.server.calls()), (10, 1));
}

#[tokio::test]
async fn a_burst_that_outlasts_the_tries_ends_the_run() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    fixture.server.then([Act::Refuse(Code::ResourceExhausted); 4]);
    send(&mut *load, 0..10).await.unwrap();
    let error = load.checkpoint().await.unwrap_err();
    assert_eq!(error, "clickstream_dw.sessions: BigQuery: ResourceExhausted: told to refuse");
    fixture.assert_committed(0..0);
}

#[tokio::test]
async fn a_row_that_is_named_as_bad_ends_the_run_with_its_number() {
    let fixture = Fixture::start().await;
    fixture.server.name_bad_rows(&["s47", "s43"]);
    let mut load = fixture.begin(None).await.unwrap();
    send(&mut *load, 0..30).await.unwrap();
    load.checkpoint().await.unwrap();
    send(&mut *load, 30..50).await.unwrap();
    let error = load.checkpoint().await.unwrap_err();
    let words =
        "row 44 of clickstream_dw.sessions: BigQuery: Field session_id is bad.; 1 more rows of its request are bad";
    assert_eq!(error, words);
    fixture.assert_committed(0..30);
}

#[tokio::test]
async fn a_row_that_no_request_can_hold_ends_the_run_with_its_number() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    let long = |size: usize| Value::Text("x".repeat(size).into());
    for size in [800_000, 9_000_000] {
        load.add(0, &[long(size), Value::Null, Value::Null, Value::Null, Value::Null, Value::Null]);
    }
    let error = load.flush().await.unwrap_err();
    assert!(error.starts_with("row 2 of clickstream_dw.sessions has 9000005 bytes; "), "{error}");
}

#[tokio::test]
async fn large_rows_go_in_requests_that_bigquery_takes() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    let long = "x".repeat(800_000);
    for _ in 0..30 {
        let values: Vec<_> = [&long, "s", "u", "a", "g", "d"].map(Value::borrowed).into();
        load.add(0, &values);
    }
    assert!((24_000_000..24_010_000).contains(&load.held()), "{}", load.held());
    load.flush().await.unwrap();
    assert_eq!(load.held(), 0);
    load.checkpoint().await.unwrap();
    let came = fixture.server.came();
    assert_eq!(came.iter().map(|came| came.rows).collect::<Vec<_>>(), [11, 11, 8]);
    assert!(came.iter().all(|came| came.bytes < 9_100_000), "{came:?}");
}

#[tokio::test]
async fn rows_that_bigquery_has_lost_end_the_run() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    fixture.server.lose_a_row();
    send(&mut *load, 0..10).await.unwrap();
    let error = load.checkpoint().await.unwrap_err();
    assert_eq!(error, "clickstream_dw.sessions: BigQuery has 9 rows of 10 that were sent");
    fixture.assert_committed(0..0);
}

#[tokio::test]
async fn streams_are_made_ended_and_committed_once_whatever_becomes_of_the_answers() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    fixture.server.lose_answers([Code::Unavailable, Code::Internal]);
    send(&mut *load, 0..10).await.unwrap();
    load.checkpoint().await.unwrap();
    fixture.assert_committed(0..10);

    send(&mut *load, 10..20).await.unwrap();
    fixture.server.lose_answers([Code::Unavailable, Code::DeadlineExceeded]);
    load.checkpoint().await.unwrap();
    fixture.assert_committed(0..20);
}

#[tokio::test]
async fn a_checkpoint_names_what_counts() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    send(&mut *load, 0..10).await.unwrap();
    let first = load.checkpoint().await.unwrap();
    send(&mut *load, 10..20).await.unwrap();
    let forgotten = load.checkpoint().await.unwrap();
    assert_eq!(forgotten["rows"], json!([20]));

    let mut load = fixture.begin(Some(&first)).await.unwrap();
    send(&mut *load, 20..30).await.unwrap();
    let last = load.checkpoint().await.unwrap();
    load.publish().await.unwrap();

    assert_eq!(last["rows"], json!([20]));
    let told = fixture.rest.0.lock().unwrap();
    let script = told.statements.iter().find(|sql| sql.starts_with("BEGIN TRANSACTION")).unwrap();
    let segments = |checkpoint: &Json| checkpoint["segments"].as_array().unwrap().iter().map(Json::to_string).collect();
    let (last, forgotten): (Vec<_>, Vec<_>) = (segments(&last), segments(&forgotten));
    assert!(script.contains(&last.join(", ")) && !script.contains(&forgotten[1]), "{script}");
}

#[tokio::test]
async fn a_transaction_that_met_another_one_is_tried_again_and_other_refusals_are_told() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    send(&mut *load, 0..10).await.unwrap();
    let checkpoint = load.checkpoint().await.unwrap();
    fixture.rest.0.lock().unwrap().refusals.push_back("Access Denied: Table p:contextflow.loads");
    assert_eq!(load.publish().await.unwrap_err(), "publishing run r1: Access Denied: Table p:contextflow.loads");
    assert_eq!(fixture.rest.names().len(), 5, "what was staged stays, to be published later");

    let met = "Transaction is aborted due to concurrent update against table p:contextflow.loads. Transaction ID: 1";
    fixture.rest.0.lock().unwrap().refusals.push_back(met);
    fixture.begin(Some(&checkpoint)).await.unwrap().publish().await.unwrap();
    assert_eq!(fixture.rest.transactions(), 3);

    // Its staging tables are gone, and nothing is left to be done.
    fixture.begin(Some(&checkpoint)).await.unwrap().publish().await.unwrap();
    assert_eq!(fixture.rest.transactions(), 3);
}

#[tokio::test]
async fn a_live_table_of_events_is_rebuilt_without_deleting_what_was_streamed_just_now() {
    let fixture = Fixture::start().await;
    let clicks = Arc::clone(built_in().get("clickstream").unwrap());
    for (run, mode) in [("r1", Mode::Replace), ("r2", Mode::ReplaceDays { first: 20_000, last: 20_001 })] {
        fixture.rest.0.lock().unwrap().is_published = false;
        fixture.loader.begin(run, &[Arc::clone(&clicks)], mode, None).await.unwrap().publish().await.unwrap();
        let told = fixture.rest.0.lock().unwrap();
        let script = told.statements.iter().rfind(|sql| sql.starts_with("BEGIN TRANSACTION")).unwrap();
        assert!(script.contains("NOT EXISTS"), "what has stayed is not shown twice: {script}");
    }
}

#[tokio::test]
async fn a_transaction_that_would_change_streamed_rows_says_when_it_can_be_run() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    send(&mut *load, 0..10).await.unwrap();
    fixture.rest.0.lock().unwrap().refusals.push_back(STREAMED);
    let error = load.publish().await.unwrap_err();
    assert_eq!(
        error,
        format!(
            "publishing run r1: {STREAMED}; nothing was changed; publish it when nothing was streamed to the table for 30 minutes"
        )
    );
    assert_eq!(fixture.rest.names().len(), 5, "what was staged stays");
}

#[tokio::test]
async fn a_run_whose_staged_rows_are_gone_is_not_published_without_them() {
    let fixture = Fixture::start().await;
    let mut load = fixture.begin(None).await.unwrap();
    send(&mut *load, 0..10).await.unwrap();
    let checkpoint = load.checkpoint().await.unwrap();
    load.abandon().await.unwrap();
    let error = fixture.begin(Some(&checkpoint)).await.err().unwrap();
    assert!(error.contains("there is no table clickstream_dw.sessions__r1 (they are kept for 7 days)"), "{error}");
}

#[tokio::test]
async fn a_table_that_would_lose_a_column_is_not_loaded() {
    let fixture = Fixture::start().await;
    fixture.begin(None).await.unwrap().abandon().await.unwrap();
    for (path, document) in &mut fixture.rest.0.lock().unwrap().documents {
        if path.ends_with("/sessions") {
            document["schema"]["fields"][0]["type"] = json!("INTEGER");
        }
    }
    let error = fixture.begin(None).await.err().unwrap();
    let words = "table clickstream_dw.sessions: column session_key is INTEGER, in the schema STRING; see";
    assert!(error.starts_with(words), "{error}");
    assert!(fixture.loader.begin("r1", &[sessions()], Mode::Recreate, None).await.is_ok(), "it is to be made anew");
    let name = fixture.loader.begin("R 1'", &[sessions()], Mode::Append, None).await.err().unwrap();
    assert_eq!(name, "`R 1'` names no run: give 1 to 40 of 0-9, a-z and _");
}
