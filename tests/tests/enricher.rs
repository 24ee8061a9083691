//! The enricher: from pushes of raw events to rows on the enriched topic.

use std::time::Duration;

use axum::http::StatusCode;
use futures::future::join_all;
use pipeline_tests::{EnricherFixture, NOW_TEXT, PUBLISHED_AT, built_in, get, limits, push, push_from, registry_with};
use serde_json::{Value, json};
use shared::enrich::address::Anonymise;
use shared::publish::Message;

const CLICKSTREAM: (&str, &str) = ("event_type", "clickstream");

fn click(id: &str, address: &str) -> String {
    format!(
        r#"{{"event_id":"{id}","user_id":"u1","session_id":"s1","page_url":"/","event_name":"click","ip_address":"{address}","event_timestamp":"2026-10-20T00:15:00Z"}}"#
    )
}

/// Attributes and data of a message as text.
fn text(message: &Message) -> String {
    let attributes = message.attributes.iter().map(|(key, value)| format!("{key}: {value}\n"));
    format!("{}\n{}\n", attributes.collect::<String>(), String::from_utf8_lossy(&message.data))
}

#[tokio::test]
async fn one_event_becomes_one_row() {
    let enricher = EnricherFixture::start().await;
    let attributes = [CLICKSTREAM, ("received_at", "2026-10-20T00:15:01.250Z"), ("source", "publisher")];

    let answer = enricher.push(push("1", &attributes, click("e-1", "8.8.8.8"))).await;

    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    let messages = enricher.enriched.messages();
    assert_eq!(messages.len(), 1);
    insta::assert_snapshot!(text(&messages[0]));
    assert!(enricher.dead_letters.messages().is_empty());
}

#[tokio::test]
async fn lines_of_every_style_become_rows_of_one_message() {
    let enricher = EnricherFixture::start().await;
    let lines = [
        &click("e-1", "93.184.216.34"),
        r#" {"eventId":"e-2","userId":"u2","eventTimestamp":1792455300.123456,"ipAddress":"::ffff:8.8.8.8","country":"XX","city":"forged"} "#,
        "",
        "  \r",
        r#"{"event_id":"e-3","user_id":"tab\t\"quote\" \\ é \u00e9 \ud834\udd1e \u0000","event_timestamp":"2026-10-20T05:45:02.920000999+05:30"}"#,
        r#"{"event_timestamp":1792455300000,"event_id":null,"unknown":{"deep":[1]},"received_at":"1999-01-01T00:00:00Z","loaded_at":5,"schema_version":"9"}"#,
    ];

    let answer = enricher.push(push("17", &[], lines.join("\r\n"))).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let messages = enricher.enriched.messages();
    assert_eq!(messages.len(), 1);
    insta::assert_snapshot!(text(&messages[0]));
    assert!(enricher.dead_letters.messages().is_empty());
}

#[tokio::test]
async fn an_order_keeps_its_items_and_every_digit() {
    let enricher = EnricherFixture::start().await;
    let order = r#"{"orderId":"o-1","customer_id":"c-1","orderDate":"2026-10-20T00:10:00Z","status":"pending","items":[
        {"productId":"p-1","product_name":"Tent \"2\"","quantity":2,"price":0.1},{"product_id":"p-2","quantity":"3","price":"19.990000001","colour":"red"},{}],
        "shippingAddress":{"street":"1 Rue É","city":"Paris","zip":"75001"},"total_amount":99999999999999999999999999999.999999999,"event_id":"e-1"}"#;

    enricher.push(push("1", &[("event_type", "order")], order.replace('\n', ""))).await;

    insta::assert_snapshot!(text(&enricher.enriched.messages()[0]));
    assert!(enricher.dead_letters.messages().is_empty());
}

