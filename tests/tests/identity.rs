//! What one event is: its id and its content. A copy is dropped, other content under the same id never; an event without a
//! time has the same one at every attempt.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::StatusCode;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use pipeline_tests::{
    BatcherFixture, ENRICHED_SUB, EnricherFixture, NOW, PublisherFixture, RAW_SUB, built_in, delivery, objects,
    post_json, push_from, quick_batcher,
};
use publisher::StreamTypes;
use serde_json::{Value, json};
use shared::clock::{Clock, DAY, Micros};
use shared::decode::time::timestamp_text;
use shared::enrich::address::Anonymise;
use shared::event;
use shared::metrics::Metrics;
use shared::publish::MemoryTopic;
use shared::schema::Schemas;
use shared::sink::MemorySink;
use shared::sink::delta::{DeltaError, DeltaSink, Warehouse};

#[tokio::test]
async fn a_public_publisher_takes_only_public_types() {
    let order = r#"{"event_id":"order-1001","event_type":"order","total_amount":1}"#;
    let body = format!(r#"[{order},{{"event_id":"click"}}]"#);
    let publisher = PublisherFixture::public();

    let answer = publisher.publish(body.clone()).await;

    assert_eq!(answer.status, StatusCode::OK);
    let receipt = answer.json();
    assert_eq!(
        (&receipt["rejected"][0]["index"], &receipt["rejected"][0]["code"]),
        (&json!(0), &json!("type_not_allowed"))
    );
    assert!(receipt["rejected"][0]["message"].as_str().unwrap().contains("PUBLISH_TYPES"));
    assert_eq!(publisher.events().len(), 1);
    assert_eq!(publisher.publish(order).await.status, StatusCode::BAD_REQUEST);

    // Behind a key or IAM it takes those that it names.
    let named = StreamTypes::Only(BTreeSet::from(["order".to_string()]));
    let publisher = PublisherFixture::at(built_in(), Anonymise::Off, named, Clock::manual(NOW));
    let receipt =
        publisher.publish(format!(r#"[{order},{{"event_type":"inventory"}},{{"user_id":"u"}}]"#)).await.json();
    assert_eq!((&receipt["rejected"][0]["index"], receipt["accepted"].as_array().unwrap().len()), (&json!(1), 2));
}

/// A pack of rows as the enricher makes it of orders that were received then.
async fn enriched(message_id: &str, received_at: &str, orders: &[Value]) -> Vec<u8> {
    let enricher = EnricherFixture::start().await;
    let lines: Vec<_> = orders.iter().map(Value::to_string).collect();
    let attributes = [("event_type", "order"), ("received_at", received_at)];
    enricher.push(push_from(RAW_SUB, message_id, &attributes, lines.join("\n"))).await;
    delivery(ENRICHED_SUB, message_id, &enricher.enriched.messages()[0])
}

#[tokio::test]
async fn other_content_under_the_same_id_lands_beside_the_first_and_is_counted() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let forged = json!({"event_id": "order-1001", "order_date": "2026-10-20T00:00:00Z", "total_amount": 1});
    let real = json!({"event_id": "order-1001", "order_date": "2026-10-20T00:00:00Z", "total_amount": 99.5});

    let first = enriched("1", "2026-10-20T00:15:00Z", std::slice::from_ref(&forged)).await;
    let second = enriched("2", "2026-10-20T00:15:01Z", std::slice::from_ref(&real)).await;
    // Sent again by its client: received later, and with its members in another order.
    let again = enriched(
        "3",
        "2026-10-20T00:15:02Z",
        &[json!({"total_amount": 99.50, "order_date": real["order_date"], "event_id": "order-1001"})],
    )
    .await;
    for push in [first.clone(), second, again, first] {
        assert_eq!(batcher.push("/", push).await.status, StatusCode::NO_CONTENT);
    }

    let amounts: Vec<_> = batcher
        .sink
        .rows("order")
        .iter()
        .map(|row| serde_json::from_slice::<Value>(row).unwrap()["total_amount"].clone())
        .collect();
    assert_eq!(amounts, [json!(1), json!(99.5)]);
    let metrics = batcher.batcher.metrics();
    assert_eq!((metrics.conflicts.get(), metrics.duplicates.get()), (1, 2));
}

/// Rows of foreign subscribers may lack the fingerprint.
#[tokio::test]
async fn a_good_row_lands_beside_refused_ones_with_its_id_and_each_of_those_is_a_dead_letter() {
    for with_fingerprint in [true, false] {
        let batcher = BatcherFixture::<MemorySink>::start();
        let row = |customer_id: Value, fingerprint: i64| {
            let mut row = json!({"event_id": "a", "order_date": "2026-10-20T00:00:00Z", "customer_id": customer_id});
            if with_fingerprint {
                row["fingerprint"] = json!(fingerprint);
            }
            row.to_string()
        };
        let rows = [row(json!(5), 1), row(json!("c"), 2), row(json!(6), 3)].join("\n");

        for _ in 0..2 {
            let push = push_from(ENRICHED_SUB, "1", &[("event_type", "order")], &rows);
            assert_eq!(batcher.push("/", push).await.status, StatusCode::NO_CONTENT);
        }

        assert_eq!(batcher.sink.rows("order").len(), 1, "with fingerprints: {with_fingerprint}");
        let letters = batcher.letters();
        let ids: BTreeSet<_> = letters.iter().map(|letter| letter["dead_letter_id"].as_str().unwrap()).collect();
        assert_eq!((letters.len(), ids.len()), (4, 2), "with fingerprints: {with_fingerprint}");
    }
}

/// Everything that outlives the instances of the functions.
struct World {
    bucket: Arc<dyn ObjectStore>,
    folder: tempfile::TempDir,
    sent: u32,
}

impl World {
    fn new() -> Self {
        Self { bucket: Arc::new(InMemory::new()), folder: tempfile::tempdir().unwrap(), sent: 0 }
    }

    /// Sends a body through new instances of all three functions, whose clocks say `now`. Answers what the publisher said,
    /// and the rows that the enricher made.
    async fn send(&mut self, now: Micros, body: &str) -> (Value, Vec<Value>) {
        let clock = Clock::manual(now);
        let publisher = PublisherFixture::at(built_in(), Anonymise::Off, StreamTypes::All, clock.clone());
        let receipt = publisher.publish(body.to_string()).await.json();
        let config = enricher::Config::default();
        let enricher = EnricherFixture::at(built_in(), config, Some(Arc::clone(&self.bucket)), clock.clone()).await;
        let sink = Arc::new(self.warehouse(&clock).await);
        let topic = || Arc::new(MemoryTopic::default());
        let deps = batcher::Deps {
            schemas: Arc::new(Schemas::fixed(built_in())),
            sink: sink.clone(),
            bucket: None,
            enriched: topic(),
            dead_letters: topic(),
            metrics: Arc::new(Metrics::new(clock.clone())),
            clock,
        };
        let router = batcher::router(Arc::new(batcher::Batcher::new(deps, &quick_batcher())));
        for message in publisher.topic.messages() {
            self.sent += 1;
            let id = self.sent.to_string();
            assert_eq!(enricher.push(delivery(RAW_SUB, &id, &message)).await.status, StatusCode::NO_CONTENT);
        }
        for message in enricher.enriched.messages() {
            let push = delivery(ENRICHED_SUB, &self.sent.to_string(), &message);
            assert_eq!(post_json(&router, "/", push).await.status, StatusCode::NO_CONTENT);
        }
        (receipt, enricher.rows())
    }

    /// The warehouse, once the instances before have let go of it.
    async fn warehouse(&self, clock: &Clock) -> DeltaSink {
        loop {
            match DeltaSink::open(self.folder.path(), clock.clone()) {
                Err(DeltaError::Locked(_)) => tokio::task::yield_now().await,
                sink => return sink.unwrap(),
            }
        }
    }

    async fn count(&self, table: &str) -> usize {
        let warehouse = Warehouse::open(self.folder.path(), &built_in()).unwrap();
        let rows = warehouse.sql(&format!("SELECT event_id FROM {table}")).await.unwrap();
        rows.iter().fold(0, |count, batch| count + batch.num_rows())
    }
}

#[tokio::test]
async fn an_event_without_a_time_is_one_row_however_late_it_is_sent_again() {
    let mut world = World::new();
    // An id of the client's own, and one that tells its time.
    let uuid = event::mint_event_id(NOW - 3 * DAY, &event::random_bytes());
    let body = format!(r#"[{{"event_id":"cart-77","user_id":"u"}},{{"event_id":"{uuid}","user_id":"u"}}]"#);

    let (_, first) = world.send(NOW, &body).await;
    let (_, second) = world.send(NOW + 2 * DAY, &body).await;

    for rows in [&first, &second] {
        let times: Vec<_> = rows.iter().map(|row| row["event_timestamp"].clone()).collect();
        let minted = event::minted_at(&uuid).unwrap();
        assert!(
            times.contains(&json!(timestamp_text(NOW))) && times.contains(&json!(timestamp_text(minted))),
            "{rows:?}"
        );
    }
    assert_eq!(world.count("clickstream_events").await, 4, "the window of the batcher is gone with its instance");
    assert_eq!(world.count("v_clickstream_events").await, 2);
    assert_eq!(world.count("v_clickstream_events_conflicts").await, 0);
    let kept = objects(world.bucket.as_ref()).await;
    assert_eq!(kept.len(), 1, "{:?}", kept.keys());
    assert!(kept.keys().next().unwrap().starts_with("archive/first-seen/clickstream/"));

    // After the look-back it is a new event.
    world.send(NOW + 8 * DAY, &body).await;
    assert_eq!(world.count("v_clickstream_events").await, 3);
}

#[tokio::test]
async fn an_event_that_tells_its_time_needs_no_record() {
    let mut world = World::new();

    world.send(NOW, r#"[{"user_id":"u"},{"event_id":"a","event_timestamp":"2026-10-19T00:00:00Z"}]"#).await;

    assert!(objects(world.bucket.as_ref()).await.is_empty());
    assert_eq!(world.count("clickstream_events").await, 2);
}

#[tokio::test]
async fn one_request_cannot_cause_many_records() {
    let mut world = World::new();
    let events: Vec<_> = (0..40).map(|n| json!({"event_id": format!("own-{n}")})).collect();

    let (receipt, rows) = world.send(NOW, &json!(events).to_string()).await;
    // Without an answer a client sends all of them again.
    world.send(NOW + 2 * DAY, &json!(events).to_string()).await;

    assert_eq!((rows.len(), receipt["accepted"].as_array().unwrap().len()), (40, 40));
    assert_eq!(objects(world.bucket.as_ref()).await.len(), 1);
    assert_eq!(world.count("v_clickstream_events").await, 40);

    world.send(NOW, &json!(events[..10]).to_string()).await;
    assert_eq!(objects(world.bucket.as_ref()).await.len(), 11);
}

#[tokio::test]
async fn a_bucket_that_gives_no_answer_is_a_retry_and_never_another_time() {
    let publisher = PublisherFixture::start();
    publisher.publish(r#"{"event_id":"own","user_id":"u"}"#).await;
    let folder = tempfile::tempdir().unwrap();
    let store = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    std::fs::write(folder.path().join("archive"), "a file where a folder has to be").unwrap();
    let enricher =
        EnricherFixture::at(built_in(), enricher::Config::default(), Some(Arc::new(store)), Clock::manual(NOW)).await;

    let answer = enricher.push(delivery(RAW_SUB, "1", &publisher.topic.messages()[0])).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(enricher.rows().is_empty() && enricher.letters().is_empty());
}
