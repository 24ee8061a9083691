//! JSON that others have collected to break parsers: `JSONTestSuite` and the big list of naughty strings, where they
//! are at hand, else a small sample of the same kinds.

use std::path::Path;

use axum::http::StatusCode;
use pipeline_tests::{EnricherFixture, PublisherFixture, RAW_SUB, delivery, naughty_strings, post, push};
use serde_json::{Value, json};

/// Used where the collection is not at hand; named as it names its files.
const SAMPLE: [(&str, &[u8]); 14] = [
    ("y_object.json", b"{\"asd\":\"sdf\"}"),
    ("y_object_empty.json", b"{}"),
    ("y_array_empty.json", b"[]"),
    ("y_array_heterogeneous.json", b"[null, 1, \"1\", {}]"),
    ("y_array_null.json", b"[null]"),
    ("y_number.json", b"[123e65]"),
    ("y_structure_lonely_string.json", b"\"asd\""),
    ("y_string_accepted_surrogate_pair.json", b"[\"\\uD801\\udc37\"]"),
    ("n_structure_no_data.json", b""),
    ("n_array_extra_comma.json", b"[\"\",]"),
    ("n_string_invalid_utf8_after_escape.json", b"[\"\\\xe5\"]"),
    ("n_number_-01.json", b"[-01]"),
    ("n_structure_UTF8_BOM_no_data.json", b"\xef\xbb\xbf"),
    ("i_string_1st_surrogate_but_2nd_missing.json", b"[\"\\uDADA\"]"),
];

/// The files whose names begin with `kind`, with their bytes.
fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/corpora/json");
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    if let Ok(entries) = std::fs::read_dir(&folder) {
        for path in entries.map(|entry| entry.expect("the folder lists").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, std::fs::read(&path).expect("the file can be read")));
        }
    } else {
        println!("skipped: no {}; a sample of {} takes its place", folder.display(), SAMPLE.len());
        files = SAMPLE.map(|(name, bytes)| (name.to_string(), bytes.to_vec())).into();
    }
    files.retain(|(name, _)| name.starts_with(kind));
    files.sort();
    assert!(!files.is_empty(), "there are {kind} files");
    files
}

#[tokio::test]
async fn every_json_text_is_accepted_as_json() {
    for (name, body) in corpus("y_") {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body.clone()).await;

        let json = answer.json();
        let is_empty_array = json == json!({"error": "the array holds no event"});
        let rejected = json["rejected"].as_array().cloned().unwrap_or_default();
        let codes = ["not_an_object", "empty_event"];
        let are_no_events =
            !rejected.is_empty() && rejected.iter().all(|one| codes.iter().any(|code| one["code"] == *code));
        match answer.status {
            StatusCode::OK => assert!(rejected.is_empty() || are_no_events, "{name}: {json}"),
            status => {
                assert!(status == StatusCode::BAD_REQUEST && (are_no_events || is_empty_array), "{name}: {json}");
            }
        }
        let sent: Value = serde_json::from_slice(&body).unwrap();
        let is_event = |value: &Value| value.as_object().is_some_and(|members| !members.is_empty());
        let has_event = is_event(&sent) || sent.as_array().is_some_and(|values| values.iter().any(is_event));
        assert_eq!(is_empty_array, sent == json!([]), "{name}");
        assert_eq!(
            answer.status == StatusCode::OK,
            has_event,
            "{name}: objects with members are accepted, all else is not"
        );
    }
}

#[tokio::test]
async fn everything_that_is_no_json_is_refused() {
    for (name, body) in corpus("n_") {
        let publisher = PublisherFixture::start();

        let answer = publisher.publish(body).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}");
        let error = answer.json()["error"].as_str().unwrap_or_default().to_string();
        let known = ["broken JSON: ", "the body is not UTF-8", "the body is empty"];
        assert!(known.iter().any(|start| error.starts_with(start)), "{name}: {}", answer.json());
        assert!(publisher.topic.messages().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn what_parsers_disagree_on_is_answered_and_never_a_crash() {
    for (name, body) in corpus("i_") {
        for content_type in ["application/json", "application/x-ndjson", "text/plain"] {
            let publisher = PublisherFixture::start();

            let answer = post(&publisher.router, "/publish", Some(content_type), body.clone()).await;

            assert!([StatusCode::OK, StatusCode::BAD_REQUEST].contains(&answer.status), "{name}: {}", answer.status);
        }
    }
}

#[tokio::test]
async fn the_enricher_settles_every_file() {
    for (name, data) in corpus("") {
        let enricher = EnricherFixture::start().await;

        let answer = enricher.push(push("1", &[], &data)).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{name}");
        assert_eq!(enricher.rows(), Vec::<Value>::new(), "{name}: none has an event_timestamp");
        let letters = enricher.letters();
        assert!(!letters.is_empty(), "{name}");
        if name.starts_with("n_") {
            let kinds = ["bad_json", "bad_utf8", "too_deep", "not_an_object"];
            assert!(
                letters.iter().all(|letter| kinds.contains(&letter["reason"].as_str().unwrap())),
                "{name}: {letters:?}"
            );
        }
    }
}

#[tokio::test]
async fn naughty_strings_reach_the_row_as_they_are() {
    for (chunk, strings) in naughty_strings().chunks(100).enumerate() {
        let publisher = PublisherFixture::start();
        let enricher = EnricherFixture::start().await;
        let events: Vec<_> = strings.iter().map(|text| json!({"user_id": text, "pageUrl": text, text: text})).collect();

        let answer = publisher.publish(json!(events).to_string()).await;
        for message in publisher.topic.messages() {
            enricher.push(delivery(RAW_SUB, &chunk.to_string(), &message)).await;
        }

        assert_eq!(answer.status, StatusCode::OK);
        let rows = enricher.rows();
        assert_eq!(rows.len(), strings.len(), "{:?}", enricher.letters());
        for (row, text) in rows.iter().zip(strings) {
            assert_eq!((&row["user_id"], &row["page_url"]), (&json!(text), &json!(text)));
        }
    }
}
