//! Dead letters there and back: broken events are listed and looked at, the schema is mended, and they go through the
//! pipeline again.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::Path;

use pipeline_tests::binary::{Dev, json_of, run, text};
use pipeline_tests::{delivery, forwarded, push_from};
use serde_json::{Value, json};
use shared::dead_letter::{DeadLetter, Origin, Reason};
use shared::decode::Code;
use shared::publish::{Attributes, Message};
use shared::schema::DEAD_LETTER;

const COUNT: &str = "SELECT count(*) AS n FROM dead_letters";

/// Writes the schema of sign-ups: names of plans have `longest` characters at most, and `required` may be missing or not.
fn signup(folder: &Path, longest: u32, price: &str) {
    let schema = json!({
        "event_type": "signup", "version": "1-0-0", "ingest": "stream",
        "table": {"dataset": "growth", "name": "signups", "time_partitioning": {"type": "DAY", "field": "at"}},
        "columns": [
            {"name": "at", "type": "TIMESTAMP", "mode": "REQUIRED"},
            {"name": "plan_name", "type": "STRING", "maxLength": longest.to_string()},
            {"name": "price", "type": "NUMERIC", "mode": price},
            {"name": "seats", "type": "RECORD", "mode": "REPEATED", "fields": [{"name": "number", "type": "INTEGER"}]},
        ],
    });
    std::fs::write(folder.join("signup.json"), schema.to_string()).unwrap();
}

/// A pipeline with a folder of schemas.
struct Pipeline {
    dev: Dev,
    schemas: tempfile::TempDir,
}

impl Pipeline {
    fn start() -> Self {
        let schemas = tempfile::tempdir().unwrap();
        signup(schemas.path(), 10, "REQUIRED");
        let dev = Dev::start(&["--schemas", &schemas.path().display().to_string()]);
        Self { dev, schemas }
    }

    /// Widens the schema and starts the pipeline with it.
    fn mend(&mut self) {
        signup(self.schemas.path(), 20, "NULLABLE");
        self.dev.interrupt();
        self.dev.start_again();
    }

    fn arguments(&self, command: &[&str]) -> Vec<String> {
        let mut arguments = vec!["dead-letters".to_string()];
        arguments.extend(command.iter().map(ToString::to_string));
        arguments.extend(["--data-dir".into(), self.dev.data().display().to_string(), "--json".into()]);
        arguments.extend(["--schemas".into(), self.schemas.path().display().to_string()]);
        arguments
    }

    fn list(&self, more: &[&str]) -> Vec<Value> {
        json_of(self.arguments(&[&["list"], more].concat())).as_array().cloned().unwrap()
    }

    fn show(&self, id: &str) -> Value {
        json_of(self.arguments(&["show", id]))
    }

    fn dry_run(&self, more: &[&str]) -> Value {
        json_of(self.arguments(&[&["replay", "--dry-run"], more].concat()))
    }

    fn replay(&self, more: &[&str]) -> Value {
        json_of(self.arguments(&[&["replay", "--to", &self.dev.url("")], more].concat()))
    }

    fn post(&self, path: &str, body: Vec<u8>) {
        assert_eq!(self.dev.push(path, body), 204);
    }

    fn wait_for_letters(&self, count: usize) {
        self.dev.wait_for(COUNT, |rows| rows == [json!({"n": count})]);
    }
}

/// How many letters by reason.
fn counts(groups: &[Value]) -> Vec<(String, u64)> {
    let one = |group: &Value| (group["reason"].as_str().unwrap().to_string(), group["letters"].as_u64().unwrap());
    groups.iter().map(one).collect()
}

