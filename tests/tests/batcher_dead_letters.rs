//! The end of the line: whatever comes to `/dead-letter` is stored and never published again.

use std::sync::Arc;

use axum::http::StatusCode;
use object_store::local::LocalFileSystem;
use pipeline_tests::{
    BatcherFixture, EnricherFixture, PUBLISHED_AT, ScriptedSink, built_in, delivery, forwarded, json_lines, objects,
    push, quick_batcher,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::dead_letter::Reason;
use shared::decode::Code;
use shared::event::hex;
use shared::publish::Message;
use shared::sink::{MemorySink, Outcome, Sink};

const DEAD_SUB: &str = "projects/p/subscriptions/clickstream-dead-letter-sub";

/// What the enricher says of an event that it cannot use.
async fn dead_letter(raw: &[u8]) -> Message {
    let enricher = EnricherFixture::start().await;
    enricher.push(push("1", &[("event_type", "order")], raw)).await;
    enricher.dead_letters.messages().remove(0)
}

fn rows(sink: &MemorySink) -> Vec<Value> {
    sink.rows("dead_letter").iter().flat_map(|row| json_lines(row)).collect()
}

fn assert_nothing_published<S: Sink>(batcher: &BatcherFixture<S>) {
    assert!(batcher.dead_letters.messages().is_empty() && batcher.enriched.messages().is_empty());
}

#[tokio::test]
async fn ours_land_as_they_are_in_table_and_bucket() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let letter = dead_letter(b"{\"total_amount\":\"much\"}").await;

    for _ in 0..2 {
        let answer = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }

    assert_eq!(batcher.sink.rows("dead_letter"), std::slice::from_ref(&letter.data));
    let objects = objects(batcher.store.as_ref()).await;
    assert_eq!(objects.len(), 1, "the second delivery is the same object");
    let (name, text) = objects.first_key_value().unwrap();
    assert!(name.starts_with("archive/dead-letter/2026/10/20/00/15/dead-letter_20261020001502_"), "{name}");
    assert_eq!(*text, [&letter.data[..], b"\n"].concat());
    assert_nothing_published(&batcher);
}

#[tokio::test]
async fn a_copy_that_pubsub_forwards_is_wrapped_with_where_it_came_from() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let attributes = [("event_type", "order"), ("received_at", "2026-10-20T00:01:00Z")];

    let answer = batcher.push("/dead-letter", forwarded("99", &attributes, "{\"order_id\":\"é\"}\n")).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let row = &rows(&batcher.sink)[0];
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(row) });
    assert_nothing_published(&batcher);
}

#[tokio::test]
async fn anything_else_is_wrapped_byte_for_byte() {
    let forged = br#"{"dead_letter_id":"d","reason":"nonsense","stage":"x","failed_at":"2026-10-20T00:00:00Z"}"#;
    for (name, body, reason, raw) in [
        ("no push", b"hello".to_vec(), "bad_envelope", &b"hello"[..]),
        ("nothing", Vec::new(), "bad_envelope", b""),
        ("bytes", b"\xff\0".to_vec(), "bad_envelope", b"\xff\0"),
        ("a foreign message", push("1", &[], b"\xfe{"), "undeliverable", b"\xfe{"),
        ("ours only by name", push("2", &[("event_type", "dead_letter")], "{}"), "undeliverable", b"{}"),
        ("ours with a forged reason", push("3", &[("event_type", "dead_letter")], forged), "undeliverable", forged),
    ] {
        let batcher = BatcherFixture::<MemorySink>::start();

        let answer = batcher.push("/dead-letter", body).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{name}");
        let rows = rows(&batcher.sink);
        assert_eq!(rows.len(), 1, "{name}");
        assert_eq!((&rows[0]["reason"], &rows[0]["stage"]), (&json!(reason), &json!("pubsub")), "{name}");
        let text = rows[0]["raw"].as_str().unwrap().as_bytes();
        let is_base64 = rows[0]["raw_encoding"] == "base64";
        let stored = if is_base64 { base64_simd::STANDARD.decode_to_vec(text).unwrap() } else { text.to_vec() };
        assert_eq!((stored.as_slice(), is_base64), (raw, std::str::from_utf8(raw).is_err()), "{name}");
        assert_nothing_published(&batcher);
    }
}

#[tokio::test]
async fn a_foreign_message_says_when_pubsub_had_it() {
    let batcher = BatcherFixture::<MemorySink>::start();

    batcher.push("/dead-letter", push("1", &[], "x")).await;

    let row = &rows(&batcher.sink)[0];
    assert_eq!((&row["received_at"], &row["attempts"]), (&json!(PUBLISHED_AT), &json!(2)));
}

