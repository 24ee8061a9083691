//! The deployment, end to end: `infra/deploy.sh` and `infra/destroy.sh` with the unmodified CLIs before local servers, and
//! then events through what they have made.
//!
//! What this cannot prove (permissions, quotas, a real start) stands in `infra/README.md`. It takes the binaries of
//! `cargo test --workspace --features contextflow/cloud,pipeline-tests/cloud`.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pipeline_tests::bigquery::BigQueryApi;
use pipeline_tests::binary::{program_in_path, skip, text};
use pipeline_tests::deployment::{
    AWS_ACCOUNT, Call, Clouds, PROJECT_NUMBER, REGION, Ran, SERVICES, Table, path_without, settings, steps,
};
use pipeline_tests::infra::infra;
use pipeline_tests::parts::{self, Process, free_port};
use pipeline_tests::pubsub::{PROJECT, PubSubApi};
use reqwest::Method;
use serde_json::{Value, json};
use shared::clock::{Clock, DAY};
use shared::decode::time::timestamp_text;

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_deployment_is_made_used_and_removed() {
    let Some(clouds) = Clouds::start() else { return };
    make_what_others_have(&clouds);
    let before = clouds.state();
    limits_in_a_currency_of_their_own_are_refused(&clouds);

    let first = clouds.deploy(&[]).expect_success();
    eprintln!("deploy.sh: {:?}, {} calls, {} changes", first.took, first.calls.len(), first.changes().len());
    all_was_asked_for(&clouds, &first);

    let second = clouds.deploy(&[]).expect_success();
    eprintln!("deploy.sh again: {:?}", second.took);
    assert_eq!(lines(&second.changes()), Vec::<String>::new(), "a second run changes nothing");
    assert!(second.printed.contains("nothing"), "and says so: {}", second.printed);

    what_was_built_is_what_runs(&clouds, &first);
    events_go_through(&clouds, &first);
    what_pushes_nowhere_is_not_undone(&clouds);
    an_earlier_dead_letter_policy_is_taken_away(&clouds);
    what_cannot_be_asked_is_not_taken_for_nothing(&clouds);
    other_settings_change_what_is_there(&clouds);

    let destroy = clouds.run("destroy.sh", &[]).expect_success();
    eprintln!("destroy.sh: {:?}", destroy.took);
    only_data_is_left(&before, &clouds.state());

    what_google_keeps_of_the_removed_is_taken_back(&clouds);

    let _ = clouds.run("destroy.sh", &["--delete-data"]).expect_success();
    assert_same(&before, &clouds.state(), "all is gone but what others have");
}

#[test]
fn a_step_that_was_cut_off_is_continued_by_running_again() {
    let Some(clouds) = Clouds::start() else { return };
    make_what_others_have(&clouds);
    let mut calls = Vec::new();
    let mut cuts = 0;
    for step in steps() {
        if step == "gcp/services" {
            calls.extend(what_did_not_start_is_deployed_again(&clouds));
        }
        // After the first change, after three more, and then not any more.
        for changes in [Some(1), Some(3), None] {
            clouds.cut_after(changes);
            let run = clouds.step(&step);
            clouds.cut_after(None);
            calls.extend(run.calls);
            if run.code == Some(0) {
                break;
            }
            assert!(changes.is_some(), "{step} alone: {}", run.printed);
            cuts += 1;
        }
    }
    assert!(cuts > 20, "cut off {cuts} times");
    assert_eq!(table(&clouds).complaints(&calls), Vec::<String>::new());
    let last = clouds.deploy(&[]).expect_success();
    assert_eq!(lines(&last.changes()), Vec::<String>::new(), "nothing is left to be done");
}

