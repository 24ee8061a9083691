//! What the functions take of memory at their limit of concurrent pushes, with the pushes that decode to the most.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;

use futures::future::join_all;
use pipeline_tests::binary::binary_beside;
use pipeline_tests::parts::{Process, free_port};
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::push;

/// What `infra/gcp/services.sh` gives each of them, in KiB.
const DEPLOYED: u64 = 512 << 10;
/// As many as one instance of Cloud Run is given at most.
const CONCURRENT: usize = 1_000;

/// A server that takes connections and says nothing: what goes there is held.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// The most memory that a process has had, in KiB.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Starts a function before servers that say nothing and sends it the same push a thousand times at once. Returns its peak
/// and how many pushes had each status; those that are held have none.
async fn overwhelm(function: &str, path: &str, attributes: &[(&str, &str)], data: &str) -> (u64, BTreeMap<u16, usize>) {
    let (_listener, nowhere) = silent();
    let port = free_port();
    let mut command = Command::new(binary_beside(function));
    command.env_clear().env("PORT", port.to_string()).envs([
        ("PUSH_AUTH", "off"),
        ("GOOGLE_CLOUD_PROJECT", PROJECT),
        ("PUBSUB_ENDPOINT", &nowhere),
        ("BIGQUERY_GRPC_ENDPOINT", &nowhere),
        ("BIGQUERY_REST_ENDPOINT", &nowhere),
    ]);
    let mut process = Process::start(function, command);
    process.wait_for_port(port);
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(5)).build().unwrap();
    let pushes = (0..CONCURRENT).map(|number| {
        let body = push(&number.to_string(), attributes, data);
        let sent = client.post(format!("http://127.0.0.1:{port}{path}")).body(body).send();
        async move { sent.await.map_or(0, |answer| answer.status().as_u16()) }
    });
    let mut statuses = BTreeMap::new();
    for status in join_all(pushes).await {
        *statuses.entry(status).or_default() += 1;
    }
    (peak(&process), statuses)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_pushes_at_once_stay_below_the_deployed_memory() {
    let lines = |line: &str| vec![line; 10_000].join("\n");
    let records = format!(r#"{{"items":[{}]}}"#, vec!["{}"; 85_000].join(","));
    let allowed = format!(r#"{{"items":[{}]}}"#, vec!["{}"; 9_999].join(","));
    let order = [("event_type", "order")];
    let clicks = [("event_type", "clickstream")];
    for (function, path, attributes, data) in [
        ("enricher", "/", &clicks, lines("{}")),
        ("enricher", "/", &order, vec![allowed.as_str(); 30].join("\n")),
        ("enricher", "/", &order, records),
        ("batcher", "/", &order, lines(r#"{"event_id":"e"}"#)),
        ("batcher", "/dead-letter", &[("event_type", "dead_letter")], lines("{}")),
    ] {
        let (peak, statuses) = overwhelm(function, path, attributes, &data).await;
        let (bytes, mebibytes) = (data.len(), peak >> 10);
        assert!(peak < DEPLOYED, "{function}{path}, {bytes} bytes a push: {mebibytes} MiB, answers {statuses:?}");
    }
}
