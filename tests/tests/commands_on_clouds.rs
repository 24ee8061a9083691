//! The operator's commands on the clouds, by the binary with its feature `cloud`, between emulators: history into
//! `BigQuery`, dead letters of it and back.
//!
//! The binary of `cargo test --workspace` has no clouds, so this is for
//! `cargo test --workspace --features contextflow/cloud,pipeline-tests/cloud`.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::process::{Command, Output};
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use pipeline_tests::binary::{binary, text};
use pipeline_tests::google_server::{Answer, GoogleServer};
use pipeline_tests::pubsub::{PROJECT, PubSubApi};
use pipeline_tests::{NOW, bucket, built_in, parts};
use serde_json::{Value, json};
use shared::bucket::Location;
use shared::dead_letter::{DeadLetter, Origin, Place, Reason};
use shared::decode::Code;
use shared::settings::Settings;
use shared::sink::bigquery::BigQuerySink;
use shared::sink::{Batch, Outcome, Sink};

struct Clouds {
    bigquery: parts::BigQuery,
    pubsub: parts::Server,
}

impl Clouds {
    /// Runs a command on them and reads its JSON.
    fn run(&self, arguments: &[&str]) -> Value {
        let output = Command::new(binary())
            .args(arguments)
            .env("GOOGLE_CLOUD_PROJECT", PROJECT)
            .env("BIGQUERY_REST_ENDPOINT", &self.bigquery.rest)
            .env("BIGQUERY_GRPC_ENDPOINT", &self.bigquery.grpc)
            .env("PUBSUB_ENDPOINT", &self.pubsub.url)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
    }

    fn dead_letters(&self, arguments: &[&str]) -> Value {
        self.run(&[&["dead-letters"], arguments, &["--warehouse", "bigquery", "--json"]].concat())
    }

    /// Fills the table of dead letters.
    fn fill(&self, letters: &[DeadLetter]) {
        let settings =
            Settings::from_iter([("GOOGLE_CLOUD_PROJECT", PROJECT), ("BIGQUERY_GRPC_ENDPOINT", &self.bigquery.grpc)]);
        let plan = Arc::clone(built_in().get("dead_letter").unwrap());
        let rows: Vec<Bytes> = letters.iter().map(DeadLetter::to_json).collect();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let outcomes = runtime.block_on(async {
            let sink = BigQuerySink::new(&settings, shared::clock::Clock::system()).unwrap();
            sink.append(&Batch { plan, rows, loaded_at: NOW }).await
        });
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done), "{outcomes:?}");
    }
}

fn letter(stage: &str, id: &str, raw: &Value) -> DeadLetter {
    let origin = Origin {
        stage,
        event_type: Some("order"),
        event_id: Some(id),
        identity: &[id.as_bytes()],
        received_at: Some(NOW),
        failed_at: NOW,
        attempts: 1,
        ingest: None,
    };
    DeadLetter::new(&origin, Reason { code: Code::WrongType, detail: "because".into() }, raw.to_string().as_bytes())
}

