//! The batcher's rows: appended in micro-batches, once each, tried again where they may still land.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::future::join_all;
use futures::{FutureExt, join};
use pipeline_tests::{
    BatcherFixture, ENRICHED_SUB, EnricherFixture, GatedSink, PUBLISHED_AT, PanickingSink, RAW_SUB, ScriptedSink,
    built_in, delivery, get, json_lines, limits, patient_batcher, push, push_from, quick_batcher,
};
use serde_json::{Value, json};
use shared::dead_letter::Reason;
use shared::decode::Code;
use shared::sink::{Batch, MemorySink, Outcome, Sink};

fn row(id: &str) -> String {
    format!(
        r#"{{"user_id":"u1","event_timestamp":"2026-10-20T00:15:00Z","country":"US","city":"Monroe","event_id":"{id}","received_at":"2026-10-20T00:15:00.250Z","schema_version":"1-0-0","fingerprint":1}}"#
    )
}

/// The push of a pack of clickstream rows.
fn pack(message_id: &str, rows: &[String]) -> Vec<u8> {
    let count = rows.len().to_string();
    let attributes = [("event_type", "clickstream"), ("rows", &count), ("schema_version", "1-0-0")];
    push_from(ENRICHED_SUB, message_id, &attributes, rows.join("\n"))
}

fn ids(rows: &[Bytes]) -> Vec<String> {
    let id = |row: Value| row["event_id"].as_str().expect("a row has an id").to_string();
    rows.iter().flat_map(|row| json_lines(row)).map(id).collect()
}

#[tokio::test]
async fn rows_land_as_they_are() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let rows = [row("a"), row("b")];

    let answer = batcher.push("/", pack("1", &rows)).await;

    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(batcher.sink.rows("clickstream"), rows);
    assert!(batcher.enriched.messages().is_empty() && batcher.dead_letters.messages().is_empty());
}

#[tokio::test]
async fn pushes_share_an_append_when_the_window_is_full() {
    let config = batcher::Config { table: limits(6, 3_600_000), ..quick_batcher() };
    let batcher = BatcherFixture::<MemorySink>::with(built_in(), &config);
    let pushes =
        (0..3).map(|n| batcher.push("/", pack(&n.to_string(), &[row(&format!("{n}-a")), row(&format!("{n}-b"))])));

    let answers = join_all(pushes).await;

    assert!(answers.iter().all(|answer| answer.status == StatusCode::NO_CONTENT));
    assert_eq!((batcher.sink.appends(), batcher.sink.rows("clickstream").len()), (1, 6));
}

#[tokio::test]
async fn pushes_share_an_append_when_the_window_has_waited_long_enough() {
    let config = batcher::Config { table: limits(500, 200), ..quick_batcher() };
    let batcher = BatcherFixture::<MemorySink>::with(built_in(), &config);
    let pushes = (0..10).map(|n| batcher.push("/", pack(&n.to_string(), &[row(&n.to_string())])));

    let answers = tokio::time::timeout(Duration::from_secs(10), join_all(pushes)).await.expect("nothing fills it");

    assert!(answers.iter().all(|answer| answer.status == StatusCode::NO_CONTENT));
    assert_eq!((batcher.sink.appends(), batcher.sink.rows("clickstream").len()), (1, 10));
}

#[tokio::test]
async fn before_the_end_of_the_process_nothing_waits_for_its_window() {
    let config = batcher::Config { table: limits(500, 3_600_000), ..quick_batcher() };
    let batcher = BatcherFixture::<MemorySink>::with(built_in(), &config);

    let (answer, ()) = join!(batcher.push("/", pack("1", &[row("a")])), async { batcher.batcher.hurry() });

    assert_eq!((answer.status, batcher.sink.rows("clickstream").len()), (StatusCode::NO_CONTENT, 1));
}

#[tokio::test]
async fn duplicates_land_once() {
    let batcher = BatcherFixture::<MemorySink>::start();

    let first = batcher.push("/", pack("1", &[row("a"), row("b"), row("a")])).await;
    let again = batcher.push("/", pack("2", &[row("b"), row("c")])).await;

    assert_eq!((first.status, again.status), (StatusCode::NO_CONTENT, StatusCode::NO_CONTENT));
    assert_eq!(ids(&batcher.sink.rows("clickstream")), ["a", "b", "c"]);
}

