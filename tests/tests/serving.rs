//! The enricher as a process: what it holds, how it ends, what it logs, where its lookups come from.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::{FutureExt, stream};
use pipeline_tests::binary::{PATIENCE, binary_beside};
use pipeline_tests::parts::{Process, Server, free_port, moto, pubsub_emulator};
use pipeline_tests::pubsub::{PROJECT, PubSubApi};
use pipeline_tests::{push, signer};
use reqwest::blocking::Client;
use serde_json::Value;
use shared::clock::Clock;
use shared::metrics::Metrics;
use shared::push::{Answer, answer as push_answer};
use shared::serve::Guard;
use shared::settings::Settings;
use tokio::sync::Notify;

/// A function has 8 s; starting and stopping a process on a busy machine takes a little.
const END: Duration = Duration::from_secs(9);
const EVENT: &[u8] =
    br#"{"event_id": "e-1", "event_name": "page_view", "ip_address": "8.8.8.8", "event_timestamp": "2025-10-20T00:15:00Z"}"#;

/// The enricher, up and ready.
struct Enricher {
    process: Process,
    url: String,
    client: Client,
}

impl Enricher {
    /// Before a Pub/Sub server, with further settings; pushes are not checked.
    fn start(pubsub: &str, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let mut command = Command::new(binary_beside("enricher"));
        command.env_clear().envs([
            ("PUSH_AUTH", "off"),
            ("GOOGLE_CLOUD_PROJECT", PROJECT),
            ("PUBSUB_ENDPOINT", pubsub),
        ]);
        command.env("PORT", port.to_string()).envs(settings.iter().copied());
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        let mut enricher =
            Self { process: Process::start("enricher", command), url: format!("http://127.0.0.1:{port}"), client };
        let (ready, client) = (format!("{}/ready", enricher.url), enricher.client.clone());
        enricher.process.wait_until(|| client.get(&ready).send().is_ok_and(|answer| answer.status() == 200));
        enricher
    }

