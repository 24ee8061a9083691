//! What the publisher makes of bad input: refused as a whole, rejected alone, or kept with its problems.

use axum::http::StatusCode;
use pipeline_tests::{NOW_TEXT, PublisherFixture, built_in, post, problem_codes, registry_with};
use serde_json::{Value, json};
use shared::enrich::address::Anonymise;

const MIB: usize = 1 << 20;

/// The `code` of each rejected event by its index.
fn rejections(answer: &Value) -> Vec<(u64, &str)> {
    let rejected = answer["rejected"].as_array().expect("rejected is an array");
    rejected
        .iter()
        .map(|one| (one["index"].as_u64().unwrap_or(u64::MAX), one["code"].as_str().unwrap_or_default()))
        .collect()
}

#[tokio::test]
async fn a_body_without_events_is_refused() {
    for (content_type, body) in [
        ("application/json", ""),
        ("application/json", " \n\t"),
        ("application/json", "[]"),
        ("application/json", " [ ] "),
        ("application/x-ndjson", ""),
        ("application/x-ndjson", "\n\r\n"),
        ("text/plain", ""),
        ("text/plain", "[]"),
    ] {
        let publisher = PublisherFixture::start();

        let answer = post(&publisher.router, "/publish", Some(content_type), body).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{content_type} {body:?}");
        assert!(answer.json()["error"].is_string(), "{content_type} {body:?}");
        assert!(publisher.topic.messages().is_empty());
    }
}

#[tokio::test]
async fn what_is_no_object_is_rejected_by_its_index() {
    for (body, expected) in
        [("null", &[0][..]), ("5", &[0]), ("\"text\"", &[0]), ("true", &[0]), ("[null, 1, [], [{}]]", &[0, 1, 2, 3])]
    {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let answer = answer.json();
        assert_eq!(answer["accepted"], json!([]), "{body}");
        let expected: Vec<_> = expected.iter().map(|index| (*index, "not_an_object")).collect();
        assert_eq!(rejections(&answer), expected, "{body}");
    }
}

#[tokio::test]
async fn an_event_without_a_member_is_rejected() {
    for body in ["{}", " { \n} ", "[{}]"] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(rejections(&answer.json()), [(0, "empty_event")], "{body}");
    }
}

#[tokio::test]
async fn good_and_bad_events_of_one_array_are_told_apart() {
    let publisher = PublisherFixture::start();
    let body = r#"[{"event_id":"good-1"}, null, {"event_id":"a b"}, {"event_id":"good-2","user_id":{}}, [1], {"event_id":"good-3"}]"#;

    let answer = publisher.publish(body).await;

    assert_eq!(answer.status, StatusCode::OK);
    let answer = answer.json();
    let accepted: Vec<_> =
        answer["accepted"].as_array().unwrap().iter().map(|one| (&one["index"], &one["event_id"])).collect();
    let (first, second, third) = (json!(0), json!(3), json!(5));
    assert_eq!(accepted, [(&first, &json!("good-1")), (&second, &json!("good-2")), (&third, &json!("good-3"))]);
    assert_eq!(rejections(&answer), [(1, "not_an_object"), (2, "bad_event_id"), (4, "not_an_object")]);
    assert_eq!(publisher.events().len(), 3);
}

#[tokio::test]
async fn five_hundred_events_fit_and_one_more_does_not() {
    let event = r#"{"user_id":"u"}"#;
    for (count, status, published) in [(500, StatusCode::OK, 500), (501, StatusCode::PAYLOAD_TOO_LARGE, 0)] {
        let array = format!("[{}]", vec![event; count].join(","));
        let lines = vec![event; count].join("\n");
        for (content_type, body) in [("application/json", array), ("application/x-ndjson", lines)] {
            let publisher = PublisherFixture::start();

            let answer = post(&publisher.router, "/publish", Some(content_type), body).await;

            assert_eq!(answer.status, status, "{count} as {content_type}");
            assert_eq!(publisher.events().len(), published, "{count} as {content_type}");
        }
    }
}