#[test]
fn what_the_mended_schema_takes_goes_round_again_once() {
    let mut pipeline = Pipeline::start();
    let event = |id: &str, plan: &str| json!({"event_type": "signup", "eventId": id, "at": "2026-11-20T08:00:00Z", "planName": plan, "price": 1});
    let mut without_price = event("s-3", "short");
    without_price.as_object_mut().unwrap().remove("price");
    let mut hopeless = event("s-4", "short");
    hopeless["seats"] = json!([{"number": 1}, {"number": "two"}]);
    let events = json!([
        event("s-1", "far too long"),
        event("s-2", "much too long"),
        without_price,
        hopeless,
        event("s-5", "ok")
    ]);
    let (status, answer) = pipeline.dev.publish(Some(&events));
    assert_eq!((status, answer["accepted"].as_array().unwrap().len()), (200, 5));
    pipeline.wait_for_letters(4);

    let groups = pipeline.list(&[]);
    let reasons = [("too_long".to_string(), 2), ("missing_required".into(), 1), ("wrong_type".into(), 1)];
    assert_eq!(counts(&groups), reasons, "the most frequent first");
    assert_eq!(groups[0]["stage"], "enricher");
    assert!(groups[0]["first_seen"].as_str() <= groups[0]["last_seen"].as_str());
    assert_eq!(counts(&pipeline.list(&["--where", "event_id = 's-3'"])), [("missing_required".to_string(), 1)]);

    let shown = pipeline.show(groups[2]["example"].as_str().unwrap());
    assert_eq!((&shown["event_id"], &shown["verdict"]), (&json!("s-4"), &json!("the event does not pass")));
    assert!(shown["raw"].as_str().unwrap().contains("\"two\""));
    let difference = &shown["differences"][0];
    assert_eq!(difference["column"], "seats.number");
    assert_eq!((&difference["expected"], &difference["found"]), (&json!("INTEGER"), &json!("1, \"two\"")));

    let dry = pipeline.dry_run(&[]);
    assert_eq!((&dry["letters"], &dry["passing"]), (&json!(4), &json!(0)));
    assert_eq!(pipeline.replay(&[])["passing"], 0);

    pipeline.mend();
    let dry = pipeline.dry_run(&[]);
    assert_eq!((&dry["letters"], &dry["passing"], &dry["events"]), (&json!(4), &json!(3), &json!(3)));
    assert_eq!(dry["left"][0]["reason"], "wrong_type");
    assert_eq!(counts(&pipeline.list(&[])), reasons, "a dry run changes nothing");

    let of_one = pipeline.replay(&["--reason", "missing_required"]);
    assert_eq!((&of_one["letters"], &of_one["passing"]), (&json!(1), &json!(1)));
    let rest = pipeline.replay(&[]);
    assert_eq!((&rest["letters"], &rest["passing"]), (&json!(3), &json!(2)));
    let landed = "SELECT event_id, plan_name FROM growth.signups ORDER BY event_id";
    let rows = pipeline.dev.wait_for(landed, |rows| rows.len() == 4);
    let expected = [("s-1", "far too long"), ("s-2", "much too long"), ("s-3", "short"), ("s-5", "ok")];
    assert_eq!(rows, expected.map(|(id, plan)| json!({"event_id": id, "plan_name": plan})));

    let again = pipeline.replay(&[]);
    assert_eq!((&again["letters"], &again["passing"]), (&json!(1), &json!(0)), "the second time there is nothing");
    assert_eq!(counts(&pipeline.list(&[])), [("wrong_type".to_string(), 1)]);
    assert_eq!(counts(&pipeline.list(&["--replayed"])), reasons);
    pipeline.wait_for_letters(4);
    assert_eq!(pipeline.dev.query(landed).len(), 4);
    let counts = &pipeline.dev.get("/api/report")["counts"];
    assert_eq!((&counts["landed"], &counts["dead_lettered"]), (&json!(4), &json!(1)));
    let received = "SELECT count(*) AS n FROM growth.signups AS row JOIN dead_letters USING (event_id) \
        WHERE row.received_at = dead_letters.received_at";
    assert_eq!(pipeline.dev.query(received), [json!({"n": 3})], "the time of receipt is the first one");
}

#[test]
fn a_row_that_the_warehouse_refused_goes_back_as_it_is() {
    let mut pipeline = Pipeline::start();
    let row = json!({"at": "2026-11-20T08:00:00Z", "plan_name": "far too long", "price": 1, "event_id": "row",
        "received_at": "2026-11-20T08:00:01Z", "schema_version": "0-9-0"});
    let attributes = [("event_type", "signup"), ("rows", "1"), ("schema_version", "0-9-0")];
    let subscription = "projects/p/subscriptions/clickstream-enriched-sub";
    pipeline.post("/batcher", push_from(subscription, "1", &attributes, row.to_string()));
    pipeline.wait_for_letters(1);
    assert_eq!(pipeline.list(&[])[0]["stage"], "warehouse");

    pipeline.mend();
    assert_eq!(pipeline.replay(&[])["passing"], 1);

    let rows = pipeline
        .dev
        .wait_for("SELECT event_id, received_at, schema_version FROM growth.signups", |rows| !rows.is_empty());
    let expected = json!({"event_id": "row", "received_at": "2026-11-20T08:00:01Z", "schema_version": "0-9-0"});
    assert_eq!(rows, [expected]);
    assert_eq!(pipeline.replay(&[])["letters"], 0);
}