const SPECIMEN: &str = r#"{"event_type":"specimen","version":"2-1-3","ingest":"stream",
    "table":{"dataset":"lab","name":"specimens","time_partitioning":{"type":"HOUR","field":"taken_at"},"clustering":["label"]},
    "columns":[
        {"name":"label","type":"STRING","maxLength":"8"}, {"name":"scan","type":"BYTES"},
        {"name":"count","type":"INT64"}, {"name":"weight","type":"FLOAT64"}, {"name":"price","type":"DECIMAL"},
        {"name":"mass","type":"BIGNUMERIC"}, {"name":"is_alive","type":"BOOL"}, {"name":"taken_at","type":"TIMESTAMP"},
        {"name":"day","type":"DATE"}, {"name":"local_time","type":"DATETIME"}, {"name":"at","type":"TIME"},
        {"name":"anything","type":"JSON"}, {"name":"tags","type":"STRING","mode":"REPEATED"},
        {"name":"parts","type":"STRUCT","mode":"REPEATED","fields":[
            {"name":"part_name","type":"STRING","mode":"REQUIRED"},
            {"name":"sizes","type":"INTEGER","mode":"REPEATED"},
            {"name":"inner","type":"RECORD","fields":[{"name":"is_deep","type":"BOOLEAN"}]}]}]}"#;

#[tokio::test]
async fn every_column_type_is_decoded_through_a_schema_added_at_run_time() {
    let enricher = EnricherFixture::with(registry_with(&[SPECIMEN]), enricher::Config::default()).await;
    let specimen = r#"{"event_id":"e-1","label":"Ünïcödé8","scan":"AP8Q","count":-9007199254740993,"weight":1e-7,"price":-12.500000000,
        "mass":"0.00000000000000000000000000000000000001","isAlive":false,"taken_at":"2026-10-20T00:15:02.123456789Z","day":"2024-02-29",
        "localTime":"0001-01-01 23:59:59.5","at":"00:00:00.000001","anything":{"b":[1.0, null],  "a":"é\u0000"},"tags":["x",""],
        "parts":[{"partName":"leg","sizes":[1,2],"inner":{"isDeep":true}},{"part_name":"arm"}]}"#;
    let empty = r#"{"event_id":"e-2","tags":null,"parts":[],"anything":null}"#;
    let data = format!("{}\n{empty}", specimen.replace('\n', ""));

    enricher.push(push("1", &[("event_type", "specimen")], data)).await;

    assert_eq!(enricher.letters(), Vec::<Value>::new());
    insta::assert_snapshot!(text(&enricher.enriched.messages()[0]));
}

#[tokio::test]
async fn addresses_become_places_or_unknown() {
    for (address, country, city) in [
        ("8.8.8.8", "US", "Monroe"),
        ("::ffff:8.8.8.8", "US", "Monroe"),
        ("2001:4860:4860::8888", "Unknown", "Unknown"),
        ("192.168.1.1", "Unknown", "Unknown"),
        ("10.0.0.1", "Unknown", "Unknown"),
        ("127.0.0.1", "Unknown", "Unknown"),
        ("169.254.1.1", "Unknown", "Unknown"),
        ("224.0.0.1", "Unknown", "Unknown"),
        ("203.0.113.5", "Unknown", "Unknown"),
        ("0.0.0.0", "Unknown", "Unknown"),
        ("8.8.8", "Unknown", "Unknown"),
        ("8.8.8.8:443", "Unknown", "Unknown"),
        ("unknown", "Unknown", "Unknown"),
        ("", "Unknown", "Unknown"),
    ] {
        let enricher = EnricherFixture::start().await;

        enricher.push(push("1", &[CLICKSTREAM], click("e-1", address))).await;

        let row = &enricher.rows()[0];
        assert_eq!((&row["country"], &row["city"]), (&json!(country), &json!(city)), "{address}");
        assert_eq!(row["ip_address"], address, "left as it is");
    }
}

