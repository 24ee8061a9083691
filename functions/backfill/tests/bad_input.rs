//! What a source can hold that is no visit: each costs itself, or the run, and never more.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fixture;

use backfill::Limit;
use fixture::{Fixture, gzip, lines, usage, visit, visit_of, work};
use sha2::{Digest, Sha256};
use shared::event;

fn event(kind: &str, time: &str, details: &str) -> String {
    format!(r#"{{"event": {{"event_type": "{kind}", "timestamp": "{time}", "details": {details}}}}}"#)
}

const TIME: &str = "2024-07-01T09:00:00";

/// Reason, line, offset and raw text of every dead letter.
fn buried(fixture: &Fixture) -> Vec<(String, u64, u64, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
    let row = |row: &serde_json::Value| {
        (text(&row["reason"]), number(&row["line"]), number(&row["byte_offset"]), text(&row["raw"]))
    };
    fixture.letters().iter().map(row).collect()
}

#[tokio::test]
async fn a_truncated_last_line_is_a_dead_letter_that_names_its_place() {
    let fixture = Fixture::new();
    let whole = lines(0..2);
    let cut = &visit(2)[..100];
    let path = fixture.write("visits-2024-07-01.jsonl", format!("{whole}{cut}"));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!(report.tally.rows, [2, 2, 2, 2, 2]);
    assert_eq!(buried(&fixture), [("bad_json".to_string(), 3, whole.len() as u64, cut.to_string())]);
    let letter = &fixture.letters()[0];
    assert_eq!(letter["source"], path.to_string_lossy().as_ref());
    assert_eq!((&letter["stage"], &letter["event_type"]), (&"backfill".into(), &"visit".into()));
    let files = fixture.letter_files();
    let lying = std::fs::read_to_string(&files[0]).unwrap();
    assert_eq!((files.len(), lying.lines().count()), (1, 1));
    assert!(files[0].ends_with(format!("letters/{}/0.jsonl", report.run)));
}

#[tokio::test]
async fn blank_lines_other_line_ends_and_a_byte_order_mark_are_no_fault() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", format!("\u{feff}{}\r\n\r\n  \n\n{}", visit(0), visit(1)));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!((report.tally.lines, report.tally.rows[0], report.tally.buried()), (2, 2, 0));
}

#[tokio::test]
async fn a_line_of_50_mb_is_a_dead_letter_that_was_never_held() {
    let fixture = Fixture::new();
    let long = format!(r#"{{"session_id": "{}"}}"#, "x".repeat(50_000_000));
    let path = fixture.write("a.jsonl", format!("{}\n{long}\n{}\n", visit(0), visit(1)));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!((report.tally.rows[0], report.tally.buried()), (2, 1));
    let letter = &fixture.letters()[0];
    assert_eq!((&letter["reason"], &letter["line"]), (&"too_large".into(), &2.into()));
    assert_eq!(
        (letter["raw"].as_str().unwrap().len(), letter["raw_size"].as_u64().unwrap()),
        (4096, long.len() as u64)
    );
    assert_eq!(letter["raw_sha256"], event::hex(&Sha256::digest(&long)));
    let from = visit(0).len() + 1;
    assert_eq!(letter["raw_uri"], format!("{}#bytes={from}-{}", path.display(), from + long.len()));
}

#[tokio::test]
async fn bytes_that_are_no_utf_8_are_kept_as_they_are() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", [visit(0).as_bytes(), b"\n{\"session_id\": \"\xff\"}\n"].concat());

    fixture.run(fixture.request()).await.unwrap();

    let letter = &fixture.letters()[0];
    assert_eq!((&letter["reason"], &letter["raw_encoding"]), (&"bad_utf8".into(), &"base64".into()));
    assert_eq!(letter["raw"], "eyJzZXNzaW9uX2lkIjogIv8ifQ==");
}

#[tokio::test]
async fn an_empty_file_is_no_fault_beside_others_and_no_source_alone() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", "");
    assert!(usage(fixture.run(fixture.request()).await).contains("is empty"));

    fixture.write("b.jsonl", lines(0..1));
    let report = fixture.run(fixture.request()).await.unwrap();
    assert_eq!((report.files, report.tally.rows[0]), (2, 1));
}

#[tokio::test]
async fn a_gzip_that_was_cut_in_half_fails_the_run_and_the_tables_stay() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", lines(0..3));
    fixture.run(fixture.request()).await.unwrap();
    let packed = gzip(lines(0..500).as_bytes());
    fixture.write("b.jsonl.gz", &packed[..packed.len() / 2]);

    let reason = work(fixture.run(fixture.request()).await);

    assert!(reason.contains("b.jsonl.gz") && reason.contains("the tables stay"), "{reason}");
    assert_eq!(fixture.rows("visit").len(), 3);
}