#[tokio::test]
async fn a_large_one_leaves_its_beginning_and_lies_whole_in_the_bucket() {
    let limit = 256 * 1024;
    for (raw, head, encoding) in [
        (vec![b'x'; limit], None, "utf8"),
        (vec![b'x'; limit + 1], Some(vec![b'x'; 4_096]), "utf8"),
        // A character of two bytes stands across the cut.
        (
            ["x".as_bytes(), "é".repeat(limit).as_bytes()].concat(),
            Some(["x".as_bytes(), "é".repeat(2_047).as_bytes()].concat()),
            "utf8",
        ),
        (vec![0xff; limit + 1], Some(vec![0xff; 4_096]), "base64"),
    ] {
        let batcher = BatcherFixture::<MemorySink>::start();
        // Of one of ours the enricher has moved the text before; a foreign message comes whole.
        let letter = forwarded("1", &[], &raw);

        let answer = batcher.push("/dead-letter", letter).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let row = &rows(&batcher.sink)[0];
        let hash = hex(&Sha256::digest(&raw));
        let name = format!("dead-letter/raw/2026/10/20/{hash}.bin");
        assert_eq!((&row["raw_size"], &row["raw_sha256"]), (&json!(raw.len()), &json!(hash)));
        assert_eq!(row["raw_encoding"], encoding);
        let text = row["raw"].as_str().unwrap().as_bytes();
        let kept =
            if encoding == "base64" { base64_simd::STANDARD.decode_to_vec(text).unwrap() } else { text.to_vec() };
        let objects = objects(batcher.store.as_ref()).await;
        let whole = objects.get(&format!("archive/{name}"));
        match head {
            None => assert_eq!((kept, whole, row.get("raw_uri")), (raw, None, None)),
            Some(head) => {
                assert_eq!((kept, whole), (head, Some(&raw)));
                assert_eq!(row["raw_uri"], format!("memory:///archive/{name}"));
            }
        }
        assert_eq!(objects.iter().filter(|(name, _)| name.ends_with(".jsonl.gz")).count(), 1, "the letter itself, too");
    }
}

#[tokio::test]
async fn what_the_table_refuses_is_kept_in_the_bucket_alone() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    batcher.sink.answer_all(Outcome::Poison(Reason { code: Code::Refused, detail: "no".into() }));
    let letter = dead_letter(b"{").await;

    let answer = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert!(batcher.sink.rows("dead_letter").is_empty());
    let objects = objects(batcher.store.as_ref()).await;
    let kept: Vec<_> = objects.values().flat_map(|text| json_lines(text)).collect();
    assert_eq!(kept, json_lines(&letter.data));
    assert_nothing_published(&batcher);
}

#[tokio::test]
async fn without_a_bucket_a_refused_one_is_not_acknowledged() {
    let batcher = BatcherFixture::<ScriptedSink>::before(built_in(), &quick_batcher(), None);
    let letter = dead_letter(b"{").await;
    batcher.sink.answer_all(Outcome::Poison(Reason { code: Code::Refused, detail: "no".into() }));

    let refused = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;
    batcher.sink.forgive();
    let again = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;

    assert_eq!((refused.status, again.status), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::NO_CONTENT));
    assert_eq!(batcher.sink.rows("dead_letter"), [letter.data]);
    assert_nothing_published(&batcher);
}

#[tokio::test]
async fn while_the_table_is_away_they_are_to_come_again() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    let letter = dead_letter(b"{").await;
    batcher.sink.answer_all(Outcome::Retry("away".into()));

    let first = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;
    batcher.sink.forgive();
    let again = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;

    assert_eq!((first.status, again.status), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::NO_CONTENT));
    assert_eq!(batcher.sink.rows("dead_letter"), [letter.data]);
    assert_nothing_published(&batcher);
}

#[tokio::test]
async fn while_the_bucket_is_away_they_are_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("archive"), "in the way").unwrap();
    for raw in [vec![b'{'], vec![b'x'; 300_000]] {
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        let batcher = BatcherFixture::<MemorySink>::before(built_in(), &quick_batcher(), Some(store));
        let letter = dead_letter(&raw).await;

        let answer = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &letter)).await;

        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_nothing_published(&batcher);
    }
}

#[tokio::test]
async fn of_a_message_of_several_each_is_stored_and_a_foreign_line_is_wrapped_alone() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let letter = dead_letter(b"{\"total_amount\":\"much\"}\n{\"items\":1}").await;
    let data = [&letter.data[..], b"\n{\"foreign\":true}"].concat();

    let message = Message { data: data.into(), attributes: letter.attributes };
    let answer = batcher.push("/dead-letter", delivery(DEAD_SUB, "1", &message)).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let rows = rows(&batcher.sink);
    let told: Vec<_> = rows.iter().map(|row| (row["stage"].as_str().unwrap(), row["raw"].as_str().unwrap())).collect();
    let expected =
        [("enricher", r#"{"total_amount":"much"}"#), ("enricher", r#"{"items":1}"#), ("pubsub", r#"{"foreign":true}"#)];
    assert_eq!(told, expected);
}