#[tokio::test]
async fn the_same_id_in_another_table_is_another_row() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let order = push_from(ENRICHED_SUB, "2", &[("event_type", "order")], r#"{"event_id":"a"}"#);

    batcher.push("/", pack("1", &[row("a")])).await;
    batcher.push("/", order).await;

    assert_eq!((batcher.sink.rows("clickstream").len(), batcher.sink.rows("order").len()), (1, 1));
}

/// A warehouse of which one table answers never.
#[derive(Default)]
struct OneStuck(MemorySink);

#[async_trait]
impl Sink for OneStuck {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        if batch.plan.event_type == "order" {
            return std::future::pending().await;
        }
        self.0.append(batch).await
    }

    async fn ready(&self) -> Result<(), String> {
        self.0.ready().await
    }
}

#[tokio::test]
async fn a_table_that_stands_still_holds_up_no_other() {
    let batcher = BatcherFixture::<OneStuck>::start();
    let order = |n: usize| {
        let row =
            format!(r#"{{"order_date":"2026-10-20T00:15:00Z","event_id":"{n}","received_at":"2026-10-20T00:15:00Z"}}"#);
        push_from(ENRICHED_SUB, &n.to_string(), &[("event_type", "order")], row)
    };
    // More than are under way at once, each in a window of its own.
    for n in 0..8 {
        assert!(batcher.push("/", order(n)).now_or_never().is_none());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let answer = tokio::time::timeout(Duration::from_secs(10), batcher.push("/", pack("c", &[row("a")]))).await;

    assert_eq!(answer.map(|answer| answer.status), Ok(StatusCode::NO_CONTENT));
    assert_eq!(batcher.sink.0.rows("clickstream").len(), 1);
}

#[tokio::test]
async fn a_duplicate_of_a_row_in_flight_shares_its_outcome() {
    let config = batcher::Config { budget: Duration::ZERO, ..quick_batcher() };
    for (outcome, status) in
        [(Outcome::Done, StatusCode::NO_CONTENT), (Outcome::Retry("down".into()), StatusCode::SERVICE_UNAVAILABLE)]
    {
        let batcher = BatcherFixture::<GatedSink>::with(built_in(), &config);
        let tests_turn = async {
            batcher.sink.arrival().await;
            let twin = batcher.push("/", pack("2", &[row("a")]));
            let let_through = async {
                // The twin is given time to be wrong: to append on its own or to answer early.
                tokio::time::sleep(Duration::from_millis(50)).await;
                batcher.sink.let_through(outcome.clone());
            };
            join!(twin, let_through).0
        };

        let (first, twin) = join!(batcher.push("/", pack("1", &[row("a")])), tests_turn);

        assert_eq!((first.status, twin.status), (status, status), "{outcome:?}");
        assert_eq!(batcher.sink.appends(), 1, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_failed_append_is_tried_again_within_the_budget() {
    let batcher = BatcherFixture::<MemorySink>::with(built_in(), &patient_batcher());
    batcher.sink.fail_next(1);

    let answer = batcher.push("/", pack("1", &[row("a"), row("b")])).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!((batcher.sink.appends(), ids(&batcher.sink.rows("clickstream"))), (2, vec!["a".into(), "b".into()]));
}

#[tokio::test]
async fn a_failed_event_that_is_delivered_again_lands_once() {
    let batcher =
        BatcherFixture::<MemorySink>::with(built_in(), &batcher::Config { budget: Duration::ZERO, ..quick_batcher() });
    batcher.sink.fail_next(1);

    let first = batcher.push("/", pack("1", &[row("a")])).await;
    let second = batcher.push("/", pack("1", &[row("a")])).await;
    let third = batcher.push("/", pack("1", &[row("a")])).await;

    assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((second.status, third.status), (StatusCode::NO_CONTENT, StatusCode::NO_CONTENT));
    assert_eq!(ids(&batcher.sink.rows("clickstream")), ["a"]);
    assert!(batcher.enriched.messages().is_empty(), "a whole pack waits on its own subscription");
}

#[tokio::test]
async fn a_pack_that_lands_nowhere_is_to_come_again_when_the_budget_is_spent() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    batcher.sink.answer_all(Outcome::Retry("down".into()));

    let answer = batcher.push("/", pack("1", &[row("a"), row("b")])).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(batcher.enriched.messages().is_empty() && batcher.dead_letters.messages().is_empty());
}

#[tokio::test]
async fn one_row_of_500_that_must_wait_is_sent_round_again_alone() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    let rows: Vec<_> = (0..500).map(|n| row(&format!("e-{n}"))).collect();
    batcher.sink.answer("e-250", Outcome::Retry("its partition is busy".into()));

    let answer = batcher.push("/", pack("1", &rows)).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let landed = ids(&batcher.sink.rows("clickstream"));
    assert_eq!((landed.len(), landed.iter().collect::<BTreeSet<_>>().len()), (499, 499), "once each");
    let again = batcher.enriched.messages();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].data, rows[250], "with the same id and the same bytes");
    let attributes: Vec<_> = again[0].attributes.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    assert_eq!(attributes, ["event_type: clickstream", "rows: 1", "schema_version: 1-0-0"]);

    batcher.sink.forgive();
    let answer = batcher.push("/", delivery(ENRICHED_SUB, "2", &again[0])).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(ids(&batcher.sink.rows("clickstream")).iter().collect::<BTreeSet<_>>().len(), 500);
    assert_eq!(batcher.sink.rows("clickstream").len(), 500);
}

#[tokio::test]
async fn what_must_wait_is_not_acknowledged_before_its_topic_has_it() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    batcher.sink.answer("b", Outcome::Retry("busy".into()));
    batcher.enriched.set_down(true);

    let answer = batcher.push("/", pack("1", &[row("a"), row("b")])).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    batcher.sink.forgive();
    batcher.push("/", pack("1", &[row("a"), row("b")])).await;
    assert_eq!(ids(&batcher.sink.rows("clickstream")), ["a", "b"]);
}

