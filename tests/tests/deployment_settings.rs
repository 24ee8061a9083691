//! The settings of a deployment, without any cloud: which there are, where they go, and what the daily limit pays for.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use pipeline_tests::binary::{json_of, text};
use pipeline_tests::deployment::settings;
use pipeline_tests::infra::{infra, read};

/// What the scripts give by themselves, and what only a process on this machine is given.
const NOT_GIVEN: [&str; 27] = [
    "ARCHIVE_URI",
    "BIGQUERY_GRPC_ENDPOINT",
    "BIGQUERY_REST_ENDPOINT",
    "BILLING_ACCOUNT_ID",
    "BILLING_ENDPOINT",
    "BUDGET_ID",
    "BUDGET_SUBSCRIPTION",
    "DEAD_LETTERS_URI",
    "DEAD_LETTER_TOPIC",
    "DELTA_URI",
    "ENRICHED_TOPIC",
    "GOOGLE_CLOUD_PROJECT",
    "IAM_CREDENTIALS_ENDPOINT",
    "IMPERSONATE_SERVICE_ACCOUNT",
    "MAX_BODY_BYTES",
    "MAX_REQUEST_EVENTS",
    "MONITORING_ENDPOINT",
    "PORT",
    "PUBLISHER_MEMBER",
    "PUBSUB_ENDPOINT",
    "PUSH_KEYS_URL",
    "RAW_TOPIC",
    "STATE_URI",
    "STORAGE_ENDPOINT",
    "STS_ENDPOINT",
    "WAREHOUSE",
    "WORKLOAD_IDENTITY_AUDIENCE",
];
/// Set by the deployment of each service.
const PUSH: [&str; 3] = ["PUSH_AUTH", "PUSH_AUDIENCE", "PUSH_SERVICE_ACCOUNT"];
/// Settings of the deployment that it also hands to a function.
const HANDED_ON: [&str; 8] =
    ["BIGQUERY_LOCATION", "BRAKE_AT", "DAILY_LIMIT", "DETACH", "DETACH_AT", "MODE", "MONTHLY_LIMIT", "STOP_AT"];
/// Of the runtime, of other programs, and texts that only look like a setting.
const NO_SETTINGS: &[&str] = &[
    "ALIGN_SUM",
    "AWS_ACCESS_KEY_ID",
    "AWS_ENDPOINT_URL",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CARGO_PKG_VERSION",
    "CLOUD_RUN_EXECUTION",
    "GCE_METADATA_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HOME",
    "HOSTNAME",
    "K_REVISION",
    "K_SERVICE",
    "OUT_DIR",
    "REDUCE_SUM",
    "TIMESTAMP_TRUNC",
];

/// The list of `infra/function-settings.sh`: each setting with the functions that read it.
fn listed() -> BTreeMap<String, BTreeSet<String>> {
    let text = read(&infra().join("function-settings.sh"));
    let entry = |line: &str| {
        let (name, functions) = line.trim().strip_prefix('[')?.split_once("]=")?;
        let functions = functions.trim_matches('"').split(' ').map(str::to_string).collect();
        Some((name.to_string(), functions))
    };
    text.lines().filter_map(entry).collect()
}

/// The names of settings in the code below a folder, without its tests.
fn names_in(folder: &Path) -> BTreeSet<String> {
    let is_name = |text: &&str| {
        text.starts_with(|first: char| first.is_ascii_uppercase())
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let asks = ["get(", "text(", "required(", "parsed(", "within(", "millis(", "topic(", "flag("];
    let mut names = BTreeSet::new();
    for path in sources(folder) {
        let code = read(&path);
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap();
        let parts: Vec<&str> = code.split('"').collect();
        for pair in parts.windows(2) {
            let (before, literal) = (pair[0].trim_end(), &pair[1]);
            let is_asked = asks.iter().any(|ask| before.ends_with(&format!(".{ask}")));
            if is_name(literal) && (is_asked || literal.contains('_')) {
                names.insert((*literal).to_string());
            }
        }
    }
    names
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_entry = |path: PathBuf| match path.extension().and_then(|ending| ending.to_str()) {
        _ if path.is_dir() => sources(&path),
        Some("rs") if !path.ends_with("tests.rs") => vec![path],
        _ => Vec::new(),
    };
    entries.flat_map(of_entry).collect()
}

#[test]
fn every_setting_that_a_function_reads_can_be_given() {
    let (root, listed) = (infra().join(".."), listed());
    let known = |name: &str| {
        listed.contains_key(name) || NOT_GIVEN.iter().chain(&PUSH).chain(&HANDED_ON).any(|one| *one == name)
    };
    let functions = ["publisher", "enricher", "batcher", "kill-switch", "backfill"];
    let mut in_code = BTreeSet::new();
    for function in functions {
        let names = names_in(&root.join("functions").join(function).join("src"));
        for name in names.iter().filter(|name| !NO_SETTINGS.contains(&name.as_str())) {
            assert!(known(name), "{function} reads {name}: a line of infra/function-settings.sh, or NOT_GIVEN here");
            let is_read = listed.get(name).is_none_or(|functions| functions.contains(function));
            assert!(is_read, "{function} reads {name}, and infra/function-settings.sh does not say so");
        }
        in_code.extend(names);
    }
    let shared: BTreeSet<_> =
        names_in(&root.join("shared/src")).into_iter().filter(|name| !NO_SETTINGS.contains(&name.as_str())).collect();
    let unknown: Vec<_> = shared.iter().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}: lines of infra/function-settings.sh, NOT_GIVEN or no settings at all");
    in_code.extend(shared);
    let unread: Vec<_> = listed.keys().filter(|name| !in_code.contains(*name)).collect();
    assert!(unread.is_empty(), "no function reads {unread:?}");
    for (name, functions_of) in &listed {
        assert!(functions_of.iter().all(|one| functions.contains(&one.as_str())), "{name}: {functions_of:?}");
    }
}