#[test]
fn what_pubsub_gave_up_goes_round_again_events_and_rows_alike() {
    let pipeline = Pipeline::start();
    let events = "{\"event_id\":\"own\",\"at\":\"2026-11-20T08:00:00Z\",\"price\":1}\n\n{\"at\":\"2026-11-20T08:00:01Z\",\"price\":2}\n{\"at\":\n";
    let row = r#"{"at":"2026-11-20T08:00:02Z","price":3,"event_id":"row","received_at":"2026-11-20T08:00:03Z","schema_version":"1-0-0"}"#;
    for (id, data) in [("1", events), ("2", row)] {
        pipeline.post("/batcher/dead-letter", forwarded(id, &[("event_type", "signup")], data));
    }
    pipeline.wait_for_letters(2);
    assert_eq!(counts(&pipeline.list(&["--stage", "pubsub"])), [("undeliverable".to_string(), 2)]);

    let summary = pipeline.replay(&[]);

    assert_eq!((&summary["passing"], &summary["events"]), (&json!(2), &json!(4)));
    let rows =
        pipeline.dev.wait_for("SELECT event_id, CAST(price AS INT) AS price FROM growth.signups ORDER BY at", |rows| {
            rows.len() == 3
        });
    let ids: Vec<_> = rows.iter().map(|row| row["event_id"].as_str().unwrap()).collect();
    assert_eq!((ids[0], ids[1].len(), ids[2]), ("own", 32, "row"));
    // The line that is no event comes back alone.
    pipeline.wait_for_letters(3);
    assert_eq!(counts(&pipeline.list(&[])), [("bad_json".to_string(), 1)]);
    let received = pipeline.dev.query("SELECT received_at FROM growth.signups WHERE event_id = 'row'");
    assert_eq!(received, [json!({"received_at": "2026-11-20T08:00:03Z"})]);
}

#[test]
fn a_large_letter_is_read_from_the_bucket() {
    let mut pipeline = Pipeline::start();
    let seats: Vec<_> = (0..9_000).map(|number| json!({"number": number})).collect();
    let event = json!({"at": "2026-11-20T08:00:00Z", "seats": seats}).to_string();
    let events = vec![event; 3].join("\n");
    assert!(events.len() > 256 << 10);
    pipeline.post("/batcher/dead-letter", forwarded("1", &[("event_type", "signup")], events));
    pipeline.wait_for_letters(1);
    let id = pipeline.list(&[])[0]["example"].as_str().unwrap().to_string();
    let shown = pipeline.show(&id);
    assert!(shown["raw_uri"].is_string() && shown["raw"].as_str().unwrap().contains("8999"), "the whole text");
    assert_eq!(shown["differences"][0]["column"], "price");

    pipeline.mend();
    assert_eq!(pipeline.replay(&["--id", &id])["passing"], 1);
    let rows = pipeline.dev.wait_for("SELECT array_length(seats) AS seats FROM growth.signups", |rows| rows.len() == 3);
    assert_eq!(rows, vec![json!({"seats": 9_000}); 3]);
}

#[test]
fn a_line_of_a_file_goes_into_its_table_however_old_it_is() {
    let pipeline = Pipeline::start();
    let letter = |event_type: &str, raw: &str| {
        let origin = Origin {
            stage: "backfill",
            event_type: Some(event_type),
            event_id: Some("line"),
            identity: &[event_type.as_bytes()],
            failed_at: 1_790_000_000_000_000,
            ..Origin::default()
        };
        let reason = Reason { code: Code::OutsideWindow, detail: "too old".into() };
        let attributes = Attributes::from([("event_type".to_string(), DEAD_LETTER.to_string())]);
        let message = Message { data: DeadLetter::new(&origin, reason, raw.as_bytes()).to_json(), attributes };
        delivery("projects/p/subscriptions/clickstream-dead-letter-sub", event_type, &message)
    };
    pipeline.post("/batcher/dead-letter", letter("unheard_of", "{\"session_id\":1}"));
    pipeline.post("/batcher/dead-letter", letter("signup", "{\"at\":\"1999-11-20T08:00:00Z\",\"price\":1}"));
    pipeline.wait_for_letters(2);

    let summary = pipeline.replay(&[]);

    assert_eq!((&summary["letters"], &summary["passing"]), (&json!(2), &json!(1)));
    assert_eq!(summary["left"][0]["reason"], "not_replayable");
    assert!(summary["left"][0]["detail"].as_str().unwrap().contains("contextflow backfill --append"), "{summary}");
    pipeline.dev.wait_for("SELECT event_id FROM growth.signups", |rows| rows == [json!({"event_id": "line"})]);
}

/// The built-in schema of visits, changed, into a folder.
fn mended_visit(folder: &Path, change: impl Fn(&mut Value)) {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/schemas/visit.json");
    let mut schema: Value = serde_json::from_slice(&std::fs::read(built_in).unwrap()).unwrap();
    change(&mut schema);
    std::fs::write(folder.join("visit.json"), schema.to_string()).unwrap();
}

