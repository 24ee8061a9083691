//! Log metrics, dashboard and alerts of Cloud Monitoring against the lines that the functions really write.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use pipeline_tests::binary::{program_in_path, text};
use pipeline_tests::infra::{files, infra, read};
use pipeline_tests::pubsub::PROJECT;
use pipeline_tests::{BatcherFixture, ENRICHED_SUB, EnricherFixture, RAW_SUB, ScriptedSink, push_from};
use serde_json::{Value, json};
use shared::clock::Clock;
use shared::dead_letter::Reason;
use shared::decode::Code;
use shared::sink::Outcome;
use shared::telemetry;

/// Logs what the enricher logs of a push with two events and three faults.
#[tokio::test]
#[ignore = "started by the test that reads its log"]
async fn the_enricher_writes_its_log() {
    telemetry::init("info", Some(PROJECT)).unwrap();
    let enricher = EnricherFixture::start().await;
    let good = r#"{"event_timestamp": "2026-10-20T00:15:00Z", "event_name": "page_view"}"#;
    let lines = [good, "no JSON", good, r#"{"event_timestamp": 1.5e300}"#, "nor this"].join("\n");
    let answer = enricher.push(push_from(RAW_SUB, "1", &[], lines)).await;
    assert_eq!((answer.status.as_u16(), enricher.rows().len(), enricher.letters().len()), (204, 2, 3));
}

/// Logs what the batcher logs of a pack of which one row lands, one is refused and one has to wait.
#[tokio::test]
#[ignore = "started by the test that reads its log"]
async fn the_batcher_writes_its_log() {
    telemetry::init("info", Some(PROJECT)).unwrap();
    let batcher = BatcherFixture::<ScriptedSink>::start();
    batcher.sink.answer("wait", Outcome::Retry("busy".into()));
    batcher.sink.answer("bad", Outcome::Poison(Reason { code: Code::WrongType, detail: String::new() }));
    let row = |id| {
        format!(
            r#"{{"event_timestamp":"2026-10-20T00:15:00Z","event_id":"{id}","received_at":"2026-10-20T00:15:00.250Z"}}"#
        )
    };
    let pack = push_from(ENRICHED_SUB, "1", &[("event_type", "clickstream")], ["a", "bad", "wait"].map(row).join("\n"));
    let answer = batcher.push("/", pack).await;
    assert_eq!((answer.status.as_u16(), batcher.letters().len()), (204, 1));
}

/// The entries that Cloud Logging makes of what a service writes to standard error.
fn log_of(service: &str) -> Vec<Value> {
    let test = format!("the_{service}_writes_its_log");
    let mut process = Command::new(std::env::current_exe().unwrap());
    let output = process.args(["--exact", &test, "--ignored", "--nocapture"]).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let lines: Vec<Value> = text(&output.stderr).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(!lines.is_empty(), "{service} logs nothing: {}", text(&output.stdout));
    lines.into_iter().map(|line| entry(service, line)).collect()
}

fn entry(service: &str, mut line: Value) -> Value {
    let severity = line.as_object_mut().unwrap().remove("severity");
    let resource = json!({"type": "cloud_run_revision", "labels": {"service_name": service}});
    json!({"resource": resource, "severity": severity, "jsonPayload": line})
}

/// A member by its path, `jsonPayload.metrics.received`.
fn member<'a>(entry: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(entry, |value, name| &value[name])
}

/// Whether a filter takes an entry. It knows of Logging's language what the files use: comparisons with AND between them,
/// `=("a" OR "b")`, and the order of severities.
fn takes(filter: &str, entry: &Value) -> bool {
    filter.split(" AND ").all(|comparison| {
        let at = comparison.find(['=', '>']).unwrap_or_else(|| panic!("no comparison: {comparison}"));
        let (path, rest) = comparison.split_at(at);
        let value = rest.trim_start_matches(['=', '>']);
        let wanted = value.trim_matches(['(', ')']).split(" OR ");
        let wanted: Vec<Value> = wanted.map(|value| serde_json::from_str(value).expect(value)).collect();
        let found = member(entry, path);
        let severity = |value: &Value| {
            let names = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"];
            names.iter().position(|name| value == name).unwrap_or_else(|| panic!("no severity: {value}"))
        };
        match rest.strip_suffix(value).unwrap() {
            "=" => wanted.contains(found),
            ">" => found.as_f64() > wanted[0].as_f64(),
            ">=" if path == "severity" => severity(found) >= severity(&wanted[0]),
            other => panic!("{other} in {comparison}"),
        }
    })
}