fn table(clouds: &Clouds) -> Table {
    let [enricher, batcher, kill_switch] = clouds.ports.map(|port| format!("http://127.0.0.1:{port}"));
    Table::read(&[
        ("PROJECT", PROJECT),
        ("NUMBER", PROJECT_NUMBER),
        ("REGION", REGION),
        ("AWS_ACCOUNT", AWS_ACCOUNT),
        ("ENRICHER", &enricher),
        ("BATCHER", &batcher),
        ("KILL_SWITCH", &kill_switch),
        // Of the files below infra/gcp/monitoring.
        ("GCP_PROJECT", PROJECT),
        ("NO_EVENTS_MINUTES", "30"),
        ("NO_EVENTS_SECONDS", "1800"),
        ("FLOOD_PER_MINUTE", "60000"),
        ("NOTIFICATION_CHANNEL", &format!("projects/{PROJECT}/notificationChannels/*")),
    ])
}

/// Resources of the project and the account that no script may touch.
fn make_what_others_have(clouds: &Clouds) {
    let google = |method: Method, host: &str, path: &str, body: Value| {
        clouds.google(&method, &format!("{host}.googleapis.com"), path, &body)
    };
    let project = format!("projects/{PROJECT}");
    google(
        Method::POST,
        "serviceusage",
        &format!("/v1/{project}/services:batchEnable"),
        json!({"serviceIds": ["pubsub.googleapis.com", "iam.googleapis.com"]}),
    );
    google(Method::PUT, "pubsub", &format!("/v1/{project}/topics/other-topic"), json!({}));
    google(
        Method::PUT,
        "pubsub",
        &format!("/v1/{project}/subscriptions/other-sub"),
        json!({"topic": format!("{project}/topics/other-topic")}),
    );
    google(
        Method::POST,
        "iam",
        &format!("/v1/{project}/serviceAccounts"),
        json!({"accountId": "other-account", "serviceAccount": {}}),
    );
    google(Method::POST, "storage", &format!("/storage/v1/b?project={PROJECT}"), json!({"name": "other-bucket"}));
    google(
        Method::POST,
        "logging",
        &format!("/v2/{project}/metrics"),
        json!({"name": "other_metric", "filter": "severity=ERROR"}),
    );
    google(Method::POST, "monitoring", &format!("/v3/{project}/alertPolicies"), json!({"displayName": "other alert"}));
    google(Method::POST, "monitoring", &format!("/v1/{project}/dashboards"), json!({"displayName": "other dashboard"}));
    google(
        Method::POST,
        "bigquery",
        &format!("/bigquery/v2/{project}/datasets"),
        json!({"datasetReference": {"projectId": PROJECT, "datasetId": "other_data"}}),
    );
    let aws = |arguments: &[&str]| {
        let output = clouds.command("aws").args(["--region", "eu-west-1"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    };
    aws(&[
        "s3api",
        "create-bucket",
        "--bucket",
        "other-bucket",
        "--create-bucket-configuration",
        "LocationConstraint=eu-west-1",
    ]);
    aws(&["iam", "create-role", "--role-name", "other-role", "--assume-role-policy-document", "{}"]);
    aws(&["logs", "create-log-group", "--log-group-name", "/aws/lambda/other"]);
    aws(&["apigatewayv2", "create-api", "--name", "other", "--protocol-type", "HTTP"]);
}

/// The table is met by the run, and by no run from which something is taken out.
fn all_was_asked_for(clouds: &Clouds, run: &Ran) {
    let table = table(clouds);
    std::fs::write(
        clouds.folder().join("calls.txt"),
        run.calls.iter().map(|call| call.line() + "\n").collect::<String>(),
    )
    .unwrap();
    let complaints = table.complaints(&run.calls);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let (tried, unnoticed) = table.unnoticed(&run.calls);
    assert!(tried > 500, "{tried} things to take out");
    assert!(unnoticed.is_empty(), "the table does not miss {unnoticed:#?}");
}

fn lines(calls: &[&Call]) -> Vec<String> {
    calls.iter().map(|call| call.line()).collect()
}

fn assert_same(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>, what: &str) {
    let (before, after) = (flat(before), flat(after));
    let differences: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(differences.is_empty(), "{what}: {differences:#?}");
}

/// Every resource as a line. APIs that were enabled stay so: others may have come to need them.
fn flat(state: &BTreeMap<String, Value>) -> BTreeSet<String> {
    let sections = state.iter().filter(|(section, _)| *section != "services");
    let of_section = |(section, value): (&String, &Value)| {
        let members = value.as_object().cloned().unwrap_or_default();
        members.into_iter().map(|(name, value)| format!("{section} {name} {value}")).collect::<Vec<_>>()
    };
    sections.flat_map(of_section).collect()
}

/// Without `--delete-data` buckets with their objects and the tables stay; nothing else does.
fn only_data_is_left(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) {
    let (before, after) = (flat(before), flat(after));
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(lost.is_empty(), "what others have is touched: {lost:#?}");
    let is_data = |line: &&&String| ["buckets ", "objects ", "tables "].iter().any(|kind| line.starts_with(kind));
    let left: Vec<_> = after.difference(&before).collect();
    let more: Vec<_> = left.iter().filter(|line| !is_data(line)).collect();
    assert!(more.is_empty(), "still there: {more:#?}");
    for data in ["buckets ", "objects gs://", "tables contextflow.clickstream_events"] {
        assert!(left.iter().any(|line| line.starts_with(data)), "{data} is gone");
    }
}

/// Names of pools and roles are not free again for 30 days: a deployment within them undeletes.
fn what_google_keeps_of_the_removed_is_taken_back(clouds: &Clouds) {
    let steps = ["gcp/service-accounts", "gcp/roles", "gcp/identity-pool"];
    let calls: Vec<_> = steps.iter().flat_map(|step| clouds.step(step).expect_success().calls).collect();
    for taken_back in ["/roles/contextflow_append", "/workloadIdentityPools/contextflow", "/providers/aws"] {
        let undelete = format!("{taken_back}:undelete");
        assert!(calls.iter().any(|call| call.has_changed() && call.path.ends_with(&undelete)), "{taken_back}");
    }
}

/// A deployment that changes nothing, and says how the kill-switch's work is undone.
fn refused(clouds: &Clouds, why: &str) {
    let run = clouds.deploy(&[]);
    assert_ne!(run.code, Some(0), "{why}: {}", run.printed);
    assert_eq!(lines(&run.changes()), Vec::<String>::new(), "{why}");
    assert!(run.printed.contains("contextflow release"), "{why}: {}", run.printed);
}

/// Somebody has braked by hand, or the state is gone.
fn what_pushes_nowhere_is_not_undone(clouds: &Clouds) {
    let subscription = format!("/v1/projects/{PROJECT}/subscriptions/clickstream-raw-sub");
    let there = clouds.google(&Method::GET, "pubsub.googleapis.com", &subscription, &Value::Null);
    let modify = format!("{subscription}:modifyPushConfig");
    clouds.google(&Method::POST, "pubsub.googleapis.com", &modify, &json!({"pushConfig": {}}));
    refused(clouds, "a subscription that pushes nowhere");
    clouds.google(&Method::POST, "pubsub.googleapis.com", &modify, &json!({"pushConfig": there["pushConfig"]}));
}

/// A deployment of before, whose subscriptions would forward the backlog of an outage.
fn an_earlier_dead_letter_policy_is_taken_away(clouds: &Clouds) {
    let subscription = format!("/v1/projects/{PROJECT}/subscriptions/clickstream-raw-sub");
    let topic = format!("projects/{PROJECT}/topics/clickstream-dead-letter-topic");
    let policy = json!({"deadLetterTopic": topic, "maxDeliveryAttempts": 100});
    let update = json!({"subscription": {"deadLetterPolicy": policy}, "updateMask": "deadLetterPolicy"});
    clouds.google(&Method::PATCH, "pubsub.googleapis.com", &subscription, &update);
    let _ = clouds.step("gcp/subscriptions").expect_success();
    let there = clouds.google(&Method::GET, "pubsub.googleapis.com", &subscription, &Value::Null);
    assert_eq!(there["deadLetterPolicy"], Value::Null);
    assert_ne!(there["pushConfig"], Value::Null, "{there}");
}

/// A question that is refused ends the script: "nothing" would be an answer too, and another one.
fn what_cannot_be_asked_is_not_taken_for_nothing(clouds: &Clouds) {
    for (step, direction, question) in [
        ("gcp/topics", "up", "/o/kill-switch/state.json"),
        ("gcp/topics", "up", "/topics/budget-topic:getIamPolicy"),
        ("gcp/services", "up", "/services/batcher"),
        ("gcp/budget", "up", "/budgets"),
        ("gcp/budget", "down", "/budgets"),
        ("gcp/request-logs", "down", "/sinks/_Default"),
        ("aws/cors", "up", "/distribution"),
    ] {
        clouds.refuse(Some(question));
        let run = clouds.step_to(step, direction);
        clouds.refuse(None);
        assert_ne!(run.code, Some(0), "{step} {direction}, {question}: {}", run.printed);
        assert_eq!(lines(&run.changes()), Vec::<String>::new(), "{step} {direction}");
    }
}

/// The label of a service is that of what was asked for, also where its revision did not start.
fn what_did_not_start_is_deployed_again(clouds: &Clouds) -> Vec<Call> {
    let is_deployed = |run: &Ran| lines(&run.changes()).iter().any(|line| line.contains("/services"));
    clouds.let_not_start(Some("enricher"));
    let failed = clouds.step("gcp/services");
    assert!(failed.code != Some(0) && is_deployed(&failed), "{}", failed.printed);
    clouds.let_not_start(None);
    let again = clouds.step("gcp/services").expect_success();
    assert!(is_deployed(&again) && again.printed.contains("has not started"), "{}", again.printed);
    // What is there already is put; the table is of what is made.
    failed.calls.into_iter().chain(again.calls.into_iter().filter(|call| call.method != "PUT")).collect()
}

/// Google would refuse the budget, and the kill-switch every notice.
fn limits_in_a_currency_of_their_own_are_refused(clouds: &Clouds) {
    std::fs::write(clouds.settings(), settings(&[("MONTHLY_LIMIT", "100 EUR"), ("DAILY_LIMIT", "20 EUR")])).unwrap();
    let run = clouds.deploy(&[]);
    assert_eq!(run.code, Some(1), "{}", run.printed);
    assert_eq!(lines(&run.changes()), Vec::<String>::new());
    assert!(run.printed.contains("are in EUR") && run.printed.contains("is in USD"), "{}", run.printed);
    std::fs::write(clouds.settings(), settings(&[])).unwrap();
}

/// What is there is brought to other settings, and then nothing is left to be done.
fn other_settings_change_what_is_there(clouds: &Clouds) {
    let changed = [
        ("MONTHLY_LIMIT", "200 USD"),
        ("BRAKE_AT", "70"),
        ("DETACH", "monthly"),
        ("BUDGET_CREDITS", "include"),
        ("AWS_DAILY_LIMIT", "200 USD"),
        ("IP_ANONYMISE", "drop"),
        ("PACK_WAIT_MS", "30"),
        ("SITE_ORIGIN", "https://www.example.com"),
        ("ALERT_EMAIL", "others@example.com"),
        ("NO_EVENTS_MINUTES", "45"),
        ("FLOOD_PER_MINUTE", "70000"),
        ("LOOKER_REPORT_URL", "https://lookerstudio.google.com/embed/reporting/r/page/p"),
    ];
    std::fs::write(clouds.settings(), settings(&changed)).unwrap();
    let run = clouds.deploy(&[]).expect_success();
    let lines_of = lines(&run.changes());
    for part in [
        "/budgets/",
        "/services/kill-switch ",
        "/services/enricher ",
        "/functions/clickstream-publisher/configuration",
        "/functions/clickstream-publisher/concurrency",
        "/jobs/backfill",
        "/notificationChannels/",
        "/alertPolicies/",
        "/response-headers-policy/",
        "/v2/apis/",
    ] {
        assert!(lines_of.iter().any(|line| line.contains(part)), "{part} is changed: {lines_of:#?}");
    }
    let enricher = Deployed::service(clouds, "enricher").environment;
    assert_eq!(["IP_ANONYMISE", "PACK_WAIT_MS"].map(|name| enricher[name].as_str()), ["drop", "30"]);
    let may_detach = |run: &Ran| {
        let policy =
            run.changes().into_iter().rev().find(|call| call.path.ends_with(&format!("{PROJECT}:setIamPolicy")));
        policy.map(|call| call.body.to_string().contains("roles/billing.projectManager"))
    };
    assert_eq!(may_detach(&run), Some(true), "{lines_of:#?}");
    let again = clouds.deploy(&[]).expect_success();
    assert_eq!(lines(&again.changes()), Vec::<String>::new(), "nothing is left to be done");
    std::fs::write(clouds.settings(), settings(&[])).unwrap();
    let back = clouds.step("gcp/services").expect_success();
    assert_eq!(may_detach(&back), Some(false), "{:#?}", lines(&back.changes()));
}

/// What Cloud Run and Lambda were given is byte for byte what was built, and its start command answers `/health` with the
/// environment that the deployment gave it.
fn what_was_built_is_what_runs(clouds: &Clouds, run: &Ran) {
    for name in SERVICES {
        let service = Deployed::service(clouds, name);
        service.is_the_binary(clouds, name);
        let (_process, url) = service.start(clouds, None, &[]);
        healthy(&url);
    }
    let job = Deployed::job(clouds, run);
    job.is_the_binary(clouds, "backfill");
    let version = Command::new(&job.program).arg("--version").output().unwrap();
    assert!(version.status.success(), "{}", text(&version.stderr));

    let function = Deployed::function(clouds, run);
    function.is_the_binary(clouds, "publisher");
    let (_process, url) = function.start(clouds, None, &[]);
    healthy(&url);
}

/// A program as a cloud was given it.
struct Deployed {
    name: String,
    program: std::path::PathBuf,
    environment: BTreeMap<String, String>,
}

impl Deployed {
    /// The job, from what the image was built of.
    fn job(clouds: &Clouds, run: &Ran) -> Self {
        let made = |end: &str| run.calls.iter().find(|call| call.path.ends_with(end) && call.has_changed()).unwrap();
        let (build, job) = (made("/builds"), made("/jobs"));
        let container = &job.body["spec"]["template"]["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], build.body["images"][0]);
        let source = &build.body["source"]["storageSource"];
        let archive = format!("gs://{}/{}", source["bucket"].as_str().unwrap(), source["object"].as_str().unwrap());
        let folder = unpacked(clouds, "backfill", &archive);
        let recipe = std::fs::read_to_string(folder.join("Dockerfile")).unwrap();
        let entry = recipe.lines().find_map(|line| line.strip_prefix("ENTRYPOINT [\"/")?.strip_suffix("\"]"));
        Self { name: "backfill".into(), program: folder.join(entry.unwrap()), environment: variables(container) }
    }

    /// A service of Cloud Run.
    fn service(clouds: &Clouds, name: &str) -> Self {
        let path = format!("/apis/serving.knative.dev/v1/namespaces/{PROJECT}/services/{name}");
        let service = clouds.google(&Method::GET, &format!("{REGION}-run.googleapis.com"), &path, &Value::Null);
        let template = &service["spec"]["template"];
        let sources = template["metadata"]["annotations"]["run.googleapis.com/sources"].as_str().unwrap_or_default();
        let sources: BTreeMap<String, String> = serde_json::from_str(sources).unwrap_or_default();
        let folder = unpacked(clouds, name, sources.values().next().unwrap_or_else(|| panic!("no source: {template}")));
        let container = &template["spec"]["containers"][0];
        let program = container["command"][0].as_str().unwrap_or_else(|| panic!("{name} has no command: {container}"));
        let mut environment = variables(container);
        // Cloud Run itself sets this one.
        environment.insert("K_SERVICE".into(), name.into());
        Self { name: name.into(), program: folder.join(program), environment }
    }

    /// The Lambda of the first region.
    fn function(clouds: &Clouds, run: &Ran) -> Self {
        let made = |call: &&Call| {
            call.host == "lambda.amazonaws.com" && call.path.ends_with("/functions") && call.has_changed()
        };
        let call = run.calls.iter().find(made).unwrap();
        let zip = clouds.folder().join(call.body["Code"]["ZipFile"]["sha256"].as_str().unwrap());
        let folder = clouds.folder().join("unpacked/publisher");
        let python = parts::program("python").unwrap();
        let unpacked = Command::new(python).args(["-m", "zipfile", "-e"]).arg(zip).arg(&folder).status().unwrap();
        assert!(unpacked.success());
        let program = folder.join(call.body["Handler"].as_str().unwrap());
        let made_executable = Command::new("chmod").arg("+x").arg(&program).status().unwrap();
        assert!(made_executable.success(), "{}", program.display());
        let variables = call.body["Environment"]["Variables"].as_object().unwrap();
        let environment = variables.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_string()));
        Self { name: "publisher".into(), program, environment: environment.collect() }
    }

    fn is_the_binary(&self, clouds: &Clouds, name: &str) {
        let built = std::fs::read(clouds.binaries().join(name)).unwrap();
        assert!(std::fs::read(&self.program).unwrap() == built, "{name} is not what was built");
    }

    /// Starts it as the cloud would, with its environment, but with the servers of this machine in place of Google's;
    /// `changed` takes the place of variables. Its address.
    fn start(&self, clouds: &Clouds, port: Option<u16>, changed: &[(&str, &str)]) -> (Process, String) {
        let port = port.unwrap_or_else(free_port);
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.environment).env("PORT", port.to_string());
        command.current_dir(self.program.parent().unwrap());
        command.env("PUBSUB_ENDPOINT", &clouds.pubsub.url).env("STORAGE_ENDPOINT", clouds.url());
        command
            .env("BIGQUERY_REST_ENDPOINT", &clouds.bigquery.rest)
            .env("BIGQUERY_GRPC_ENDPOINT", &clouds.bigquery.grpc);
        command.env("BILLING_ENDPOINT", clouds.url());
        // How it logs in to Google Cloud with its role on AWS is tested in federation.rs.
        command.env_remove("WORKLOAD_IDENTITY_AUDIENCE").envs(changed.iter().copied());
        let mut process = Process::start(&self.name, command);
        process.wait_for_port(port);
        (process, format!("http://127.0.0.1:{port}"))
    }
}

