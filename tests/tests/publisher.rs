//! The publisher: what a request becomes on the raw topic, and what the client is told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use pipeline_tests::{
    EnricherFixture, NOW, NOW_TEXT, PublisherFixture, RAW_SUB, built_in, call, delivery, get, json_lines, post,
    post_json, problem_codes, publisher_deps, registry_with,
};
use serde_json::json;
use shared::clock::{Clock, DAY, SECOND};
use shared::decode::time::timestamp_text;
use shared::enrich::address::Anonymise;
use shared::event;
use shared::publish::{MAX_BYTES, Message, PublishError, Publisher};

const CLICK: &str = r#"{"event_id":"e-1","user_id":"u1","session_id":"s1","page_url":"/","event_name":"click","ip_address":"8.8.8.8","event_timestamp":"2026-10-20T00:15:00Z"}"#;

#[tokio::test]
async fn no_body_publishes_one_synthetic_event_where_the_settings_allow_it() {
    let deps = publisher::Deps { synthetic_events: true, ..publisher_deps(built_in(), Clock::manual(NOW)) };
    let publisher = PublisherFixture::of(deps, publisher::Limits::default());

    let answer = post(&publisher.router, "/publish", None, "").await;

    assert_eq!(answer.status, StatusCode::OK);
    let (events, answer) = (publisher.events(), answer.json());
    assert_eq!(events.len(), 1);
    assert_eq!(answer["rejected"], json!([]));
    assert_eq!(answer["accepted"][0]["problems"], json!([]), "a synthetic event keeps its schema");
    let key = |snake: &str, camel: &str| events[0].get(snake).or(events[0].get(camel)).cloned().unwrap_or_default();
    assert_eq!(key("event_id", "eventId"), answer["accepted"][0]["event_id"]);
    assert_eq!(key("event_timestamp", "eventTimestamp"), NOW_TEXT);
    assert_eq!(publisher.topic.messages()[0].attributes["event_type"], "clickstream");
}

#[tokio::test]
async fn the_answer_has_its_exact_shape() {
    let publisher = PublisherFixture::start();
    let body = format!(r#"[{CLICK}, 5, {{"event_id":"e-2","user_id":7}}, {{"event_id":"a/b"}}]"#);

    let answer = publisher.publish(body).await;

    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "application/json"));
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(answer.json()) });
}

#[tokio::test]
async fn every_form_of_body_is_read() {
    let two = format!("[{CLICK},{}]", CLICK.replace("e-1", "e-2"));
    let lines = format!("{CLICK}\n\r\n  {}\r\n", CLICK.replace("e-1", "e-2"));
    let pretty = CLICK.replace(',', ",\n  ");
    for (name, content_type, body, ids) in [
        ("one object", Some("application/json"), CLICK, &["e-1"][..]),
        ("with a charset", Some("Application/JSON; charset=utf-8"), CLICK, &["e-1"]),
        ("over several lines", Some("application/json"), &pretty, &["e-1"]),
        ("an array", Some("application/json"), &two, &["e-1", "e-2"]),
        ("NDJSON", Some("application/x-ndjson"), &lines, &["e-1", "e-2"]),
        ("NDJSON by its other name", Some("application/jsonl"), &lines, &["e-1", "e-2"]),
        ("a beacon of one object", Some("text/plain;charset=UTF-8"), &pretty, &["e-1"]),
        ("a beacon of an array", Some("text/plain"), &two, &["e-1", "e-2"]),
        ("a beacon of lines", Some("text/plain"), &lines, &["e-1", "e-2"]),
        ("without a content type", None, CLICK, &["e-1"]),
    ] {
        let publisher = PublisherFixture::start();

        let answer = post(&publisher.router, "/publish", content_type, body.to_string()).await;

        assert_eq!(answer.status, StatusCode::OK, "{name}");
        let arrived: Vec<_> = publisher.events().iter().map(|event| event["event_id"].clone()).collect();
        assert_eq!(arrived, ids, "{name}");
    }
}

