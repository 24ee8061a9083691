//! Workload identity federation: the publisher's binary logs in to a token service with an AWS role, whose signature moto
//! checks, and publishes to a server that takes nothing without a token that is good at that moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::get;
use axum::{Json, Router};
use futures::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use pipeline_tests::proxy::Proxy;
use pipeline_tests::publisher_process::PublisherProcess;
use pipeline_tests::sts::{AUDIENCE, Role, Sts};
use pipeline_tests::topic_server::{TopicServer, serve};
use pipeline_tests::{NOW, parts};
use serde_json::{Value, json};
use shared::clock::{Clock, SECOND};
use shared::credentials;
use shared::settings::Settings;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

/// How long a token lives here; Google's live an hour.
const LIFE: Duration = Duration::from_secs(5);
/// How long is published without a break.
const UNDER_LOAD: Duration = Duration::from_secs(30);
/// As many clients as would stampede if each renewed on its own.
const CLIENTS: usize = 8;

fn event() -> Value {
    json!({
        "user_id": "u",
        "session_id": "s",
        "page_url": "https://shop.example.com/",
        "event_name": "page_view",
        "event_timestamp": "2026-10-20T00:15:02Z",
    })
}

/// A server that takes what comes with a token of the pool.
async fn topic(sts: &Sts) -> TopicServer {
    let sts = sts.clone();
    let judge = move |token: Option<&str>| {
        if token.is_some_and(|token| sts.accepts(token)) { Ok(()) } else { Err((16, "invalid token")) }
    };
    TopicServer::judging(Box::new(judge)).await
}

/// Everything that may stand in no log.
fn secrets(sts: &Sts, role: &Role) -> Vec<String> {
    let tokens = sts.exchanges().into_iter().filter_map(|exchange| exchange.token).map(|token| token.text);
    tokens.chain([role.secret.clone(), role.session.clone(), "nobody-may-read-this".into()]).collect()
}