/// A folder with what lies packed at `gs://…`.
fn unpacked(clouds: &Clouds, name: &str, archive: &str) -> std::path::PathBuf {
    let folder = clouds.folder().join("unpacked").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let address = archive.replacen("gs:/", clouds.url(), 1);
    let packed = reqwest::blocking::get(&address).unwrap().error_for_status().unwrap().bytes().unwrap();
    std::fs::write(folder.join("packed.tar.gz"), packed).unwrap();
    let tar = Command::new("tar").args(["-xzf", "packed.tar.gz"]).current_dir(&folder).status().unwrap();
    assert!(tar.success(), "{archive}");
    folder
}

fn variables(container: &Value) -> BTreeMap<String, String> {
    let variable = |one: &Value| Some((one["name"].as_str()?.to_string(), one["value"].as_str()?.to_string()));
    container["env"].as_array().into_iter().flatten().filter_map(variable).collect()
}

fn healthy(url: &str) {
    let answer = reqwest::blocking::get(format!("{url}/health")).unwrap();
    assert_eq!(answer.status(), 200, "{url}");
}

/// From the publisher's Lambda over the topics and subscriptions that the scripts made, by way of the functions at the
/// addresses that Cloud Run names, into the tables, views and buckets that the scripts made.
fn events_go_through(clouds: &Clouds, run: &Ran) {
    // The emulator pushes without a token, whatever the subscription says: the functions may not ask for one here.
    let changed = [("PUSH_AUTH", "off"), ("ARCHIVE_WAIT_MS", "500"), ("MODE", "armed"), ("DAILY_LIMIT", "1000 USD")];
    let _functions: Vec<_> = SERVICES
        .iter()
        .zip(clouds.ports)
        .map(|(name, port)| Deployed::service(clouds, name).start(clouds, Some(port), &changed))
        .collect();
    let (_publisher, url) = Deployed::function(clouds, run).start(clouds, None, &[]);
    let now = timestamp_text(Clock::system().now());
    let events = json!([
        {"userId": "u1", "eventName": "page_view", "ipAddress": "8.8.8.8", "eventTimestamp": now, "eventId": "good"},
        {"userId": "u2", "eventTimestamp": "yesterday", "eventId": "broken"},
    ]);
    let client = reqwest::blocking::Client::new();
    let publish = |events: &Value| {
        let answer = client.post(format!("{url}/publish")).json(events).send().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().unwrap_or_default());
    };
    publish(&events);
    // A public publisher takes no orders; a backend publishes them itself.
    let order =
        json!({"event_type": "order", "order_id": "o1", "order_date": now, "event_id": "order", "total_amount": 12.34});
    let message = json!({"data": base64_simd::STANDARD.encode_to_string(order.to_string())});
    let raw = format!("/v1/projects/{PROJECT}/topics/clickstream-raw-topic:publish");
    clouds.google(&Method::POST, "pubsub.googleapis.com", &raw, &json!({"messages": [message]}));

    let tables = BigQueryApi::at(&clouds.bigquery.rest);
    let row = |sql: &str| wait_for(sql, || tables.query(sql).first().cloned());
    let click = row("SELECT user_id, country FROM contextflow.v_clickstream_events WHERE event_id = 'good'");
    assert_eq!((&click["user_id"], &click["country"]), (&json!("u1"), &json!("US")));
    row("SELECT order_id FROM backend_events.v_orders WHERE event_id = 'order'");
    let letter = row("SELECT reason FROM contextflow.dead_letters WHERE event_id = 'broken'");
    assert_eq!(letter["reason"], "bad_time");
    let objects = || {
        let state = clouds.state();
        let names: Vec<_> = state["objects"].as_object().unwrap().keys().cloned().collect();
        let archived = |part: &str| names.iter().any(|name| name.contains(part) && name.ends_with(".jsonl.gz"));
        ["/clickstream/", "/order/", "/dead-letter/"].iter().all(|part| archived(part)).then_some(())
    };
    wait_for("objects of the archive", objects);

    a_brake_loses_nothing_and_no_deployment_undoes_it(clouds, || {
        publish(&json!([{"userId": "u3", "eventTimestamp": now, "eventId": "braked"}]));
    });
    row("SELECT event_id FROM contextflow.v_clickstream_events WHERE event_id = 'braked'");
}