#[tokio::test]
async fn both_key_styles_are_the_same_event() {
    let publisher = PublisherFixture::start();
    let camel = r#"{"eventId":"c-1","userId":"u1","sessionId":"s1","pageUrl":"/","eventName":"click","ipAddress":"8.8.8.8","eventTimestamp":1792455300}"#;

    let answer = publisher.publish(format!("[{CLICK},{camel}]")).await.json();

    assert_eq!(answer["accepted"][0]["problems"], json!([]));
    assert_eq!(answer["accepted"][1]["problems"], json!([]));
    assert_eq!(answer["accepted"][1]["event_id"], "c-1");
    assert_eq!(publisher.lines(), [CLICK, camel], "nothing was added, not even to the camelCase one");
}

#[tokio::test]
async fn a_missing_event_id_is_minted_as_uuid_v7_of_now() {
    let publisher = PublisherFixture::start();
    let body = r#"[{"event_timestamp":1792455300},{"event_id":null,"event_timestamp":1792455300}]"#;

    let answer = publisher.publish(body).await.json();

    let events = publisher.events();
    let ids: Vec<_> = events.iter().map(|event| event["event_id"].as_str().unwrap().to_string()).collect();
    assert_ne!(ids[0], ids[1]);
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(answer["accepted"][index]["event_id"], *id);
        let digits = id.replace('-', "");
        assert_eq!((id.len(), digits.len(), &digits[12..13]), (36, 32, "7"), "{id}");
        assert_eq!(i64::from_str_radix(&digits[..12], 16).unwrap(), NOW / 1_000, "{id} sorts by time");
    }
}

#[tokio::test]
async fn a_message_says_where_and_when_it_came_in() {
    let publisher = PublisherFixture::start();

    publisher.publish(CLICK).await;

    let expected = [("event_type", "clickstream"), ("received_at", NOW_TEXT), ("source", "publisher")];
    let expected: BTreeMap<_, _> = expected.map(|(key, value)| (key.to_string(), value.to_string())).into();
    assert_eq!(publisher.topic.messages()[0].attributes, expected);
}