    /// A push in a thread of its own; its status, none where the connection was closed.
    fn push(&self, body: Vec<u8>, headers: &[(&'static str, &'static str)]) -> JoinHandle<Option<u16>> {
        let mut request = self.client.post(&self.url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        spawn(move || request.send().ok().map(|answer| answer.status().as_u16()))
    }

    fn get(&self, path: &str) -> String {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .and_then(reqwest::blocking::Response::text)
            .expect("it answers")
    }

    /// Waits until so many events came in.
    fn wait_for_received(&self, count: usize) {
        wait_until("events are received", || self.get("/metrics").contains(&format!("received_total {count}\n")));
    }

    /// The lines of its log.
    fn log(&self) -> Vec<Value> {
        let log = self.process.log();
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
    }

    /// Ends it as Cloud Run does: the exit code, and how long it took.
    fn end(&mut self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        self.process.signal("TERM");
        (self.process.wait(PATIENCE), started.elapsed())
    }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A Pub/Sub server that takes connections and says nothing: whatever is published is held.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

/// Google's emulator with the enricher's topics, each with a subscription of its name.
fn emulator() -> Option<(Server, PubSubApi)> {
    let server = pubsub_emulator()?;
    let api = PubSubApi::at(&server.url);
    let topics = ["clickstream-enriched-topic", "clickstream-dead-letter-topic"];
    api.create_topics(&topics);
    for topic in topics {
        api.create_pull(topic, topic);
    }
    Some((server, api))
}

#[test]
fn at_sigterm_what_is_held_is_published_and_answered() {
    let Some((server, api)) = emulator() else { return };
    let mut enricher = Enricher::start(&server.url, &[("PACK_WAIT_MS", "3600000")]);
    let pushes: Vec<_> = (0..20).map(|id: u32| enricher.push(push(&id.to_string(), &[], EVENT), &[])).collect();
    enricher.wait_for_received(20);
    let (code, took) = enricher.end();
    let answers: Vec<_> = pushes.into_iter().map(|push| push.join().unwrap()).collect();
    assert_eq!((answers, code), (vec![Some(204); 20], Some(0)));
    assert!(took < END, "{took:?}");
    let rows: usize =
        api.pull("clickstream-enriched-topic").iter().map(|(data, _)| data.split(|&b| b == b'\n').count()).sum();
    assert_eq!(rows, 20);
    let log = enricher.log();
    let counts = log.iter().rev().find(|line| line["message"] == "counts").expect("the last counts are written");
    assert_eq!(counts["metrics"]["landed"], 20, "{counts}");
}

#[test]
fn it_ends_in_time_before_a_topic_that_says_nothing() {
    let (_listener, url) = silent();
    let mut enricher = Enricher::start(&url, &[]);
    let push = enricher.push(push("1", &[], EVENT), &[]);
    enricher.wait_for_received(1);
    let (_, took) = enricher.end();
    assert!(took < END, "{took:?}");
    assert_ne!(push.join().unwrap(), Some(204), "nothing is vouched for");
}

#[test]
fn past_its_limit_a_push_is_to_come_again_and_health_is_answered() {
    let (_listener, url) = silent();
    let enricher = Enricher::start(&url, &[("MAX_CONCURRENT_REQUESTS", "2")]);
    let _held: Vec<_> = (0..2).map(|_| enricher.push(push("1", &[], EVENT), &[])).collect();
    enricher.wait_for_received(2);
    for _ in 0..3 {
        assert_eq!(enricher.push(push("1", &[], EVENT), &[]).join().unwrap(), Some(503));
    }
    assert_eq!(enricher.get("/health"), r#"{"status":"ok"}"#);
    let log = enricher.log();
    let refusals: Vec<_> = log.iter().filter(|line| !line["requests"].is_null()).collect();
    assert_eq!(refusals.len(), 1, "one line, not one a request: {refusals:?}");
}

#[test]
fn a_line_of_the_log_has_the_trace_of_its_request_and_nothing_of_its_payload() {
    let (_listener, url) = silent();
    let enricher = Enricher::start(&url, &[]);
    let lines = |of: &str| enricher.log().into_iter().filter(|line| line["message"] == of).collect::<Vec<_>>();
    let traces = [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("x-cloud-trace-context", "4bf92f3577b34da6a3ce929d0e0e4737/67667974448284343;o=1"),
        ("traceparent", "00-jane-doe@example.com-01"),
    ];
    // Of each reason one line a minute is written.
    let events = [
        r#"{"ip_address": "jane-doe@example.com""#,
        r#"["jane-doe@example.com"]"#,
        r#"{"event_timestamp": "jane-doe@example.com"}"#,
    ];
    let mut pushes = Vec::new();
    for (count, (trace, event)) in traces.into_iter().zip(events).enumerate() {
        pushes.push(enricher.push(push("1", &[], event), &[trace]));
        pushes.push(enricher.push(push("2", &[], event), &[trace]));
        wait_until("a dead letter is logged", || lines("dead letter").len() > count);
    }
    let letters = lines("dead letter");
    assert_eq!(letters.len(), 3, "one line a reason: {letters:?}");
    let of = |line: &Value| {
        let field = |name: &str| line[format!("logging.googleapis.com/{name}")].clone();
        [line["severity"].clone(), field("trace"), field("spanId")]
    };
    let trace = |end: &str| Value::from(format!("projects/{PROJECT}/traces/4bf92f3577b34da6a3ce929d0e0e473{end}"));
    assert_eq!(of(&letters[0]), ["INFO".into(), trace("6"), "00f067aa0ba902b7".into()]);
    assert_eq!(of(&letters[1]), ["INFO".into(), trace("7"), "00f067aa0ba902b7".into()]);
    assert_eq!(of(&letters[2]), ["INFO".into(), Value::Null, Value::Null]);
    assert!(!enricher.process.log().contains("jane"), "{}", enricher.process.log());
}

#[test]
fn a_request_that_is_not_let_in_is_logged_without_its_token() {
    let (_listener, url) = silent();
    let key = signer::SigningKey::generate("first");
    let keys = signer::KeyServer::start(&[&key]);
    let settings = [
        ("PUSH_AUTH", "oidc"),
        ("PUSH_KEYS_URL", keys.url.as_str()),
        ("PUSH_AUDIENCE", signer::AUDIENCE),
        ("PUSH_SERVICE_ACCOUNT", signer::ACCOUNT),
    ];
    let enricher = Enricher::start(&url, &settings);
    let token = key.sign(&signer::claims_but(0, "aud", "https://other.example.com".into()));
    let request = enricher.client.post(&enricher.url).bearer_auth(&token).body(push("1", &[], EVENT));
    assert_eq!(request.send().unwrap().status(), 401);
    let log = enricher.process.log();
    assert!(log.contains("another audience"), "{log}");
    assert!(!token.split('.').any(|part| log.contains(part)), "{log}");
}

#[test]
fn lookups_and_schemas_come_from_s3() {
    let Some((server, api)) = emulator() else { return };
    let Some(s3) = moto(false) else { return };
    let client = Client::new();
    let put = |path: &str, text: String| {
        // moto takes what an unsigned request would make, but not what it would change.
        let signed =
            "AWS4-HMAC-SHA256 Credential=key/20251020/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let request = client.put(format!("{}/lake/{path}", s3.url)).header("authorization", signed);
        let answer = request.body(text).send().unwrap();
        assert_eq!(answer.status(), 200);
    };
    put("", String::new());
    put("lookups/geo.csv", "first_octet,country,city\n8,US,Monroe\n".into());
    put("schemas/search.json", SEARCH.into());
    let settings = [
        ("GEO_URI", "s3://lake/lookups/geo.csv"),
        ("SCHEMAS_URI", "s3://lake/schemas/"),
        ("LOOKUP_MAX_AGE_MS", "0"),
        ("AWS_ENDPOINT_URL", s3.url.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let enricher = Enricher::start(&server.url, &settings);
    let city = |event_type: &str| {
        let answer = enricher.push(push("1", &[("event_type", event_type)], EVENT), &[]).join().unwrap();
        assert_eq!(answer, Some(204));
        let rows = api.pull("clickstream-enriched-topic");
        let row: Value = serde_json::from_slice(&rows.first().expect("a row").0).unwrap();
        row["city"].as_str().unwrap_or_default().to_string()
    };
    assert_eq!(city("clickstream"), "Monroe");
    assert_eq!(city("search"), "Monroe", "a type that only the bucket knows");
    put("lookups/geo.csv", "first_octet,country,city\n8,FR,Paris\n".into());
    assert_eq!(city("clickstream"), "Paris");
    put("lookups/geo.csv", "first_octet,country,city\nx,FR,Lyon\n".into());
    assert_eq!(city("clickstream"), "Paris", "a broken table does not come into force");
}

const SEARCH: &str = r#"{
    "event_type": "search", "version": "1-0-0", "ingest": "public",
    "table": {"dataset": "contextflow", "name": "search_events", "time_partitioning": {"type": "DAY", "field": "event_timestamp"}},
    "columns": [
        {"name": "event_timestamp", "type": "TIMESTAMP", "description": "When it happened"},
        {"name": "ip_address", "type": "STRING", "description": "Address of the client"},
        {"name": "city", "type": "STRING", "description": "City of the client"}
    ],
    "enrichments": [{"enrichment": "geo", "from": "ip_address", "into": {"city": "city"}}]
}"#;

/// A request that Cloud Storage got: method, path with query, `Authorization`.
type Recorded = (String, String, Option<String>);

/// What Cloud Storage is asked, and what it has: one object, by its generation.
#[derive(Clone, Default)]
struct Storage {
    requests: Arc<Mutex<Vec<Recorded>>>,
    generation: Arc<Mutex<u32>>,
}

impl Storage {
    /// Starts it in a thread of its own; its address.
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(Self::answer).with_state(self.clone());
        spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                listener.set_nonblocking(true).expect("a listener that tokio takes");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener that tokio takes");
                axum::serve(listener, router).await
            })
        });
        url
    }

    #[expect(clippy::unused_async, reason = "axum takes handlers that are")]
    async fn answer(State(storage): State<Self>, request: Request<Body>) -> Response {
        let token = request.headers().get("authorization").map(|value| value.to_str().unwrap_or_default().to_string());
        let recorded = (request.method().to_string(), request.uri().to_string(), token);
        storage.requests.lock().unwrap().push(recorded);
        let generation = *storage.generation.lock().unwrap();
        let table = format!("first_octet,country,city\n8,US,City {generation}\n");
        let headers = [
            ("etag", format!("\"{generation}\"")),
            ("x-goog-generation", generation.to_string()),
            ("last-modified", "Tue, 20 Oct 2026 00:15:02 GMT".into()),
            ("content-length", table.len().to_string()),
        ];
        let body = if request.method() == Method::HEAD { Body::empty() } else { Body::from(table) };
        (headers, body).into_response()
    }

    fn requests(&self) -> Vec<(String, String)> {
        let requests = self.requests.lock().unwrap();
        assert!(requests.iter().all(|(_, _, token)| token.is_none()), "no token goes to an emulator: {requests:?}");
        requests.iter().map(|(method, path, _)| (method.clone(), path.clone())).collect()
    }
}