/// Notices of the budget, as its own publisher sends them, come to the kill-switch.
fn a_brake_loses_nothing_and_no_deployment_undoes_it(clouds: &Clouds, publish: impl Fn()) {
    let kill_switch = Deployed::service(clouds, "kill-switch").environment;
    let of_budget = ["BILLING_ACCOUNT_ID", "BUDGET_ID"].map(|name| kill_switch[name].as_str());
    let attributes = [("billingAccountId", of_budget[0]), ("budgetId", of_budget[1]), ("schemaVersion", "1.0")];
    let yesterday = timestamp_text(Clock::system().now() - DAY);
    let notice = |cost: f64| {
        let notice = json!({
            "budgetDisplayName": "budget", "costAmount": cost, "costIntervalStart": yesterday, "budgetAmount": 100.0,
            "budgetAmountType": "SPECIFIED_AMOUNT", "currencyCode": "USD",
        });
        PubSubApi::at(&clouds.pubsub.url).publish("budget-topic", notice.to_string().as_bytes(), &attributes);
    };
    let object = format!("/storage/v1/b/{PROJECT}-contextflow/o/kill-switch%2Fstate.json?alt=media");
    let state = || clouds.google(&Method::GET, "storage.googleapis.com", &object, &Value::Null);
    notice(1.5);
    wait_for("what was spent", || (state()["interval"]["highest"] == 1.5).then_some(()));
    notice(85.0);
    let is_done = |state: &Value| state["interval"]["actions"]["brake"]["status"] == "done" && state["claim"].is_null();
    wait_for("the brake", || is_done(&state()).then_some(()));
    publish();
    refused(clouds, "a brake");

    let mut release = clouds.command(clouds.binaries().join("contextflow"));
    release.args(["release", "--project", PROJECT]).env("STORAGE_ENDPOINT", clouds.url());
    release.env("PUBSUB_ENDPOINT", &clouds.pubsub.url).env("MONITORING_ENDPOINT", clouds.url());
    let output = release.env("BILLING_ENDPOINT", clouds.url()).output().unwrap();
    let (told, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && told.contains("no longer in force: brake;"), "{told}{error}");
}

