//! The publisher's binary as a Lambda: events of API Gateway and of function URLs through cargo-lambda's runtime, before
//! Pub/Sub servers that take, refuse or say nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipeline_tests::parts::{self, Process, Server};
use pipeline_tests::proxy::Proxy;
use pipeline_tests::publisher_process::{PublisherProcess, command};
use pipeline_tests::pubsub::{PROJECT, PubSubApi};
use pipeline_tests::topic_server::TopicServer;
use pipeline_tests::{NOW, json_lines};
use serde_json::{Value, json};
use shared::clock::{Clock, SECOND};
use shared::credentials;
use shared::publish::pubsub::{ATTEMPT, Options, PubSub};
use shared::publish::{Message, Publisher as _};
use shared::settings::Settings;
use tokio::net::TcpListener;

/// The address that the gateway tells.
const CLIENT: &str = "203.0.113.7";
/// What clients write into headers to be taken for somebody else.
const SPOOFED: &str = "198.51.100.66";

/// The binary under a Lambda runtime.
struct Lambda {
    runtime: Server,
    function: Process,
}

impl Lambda {
    fn start(pubsub: &str, variables: &[(&str, &str)]) -> Option<Self> {
        let runtime = parts::lambda_runtime()?;
        let mut command = command(pubsub, &[]);
        command.env("AWS_LAMBDA_RUNTIME_API", format!("{}/.rt/publisher", runtime.url));
        command.envs([
            ("AWS_LAMBDA_FUNCTION_NAME", "publisher"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ]);
        command.envs(variables.iter().copied());
        Some(Self { runtime, function: Process::start("publisher", command) })
    }

    async fn invoke(&self, event: &Value) -> Answer {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(40)).build().expect("a client");
        let url = format!("{}/2015-03-31/functions/publisher/invocations", self.runtime.url);
        let answer = client.post(url).json(event).send().await.expect("the runtime answers");
        let answer = answer.text().await.expect("the runtime answers text");
        let answer: Value =
            serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}\n{}", self.function.log()));
        let body = answer["body"].as_str().unwrap_or_default();
        // REST APIs read headers of several values, the others do not.
        let header = |name: &str| match &answer["multiValueHeaders"][name][0] {
            Value::Null => answer["headers"][name].clone(),
            value => value.clone(),
        };
        Answer {
            status: answer["statusCode"].as_u64().unwrap_or_default(),
            retry_after: header("retry-after").as_str().map(str::to_string),
            body: serde_json::from_str(body).unwrap_or_default(),
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u64,
    retry_after: Option<String>,
    body: Value,
}

fn headers() -> Value {
    json!({
        "content-type": "application/json",
        "host": "abc123.execute-api.eu-central-1.amazonaws.com",
        "x-forwarded-for": format!("{SPOOFED}, {CLIENT}"),
        "x-forwarded-proto": "https",
        "x-real-ip": SPOOFED,
        "forwarded": format!("for={SPOOFED}"),
    })
}

/// An event of an HTTP API, payload version 2.
fn http_api(stage: &str, path: &str, body: &str, is_base64: bool) -> Value {
    json!({
        "version": "2.0",
        "routeKey": "POST /publish",
        "rawPath": path,
        "rawQueryString": "",
        "headers": headers(),
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc123",
            "domainName": "abc123.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "abc123",
            "http": {
                "method": "POST",
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": CLIENT,
                "userAgent": "curl/8"
            },
            "requestId": "id",
            "routeKey": "POST /publish",
            "stage": stage,
            "time": "20/Oct/2026:00:15:02 +0000",
            "timeEpoch": 1_792_455_302_920_u64
        },
        "body": body,
        "isBase64Encoded": is_base64
    })
}

/// An event of a function URL, which is of the same form but for the names it gives.
fn function_url(body: &str, is_base64: bool) -> Value {
    let mut event = http_api("$default", "/publish", body, is_base64);
    event["routeKey"] = json!("$default");
    event["requestContext"]["routeKey"] = json!("$default");
    event["requestContext"]["domainName"] = json!("abc123.lambda-url.eu-central-1.on.aws");
    event["headers"]["host"] = json!("abc123.lambda-url.eu-central-1.on.aws");
    event
}