#[test]
fn letters_of_bigquery_go_back_through_pubsub_and_are_marked() {
    let (Some(bigquery), Some(pubsub)) = (parts::bqemulator(), parts::pubsub_emulator()) else { return };
    let api = PubSubApi::at(&pubsub.url);
    for kind in ["raw", "enriched"] {
        api.create_topics(&[&format!("clickstream-{kind}-topic")]);
        api.create_pull(&format!("{kind}-sub"), &format!("clickstream-{kind}-topic"));
    }
    let clouds = Clouds { bigquery, pubsub };
    clouds.run(&["schema", "apply", "--json"]);
    let row =
        json!({"order_id": "o", "event_id": "row", "received_at": "2026-10-20T00:00:00Z", "schema_version": "1-0-0"});
    clouds.fill(&[
        letter("enricher", "event", &json!({"order_id": "o", "total_amount": 1})),
        letter("enricher", "hopeless", &json!({"order_id": {}})),
        letter("warehouse", "row", &row),
    ]);

    let groups = clouds.dead_letters(&["list"]);
    assert_eq!((groups.as_array().unwrap().len(), &groups[0]["letters"]), (2, &json!(2)), "{groups}");
    let of_one = clouds.dead_letters(&["list", "--where", "event_id = 'hopeless'"]);
    let shown = clouds.dead_letters(&["show", of_one[0]["example"].as_str().unwrap()]);
    assert_eq!(shown["differences"][0]["found"], "{}");
    let dry = clouds.dead_letters(&["replay", "--dry-run"]);
    assert_eq!((&dry["letters"], &dry["passing"]), (&json!(3), &json!(2)));

    let summary = clouds.dead_letters(&["replay"]);

    assert_eq!((&summary["letters"], &summary["passing"]), (&json!(3), &json!(2)));
    let (raw, enriched) = (api.pull("raw-sub"), api.pull("enriched-sub"));
    assert_eq!((raw.len(), enriched.len()), (1, 1));
    let event: Value = serde_json::from_slice(&raw[0].0).unwrap();
    assert_eq!((&event["event_id"], &event["total_amount"]), (&json!("event"), &json!(1)));
    assert_eq!(
        (&raw[0].1["event_type"], &raw[0].1["received_at"]),
        (&json!("order"), &json!("2026-10-20T00:15:02.920Z"))
    );
    assert_eq!(serde_json::from_slice::<Value>(&enriched[0].0).unwrap(), row);
    assert_eq!(enriched[0].1["event_type"], "order");
    let again = clouds.dead_letters(&["replay"]);
    assert_eq!((&again["letters"], &again["passing"]), (&json!(1), &json!(0)), "what passed is marked");
    assert!(api.pull("raw-sub").is_empty() && api.pull("enriched-sub").is_empty());
}