fn wait_for<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: nothing after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A machine with the tools and nothing else: no login, no way to any cloud.
struct Blank {
    folder: tempfile::TempDir,
}

impl Blank {
    fn new() -> Option<Self> {
        for program in ["gcloud", "bq", "aws"] {
            if program_in_path(program).is_none() {
                skip(&format!("{program} is missing; install the gcloud CLI and the AWS CLI"));
                return None;
            }
        }
        Some(Self { folder: tempfile::tempdir().unwrap() })
    }

    /// Runs a script; `without` is a tool that this machine does not have.
    fn run(&self, script: &str, without: Option<&str>, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(infra().join(script));
        command.env_clear().env("PATH", path_without(self.folder.path(), without)).env("HOME", self.folder.path());
        command.env("CLOUDSDK_CONFIG", self.folder.path().join("gcloud")).stdin(std::process::Stdio::null());
        command.envs([
            ("CLOUDSDK_PROXY_TYPE", "http"),
            ("CLOUDSDK_PROXY_ADDRESS", "127.0.0.1"),
            ("CLOUDSDK_PROXY_PORT", "9"),
            ("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false"),
            ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "true"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    fn settings(&self, changed: &[(&str, &str)]) -> String {
        let file = self.folder.path().join("settings.env");
        std::fs::write(&file, settings(changed)).unwrap();
        file.display().to_string()
    }
}

#[test]
fn the_example_settings_show_every_command_without_a_login() {
    let Some(blank) = Blank::new() else { return };
    let example = infra().join("settings.example.env").display().to_string();
    for script in ["deploy.sh", "destroy.sh"] {
        let (code, printed) = blank.run(script, None, &["--settings", &example, "--dry-run"]);
        assert_eq!(code, Some(0), "{script}: {printed}");
        let commands: Vec<_> = printed.lines().filter(|line| line.starts_with("gcloud ")).collect();
        assert!(commands.len() > 20, "{script}: {printed}");
        assert_eq!(lint(&commands), Vec::<String>::new(), "{script}");
    }
    assert_eq!(lint(&["gcloud pubsub topics create topic --retention=31d"]).len(), 1, "a wrong flag is seen");
}

/// What gcloud itself finds wrong in commands.
fn lint(commands: &[&str]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("parts/lint_gcloud.py");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("commands");
    std::fs::write(&file, commands.join("\n")).unwrap();
    let output = Command::new("python3").arg(script).arg(&file).env("CLOUDSDK_CONFIG", folder.path()).output().unwrap();
    let printed = text(&output.stdout) + &text(&output.stderr);
    if output.status.success() { Vec::new() } else { printed.lines().map(str::to_string).collect() }
}

#[test]
fn what_is_missing_is_named_before_anything_is_made() {
    let Some(blank) = Blank::new() else { return };
    let refused = |without: Option<&str>, changed: &[(&str, &str)], name: &str| {
        let settings = blank.settings(changed);
        let (code, printed) = blank.run("deploy.sh", without, &["--settings", &settings, "--binaries", "/nowhere"]);
        assert!(matches!(code, Some(1 | 2)), "{name}: {code:?} {printed}");
        assert!(printed.contains(name), "{name} is not named: {printed}");
        assert!(printed.lines().count() < 20, "{name}: {printed}");
    };
    for tool in ["gcloud", "aws"] {
        refused(Some(tool), &[], tool);
    }
    refused(None, &[], "gcloud auth login");
    for setting in
        ["GCP_PROJECT", "BILLING_ACCOUNT", "AWS_ACCOUNT", "ALERT_EMAIL", "MONTHLY_LIMIT", "PUBLISHER_REGIONS", "MODE"]
    {
        refused(None, &[(setting, "")], setting);
    }
    refused(None, &[("MODE", "sometimes")], "MODE");
    refused(None, &[("DAILY_LIMIT", "20 EUR")], "DAILY_LIMIT");
}