#[tokio::test]
async fn a_body_of_a_mebibyte_fits_and_one_byte_more_does_not() {
    let frame = r#"[{"event_id":"e","event_timestamp":1792455300,"page_url":""}]"#;
    let exact = frame.replace(r#""""#, &format!(r#""{}""#, "x".repeat(MIB - frame.len())));
    assert_eq!(exact.len(), MIB);
    let over = format!("{exact} ");

    for (body, status) in [(exact, StatusCode::OK), (over, StatusCode::PAYLOAD_TOO_LARGE)] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, status);
        assert_eq!(publisher.topic.messages().len(), usize::from(status == StatusCode::OK));
    }
}

#[tokio::test]
async fn a_public_publisher_takes_smaller_requests() {
    let limits = publisher::Limits { body_bytes: 64, events: 2 };
    let fits = r#"[{"user_id":"u"},{"user_id":"u"}]"#;
    let many = r#"[{"user_id":"u"},{"user_id":"u"},{"user_id":"u"}]"#;
    for (body, status, told) in [
        (fits.to_string(), StatusCode::OK, ""),
        (many.to_string(), StatusCode::PAYLOAD_TOO_LARGE, "over 2 events"),
        (fits.to_string() + &" ".repeat(64), StatusCode::PAYLOAD_TOO_LARGE, "over 64 bytes"),
    ] {
        let publisher = PublisherFixture::within(built_in(), Anonymise::Off, limits);

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, status, "{told}");
        assert!(answer.json().to_string().contains(told), "{}", answer.json());
    }
}

#[tokio::test]
async fn other_content_types_are_not_read() {
    for content_type in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "text/html",
        "",
        "json",
    ] {
        let publisher = PublisherFixture::start();

        let answer = post(&publisher.router, "/publish", Some(content_type), r#"{"user_id":"u"}"#).await;

        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
        assert!(publisher.topic.messages().is_empty(), "{content_type}");
    }
}

#[tokio::test]
async fn broken_json_is_refused_with_its_line_and_column() {
    for (body, line, column) in [
        ("{\"user_id\":\"u\",}", 1, 16),
        ("[\n  {\"user_id\": \"u\"},\n  {\"user_id\": u}\n]", 3, 15),
        ("{\"user_id\":\"u\"", 1, 15),
        ("{\"é\":01}", 1, 8),
        ("[{}] []", 1, 6),
        ("\u{feff}{}", 1, 1),
    ] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let error = answer.json()["error"].as_str().unwrap().to_string();
        let position = format!("(line {line}, column {column})");
        assert!(error.starts_with("broken JSON: ") && error.ends_with(&position), "{body:?}: {error}");
        assert!(publisher.topic.messages().is_empty(), "{body}");
    }
}

#[tokio::test]
async fn a_broken_line_of_ndjson_is_rejected_alone() {
    let deep = "[".repeat(100_000);
    let body = format!("{{\"event_id\":\"a\"}}\n{{\"event_id\":\n\n{deep}\n7\n{{\"event_id\":\"b\"}}");
    for content_type in ["application/x-ndjson", "text/plain"] {
        let publisher = PublisherFixture::start();

        let answer = post(&publisher.router, "/publish", Some(content_type), body.clone()).await;

        assert_eq!(answer.status, StatusCode::OK, "{content_type}");
        let answer = answer.json();
        assert_eq!(rejections(&answer), [(1, "bad_json"), (2, "too_deep"), (3, "not_an_object")], "{content_type}");
        assert_eq!(publisher.events().len(), 2, "{content_type}");
    }
}

#[tokio::test]
async fn bytes_that_are_not_utf8_are_refused_with_their_position() {
    for (content_type, body) in [
        ("application/json", &b"{\"user_id\":\"\xff\"}"[..]),
        ("application/json", b"{\"user_id\":\"\xed\xa0\x80\"}"),
        ("application/x-ndjson", b"{\"user_id\":\"\xc0\xaf\"}\n{}"),
        ("text/plain", b"{\"user_id\":\"\xe9\"}"),
    ] {
        let publisher = PublisherFixture::start();

        let answer = post(&publisher.router, "/publish", Some(content_type), body.to_vec()).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body:?}");
        assert_eq!(answer.json()["error"], "the body is not UTF-8 at byte 12", "{body:?}");
        assert!(publisher.topic.messages().is_empty());
    }
}