#[test]
fn log_metrics_read_what_the_functions_write() {
    let entries: Vec<Value> = ["enricher", "batcher"].iter().flat_map(|service| log_of(service)).collect();
    let metrics = files("gcp/monitoring/log-metrics", "json");
    let mut values: BTreeMap<String, BTreeMap<&str, f64>> = BTreeMap::new();
    for (name, file) in &metrics {
        let metric: Value = serde_json::from_str(file).unwrap();
        let extract = metric["valueExtractor"].as_str().map(|extractor| {
            extractor.strip_prefix("EXTRACT(").and_then(|rest| rest.strip_suffix(')')).expect("EXTRACT(path)")
        });
        let is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION";
        assert!(metric["metricDescriptor"]["metricKind"] == "DELTA" && is_distribution == extract.is_some(), "{name}");
        assert_eq!(
            metric["bucketOptions"].is_object(),
            is_distribution,
            "{name}: Google asks a distribution for its buckets"
        );
        for entry in entries.iter().filter(|entry| takes(metric["filter"].as_str().unwrap(), entry)) {
            // A counter counts entries; of a distribution the values are added up.
            let value = extract.map_or(Some(1.0), |path| member(entry, path).as_f64());
            let value = value.unwrap_or_else(|| panic!("{name} extracts no number from {entry}"));
            let service = entry["resource"]["labels"]["service_name"].as_str().unwrap();
            *values.entry(name.clone()).or_default().entry(service).or_default() += value;
        }
    }
    // How often a row is tried again within the budget is a matter of time.
    let tried = ["contextflow_append_errors", "contextflow_retries"].map(|name| values.remove(name).unwrap());
    let [failed, again] = tried.each_ref().map(|values| values["batcher"]);
    assert!(again >= 1.0 && (failed - again - 1.0).abs() < 0.5, "one row an append: {tried:?}");
    let failed = entries.iter().find(|entry| member(entry, "jsonPayload.message") == "append failed").unwrap();
    assert_eq!(member(failed, "jsonPayload.reason"), "busy", "the alert on append errors points to it");
    let expected = json!({
        "contextflow_received": {"enricher": 5.0, "batcher": 3.0},
        "contextflow_landed": {"enricher": 2.0, "batcher": 1.0},
        "contextflow_dead_letters": {"enricher": 3.0, "batcher": 1.0},
        "contextflow_received_to_loaded_p99": {"batcher": 3000.0},
    });
    assert_eq!(json!(values), expected);
    assert_eq!(values.len() + tried.len(), metrics.len());
}

