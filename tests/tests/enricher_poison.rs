//! What the enricher can never make a row of: dead letters with their reason and their exact bytes, and what may still
//! be understood by a newer version.

use axum::http::StatusCode;
use pipeline_tests::{EnricherFixture, NOW_TEXT, PUBLISHED_AT, push, registry_with};
use serde_json::{Value, json};

const GOOD: &str = r#"{"event_id":"good","event_timestamp":"2026-10-20T00:15:00Z"}"#;

fn only_letter(enricher: &EnricherFixture) -> Value {
    let mut letters = enricher.letters();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(enricher.rows(), Vec::<Value>::new());
    letters.remove(0)
}

#[tokio::test]
async fn a_dead_letter_has_its_exact_shape() {
    let enricher = EnricherFixture::start().await;
    let attributes = [("event_type", "order"), ("received_at", "2026-10-20T00:15:01.250Z")];
    let raw = r#"{"event_id":"e-1","customer_id":5,"items":[{"quantity":1.5}],"total_amount":0.1234567891}"#;

    let answer = enricher.push(push("17", &attributes, format!("\n  {raw}\r\n"))).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let message = &enricher.dead_letters.messages()[0];
    let attributes: Vec<_> = message.attributes.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    assert_eq!(attributes, ["event_type: dead_letter", "rows: 1"]);
    let letter = only_letter(&enricher);
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(letter) });
}

#[tokio::test]
async fn poison_costs_its_own_line_only() {
    let enricher = EnricherFixture::start().await;
    let lines: [&[u8]; 5] = [GOOD.as_bytes(), b"{\"event_id\":", b"\xff\xfe{}", b"[1]", GOOD.as_bytes()];

    let answer = enricher.push(push("1", &[], lines.join(&b'\n'))).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(enricher.rows().len(), 2);
    let letters = enricher.letters();
    let reasons: Vec<_> = letters.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["bad_json", "bad_utf8", "not_an_object"]);
    let raw: Vec<_> =
        letters.iter().map(|one| (one["raw"].as_str().unwrap(), one["raw_encoding"].as_str().unwrap())).collect();
    assert_eq!(raw, [("{\"event_id\":", "utf8"), ("//57fQ==", "base64"), ("[1]", "utf8")]);
    assert_eq!(letters[1]["raw_size"], 4);
    let mut ids: Vec<_> = letters.iter().map(|letter| letter["dead_letter_id"].to_string()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has its own id");
}

/// Each line might be a dead letter of its own, and all of them are held until the last is told.
#[tokio::test]
async fn a_message_of_too_many_lines_is_one_dead_letter() {
    let enricher = EnricherFixture::start().await;
    let most = vec!["1"; 10_000].join("\n");

    enricher.push(push("1", &[], most.clone())).await;
    assert_eq!(enricher.letters().len(), 10_000);
    enricher.push(push("2", &[], most + "\n1")).await;

    let letters = enricher.letters();
    let last = letters.last().unwrap();
    assert_eq!((letters.len(), &last["reason"], &last["raw_size"]), (10_001, &json!("too_large"), &json!(20_001)));
    assert_eq!(last["detail"], "10001 lines; a message has 10000 at most");
}