#[test]
fn history_lands_in_bigquery_and_what_it_left_is_loaded_again() {
    let (Some(bigquery), Some(pubsub)) = (parts::bqemulator(), parts::pubsub_emulator()) else { return };
    let clouds = Clouds { bigquery, pubsub };
    let data = tempfile::tempdir().unwrap();
    let data = data.path().display().to_string();
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/visits");
    clouds.run(&["schema", "apply", "--json"]);
    let count = |table: &str| {
        clouds.run(&["query", "--warehouse", "bigquery", "--json", &format!("SELECT COUNT(*) AS n FROM {table}")])[0]["n"].as_u64().unwrap()
    };
    let counts = || ["clickstream_lake.visits", "clickstream_dw.sessions", "clickstream_dw.pageview_events"].map(count);

    let load = ["backfill", "--json", "--warehouse", "bigquery", "--source", sample, "--data-dir", &data];
    let report = clouds.run(&load);
    assert_eq!((&report["rows"]["visits"], &report["rows"]["purchase_events"]), (&json!(20), &json!(6)), "{report}");
    assert_eq!(counts(), [20, 20, 45]);
    clouds.run(&load);
    assert_eq!(counts(), [20, 20, 45], "a run takes the place of the one before");

    let event = r#"{"event":{"event_type":"page_view","timestamp":"2024-07-01T09:00:00","details":{"page_url":"/a"}}}"#;
    let visit = format!(r#"{{"session_id":"s","user_id":"u","device_type":"d","events":[{event}]}}"#);
    let letter_of = |raw: &str, within: Option<&str>| {
        let origin = Origin {
            stage: "backfill",
            event_type: Some("visit"),
            identity: &[raw.as_bytes()],
            failed_at: NOW,
            ..Origin::default()
        };
        let mut letter =
            DeadLetter::new(&origin, Reason { code: Code::WrongType, detail: String::new() }, raw.as_bytes());
        letter.place =
            Some(Place { source: "f.jsonl".into(), line: 7, byte_offset: 9, within: within.map(Into::into) });
        letter
    };
    clouds.fill(&[letter_of(&visit, None), letter_of(event, Some(&visit)), letter_of("no JSON", None)]);
    let summary = clouds.dead_letters(&["replay", "--data-dir", &data]);
    assert_eq!((&summary["letters"], &summary["passing"]), (&json!(3), &json!(2)), "{summary}");
    assert_eq!(counts(), [21, 21, 47]);
    let again = clouds.dead_letters(&["replay", "--data-dir", &data]);
    assert_eq!((&again["letters"], &again["passing"]), (&json!(1), &json!(0)), "what passed is marked");
    assert_eq!(counts(), [21, 21, 47]);
}

/// A project whose kill-switch has acted: its state in a bucket, what it turns in memory.
struct Stopped {
    moto: parts::Server,
    google: GoogleServer,
    place: Location,
    runtime: tokio::runtime::Runtime,
}

impl Stopped {
    const SUBSCRIPTION: &str = "projects/p/subscriptions/clickstream-raw-sub";
    const TOPIC: &str = "projects/p/topics/clickstream-raw-topic";
    const PUBLISHER: &str = "serviceAccount:publisher@p.iam.gserviceaccount.com";

    fn start() -> Option<Self> {
        let moto = parts::moto(false)?;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let google = runtime.block_on(GoogleServer::start());
        google.set_push(Self::SUBSCRIPTION, json!({}));
        google.set_bindings(Self::TOPIC, json!([]));
        google.set_backlog("clickstream-raw-sub", 12);
        let state = json!({
            "version": 1, "mode": "armed", "active": ["brake", "stop", "detach"],
            "saved": {Self::SUBSCRIPTION: Self::pushing()},
            "removed": {"topic": Self::TOPIC, "member": Self::PUBLISHER}, "detached": {"p": "0A-0B"},
        });
        let place = runtime.block_on(bucket::s3(&moto, "states", "kill-switch"));
        runtime.block_on(place.store.put(&place.path.clone().join("state.json"), state.to_string().into())).unwrap();
        Some(Self { moto, google, place, runtime })
    }

    fn pushing() -> Value {
        json!({"pushEndpoint": "https://enricher.example.com/"})
    }

    fn state(&self) -> Value {
        let object = self.place.path.clone().join("state.json");
        let read = async { self.place.store.get(&object).await.unwrap().bytes().await.unwrap() };
        serde_json::from_slice(&self.runtime.block_on(read)).unwrap()
    }

    /// What a command that ends well prints.
    fn run(&self, command: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let output = self.output(command, arguments, environment);
        assert!(output.status.success(), "{command} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn output(&self, command: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut process = Command::new(binary());
        process.args([command, "--project", "p", "--state", "s3://states/kill-switch"]).args(arguments);
        for endpoint in ["PUBSUB_ENDPOINT", "BILLING_ENDPOINT", "MONITORING_ENDPOINT"] {
            process.env(endpoint, &self.google.url);
        }
        process.envs(bucket::environment(&self.moto)).envs(environment.iter().copied()).output().unwrap()
    }
}

#[test]
fn a_release_tells_what_it_would_undo_undoes_it_and_tells_how_to_link_billing() {
    let Some(stopped) = Stopped::start() else { return };
    let release = |arguments: &[&str]| stopped.run("release", arguments, &[]);

    let told = release(&["--dry-run"]);
    assert!(told.contains("clickstream-raw-sub would push again; 12 messages wait"), "{told}");
    assert!(stopped.google.changes().is_empty());
    stopped.google.fail("POST", ":modifyPushConfig", Answer::Status(403), 1);
    let half = stopped.output("release", &[], &[]);
    assert_eq!(half.status.code(), Some(1));
    let (told, error) = (text(&half.stdout), text(&half.stderr));
    assert!(told.contains("to link it: gcloud billing projects link p --billing-account=0A-0B"), "{told}");
    assert!(error.contains("not undone: POST") && error.contains("run this again"), "{error}");
    assert!(!told.contains("no longer in force"), "{told}");

    let report: Value = serde_json::from_str(&release(&["--json"])).unwrap();

    assert_eq!(report["in_force"], json!(["brake", "detach"]));
    assert_eq!(report["subscriptions"][0]["became"], "restored");
    assert_eq!(report["to_link"], json!(["gcloud billing projects link p --billing-account=0A-0B"]));
    assert_eq!(stopped.google.push(Stopped::SUBSCRIPTION), Stopped::pushing());
    let publishers = json!([{"role": "roles/pubsub.publisher", "members": [Stopped::PUBLISHER]}]);
    assert_eq!(stopped.google.bindings(Stopped::TOPIC), publishers);
    let left = stopped.state();
    assert_eq!((&left["active"], &left["saved"]), (&json!([]), &json!({})));
    assert!(release(&[]).starts_with("nothing is in force (s3://states/kill-switch/state.json)"));
}

#[test]
fn the_status_of_a_deployed_pipeline_says_what_waits_what_failed_and_what_is_in_force() {
    let (Some(stopped), Some(bigquery)) = (Stopped::start(), parts::bqemulator()) else { return };
    let endpoint = [("BIGQUERY_REST_ENDPOINT", bigquery.rest.as_str())];
    let applied = Command::new(binary()).args(["schema", "apply", "--project", "p"]).envs(endpoint).output().unwrap();
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    stopped.google.set_server_errors("enricher", 3);
    let query = |sql: &str| {
        let arguments = ["query", "--warehouse", "bigquery", "--project", "p", sql];
        let output = Command::new(binary()).args(arguments).envs(endpoint).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    query(
        "INSERT INTO contextflow.clickstream_events (event_id, event_timestamp, received_at, loaded_at) VALUES \
         ('a', CURRENT_TIMESTAMP(), CURRENT_TIMESTAMP(), CURRENT_TIMESTAMP()), \
         ('b', TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 2 HOUR), TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 2 HOUR), CURRENT_TIMESTAMP()), \
         ('c', TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 2 DAY), CURRENT_TIMESTAMP(), CURRENT_TIMESTAMP())",
    );
    let status =
        |arguments: &[&str]| stopped.run("status", &[&["--warehouse", "bigquery"], arguments].concat(), &endpoint);

    let told: Value = serde_json::from_str(&status(&["--json"])).unwrap();

    assert_eq!(told["pipeline"], "the pipeline of project p");
    let table =
        told["tables"].as_array().unwrap().iter().find(|rows| rows["table"] == "contextflow.clickstream_events");
    assert_eq!((&table.unwrap()["day"], &table.unwrap()["hour"]), (&json!(2), &json!(1)), "{told}");
    let raw = &told["subscriptions"][0];
    assert_eq!(
        (&raw["name"], &raw["waiting"], &raw["is_pushed"]),
        (&json!("clickstream-raw-sub"), &json!(12), &json!(false))
    );
    assert_eq!(told["server_errors"], json!({"enricher": 3}));
    let switch = told["kill_switch"].as_str().unwrap();
    assert!(switch.starts_with("armed; IN FORCE: brake, stop, detach; `contextflow release` undoes"), "{switch}");
    // The other subscriptions are not there; nothing is said of a brake on them.
    let subscriptions = told["subscriptions"].as_array().unwrap();
    assert_eq!(subscriptions[1]["is_pushed"], Value::Null);
    assert_eq!(subscriptions[4]["name"], "budget-sub", "without it the kill-switch hears nothing");
    assert_eq!(told["unknown"].as_array().unwrap().len(), 4, "{told}");

    stopped.run("release", &[], &[]);
    let told = status(&[]);
    assert!(told.contains("\nkill-switch: armed; nothing in force; no notice yet"), "{told}");
    assert!(told.contains("\nanswers with 5xx in 1 hour: enricher 3"), "{told}");
}

#[test]
fn the_status_says_what_is_in_force_though_the_warehouse_refuses() {
    let Some(stopped) = Stopped::start() else { return };
    let no_bigquery = [("BIGQUERY_REST_ENDPOINT", stopped.google.url.as_str())];

    let told = stopped.run("status", &["--warehouse", "bigquery"], &no_bigquery);

    assert!(told.contains("\nkill-switch: armed; IN FORCE: brake, stop, detach; "), "{told}");
    for unknown in ["\nnot known: the tables: ", "\nnot known: dead letters: "] {
        assert!(told.contains(unknown), "{told}");
    }
    assert!(!told.contains("no dead letters"), "{told}");
}