#[tokio::test]
async fn depth_of_a_hundred_thousand_is_refused_without_a_crash() {
    let nest = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    for body in [
        nest("[", "]"),
        nest("[", ""),
        format!(r#"{{"event_id":"e","unknown":{}}}"#, nest("[", "]")),
        format!(r#"{{"event_id":"e","unknown":{}1{}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000)),
    ] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"].as_str().unwrap().contains("at most 128 deep"), "{}", answer.json());
    }
}

#[tokio::test]
async fn an_event_that_breaks_its_schema_is_kept_with_its_problems() {
    let order = |member: &str| format!(r#"{{"event_type":"order",{member}}}"#);
    for (event, expected) in [
        (r#"{"user_id":5}"#.to_string(), &[("user_id", "wrong_type"), ("event_timestamp", "defaulted")][..]),
        (r#"{"event_timestamp":true}"#.into(), &[("event_timestamp", "wrong_type")]),
        (r#"{"event_timestamp":1792455300,"user_id":"\ud800"}"#.into(), &[("user_id", "bad_text")]),
        (r#"{"event_timestamp":1e400}"#.into(), &[("event_timestamp", "out_of_range")]),
        (r#"{"event_timestamp":"0000-01-01T00:00:00Z"}"#.into(), &[("event_timestamp", "out_of_range")]),
        (r#"{"event_timestamp":"10000-01-01T00:00:00Z"}"#.into(), &[("event_timestamp", "out_of_range")]),
        (r#"{"event_timestamp":"2026-02-30T00:00:00Z"}"#.into(), &[("event_timestamp", "bad_time")]),
        (r#"{"event_timestamp":"1970-01-01T00:00:00Z"}"#.into(), &[("event_timestamp", "outside_window")]),
        (r#"{"event_timestamp":0}"#.into(), &[("event_timestamp", "outside_window")]),
        (r#"{"event_timestamp":"2026-10-21T00:15:02.920001Z"}"#.into(), &[("event_timestamp", "outside_window")]),
        (order(r#""total_amount":1e400"#), &[("total_amount", "out_of_range")]),
        (order(r#""total_amount":"12,50""#), &[("total_amount", "wrong_type")]),
        (order(r#""total_amount":0.1234567891"#), &[("total_amount", "too_precise")]),
        (order(r#""items":[{"quantity":18446744073709551616}]"#), &[("items.quantity", "out_of_range")]),
        (order(r#""items":[{"quantity":1.5}]"#), &[("items.quantity", "wrong_type")]),
        (order(r#""items":[null]"#), &[("items", "wrong_type")]),
        (order(r#""items":{}"#), &[("items", "wrong_type")]),
        (order(r#""shipping_address":"here""#), &[("shipping_address", "wrong_type")]),
    ] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(event.clone()).await;

        assert_eq!(answer.status, StatusCode::OK, "{event}");
        let answer = answer.json();
        assert_eq!(problem_codes(&answer["accepted"][0]), expected, "{event}");
        let line = publisher.lines().remove(0);
        assert!(line.starts_with(event.trim_end_matches('}')), "{event} is kept as it is: {line}");
    }
}

#[tokio::test]
async fn nul_and_the_edges_of_the_window_are_no_problem() {
    for event in [
        r#"{"event_timestamp":1792455300,"user_id":"a\u0000b"}"#,
        r#"{"event_timestamp":"2026-10-21T00:15:02.920Z"}"#,
        r#"{"event_timestamp":"2021-10-20T00:15:02.920Z"}"#,
        r#"{"event_timestamp":1792455302920,"user_id":null,"unknown":1e400}"#,
        r#"{"event_type":"inventory","quantity_change":-9223372036854775808}"#,
        r#"{"event_type":"inventory","quantity_change":"9223372036854775807"}"#,
    ] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(event).await.json();

        assert_eq!(answer["accepted"][0]["problems"], json!([]), "{event}");
    }
}

#[tokio::test]
async fn of_a_key_that_stands_twice_the_last_value_counts() {
    for (event, id, problems) in [
        (r#"{"event_id":"a","event_id":"b","event_timestamp":1792455300}"#, "b", &[][..]),
        (r#"{"eventId":"a","event_id":"b","event_timestamp":1792455300}"#, "b", &[]),
        (r#"{"event_id":"b","event_timestamp":"x","event_timestamp":1792455300}"#, "b", &[]),
        (r#"{"event_id":"b","event_timestamp":1792455300,"user_id":5,"userId":"u"}"#, "b", &[]),
        (
            r#"{"event_id":"b","event_timestamp":1792455300,"user_id":"u","user_id":5}"#,
            "b",
            &[("user_id", "wrong_type")],
        ),
        (
            r#"{"event_id":"b","event_type":"order","items":[{"quantity":"x"},{"quantity":"x","quantity":1}]}"#,
            "b",
            &[("items.quantity", "wrong_type")],
        ),
        (r#"{"event_id":"b","event_type":"order","items":[{"quantity":"x"}],"items":[]}"#, "b", &[]),
    ] {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(event).await.json();

        assert_eq!(answer["accepted"][0]["event_id"], id, "{event}");
        assert_eq!(problem_codes(&answer["accepted"][0]), problems, "{event}");
    }
}

#[tokio::test]
async fn a_missing_required_column_and_text_that_is_too_long_are_problems() {
    let schema = r#"{"event_type":"note","version":"1-0-0","ingest":"public","table":{"dataset":"d","name":"notes"},
        "columns":[{"name":"author","type":"STRING","mode":"REQUIRED"},
                   {"name":"words","type":"STRING","maxLength":"10000"},
                   {"name":"blob","type":"BYTES","maxLength":4}]}"#;
    let note = |author: &str, length: usize, blob: &str| {
        format!(r#"{{"event_type":"note"{author},"words":"{}","blob":"{blob}"}}"#, "é".repeat(length))
    };
    for (event, expected) in [
        (note(r#","author":"a""#, 10_000, "AAAAAA=="), &[][..]),
        (note(r#","author":"a""#, 10_240, "AAAAAA=="), &[("words", "too_long")]),
        (note(r#","author":null"#, 1, "AAAAAA=="), &[("author", "missing_required")]),
        (note("", 10_240, "AAAAAAA="), &[("words", "too_long"), ("blob", "too_long"), ("author", "missing_required")]),
        (note(r#","author":"a""#, 1, "AAAA*"), &[("blob", "bad_base64")]),
    ] {
        let publisher = PublisherFixture::with(registry_with(&[schema]), Anonymise::Off);

        let answer = publisher.publish(event).await.json();

        assert_eq!(problem_codes(&answer["accepted"][0]), expected);
        assert_eq!(publisher.topic.messages()[0].attributes["event_type"], "note");
    }
}

#[tokio::test]
async fn an_event_type_that_could_be_a_path_never_reaches_a_name() {
    for name in ["../../etc/passwd", "a/b", "a\\u0000b", "order\\u0000", "Order", "", "nowhere"] {
        let publisher = PublisherFixture::public();
        let body = format!(r#"{{"event_type":"{name}","event_timestamp":1792455300}}"#);

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, StatusCode::OK, "{name}");
        assert_eq!(problem_codes(&answer.json()["accepted"][0]), [("event_type", "unknown_type")], "{name}");
        let attributes = &publisher.topic.messages()[0].attributes;
        let expected = [("ingest", "public"), ("received_at", NOW_TEXT), ("source", "publisher")];
        assert!(attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{name}");
    }
}

#[tokio::test]
async fn a_bad_event_id_is_rejected() {
    let long = "x".repeat(65);
    let texts = [long.as_str(), "a/b", "../a", "", "a b", "é", "a\\u0000", "\\ud800"].map(|id| format!("\"{id}\""));
    for id in texts.into_iter().chain(["5", "true", "{}", "[]"].map(String::from)) {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(format!(r#"{{"event_id":{id}}}"#)).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{id}");
        assert_eq!(rejections(&answer.json()), [(0, "bad_event_id")], "{id}");
        assert!(publisher.topic.messages().is_empty(), "{id}");
    }
    let publisher = PublisherFixture::start();
    let longest = "x".repeat(64);
    let answer = publisher.publish(format!(r#"{{"event_id":"{longest}"}}"#)).await.json();
    assert_eq!(answer["accepted"][0]["event_id"], longest);
}
