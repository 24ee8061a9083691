//! The operator's commands on the clouds, by the binary with its feature `cloud`, between emulators: history into
//! `BigQuery`, dead letters of it and back.
//!
//! The binary of `cargo test --workspace` has no clouds, so this is for
//! `cargo test --workspace --features contextflow/cloud,pipeline-tests/cloud`.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use pipeline_tests::binary::{binary, text};
use pipeline_tests::google_server::GoogleServer;
use pipeline_tests::pubsub::{PROJECT, PubSubApi};
use pipeline_tests::{NOW, bucket, built_in, parts};
use serde_json::{Value, json};
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

#[test]
fn a_release_tells_what_it_would_undo_undoes_it_and_tells_how_to_link_billing() {
    let Some(moto) = parts::moto(false) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let google = runtime.block_on(GoogleServer::start());
    let (subscription, topic) =
        ("projects/p/subscriptions/clickstream-raw-sub", "projects/p/topics/clickstream-raw-topic");
    google.set_push(subscription, json!({}));
    google.set_bindings(topic, json!([]));
    google.set_backlog("clickstream-raw-sub", 12);
    let settings = json!({"pushEndpoint": "https://enricher.example.com/"});
    let state = json!({
        "version": 1, "active": ["brake", "stop", "detach"], "saved": {subscription: settings},
        "removed": {"topic": topic, "member": "serviceAccount:publisher@p.iam.gserviceaccount.com"}, "detached": {"p": "0A-0B"},
    });
    let place = runtime.block_on(bucket::s3(&moto, "states", "kill-switch"));
    let object = place.path.clone().join("state.json");
    runtime.block_on(place.store.put(&object, state.to_string().into())).unwrap();
    let release = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["release", "--project", "p", "--state", "s3://states/kill-switch"]).args(arguments);
        for endpoint in ["PUBSUB_ENDPOINT", "BILLING_ENDPOINT", "MONITORING_ENDPOINT"] {
            command.env(endpoint, &google.url);
        }
        let output = command.envs(bucket::environment(&moto)).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };

    let told = release(&["--dry-run"]);
    assert!(told.contains("clickstream-raw-sub would push again; 12 messages wait"), "{told}");
    assert!(google.changes().is_empty());

    let report: Value = serde_json::from_str(&release(&["--json"])).unwrap();

    assert_eq!(report["in_force"], json!(["brake", "stop", "detach"]));
    assert_eq!(report["subscriptions"][0]["became"], "restored");
    assert_eq!(report["to_link"], json!(["gcloud billing projects link p --billing-account=0A-0B"]));
    assert_eq!(google.push(subscription), settings);
    let members = json!(["serviceAccount:publisher@p.iam.gserviceaccount.com"]);
    assert_eq!(google.bindings(topic), json!([{"role": "roles/pubsub.publisher", "members": members}]));
    let left = runtime.block_on(async { place.store.get(&object).await.unwrap().bytes().await.unwrap() });
    let left: Value = serde_json::from_slice(&left).unwrap();
    assert_eq!((&left["active"], &left["saved"]), (&json!([]), &json!({})));
    assert!(release(&[]).starts_with("nothing is in force (s3://states/kill-switch/state.json)"));
}