fn assert_none_in(log: &str, secrets: &[String]) {
    assert!(log.contains("serving"), "this is the log: {log}");
    for secret in secrets {
        assert!(!log.contains(secret.as_str()), "{secret} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_goes_on_over_every_expiry_with_one_exchange_each_and_after_a_stop() {
    let Some(moto) = parts::moto(true) else { return };
    let role = Role::assume(&moto).await;
    let sts = Sts::start(&moto, LIFE).await;
    let pubsub = topic(&sts).await;
    let mut environment = sts.environment(&role);
    environment.push(("RUST_LOG", "debug".into()));
    let publisher = PublisherProcess::start(&pubsub.url, &environment);

    let until = Instant::now() + UNDER_LOAD;
    let client = async || {
        let mut sent = 0;
        while Instant::now() < until {
            let answer = publisher.publish(&event()).await;
            assert_eq!(answer.status(), 200, "after {sent} events: {}", answer.text().await.unwrap_or_default());
            sent += 1;
        }
        sent
    };
    let sent: usize = join_all((0..CLIENTS).map(|_| client())).await.iter().sum();
    let exchanges = sts.exchanges();
    assert_eq!(pubsub.taken().len(), sent);
    assert!(exchanges.iter().all(|exchange| exchange.token.is_some()), "none was refused");
    // A token is used for nine tenths of its life.
    let fewest = UNDER_LOAD.as_secs().div_ceil(LIFE.as_secs());
    let most = UNDER_LOAD.as_millis() * 10 / (LIFE.as_millis() * 9) + 1;
    let count = exchanges.len() as u64;
    assert!((fewest..=u64::try_from(most).unwrap()).contains(&count), "{count} exchanges, {fewest} to {most} expected");
    println!("{sent} events in {UNDER_LOAD:?} over {count} tokens of {LIFE:?}");

    publisher.process.signal("STOP");
    let last = exchanges.last().and_then(|exchange| exchange.token.clone()).unwrap();
    sleep_until(Instant::from_std(last.ends) + Duration::from_secs(1)).await;
    publisher.process.signal("CONT");
    let answer = publisher.publish(&event()).await;
    assert_eq!(answer.status(), 200, "the first request after a pause");
    assert_eq!(sts.exchanges().len() as u64, count + 1);
    assert_none_in(&publisher.process.log(), &secrets(&sts, &role));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_token_that_was_tampered_with_is_refused() {
    let Some(moto) = parts::moto(true) else { return };
    let role = Role::assume(&moto).await;
    let sts = Sts::start(&moto, LIFE).await;
    let pubsub = topic(&sts).await;
    let publisher = PublisherProcess::start(&pubsub.url, &sts.environment(&role));
    assert_eq!(publisher.publish(&event()).await.status(), 200);
    let form = sts.exchanges()[0].form.clone();
    assert!(sts.exchange(&form).await, "as it was sent it is good");

    let other_audience = AUDIENCE.replace("/providers/lambda", "/providers/other");
    let tampered: [(&str, BTreeMap<String, String>); 6] = [
        ("date", with_header(&form, "x-amz-date", |_| "20261020T001502Z".into())),
        ("session token", with_header(&form, "x-amz-security-token", |token| format!("{token}A"))),
        ("signed header", with_header(&form, "x-goog-cloud-target-resource", |_| other_audience.clone())),
        ("access key", with_header(&form, "authorization", |value| value.replace(&role.key, "ASIAIOSFODNN7EXAMPLE"))),
        ("signature", with_header(&form, "authorization", with_another_last_digit)),
        ("audience", form.clone().into_iter().chain([("audience".into(), other_audience.clone())]).collect()),
    ];
    for (what, form) in tampered {
        assert!(!sts.exchange(&form).await, "{what}");
    }
}

/// A signature ends in a hexadecimal digit.
fn with_another_last_digit(authorization: &str) -> String {
    let (rest, last) = authorization.split_at(authorization.len() - 1);
    format!("{rest}{}", if last == "0" { "1" } else { "0" })
}

/// The form with one header of the signed request replaced.
fn with_header(
    form: &BTreeMap<String, String>,
    name: &str,
    change: impl Fn(&str) -> String,
) -> BTreeMap<String, String> {
    let json = percent_decode_str(&form["subject_token"]).decode_utf8().expect("UTF-8");
    let mut request: Value = serde_json::from_str(&json).expect("JSON");
    let headers = request["headers"].as_array_mut().expect("a list");
    let is_it = |header: &&mut Value| header["key"].as_str().is_some_and(|key| key.eq_ignore_ascii_case(name));
    let header = headers.iter_mut().find(is_it).expect("the header is there");
    let changed = change(header["value"].as_str().expect("text"));
    assert_ne!(header["value"], json!(changed), "{name} is another");
    header["value"] = json!(changed);
    let token = utf8_percent_encode(&request.to_string(), NON_ALPHANUMERIC).to_string();
    form.clone().into_iter().chain([("subject_token".to_string(), token)]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_refused_publishes_nothing_and_leaves_no_secret_in_the_log() {
    let Some(moto) = parts::moto(true) else { return };
    let role = Role { secret: "not-the-key-of-this-role".into(), ..Role::assume(&moto).await };
    let sts = Sts::start(&moto, LIFE).await;
    let pubsub = topic(&sts).await;
    let publisher = PublisherProcess::start(&pubsub.url, &sts.environment(&role));
    let answer = publisher.publish(&event()).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"2".parse().unwrap()));
    assert_eq!(pubsub.taken(), []);
    let log = publisher.process.log();
    assert!(log.contains("invalid_grant: The request signature we calculated does not match."), "{log}");
    assert_none_in(&log, &secrets(&sts, &role));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_that_says_nothing_holds_up_no_request() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pubsub = TopicServer::start().await;
    let role = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"].map(|name| (name, "any".to_string()));
    let mut environment = vec![
        ("WORKLOAD_IDENTITY_AUDIENCE", AUDIENCE.to_string()),
        ("STS_ENDPOINT", format!("http://{}", silent.local_addr().unwrap())),
        ("PUBLISH_TIMEOUT_MS", "1000".to_string()),
    ];
    environment.extend(role);
    let publisher = PublisherProcess::start(&pubsub.url, &environment);
    let started = Instant::now();
    assert_eq!(publisher.publish(&event()).await.status(), 503);
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    assert!(publisher.process.log().contains("token exchange: no answer in time"), "{}", publisher.process.log());
    assert_eq!(pubsub.taken(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_service_account_to_impersonate_the_topic_sees_only_that_ones_token() {
    let Some(moto) = parts::moto(true) else { return };
    let role = Role::assume(&moto).await;
    let sts = Sts::start(&moto, LIFE).await;
    let accounts = sts.clone();
    let judge = move |token: Option<&str>| {
        if token.is_some_and(|token| accounts.accepts_impersonated(token)) { Ok(()) } else { Err((16, "who?")) }
    };
    let pubsub = TopicServer::judging(Box::new(judge)).await;
    let mut environment = sts.environment(&role);
    environment.push(("IMPERSONATE_SERVICE_ACCOUNT", "publisher@p.iam.gserviceaccount.com".into()));
    let publisher = PublisherProcess::start(&pubsub.url, &environment);
    for _ in 0..2 {
        assert_eq!(publisher.publish(&event()).await.status(), 200, "{}", publisher.process.log());
    }
    assert_eq!((pubsub.taken().len(), sts.exchanges().len()), (2, 1));
    assert_none_in(&publisher.process.log(), &secrets(&sts, &role));
}

/// Tokens `token-1`, `token-2`, … of a metadata server, each good for an hour.
async fn metadata_server() -> String {
    let token = async |State(issued): State<Arc<AtomicUsize>>, headers: HeaderMap| {
        assert_eq!(headers["metadata-flavor"], "Google");
        let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
        Json(json!({"access_token": format!("token-{number}"), "expires_in": 3_600, "token_type": "Bearer"}))
    };
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    serve(Router::new().route(path, get(token)).with_state(Arc::default())).await
}

/// A function of Cloud Run has no CPU between requests: what runs then, by a timer, runs late.
#[tokio::test]
async fn a_token_of_the_metadata_server_is_renewed_by_its_age_alone() {
    let proxy = Proxy::before(&metadata_server().await).await;
    let host = proxy.url.trim_start_matches("http://");
    let clock = Clock::manual(NOW);
    let credentials =
        credentials::with_clock(&Settings::from_iter([("GCE_METADATA_HOST", host)]), clock.clone()).unwrap();
    let token =
        async || credentials::headers(&credentials).await.unwrap()["authorization"].to_str().unwrap().to_string();
    assert_eq!(proxy.accepted(), 0, "nothing is asked for before it is needed");
    assert_eq!((token().await, token().await), ("Bearer token-1".into(), "Bearer token-1".into()));
    // No time has passed but on the wall clock, and the connection has died meanwhile.
    proxy.fall_silent();
    clock.set(NOW + 3_400 * SECOND);
    assert_eq!(token().await, "Bearer token-2");
    assert_eq!(proxy.accepted(), 2);
}
