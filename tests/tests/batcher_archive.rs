//! The archive: rows as gzip JSONL objects by event time, each created once.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::ObjectStoreExt;
use object_store::local::LocalFileSystem;
use pipeline_tests::{BatcherFixture, NOW, built_in, limits, objects, push_from, quick_batcher};
use shared::clock::SECOND;
use shared::sink::MemorySink;

const ARCHIVE_SUB: &str = "projects/p/subscriptions/clickstream-archive-sub";
const MINUTE: i64 = 60 * SECOND;

fn order(id: &str, order_date: &str) -> String {
    let received_at = "2026-10-20T00:14:30Z";
    format!(
        r#"{{"order_id":"{id}","order_date":"{order_date}","event_id":"{id}","received_at":"{received_at}","fingerprint":1}}"#
    )
}

fn pack(message_id: &str, rows: &[String]) -> Vec<u8> {
    push_from(ARCHIVE_SUB, message_id, &[("event_type", "order")], rows.join("\n"))
}

/// Name and text of each object.
async fn archived(batcher: &BatcherFixture<MemorySink>) -> BTreeMap<String, String> {
    let text = |(name, bytes)| (name, String::from_utf8(bytes).expect("UTF-8"));
    objects(batcher.store.as_ref()).await.into_iter().map(text).collect()
}

#[tokio::test]
async fn rows_lie_by_their_minute_and_late_ones_by_their_receipt() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let rows = [
        order("now", "2026-10-20T00:15:02.919999Z"),
        order("same-minute", "2026-10-20T00:15:01Z"),
        order("nine-minutes-ago", "2026-10-20T00:06:59Z"),
        order("exactly-ten-minutes-ago", "2026-10-20T00:05:02.920Z"),
        order("past-ten-minutes-ago", "2026-10-20T00:05:02.919999Z"),
        order("years-ago", "2023-01-01T00:00:00Z"),
        order("yesterday-tomorrow", "2026-10-20T00:30:00Z"),
        r#"{"order_id":"timeless","event_id":"timeless","received_at":"2026-10-19T23:59:59Z","fingerprint":1}"#
            .to_string(),
        r#"{"order_id":"unreceived","event_id":"unreceived","fingerprint":1}"#.to_string(),
    ];

    let answer = batcher.push("/archive", pack("1", &rows)).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let told: Vec<_> = archived(&batcher).await.iter().map(|(name, text)| format!("{name}\n{text}")).collect();
    insta::assert_snapshot!(told.join("\n"));
    assert!(batcher.sink.rows("order").is_empty(), "the warehouse has a subscription of its own");
}

#[tokio::test]
async fn concurrent_pushes_share_an_object() {
    let config = batcher::Config { archive: limits(3, 3_600_000), ..quick_batcher() };
    let batcher = BatcherFixture::<MemorySink>::with(built_in(), &config);
    let rows: Vec<_> = (0..3).map(|n| order(&n.to_string(), "2026-10-20T00:15:01Z")).collect();
    let pushes = rows.iter().map(|row| batcher.push("/archive", pack("1", std::slice::from_ref(row))));

    let answers = join_all(pushes).await;

    assert!(answers.iter().all(|answer| answer.status == StatusCode::NO_CONTENT));
    let archived = archived(&batcher).await;
    assert_eq!(archived.len(), 1, "{archived:?}");
    let mut lines: Vec<_> = archived.values().flat_map(|text| text.lines()).collect();
    lines.sort_unstable();
    assert_eq!(lines, rows);
}

#[tokio::test]
async fn an_object_that_is_there_already_is_success_and_stays() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let rows = [order("a", "2026-10-20T00:15:01Z"), order("b", "2026-10-20T00:15:01Z")];

    let first = batcher.push("/archive", pack("1", &rows)).await;
    let name = archived(&batcher).await.into_keys().next().unwrap().into();
    batcher.store.put(&name, "planted".into()).await.unwrap();
    batcher.clock.set(NOW + MINUTE);
    let again = batcher.push("/archive", pack("1", &rows)).await;

    assert_eq!((first.status, again.status), (StatusCode::NO_CONTENT, StatusCode::NO_CONTENT));
    assert_eq!(batcher.store.get(&name).await.unwrap().bytes().await.unwrap(), "planted");
    let names: Vec<_> = batcher.store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
    assert_eq!(names, [name]);
}

#[tokio::test]
async fn while_the_bucket_fails_pushes_are_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    // A file stands where the folder of the archive has to be.
    std::fs::write(folder.path().join("archive"), "in the way").unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let batcher = BatcherFixture::<MemorySink>::before(built_in(), &quick_batcher(), Some(store));
    let rows = [order("a", "2026-10-20T00:15:01Z")];

    let failed = batcher.push("/archive", pack("1", &rows)).await;
    std::fs::remove_file(folder.path().join("archive")).unwrap();
    let again = batcher.push("/archive", pack("1", &rows)).await;

    assert_eq!((failed.status, again.status), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::NO_CONTENT));
    let archived = archived(&batcher).await;
    assert_eq!(archived.into_values().collect::<Vec<_>>(), [format!("{}\n", rows[0])]);
}

#[tokio::test]
async fn without_a_bucket_archive_pushes_are_acknowledged() {
    let batcher = BatcherFixture::<MemorySink>::before(built_in(), &quick_batcher(), None);

    let answer = batcher.push("/archive", pack("1", &[order("a", "2026-10-20T00:15:01Z")])).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_is_no_pack_of_rows_is_left_to_the_warehouses_subscription() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let broken = [order("a", "2026-10-20T00:15:01Z"), "{".to_string()];

    for body in [b"hello".to_vec(), push_from(ARCHIVE_SUB, "1", &[("event_type", "../x")], "{}"), pack("2", &broken)] {
        assert_eq!(batcher.push("/archive", body).await.status, StatusCode::NO_CONTENT);
    }

    let archived = archived(&batcher).await;
    assert_eq!(archived.into_values().collect::<Vec<_>>(), [format!("{}\n", broken[0])], "the good row alone");
    assert!(batcher.dead_letters.messages().is_empty(), "its dead letter comes from the other subscription");
}