/// An event of a REST API, payload version 1.
fn rest_api(body: &str, is_base64: bool) -> Value {
    let headers = headers();
    let many = headers.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), json!([value]))).collect();
    json!({
        "resource": "/publish",
        "path": "/publish",
        "httpMethod": "POST",
        "headers": headers,
        "multiValueHeaders": Value::Object(many),
        "queryStringParameters": null,
        "multiValueQueryStringParameters": null,
        "pathParameters": null,
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc123",
            "domainName": "abc123.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "abc123",
            "httpMethod": "POST",
            "identity": {"sourceIp": CLIENT, "userAgent": "curl/8"},
            "path": "/prod/publish",
            "protocol": "HTTP/1.1",
            "requestId": "id",
            "requestTimeEpoch": 1_792_455_302_920_u64,
            "resourceId": "r",
            "resourcePath": "/publish",
            "stage": "prod"
        },
        "body": body,
        "isBase64Encoded": is_base64
    })
}

fn visit(id: &str) -> Value {
    json!({
        "event_id": id,
        "user_id": "u",
        "session_id": "s",
        "page_url": "https://shop.example.com/",
        "event_name": "page_view",
        "event_timestamp": "2026-10-20T00:15:02Z",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_every_gateway_reach_the_topic_with_the_address_that_the_gateway_tells() {
    let pubsub = TopicServer::start().await;
    let Some(lambda) = Lambda::start(&pubsub.url, &[]) else { return };
    let base64 = |id: &str| base64_simd::STANDARD.encode_to_string(visit(id).to_string());
    let events = [
        ("http-api", http_api("$default", "/publish", &visit("http-api").to_string(), false)),
        ("http-api-stage", http_api("prod", "/prod/publish", &visit("http-api-stage").to_string(), false)),
        ("http-api-base64", http_api("$default", "/publish", &base64("http-api-base64"), true)),
        ("rest-api", rest_api(&visit("rest-api").to_string(), false)),
        ("rest-api-base64", rest_api(&base64("rest-api-base64"), true)),
        ("function-url", function_url(&visit("function-url").to_string(), false)),
        ("function-url-base64", function_url(&base64("function-url-base64"), true)),
    ];
    for (id, event) in &events {
        let answer = lambda.invoke(event).await;
        assert_eq!(answer.status, 200, "{id}: {answer:?}");
        assert_eq!(answer.body["accepted"][0]["event_id"], *id);
        assert_eq!(answer.body["accepted"][0]["problems"], json!([]), "{id}");
    }
    let landed: BTreeMap<_, _> = pubsub
        .taken()
        .iter()
        .flat_map(|message| json_lines(&message.data))
        .map(|event| (event["event_id"].as_str().unwrap().to_string(), event["ip_address"].clone()))
        .collect();
    for (id, _) in &events {
        assert_eq!(landed.get(*id), Some(&json!(CLIENT)), "{id}");
    }
    assert_eq!(landed.len(), events.len());
    assert_eq!(pubsub.taken()[0].attributes["event_type"], "clickstream");
    assert!(!lambda.function.log().contains(CLIENT), "no address in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_refused_by_status_and_the_next_one_is_served() {
    let pubsub = TopicServer::start().await;
    let Some(lambda) = Lambda::start(&pubsub.url, &[]) else { return };
    assert_eq!(lambda.invoke(&http_api("$default", "/publish", "{", false)).await.status, 400);
    assert_eq!(lambda.invoke(&http_api("$default", "/elsewhere", "{}", false)).await.status, 404);
    assert_eq!(pubsub.taken(), []);
    assert_eq!(lambda.invoke(&rest_api(&visit("next").to_string(), false)).await.status, 200);
}

/// Nothing is answered 200 that the topic does not have; the answer comes within the Lambda's time and tells the ids to
/// send again with.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_topic_did_not_take_is_answered_503_in_time() {
    let denied = TopicServer::judging(Box::new(|_| Err((7, "User not authorized to perform this action.")))).await;
    let missing = TopicServer::judging(Box::new(|_| Err((5, "Resource not found")))).await;
    let overloaded = TopicServer::judging(Box::new(|_| Err((14, "try again")))).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let dead = format!("http://127.0.0.1:{}", parts::free_port());
    let timeout = Duration::from_millis(1_500);
    for (what, url) in [
        ("PERMISSION_DENIED", &denied.url),
        ("NOT_FOUND", &missing.url),
        ("UNAVAILABLE", &overloaded.url),
        ("silent", &silent),
        ("dead", &dead),
    ] {
        let Some(lambda) = Lambda::start(url, &[("PUBLISH_TIMEOUT_MS", "1500")]) else { return };
        // The first invocation also waits for the function to come up.
        lambda.invoke(&http_api("$default", "/health", "", false)).await;
        let started = Instant::now();
        let answer = lambda.invoke(&rest_api(&visit("kept").to_string(), false)).await;
        let took = started.elapsed();
        assert_eq!((answer.status, answer.retry_after.as_deref()), (503, Some("2")), "{what}: {answer:?}");
        assert_eq!(answer.body["events"], json!([{"index": 0, "event_id": "kept"}]), "{what}");
        assert!(took < timeout + Duration::from_secs(2), "{what}: {took:?}");
    }
}

/// A Lambda is suspended after its response, and the network forgets the connection meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_on_a_connection_that_has_died_silently_is_served() {
    let pubsub = TopicServer::start().await;
    let proxy = Proxy::before(&pubsub.url).await;
    let publisher = PublisherProcess::start(&proxy.url, &[]);
    assert_eq!(publisher.publish(&visit("before")).await.status(), 200);
    for round in 1..=2 {
        publisher.process.signal("STOP");
        proxy.fall_silent();
        publisher.process.signal("CONT");
        let answer = publisher.publish(&visit("after")).await;
        assert_eq!(answer.status(), 200, "round {round}: {}", publisher.process.log());
        assert_eq!(proxy.accepted(), round + 1, "one new connection");
    }
    assert_eq!(pubsub.taken().len(), 3);
}

/// Topics of one connection before a proxy, with a clock that the test moves.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_idle_for_four_minutes_is_not_used_again() {
    let pubsub = TopicServer::start().await;
    let proxy = Proxy::before(&pubsub.url).await;
    let settings = Settings::from_iter([("PUBSUB_ENDPOINT", proxy.url.as_str())]);
    let clock = Clock::manual(NOW);
    let options = Options {
        wait: Duration::from_millis(1),
        attempt: Duration::from_mins(1),
        give_up_after: Duration::from_mins(2),
    };
    let credentials = credentials::google(&settings).unwrap();
    let connection = PubSub::new(&settings, credentials, options, clock.clone()).await.unwrap();
    let topics = ["projects/p/topics/one", "projects/p/topics/two"].map(|name| connection.topic(name));
    let publish = async || {
        for topic in &topics {
            let message = Message { data: Bytes::from_static(b"{}"), ..Message::default() };
            topic.publish(vec![message]).await.remove(0).unwrap();
        }
    };
    publish().await;
    clock.set(NOW + 240 * SECOND);
    publish().await;
    assert_eq!(proxy.accepted(), 1, "all topics share a connection, which is good for four minutes after each answer");
    clock.set(NOW + 480 * SECOND);
    publish().await;
    assert_eq!(proxy.accepted(), 1);
    // An attempt on the silent connection would outlast this test's patience.
    proxy.fall_silent();
    clock.set(NOW + 721 * SECOND);
    tokio::time::timeout(Duration::from_secs(30), publish()).await.expect("the old connection is not tried");
    assert_eq!((proxy.accepted(), pubsub.taken().len()), (2, 8));
    assert_eq!(ATTEMPT, Duration::from_secs(2));
}

/// As `cargo run -p publisher` does, before Google's own emulator.
#[tokio::test(flavor = "multi_thread")]
async fn over_plain_http_the_address_is_that_of_the_socket() {
    let Some(emulator) = parts::pubsub_emulator() else { return };
    let api = tokio::task::block_in_place(|| PubSubApi::at(&emulator.url));
    tokio::task::block_in_place(|| {
        api.create_topics(&["clickstream-raw-topic"]);
        api.create_pull("look", "clickstream-raw-topic");
    });
    let mut publisher = PublisherProcess::start(&emulator.url, &[]);
    let answer = publisher.publish(&visit("plain")).await;
    assert_eq!(answer.status(), 200, "{}", publisher.process.log());
    let messages = tokio::task::block_in_place(|| {
        let messages = api.pull("look");
        drop(api);
        messages
    });
    let [(data, attributes)] = &messages[..] else { panic!("one message in {PROJECT}: {messages:?}") };
    let event = &json_lines(data)[0];
    assert_eq!((&event["event_id"], &event["ip_address"]), (&json!("plain"), &json!("127.0.0.1")));
    assert_eq!(attributes["source"], "publisher");
    publisher.process.signal("TERM");
    assert_eq!(publisher.process.wait(Duration::from_secs(8)), Some(0));
}