#[tokio::test]
async fn the_clients_address_is_added_only_where_the_client_gave_none() {
    let client = IpAddr::from([93, 184, 216, 34]);
    let none = &[][..];
    let forged = &[("x-forwarded-for", "8.8.8.8"), ("forwarded", "for=8.8.8.8"), ("x-real-ip", "8.8.8.8")][..];
    for (name, headers, event, expected) in [
        ("none given", none, r#"{"event_id":"e"}"#, json!("93.184.216.34")),
        ("null given", none, r#"{"event_id":"e","ip_address":null}"#, json!("93.184.216.34")),
        ("a forged header", forged, r#"{"event_id":"e"}"#, json!("93.184.216.34")),
        ("one given", none, r#"{"event_id":"e","ip_address":"8.8.8.8"}"#, json!("8.8.8.8")),
        ("a wrong one given", none, r#"{"event_id":"e","ip_address":5}"#, json!(5)),
        ("a type without an address", none, r#"{"event_id":"e","event_type":"order"}"#, json!(null)),
    ] {
        let publisher = PublisherFixture::start();

        publisher.publish_from(client, headers, event).await;

        assert_eq!(publisher.events()[0]["ip_address"], expected, "{name}");
    }
}

#[tokio::test]
async fn a_camel_case_address_counts_as_given() {
    let publisher = PublisherFixture::start();

    publisher.publish_from(IpAddr::from([9, 9, 9, 9]), &[], r#"{"event_id":"e","ipAddress":"8.8.8.8"}"#).await;

    assert_eq!(publisher.events()[0].get("ip_address"), None);
}

#[tokio::test]
async fn without_a_known_address_a_header_adds_none() {
    let publisher = PublisherFixture::start();
    let request = Request::post("/publish").header("content-type", "application/json");
    let request = request.header("x-forwarded-for", "8.8.8.8").body(Body::from(r#"{"event_id":"e"}"#)).unwrap();

    call(&publisher.router, request).await;

    assert_eq!(publisher.events()[0].get("ip_address"), None);
}

#[tokio::test]
async fn an_added_address_is_cut_to_its_network_where_addresses_are_anonymised() {
    for policy in [Anonymise::Truncate, Anonymise::Drop] {
        let publisher = PublisherFixture::with(built_in(), policy);

        publisher.publish_from(IpAddr::from([93, 184, 216, 34]), &[], r#"{"event_id":"e"}"#).await;

        assert_eq!(publisher.events()[0]["ip_address"], "93.184.216.0", "the lookup needs the network: {policy:?}");
    }
}

#[tokio::test]
async fn a_missing_event_timestamp_becomes_the_time_of_receipt() {
    for body in [r#"{"event_id":"e-1"}"#, r#"{"event_id":"e-1","event_timestamp":null}"#] {
        let publisher = PublisherFixture::start();
        let enricher = EnricherFixture::start().await;

        let answer = publisher.publish(body).await.json();
        let message = &publisher.topic.messages()[0];
        enricher.push(delivery(RAW_SUB, "1", message)).await;

        assert_eq!(problem_codes(&answer["accepted"][0]), [("event_timestamp", "defaulted")], "{body}");
        let row = &enricher.rows()[0];
        assert_eq!((&row["event_timestamp"], &row["received_at"]), (&json!(NOW_TEXT), &json!(NOW_TEXT)), "{body}");
        assert_eq!(enricher.letters(), [] as [serde_json::Value; 0]);
    }
}

#[tokio::test]
async fn a_wrong_event_timestamp_is_not_replaced() {
    let publisher = PublisherFixture::start();

    let answer = publisher.publish(r#"{"event_id":"e-1","event_timestamp":"yesterday"}"#).await.json();

    assert_eq!(problem_codes(&answer["accepted"][0]), [("event_timestamp", "bad_time")]);
    assert_eq!(publisher.lines(), [r#"{"event_id":"e-1","event_timestamp":"yesterday"}"#]);
}

#[tokio::test]
async fn each_type_has_its_own_message() {
    let publisher = PublisherFixture::start();
    let body = r#"[{"event_id":"a"},{"event_id":"b","event_type":"order"},{"event_id":"c"},
        {"event_id":"d","eventType":"inventory"},{"event_id":"e","event_type":"order"}]"#;

    let answer = publisher.publish(body).await.json();

    let ids = |message: &Message| -> Vec<String> {
        json_lines(&message.data).iter().map(|event| event["event_id"].as_str().unwrap().to_string()).collect()
    };
    let messages = publisher.topic.messages();
    let by_type: Vec<_> =
        messages.iter().map(|message| (message.attributes["event_type"].as_str(), ids(message))).collect();
    let expected = [("clickstream", vec!["a", "c"]), ("order", vec!["b", "e"]), ("inventory", vec!["d"])];
    assert_eq!(by_type, expected.map(|(kind, ids)| (kind, ids.into_iter().map(str::to_string).collect())));
    let message_ids: Vec<_> = (0..5).map(|index| answer["accepted"][index]["message_id"].as_str().unwrap()).collect();
    assert_eq!(message_ids, ["1", "2", "1", "3", "2"], "each event is told the message that it travels in");
}

#[tokio::test]
async fn what_grows_past_a_mebibyte_travels_in_two_messages() {
    let publisher = PublisherFixture::start();
    // Together just under the largest body; ids and times are added to each.
    let event = format!(r#"{{"page_url":"{}"}}"#, "x".repeat(2_600));
    let body = format!("[{}]", vec![event; 400].join(","));
    assert!(body.len() <= MAX_BYTES && body.len() > MAX_BYTES - 10_000);

    let answer = publisher.publish(body).await;

    assert_eq!(answer.status, StatusCode::OK);
    let messages = publisher.topic.messages();
    let sizes: Vec<_> = messages.iter().map(|message| message.data.len()).collect();
    assert_eq!(sizes.len(), 2, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= MAX_BYTES), "{sizes:?}");
    assert_eq!(publisher.events().len(), 400);
}

#[tokio::test]
async fn the_clients_bytes_stay_and_additions_stand_at_the_end() {
    let publisher = PublisherFixture::start();
    let pretty = "{\r\n\t\"page_url\": \"\\u00e9 \\/ é \\ud834\\udd1e\",\n  \"unknown\" : [1.50e1, -0, {\"a\":\"\\n\"}],\n\"event_timestamp\":1792455300 }\n";

    let answer = publisher.publish(format!("[ {pretty} , {{ \n\"user_id\":\"u\" }} ]")).await.json();

    let [first, second] = [0, 1].map(|index| answer["accepted"][index]["event_id"].as_str().unwrap().to_string());
    let kept = "{  \t\"page_url\": \"\\u00e9 \\/ é \\ud834\\udd1e\",   \"unknown\" : [1.50e1, -0, {\"a\":\"\\n\"}], \"event_timestamp\":1792455300 ";
    let lines = publisher.lines();
    assert_eq!(lines[0], format!(r#"{kept},"event_id":"{first}"}}"#));
    assert_eq!(lines[1], format!(r#"{{  "user_id":"u" ,"event_id":"{second}","event_timestamp":"{NOW_TEXT}"}}"#));
}

#[tokio::test]
async fn when_the_topic_is_down_the_ids_come_back_to_send_again() {
    let publisher = PublisherFixture::start();
    publisher.topic.set_down(true);
    let body = r#"[{"event_id":"mine"},null,{"user_id":"u"}]"#;

    let answer = publisher.publish(body).await;

    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "2"));
    let mut json = answer.json();
    assert_eq!(json["events"][1]["event_id"].as_str().unwrap().len(), 36);
    json["events"][1]["event_id"] = "[minted]".into();
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(json) });
    assert!(publisher.topic.messages().is_empty());

    publisher.topic.set_down(false);
    assert_eq!(publisher.publish(body).await.status, StatusCode::OK);
}

/// The view keeps one row of a time and an id, so what is sent again must have the time that it had.
#[tokio::test]
async fn an_event_without_a_time_has_the_same_one_when_it_is_sent_again_under_its_id() {
    let publisher = PublisherFixture::start();
    publisher.topic.set_down(true);
    let answer = publisher.publish(r#"{"user_id":"u"}"#).await.json();
    let id = answer["events"][0]["event_id"].as_str().unwrap();
    publisher.topic.set_down(false);
    publisher.clock.set(NOW + 90 * SECOND);

    publisher.publish(format!(r#"{{"user_id":"u","event_id":"{id}"}}"#)).await;

    assert_eq!(publisher.events()[0]["event_timestamp"], NOW_TEXT);
    // However late, even where the table takes no such times.
    for (at, code) in
        [(NOW - 30 * DAY, None), (NOW - 6 * 366 * DAY, Some("outside_window")), (NOW + 2 * DAY, Some("outside_window"))]
    {
        let id = event::mint_event_id(at, &event::random_bytes());
        let answer = publisher.publish(format!(r#"{{"event_id":"{id}"}}"#)).await.json();
        let last = publisher.events().pop().unwrap();
        assert_eq!(last["event_timestamp"], timestamp_text(at));
        assert_eq!(answer["accepted"][0]["problems"][1]["code"].as_str(), code);
    }
}

/// A topic that acknowledges its first message only, or answers nothing for the others.
struct HalfTopic {
    answers_all: bool,
}

#[async_trait]
impl Publisher for HalfTopic {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        let failed = || Err(PublishError { topic: "half".into(), reason: "down".into() });
        let wanted = if self.answers_all { messages.len() } else { 1 };
        (0..wanted).map(|index| if index == 0 { Ok("1".to_string()) } else { failed() }).collect()
    }
}

#[tokio::test]
async fn nothing_is_vouched_for_where_one_of_the_messages_is_not_acknowledged() {
    for answers_all in [true, false] {
        let topic = Arc::new(HalfTopic { answers_all });
        let deps = publisher::Deps { topic, ..publisher_deps(built_in(), Clock::manual(NOW)) };
        let router = publisher::router(Arc::new(deps));

        let body = r#"[{"event_id":"a"},{"event_id":"b","event_type":"order"}]"#;
        let answer = post_json(&router, "/publish", body).await;

        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "every message answered: {answers_all}");
        let again = json!([{"index": 0, "event_id": "a"}, {"index": 1, "event_id": "b"}]);
        assert_eq!(answer.json()["events"], again, "every message answered: {answers_all}");
    }
}

#[tokio::test]
async fn received_at_is_the_clock_of_each_request() {
    let publisher = PublisherFixture::start();

    publisher.publish(CLICK).await;
    publisher.clock.set(NOW + SECOND);
    publisher.publish(CLICK).await;

    let times: Vec<_> =
        publisher.topic.messages().iter().map(|message| message.attributes["received_at"].clone()).collect();
    assert_eq!(times, [NOW_TEXT, "2026-10-20T00:15:03.920Z"]);
}

#[tokio::test]
async fn only_public_and_stream_types_are_taken() {
    let schema = |name: &str, ingest: &str| {
        format!(
            r#"{{"event_type":"{name}","version":"1-0-0","ingest":"{ingest}","table":{{"dataset":"d","name":"{name}"}},
                "columns":[{{"name":"x","type":"STRING"}}]}}"#
        )
    };
    let registry =
        registry_with(&[&schema("history", "batch"), &schema("ours", "stream"), &schema("theirs", "public")]);
    let publisher = PublisherFixture::with(registry, Anonymise::Off);
    let body =
        r#"[{"event_type":"dead_letter"},{"eventType":"history"},{"event_type":"ours"},{"event_type":"theirs"}]"#;

    let answer = publisher.publish(body).await;

    assert_eq!(answer.status, StatusCode::OK);
    let answer = answer.json();
    let rejected: Vec<_> =
        answer["rejected"].as_array().unwrap().iter().map(|one| (&one["index"], &one["code"])).collect();
    let not_allowed = json!("type_not_allowed");
    assert_eq!(rejected, [(&json!(0), &not_allowed), (&json!(1), &not_allowed)]);
    let types: Vec<_> =
        publisher.topic.messages().iter().map(|message| message.attributes["event_type"].clone()).collect();
    assert_eq!(types, ["ours", "theirs"]);
}

#[tokio::test]
async fn health_answers_whether_or_not_the_topic_does() {
    let publisher = PublisherFixture::start();
    publisher.topic.set_down(true);

    let answer = get(&publisher.router, "/health").await;

    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"status": "ok"})));
}

#[tokio::test]
async fn pages_of_any_origin_may_publish() {
    let publisher = PublisherFixture::start();
    publisher.topic.set_down(true);
    let preflight = Request::builder().method(Method::OPTIONS).uri("/publish").header("origin", "https://shop.example");
    let preflight = preflight.header("access-control-request-method", "POST");
    let preflight = preflight.header("access-control-request-headers", "content-type").body(Body::empty()).unwrap();
    let post = Request::post("/publish").header("origin", "https://shop.example");
    let post = post.header("content-type", "application/json").body(Body::from(CLICK)).unwrap();

    let allowed = call(&publisher.router, preflight).await;
    let answer = call(&publisher.router, post).await;

    assert_eq!(allowed.status, StatusCode::OK);
    assert_eq!(allowed.header("access-control-allow-origin"), "*");
    assert!(allowed.header("access-control-allow-methods").contains("POST"));
    assert_eq!(allowed.header("access-control-allow-headers"), "content-type");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("access-control-allow-origin"), "*", "a page reads refusals, too");
    assert_eq!(answer.header("access-control-expose-headers"), "retry-after");
}