#[test]
fn the_bound_of_the_latency_alert_lies_between_the_reports_own() {
    let metric: Value =
        serde_json::from_str(&files("gcp/monitoring/log-metrics", "json")["contextflow_received_to_loaded_p99"])
            .unwrap();
    let bounds: Vec<f64> = metric["bucketOptions"]["explicitBuckets"]["bounds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bound| bound.as_f64().unwrap())
        .collect();
    // What the report may say, each in a bucket of its own.
    let metrics = shared::metrics::Metrics::new(Clock::manual(0)).text();
    let reported = metrics.lines().filter_map(|line| {
        line.strip_prefix("contextflow_received_to_loaded_millis_bucket{le=\"")?.split('"').next()?.parse::<f64>().ok()
    });
    let reported: Vec<f64> = reported.filter(|bound| bound.is_finite()).collect();
    let buckets: BTreeSet<_> =
        reported.iter().map(|value| bounds.iter().filter(|bound| *bound <= value).count()).collect();
    assert!(reported.len() > 10 && buckets.len() == reported.len(), "{reported:?} in {bounds:?}");
    assert!(bounds.contains(&2500.0), "received-to-loaded.json asks for what is over 2500");
}

/// The alerts that there are to be, each with what it watches.
const ALERTS: [(&str, &str); 9] = [
    ("oldest-unacked", "pubsub.googleapis.com/subscription/oldest_unacked_message_age"),
    ("dead-letters", "user_contextflow_dead_letters_sum"),
    ("server-errors", "response_code_class=\"5xx\""),
    ("append-errors", "user_contextflow_append_errors{"),
    ("received-to-loaded", "user_contextflow_received_to_loaded_p99_bucket"),
    ("no-events", "user_contextflow_received_count{"),
    ("flood", "> ${FLOOD_PER_MINUTE}"),
    ("backstop", "pubsub.googleapis.com/subscription/dead_letter_message_count"),
    ("kill-switch", "service_name=\"kill-switch\" AND severity>=\"ERROR\""),
];

#[test]
fn every_alert_watches_and_says_what_to_do() {
    let mut alerts = files("gcp/monitoring/alerts", "json");
    for (name, watches) in ALERTS {
        let alert: Value = serde_json::from_str(&alerts.remove(name).unwrap_or_else(|| panic!("no {name}"))).unwrap();
        assert!(alert["displayName"].as_str().unwrap().starts_with("ContextFlow: "), "{name}");
        assert_eq!((&alert["combiner"], &alert["enabled"]), (&json!("OR"), &json!(true)), "{name}");
        assert_eq!(alert["notificationChannels"], json!(["${NOTIFICATION_CHANNEL}"]), "{name}");
        let documentation = &alert["documentation"];
        assert_eq!(documentation["mimeType"], "text/markdown", "{name}");
        for part in ["**Means:**", "**Look at:**", "**Do:**"] {
            assert!(documentation["content"].as_str().unwrap().contains(part), "{name} lacks {part}");
        }
        let [condition] = alert["conditions"].as_array().unwrap().as_slice() else { panic!("{name}: one condition") };
        let mut members = condition.as_object().unwrap().iter();
        let (kind, how) = members.find(|(member, _)| member.starts_with("condition")).unwrap();
        let asked = match kind.as_str() {
            "conditionPrometheusQueryLanguage" => {
                assert_eq!(how["disableMetricValidation"], json!(true), "{name} is made before its metric has a value");
                how["query"].as_str().unwrap()
            }
            "conditionThreshold" => {
                assert!(how["thresholdValue"].is_number() && how["comparison"] == "COMPARISON_GT", "{name}");
                how["filter"].as_str().unwrap()
            }
            "conditionMatchedLog" => {
                assert!(
                    alert["alertStrategy"]["notificationRateLimit"].is_object(),
                    "{name}: Google wants a rate limit"
                );
                how["filter"].as_str().unwrap()
            }
            other => panic!("{name}: {other}"),
        };
        assert!(asked.contains(watches), "{name} watches {asked}");
    }
    assert!(alerts.is_empty(), "not expected: {:?}", alerts.keys());
}

#[test]
fn an_error_of_the_kill_switch_alerts() {
    let alert: Value = serde_json::from_str(&files("gcp/monitoring/alerts", "json")["kill-switch"]).unwrap();
    let filter = alert["conditions"][0]["conditionMatchedLog"]["filter"].as_str().unwrap();
    let cases = [("kill-switch", "CRITICAL"), ("kill-switch", "ERROR"), ("kill-switch", "INFO"), ("batcher", "ERROR")];
    let taken = cases.map(|(service, severity)| takes(filter, &entry(service, json!({"severity": severity}))));
    assert_eq!(taken, [true, true, false, false]);
}

/// The queries in `PromQL` of a file.
fn queries(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let own = members.iter().filter(|(name, _)| ["query", "prometheusQuery"].contains(&name.as_str()));
            let own = own.filter_map(|(_, query)| query.as_str().map(str::to_string));
            own.chain(members.values().flat_map(queries)).collect()
        }
        Value::Array(elements) => elements.iter().flat_map(queries).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn dashboard_and_alerts_use_the_metrics_that_are_defined() {
    let defined = files("gcp/monitoring/log-metrics", "json");
    let mut series = BTreeMap::new();
    for (name, file) in &defined {
        let metric: Value = serde_json::from_str(file).unwrap();
        let is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION";
        let suffixes: &[&str] = if is_distribution { &["_sum", "_count", "_bucket"] } else { &[""] };
        series.extend(suffixes.iter().map(|suffix| (format!("{name}{suffix}"), name.as_str())));
    }
    let mut charted = BTreeSet::new();
    let dashboard = read(&infra().join("gcp/monitoring/dashboard.json"));
    let alerts = files("gcp/monitoring/alerts", "json");
    for (file, text) in alerts.iter().map(|(name, text)| (name.as_str(), text)).chain([("dashboard", &dashboard)]) {
        for query in queries(&serde_json::from_str(text).unwrap()) {
            for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
                assert_eq!(query.matches(open).count(), query.matches(close).count(), "{file}: {query}");
            }
            for rest in query.split("logging_googleapis_com:user_").skip(1) {
                let (name, _) = rest.split_once("{monitored_resource=\"cloud_run_revision\"").expect("its resource");
                let metric = series.get(name).unwrap_or_else(|| panic!("{file} asks for {name}, which is not defined"));
                if file == "dashboard" {
                    charted.insert(*metric);
                }
            }
        }
    }
    assert_eq!(charted, defined.keys().map(String::as_str).collect(), "every metric is on the dashboard");
}