/// The commands of a dry run with these lines in the settings file, and its exit code.
fn dry_run(arguments: &[&str], changed: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.env");
    std::fs::write(&file, settings(changed)).unwrap();
    let mut command = Command::new(infra().join("deploy.sh"));
    command.arg("--settings").arg(&file).arg("--dry-run").args(arguments).env("FILES", folder.path());
    // What this shell has for other purposes.
    command.env("PACK_ROWS", "13").env("IP_ANONYMISE", "off");
    let output = command.output().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn what_the_settings_file_says_reaches_the_functions_that_read_it() {
    let (code, printed) = dry_run(&["--only", "gcp"], &[("PACK_BYTES", "4096"), ("RUST_LOG", "info,hyper=warn")]);
    assert_eq!(code, Some(0), "{printed}");
    let (code, of_aws) = dry_run(&["--only", "aws"], &[("IP_ANONYMISE", "drop"), ("PUBLISH_TYPES", "clickstream")]);
    assert_eq!(code, Some(0), "{of_aws}");
    let command = |text: &str, start: &str| {
        let line = text.lines().find(|line| line.contains(start) && line.contains("GOOGLE_CLOUD_PROJECT"));
        line.unwrap_or_else(|| panic!("{start}: {text}")).replace('\\', "")
    };
    let [enricher, batcher, job] =
        ["run deploy enricher", "run deploy batcher", "jobs deploy backfill"].map(|start| command(&printed, start));
    for (function, has, lacks) in [
        (&enricher, &["|PACK_BYTES=4096|", "|IP_ANONYMISE=truncate|", "|RUST_LOG=info,hyper=warn"][..], "PACK_ROWS"),
        (&batcher, &["|RUST_LOG=info,hyper=warn"], "PACK_BYTES"),
        (&job, &["|IP_ANONYMISE=truncate|", "|RUST_LOG=info,hyper=warn"], "PACK_BYTES"),
        (
            &command(&of_aws, "create-function"),
            &["\"IP_ANONYMISE\":\"drop\"", "\"PUBLISH_TYPES\":\"clickstream\"", "\"MAX_BODY_BYTES\":\""],
            "GEO_URI",
        ),
    ] {
        for part in has {
            assert!(function.contains(part), "{part}: {function}");
        }
        assert!(!function.contains(lacks), "{lacks}: {function}");
    }
}

#[test]
fn a_setting_that_nothing_reads_or_that_cannot_be_used_is_named() {
    for (name, value) in [
        ("IP_ANONYMIZE", "drop"),
        ("PUBLISHER_REGION", "eu-west-1"),
        ("RAW_TOPIC", "other-topic"),
        ("IP_ANONYMISE", "some"),
        ("PACK_ROWS", "many"),
        ("SCHEMAS_URI", "gs://a|b"),
        ("DETACH", "daily"),
        ("BUDGET_CREDITS", "net"),
    ] {
        let (code, printed) = dry_run(&[], &[(name, value)]);
        assert_eq!(code, Some(1), "{name}: {printed}");
        assert!(printed.contains(&format!("settings.env: {name}")), "{name}: {printed}");
        assert!(!printed.contains("gcloud "), "{printed}");
    }
}

/// One arithmetic: the scripts come to the bounds that `contextflow cost` computes from the price table, of which its own
/// tests show that a day of the dearest requests stays within the limit.
#[test]
fn the_scripts_throttle_as_the_price_table_says() {
    for (limit, regions) in [("0.5", 1), ("5", 2), ("20.5", 1), ("100", 3), ("1000", 1)] {
        let computed = json_of(["cost", "--json", "--throttle", limit, "--regions", &regions.to_string()]);
        let rate = computed["rate"].as_f64().unwrap();
        let script = format!(
            "ROOT=.. AWS_DAILY_LIMIT='{limit} USD' PUBLISHER_REGIONS='{}'; . aws/throttle.sh; throttle; \
             echo $RATE $BURST $CONCURRENCY $EVENTS $BODY_BYTES",
            "r ".repeat(regions)
        );
        let output = Command::new("bash").args(["-euc", &script]).current_dir(infra()).output().unwrap();
        let printed = text(&output.stdout);
        let found: Vec<f64> = printed.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let [script_rate, burst, concurrency, events, body] = found[..] else { panic!("{}", text(&output.stderr)) };
        assert!(script_rate <= rate && rate - script_rate < 0.001 * rate + 0.0001, "{script_rate}, not {rate}");
        assert!(
            (burst - (script_rate * 10.0 + 1.0).floor()).abs() < 1.1 && (burst - concurrency).abs() < 0.5,
            "{printed}"
        );
        assert_eq!(Some(events), computed["request"]["events"].as_f64(), "{limit}");
        assert_eq!(Some(body), computed["request"]["body_bytes"].as_f64(), "{limit}");
    }
}

/// A tag can be moved to other code, a commit cannot.
#[test]
fn workflows_name_actions_by_their_commit() {
    let folder = infra().join("../.github/workflows");
    let mut uses = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let text = read(&file.unwrap().path());
        for action in text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: ")) {
            let (_, rest) = action.split_once('@').unwrap_or_else(|| panic!("{action} has no commit"));
            let (commit, version) = rest.split_once(" # v").unwrap_or_else(|| panic!("{action} names no version"));
            let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_commit && version.starts_with(|first: char| first.is_ascii_digit()), "{action}");
            uses += 1;
        }
    }
    assert!(uses > 3, "{uses}");
}