#[test]
fn lookups_come_from_cloud_storage_and_only_a_new_generation_is_read_again() {
    let (storage, (_listener, pubsub)) = (Storage::default(), silent());
    let url = storage.start();
    let settings = [("GEO_URI", "gs://lookups/v1/geo.csv"), ("STORAGE_ENDPOINT", &url), ("LOOKUP_MAX_AGE_MS", "0")];
    let enricher = Enricher::start(&pubsub, &settings);
    let asked = |method: &str| (method.to_string(), "/lookups/v1%2Fgeo%2Ecsv".to_string());
    assert_eq!(storage.requests(), [asked("GET")], "loaded before it is ready");

    let _first = enricher.push(push("1", &[], EVENT), &[]);
    enricher.wait_for_received(1);
    assert_eq!(storage.requests(), [asked("GET"), asked("HEAD")], "looked at, the same");

    *storage.generation.lock().unwrap() = 1;
    let _second = enricher.push(push("2", &[], EVENT), &[]);
    enricher.wait_for_received(2);
    assert_eq!(storage.requests()[2..], [asked("HEAD"), asked("GET")], "another generation");
    let reloads = enricher.log().iter().filter(|line| line["is_reload"] == true).count();
    assert_eq!(reloads, 1);
}

/// A function that answers when it is told to, behind a guard that holds a thousand bytes.
struct Gated {
    router: Router,
    guard: Guard,
    gate: Arc<Notify>,
}