#[tokio::test]
async fn a_row_that_the_warehouse_refuses_for_good_is_a_dead_letter() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    let refused = Reason { code: Code::Refused, detail: "country: not in the list".into() };
    batcher.sink.answer("b", Outcome::Poison(refused));

    let answer = batcher.push("/", pack("1", &[row("a"), row("b"), row("c")])).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(ids(&batcher.sink.rows("clickstream")), ["a", "c"]);
    assert_eq!(batcher.letters().len(), 1);
    let letter = &batcher.letters()[0];
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(letter) });
}

#[tokio::test]
async fn a_row_that_is_refused_again_after_a_replay_is_another_dead_letter() {
    let batcher = BatcherFixture::<ScriptedSink>::start();
    batcher.sink.answer_all(Outcome::Poison(Reason { code: Code::Refused, detail: "no".into() }));
    let of = |message: &str, letter: &[(&str, &str)]| {
        let attributes = [&[("event_type", "clickstream")], letter].concat();
        push_from(ENRICHED_SUB, message, &attributes, row("a"))
    };

    for body in [of("1", &[]), of("1", &[]), of("2", &[("replay_of", "x")]), of("2", &[("replay_of", "x")])] {
        batcher.push("/", body).await;
    }

    let ids: Vec<_> = batcher.letters().iter().map(|letter| letter["dead_letter_id"].clone()).collect();
    assert_eq!((&ids[0], &ids[2]), (&ids[1], &ids[3]), "a redelivery is the same letter");
    assert_ne!(ids[0], ids[2]);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_a_dead_letter() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let broken = [
        r#"{"event_id":"x","#,
        r#"{"event_id":"y","user_id":5,"event_timestamp":"2026-10-20T00:15:00Z"}"#,
        "null",
        r#"{"event_id":"z","received_at":"2026-10-20T00:15:00.250Z"}"#,
    ];
    let rows: Vec<_> = [row("a")].into_iter().chain(broken.map(String::from)).chain([row("b")]).collect();

    let answer = batcher.push("/", pack("1", &rows)).await;

    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(ids(&batcher.sink.rows("clickstream")), ["a", "b"]);
    let letters = batcher.letters();
    let of = |key: &str| letters.iter().map(|letter| letter[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("stage"), ["batcher", "batcher", "warehouse", "warehouse"]);
    assert_eq!(of("reason"), ["bad_json", "not_an_object", "wrong_type", "missing_required"]);
    assert_eq!(of("raw"), [broken[0], broken[2], broken[1], broken[3]]);
    assert_eq!(of("event_id"), [json!("x"), Value::Null, json!("y"), json!("z")]);
    let (pubsubs, its_own) = (json!(PUBLISHED_AT), json!("2026-10-20T00:15:00.250Z"));
    assert_eq!(of("received_at"), [pubsubs.clone(), pubsubs.clone(), pubsubs, its_own]);
    let dead_ids: BTreeSet<_> = of("dead_letter_id").iter().map(Value::to_string).collect();
    assert_eq!(dead_ids.len(), 4);
}

#[tokio::test]
async fn a_push_that_is_no_pack_of_rows_is_a_dead_letter() {
    for (body, reason) in [
        (b"hello".to_vec(), "bad_envelope"),
        (br#"{"message":{"data":"!"}}"#.to_vec(), "bad_envelope"),
        (push("1", &[], row("a")), "unknown_type"),
        (push("1", &[("event_type", "../order")], row("a")), "unknown_type"),
        (push("1", &[("event_type", "dead_letter")], row("a")), "type_not_allowed"),
    ] {
        let batcher = BatcherFixture::<MemorySink>::start();

        let answer = batcher.push("/", body).await;

        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{reason}");
        let letters = batcher.letters();
        assert_eq!(letters.len(), 1);
        assert_eq!((&letters[0]["reason"], &letters[0]["stage"]), (&json!(reason), &json!("batcher")));
        assert!(batcher.sink.rows("clickstream").is_empty());
    }
}

#[tokio::test]
async fn a_dead_letter_is_not_acknowledged_before_its_topic_has_it() {
    let batcher = BatcherFixture::<MemorySink>::start();
    batcher.dead_letters.set_down(true);
    let rows = [row("a"), "{".to_string()];

    let answer = batcher.push("/", pack("1", &rows)).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    batcher.dead_letters.set_down(false);
    assert_eq!(batcher.push("/", pack("1", &rows)).await.status, StatusCode::NO_CONTENT);
    assert_eq!((ids(&batcher.sink.rows("clickstream")), batcher.letters().len()), (vec!["a".into()], 1));
}

#[tokio::test]
async fn a_type_that_a_newer_version_may_know_is_to_come_again() {
    let batcher = BatcherFixture::<MemorySink>::start();
    for path in ["/", "/archive"] {
        let answer = batcher.push(path, push("1", &[("event_type", "refund")], row("a"))).await;

        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    assert!(batcher.dead_letters.messages().is_empty());
}

#[tokio::test]
async fn a_foreign_event_without_id_that_is_pushed_three_times_is_one_row() {
    let enricher = EnricherFixture::start().await;
    let batcher = BatcherFixture::<MemorySink>::start();

    for _ in 0..3 {
        let answer = enricher.push(push("17", &[], r#"{"userId":"u","eventTimestamp":1792455300}"#)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    let messages = enricher.enriched.messages();
    for (index, message) in messages.iter().enumerate() {
        let answer = batcher.push("/", delivery(ENRICHED_SUB, &index.to_string(), message)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }

    assert_eq!((messages.len(), batcher.sink.rows("clickstream").len()), (3, 1));
}

#[tokio::test]
async fn a_foreign_row_without_id_gets_the_same_one_on_every_delivery() {
    let batcher = BatcherFixture::<MemorySink>::start();
    let body = push_from(RAW_SUB, "17", &[("event_type", "inventory")], "{\"reason\":\"sale\"}\n{\"reason\":\"sale\"}");

    batcher.push("/", body.clone()).await;
    batcher.push("/", body).await;

    let landed = ids(&batcher.sink.rows("inventory"));
    assert_eq!(
        (landed.len(), landed.iter().collect::<BTreeSet<_>>().len()),
        (2, 2),
        "one id a line, on each delivery the same"
    );
}

#[tokio::test]
async fn an_append_that_ends_early_gives_its_rows_back() {
    let batcher = BatcherFixture::<PanickingSink>::with(built_in(), &patient_batcher());

    let push = batcher.push("/", pack("1", &[row("a")]));
    let first = tokio::time::timeout(Duration::from_secs(10), push).await.expect("it does not wait for itself");
    let again = batcher.push("/", pack("1", &[row("a")])).await;

    assert_eq!(
        (first.status, again.status),
        (StatusCode::NO_CONTENT, StatusCode::NO_CONTENT),
        "tried again in process"
    );
    assert_eq!(ids(&batcher.sink.rows("clickstream")), ["a"]);
}

#[tokio::test]
async fn readiness_is_the_warehouses_and_health_is_not() {
    let batcher = BatcherFixture::<ScriptedSink>::start();

    let ready = get(&batcher.router, "/ready").await;
    batcher.sink.cut_off();
    let not_ready = get(&batcher.router, "/ready").await;
    let health = get(&batcher.router, "/health").await;

    assert_eq!((ready.status, ready.json()), (StatusCode::OK, json!({"status": "ready"})));
    assert_eq!(not_ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((health.status, health.json()), (StatusCode::OK, json!({"status": "ok"})));
}
