//! What an operator asks: how the pipeline is, and what it costs.

#![expect(clippy::unwrap_used, reason = "a helper of a test may stop it")]

use std::process::{Command, Stdio};

use pipeline_tests::binary::{Dev, binary, json_of, run, text};
use serde_json::{Value, json};

#[test]
fn a_month_costs_what_its_lines_say() {
    let output = run(["cost", "--rps", "1157.4074", "--batch", "20", "--regions", "2"]);
    assert!(output.status.success());
    insta::assert_snapshot!(text(&output.stdout));
}

#[test]
fn a_share_of_bad_events_is_priced() {
    let bill = |bad: &str| json_of(["cost", "--json", "--rps", "100", "--batch", "500", "--bad", bad]);
    let (good, bad) = (bill("0%"), bill("10%"));
    let line = |bill: &Value| {
        let lines = bill["bill"]["lines"].as_array().unwrap();
        lines
            .iter()
            .find(|line| line["what"] == "dead-letter topic, in and out")
            .map(|line| line["list"].as_f64().unwrap())
    };
    assert_eq!(line(&good), None);
    assert!(line(&bad).is_some_and(|amount| amount > 0.0), "{bad}");
    assert_eq!(bad["load"]["bad"], 0.1);
    for wrong in ["10", "-1%", "101%", "all"] {
        assert_eq!(run(["cost", "--rps", "1", "--bad", wrong]).status.code(), Some(2), "{wrong}");
    }
    assert_eq!(run(["cost"]).status.code(), Some(2), "it has to be said what is priced");
}

#[test]
fn no_price_is_told_of_a_request_that_the_publisher_refuses() {
    let output = run(["cost", "--rps", "1", "--batch", "500", "--event-bytes", "5000"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("a request of 2500000 bytes; the publisher takes 1048576 at most"), "{told}");
}

#[test]
fn a_price_table_of_ones_own_takes_the_place_of_the_built_in_one() {
    let built_in = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/prices.json")).unwrap();
    let mut table: Value = serde_json::from_str(&built_in).unwrap();
    for price in table["prices"].as_object_mut().unwrap().values_mut() {
        price["tiers"] = json!([{"price": 0}]);
    }
    table["prices"]["run_requests"]["tiers"] = json!([{"price": 1}]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let bill_of = |table: &Value| {
        std::fs::write(&path, table.to_string()).unwrap();
        run(["cost", "--json", "--rps", "10", "--batch", "500", "--prices", &path])
    };
    let answer: Value = serde_json::from_slice(&bill_of(&table).stdout).unwrap();
    // 25.92 million events in packs of 500: a push of the raw topic and two of the enriched one for each.
    let total = answer["bill"]["total"]["list"].as_f64().unwrap();
    assert!((total - 25.92 * 3.0 / 500.0).abs() < 1e-9, "{total}");
    for (name, fault) in [("run_requests", "no price `run_requests`"), ("aws_egress", "no price `aws_egress`")] {
        let mut table = table.clone();
        table["prices"].as_object_mut().unwrap().remove(name);
        let output = bill_of(&table);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(fault), "{}", text(&output.stderr));
    }
}

#[test]
fn a_reader_that_has_enough_ends_a_command_quietly() {
    let mut child = Command::new(binary())
        .args(["cost", "--rps", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

fn status(dev: &Dev, more: &[&str]) -> Value {
    let data = dev.data().display().to_string();
    json_of(["status", "--json", "--data-dir", &data].iter().chain(more))
}

fn waiting(status: &Value) -> Vec<(&str, u64)> {
    let subscriptions = status["subscriptions"].as_array().unwrap();
    subscriptions.iter().map(|one| (one["name"].as_str().unwrap(), one["waiting"].as_u64().unwrap())).collect()
}

#[test]
fn the_status_is_of_the_pipeline_that_runs_and_of_one_that_was_killed() {
    let mut dev = Dev::start(&[]);
    let events = json!([{"event_name": "click"}, {"event_name": "click"}, {"event_name": 5}]);
    dev.publish(Some(&events));
    dev.wait_for(
        "SELECT (SELECT count(*) FROM clickstream_events) AS rows, (SELECT count(*) FROM dead_letters) AS dead",
        |rows| rows == [json!({"rows": 2, "dead": 1})],
    );
    let address = dev.url("");
    let running = status(&dev, &["--at", &address]);
    assert!(running["pipeline"].as_str().unwrap().ends_with(&format!("runs on {address}")), "{running}");
    let table =
        running["tables"].as_array().unwrap().iter().find(|rows| rows["table"] == "contextflow.clickstream_events");
    assert_eq!((&table.unwrap()["day"], &table.unwrap()["hour"]), (&json!(2), &json!(2)));
    assert_eq!(
        (&running["dead_letters"][0]["reason"], &running["dead_letters"][0]["letters"]),
        (&json!("wrong_type"), &json!(1))
    );
    // The archive holds its pushes until its window closes.
    assert_eq!(waiting(&running)[2], ("clickstream-archive-sub", 1));

    let data = dev.data().display().to_string();
    let elsewhere = run(["status", "--data-dir", &data, "--at", "http://127.0.0.1:9"]);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(text(&elsewhere.stderr).contains("say where with --at URL"), "{}", text(&elsewhere.stderr));

    dev.kill();
    let killed = status(&dev, &["--at", &address]);
    assert!(killed["pipeline"].as_str().unwrap().ends_with("does not run"), "{killed}");
    assert_eq!(killed["tables"], running["tables"]);
    assert_eq!(waiting(&killed)[2], ("clickstream-archive-sub", 1));
    let shown = text(&run(["status", "--data-dir", &data, "--at", &address]).stdout);
    assert!(shown.contains("enricher: wrong_type") && shown.contains("\nkill-switch: none"), "{shown}");
}

#[test]
fn what_ran_is_priced() {
    let dev = Dev::start(&[]);
    assert_eq!(dev.get("/api/report")["cost"], Value::Null);
    dev.publish(Some(&json!([{"event_name": "click"}, {"event_name": "view"}])));
    dev.wait_for("SELECT count(*) AS n FROM clickstream_events", |rows| rows == [json!({"n": 2})]);
    std::thread::sleep(std::time::Duration::from_millis(1_100)); // A report is kept for a second.
    let cost = &dev.get("/api/report")["cost"];
    let load = &cost["load"];
    assert_eq!((&load["rps"], &load["batch"], &load["pack"]), (&json!(2.0), &json!(2.0), &json!(2.0)), "{cost}");
    assert!(cost["usd_per_million"].as_f64().is_some_and(|amount| amount > 0.1), "{cost}");
}
