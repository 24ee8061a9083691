//! What `contextflow dev` says and does where its folder is damaged, removed or cannot be written, and where file
//! descriptors are few.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline_tests::binary::{Dev, PATIENCE, binary, text};
use reqwest::blocking::Client;
use serde_json::{Value, json};

/// Status and answer of `GET /ready`.
fn ready(dev: &Dev) -> (u16, Value) {
    let answer = Client::new().get(dev.url("/ready")).send().unwrap();
    (answer.status().as_u16(), answer.json().unwrap())
}

fn event(id: &str) -> Value {
    json!({"event_id": id, "event_name": "click", "event_timestamp": 1_790_000_000})
}

/// `contextflow dev` on a folder that it cannot use: what it says.
fn refusal(data: &Path) -> String {
    let mut command = Command::new(binary());
    command.args(["dev", "--port", "0", "--data-dir"]).arg(data).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut dev = command.spawn().unwrap();
    let started = Instant::now();
    while dev.try_wait().unwrap().is_none() && started.elapsed() < PATIENCE {
        sleep(Duration::from_millis(20));
    }
    let _ = dev.kill();
    let output = dev.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "one line and no backtrace: {error}");
    error
}

#[test]
fn nothing_is_accepted_once_the_data_folder_is_removed() {
    let dev = Dev::start(&[]);
    assert_eq!(dev.publish(Some(&event("before"))).0, 200);
    assert_eq!(ready(&dev).0, 200);
    let aside = dev.data().with_extension("aside");
    fs::rename(dev.data(), &aside).unwrap();
    for number in 0..3 {
        assert_eq!(dev.publish(Some(&event(&format!("while-{number}")))).0, 503);
    }
    let (status, answer) = ready(&dev);
    assert_eq!(status, 503);
    assert!(answer["reason"].as_str().is_some_and(|reason| reason.contains("was removed while in use")), "{answer}");
    assert!(!dev.data().exists(), "nothing is created in its place");

    fs::rename(&aside, dev.data()).unwrap();
    let started = Instant::now();
    while dev.publish(Some(&event("after"))).0 != 200 {
        assert!(started.elapsed() < PATIENCE, "it does not recover");
    }
    assert_eq!(ready(&dev).0, 200);
    dev.wait_for("SELECT event_id FROM clickstream_events ORDER BY 1", |rows| {
        rows == [json!({"event_id": "after"}), json!({"event_id": "before"})]
    });
}

#[test]
fn a_bus_file_that_was_deleted_is_not_replaced_by_an_empty_one() {
    let dev = Dev::start(&[]);
    assert_eq!(dev.publish(Some(&event("before"))).0, 200);
    fs::remove_file(dev.data().join("bus.redb")).unwrap();
    for _ in 0..2 {
        assert_eq!(dev.publish(Some(&event("while"))).0, 503);
    }
    assert!(!dev.data().join("bus.redb").exists());
}

#[test]
fn it_is_not_ready_while_a_folder_cannot_be_written() {
    let dev = Dev::start(&[]);
    for folder in ["bucket", "warehouse"] {
        let (there, aside) = (dev.data().join(folder), dev.data().join("aside"));
        fs::rename(&there, &aside).unwrap();
        let (status, answer) = ready(&dev);
        assert_eq!(status, 503, "{folder}: {answer}");
        assert!(answer["reason"].as_str().is_some_and(|reason| reason.contains(folder)), "{answer}");
        fs::rename(&aside, &there).unwrap();
        assert_eq!(ready(&dev), (200, json!({"status": "ready"})), "{folder}");
    }
}

/// The newest entry of the log of `clickstream_events`.
fn newest_entry(data: &Path) -> PathBuf {
    let log = data.join("warehouse/contextflow/clickstream_events/_delta_log");
    let entries = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).max().unwrap()
}

#[test]
fn a_damaged_log_or_bus_is_named_with_what_to_do() {
    let mut dev = Dev::start(&[]);
    for id in ["one", "two"] {
        dev.publish(Some(&event(id)));
        dev.wait_for(&format!("SELECT event_id FROM clickstream_events WHERE event_id = '{id}'"), |rows| {
            rows.len() == 1
        });
    }
    dev.interrupt();
    let entry = newest_entry(dev.data());
    let whole = fs::read(&entry).unwrap();
    for length in [whole.len() - 200, 0] {
        fs::write(&entry, &whole[..length]).unwrap();
        let error = refusal(dev.data());
        assert!(error.contains("table contextflow.clickstream_events: the log entry"), "{error}");
        assert!(error.contains("is not whole") && error.contains("`contextflow backfill --source archive`"), "{error}");
    }
    fs::write(&entry, &whole).unwrap();

    let bus = dev.data().join("bus.redb");
    let intact = fs::read(&bus).unwrap();
    for damaged in [&intact[..intact.len() / 2], &[b'x'; 10_000]] {
        fs::write(&bus, damaged).unwrap();
        let error = refusal(dev.data());
        assert!(error.contains("bus.redb is damaged") && error.contains("move it away"), "{error}");
    }
    fs::write(&bus, intact).unwrap();
    dev.start_again();
    assert_eq!(dev.query("SELECT count(*) AS n FROM clickstream_events"), [json!({"n": 2})]);
}

#[test]
fn with_few_file_descriptors_and_many_idle_clients_everything_lands() {
    let mut limited = Command::new("bash");
    limited.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]).arg(binary());
    let dev = Dev::start_under(limited, &[]);
    let mut idle = Vec::new();
    let mut accepted = BTreeSet::new();
    for round in 0..10 {
        // More than there are descriptors in all.
        idle.extend((0..40).map(|_| TcpStream::connect(("127.0.0.1", dev.port)).unwrap()));
        for number in 0..20 {
            let id = format!("e-{round}-{number}");
            assert_eq!(dev.publish(Some(&event(&id))).0, 200, "{id}");
            accepted.insert(id);
        }
    }
    let landed = dev.wait_for("SELECT event_id FROM clickstream_events", |rows| rows.len() >= accepted.len());
    let landed: BTreeSet<_> = landed.iter().map(|row| row["event_id"].as_str().unwrap().to_string()).collect();
    assert_eq!(landed, accepted);
    let started = Instant::now();
    let waiting = || {
        let report = dev.get("/api/report");
        let subscriptions = report["subscriptions"].as_array().cloned().unwrap();
        subscriptions
            .iter()
            .map(|one| one["waiting"].as_u64().unwrap() + one["outstanding"].as_u64().unwrap())
            .sum::<u64>()
    };
    while waiting() > 0 {
        assert!(started.elapsed() < PATIENCE, "{} messages still wait", waiting());
    }
}