#[tokio::test]
async fn each_fault_has_its_reason_and_names_its_column() {
    let long = format!(r#"{{"event_timestamp":1792455300,"event_id":"{}"}}"#, "x".repeat(65));
    for (kind, raw, reason, detail) in [
        ("clickstream", "{}", "missing_required", "event_timestamp: a value is required"),
        (
            "clickstream",
            r#"{"event_timestamp":"2026-02-30T00:00:00Z"}"#,
            "bad_time",
            "event_timestamp: expected an existing time",
        ),
        (
            "clickstream",
            r#"{"event_timestamp":"0000-01-01T00:00:00Z"}"#,
            "out_of_range",
            "event_timestamp: a time lies in the years",
        ),
        (
            "clickstream",
            r#"{"event_timestamp":"10000-01-01T00:00:00Z"}"#,
            "out_of_range",
            "event_timestamp: a time lies in the years",
        ),
        (
            "clickstream",
            r#"{"event_timestamp":"1970-01-01T00:00:00Z"}"#,
            "outside_window",
            "event_timestamp: outside the accepted window",
        ),
        (
            "clickstream",
            r#"{"event_timestamp":1792455300,"user_id":"\udc00"}"#,
            "bad_text",
            "user_id: half of a surrogate pair",
        ),
        (
            "clickstream",
            r#"{"event_timestamp":1792455300,"event_id":"a/b"}"#,
            "bad_event_id",
            "event_id: an event_id has",
        ),
        ("clickstream", &long, "bad_event_id", "event_id: an event_id has"),
        (
            "clickstream",
            r#"{"event_timestamp":1792455300,"event_id":7}"#,
            "wrong_type",
            "event_id: expected STRING, found a number",
        ),
        (
            "inventory",
            r#"{"quantity_change":18446744073709551616}"#,
            "out_of_range",
            "quantity_change: an INTEGER is between",
        ),
        ("inventory", r#"{"quantity_change":1e400}"#, "out_of_range", "quantity_change: an INTEGER is between"),
        (
            "inventory",
            r#"{"quantity_change":true}"#,
            "wrong_type",
            "quantity_change: expected INTEGER, found a boolean",
        ),
        (
            "order",
            r#"{"total_amount":3859.9399999999996}"#,
            "too_precise",
            "total_amount: a NUMERIC has at most 9 decimals",
        ),
        (
            "order",
            r#"{"items":[{"price":1},{"price":1e29}]}"#,
            "out_of_range",
            "items.price: a NUMERIC has at most 29 digits",
        ),
        ("order", r#"{"items":[1]}"#, "wrong_type", "items: expected RECORD, found a number"),
        ("order", "{\"status\":\"a\nb\"}", "bad_json", "the text ends inside a string at byte 12"),
    ] {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(push("1", &[("event_type", kind)], raw)).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{raw}");
        assert_eq!(enricher.rows(), Vec::<Value>::new(), "{raw}");
        let letter = &enricher.letters()[0];
        assert_eq!(letter["reason"], reason, "{raw}");
        assert!(letter["detail"].as_str().unwrap().starts_with(detail), "{raw}: {}", letter["detail"]);
        assert_eq!(letter["event_type"], kind, "{raw}");
    }
}

#[tokio::test]
async fn depth_of_a_hundred_thousand_is_a_dead_letter() {
    let enricher = EnricherFixture::start().await;
    let raw = "[".repeat(100_000);

    let answer = enricher.push(push("1", &[], &raw)).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let letter = only_letter(&enricher);
    assert_eq!((&letter["reason"], &letter["raw"]), (&json!("too_deep"), &json!(raw)));
}

#[tokio::test]
async fn the_length_of_text_is_limited_by_the_schema() {
    let schema = r#"{"event_type":"note","version":"1-0-0","ingest":"stream","table":{"dataset":"d","name":"notes"},
        "columns":[{"name":"words","type":"STRING","maxLength":"100"}]}"#;
    let enricher = EnricherFixture::with(registry_with(&[schema]), enricher::Config::default()).await;
    let note = |length| format!(r#"{{"words":"{}"}}"#, "é".repeat(length));

    enricher.push(push("1", &[("event_type", "note")], format!("{}\n{}", note(100), note(10_240)))).await;

    assert_eq!(enricher.rows().len(), 1);
    assert_eq!(enricher.letters()[0]["reason"], "too_long");
    assert_eq!(enricher.letters()[0]["detail"], "words: 10240 long, at most 100 fit");
}

#[tokio::test]
async fn the_events_identity_goes_with_it() {
    for (raw, expected) in [
        (r#"{"event_id":"e-1"}"#, Some("e-1")),
        (r#"{"event_id":"e-1","event_timestamp":}"#, Some("e-1")),
        (r#"{"event_id":"../e","event_timestamp":}"#, None),
        (r#"{"event_id":"../e"}"#, None),
        ("{}", None),
        ("5", None),
    ] {
        let enricher = EnricherFixture::start().await;
        let twin = EnricherFixture::start().await;

        enricher.push(push("1", &[], raw)).await;
        twin.push(push("1", &[], GOOD.replace(r#""event_id":"good","#, ""))).await;

        let id = &enricher.letters()[0]["event_id"];
        match expected {
            Some(expected) => assert_eq!(id, expected, "{raw}"),
            None => assert_eq!(*id, twin.rows()[0]["event_id"], "{raw}: the id that a good line in its place has"),
        }
    }
}

#[tokio::test]
async fn what_is_no_push_is_a_dead_letter() {
    for (body, detail) in [
        (&b""[..], "not a Pub/Sub push"),
        (b"hello", "not a Pub/Sub push"),
        (b"{}", "not a Pub/Sub push"),
        (b"[]", "not a Pub/Sub push"),
        (b"\xff\x00", "not a Pub/Sub push"),
        (br#"{"message":null,"subscription":"s"}"#, "not a Pub/Sub push"),
        (br#"{"message":{"data":"e30"},"subscription":"s"}"#, "message.data is not base64"),
        (br#"{"message":{"data":"!!!!"},"subscription":"s"}"#, "message.data is not base64"),
    ] {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(body.to_vec()).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{body:?}");
        let letter = only_letter(&enricher);
        assert_eq!((&letter["reason"], &letter["stage"]), (&json!("bad_envelope"), &json!("enricher")), "{body:?}");
        assert!(letter["detail"].as_str().unwrap().starts_with(detail), "{letter}");
        assert_eq!(letter["failed_at"], NOW_TEXT);
        let raw = letter["raw"].as_str().unwrap().as_bytes();
        let raw = if letter["raw_encoding"] == "base64" {
            base64_simd::STANDARD.decode_to_vec(raw).unwrap()
        } else {
            raw.to_vec()
        };
        assert_eq!(raw, body);
    }
}

#[tokio::test]
async fn a_message_without_an_event_is_a_dead_letter() {
    for data in ["", "\n", " \r\n \n"] {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(push("1", &[("event_type", "order")], data)).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{data:?}");
        let letter = only_letter(&enricher);
        assert_eq!(letter["detail"], "the message holds no event", "{data:?}");
        assert_eq!((&letter["raw"], &letter["event_type"]), (&json!(data), &json!("order")));
        assert_eq!(letter["received_at"], PUBLISHED_AT);
    }
}

#[tokio::test]
async fn a_type_of_the_attribute_that_does_not_come_over_a_stream_is_a_dead_letter() {
    for name in ["dead_letter", "history"] {
        let batch = r#"{"event_type":"history","version":"1-0-0","ingest":"batch","table":{"dataset":"d","name":"h"},
            "columns":[{"name":"x","type":"STRING"}]}"#;
        let enricher = EnricherFixture::with(registry_with(&[batch]), enricher::Config::default()).await;

        let answer = enricher.push(push("1", &[("event_type", name)], format!("{GOOD}\n{GOOD}"))).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{name}");
        let letter = only_letter(&enricher);
        assert_eq!(letter["reason"], "type_not_allowed", "{name}");
        assert_eq!(letter["raw"], format!("{GOOD}\n{GOOD}"), "{name}: the whole message");
    }
}

#[tokio::test]
async fn a_type_of_the_attribute_that_has_no_schema_makes_a_dead_letter_of_each_event() {
    for (name, event_type) in [
        ("refund", json!("refund")),
        ("../order", Value::Null),
        ("order\0", Value::Null),
        ("Order", Value::Null),
        ("", Value::Null),
    ] {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(push("1", &[("event_type", name)], format!("{GOOD}\n{{}}"))).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{name}");
        let letters = enricher.letters();
        assert_eq!((letters.len(), enricher.rows().len()), (2, 0), "{name}");
        for (letter, raw) in letters.iter().zip([GOOD, "{}"]) {
            let told = (&letter["reason"], &letter["event_type"], &letter["raw"]);
            assert_eq!(told, (&json!("unknown_type"), &event_type, &json!(raw)), "{name}");
        }
        assert_eq!(letters[0]["event_id"], "good", "{name}");
    }
}
