//! Loads into the table of a stream: what the stream would have done to a row is done to it.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fixture;

use std::path::Path;
use std::sync::Arc;

use backfill::config::{Options, wire};
use backfill::{Deps, Error, Form, Request};
use clap::Parser;
use fixture::{Fixture, gzip};
use serde_json::{Value, json};
use shared::load::{MemoryLoader, Mode};
use shared::mapping::Mapping;
use shared::schema::Registry;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn options(flags: &[&str]) -> Options {
    Cli::try_parse_from(["backfill"].iter().chain(flags)).unwrap().options
}

async fn wired(flags: &[&str], settings: &[(&str, &str)]) -> Result<(Deps, Request), Error> {
    wire(&options(flags), settings.iter().copied().collect()).await
}

fn clicks(fixture: &Fixture, form: Form) -> Request {
    let plan = Arc::clone(Registry::built_in().unwrap().get("clickstream").unwrap());
    Request { form, mapping: Mapping::of_one(plan), mode: Mode::Append, ..fixture.request() }
}

fn click(user: &str) -> Value {
    json!({"user_id": user, "event_name": "view", "event_timestamp": "2026-10-20T01:00:00Z", "ip_address": "8.8.8.8"})
}

#[tokio::test]
async fn addresses_are_anonymised_after_the_lookup_in_history_and_archive() {
    let fixture = Fixture::new();
    let broken = click("u2").to_string().replace("01:00:00Z", "soon");
    fixture.write("a.jsonl", format!("{}\n{broken}\n", click("u1")));
    fixture.run(clicks(&fixture, Form::Events)).await.unwrap();
    let row = &fixture.rows("clickstream")[0];
    assert_eq!((&row["ip_address"], &row["country"]), (&json!("8.8.8.0"), &json!("US")));
    assert_eq!(
        fixture.letters()[0]["raw"],
        broken.replace("8.8.8.8", "8.8.8.0"),
        "a dead letter keeps its other bytes"
    );

    // From before there was a policy; its place was looked up then.
    let fixture = Fixture::new();
    let mut archived = click("u1");
    for (name, value) in [("event_id", "e1"), ("received_at", "2026-10-20T01:00:01Z"), ("country", "FR")] {
        archived[name] = value.into();
    }
    fixture.write("a.jsonl.gz", gzip(archived.to_string().as_bytes()));
    fixture.run(clicks(&fixture, Form::Archive { days: None })).await.unwrap();
    let row = &fixture.rows("clickstream")[0];
    assert_eq!((&row["ip_address"], &row["country"]), (&json!("8.8.8.0"), &json!("FR")));
}

#[tokio::test]
async fn the_job_has_the_places_and_the_policy_that_are_set() {
    let fixture = Fixture::new();
    let source = fixture.write("a.jsonl", click("u1").to_string());
    let geo = fixture.write("geo.csv", "first_octet,country,city\n8,FR,Paris\n");
    let flags = ["--source", source.to_str().unwrap(), "--type", "clickstream", "--to", "null"];
    let with_policy = [&flags[..], &["--ip-anonymise", "drop"]].concat();

    let (mut deps, request) = wired(&with_policy, &[("GEO_URI", geo.to_str().unwrap())]).await.unwrap();
    let tables = MemoryLoader::default();
    deps.loader = Arc::new(tables.clone());
    backfill::run(deps, request, Arc::default()).await.unwrap();

    let row: Value = serde_json::from_slice(&tables.rows("clickstream")[0]).unwrap();
    assert_eq!((&row["country"], &row["city"], row.get("ip_address")), (&json!("FR"), &json!("Paris"), None));
    let refused = |result: Result<(Deps, Request), Error>| match result {
        Err(Error::Usage(reason)) => reason,
        _ => panic!("it is to be refused"),
    };
    assert!(refused(wired(&flags, &[("GEO_URI", "/nowhere/geo.csv")]).await).starts_with("GEO_URI: /nowhere/geo.csv"));
    assert!(refused(wired(&flags, &[("GEO_URI", "ftp://b/geo.csv")]).await).starts_with("GEO_URI: ftp://b/geo.csv"));
    assert!(Cli::try_parse_from(["backfill", "--source", "a", "--ip-anonymise", "some"]).is_err());
}

#[test]
fn only_its_archive_takes_the_place_of_what_a_stream_has_brought() {
    let request = |flags: &[&str]| options(flags).request(&mut Registry::built_in().unwrap(), Some("bucket"));
    let of_clicks = ["--source", "history.jsonl", "--type", "clickstream"];
    for more in [&[][..], &["--force-recreate"]] {
        match request(&[&of_clicks[..], more].concat()) {
            Err(Error::Usage(reason)) => {
                let words =
                    "contextflow.clickstream_events: what the stream has brought would go; add to it with --append";
                assert!(reason.starts_with(words), "{reason}");
            }
            _ => panic!("{more:?} is to be refused"),
        }
    }
    for more in [&["--append"][..], &["--to", "null"]] {
        assert!(request(&[&of_clicks[..], more].concat()).is_ok(), "{more:?}");
    }
    let archived = request(&["--source", "archive", "--type", "clickstream"]).ok().unwrap();
    assert_eq!((archived.mode, Path::new(&archived.source)), (Mode::Replace, Path::new("bucket/clickstream")));
    assert!(request(&["--source", "sessions.jsonl", "--type", "session"]).is_ok(), "nothing streams into it");
}

/// Objects of the archive hold both of a conflict, and each of them again where a push was repeated.
#[tokio::test]
async fn both_rows_of_a_conflict_come_out_of_the_archive_once() {
    for has_fingerprints in [true, false] {
        let fixture = Fixture::new();
        let line = |user: &str, received_at: &str, fingerprint: i64| {
            let mut row = click(user);
            row["event_id"] = json!("e1");
            row["received_at"] = json!(received_at);
            if has_fingerprints {
                row["fingerprint"] = json!(fingerprint);
            }
            row.to_string()
        };
        let lines = [
            line("u1", "2026-10-20T01:00:01Z", 1),
            line("u2", "2026-10-20T01:00:02Z", 2),
            line("u2", "2026-10-20T01:00:03Z", 2),
        ];
        fixture.write("a.jsonl.gz", gzip(lines.join("\n").as_bytes()));
        fixture.run(clicks(&fixture, Form::Archive { days: None })).await.unwrap();
        let rows = fixture.rows("clickstream");
        let users: Vec<_> = rows.iter().map(|row| &row["user_id"]).collect();
        assert_eq!(users, [&json!("u1"), &json!("u2")], "with fingerprints: {has_fingerprints}");
        assert!(rows.iter().all(|row| row["fingerprint"].is_i64()), "{rows:?}");
    }
}