#[tokio::test]
async fn an_event_without_an_address_is_from_unknown() {
    let enricher = EnricherFixture::start().await;

    enricher.push(push("1", &[], r#"{"event_timestamp":1792455300}"#)).await;

    let row = &enricher.rows()[0];
    assert_eq!((&row["country"], &row["city"], row.get("ip_address")), (&json!("Unknown"), &json!("Unknown"), None));
}

#[tokio::test]
async fn addresses_are_anonymised_after_the_lookup() {
    for (policy, address, shown) in [
        (Anonymise::Truncate, "8.8.4.4", json!("8.8.4.0")),
        (Anonymise::Truncate, "::ffff:8.8.4.4", json!("8.8.4.0")),
        (Anonymise::Drop, "8.8.4.4", Value::Null),
    ] {
        let config = enricher::Config { anonymise: policy, ..enricher::Config::default() };
        let enricher = EnricherFixture::with(built_in(), config).await;

        enricher.push(push("1", &[CLICKSTREAM], click("e-1", address))).await;

        let message = &enricher.enriched.messages()[0];
        let row = &enricher.rows()[0];
        assert_eq!((&row["country"], &row["city"]), (&json!("US"), &json!("Monroe")), "{policy:?} {address}");
        assert_eq!(row["ip_address"], shown, "{policy:?} {address}");
        assert!(!String::from_utf8_lossy(&message.data).contains("8.8.4.4"), "{policy:?}");
    }
}

#[tokio::test]
async fn the_type_comes_from_the_attribute_else_the_body_else_it_is_clickstream() {
    let time = r#""event_timestamp":1792455300,"order_date":1792455300,"timestamp":1792455300"#;
    let named = |name: &str| format!(r#"{{{time},"event_type":"{name}"}}"#);
    for (attributes, body, expected) in [
        (&[][..], format!("{{{time}}}"), "clickstream"),
        (&[], named("order"), "order"),
        (&[], named("order").replace("event_type", "eventType"), "order"),
        (&[("event_type", "inventory")], named("order"), "inventory"),
        (&[("source", "elsewhere")], named("user_activity"), "user_activity"),
        (&[], format!(r#"{{{time},"event_type":null}}"#), "clickstream"),
    ] {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(push("1", attributes, &body)).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let messages = enricher.enriched.messages();
        assert_eq!(messages.len(), 1, "{body}");
        assert_eq!(messages[0].attributes["event_type"], expected, "{attributes:?} {body}");
    }
}

#[tokio::test]
async fn a_push_of_several_types_is_packed_by_type() {
    let enricher = EnricherFixture::start().await;
    let data = "{\"event_id\":\"a\",\"event_timestamp\":1792455300}\n{\"event_id\":\"b\",\"event_type\":\"order\"}\n\
        {\"event_id\":\"c\",\"event_timestamp\":1792455300}\n{\"event_id\":\"d\",\"event_type\":\"order\"}";

    enricher.push(push("1", &[], data)).await;

    let mut packs: Vec<_> = enricher
        .enriched
        .messages()
        .iter()
        .map(|message| (message.attributes["event_type"].clone(), message.attributes["rows"].clone()))
        .collect();
    packs.sort();
    assert_eq!(packs, [("clickstream", "2"), ("order", "2")].map(|(kind, rows)| (kind.into(), rows.into())));
}

#[tokio::test]
async fn the_time_of_receipt_is_the_publishers_else_pubsubs() {
    for (attributes, expected) in [
        (&[("received_at", "2026-10-20T00:14:59.5Z")][..], "2026-10-20T00:14:59.500Z"),
        (&[("received_at", "soon")], PUBLISHED_AT),
        (&[], PUBLISHED_AT),
    ] {
        let enricher = EnricherFixture::start().await;

        enricher.push(push("1", attributes, click("e-1", "8.8.8.8"))).await;

        assert_eq!(enricher.rows()[0]["received_at"], expected, "{attributes:?}");
    }
    let enricher = EnricherFixture::start().await;
    let bare = json!({"message": {"data": base64_simd::STANDARD.encode_to_string(click("e-1", "8.8.8.8"))}});
    enricher.push(bare.to_string().into_bytes()).await;
    assert_eq!(enricher.rows()[0]["received_at"], NOW_TEXT, "a push that says nothing came in now");
}

#[tokio::test]
async fn an_event_without_id_has_the_same_id_on_every_delivery() {
    let enricher = EnricherFixture::start().await;
    let two = "{\"event_timestamp\":1792455300}\n\n{\"event_timestamp\":1792455300}";

    for _ in 0..3 {
        enricher.push(push("17", &[], two)).await;
    }
    enricher.push(push("18", &[], two)).await;
    enricher.push(push_from("projects/p/subscriptions/other", "17", &[], two)).await;

    let ids: Vec<_> = enricher.rows().iter().map(|row| row["event_id"].as_str().unwrap().to_string()).collect();
    assert_eq!(ids[0..2], ids[2..4]);
    assert_eq!(ids[0..2], ids[4..6]);
    let mut distinct = ids.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 6, "two lines, each of two messages and of another subscription: {ids:?}");
}

#[tokio::test]
async fn concurrent_pushes_share_a_message() {
    // The window is left to its count: it would wait an hour.
    let config = enricher::Config { pack: limits(40, 3_600_000), ..enricher::Config::default() };
    let enricher = EnricherFixture::with(built_in(), config).await;
    let pushes = (0..20).map(|n| {
        let id = n.to_string();
        let lines = [click(&format!("{n}-a"), "8.8.8.8"), click(&format!("{n}-b"), "8.8.8.8")].join("\n");
        enricher.push(push(&id, &[CLICKSTREAM], lines))
    });

    let answers = join_all(pushes).await;

    assert!(answers.iter().all(|answer| answer.status == StatusCode::NO_CONTENT));
    let messages = enricher.enriched.messages();
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].attributes["rows"].as_str(), enricher.rows().len()), ("40", 40));
}

#[tokio::test]
async fn a_lone_push_waits_no_longer_than_the_window() {
    let enricher = EnricherFixture::with(built_in(), enricher::Config::default()).await;

    let one = enricher.push(push("1", &[CLICKSTREAM], click("e-1", "8.8.8.8")));
    let answer = tokio::time::timeout(Duration::from_secs(10), one).await.expect("nothing else comes to fill it");

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(enricher.rows().len(), 1);
}

#[tokio::test]
async fn a_message_has_at_most_five_hundred_rows_and_a_mebibyte() {
    let enricher = EnricherFixture::start().await;
    let small: Vec<_> = (0..1_201).map(|n| click(&format!("s-{n}"), "8.8.8.8")).collect();
    let large: Vec<_> = (0..9).map(|n| click(&format!("l-{n}"), &"x".repeat(240_000))).collect();

    enricher.push(push("1", &[CLICKSTREAM], small.join("\n"))).await;
    enricher.push(push("2", &[CLICKSTREAM], large.join("\n"))).await;

    let messages = enricher.enriched.messages();
    let count = |message: &Message| message.data.split(|&byte| byte == b'\n').count();
    assert!(messages.iter().all(|message| message.data.len() <= 1 << 20 && count(message) <= 500));
    assert!(messages.iter().all(|message| message.attributes["rows"] == count(message).to_string()));
    assert_eq!((messages.iter().map(count).sum::<usize>(), messages.len()), (1_210, 6), "3 of 500, 3 of a mebibyte");
}

#[tokio::test]
async fn while_a_topic_is_down_pushes_are_to_come_again() {
    let good = || push("1", &[CLICKSTREAM], click("e-1", "8.8.8.8"));
    let poison = || push("2", &[CLICKSTREAM], "{");
    let enricher = EnricherFixture::start().await;

    enricher.enriched.set_down(true);
    assert_eq!(enricher.push(good()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(enricher.push(poison()).await.status, StatusCode::NO_CONTENT, "its own topic is up");
    enricher.enriched.set_down(false);
    enricher.dead_letters.set_down(true);
    assert_eq!(enricher.push(poison()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(enricher.push(good()).await.status, StatusCode::NO_CONTENT);
    enricher.dead_letters.set_down(false);
    assert_eq!(enricher.push(poison()).await.status, StatusCode::NO_CONTENT);

    assert_eq!((enricher.rows().len(), enricher.letters().len()), (1, 2));
    let id = |index: usize| enricher.letters()[index]["dead_letter_id"].clone();
    assert_eq!(id(0), id(1), "the same input has the same dead letter");
}

#[tokio::test]
async fn health_and_readiness_answer() {
    let enricher = EnricherFixture::start().await;

    let (health, ready) = (get(&enricher.router, "/health").await, get(&enricher.router, "/ready").await);

    assert_eq!((health.status, health.json()), (StatusCode::OK, json!({"status": "ok"})));
    assert_eq!((ready.status, ready.json()), (StatusCode::OK, json!({"status": "ready"})));
}