impl Gated {
    fn start() -> Self {
        let gate = Arc::new(Notify::new());
        let wait = Arc::clone(&gate);
        let handle = async move |body: axum::body::Bytes| {
            wait.notified().await;
            body.len().to_string()
        };
        let settings = Settings::from_iter([("PUSH_AUTH", "off"), ("MAX_HELD_BYTES", "1000")]);
        let guard = Guard::read(&settings, Clock::system()).expect("settings that can be used");
        let limit = axum::extract::DefaultBodyLimit::disable();
        let router = Router::new().route("/", post(handle.clone())).route("/other", post(handle)).layer(limit);
        Self { router, guard, gate }
    }

    async fn post(&self, body: Body) -> (StatusCode, String) {
        self.post_to("/", body).await
    }

    async fn post_to(&self, path: &str, body: Body) -> (StatusCode, String) {
        let answer = self.guard.answer(&self.router, Request::post(path).body(body).unwrap()).await;
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// A body that comes in chunks, without saying how many.
fn chunks(count: usize, size: usize) -> Body {
    let chunk = axum::body::Bytes::from(vec![b'x'; size]);
    Body::from_stream(stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(chunk.clone()))))
}

#[tokio::test]
async fn a_body_waits_for_room_and_then_comes_in() {
    for second in [Body::from(vec![b'x'; 600]), chunks(3, 200)] {
        let gated = Gated::start();
        let mut first = Box::pin(gated.post(Body::from(vec![b'x'; 600])));
        let mut second = Box::pin(gated.post(second));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        // Only the first is in the handler: the second would take this as well.
        gated.gate.notify_waiters();
        assert_eq!(first.await, (StatusCode::OK, "600".into()));
        assert!((&mut second).now_or_never().is_none(), "it came in only now");
        gated.gate.notify_waiters();
        assert_eq!(second.await, (StatusCode::OK, "600".into()));
    }
}

#[tokio::test]
async fn what_is_held_on_one_path_takes_no_room_from_another() {
    let gated = Gated::start();
    let mut first = Box::pin(gated.post(Body::from(vec![b'x'; 1_000])));
    let mut other = Box::pin(gated.post_to("/other", Body::from(vec![b'x'; 1_000])));
    assert!((&mut first).now_or_never().is_none() && (&mut other).now_or_never().is_none());
    // Both are in their handlers.
    gated.gate.notify_waiters();
    assert_eq!((first.await.0, other.await.0), (StatusCode::OK, StatusCode::OK));
}

/// Pub/Sub gives a push up at its deadline; its bytes are held for as long as the work on it goes on.
#[tokio::test]
async fn work_that_nobody_waits_for_any_more_keeps_its_room() {
    let (gate, metrics) = (Arc::new(Notify::new()), Arc::new(Metrics::new(Clock::system())));
    let wait = Arc::clone(&gate);
    let handle = async move |body: axum::body::Bytes| {
        let wait = Arc::clone(&wait);
        push_answer(&metrics, async move {
            wait.notified().await;
            drop(body);
            Answer::Settled
        })
        .await
    };
    let settings = Settings::from_iter([("PUSH_AUTH", "off"), ("MAX_CONCURRENT_REQUESTS", "1")]);
    let guard = Guard::read(&settings, Clock::system()).unwrap();
    let router = Router::new().route("/", post(handle));
    let ask = || guard.answer(&router, Request::post("/").body(Body::from("x")).unwrap());

    assert!(Box::pin(ask()).now_or_never().is_none(), "given up at once");
    assert_eq!(ask().await.status(), StatusCode::SERVICE_UNAVAILABLE, "the work goes on");

    tokio::task::yield_now().await;
    gate.notify_waiters();
    tokio::task::yield_now().await;
    gate.notify_one();
    assert_eq!(ask().await.status(), StatusCode::NO_CONTENT, "it has come to its end");
}

#[tokio::test]
async fn a_body_larger_than_all_the_room_comes_in_alone_and_one_without_end_does_not() {
    for large in [Body::from(vec![b'x'; 5_000]), chunks(5, 1_000)] {
        let gated = Gated::start();
        gated.gate.notify_one();
        assert_eq!(gated.post(large).await, (StatusCode::OK, "5000".into()));
    }
    let gated = Gated::start();
    assert_eq!(gated.post(chunks(usize::MAX, 1 << 20)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    gated.gate.notify_one();
    assert_eq!(gated.post(Body::from("x")).await.0, StatusCode::OK, "the room is given back");
}
