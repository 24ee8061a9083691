//! Whom `contextflow dev` answers: its own pages and programs of this machine, other pages for events alone, and on the
//! push paths the bus.

use pipeline_tests::binary::{Dev, PATIENCE, PUSH_TOKEN};
use pipeline_tests::{PUBLISHED_AT, push};
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::json;

const REPLAY: &str = "/api/dead-letters/replay";

fn client() -> Client {
    Client::builder().timeout(PATIENCE).build().expect("a client")
}

/// Status and body.
fn answer(request: RequestBuilder) -> (u16, String) {
    let answer = request.send().expect("an answer");
    (answer.status().as_u16(), answer.text().expect("a text"))
}

#[test]
fn a_page_that_rebinds_its_name_reads_nothing_and_starts_nothing() {
    let (dev, client) = (Dev::start(&[]), client());
    let host = format!("evil.example:{}", dev.port);
    for path in ["/", "/api/report", "/api/visits", "/api/trace/e-1", "/batcher/ready", "/enricher/metrics", "/ready"] {
        let (status, body) = answer(client.get(dev.url(path)).header("host", &host));
        assert_eq!(status, 421, "{path}: {body}");
        assert!(body.contains("--allow-host") && !body.contains("data_dir"), "{path}: {body}");
    }
    for path in [REPLAY, "/enricher", "/batcher", "/publish"] {
        let request = client.post(dev.url(path)).header("host", &host).header("content-type", "application/json");
        assert_eq!(answer(request.bearer_auth(PUSH_TOKEN).body("{}")).0, 421, "{path}");
    }
    assert!(dev.get("/api/report")["data_dir"].is_string(), "under its own name it is read");
}

#[test]
fn a_page_of_another_origin_may_send_events_and_nothing_else() {
    let (dev, client) = (Dev::start(&[]), client());
    // What a page may send without asking first: plain text, with the browser's own headers.
    let simple = |path: &str, origin: &str| {
        client.post(dev.url(path)).header("origin", origin).header("content-type", "text/plain")
    };
    for origin in ["http://evil.example", "null", "http://localhost:3000"] {
        for path in [REPLAY, "/enricher", "/batcher", "/batcher/archive", "/batcher/dead-letter"] {
            let (status, body) = answer(simple(path, origin).bearer_auth(PUSH_TOKEN).body("{}"));
            assert_eq!(status, 403, "{origin} {path}: {body}");
        }
        assert_eq!(answer(client.get(dev.url("/api/report")).header("origin", origin)).0, 403, "{origin}");
        let sent = answer(simple("/publish", origin).body(json!({"event_name": "click"}).to_string()));
        assert_eq!(sent.0, 200, "{origin}: {}", sent.1);
    }
    let own = client.post(dev.url(REPLAY)).header("origin", dev.url(""));
    assert_eq!(answer(own.header("content-type", "text/plain").body("{}")).0, 415, "JSON alone");
    let own = client.post(dev.url(REPLAY)).header("origin", dev.url(""));
    assert_eq!(answer(own.header("content-type", "application/json").body("{}")).0, 200);
}

#[test]
fn only_the_bus_may_push() {
    let (dev, client) = (Dev::start(&[]), client());
    let body = push("1", &[], format!("{{\"event_id\":\"forged\",\"event_timestamp\":\"{PUBLISHED_AT}\"}}"));
    for path in ["/enricher", "/batcher", "/batcher/archive", "/batcher/dead-letter"] {
        let post = || client.post(dev.url(path)).header("content-type", "application/json").body(body.clone());
        for request in [post(), post().bearer_auth("guessed"), post().header("authorization", PUSH_TOKEN)] {
            let (status, text) = answer(request);
            assert_eq!(status, 401, "{path}: {text}");
        }
    }
    assert_eq!(answer(client.get(dev.url("/enricher/health"))).0, 200);
    assert_eq!(dev.push("/enricher", body), 204);
    dev.wait_for("SELECT count(*) AS n FROM clickstream_events", |rows| rows == [json!({"n": 1})]);
}

#[test]
fn a_further_name_is_allowed_where_it_is_given() {
    let (dev, client) = (Dev::start(&["--allow-host", "dev.example:9000"]), client());
    assert_eq!(answer(client.get(dev.url("/api/report")).header("host", "dev.example:9000")).0, 200);
    assert_eq!(answer(client.get(dev.url("/api/report")).header("host", "dev.example")).0, 421);
}