#[test]
fn broken_lines_of_a_load_come_in_by_a_mended_schema() {
    let mut pipeline = Pipeline::start();
    let data = pipeline.dev.data().display().to_string();
    pipeline.dev.interrupt();
    let event = r#"{"event":{"event_type":"page_view","timestamp":"2024-07-01T09:00:00","details":{"page_url":"/a"}}}"#;
    let bare = r#"{"event":{"event_type":"page_view","timestamp":"2024-07-01T09:00:01"}}"#;
    let hopeless = event.replace("page_view", "wish");
    let visit = |session: &str, events: &[&str]| {
        let events = events.join(",");
        format!("{{{session},\"user_id\":\"u\",\"device_type\":\"mobile\",\"events\":[{events}]}}\n")
    };
    let file = pipeline.schemas.path().join("visits.jsonl");
    let lines = [
        visit(r#""session_id":"whole""#, &[event]),
        visit(r#""session_id":"in part""#, &[event, bare, &hopeless]),
        visit(r#""sid":"renamed""#, &[event, event, &hopeless]),
        "no JSON\n".into(),
        visit(&format!(r#""session_id":"large","user_agent":{}"#, "[".repeat(300_000)), &[]),
    ];
    std::fs::write(&file, lines.concat()).unwrap();
    let report = json_of(["backfill", "--json", "--source", &file.display().to_string(), "--data-dir", &data]);
    assert_eq!((&report["rows"]["sessions"], &report["dead_letters"]), (&json!(2), &json!(5)));
    pipeline.dev.start_again();
    let summary = pipeline.replay(&[]);
    assert_eq!(summary["passing"], 0);
    let large = summary["left"].as_array().unwrap().iter().find(|left| left["reason"] == "not_replayable").unwrap();
    assert!(large["detail"].as_str().unwrap().contains("visits.jsonl#bytes="), "{large}");

    mended_visit(pipeline.schemas.path(), |schema| {
        schema["aliases"] = json!({"session_id": ["sid"]});
        schema["columns"][5]["fields"][0]["fields"][2]["mode"] = json!("NULLABLE");
    });
    pipeline.dev.interrupt();
    pipeline.dev.start_again();
    let dry = pipeline.dry_run(&["--stage", "backfill"]);
    assert_eq!((&dry["letters"], &dry["passing"]), (&json!(5), &json!(2)), "{dry}");
    let summary = pipeline.replay(&[]);
    assert_eq!((&summary["letters"], &summary["passing"]), (&json!(5), &json!(2)), "{summary}");

    let count =
        |table: &str| pipeline.dev.query(&format!("SELECT count(*) AS n FROM {table}"))[0]["n"].as_u64().unwrap();
    let counts = || ["clickstream_lake.visits", "clickstream_dw.sessions", "clickstream_dw.pageview_events"].map(count);
    assert_eq!(counts(), [3, 3, 5], "the line with its two events, and the one event of the other");
    let keys = "SELECT count(*) AS n FROM clickstream_dw.pageview_events JOIN clickstream_dw.sessions USING (session_key) \
        WHERE session_id = 'in part'";
    assert_eq!(pipeline.dev.query(keys), [json!({"n": 2})], "the event belongs to the session of its visit");
    let again = pipeline.replay(&[]);
    assert_eq!(
        (&again["letters"], &again["passing"]),
        (&json!(4), &json!(0)),
        "with the part of the mended line that fails"
    );
    assert_eq!(counts(), [3, 3, 5]);
}

#[test]
fn wrong_usage_says_what_to_do() {
    let pipeline = Pipeline::start();
    let other = tempfile::tempdir().unwrap();
    let (here, url) = (pipeline.dev.data().display().to_string(), pipeline.dev.url(""));
    let elsewhere = other.path().display().to_string();
    for (arguments, code, expected) in [
        (vec!["list", "--data-dir", &elsewhere], 2, "run `contextflow dev` first"),
        (vec!["list", "--data-dir", &here, "--where", "nonsense = 1"], 2, "No field named nonsense"),
        (vec!["list", "--data-dir", &here, "--reason", "no' OR 'yes"], 2, "is no reason"),
        (vec!["show", "nothing", "--data-dir", &here], 2, "there is no dead letter nothing"),
        (vec!["replay", "--data-dir", &here, "--to", "http://127.0.0.1:9"], 2, "`contextflow dev` that writes it"),
        (vec!["replay", "--data-dir", &elsewhere, "--to", &url], 2, "not in the folder that is meant"),
        (vec!["replay", "--data-dir", &here, "--to", &url, "--where", "1 = 1; DROP TABLE x"], 2, "sql parser error"),
    ] {
        let output = run([&["dead-letters"], arguments.as_slice()].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    }
    let empty = run(["dead-letters", "list", "--data-dir", &here]);
    assert_eq!(text(&empty.stdout), "no dead letters\n");
}
