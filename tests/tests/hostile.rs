//! What senders may cost who mean harm or take no care: one request is bounded in work, answer, messages and dead letters.

use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use pipeline_tests::{
    BatcherFixture, ENRICHED_SUB, EnricherFixture, NOW, PublisherFixture, RAW_SUB, built_in, delivery, json_lines,
    limits, objects, post, problem_codes, push,
};
use serde_json::{Value, json};
use shared::bucket::Location;
use shared::clock::{Clock, SECOND};
use shared::enrich::address::Anonymise;
use shared::publish::Message;
use shared::schema::Schemas;
use shared::sink::MemorySink;

const KIB: usize = 1 << 10;
/// What Pub/Sub takes of one message, in bytes.
const MAX_MESSAGE: usize = 10_000_000;

/// An order with many elements that are none, whose later keys once were compared with the faults of each.
fn costly(elements: usize, keys: usize) -> String {
    let (elements, keys) = (vec!["1"; elements].join(","), vec![r#""status":"a""#; keys].join(","));
    format!(r#"{{"event_type":"order","event_id":"costly","items":[{elements}],{keys}}}"#)
}

fn config() -> enricher::Config {
    enricher::Config { pack: limits(500, 1), ..enricher::Config::default() }
}

#[tokio::test]
async fn twenty_faults_of_an_event_are_told_and_the_rest_counted() {
    let publisher = PublisherFixture::start();

    let answer = publisher.publish(costly(16_000, 2_000)).await;

    assert_eq!(answer.status, StatusCode::OK);
    let answer = answer.json();
    let accepted = &answer["accepted"][0];
    assert_eq!(problem_codes(accepted), vec![("items", "wrong_type"); 20]);
    // Elements past the ten thousandth are not looked at; that they are there is one fault more.
    assert_eq!(accepted["more_problems"], 10_000 - 20 + 1);

    let enricher = EnricherFixture::start().await;
    enricher.push(delivery(RAW_SUB, "1", &publisher.topic.messages()[0])).await;
    let letter = &enricher.letters()[0];
    let detail = letter["detail"].as_str().unwrap();
    assert!(detail.ends_with("; 9981 more faults") && detail.len() < 2_500, "{detail}");
}

#[tokio::test]
async fn an_answer_is_bounded_whatever_is_wrong_with_the_events() {
    let publisher = PublisherFixture::start();
    let order = format!(r#"{{"event_type":"order","items":[{}]}}"#, vec!["1"; 30].join(","));

    let answer = publisher.publish(format!("[{}]", vec![order.as_str(); 500].join(","))).await;

    assert!(answer.body.len() < 128 * KIB, "{} bytes", answer.body.len());
    let answer = answer.json();
    let accepted = answer["accepted"].as_array().unwrap();
    let listed = accepted.iter().map(|one| one["problems"].as_array().unwrap().len() as u64).sum::<u64>();
    let more = accepted.iter().map(|one| one["more_problems"].as_u64().unwrap_or_default()).sum::<u64>();
    assert_eq!((accepted.len(), listed, listed + more), (500, 200, 500 * 30));
}

#[tokio::test]
async fn bad_events_share_messages_as_rows_do() {
    let (publisher, enricher) = (PublisherFixture::start(), EnricherFixture::start().await);
    publisher.publish(format!("[{}]", vec![r#"{"user_id":5}"#; 500].join(","))).await;

    enricher.push(delivery(RAW_SUB, "1", &publisher.topic.messages()[0])).await;

    let messages = enricher.dead_letters.messages();
    assert_eq!((messages.len(), enricher.letters().len()), (1, 500));
    assert_eq!(messages[0].attributes["rows"], "500");
    let batcher = BatcherFixture::<MemorySink>::start();
    let answer = batcher.push("/dead-letter", delivery("dead-letter-sub", "2", &messages[0])).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(batcher.sink.rows("dead_letter").len(), 500);
    let kept: usize = objects(batcher.store.as_ref()).await.values().map(|object| json_lines(object).len()).sum();
    assert_eq!(kept, 500);
}

#[tokio::test]
async fn an_event_that_is_too_large_costs_no_other_one() {
    let (publisher, enricher) = (PublisherFixture::start(), EnricherFixture::start().await);
    let batcher = BatcherFixture::<MemorySink>::start();
    let large = format!(r#"{{"page_url":"{}"}}"#, "x".repeat(300 * KIB));
    let good = |number: usize| format!(r#"{{"event_id":"good-{number}","user_id":"u"}}"#);

    for request in 0..10 {
        let events: Vec<_> = (0..100).map(|number| good(request * 100 + number)).chain([large.clone()]).collect();
        let answer = publisher.publish(format!("[{}]", events.join(","))).await;
        assert_eq!(answer.status, StatusCode::OK);
        let answer = answer.json();
        assert_eq!((answer["accepted"].as_array().unwrap().len(), &answer["rejected"]), (101, &json!([])));
        assert_eq!(problem_codes(&answer["accepted"][100])[0].1, "too_large");
    }
    for (number, message) in publisher.topic.messages().iter().enumerate() {
        let answer = enricher.push(delivery(RAW_SUB, &number.to_string(), message)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    for (number, message) in enricher.enriched.messages().iter().enumerate() {
        batcher.push("/", delivery(ENRICHED_SUB, &number.to_string(), message)).await;
    }

    assert_eq!(batcher.sink.rows("clickstream").len(), 1_000);
    let letters = enricher.letters();
    assert_eq!(letters.len(), 10);
    for letter in letters {
        assert_eq!(
            (&letter["reason"], &letter["raw_size"].as_u64().map(|size| size > 300 << 10)),
            (&json!("too_large"), &Some(true))
        );
    }
}

#[tokio::test]
async fn an_event_at_its_limit_is_a_row_and_beyond_it_a_dead_letter() {
    let (publisher, enricher) = (PublisherFixture::start(), EnricherFixture::start().await);
    let frame = r#"{"event_id":"e","event_timestamp":"2026-10-20T00:15:00Z","page_url":""}"#;
    for (size, rows) in [(256 * KIB, 1), (256 * KIB + 1, 0)] {
        let event = frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(size - frame.len())));
        assert_eq!(event.len(), size);
        publisher.publish(event).await;
        let message = publisher.topic.messages().pop().unwrap();
        let before = enricher.rows().len();
        enricher.push(delivery(RAW_SUB, &size.to_string(), &message)).await;
        assert_eq!(enricher.rows().len() - before, rows, "{size} bytes");
    }
}

/// Control characters take six bytes each in JSON, and what is no UTF-8 a third more in base64.
#[tokio::test]
async fn a_dead_letter_always_fits_a_message_and_its_text_is_in_the_bucket() {
    for raw in [vec![1_u8; 4 << 20], vec![b'"'; 9_900_000], vec![0xff; 9_900_000], vec![b'['; 9_900_000]] {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(push("1", &[("event_type", "order")], &raw)).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let messages = enricher.dead_letters.messages();
        let letter = &enricher.letters()[0];
        assert!(messages.iter().all(|message| message.data.len() < MAX_MESSAGE / 100), "{}", messages[0].data.len());
        let uri = letter["raw_uri"].as_str().unwrap().strip_prefix("memory:///").unwrap();
        let kept = enricher.store.get(&Path::from(uri)).await.unwrap().bytes().await.unwrap();
        assert_eq!(kept, Bytes::from(raw.clone()), "the whole text");
        assert_eq!(letter["raw_size"], raw.len());

        // The batcher takes the letter as it is.
        let batcher = BatcherFixture::<MemorySink>::start();
        batcher.push("/dead-letter", delivery("dead-letter-sub", "2", &messages[0])).await;
        let row: Value = serde_json::from_slice(&batcher.sink.rows("dead_letter")[0]).unwrap();
        assert_eq!((&row["raw_uri"], &row["dead_letter_id"]), (&letter["raw_uri"], &letter["dead_letter_id"]));
    }
}

#[tokio::test]
async fn rows_are_published_once_whatever_becomes_of_the_dead_letters_beside_them() {
    let enricher = EnricherFixture::start().await;
    let good = r#"{"event_id":"good","event_timestamp":"2026-10-20T00:15:00Z"}"#;
    let body = push("1", &[], format!("{good}\nno JSON"));
    enricher.dead_letters.set_down(true);

    for _ in 0..5 {
        assert_eq!(enricher.push(body.clone()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    enricher.dead_letters.set_down(false);
    assert_eq!(enricher.push(body).await.status, StatusCode::NO_CONTENT);

    assert_eq!((enricher.rows().len(), enricher.letters().len()), (1, 1));
}

#[tokio::test]
async fn a_request_without_a_body_makes_no_event_unless_the_settings_say_so() {
    let publisher = PublisherFixture::start();
    assert_eq!(post(&publisher.router, "/publish", None, "").await.status, StatusCode::BAD_REQUEST);
    assert!(publisher.topic.messages().is_empty());
}

const REFUND: &str = r#"{"event_type":"refund","version":"1-0-0","ingest":"public","table":{"dataset":"shop","name":"refunds"},
    "columns":[{"name":"sum","type":"NUMERIC"}]}"#;

#[tokio::test]
async fn an_event_of_an_unknown_type_is_kept_until_there_is_a_schema() {
    let store = Arc::new(InMemory::new());
    let other = REFUND.replace("refund", "other");
    store.put(&Path::from("schemas/other.json"), other.into()).await.unwrap();
    let place = Location { store: store.clone(), path: Path::from("schemas"), uri: "memory:///schemas".into() };
    let clock = Clock::manual(NOW);
    let schemas = Schemas::load(place, clock.clone(), 60 * SECOND).await.unwrap();
    let enricher = EnricherFixture::with_schemas(schemas, clock.clone(), config()).await;
    let publisher = PublisherFixture::start();
    let event = r#"{"event_type":"refund","event_id":"r-1","sum": 12.50}"#;
    let answer = publisher.publish(event).await.json();
    assert_eq!(problem_codes(&answer["accepted"][0]), [("event_type", "unknown_type")]);

    let message = &publisher.topic.messages()[0];
    assert_eq!(enricher.push(delivery(RAW_SUB, "1", message)).await.status, StatusCode::NO_CONTENT);

    let letter = &enricher.letters()[0];
    let told = ["reason", "event_type", "event_id", "raw"].map(|member| letter[member].as_str().unwrap());
    assert_eq!(told, ["unknown_type", "refund", "r-1", event]);
    assert!(enricher.rows().is_empty(), "never a row of another type");

    store.put(&Path::from("schemas/refund.json"), REFUND.into()).await.unwrap();
    clock.set(NOW + 60 * SECOND);
    enricher.push(delivery(RAW_SUB, "2", message)).await;
    assert_eq!(enricher.rows()[0]["sum"].to_string(), "12.5");
}

#[tokio::test]
async fn a_type_that_could_be_none_is_kept_as_well() {
    for (event, event_type) in [
        (r#"{"event_type":"../order","a":1}"#, None),
        (r#"{"event_type":"Order"}"#, None),
        (r#"{"event_type":7}"#, None),
        (r#"{"eventType":""}"#, None),
        (r#"{"event_type":"ordr"}"#, Some("ordr")),
    ] {
        let (publisher, enricher) = (PublisherFixture::start(), EnricherFixture::start().await);
        publisher.publish(event).await;
        enricher.push(delivery(RAW_SUB, "1", &publisher.topic.messages()[0])).await;
        let letter = &enricher.letters()[0];
        assert_eq!((&letter["reason"], letter["event_type"].as_str()), (&json!("unknown_type"), event_type), "{event}");
        assert!(letter["raw"].as_str().unwrap().starts_with(event.trim_end_matches('}')), "{letter}");
    }
}

/// The publisher cannot tell whether anyone may send a type that only the enricher knows; the enricher can.
#[tokio::test]
async fn a_public_publisher_is_no_way_round_the_rights_of_a_type() {
    let enricher =
        EnricherFixture::with(pipeline_tests::registry_with(&[&REFUND.replace("public", "stream")]), config()).await;
    let publisher = PublisherFixture::public();
    publisher.publish(r#"{"event_type":"refund","sum":1}"#).await;

    enricher.push(delivery(RAW_SUB, "1", &publisher.topic.messages()[0])).await;
    enricher.push(push("2", &[("event_type", "refund")], r#"{"sum":2}"#)).await;

    assert_eq!(enricher.letters()[0]["reason"], "type_not_allowed");
    assert_eq!(enricher.rows().iter().map(|row| &row["sum"]).collect::<Vec<_>>(), [&json!(2)]);
}

#[tokio::test]
async fn where_addresses_are_cut_nothing_keeps_a_full_one() {
    const ADDRESS: &str = "93.184.216.34";
    let bodies = [
        format!(r#"{{"ip_address":"{ADDRESS}","event_timestamp":1792455300}}"#),
        format!(r#"{{"ipAddress":"{ADDRESS}","user_id":5}}"#),
        format!(r#"{{"ip_address":["{ADDRESS}"]}}"#),
        format!(r#"{{"event_type":"ordr","ip_address":"{ADDRESS}"}}"#),
        format!(r#"{{"page_url":"{}","ip_address":"{ADDRESS}"}}"#, "x".repeat(300 * KIB)),
    ];
    let config = enricher::Config { anonymise: Anonymise::Truncate, ..config() };
    let enricher = EnricherFixture::with(built_in(), config).await;
    let holds = |message: &Message| String::from_utf8_lossy(&message.data).contains(ADDRESS);
    for (number, body) in bodies.iter().enumerate() {
        let publisher = PublisherFixture::with(built_in(), Anonymise::Truncate);
        publisher.publish_from(ADDRESS.parse().unwrap(), &[], body).await;
        let message = publisher.topic.messages().remove(0);
        assert!(!holds(&message), "{body:.80}");
        enricher.push(delivery(RAW_SUB, &number.to_string(), &message)).await;
        // As from a backend, past the publisher.
        enricher.push(push(&format!("raw-{number}"), &[], body)).await;
        enricher.push(push(&format!("broken-{number}"), &[], &body[..body.len() - 1])).await;
    }
    assert!(!enricher.rows().is_empty() && enricher.letters().len() >= 10);
    for topic in [&enricher.enriched, &enricher.dead_letters] {
        assert!(!topic.messages().iter().any(holds));
    }
    for (name, object) in objects(enricher.store.as_ref()).await {
        assert!(!String::from_utf8_lossy(&object).contains(ADDRESS), "{name}");
    }
}