#[tokio::test]
async fn a_visit_without_events_lands_and_is_reported() {
    let fixture = Fixture::new();
    let top = r#""session_id": "S", "user_id": "U", "device_type": "mobile""#;
    fixture.write("a.jsonl", format!("{{{top}}}\n{{{top}, \"events\": null}}\n{{{top}, \"events\": []}}\n"));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!((report.tally.rows[..2].to_vec(), report.tally.buried()), (vec![3, 3], 0));
    assert_eq!(report.tally.findings["without_events"].count, 3);
}

#[tokio::test]
async fn a_bad_event_goes_alone_and_the_rest_of_its_visit_lands() {
    let item = |quantity: &str| {
        format!(r#"{{"product_id": "P", "category": "software", "price": 1, "quantity": {quantity}}}"#)
    };
    let bad = [
        (
            r#"{"event": {"event_type": "page_view", "timestamp": "2024-07-01T09:00:00"}}"#.to_string(),
            "missing_required",
        ),
        (event("login", TIME, "{}"), "unknown_type"),
        (event("add_item_to_cart", TIME, r#"{"price": "cheap", "quantity": 1}"#), "wrong_type"),
        (event("add_item_to_cart", TIME, &item("1.5")), "wrong_type"),
        (event("page_view", "2024-02-30T00:00:00", "{}"), "bad_time"),
        (event("purchase", TIME, r#"{"amount": 1e300}"#), "out_of_range"),
        ("null".to_string(), "wrong_type"),
        ("{}".to_string(), "missing_required"),
    ];
    let good = event("page_view", TIME, r#"{"page_url": "/"}"#);
    for (event, reason) in bad {
        let fixture = Fixture::new();
        let line = visit_of(1, &[&good, &event, &good]);
        fixture.write("a.jsonl", format!("{}\n{line}\n", visit(0)));

        let report = fixture.run(fixture.request()).await.unwrap();

        let offset = visit(0).len() + 1 + line.find(&format!(" {event},")).unwrap() + 1;
        assert_eq!(buried(&fixture), [(reason.to_string(), 2, offset as u64, event.clone())]);
        assert_eq!(report.tally.rows[0], 2, "{event}");
        assert_eq!(fixture.rows("pageview_event").len(), 3, "{event}");
        assert_eq!(fixture.rows("visit")[1]["events"].as_array().unwrap().len(), 2, "{event}");
    }
}

#[tokio::test]
async fn a_negative_quantity_lands_and_is_reported() {
    let fixture = Fixture::new();
    let details = r#"{"product_id": "P", "category": "toys", "price": 1, "quantity": -1}"#;
    fixture.write("a.jsonl", visit_of(0, &[&event("add_item_to_cart", TIME, details)]));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!(fixture.rows("addtocart_event")[0]["quantity"], -1);
    let found: Vec<_> =
        report.tally.findings.iter().map(|(name, count)| (name.as_str(), count.first.as_str())).collect();
    assert_eq!(found, [("negative_quantity", "a.jsonl:1"), ("unknown_category", "a.jsonl:1")]);
}

#[tokio::test]
async fn a_time_without_an_offset_is_utc() {
    let fixture = Fixture::new();
    let times = ["2024-07-01T09:00:00", "2024-07-01T09:00:00+02:00", "2024-07-02T00:00:00Z"];
    let events: Vec<_> = times.map(|time| event("page_view", time, "{}")).into();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    fixture.write("visits-2024-07-01.jsonl", visit_of(0, &events));

    let report = fixture.run(fixture.request()).await.unwrap();

    let found: Vec<_> = fixture.rows("pageview_event").iter().map(|row| row["timestamp"].clone()).collect();
    assert_eq!(found, ["2024-07-01T09:00:00Z", "2024-07-01T07:00:00Z", "2024-07-02T00:00:00Z"]);
    assert_eq!(report.tally.findings["outside_the_files_day"].count, 1);
}

#[tokio::test]
async fn a_line_that_is_no_visit_goes_whole() {
    let fixture = Fixture::new();
    let none = r#"{"session_id": null, "user_id": "U", "device_type": "mobile", "events": []}"#;
    let missing = r#"{"session_id": "S", "user_id": "U", "events": [{"event": {}}]}"#;
    let wrong = r#"{"session_id": 7, "user_id": "U", "device_type": "mobile"}"#;
    let events = r#"{"session_id": "S", "user_id": "U", "device_type": "mobile", "events": {}}"#;
    fixture.write("a.jsonl", [&visit(0), none, missing, wrong, events, "[]", "7"].join("\n"));

    let report = fixture.run(fixture.request()).await.unwrap();

    let found: Vec<_> = buried(&fixture).into_iter().map(|(reason, line, _, raw)| (reason, line, raw)).collect();
    let expected = [
        ("missing_required", 2, none),
        ("missing_required", 3, missing),
        ("wrong_type", 4, wrong),
        ("wrong_type", 5, events),
        ("not_an_object", 6, "[]"),
        ("not_an_object", 7, "7"),
    ];
    assert_eq!(found, expected.map(|(reason, line, raw)| (reason.to_string(), line, raw.to_string())));
    assert_eq!(
        report.tally.dead_letters[&shared::decode::Code::WrongType].first,
        format!("{}:4", fixture.source().join("a.jsonl").display())
    );
}

#[tokio::test]
async fn visits_that_come_twice_land_and_are_reported() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", format!("{}{}", lines(0..2), lines(0..2)));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!(report.tally.rows[1], 4);
    let found = &report.tally.findings["duplicate_session_key"];
    assert_eq!((found.count, found.first.as_str()), (2, "a.jsonl:3"));
}

#[tokio::test]
async fn an_amount_that_is_not_that_of_its_items_is_reported() {
    let fixture = Fixture::new();
    let details = r#"{"amount": 10.01, "items": [{"price": 3.333, "quantity": 3, "category": "software"}]}"#;
    fixture.write("a.jsonl", format!("{}\n{}", visit(0), visit_of(1, &[&event("purchase", TIME, details)])));

    let report = fixture.run(fixture.request()).await.unwrap();

    assert_eq!(fixture.rows("purchase_event")[1]["items"][0]["price"].to_string(), "3.33");
    let found = &report.tally.findings["amount_differs"];
    assert_eq!((found.count, found.first.as_str()), (1, "a.jsonl:2"));
}

#[tokio::test]
async fn of_two_runs_at_once_the_second_is_refused() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", lines(0..1));
    fixture.run(fixture.request()).await.unwrap();
    let lock = std::fs::File::options().read(true).write(true).open(fixture.state().join("backfill.lock")).unwrap();
    lock.try_lock().unwrap();

    let reason = work(fixture.run(fixture.request()).await);
    assert!(reason.contains("a test (since 2026-11-27T06:30:00Z) is at work"), "{reason}");

    drop(lock);
    fixture.run(fixture.request()).await.unwrap();
}

#[tokio::test]
async fn a_source_that_is_not_there_changes_nothing() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", lines(0..2));
    fixture.run(fixture.request()).await.unwrap();

    for source in ["nothing.jsonl", "*.json", "no/where/*.jsonl", "[.jsonl"] {
        let source = fixture.source().join(source).to_string_lossy().into_owned();
        let reason = usage(fixture.run(backfill::Request { source: source.clone(), ..fixture.request() }).await);
        assert!(reason.contains("nothing was changed") || reason.contains("Pattern"), "{source}: {reason}");
    }
    std::fs::remove_file(fixture.source().join("a.jsonl")).unwrap();
    usage(fixture.run(fixture.request()).await);
    assert_eq!(fixture.rows("visit").len(), 2);
}

#[tokio::test]
async fn a_disk_that_gets_full_leaves_the_tables_as_they_were() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", lines(0..2));
    fixture.run(fixture.request()).await.unwrap();
    fixture.loader.leave_room(100_000);
    fixture.write("b.jsonl", lines(0..1000));

    let reason = work(fixture.run(fixture.request()).await);

    assert!(reason.contains("no space left"), "{reason}");
    assert_eq!((fixture.rows("visit").len(), fixture.letters().len()), (2, 0));
}

#[tokio::test]
async fn too_many_dead_letters_leave_the_tables_as_they_were() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", format!("{}nonsense\n", lines(0..9)));
    for (limit, is_over) in [("0", true), ("1", false), ("9.9%", true), ("10%", false), ("100%", false)] {
        let limit: Limit = limit.parse().unwrap();
        let report =
            fixture.run(backfill::Request { max_dead_letters: Some(limit), ..fixture.request() }).await.unwrap();
        assert_eq!(report.failure.is_some(), is_over, "{limit:?}");
        assert_eq!(report.tally.rows[0], 9);
    }
    assert_eq!(fixture.letters().len(), 3, "those of the runs that were shown");
    for nonsense in ["-1", "many", "101%", "-1%", "NaN%"] {
        assert!(nonsense.parse::<Limit>().is_err(), "{nonsense}");
    }
}

#[tokio::test]
async fn a_source_of_which_nothing_can_be_used_fails() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", lines(0..2));
    fixture.run(fixture.request()).await.unwrap();
    fixture.write("a.jsonl", "nonsense\n{}\n");

    let report = fixture.run(fixture.request()).await.unwrap();

    let failure = report.failure.unwrap();
    assert!(failure.starts_with("not one of 2 lines could be used"), "{failure}");
    assert_eq!(fixture.rows("visit").len(), 2);
}