#[test]
fn the_dashboards_tiles_lie_beside_one_another() {
    let dashboard: Value = serde_json::from_str(&read(&infra().join("gcp/monitoring/dashboard.json"))).unwrap();
    let columns = dashboard["mosaicLayout"]["columns"].as_u64().unwrap();
    let mut taken = BTreeSet::new();
    for tile in dashboard["mosaicLayout"]["tiles"].as_array().unwrap() {
        let of = |name: &str| tile[name].as_u64().unwrap_or_else(|| panic!("{name} of {tile}"));
        let title = tile["widget"]["title"].as_str().unwrap();
        assert!(of("xPos") + of("width") <= columns, "{title} is too wide");
        for (x, y) in (0..of("width")).flat_map(|x| (0..of("height")).map(move |y| (x, y))) {
            assert!(taken.insert((of("xPos") + x, of("yPos") + y)), "{title} lies on another tile");
        }
    }
    assert!(taken.len() > 1_000);
}

#[test]
fn what_deploy_fills_in_is_all_that_stands_open() {
    let mut open = BTreeSet::new();
    for folder in ["gcp/monitoring", "gcp/monitoring/alerts", "gcp/monitoring/log-metrics"] {
        for text in files(folder, "json").values() {
            open.extend(text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap().to_string()));
        }
    }
    let known = ["FLOOD_PER_MINUTE", "GCP_PROJECT", "NOTIFICATION_CHANNEL", "NO_EVENTS_MINUTES", "NO_EVENTS_SECONDS"];
    assert_eq!(open, known.map(String::from).into());
}

/// The clients that come with the gcloud CLI are made from Google's own descriptions of its APIs.
#[test]
fn google_knows_every_member_of_the_files() {
    let gcloud = program_in_path("gcloud").and_then(|gcloud| std::fs::canonicalize(gcloud).ok());
    let sdk = gcloud.as_deref().and_then(|gcloud| gcloud.ancestors().nth(2)).map(|sdk| sdk.join("lib"));
    let (Some(sdk), Some(python)) = (sdk.filter(|sdk| sdk.is_dir()), program_in_path("python3")) else {
        eprintln!("not read by Google's clients: the gcloud CLI is not on this machine");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/google_messages.py");
    let output = Command::new(python).arg(script).arg(sdk).arg(infra().join("gcp/monitoring")).output().unwrap();
    let files = 1 + ALERTS.len() + files("gcp/monitoring/log-metrics", "json").len();
    assert_eq!((text(&output.stdout), text(&output.stderr)), (format!("{files} files\n"), String::new()));
}
