//! The functions as they are deployed, between real servers: Google's Pub/Sub emulator and bqemulator.

use std::process::Command;
use std::time::{Duration, Instant};

use pipeline_tests::bigquery::BigQueryApi;
use pipeline_tests::binary::binary_beside;
use pipeline_tests::built_in;
use pipeline_tests::parts::{self, BigQuery, Process, Server, free_port};
use pipeline_tests::pubsub::{PROJECT, PubSubApi, PushTo};
use serde_json::{Value, json};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Publisher, enricher and batcher between Pub/Sub and `BigQuery`.
struct Cloud {
    pubsub: Server,
    bigquery: BigQuery,
    bucket: tempfile::TempDir,
    ports: [u16; 3],
    functions: [Option<Process>; 3],
}

const FUNCTIONS: [&str; 3] = ["publisher", "enricher", "batcher"];

impl Cloud {
    fn start() -> Option<Self> {
        let pubsub = parts::pubsub_emulator()?;
        let bigquery = parts::bqemulator()?;
        let ports = [free_port(), free_port(), free_port()];
        let [_, enrich, batch] = ports;
        let api = PubSubApi::at(&pubsub.url);
        let (raw, enriched, dead) =
            ("clickstream-raw-topic", "clickstream-enriched-topic", "clickstream-dead-letter-topic");
        api.create_topics(&[raw, enriched, dead]);
        let push = |name, topic, endpoint: String, dead_letter| {
            api.create_push(&PushTo { name, topic, endpoint, backoff_millis: 100, dead_letter });
        };
        push("clickstream-raw-sub", raw, format!("http://127.0.0.1:{enrich}/"), Some((dead, 100)));
        push("clickstream-enriched-sub", enriched, format!("http://127.0.0.1:{batch}/"), Some((dead, 100)));
        push("clickstream-archive-sub", enriched, format!("http://127.0.0.1:{batch}/archive"), Some((dead, 100)));
        push("clickstream-dead-letter-sub", dead, format!("http://127.0.0.1:{batch}/dead-letter"), None);
        let bucket = tempfile::tempdir().expect("a temporary folder");
        let tables = BigQueryApi::at(&bigquery.rest);
        for plan in built_in().plans() {
            tables.create(plan);
        }
        let mut cloud = Self { pubsub, bigquery, bucket, ports, functions: [None, None, None] };
        for index in 0..3 {
            cloud.start_function(index);
        }
        Some(cloud)
    }

    fn start_function(&mut self, index: usize) {
        let mut command = Command::new(binary_beside(FUNCTIONS[index]));
        command
            .env("PORT", self.ports[index].to_string())
            .env("GOOGLE_CLOUD_PROJECT", PROJECT)
            .env("PUBSUB_ENDPOINT", &self.pubsub.url)
            .env("BIGQUERY_REST_ENDPOINT", &self.bigquery.rest)
            .env("BIGQUERY_GRPC_ENDPOINT", &self.bigquery.grpc)
            .env("ARCHIVE_URI", self.bucket.path())
            .env("ARCHIVE_WAIT_MS", "500")
            .env("PUSH_AUTH", "off")
            // As behind a key: anyone's publisher takes no orders.
            .env("PUBLISH_TYPES", "order");
        let mut process = Process::start(FUNCTIONS[index], command);
        process.wait_for_port(self.ports[index]);
        self.functions[index] = Some(process);
    }

    fn publish(&self, body: &Value) -> Value {
        let client = reqwest::blocking::Client::new();
        let answer = client.post(format!("http://127.0.0.1:{}/publish", self.ports[0])).json(body).send();
        let answer = answer.expect("the publisher answers");
        assert_eq!(answer.status(), 200);
        answer.json().expect("JSON")
    }

    fn tables(&self) -> BigQueryApi {
        BigQueryApi::at(&self.bigquery.rest)
    }

    /// Asks until the answer has this many rows.
    fn rows(&self, sql: &str, count: usize) -> Vec<Value> {
        let (tables, started) = (self.tables(), Instant::now());
        loop {
            let rows = tables.query(sql);
            if rows.len() == count {
                return rows;
            }
            assert!(started.elapsed() < PATIENCE, "{sql}: {rows:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn logs(&self) -> String {
        let log = |function: &Option<Process>| function.as_ref().map(Process::log).unwrap_or_default();
        self.functions.iter().map(log).collect::<Vec<_>>().join("\n---\n")
    }

    /// Names of the objects in the bucket.
    fn objects(&self) -> Vec<String> {
        fn walk(folder: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { walk(&path, found) } else { found.push(path.display().to_string()) }
            }
        }
        let mut found = Vec::new();
        walk(self.bucket.path(), &mut found);
        found
    }

    fn wait_for_object(&self, part: &str) {
        let started = Instant::now();
        while !self.objects().iter().any(|name| name.contains(part) && name.ends_with(".jsonl.gz")) {
            assert!(started.elapsed() < PATIENCE, "no {part} among {:?}\n{}", self.objects(), self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn events_go_the_whole_way() {
    let Some(mut cloud) = Cloud::start() else { return };

    let good = json!({"userId": "u1", "eventName": "page_view", "ipAddress": "8.8.8.8", "eventTimestamp": now(), "eventId": "good"});
    let order = json!({
        "event_type": "order", "order_id": "o1", "order_date": now(), "event_id": "order", "total_amount": 12.34,
        "items": [{"product_id": "p1", "quantity": 2, "price": "6.170000001"}],
    });
    let broken = json!({"userId": "u2", "eventTimestamp": "yesterday", "eventId": "broken"});
    let receipt = cloud.publish(&json!([good, order, broken]));
    assert_eq!(receipt["accepted"].as_array().map(Vec::len), Some(3), "{receipt}");

    let rows = cloud.rows("SELECT event_id, user_id, country FROM contextflow.clickstream_events", 1);
    assert_eq!(
        (&rows[0]["event_id"], &rows[0]["user_id"], &rows[0]["country"]),
        (&json!("good"), &json!("u1"), &json!("US"))
    );
    let orders = cloud.rows(
        "SELECT order_id, CAST(total_amount AS STRING) AS total, CAST(items[OFFSET(0)].price AS STRING) AS price FROM backend_events.orders",
        1,
    );
    assert_eq!(orders[0], json!({"order_id": "o1", "total": "12.340000000", "price": "6.170000001"}));
    let letters = cloud.rows("SELECT reason, stage, event_id FROM contextflow.dead_letters", 1);
    assert_eq!(letters[0], json!({"reason": "bad_time", "stage": "enricher", "event_id": "broken"}));
    for part in ["/clickstream/", "/order/", "/dead-letter/"] {
        cloud.wait_for_object(part);
    }

    // A foreign publisher, with no attribute at all, while nobody is there to take the push.
    for index in [1, 2] {
        cloud.functions[index].as_mut().expect("it runs").kill();
    }
    let event = format!(r#"{{"userId":"u3","eventTimestamp":"{}"}}"#, now());
    PubSubApi::at(&cloud.pubsub.url).publish("clickstream-raw-topic", event.as_bytes(), &[]);
    for index in [1, 2] {
        cloud.start_function(index);
    }
    let rows = cloud.rows("SELECT event_id FROM contextflow.clickstream_events WHERE user_id = 'u3'", 1);
    assert!(rows[0]["event_id"].as_str().is_some_and(|id| !id.is_empty()), "{rows:?}");
}

/// The time now: the partition column takes only what is near it.
fn now() -> String {
    shared::decode::time::timestamp_text(shared::clock::Clock::system().now())
}
